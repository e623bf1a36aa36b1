"""Configuration of the stage `distill`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from steelyard_torch.config import TrainingOptions

__all__ = ["DistillConfig"]


class DistillConfig(TrainingOptions):
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """`forward_kl`: KL(teacher ‖ student), the student covers all that the teacher does; `reverse_kl`: KL(student ‖ teacher), the student
    keeps to what the teacher does most; `jsd`: the generalised Jensen–Shannon divergence between them."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """Of `jsd`: the teacher's share in the mixture. By convention 0 is `forward_kl` and 1 is `reverse_kl`."""
    temperature: float = Field(default=1.0, gt=0)
    """Both models' logits are divided by it in the divergence. The loss is not multiplied by its square; put that into
    `divergence_coefficient`."""
    divergence_coefficient: float = Field(default=1.0, ge=0)
    """Weight of the divergence."""
    ce_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy on the conversations' own tokens, at temperature 1."""
    batch_size: int = Field(default=128, gt=0)
    """Examples in an optimiser step."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the dataset."""
    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many optimiser steps, whatever `epochs` says."""
    loss_reduction: Literal["token_mean", "sum", "sequence_mean"] = "token_mean"
    """How token losses become one: the mean over the trained tokens of the whole optimiser step; their sum; or the mean over
    sequences of each sequence's mean."""
    trained_turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns are trained."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> DistillConfig:
        if self.divergence_coefficient == 0 and self.ce_coefficient == 0:
            raise ValueError("divergence_coefficient and ce_coefficient are both 0, so there is nothing to learn")
        if self.beta != 0.5 and self.divergence != "jsd":
            raise ValueError(f"beta belongs to divergence 'jsd', and divergence is {self.divergence!r}")
        return self
