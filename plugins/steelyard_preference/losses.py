"""Preference losses as pure functions of answers' log-probabilities or scores.

Normalisers are arguments, counted over the whole optimiser step, so that values, metrics and gradients of micro-batches and of ranks add
up to the step's own. B pairs (or answers) in the micro-batch; log-probabilities are natural; Δ = log π(y|x) − log π_ref(y|x).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from steelyard.errors import UsageError
from steelyard_torch.batching import StepTotals
from steelyard_torch.losses import Loss, Reduction

__all__ = ["DpoVariant", "IpoDelta", "bradley_terry_loss", "chosen_nll", "dpo_loss", "kto_baseline", "kto_loss", "orpo_loss", "simpo_loss"]

DpoVariant = Literal["dpo", "dpo_norm", "ipo", "cdpo"]
IpoDelta = Literal["mean", "sum"]


def dpo_loss(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    *,
    chosen_tokens: torch.Tensor,
    rejected_tokens: torch.Tensor,
    loss: DpoVariant = "dpo",
    beta: float,
    pairs: int,
    label_smoothing: float = 0.1,
    ipo_delta: IpoDelta = "mean",
) -> Loss:
    """Direct preference optimisation and its kin, over the mean of a step's P pairs; m = β (Δ_c − Δ_r).

    ``dpo``
        −log σ(m) (Rafailov et al., arXiv 2305.18290, equation 7); β is usually 0.1.
    ``dpo_norm``
        The same with each Δ divided by its own answer's tokens (Tülu 3, arXiv 2411.15124, section 5.1.2); hence a large β, 5 there.
    ``ipo``
        (Δ_c − Δ_r − 1/(2β))² (Azar et al., arXiv 2310.12036, equation 17). The paper writes Δ of the whole answer (``sum``); divided by
        the answer's tokens (``mean``) the target does not depend on how long answers are.
    ``cdpo``
        −(1 − ε) log σ(m) − ε log σ(−m), where labels are wrong with probability ε (Mitchell, "A note on DPO with noisy preferences and
        relationship to IPO", 2023).

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: (B,) log-probabilities summed over the scored tokens.
        chosen_tokens, rejected_tokens: (B,) how many those are.
        beta: strength of the pull towards the reference.
        pairs: P, the pairs of the whole step.
        label_smoothing: ε, of ``cdpo`` alone.
        ipo_delta: of ``ipo`` alone.

    Returns:
        Metrics ``accuracy`` (share of pairs whose implicit reward β·Δ is larger for the chosen; a tie counts half), ``margin``,
        ``chosen_reward`` and ``rejected_reward``.

    Raises:
        UsageError: an unknown loss.
    """
    chosen, rejected = policy_chosen - reference_chosen.detach(), policy_rejected - reference_rejected.detach()
    if loss == "dpo_norm" or (loss == "ipo" and ipo_delta == "mean"):
        chosen, rejected = chosen / chosen_tokens, rejected / rejected_tokens
    margin = beta * (chosen - rejected)
    if loss in ("dpo", "dpo_norm"):
        losses = -F.logsigmoid(margin)
    elif loss == "ipo":
        losses = (chosen - rejected - 1 / (2 * beta)).square()
    elif loss == "cdpo":
        losses = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    else:
        raise UsageError(f"unknown preference loss {loss!r} (known: dpo, dpo_norm, ipo, cdpo)")
    return Loss(losses.sum() / pairs, _pair_metrics(beta * chosen, beta * rejected, pairs))


def simpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    *,
    chosen_tokens: torch.Tensor,
    rejected_tokens: torch.Tensor,
    beta: float,
    gamma: float,
    pairs: int,
) -> Loss:
    """SimPO: −log σ(β/|y_c| log π(y_c) − β/|y_r| log π(y_r) − γ), without a reference (Meng et al., arXiv 2405.14734, equation 6).

    γ stands outside the product with β, as in the paper; where others name the ratio γ/β, multiply it by β.

    Args:
        chosen, rejected: (B,) log-probabilities summed over the scored tokens.
        chosen_tokens, rejected_tokens: (B,) how many those are.
        gamma: γ, the margin by which the chosen answer's reward is to win.
        pairs: of the whole step.

    Returns:
        Metrics as of :func:`dpo_loss`, with the reward β/|y| log π(y); γ is in none of them.
    """
    better, worse = beta * chosen / chosen_tokens, beta * rejected / rejected_tokens
    return Loss(-F.logsigmoid(better - worse - gamma).sum() / pairs, _pair_metrics(better, worse, pairs))


def orpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    *,
    chosen_tokens: torch.Tensor,
    rejected_tokens: torch.Tensor,
    odds_weight: float,
    pairs: int,
) -> Loss:
    """ORPO's odds-ratio term: −λ log σ(log odds(y_c) − log odds(y_r)) with odds = P/(1 − P) and P = exp(log π(y)/|y|), the geometric mean
    of the answer's token probabilities (Hong et al., arXiv 2403.07691, section 4). The whole loss adds :func:`chosen_nll`.

    A P that rounds to 1 is held just below it, where the odds are finite.

    Args:
        chosen, rejected: (B,) log-probabilities summed over the scored tokens.
        chosen_tokens, rejected_tokens: (B,) how many those are.
        odds_weight: λ.
        pairs: of the whole step.

    Returns:
        Metrics ``accuracy`` (a tie counts half), ``margin`` (the log odds ratio), ``chosen_reward`` and ``rejected_reward`` (log odds).
    """
    better, worse = _log_odds(chosen / chosen_tokens), _log_odds(rejected / rejected_tokens)
    return Loss(-odds_weight * F.logsigmoid(better - worse).sum() / pairs, _pair_metrics(better, worse, pairs))


def kto_loss(
    policy: torch.Tensor,
    reference: torch.Tensor,
    desirable: torch.Tensor,
    *,
    baseline: float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    rows: int,
    desirable_rows: int,
) -> Loss:
    """Kahneman–Tversky optimisation: the mean over answers of λ_D (1 − σ(β (Δ − z))) where desirable and λ_U (1 − σ(β (z − Δ))) where
    undesirable (Ethayarajh et al., arXiv 2402.01306, equation 7).

    Args:
        policy, reference: (B,) log-probabilities summed over the scored tokens.
        desirable: (B,) bool.
        baseline: z, see :func:`kto_baseline`; no gradient goes through it.
        desirable_weight, undesirable_weight: λ_D and λ_U.
        rows, desirable_rows: of the whole step.

    Returns:
        Metrics ``accuracy`` (Δ on its label's side of z, a tie counts half), and ``desirable_reward`` and ``undesirable_reward``, the
        means of β·Δ over the step's answers of that label, where it has any.
    """
    delta = policy - reference.detach()
    good = desirable.to(delta.dtype)
    sign, weight = 2 * good - 1, desirable_weight * good + undesirable_weight * (1 - good)
    value = (weight * torch.sigmoid(-beta * sign * (delta - baseline))).sum() / rows
    with torch.no_grad():
        metrics = {"accuracy": _wins(sign * (delta - baseline)).sum() / rows}
        if desirable_rows:
            metrics["desirable_reward"] = beta * (good * delta).sum() / desirable_rows
        if rows > desirable_rows:
            metrics["undesirable_reward"] = beta * ((1 - good) * delta).sum() / (rows - desirable_rows)
    return Loss(value, metrics)


def kto_baseline(log_ratio_sum: float, rows: int) -> float:
    """z of :func:`kto_loss`: max(0, mean of log π(y'|x) − log π_ref(y'|x)) over prompts with answers to other prompts, a biased but cheap
    estimate of KL(π ‖ π_ref) (Ethayarajh et al., arXiv 2402.01306, section 4.1). 0 without any row."""
    return max(0.0, log_ratio_sum / rows) if rows else 0.0


def chosen_nll(logprobs: torch.Tensor, tokens: torch.Tensor, *, reduction: Reduction, totals: StepTotals) -> torch.Tensor:
    """Cross-entropy of the chosen answers, −log π(y), in nats.

    ``token_mean``
        Over all chosen tokens of the step.
    ``sequence_mean``
        Each answer's mean over its tokens, then the mean over the step's answers, as in iterative reasoning preference optimisation
        (Pang et al., arXiv 2404.19733, section 2).
    ``sum``
        Undivided.

    Args:
        logprobs: (B,) summed over each chosen answer's trained tokens.
        tokens: (B,) how many those are.
        totals: of the step's chosen answers.

    Raises:
        UsageError: an unknown reduction.
    """
    if reduction == "token_mean":
        return -logprobs.sum() / max(totals.tokens, 1)
    if reduction == "sequence_mean":
        return -(logprobs / tokens).sum() / max(totals.sequences, 1)
    if reduction == "sum":
        return -logprobs.sum()
    raise UsageError(f"unknown loss reduction {reduction!r} (known: token_mean, sequence_mean, sum)")


def bradley_terry_loss(
    better: torch.Tensor,
    worse: torch.Tensor,
    *,
    margins: torch.Tensor,
    weights: torch.Tensor,
    total_weight: float,
    centering: float = 0.0,
) -> Loss:
    """The reward model's loss: the weighted mean of −log σ(s_better − s_worse − m) (Bradley and Terry 1952; Ouyang et al., arXiv
    2203.02155, equation 1; the margin m: Touvron et al., arXiv 2307.09288, equation 2), and c (s_better + s_worse)² to keep scores near
    0 (Eisenstein et al., arXiv 2312.09244, section 2).

    Args:
        better, worse: (B,) scores.
        margins: (B,) m.
        weights: (B,) of the pairs.
        total_weight: the sum of all pairs' weights in the step.
        centering: c.

    Returns:
        Metrics, weighted as the loss: ``accuracy`` (s_better > s_worse, a tie counts half), ``margin``, ``better_score`` and
        ``worse_score``.
    """
    losses = -F.logsigmoid(better - worse - margins)
    if centering:
        losses = losses + centering * (better + worse).square()
    with torch.no_grad():
        per_pair = {"accuracy": _wins(better - worse), "margin": better - worse, "better_score": better, "worse_score": worse}
        metrics = {name: (weights * values).sum() / total_weight for name, values in per_pair.items()}
    return Loss((weights * losses).sum() / total_weight, metrics)


def _pair_metrics(chosen: torch.Tensor, rejected: torch.Tensor, pairs: int) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        margin = chosen - rejected
        per_pair = {"accuracy": _wins(margin), "margin": margin, "chosen_reward": chosen, "rejected_reward": rejected}
        return {name: values.sum() / pairs for name, values in per_pair.items()}


def _wins(margin: torch.Tensor) -> torch.Tensor:
    """1 above 0, a half at 0, 0 below."""
    return (margin > 0).to(margin.dtype) + 0.5 * (margin == 0).to(margin.dtype)


def _log_odds(logprob: torch.Tensor) -> torch.Tensor:
    """log(P / (1 − P)) of P = e^logprob."""
    logprob = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    # Each form of log(1 − P) where the other loses its digits. The unused one is kept from infinities, whose gradient would be NaN.
    small = logprob < -0.6931471805599453
    far = torch.log1p(-torch.where(small, logprob, -1.0).exp())
    near = torch.log(-torch.expm1(torch.where(small, -0.1, logprob)))
    return logprob - torch.where(small, far, near)
