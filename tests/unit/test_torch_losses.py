"""Losses against their formulas, written out row by row in float64, against finite differences, and under accumulation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from steelyard.errors import UsageError
from steelyard_torch.batching import MicroBatch, StepTotals, count_targets, micro_batches
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.head import TokenScores, sum_by_row, token_logprobs
from steelyard_torch.losses import sft_loss

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


def test_gradients_agree_with_finite_differences() -> None:
    new = random_logprobs(1).requires_grad_()

    def sequence_mean(x: torch.Tensor) -> torch.Tensor:
        return sft_loss(x, ROWS, 4, reduction="sequence_mean", totals=TOTALS)

    assert torch.autograd.gradcheck(sequence_mean, (new,))


def test_wrong_arguments_are_refused() -> None:
    logprobs = random_logprobs(0)
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
