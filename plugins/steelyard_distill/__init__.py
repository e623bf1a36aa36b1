"""Distillation: a student learns a teacher's token distributions."""

from collections.abc import Iterator

from steelyard.hookspecs import hookimpl
from steelyard.specs import LazyRef, StageSpec


@hookimpl
def steelyard_stages() -> Iterator[StageSpec]:
    yield StageSpec(
        "distill",
        impl=LazyRef("steelyard_distill.distill:Distill"),
        config=LazyRef("steelyard_distill.config:DistillConfig"),
        data="messages",
        needs_reference=True,
        reference_must_differ=True,
        summary="distillation of the reference model's token distributions on given conversations",
    )
