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
        distributed=True,
        needs_reference=True,
        reference_must_differ=True,
        models=("teacher",),
        models_for_reference=True,
        summary="distillation of a teacher's token distributions, on given conversations or on the student's own answers",
    )
