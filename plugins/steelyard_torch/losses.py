"""Losses as pure tensor functions.

Every normaliser is an argument, counted over the whole optimiser step. So the losses and metrics of a step's micro-batches add up to the
step's own: accumulation, whatever its cut, changes nothing. (A mean per micro-batch weighs tokens by how short their micro-batch is;
Tülu 3, arXiv 2411.15124, section 4.3.2.)

Notation: N trained tokens in the micro-batch, R its rows; ``rows`` (N,) is the row of each token. Log-probabilities are natural.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from steelyard.errors import UsageError
from steelyard_torch.batching import StepTotals
from steelyard_torch.head import sum_by_row

__all__ = ["Loss", "Reduction", "sft_loss"]

Reduction = Literal["token_mean", "sum", "sequence_mean"]


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """A micro-batch's share of the step's loss and of each metric's step mean; both add up over the micro-batches."""

    value: torch.Tensor
    """Scalar, with gradient."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """Scalars, without gradient."""


def sft_loss(
    logprobs: torch.Tensor, rows: torch.Tensor, n_rows: int, *, reduction: Reduction = "token_mean", totals: StepTotals
) -> torch.Tensor:
    """Cross-entropy of the trained tokens, −log π(y_t), in nats.

    ``token_mean``
        (1/T) Σ over all tokens, T the trained tokens of the step.
    ``sum``
        Σ over all tokens, undivided (Tülu 3, section 4.3.2). Its gradient grows with the batch; AdamW all but cancels the scale, gradient
        clipping does not.
    ``sequence_mean``
        (1/S) Σ_i (1/|y_i|) Σ_t, S the sequences of the step.

    Args:
        logprobs: (N,).
        rows, n_rows: the row of each token, and how many rows there are.
        totals: of the whole step.
    """
    if reduction == "sum":
        return -logprobs.sum()
    if reduction == "token_mean":
        return -logprobs.sum() / max(totals.tokens, 1)
    if reduction == "sequence_mean":
        return -_row_means(logprobs, rows, n_rows).sum() / max(totals.sequences, 1)
    raise UsageError(f"unknown loss reduction {reduction!r} (known: token_mean, sum, sequence_mean)")


def _row_means(values: torch.Tensor, rows: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Means (n_rows,) of each row's values; rows are whole in a micro-batch, so these are the sequences' own. 0 for a row without any."""
    counts = torch.bincount(rows, minlength=n_rows).clamp(min=1)
    return sum_by_row(values, rows, n_rows) / counts
