"""Configuration of the preference stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steelyard_torch.config import TrainingOptions

__all__ = ["AnswerOptions", "DpoConfig", "KtoConfig", "OrpoConfig", "PairOptions", "ReferenceOptions", "RewardModelConfig", "SimpoConfig"]


class AnswerOptions(TrainingOptions):
    """What every stage has that compares answers by their log-probabilities."""

    model_config = ConfigDict(allow_inf_nan=False)

    nll_coefficient: float = Field(default=0.0, ge=0)
    """Weight of a cross-entropy term on the chosen (desirable) answers, which keeps them likely."""
    nll_reduction: Literal["token_mean", "sequence_mean", "sum"] = "token_mean"
    """How that term becomes one number: the mean over the chosen tokens of the optimiser step; the mean over answers of each answer's
    mean; or the sum."""
    mask_format_tokens: bool = False
    """Leave the template's own tokens (a header, the end token) out of both answers' log-probabilities in the preference term, as Llama 3
    does; the cross-entropy term trains them all the same."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, gt=0)
    """Just so many optimiser steps, over as many passes as that takes, in place of `epochs`."""

    @model_validator(mode="after")
    def _nll_that_is_there(self) -> AnswerOptions:
        if self.nll_reduction != "token_mean" and not self.nll_coefficient:
            raise ValueError("nll_reduction does nothing with nll_coefficient 0; give the coefficient, or take nll_reduction out")
        return self


class PairOptions(AnswerOptions):
    """Of the stages that read pairs."""

    batch_size: int = Field(default=128, gt=0)
    """Pairs in an optimiser step."""


class ReferenceOptions(BaseModel):
    """Of the stages that compare with a reference model."""

    reference_logprobs: Literal["kept", "beside"] = "kept"
    """`kept`: the reference scores all answers once, before training, and its log-probabilities are kept for later steps and runs.
    `beside`: it stays in memory and scores each micro-batch; for adapters, whose reference is the model without them, and for data that is
    seen less than once."""


class DpoConfig(PairOptions, ReferenceOptions):
    loss: Literal["dpo", "dpo_norm", "ipo", "cdpo"] = "dpo"
    """`dpo`: on summed log-probabilities; `dpo_norm`: on their means over each answer's tokens, which wants a much larger `beta`; `ipo`:
    the squared distance of the margin from 1/(2 beta); `cdpo`: `dpo` for labels that are wrong with the probability `label_smoothing`."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the tie to the reference model (0.1 for `dpo`, `cdpo` and `ipo`, 5 for `dpo_norm`)."""
    label_smoothing: float | None = Field(default=None, gt=0, lt=0.5)
    """`cdpo`: the share of pairs whose label is taken to be wrong; null there means 0.1."""
    ipo_delta: Literal["mean", "sum"] | None = None
    """`ipo`: an answer's log-ratio is the `mean` over its tokens, so that the margin wanted does not depend on length, or the `sum`, as
    the paper writes it; null there means the mean."""
    trained_turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns count in the log-probabilities; `all` includes those of the shared prompt."""

    @model_validator(mode="after")
    def _dials_that_do_something(self) -> DpoConfig:
        for name, loss in (("label_smoothing", "cdpo"), ("ipo_delta", "ipo")):
            if getattr(self, name) is not None and self.loss != loss:
                raise ValueError(f"{name} belongs to the loss {loss!r} and does nothing in {self.loss!r}; take it out, or say loss: {loss}")
        return self


class SimpoConfig(PairOptions):
    beta: float = Field(default=2.5, gt=0)
    """Scale of the reward, the mean log-probability of an answer's tokens."""
    gamma: float = Field(default=1.375, ge=0)
    """The margin by which the chosen answer's scaled reward is to win: the paper's γ. Where a ratio γ/β is given, multiply it by `beta`."""
    trained_turns: Literal["all", "last"] = "last"
    """Which of the assistant's turns count in the log-probabilities; `all` includes those of the shared prompt."""


class OrpoConfig(PairOptions):
    odds_weight: float = Field(default=0.1, gt=0)
    """λ, the weight of the odds-ratio term beside the cross-entropy."""
    nll_coefficient: float = Field(default=1.0, gt=0)
    """Weight of the cross-entropy term on the chosen answers, which here is the main one."""
    trained_turns: Literal["all", "last"] = "last"
    """Which of the assistant's turns count in the log-probabilities; `all` includes those of the shared prompt."""


class KtoConfig(AnswerOptions, ReferenceOptions):
    beta: float = Field(default=0.1, gt=0)
    """How soon gains and losses saturate; the larger, the nearer to the reference."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """λ_D. With n_D desirable and n_U undesirable answers the paper wants λ_D n_D / (λ_U n_U) between 1 and 4/3."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """λ_U."""
    batch_size: int = Field(default=128, gt=1)
    """Answers in an optimiser step."""
    trained_turns: Literal["all", "last"] = "last"
    """Which of the assistant's turns count in the log-probabilities."""


class RewardModelConfig(TrainingOptions):
    model_config = ConfigDict(allow_inf_nan=False)

    on_too_long: Literal["drop", "refuse"] = "drop"
    """What becomes of a pair or list with an answer over `max_length`. Cutting is not offered: the score is read at the end."""
    margin: Annotated[float, Field(ge=0)] | Literal["column"] = 0.0
    """By how much the better score is to win: a number, or `column` for each pair's own number in the column `margin`."""
    ranked_weight: Literal["list", "pair"] = "list"
    """`list`: the pairs of a ranked list weigh as much together as one pair; `pair`: each weighs as one."""
    centering: float = Field(default=0.0, ge=0)
    """Weight of (better + worse)², which keeps the scores around 0."""
    heldout: float = Field(default=0.05, ge=0, le=0.5)
    """The share of the prompts whose lists are not trained on: accuracy and calibration are measured on them."""
    batch_size: int = Field(default=256, gt=0)
    """Pairs or ranked lists in an optimiser step."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, gt=0)
    """Just so many optimiser steps, over as many passes as that takes, in place of `epochs`."""
