"""The rows of each optimiser step, and their micro-batches."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import DataError, UsageError
from steelyard_torch.batching import StepSampler, StepTotals, collate, count_targets, gather_targets, micro_batches
from steelyard_torch.encoding import EncodedRow


def row(length: int, targets: int | None = None) -> EncodedRow:
    ids = np.arange(10, 10 + length, dtype=np.int32)
    trained = np.zeros(length, dtype=np.bool_)
    trained[length - (length // 2 if targets is None else targets) :] = True
    return EncodedRow(ids, trained)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 2**63 - 1), st.integers(1, 4))
def test_an_epoch_takes_every_row_once(lengths: list[int], batch_size: int, seed: int, window: int) -> None:
    sampler = StepSampler(lengths, batch_size=batch_size, seed=seed, epochs=2, length_window=window)
    assert sampler.total_steps == 2 * sampler.steps_per_epoch
    for epoch in range(2):
        steps = [sampler.rows(epoch * sampler.steps_per_epoch + i) for i in range(sampler.steps_per_epoch)]
        assert sorted(i for step in steps for i in step) == list(range(len(lengths)))
        assert all(len(step) == batch_size for step in steps[:-1])


def test_epochs_differ_seeds_differ_and_the_same_seed_agrees() -> None:
    one, same, other = (StepSampler([5] * 40, batch_size=8, seed=seed, epochs=3) for seed in (1, 1, 2))
    steps = [one.rows(i) for i in range(15)]
    assert steps == [same.rows(i) for i in range(15)]
    assert steps[:5] != steps[5:10]
    assert steps != [other.rows(i) for i in range(15)]


def test_a_resumed_sampler_neither_skips_nor_replays_rows() -> None:
    lengths = list(range(1, 38))
    straight = StepSampler(lengths, batch_size=4, seed=3, epochs=3)
    expected = [straight.rows(i) for i in range(straight.total_steps)]
    seen = [straight.rows(i) for i in range(13)]
    state = json.loads(json.dumps(straight.state(13)))
    resumed = StepSampler(lengths, batch_size=4, seed=3, epochs=3)
    start = resumed.resume(state)
    assert seen + [resumed.rows(i) for i in range(start, resumed.total_steps)] == expected


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 5}, "batch_size 4"),
        ({"seed": 4}, "seed 3"),
        ({"lengths": [1, 2, 3]}, "n_rows 37"),
        ({"lengths": [9] * 37}, "sha256"),
    ],
)
def test_a_position_in_other_data_is_refused(change: dict[str, object], named: str) -> None:
    asked: dict[str, object] = {"lengths": list(range(37)), "batch_size": 4, "seed": 3}
    state = StepSampler(**asked).state(2)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=named):
        StepSampler(**{**asked, **change}).resume(state)  # type: ignore[arg-type]


def test_a_length_window_puts_rows_of_like_length_in_a_step() -> None:
    lengths = np.random.RandomState(0).randint(1, 200, size=512).tolist()

    def spread(window: int) -> float:
        sampler = StepSampler(lengths, batch_size=8, seed=0, length_window=window)
        return float(np.mean([np.ptp([lengths[i] for i in sampler.rows(s)]) for s in range(sampler.total_steps)]))

    assert spread(16) < 0.2 * spread(1)


def test_steps_can_be_a_share_of_an_epoch_or_a_number() -> None:
    assert StepSampler([1] * 100, batch_size=10, seed=0, epochs=0.25).total_steps == 3
    assert StepSampler([1] * 100, batch_size=10, seed=0, max_steps=25).total_steps == 25
    assert StepSampler([1] * 100, batch_size=10, seed=0, max_steps=25).epoch(25) == 2.5


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        StepSampler([], batch_size=1, seed=0)
    with pytest.raises(UsageError, match="batch_size must be at least 1, got 0"):
        StepSampler([1], batch_size=0, seed=0)
    with pytest.raises(UsageError, match="epochs must be above 0"):
        StepSampler([1], batch_size=1, seed=0, epochs=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(10, 200))
def test_micro_batches_hold_every_row_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = micro_batches([row(n) for n in lengths], token_budget=budget, pad_id=0)
    assert sorted(i for batch in batches for i in batch.order) == list(range(len(lengths)))
    for batch in batches:
        assert batch.padded_tokens <= budget or len(batch) == 1
        assert [lengths[i] for i in batch.order] == list(batch.lengths)
    longest_first = [n for batch in batches for n in batch.lengths]
    assert longest_first == sorted(longest_first, reverse=True)


def test_rows_are_padded_on_the_right_and_targets_point_at_what_predicts_them() -> None:
    batch = collate([row(4, 2), row(2, 1)], pad_id=7)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13], [10, 11, 7, 7]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.target_ids.tolist() == [12, 13, 11]
    assert batch.target_rows.tolist() == [0, 0, 1]
    assert batch.target_positions.tolist() == [1, 2, 4]
    assert (batch.tokens, batch.padded_tokens) == (6, 8)


def test_a_first_token_is_never_a_target() -> None:
    everything = EncodedRow(np.array([1, 2], dtype=np.int32), np.array([True, True]))
    assert collate([everything], pad_id=0).target_ids.tolist() == [2]


def test_totals_count_trained_tokens_and_the_rows_that_have_any() -> None:
    assert count_targets([row(6, 3), row(4, 0), row(4, 1)]) == StepTotals(tokens=4, sequences=2)


def test_values_kept_by_row_come_back_in_the_order_of_the_targets() -> None:
    rows = [row(3, 1), row(8, 4), row(5, 2)]
    kept = [torch.full((r.targets,), float(i)) for i, r in enumerate(rows)]
    batches = micro_batches(rows, token_budget=16, pad_id=0)
    assert len(batches) > 1
    for batch in batches:
        expected = [float(batch.order[i]) for i in batch.target_rows.tolist()]
        assert gather_targets(batch, kept).tolist() == expected
    with pytest.raises(DataError, match="18 values were kept for 6 trained tokens"):
        gather_targets(batches[0], [torch.zeros(9)] * 3)


PREFIXES = st.lists(st.tuples(st.integers(0, 20), st.lists(st.integers(1, 20), min_size=1, max_size=5)), min_size=1, max_size=8)


def grouped(groups: list[tuple[int, list[int]]]) -> tuple[list[EncodedRow], list[int]]:
    """Groups of rows that begin with as many tokens in common, and no more."""
    rows, numbers = [], []
    for number, (prefix, lengths) in enumerate(groups):
        for i, length in enumerate(lengths):
            ids = np.concatenate([np.full(prefix, 50 + number), np.full(length, i + 1)]).astype(np.int32)
            trained = np.arange(len(ids)) >= prefix - 1
            rows.append(EncodedRow(ids, trained, len(rows)))
            numbers.append(number)
    return rows, numbers


@settings(max_examples=80, deadline=None)
@given(PREFIXES, st.integers(8, 120), st.integers(1, 5), st.booleans(), st.booleans())
def test_the_ranks_together_hold_every_row_once_in_equally_many_micro_batches(
    groups: list[tuple[int, list[int]]], budget: int, size: int, whole: bool, packed: bool
) -> None:
    rows, numbers = grouped(groups)
    ranks = [
        micro_batches(rows, token_budget=budget, pad_id=0, groups=numbers, whole=whole, packed=packed, rank=rank, size=size)
        for rank in range(size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    every = [batch for batches in ranks for batch in batches]
    assert sorted(place for batch in every for place in batch.order) == list(range(len(rows)))
    assert sum(len(batch.target_ids) for batch in every) == count_targets(rows).tokens - sum(row.trained[0] for row in rows)
    for batch in every:
        assert batch.padded_tokens > 0  # A batch of no rows goes through the model all the same.
        assert batch.target_counts.tolist() == [rows[place].trained[1:].sum() for place in batch.order]
        flat = batch.input_ids.flatten()
        assert flat[batch.last_positions].tolist() == [rows[place].input_ids[-1] for place in batch.order]
        held = [numbers[place] for place in batch.order]
        if whole or packed:
            assert held == sorted(held, key=held.index), "rows of a group stand side by side"
            assert all(a < b for a, b in zip(batch.order, batch.order[1:], strict=False) if numbers[a] == numbers[b])
        if whole:
            assert all(held.count(number) == numbers.count(number) for number in held)
        if not whole and packed:
            alone = max((len(rows[place]) for place in batch.order), default=0)
            assert batch.padded_tokens <= max(budget, alone) or not batch.order


@settings(max_examples=60, deadline=None)
@given(PREFIXES, st.integers(8, 60), st.booleans())
def test_packed_places_lead_back_to_each_rows_tokens(groups: list[tuple[int, list[int]]], budget: int, whole: bool) -> None:
    rows, numbers = grouped(groups)
    for batch in micro_batches(rows, token_budget=budget, pad_id=0, groups=numbers, whole=whole, packed=True):
        assert batch.layout is not None and batch.position_ids is not None
        flat, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
        at = 0
        for segment in batch.layout.segments:
            assert segment.start == at and segment.length > 0
            assert segment.prefix_length == 0 or segment.prefix_start + segment.prefix_length <= segment.start
            assert positions[at : at + segment.length].tolist() == list(
                range(segment.prefix_length, segment.prefix_length + segment.length)
            )
            at += segment.length
        assert at == batch.padded_tokens
        expected_columns = [np.flatnonzero(rows[place].trained[1:]) for place in batch.order]
        assert positions[batch.target_positions].tolist() == np.concatenate(expected_columns).tolist()
        predictors = [rows[place].input_ids[columns] for place, columns in zip(batch.order, expected_columns, strict=True)]
        assert flat[batch.target_positions].tolist() == np.concatenate(predictors).tolist()
        padded = batch.padded()
        assert padded.target_ids.tolist() == batch.target_ids.tolist()
        assert padded.target_rows.tolist() == batch.target_rows.tolist()
        assert padded.lengths == batch.lengths and padded.order == batch.order


def test_packed_micro_batches_are_about_equally_large() -> None:
    lengths = np.random.RandomState(0).randint(20, 200, size=64).tolist()
    batches = micro_batches([row(n) for n in lengths], token_budget=1000, pad_id=0, packed=True, rank=1, size=3)
    every = [
        b for r in range(3) for b in micro_batches([row(n) for n in lengths], token_budget=1000, pad_id=0, packed=True, rank=r, size=3)
    ]
    assert len(batches) == 3 and len(every) == 9
    assert max(b.padded_tokens for b in every) - min(b.padded_tokens for b in every) <= 40
    per_rank = [sum(b.padded_tokens for b in every[3 * r : 3 * r + 3]) for r in range(3)]
    assert max(per_rank) - min(per_rank) <= 40


def test_a_rank_without_rows_gets_a_batch_that_trains_nothing() -> None:
    for packed in (False, True):
        shares = [micro_batches([row(9, 3), row(5, 2)], token_budget=100, pad_id=0, packed=packed, rank=r, size=3) for r in range(3)]
        assert [len(batches) for batches in shares] == [1, 1, 1]
        (idle,) = shares[2]
        assert (idle.order, len(idle), idle.tokens, idle.target_ids.tolist()) == ((), 0, 0, [])
        assert idle.input_ids.shape == (1, 5)
        assert gather_targets(idle, [torch.zeros(3), torch.zeros(2)]).shape == (0,)
