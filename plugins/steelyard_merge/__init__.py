"""Merging: one model from two of the same architecture."""

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
        summary="the weighted average of the initial and the reference model's weights",
    )
