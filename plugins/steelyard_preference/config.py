"""Configuration of the preference stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from steelyard_torch.config import TrainingOptions

__all__ = ["DpoConfig"]


class DpoConfig(TrainingOptions):
    loss: Literal["dpo", "dpo_norm"] = "dpo"
    """`dpo`: on summed log-probabilities; `dpo_norm`: on their means over each answer's tokens, which wants a much larger `beta`."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the tie to the reference model (0.1 for `dpo`, 5 for `dpo_norm`)."""
    nll_coefficient: float = Field(default=0.0, ge=0)
    """Weight of a cross-entropy term on the chosen answer."""
    nll_reduction: Literal["token_mean", "sequence_mean"] = "token_mean"
    """How that term is averaged over the optimiser step."""
    batch_size: int = Field(default=128, gt=0)
    """Pairs in an optimiser step."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the pairs."""
    max_steps: int | None = Field(default=None, gt=0)
    """Just so many optimiser steps, over as many passes as that takes, in place of `epochs`."""
    trained_turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns count in the log-probabilities; `all` includes those of the shared prompt."""
