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

from steelyard.errors import TrainingError, UsageError
from steelyard_torch.batching import StepTotals
from steelyard_torch.head import sum_by_row

__all__ = ["Loss", "PolicyReduction", "Reduction", "group_advantages", "grpo_loss", "sft_loss"]

Reduction = Literal["token_mean", "sum", "sequence_mean"]
PolicyReduction = Literal["sequence_mean", "token_mean", "constant"]


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


def grpo_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    rows: torch.Tensor,
    *,
    totals: StepTotals,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    reduction: PolicyReduction = "sequence_mean",
    constant_length: int | None = None,
    reference_logprobs: torch.Tensor | None = None,
    kl_coefficient: float = 0.0,
) -> Loss:
    """The clipped policy loss of group-relative policy optimisation.

    Per token, with r = π(y_t) / π_old(y_t) and advantage A of its row: −min(r A, clip(r, 1 − clip_low, 1 + clip_high) A) + κ·k3, where
    k3 = e^d − d − 1 and d = log π_ref − log π. Sources: DeepSeekMath, arXiv 2402.03300, equation 3; two-sided clip of DAPO, arXiv
    2503.14476, section 3.1; k3 of Schulman, "Approximating KL divergence" (2020).

    ``sequence_mean``
        (1/S) Σ_i (1/|y_i|) Σ_t, S the sequences of the step (GRPO).
    ``token_mean``
        (1/T) Σ_i Σ_t, T the trained tokens of the step (DAPO).
    ``constant``
        (1/S) Σ_i (1/L) Σ_t with a fixed L, such as the longest completion allowed (Dr. GRPO, arXiv 2503.20783).

    Args:
        logprobs: (N,) of the policy, with gradient.
        old_logprobs: (N,) of the policy that sampled, at the same temperature.
        advantages: (R,).
        rows: (N,).
        totals: of the whole step. Rows without a trained token count in neither number.
        clip_low, clip_high: widths of the clip.
        constant_length: L.
        reference_logprobs: (N,), needed when ``kl_coefficient`` is not 0; when given, the ``kl`` metric is reported in any case.
        kl_coefficient: κ.

    Returns:
        Metrics, token means over the step: ``clip_fraction`` (the clip is active), ``approx_kl`` (k3 of the sampling policy),
        ``ratio_mean``, and ``kl`` (k3 of the reference).

    Raises:
        UsageError: ``constant`` without a length, or a KL term without a reference.
    """
    if kl_coefficient and reference_logprobs is None:
        raise UsageError("a kl_coefficient other than 0 needs reference log-probabilities")
    log_ratio = logprobs - old_logprobs.detach()
    ratio = log_ratio.exp()
    advantage = advantages.to(logprobs.dtype)[rows]
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    per_token = -torch.minimum(ratio * advantage, clipped * advantage)
    measured = {
        "clip_fraction": (clipped * advantage < ratio * advantage).to(logprobs.dtype),
        "approx_kl": _k3(-log_ratio),
        "ratio_mean": ratio,
    }
    if reference_logprobs is not None:
        kl = _k3(reference_logprobs.detach() - logprobs)
        measured["kl"] = kl
        if kl_coefficient:
            per_token = per_token + kl_coefficient * kl
    metrics = {name: values.detach().sum() / max(totals.tokens, 1) for name, values in measured.items()}
    return Loss(_reduce_policy(per_token, rows, len(advantages), reduction, totals, constant_length), metrics)


def group_advantages(rewards: torch.Tensor, *, scale_by_std: bool = True, ddof: int = 1, eps: float = 1e-6) -> torch.Tensor:
    """Advantages of one prompt's rollouts: (R − mean) / (std + eps), or R − mean without scaling (Dr. GRPO).

    Stacks differ in both constants: torch's own std has ddof 1; eps is 1e-4 in TRL, 1e-6 in verl, 1e-8 in open-instruct.

    Args:
        rewards: (G,).
        scale_by_std: divide by the group's standard deviation.
        ddof: 1 divides the variance by G − 1, 0 by G.
        eps: added to the standard deviation.

    Returns:
        (G,) float64, without gradient. Equal rewards give exactly 0: there the rounding of the mean, divided by eps, would be noise.

    Raises:
        TrainingError: a reward is not finite.
    """
    values = rewards.detach().to(torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise TrainingError(f"rewards must be finite, got {values.tolist()!r}")
    if len(values) == 0 or bool((values == values[0]).all()):
        return torch.zeros_like(values)
    centred = values - values.mean()
    return centred / (values.std(correction=ddof) + eps) if scale_by_std else centred


def _row_means(values: torch.Tensor, rows: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Means (n_rows,) of each row's values; rows are whole in a micro-batch, so these are the sequences' own. 0 for a row without any."""
    counts = torch.bincount(rows, minlength=n_rows).clamp(min=1)
    return sum_by_row(values, rows, n_rows) / counts


def _k3(difference: torch.Tensor) -> torch.Tensor:
    """e^d − d − 1: unbiased for KL(π ‖ q) under samples of π with d = log q − log π, and never negative."""
    return torch.expm1(difference) - difference


def _reduce_policy(
    per_token: torch.Tensor, rows: torch.Tensor, n_rows: int, reduction: PolicyReduction, totals: StepTotals, constant_length: int | None
) -> torch.Tensor:
    if reduction == "token_mean":
        return per_token.sum() / max(totals.tokens, 1)
    if reduction == "sequence_mean":
        return _row_means(per_token, rows, n_rows).sum() / max(totals.sequences, 1)
    if reduction == "constant":
        if not constant_length:
            raise UsageError("loss reduction 'constant' needs constant_length, such as the longest completion allowed")
        return per_token.sum() / (constant_length * max(totals.sequences, 1))
    raise UsageError(f"unknown policy loss reduction {reduction!r} (known: sequence_mean, token_mean, constant)")
