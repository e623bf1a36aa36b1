"""Merging: one model from several of the same architecture."""

from collections.abc import Iterator

from steelyard.hookspecs import hookimpl
from steelyard.specs import LazyRef, StageSpec


@hookimpl
def steelyard_stages() -> Iterator[StageSpec]:
    yield StageSpec(
        "merge",
        impl=LazyRef("steelyard_merge.merge:Merge"),
        config=LazyRef("steelyard_merge.config:MergeConfig"),
        data=None,
        needs_reference=True,
        reference_must_differ=True,
        models="*",
        models_for_reference=True,
        summary="one model of several: their average, spherical interpolation, task arithmetic or TIES",
    )
