"""Configuration of the supervised stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from steelyard_torch.config import TrainingOptions

__all__ = ["PretrainConfig", "SftConfig"]


class SupervisedOptions(TrainingOptions):
    batch_size: int = Field(default=128, gt=0)
    """Examples in an optimiser step."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the dataset."""
    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many optimiser steps, whatever `epochs` says."""
    loss_reduction: Literal["token_mean", "sum", "sequence_mean"] = "token_mean"
    """How token losses become one: the mean over the trained tokens of the whole optimiser step; their sum; or the mean over
    sequences of each sequence's mean."""


class SftConfig(SupervisedOptions):
    trained_turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns are trained."""


class PretrainConfig(SupervisedOptions):
    train_prompt: bool = False
    """Whether the `prompt` of rows with `prompt` and `completion` is trained as well."""
