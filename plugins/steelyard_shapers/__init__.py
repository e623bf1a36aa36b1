"""Shapers: rewards for more than being right."""

from collections.abc import Iterator

from steelyard.hookspecs import hookimpl
from steelyard.specs import LazyRef, ShaperSpec


@hookimpl
def steelyard_shapers() -> Iterator[ShaperSpec]:
    yield ShaperSpec(
        "soft_overlong",
        impl=LazyRef("steelyard_shapers.overlong:SoftOverlong"),
        config=LazyRef("steelyard_shapers.config:SoftOverlongConfig"),
        summary="a penalty that grows over the last tokens before the length limit (DAPO)",
    )
