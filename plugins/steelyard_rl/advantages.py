"""Advantages: from rewards to what each answer, or each of its tokens, is worth. Float64 throughout, without gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from steelyard.errors import TrainingError
from steelyard_rl.policy_options import PolicyOptions

__all__ = ["baseline", "discounted_advantages", "explained_variance", "group_advantages", "rollout_advantages", "whiten"]

_WHITEN_EPS = 1e-8
_LARGEST_REWARD = 1e37
"""Beyond it an advantage, or a deviation on the way to it, overflows, and would be infinite or silently 0."""


def baseline(
    rewards: torch.Tensor, kind: Literal["group_mean", "leave_one_out", "log_partition"], *, tau: float | None = None
) -> torch.Tensor:
    """What is taken off each of a group's rewards.

    ``group_mean``
        the mean (GRPO, arXiv 2402.03300; Dr. GRPO, arXiv 2503.20783).
    ``leave_one_out``
        the mean of the others, which does not depend on the answer itself (RLOO, arXiv 2402.14740, equation 7).
    ``log_partition``
        τ log((1/G) Σ e^(R/τ)), the estimate of τ log Z (Kimi k1.5, arXiv 2501.12599, section 2.3.2).

    Args:
        rewards: (G,).

    Returns:
        (G,).
    """
    values, size = rewards.to(torch.float64), len(rewards)
    if kind == "leave_one_out":
        return (values.sum() - values) / max(size - 1, 1) if size > 1 else torch.zeros_like(values)
    if kind == "log_partition":
        assert tau is not None
        return (tau * (torch.logsumexp(values / tau, 0) - math.log(size))).expand(size)
    return values.mean().expand(size)


def group_advantages(
    rewards: torch.Tensor,
    *,
    kind: Literal["group_mean", "leave_one_out", "log_partition"] = "group_mean",
    scale_by_std: bool = True,
    ddof: int = 1,
    eps: float = 1e-6,
    tau: float | None = None,
) -> torch.Tensor:
    """Advantages of one prompt's rollouts: (R − baseline) / (std + eps), or R − baseline without scaling.

    Stacks differ in both constants: torch's own std has ddof 1; eps is 1e-4 in TRL, 1e-6 in verl, 1e-8 in open-instruct.

    Args:
        rewards: (G,).
        kind, tau: of the :func:`baseline`.
        scale_by_std: divide by the group's standard deviation.
        ddof: 1 divides the variance by G − 1, 0 by G.
        eps: added to the standard deviation.

    Returns:
        (G,) float64. Equal rewards give exactly 0: there the rounding of the mean, divided by eps, would be noise.

    Raises:
        TrainingError: a reward is not finite, or too large.
    """
    values = rewards.detach().to(torch.float64)
    _check_rewards(values.tolist())
    if len(values) == 0 or bool((values == values[0]).all()):
        return torch.zeros_like(values)
    centred = values - baseline(values, kind, tau=tau)
    return centred / (values.std(correction=ddof) + eps) if scale_by_std else centred


def discounted_advantages(rewards: torch.Tensor, values: torch.Tensor, *, gamma: float, lam: float) -> torch.Tensor:
    """Generalised advantage estimates of an answer's T tokens: A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t and V = 0 after
    the last token (Schulman et al., arXiv 1506.02438, equation 16). With V = 0 and λ = 1 they are the discounted rewards to go.

    Args:
        rewards, values: (T,).

    Returns:
        (T,) float64; with the values added they are what the value model is trained on.
    """
    out = torch.empty(len(rewards), dtype=torch.float64)
    reward, value = rewards.to(torch.float64).tolist(), [*values.to(torch.float64).tolist(), 0.0]
    ahead = 0.0
    for t in range(len(reward) - 1, -1, -1):
        ahead = reward[t] + gamma * value[t + 1] - value[t] + gamma * lam * ahead
        out[t] = ahead
    return out


def whiten(values: torch.Tensor) -> torch.Tensor:
    """(x − mean) / √(var + 1e-8) with the unbiased variance; all 0 where there is nothing to tell apart."""
    if len(values) < 2 or bool((values == values[0]).all()):
        return torch.zeros_like(values)
    return (values - values.mean()) / (values.var() + _WHITEN_EPS).sqrt()


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    """1 − Var(R − V) / Var(R): 1 for a value model that foresees every return, 0 for one that knows their mean, negative below that; 0
    where the returns do not vary."""
    spread = returns.var(correction=0)
    return 1 - ((returns - values).var(correction=0) / spread).item() if spread > 0 else 0.0


def rollout_advantages(
    rewards: Sequence[Sequence[float]],
    tokens: Sequence[int],
    dials: PolicyOptions,
    *,
    penalties: Sequence[torch.Tensor] | None = None,
    values: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """The advantage of every trained token of a rollout step.

    Answers that are credited as a whole get the group's advantage on all their tokens; where tokens have advantages of their own, the
    reward falls to the last trained token (Tülu 3, arXiv 2411.15124, section 6) and the rest is :func:`discounted_advantages`.

    Args:
        rewards: of each group's answers.
        tokens: the trained tokens of each answer, group after group.
        dials: which advantage, and its scale. Whitening is another step: the value model's targets are made before it.
        penalties: for each answer (T,) what is taken off the rewards of its tokens: the KL coefficient times the estimates, in the reward.
        values: for each answer (T,) the value model's, of the state before each token.

    Returns:
        For each answer (T,) float64.

    Raises:
        TrainingError: a reward is not finite, or too large.
    """
    if dials.per_token:
        return _by_token(rewards, tokens, dials, penalties, values)
    if penalties is not None:
        places = iter(penalties)
        rewards = [[reward - float(next(places).sum()) for reward in group] for group in rewards]
    return _by_answer(rewards, tokens, dials)


def _check_rewards(rewards: Sequence[float]) -> None:
    # A NaN fails every comparison.
    if not all(abs(reward) <= _LARGEST_REWARD for reward in rewards):
        raise TrainingError(
            f"rewards must be finite and within ±{_LARGEST_REWARD:g}, got {list(rewards)!r}; look at `reward_scale` and the shapers"
        )


def _by_answer(rewards: Sequence[Sequence[float]], tokens: Sequence[int], dials: PolicyOptions) -> list[torch.Tensor]:
    assert dials.advantage not in {"none", "gae"}
    own_scale = dials.scale_by_std and dials.std_scope == "group"
    groups = [torch.tensor(group, dtype=torch.float64) for group in rewards]
    made = [
        group_advantages(
            group,
            kind=dials.advantage,  # type: ignore[arg-type]
            scale_by_std=own_scale,
            ddof=dials.std_ddof,
            eps=dials.std_eps,
            tau=dials.tau,
        )
        for group in groups
    ]
    advantages = torch.cat(made) if made else torch.empty(0, dtype=torch.float64)
    if dials.scale_by_std and not own_scale and bool((advantages != 0).any()):
        advantages = advantages / (torch.cat(groups).std(correction=dials.std_ddof) + dials.std_eps)
    return [advantage.expand(count) for advantage, count in zip(advantages, tokens, strict=True)]


def _by_token(
    rewards: Sequence[Sequence[float]],
    tokens: Sequence[int],
    dials: PolicyOptions,
    penalties: Sequence[torch.Tensor] | None,
    values: Sequence[torch.Tensor] | None,
) -> list[torch.Tensor]:
    made = []
    for place, (reward, count) in enumerate(zip((reward for group in rewards for reward in group), tokens, strict=True)):
        _check_rewards([reward])
        earned = torch.zeros(count, dtype=torch.float64)
        if penalties is not None:
            earned -= penalties[place].to(torch.float64)
        earned[-1:] += reward
        known = torch.zeros(count, dtype=torch.float64) if values is None else values[place]
        lam = dials.gae_lambda if dials.advantage == "gae" else 1.0
        made.append(discounted_advantages(earned, known, gamma=dials.gamma, lam=lam))
    return made
