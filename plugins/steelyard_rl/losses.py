"""Policy and value losses as pure tensor functions.

Notation: N trained tokens in the micro-batch, R its rows; ``rows`` (N,) is the row of each token. Log-probabilities are natural logarithms
at the temperature of sampling. Every normaliser is counted over the whole optimiser step and given as a weight, so that values, metrics
and gradients of micro-batches and of ranks add up to the step's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from steelyard.errors import UsageError
from steelyard_rl.policy_options import PolicyOptions
from steelyard_torch.head import sum_by_row
from steelyard_torch.losses import Loss

__all__ = [
    "PolicyTokens",
    "correction_weights",
    "divergence",
    "importance_log_ratio",
    "policy_loss",
    "row_weights",
    "value_loss",
]

Reduction = Literal["sequence_mean", "sequence_sum", "token_mean", "constant", "prompt_mean"]

_LARGEST_LOG_RATIO = 40.0
"""e^40 times anything finite is finite in float32, so that a ratio of a token that became certain or impossible makes no NaN."""


@dataclass(frozen=True, slots=True, eq=False)
class PolicyTokens:
    """What the loss knows of a micro-batch's N trained tokens."""

    logprobs: torch.Tensor
    """(N,) of the policy, with gradient."""
    old: torch.Tensor
    """(N,) of the policy that the ratio is against."""
    advantages: torch.Tensor
    """(N,)."""
    rows: torch.Tensor
    """(N,) int64."""
    n_rows: int
    sampled: torch.Tensor | None = None
    """(N,) of the engine that sampled."""
    reference: torch.Tensor | None = None
    """(N,) of the reference."""
    entropy: torch.Tensor | None = None
    """(N,) of the policy's distributions in nats, with gradient where it has a weight in the loss."""


def row_weights(
    targets: Sequence[int], *, reduction: Reduction, prompts: Sequence[int] | None = None, constant_length: int | None = None
) -> torch.Tensor:
    """What a token of each row weighs in the loss of an optimiser step; the loss is the weighted sum over all tokens.

    ``sequence_mean``
        1/(S n_i): mean over sequences of token means (GRPO, arXiv 2402.03300, equation 3). S counts the rows with a trained token.
    ``sequence_sum``
        1/S: mean over sequences of token sums.
    ``token_mean``
        1/T over all T tokens of the step (DAPO, arXiv 2503.14476, section 3.3).
    ``constant``
        1/(S L): token sums over a constant length (Dr. GRPO, arXiv 2503.20783, section 3.2).
    ``prompt_mean``
        1/(P T_p): mean over the P prompts of the mean over the T_p tokens of their answers (ScaleRL, arXiv 2510.13786).

    Args:
        targets: n_i, the trained tokens of every row of the step.
        prompts: for each row the number of its prompt.
        constant_length: L.

    Returns:
        (rows of the step,) float64.
    """
    counts = torch.tensor(targets, dtype=torch.float64)
    sequences = max(int((counts > 0).sum()), 1)
    if reduction == "sequence_mean":
        return 1 / (sequences * counts.clamp(min=1))
    if reduction == "sequence_sum":
        return torch.full_like(counts, 1 / sequences)
    if reduction == "token_mean":
        return torch.full_like(counts, 1 / max(float(counts.sum()), 1.0))
    if reduction == "constant":
        if not constant_length:
            raise UsageError("loss reduction 'constant' needs constant_length, such as the longest completion allowed")
        return torch.full_like(counts, 1 / (constant_length * sequences))
    if reduction == "prompt_mean":
        if prompts is None:
            raise UsageError("loss reduction 'prompt_mean' needs the prompt of every row")
        _, of_row = torch.unique(torch.tensor(prompts), return_inverse=True)
        tokens = torch.zeros(len(prompts), dtype=torch.float64).index_add(0, of_row, counts)
        return 1 / (max(int((tokens > 0).sum()), 1) * tokens.clamp(min=1)[of_row])
    raise UsageError(f"unknown loss reduction {reduction!r} (known: sequence_mean, sequence_sum, token_mean, constant, prompt_mean)")


def policy_loss(
    tokens: PolicyTokens, dials: PolicyOptions, *, weights: torch.Tensor, step_tokens: int, entropy_coefficient: float | None = None
) -> Loss:
    """The loss of a micro-batch: Σ_t w (c·L_t + κ·KL_t) − η·mean entropy, with L of the objective:

    ``clip``
        −min(r A, clip(r, 1 − low, 1 + high) A), and for A < 0 no more than −c A (dual clip, Ye et al., arXiv 1912.09729). Sources: PPO,
        arXiv 1707.06347, equation 7; GRPO, arXiv 2402.03300, equation 3; two widths, DAPO, arXiv 2503.14476, section 3.1; r of whole
        sequences, GSPO, arXiv 2507.18071, equations 5 and 7.
    ``cispo``
        −sg[clip(r)] A log π (MiniMax-M1, arXiv 2506.13585, equation 4), the upper bound 1 + high or a cap on r itself.
    ``mirror_descent``
        For a whole answer with l = Σ_t log π/π_old: −A l + τ l²/2, which is (A − τ l)²/(2τ) less its value at l = 0. Its gradient is that
        of Kimi k1.5, arXiv 2501.12599, section 2.3.2, equation 3.

    c is the correction for the engine's probabilities and 0 for an answer that is left out as off-policy; KL is :func:`divergence`.

    Args:
        weights: (R,) of each row's tokens, from :func:`row_weights`; under ``mirror_descent`` of the row itself.
        step_tokens: trained tokens of the whole optimiser step, by which the metrics and the entropy are divided.
        entropy_coefficient: η now, where it is steered to a target.

    Returns:
        Metrics, token means over the step: ``clip_fraction`` (a bound takes effect), ``ratio_mean``, ``approx_kl`` (k3 of the old policy),
        ``kl`` (k3 of the reference), ``policy_entropy``, ``correction_mean``, ``correction_limited`` (the share that a bound held or
        dropped) and ``off_policy_dropped``.
    """
    log_ratio = (tokens.logprobs - tokens.old.detach()).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    per_token, measured = _objective(tokens, dials, log_ratio)
    with torch.no_grad():
        measured["approx_kl"] = torch.expm1(-log_ratio) + log_ratio
        keep, dropped = _trust(tokens, dials)
        measured.update(dropped)
    if keep is not None:
        per_token = per_token * keep
    if tokens.reference is not None:
        measured["kl"] = divergence(tokens.logprobs.detach(), tokens.reference, estimator="k3", clamp=dials.kl_clamp)
        if dials.kl_coefficient and dials.kl_in == "loss":
            kl = divergence(tokens.logprobs, tokens.reference, estimator=dials.kl_estimator, clamp=dials.kl_clamp)
            if dials.kl_importance:
                kl = kl * importance_log_ratio(log_ratio, tokens.rows, tokens.n_rows, dials.importance).exp()
            per_token = per_token + dials.kl_coefficient * kl
    value = (weights.to(per_token)[tokens.rows] * per_token).sum()
    if tokens.entropy is not None:
        measured["policy_entropy"] = tokens.entropy
        coefficient = dials.entropy_coefficient if entropy_coefficient is None else entropy_coefficient
        if coefficient:
            value = value - coefficient * tokens.entropy.sum() / max(step_tokens, 1)
    return Loss(value, {name: values.detach().sum() / max(step_tokens, 1) for name, values in measured.items()})


def _objective(tokens: PolicyTokens, dials: PolicyOptions, log_ratio: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """L (N,) and what was measured of the ratio."""
    advantages = tokens.advantages.to(log_ratio.dtype)
    if dials.objective == "mirror_descent":
        assert dials.tau is not None
        whole = sum_by_row(tokens.logprobs - tokens.old.detach(), tokens.rows, tokens.n_rows)
        # Spread over the answer's tokens, so that it sums to the answer's loss and can be weighted like the others.
        lengths = _lengths(log_ratio, tokens.rows, tokens.n_rows)
        answer = dials.tau / 2 * whole.square()
        per_token = (answer / lengths)[tokens.rows] - advantages * (tokens.logprobs - tokens.old.detach())
        return per_token, {"ratio_mean": log_ratio.exp(), "clip_fraction": torch.zeros_like(log_ratio)}
    ratio = importance_log_ratio(log_ratio, tokens.rows, tokens.n_rows, dials.importance).exp()
    low = None if dials.clip_low is None else 1 - dials.clip_low
    if dials.objective == "cispo":
        cap = dials.ratio_cap if dials.clip_high is None else 1 + dials.clip_high
        bounded = ratio.detach().clamp(low, cap)
        return -bounded * advantages * tokens.logprobs, {"ratio_mean": ratio, "clip_fraction": (bounded != ratio).to(ratio.dtype)}
    high = None if dials.clip_high is None else 1 + dials.clip_high
    earned = ratio * advantages
    bounded = (ratio.clamp(low, high) if low is not None or high is not None else ratio) * advantages
    per_token = torch.minimum(earned, bounded)
    if dials.dual_clip is not None:
        per_token = torch.where(advantages < 0, torch.maximum(per_token, dials.dual_clip * advantages), per_token)
    return -per_token, {"ratio_mean": ratio, "clip_fraction": (per_token != earned).to(ratio.dtype)}


def importance_log_ratio(
    log_ratio: torch.Tensor, rows: torch.Tensor, n_rows: int, level: Literal["token", "sequence", "sequence_token", "trajectory"]
) -> torch.Tensor:
    """The log-ratio (N,) that stands for each token.

    ``token``
        its own.
    ``sequence``
        the mean over its answer: log s_i of GSPO, arXiv 2507.18071, equation 6.
    ``sequence_token``
        sg[log s_i] + log π − sg[log π], equation 14 there: the sequence's value with the token's gradient.
    ``trajectory``
        the sum over its answer: the ratio of the whole answer's probabilities (RLOO, arXiv 2402.14740), no more than e^±40.
    """
    if level == "token":
        return log_ratio
    sums = sum_by_row(log_ratio, rows, n_rows)
    if level == "trajectory":
        return sums.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)[rows]
    means = (sums / _lengths(log_ratio, rows, n_rows))[rows]
    return means if level == "sequence" else means.detach() + log_ratio - log_ratio.detach()


def _lengths(values: torch.Tensor, rows: torch.Tensor, n_rows: int) -> torch.Tensor:
    """(n_rows,) how many tokens each row has, at least 1; counted without waiting for the device."""
    return sum_by_row(torch.ones_like(values), rows, n_rows).clamp(min=1)


def divergence(
    logprobs: torch.Tensor, reference: torch.Tensor, *, estimator: Literal["k1", "k2", "k3"], clamp: float = 40.0
) -> torch.Tensor:
    """Estimates (N,) of KL(π ‖ π_ref) from samples of π: with d = log π − log π_ref, no further from 0 than ``clamp``, d (k1), d²/2 (k2) or
    e^−d − 1 + d (k3). k1 and k3 are unbiased, k3 is never negative; the gradient of k2 is that of the divergence (Schulman,
    "Approximating KL divergence", 2020)."""
    d = (logprobs - reference.detach()).clamp(-clamp, clamp)
    if estimator == "k1":
        return d
    return d.square() / 2 if estimator == "k2" else torch.expm1(-d) + d


def correction_weights(
    trainer: torch.Tensor,
    engine: torch.Tensor,
    rows: torch.Tensor,
    n_rows: int,
    *,
    mode: Literal["truncate", "mask"],
    level: Literal["token", "sequence", "geometric"],
    bounds: tuple[float, float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Importance weights for samples of an engine whose probabilities are not quite the trainer's: w = π_trainer/π_engine of the token, of
    the whole answer, or its geometric mean; ``truncate`` holds it within ``bounds``, ``mask`` makes it 0 outside of them.

    Yao et al., "Your efficient RL framework secretly brings you off-policy RL training" (2025), who truncate at 2; the masked form of
    IcePop.

    Returns:
        The weights (N,) and whether a bound took effect (N,); no gradient.
    """
    log_ratio = (trainer.detach() - engine.detach()).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    levels: dict[str, Literal["token", "trajectory", "sequence"]] = {"token": "token", "sequence": "trajectory", "geometric": "sequence"}
    ratio = importance_log_ratio(log_ratio, rows, n_rows, levels[level]).exp()
    outside = (ratio < bounds[0]) | (ratio > bounds[1])
    held = ratio.clamp(*bounds) if mode == "truncate" else torch.where(outside, torch.zeros_like(ratio), ratio)
    return held, outside


def _trust(tokens: PolicyTokens, dials: PolicyOptions) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
    """What each token's loss is multiplied by (N,), or None for 1, and what was measured of it."""
    keep: torch.Tensor | None = None
    measured: dict[str, torch.Tensor] = {}
    if dials.correction != "none":
        if tokens.sampled is None:
            raise UsageError("a correction needs the log-probabilities of the engine that sampled")
        keep, outside = correction_weights(
            tokens.old,
            tokens.sampled,
            tokens.rows,
            tokens.n_rows,
            mode=dials.correction,
            level=dials.correction_level,
            bounds=dials.bounds,
        )
        measured = {"correction_mean": keep, "correction_limited": outside.to(keep.dtype)}
    if dials.off_policy_mask is not None:
        before = tokens.old if tokens.sampled is None else tokens.sampled
        drift = importance_log_ratio(before.detach() - tokens.logprobs.detach(), tokens.rows, tokens.n_rows, "sequence")
        gone = (tokens.advantages < 0) & (drift > dials.off_policy_mask)
        kept = (~gone).to(tokens.logprobs.dtype)
        measured["off_policy_dropped"] = 1 - kept
        keep = kept if keep is None else keep * kept
    return keep, measured


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, *, clip: float | None, coefficient: float, step_tokens: int
) -> Loss:
    """c/(2T) Σ_t max((V − R)², (clip(V, V_old ± clip) − R)²): the clipped squared error of PPO's reference implementation, as in Tülu 3
    (arXiv 2411.15124, section 6.2: clip 0.2, c 0.1).

    Args:
        values: (N,) with gradient.
        old_values: (N,) before the rollout step's training.
        returns: (N,).
        clip: None does not clip.
        coefficient: c.
        step_tokens: T, the trained tokens of the whole optimiser step.

    Returns:
        Metrics, token means over the step: ``value_error`` (the squared error) and ``value_clip_fraction``.
    """
    error = (values - returns).square()
    worst = error
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        worst = torch.maximum(error, (near - returns).square())
    total = max(step_tokens, 1)
    clipped = (worst > error).to(values.dtype)
    metrics = {"value_error": error.detach().sum() / total, "value_clip_fraction": clipped.sum() / total}
    return Loss(coefficient * 0.5 * worst.sum() / total, metrics)
