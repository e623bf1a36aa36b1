"""Losses against their formulas, written out row by row in float64, against finite differences, and under accumulation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from steelyard.errors import TrainingError, UsageError
from steelyard_torch.batching import MicroBatch, StepTotals, count_targets, gather_targets, micro_batches
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.head import TokenScores, sum_by_row, token_logprobs
from steelyard_torch.losses import group_advantages, grpo_loss, sft_loss

LENGTHS = [3, 1, 5, 2]
ROWS = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
TOTALS = StepTotals(tokens=20, sequences=7)  # of a step of which these four rows are a part


def random_logprobs(seed: int, n: int = sum(LENGTHS)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -2 * torch.rand(n, generator=generator, dtype=torch.float64) - 0.1


def by_row(values: torch.Tensor) -> list[list[float]]:
    return [part.tolist() for part in torch.split(values.detach(), LENGTHS)]


def test_cross_entropy_follows_its_three_reductions() -> None:
    logprobs = random_logprobs(0)
    losses = [[-x for x in row] for row in by_row(logprobs)]
    expected = {
        "token_mean": sum(map(sum, losses)) / 20,
        "sum": sum(map(sum, losses)),
        "sequence_mean": sum(sum(row) / len(row) for row in losses) / 7,
    }
    for reduction, value in expected.items():
        assert sft_loss(logprobs, ROWS, 4, reduction=reduction, totals=TOTALS).item() == pytest.approx(value, rel=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean", "constant"])
@pytest.mark.parametrize("kl", [0.0, 0.04])
def test_the_policy_loss_follows_its_formula(reduction: str, kl: float) -> None:
    new, old, reference = random_logprobs(1), random_logprobs(2), random_logprobs(3)
    advantages = torch.tensor([1.5, -0.5, 0.0, -2.0], dtype=torch.float64)
    result = grpo_loss(
        new,
        old,
        advantages,
        ROWS,
        totals=TOTALS,
        clip_low=0.2,
        clip_high=0.28,
        reduction=reduction,  # type: ignore[arg-type]
        constant_length=16,
        reference_logprobs=reference,
        kl_coefficient=kl,
    )
    value = clipped = approx = ratios = kls = 0.0
    for row, (n, o, f) in enumerate(zip(by_row(new), by_row(old), by_row(reference), strict=True)):
        advantage, sequence = float(advantages[row]), 0.0
        for t in range(len(n)):
            ratio = math.exp(n[t] - o[t])
            bounded = min(max(ratio, 0.8), 1.28)
            d = f[t] - n[t]
            k3 = math.exp(d) - d - 1
            sequence += -min(ratio * advantage, bounded * advantage) + kl * k3
            clipped += bounded * advantage < ratio * advantage
            approx += math.exp(o[t] - n[t]) - (o[t] - n[t]) - 1
            ratios += ratio
            kls += k3
        scale = {"sequence_mean": 1 / len(n) / 7, "token_mean": 1 / 20, "constant": 1 / 16 / 7}[reduction]
        value += sequence * scale
    assert result.value.item() == pytest.approx(value, rel=1e-10)
    expected = {"clip_fraction": clipped / 20, "approx_kl": approx / 20, "ratio_mean": ratios / 20, "kl": kls / 20}
    assert {name: metric.item() for name, metric in result.metrics.items()} == pytest.approx(expected, rel=1e-10)
    assert 0 < result.metrics["clip_fraction"] < 1, "the example must exercise the clip"


def test_on_policy_the_gradient_is_the_plain_policy_gradient() -> None:
    new = random_logprobs(1).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    grpo_loss(new, new.detach().clone(), advantages, ROWS, totals=StepTotals(11, 4), reduction="token_mean").value.backward()
    torch.testing.assert_close(new.grad, -advantages[ROWS] / 11)


def test_gradients_agree_with_finite_differences() -> None:
    advantages = torch.tensor([1.5, -0.5, 0.3, -2.0], dtype=torch.float64)
    old, reference = random_logprobs(2), random_logprobs(3)
    new = random_logprobs(1).requires_grad_()

    def policy(x: torch.Tensor) -> torch.Tensor:
        return grpo_loss(x, old, advantages, ROWS, totals=TOTALS, reference_logprobs=reference, kl_coefficient=0.1).value

    def sequence_mean(x: torch.Tensor) -> torch.Tensor:
        return sft_loss(x, ROWS, 4, reduction="sequence_mean", totals=TOTALS)

    assert torch.autograd.gradcheck(policy, (new,))
    assert torch.autograd.gradcheck(sequence_mean, (new,))


def test_advantages_of_equal_rewards_are_exactly_zero() -> None:
    # The mean of eight times 0.1 is not 0.1 in binary: divided by a tiny eps, its rounding would be an advantage.
    for reward in (0.1, 1 / 3, 1e9, 0.0):
        for eps in (1e-4, 1e-8, 0.0):
            assert group_advantages(torch.full((7,), reward), eps=eps).tolist() == [0.0] * 7
    assert group_advantages(torch.tensor([3.0])).tolist() == [0.0]


def test_advantages_follow_mean_and_std_with_ddof_and_eps() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 2.0])
    values = rewards.double().numpy()
    for ddof in (0, 1):
        expected = (values - values.mean()) / (values.std(ddof=ddof) + 1e-4)
        np.testing.assert_allclose(group_advantages(rewards, ddof=ddof, eps=1e-4).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(group_advantages(rewards, scale_by_std=False).numpy(), values - values.mean(), rtol=1e-12)


def test_wrong_arguments_are_refused() -> None:
    logprobs = random_logprobs(0)
    with pytest.raises(TrainingError, match="rewards must be finite"):
        group_advantages(torch.tensor([1.0, math.nan]))
    with pytest.raises(UsageError, match="needs reference log-probabilities"):
        grpo_loss(logprobs, logprobs, torch.zeros(4), ROWS, totals=TOTALS, kl_coefficient=0.1)
    with pytest.raises(UsageError, match="needs constant_length"):
        grpo_loss(logprobs, logprobs, torch.zeros(4), ROWS, totals=TOTALS, reduction="constant")
    with pytest.raises(UsageError, match="unknown loss reduction 'mean'"):
        sft_loss(logprobs, ROWS, 4, reduction="mean", totals=TOTALS)  # type: ignore[arg-type]


# Accumulation: the same eight rows at once, and one by one.


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.2
    )
    return LlamaForCausalLM(config).train()


@pytest.fixture
def rows() -> list[EncodedRow]:
    random = np.random.RandomState(0)
    made = []
    for length in (12, 5, 9, 7, 20, 6, 15, 4):
        trained = np.arange(length) >= length - random.randint(1, length - 1)
        made.append(EncodedRow(random.randint(2, 31, size=length).astype(np.int32), trained))
    return made


LossOf = Callable[[TokenScores, MicroBatch], torch.Tensor]


def gradients(model: LlamaForCausalLM, rows: Sequence[EncodedRow], budget: int, loss_of: LossOf) -> tuple[int, float, list[torch.Tensor]]:
    twin = copy.deepcopy(model)
    total = 0.0
    batches = micro_batches(rows, token_budget=budget, pad_id=0)
    for batch in batches:
        loss = loss_of(token_logprobs(twin, batch), batch)
        loss.backward()
        total += loss.item()
    return len(batches), total, [parameter.grad for parameter in twin.parameters() if parameter.grad is not None]


def assert_accumulation_is_exact(model: LlamaForCausalLM, rows: Sequence[EncodedRow], loss_of: LossOf) -> None:
    once, all_at_once, expected = gradients(model, rows, 10_000, loss_of)
    assert once == 1
    for budget in (1, 40):
        count, total, accumulated = gradients(model, rows, budget, loss_of)
        assert count == (8 if budget == 1 else count) and count > 1
        assert total == pytest.approx(all_at_once, rel=1e-5, abs=1e-6)
        for mine, theirs in zip(accumulated, expected, strict=True):
            scale = max(1.0, float(theirs.abs().max()))
            torch.testing.assert_close(mine / scale, theirs / scale, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["token_mean", "sum", "sequence_mean"])
def test_eight_micro_batches_of_one_row_give_the_gradient_of_one_of_eight(
    model: LlamaForCausalLM, rows: list[EncodedRow], reduction: str
) -> None:
    totals = count_targets(rows)
    assert_accumulation_is_exact(
        model,
        rows,
        lambda scores, _: sft_loss(scores.logprobs, scores.rows, scores.n_rows, reduction=reduction, totals=totals),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean", "constant"])
def test_the_policy_loss_accumulates_exactly(model: LlamaForCausalLM, rows: list[EncodedRow], reduction: str) -> None:
    totals = count_targets(rows)
    generator = torch.Generator().manual_seed(1)
    old = [-3 * torch.rand(row.targets, generator=generator) for row in rows]
    advantages = torch.randn(len(rows), generator=generator)

    def loss_of(scores: TokenScores, batch: MicroBatch) -> torch.Tensor:
        return grpo_loss(
            scores.logprobs,
            gather_targets(batch, old),
            advantages[list(batch.order)],
            scores.rows,
            totals=totals,
            reduction=reduction,  # type: ignore[arg-type]
            constant_length=32,
            reference_logprobs=gather_targets(batch, old),
            kl_coefficient=0.05,
        ).value

    assert_accumulation_is_exact(model, rows, loss_of)


def test_the_naive_mean_of_micro_batch_means_would_be_caught(model: LlamaForCausalLM, rows: list[EncodedRow]) -> None:
    with pytest.raises(AssertionError):
        assert_accumulation_is_exact(model, rows, lambda scores, _: -scores.logprobs.mean())


def test_the_row_sums_that_preference_losses_take_do_not_depend_on_the_cut(model: LlamaForCausalLM, rows: list[EncodedRow]) -> None:
    with torch.no_grad():
        alone = {}
        for budget in (1, 10_000):
            sums = torch.zeros(len(rows))
            for batch in micro_batches(rows, token_budget=budget, pad_id=0):
                scores = token_logprobs(model, batch)
                sums[list(batch.order)] = sum_by_row(scores.logprobs, scores.rows, scores.n_rows)
            alone[budget] = sums
    torch.testing.assert_close(alone[1], alone[10_000], atol=1e-5, rtol=1e-5)
