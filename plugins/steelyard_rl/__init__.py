"""Reinforcement learning from verifiable rewards."""

from collections.abc import Iterator

from steelyard.hookspecs import hookimpl
from steelyard.specs import LazyRef, StageSpec


@hookimpl
def steelyard_stages() -> Iterator[StageSpec]:
    yield StageSpec(
        "rl",
        impl=LazyRef("steelyard_rl.policy:PolicyOptimisation"),
        config=LazyRef("steelyard_rl.config:RlConfig"),
        data="prompts",
        needs_reference=True,
        needs_verifiers=True,
        models=("value",),
        distributed=True,
        summary="policy optimisation on verified answers: GRPO, DAPO, GSPO, CISPO, RLOO, REINFORCE++, PPO and others by preset or dial",
    )
    yield StageSpec(
        "grpo",
        impl=LazyRef("steelyard_rl.policy:PolicyOptimisation"),
        config=LazyRef("steelyard_rl.config:GrpoConfig"),
        data="prompts",
        needs_reference=True,
        needs_verifiers=True,
        models=("value",),
        distributed=True,
        summary="group-relative policy optimisation on verified answers",
    )
