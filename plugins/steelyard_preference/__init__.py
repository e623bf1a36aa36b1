"""Preference stages: direct preference optimisation."""

from collections.abc import Iterator

from steelyard.hookspecs import hookimpl
from steelyard.specs import LazyRef, StageSpec


@hookimpl
def steelyard_stages() -> Iterator[StageSpec]:
    yield StageSpec(
        "dpo",
        impl=LazyRef("steelyard_preference.dpo:Dpo"),
        config=LazyRef("steelyard_preference.config:DpoConfig"),
        data="preference",
        needs_reference=True,
        summary="direct preference optimisation, plain or length-normalised, with an optional NLL term",
    )
