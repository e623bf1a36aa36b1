"""Configuration of the reinforcement-learning stages."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import model_validator

from steelyard_rl.policy_options import PolicyOptions
from steelyard_rl.rollout_options import MonitorOptions, PhraseOptions, RolloutOptions
from steelyard_torch.config import OptimiserOptions

__all__ = ["GrpoConfig", "MonitorOptions", "PhraseOptions", "RlConfig"]


class RlConfig(RolloutOptions, PolicyOptions, OptimiserOptions):
    """The dials of the stage `rl`: what is sampled and rewarded, how it becomes a loss, and the optimiser's."""

    schedule: Literal["linear", "cosine", "constant"] = "constant"
    """How the learning rate falls after warm-up."""

    @model_validator(mode="after")
    def _groups_are_large_enough(self) -> RlConfig:
        if self.minibatches > self.prompts_per_step:
            raise ValueError(f"minibatches {self.minibatches} is more than prompts_per_step {self.prompts_per_step}")
        if self.samples_per_prompt == 1 and self.per_token and self.drop_without_signal:
            raise ValueError(
                "drop_without_signal leaves out every group where samples_per_prompt is 1, since one answer differs from none; "
                "say drop_without_signal: false"
            )
        if self.samples_per_prompt == 1 and not self.per_token:
            raise ValueError(
                f"samples_per_prompt 1 makes every advantage 0 with advantage {self.advantage!r}, which compares an answer with its group"
            )
        return self

    @model_validator(mode="after")
    def _reference_can_move(self) -> RlConfig:
        if self.reference_refresh is not None and self.adapter is not None:
            raise ValueError("reference_refresh renews whole weights, and with an adapter the policy has the reference's own below it")
        return self

    def check_models(self, roles: Collection[str]) -> None:
        """Refuse a value model where nothing asks for one, and its absence where something does."""
        if self.advantage == "gae" and "value" not in roles:
            raise ValueError("advantage 'gae' needs a value model: name a reward model's stage, as in `models: {value: stage:rm}`")
        if self.advantage != "gae" and "value" in roles:
            raise ValueError(f"models.value is for advantage 'gae' (preset ppo), and advantage is {self.advantage!r}")

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps on a rollout step's groups."""
        return self.minibatches * self.epochs


class GrpoConfig(RlConfig):
    """The stage `grpo`: `rl` with that preset."""

    preset: Literal["grpo"] = "grpo"
    """There is no other here; the stage `rl` has them all."""
