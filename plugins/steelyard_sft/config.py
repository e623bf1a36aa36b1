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
    """Just so many optimiser steps, over as many passes as that takes, in place of `epochs`."""
    loss_reduction: Literal["token_mean", "sum", "sequence_mean"] = "token_mean"
    """How token losses become one: the mean over the trained tokens of the whole optimiser step; their sum; or the mean over
    sequences of each sequence's mean."""


class SftConfig(SupervisedOptions):
    trained_turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns are trained."""


class PretrainConfig(SupervisedOptions):
    train_prompt: bool = False
    """Whether the `prompt` of rows with `prompt` and `completion` is trained as well."""
    end_token: bool = True
    """Put the tokenizer's end token behind every text and train it; without it the model learns to go on after a text."""
