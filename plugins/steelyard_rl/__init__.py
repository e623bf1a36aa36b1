"""Reinforcement learning from verifiable rewards."""

from collections.abc import Iterator

from steelyard.hookspecs import hookimpl
from steelyard.specs import LazyRef, StageSpec


@hookimpl
def steelyard_stages() -> Iterator[StageSpec]:
    yield StageSpec(
        "grpo",
        impl=LazyRef("steelyard_rl.grpo:Grpo"),
        config=LazyRef("steelyard_rl.config:GrpoConfig"),
        data="prompts",
        needs_reference=True,
        needs_verifiers=True,
        summary="group-relative policy optimisation on verified answers",
    )
