"""Advantages against their formulas, written as plain loops."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch

from steelyard.errors import TrainingError
from steelyard_rl.advantages import baseline, discounted_advantages, explained_variance, group_advantages, rollout_advantages, whiten
from steelyard_rl.policy_options import PolicyOptions

REWARDS = [[1.0, 0.0, 0.0, 2.0], [0.5, 0.5, 0.5], [3.0, -1.0]]
TOKENS = [3, 1, 2, 4, 2, 2, 1, 5, 0]


def test_advantages_of_equal_rewards_are_exactly_zero() -> None:
    # The mean of eight times 0.1 is not 0.1 in binary: divided by a tiny eps, its rounding would be an advantage.
    for reward in (0.1, 1 / 3, 1e9, 0.0):
        for kind in ("group_mean", "leave_one_out", "log_partition"):
            for eps in (1e-4, 1e-8, 0.0):
                assert group_advantages(torch.full((7,), reward), kind=kind, tau=0.5, eps=eps).tolist() == [0.0] * 7  # type: ignore[arg-type]
    for kind in ("group_mean", "leave_one_out", "log_partition"):
        assert group_advantages(torch.tensor([3.0]), kind=kind, tau=1.0).tolist() == [0.0]  # type: ignore[arg-type]


def test_advantages_follow_mean_and_std_with_ddof_and_eps() -> None:
    values = REWARDS[0]
    mean = sum(values) / 4
    for ddof in (0, 1):
        std = math.sqrt(sum((value - mean) ** 2 for value in values) / (4 - ddof))
        found = group_advantages(torch.tensor(values), ddof=ddof, eps=1e-4).tolist()
        assert found == pytest.approx([(value - mean) / (std + 1e-4) for value in values], rel=1e-12)
    assert group_advantages(torch.tensor(values), scale_by_std=False).tolist() == pytest.approx([value - mean for value in values])


def test_baselines_are_those_of_their_papers() -> None:
    rewards = torch.tensor(REWARDS[0])
    others = [sum(REWARDS[0][:i] + REWARDS[0][i + 1 :]) / 3 for i in range(4)]
    assert baseline(rewards, "leave_one_out").tolist() == pytest.approx(others)
    # The leave-one-out advantage is G/(G − 1) times the distance to the mean (arXiv 2402.14740, section 3).
    centred = rewards.double() - rewards.double().mean()
    torch.testing.assert_close(rewards - baseline(rewards, "leave_one_out"), centred * 4 / 3)
    for tau in (0.1, 1.0, 10.0):
        z = tau * math.log(sum(math.exp(reward / tau) for reward in REWARDS[0]) / 4)
        assert baseline(rewards, "log_partition", tau=tau).tolist() == pytest.approx([z] * 4, rel=1e-9)
    # For large τ it becomes the plain mean, which Kimi k1.5 says works as well.
    assert baseline(rewards, "log_partition", tau=1e4)[0].item() == pytest.approx(0.75, abs=1e-3)
    assert baseline(torch.tensor([1000.0, 0.0]), "log_partition", tau=0.5)[0].item() == pytest.approx(1000 + 0.5 * math.log(0.5))


def test_rewards_that_are_not_finite_are_refused() -> None:
    for dials in (PolicyOptions(), PolicyOptions(preset="reinforce_pp")):
        with pytest.raises(TrainingError, match="rewards must be finite"):
            rollout_advantages([[1.0, math.nan]], [1, 1], dials)
    with pytest.raises(TrainingError, match="rewards must be finite"):
        group_advantages(torch.tensor([1.0, math.inf]))


@pytest.mark.parametrize("preset", ["grpo", "dr_grpo", "rloo", "reinforce_pp"])
def test_rewards_too_large_to_compare_are_refused_and_large_ones_are_not(preset: Any) -> None:
    """Squares of 1e200 overflow in float64 too: the deviation would be infinite, and every advantage silently 0."""
    dials = PolicyOptions(preset=preset)
    with pytest.raises(TrainingError, match=r"within ±1e\+37, got .*look at `reward_scale` and the shapers"):
        rollout_advantages([[1e200, -1e200]], [1, 1], dials)
    made = torch.cat(rollout_advantages([[1e36, -1e36]], [1, 1], dials)).float()
    assert bool(torch.isfinite(made).all()) and made[0] > 0 > made[1]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_generalised_advantages_are_the_discounted_sums_of_surprises(gamma: float, lam: float) -> None:
    draw = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(7, generator=draw, dtype=torch.float64), torch.randn(7, generator=draw, dtype=torch.float64)
    surprise = [rewards[t].item() + gamma * (values[t + 1].item() if t < 6 else 0.0) - values[t].item() for t in range(7)]
    expected = [sum((gamma * lam) ** i * surprise[t + i] for i in range(7 - t)) for t in range(7)]
    assert discounted_advantages(rewards, values, gamma=gamma, lam=lam).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_ends_of_lambda_are_one_step_surprise_and_return_less_value() -> None:
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.2, 0.5, 0.6])
    # By hand (arXiv 1506.02438, equations 17 and 18).
    assert discounted_advantages(rewards, values, gamma=1, lam=0).tolist() == pytest.approx([0.3, 0.1, 0.4])
    assert discounted_advantages(rewards, values, gamma=1, lam=1).tolist() == pytest.approx([0.8, 0.5, 0.4])
    assert discounted_advantages(rewards, torch.zeros(3), gamma=0.5, lam=1).tolist() == [0.25, 0.5, 1.0]
    assert discounted_advantages(rewards[:1], values[:1], gamma=1, lam=0.95).tolist() == pytest.approx([-0.2])
    assert discounted_advantages(torch.empty(0), torch.empty(0), gamma=1, lam=0.95).tolist() == []


def test_whitening_has_mean_zero_and_variance_one() -> None:
    values = torch.tensor([3.0, -1.0, 4.0, 1.0, -5.0, 9.0], dtype=torch.float64)
    spread = statistics.variance(values.tolist())
    expected = [(value - values.mean().item()) / math.sqrt(spread + 1e-8) for value in values.tolist()]
    assert whiten(values).tolist() == pytest.approx(expected, rel=1e-12)
    for same in (torch.full((5,), 0.1, dtype=torch.float64), torch.ones(1), torch.empty(0)):
        assert whiten(same).tolist() == [0.0] * len(same)


def test_explained_variance_is_one_for_the_returns_and_zero_for_their_mean() -> None:
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(returns + 5, returns) == 1.0
    assert explained_variance(torch.full((3,), 2.0), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert explained_variance(returns, torch.ones(3)) == 0.0


# A rollout step's tokens


def answers(keys: dict[str, Any], **given: Any) -> list[list[float]]:
    return [own.tolist() for own in rollout_advantages(REWARDS, TOKENS, PolicyOptions(**keys), **given)]


def test_an_answer_has_its_advantage_on_every_token() -> None:
    found = answers({"preset": "rloo"})
    flat = [r - sum(group[:i] + group[i + 1 :]) / (len(group) - 1) for group in REWARDS for i, r in enumerate(group)]
    assert [len(own) for own in found] == TOKENS
    for own, expected in zip(found, flat, strict=True):
        assert own == pytest.approx([expected] * len(own))


def test_the_deviation_may_be_that_of_the_whole_step() -> None:
    """TRL's `scale_rewards="batch"`: centred by the group, divided by the standard deviation of all rewards."""
    utils = pytest.importorskip("trl.trainer.utils")
    everything = torch.tensor([reward for group in REWARDS for reward in group], dtype=torch.float64)
    found = answers({"std_scope": "step", "std_eps": 1e-4})
    means = [sum(group) / len(group) for group in REWARDS for _ in group]
    expected = (everything - torch.tensor(means, dtype=torch.float64)) / (utils.nanstd(everything) + 1e-4)
    for own, value in zip(found, expected.tolist(), strict=True):
        assert own == pytest.approx([value] * len(own), abs=1e-12)


def test_a_divergence_in_the_reward_is_taken_off_before_answers_are_compared() -> None:
    penalties = [torch.full((count,), 0.1 * place) for place, count in enumerate(TOKENS)]
    found = answers({"preset": "dr_grpo"}, penalties=penalties)
    place = 0
    for group in REWARDS:
        rewards = [reward - 0.1 * (place + i) * TOKENS[place + i] for i, reward in enumerate(group)]
        for i, reward in enumerate(rewards):
            assert found[place + i] == pytest.approx([reward - sum(rewards) / len(rewards)] * TOKENS[place + i], abs=1e-6)
        place += len(group)


def test_without_a_baseline_a_token_is_credited_with_what_comes_after_it() -> None:
    """REINFORCE++: A_t = R − β Σ_{i ≥ t} KL_i, before it is whitened."""
    penalties = [0.1 * torch.arange(1.0, count + 1) for count in TOKENS]
    found = answers({"preset": "reinforce_pp"}, penalties=penalties)
    flat = [reward for group in REWARDS for reward in group]
    for own, reward, count in zip(found, flat, TOKENS, strict=True):
        assert own == pytest.approx([reward - 0.1 * sum(range(t + 1, count + 1)) for t in range(count)], abs=1e-6)


def test_with_a_value_model_the_reward_falls_to_the_last_token() -> None:
    draw = torch.Generator().manual_seed(0)
    values = [torch.randn(count, generator=draw) for count in TOKENS]
    penalties = [0.05 * torch.randn(count, generator=draw) for count in TOKENS]
    found = answers({"preset": "ppo"}, penalties=penalties, values=values)
    flat = [reward for group in REWARDS for reward in group]
    for own, reward, value, penalty in zip(found, flat, values, penalties, strict=True):
        count = len(value)
        v = [*value.tolist(), 0.0]
        r = [-penalty[t].item() + (reward if t == count - 1 else 0.0) for t in range(count)]
        delta = [r[t] + v[t + 1] - v[t] for t in range(count)]
        assert own == pytest.approx([sum(0.95**i * delta[t + i] for i in range(count - t)) for t in range(count)], rel=1e-6, abs=1e-9)
