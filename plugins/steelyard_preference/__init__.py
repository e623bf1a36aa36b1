"""Preference stages: direct preference optimisation and its kin, Kahneman–Tversky optimisation, reward models."""

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
        distributed=True,
        needs_reference=True,
        summary="direct preference optimisation on pairs: plain, length-normalised, IPO or with label smoothing; an optional NLL term",
    )
    yield StageSpec(
        "simpo",
        impl=LazyRef("steelyard_preference.dpo:Simpo"),
        config=LazyRef("steelyard_preference.config:SimpoConfig"),
        data="preference",
        distributed=True,
        summary="SimPO: pairs by mean log-probability and a margin, without a reference model",
    )
    yield StageSpec(
        "orpo",
        impl=LazyRef("steelyard_preference.dpo:Orpo"),
        config=LazyRef("steelyard_preference.config:OrpoConfig"),
        data="preference",
        distributed=True,
        summary="ORPO: cross-entropy on the chosen answers and an odds ratio against the rejected, without a reference model",
    )
    yield StageSpec(
        "kto",
        impl=LazyRef("steelyard_preference.kto:Kto"),
        config=LazyRef("steelyard_preference.config:KtoConfig"),
        data="preference",
        distributed=True,
        needs_reference=True,
        summary="Kahneman–Tversky optimisation on answers labelled good or bad, or on pairs",
    )
    yield StageSpec(
        "reward_model",
        impl=LazyRef("steelyard_preference.reward_model:RewardModel"),
        config=LazyRef("steelyard_preference.config:RewardModelConfig"),
        data="preference",
        distributed=True,
        makes="reward_model",
        summary="a reward model from pairs or ranked lists (Bradley–Terry), with its accuracy and calibration on held-out prompts",
    )
