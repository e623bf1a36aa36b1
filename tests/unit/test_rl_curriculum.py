"""The order of prompts by success rate, and answers that go round in circles: pure computations, against straight ones."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from steelyard.errors import EngineError, TrainingError
from steelyard_rl.curriculum import Curriculum, SuccessRates, weighted_order
from steelyard_rl.loops import loop_end, periodic_end
from steelyard_rl.prompt_options import CurriculumOptions
from steelyard_rl.rollout_options import RepetitionOptions, RolloutOptions


def rows_of(taken: list[tuple[int, int]]) -> list[int]:
    return [row for _, row in taken]


def curriculum(rows: int = 12, seed: int = 3, **keys: Any) -> Curriculum:
    return Curriculum(CurriculumOptions(**keys), rows, seed)


# Success rates


def test_a_success_rate_is_the_prior_s_answers_and_the_new_ones_together() -> None:
    rates = SuccessRates(CurriculumOptions(order="priority", prior=0.25, prior_weight=4))
    assert rates[5] == 0.25
    rates.add(5, 0.75, 8)
    assert rates[5] == pytest.approx((0.25 * 4 + 0.75 * 8) / 12)
    rates.add(5, 0.0, 8)
    assert rates[5] == pytest.approx((0.25 * 4 + 0.75 * 8) / 20)
    assert rates[6] == 0.25, "another row"


def test_old_answers_are_forgotten_as_fast_as_asked() -> None:
    rates = SuccessRates(CurriculumOptions(order="priority", prior_weight=2, memory=0.5))
    rates.starts = {0: 1.0}
    rates.add(0, 0.0, 4)
    assert rates[0] == pytest.approx(1.0 / 5)
    rates.add(0, 1.0, 4)
    assert rates[0] == pytest.approx((0.5 * 1.0 + 4) / (0.5 * 5 + 4))


def test_graded_scores_beyond_0_and_1_count_as_those() -> None:
    rates = SuccessRates(CurriculumOptions(order="priority", prior=0.0, prior_weight=1))
    rates.add(0, 7.5, 3)
    assert rates[0] == pytest.approx(3 / 4)


# Orders


def test_easy_prompts_come_first_and_each_pass_goes_by_what_is_known_then() -> None:
    order = curriculum(rows=4, order="easy_first", pass_rate="p", prior_weight=1.0)
    order.rates.starts = {0: 0.1, 1: 0.9, 2: 0.5, 3: 0.7}
    assert rows_of(order.take(0, 4, step=0)) == [1, 3, 2, 0]
    assert rows_of(order.take(4, 2, step=0)) == [1, 3]
    # What is learnt within a pass waits for the next one.
    order.rates.add(0, 1.0, 100)
    assert rows_of(order.take(6, 6, step=0)) == [2, 0, 0, 1, 3, 2]


def test_high_variance_comes_first() -> None:
    order = curriculum(rows=5, order="variance", variance="v")
    order.variances = {0: 0.0, 1: 0.25, 2: 0.1875, 3: 0.25, 4: 0.109375}
    first = rows_of(order.take(0, 5, step=0))
    assert set(first[:2]) == {1, 3} and first[2:] == [2, 4, 0]
    assert len({tuple(rows_of(order.take(5 * lap, 2, step=0))) for lap in range(12)}) == 2, "equal ones change places from pass to pass"


def test_priority_draws_in_proportion_to_what_is_missing_to_full_marks() -> None:
    """Kimi k1.5, section 2.3.4: the chance of a problem is proportional to 1 − success rate; here with a floor."""
    order = curriculum(rows=4, order="priority", pass_rate="p", floor=0.05)
    order.rates.starts = {0: 0.0, 1: 0.5, 2: 0.9, 3: 1.0}
    weights = [1.0, 0.5, 0.1, 0.05]
    draws = 6000
    counts = Counter(row for cursor in range(draws) for row in rows_of(order.take(cursor, 1, step=0)))
    chi2 = sum((counts[row] - draws * w / sum(weights)) ** 2 / (draws * w / sum(weights)) for row, w in enumerate(weights))
    # The 99.9 % point of χ² with 3 degrees of freedom is 16.27; the seed is fixed.
    assert chi2 < 16.27


def test_an_order_by_weights_draws_place_after_place_without_replacement() -> None:
    weights = [4.0, 2.0, 1.0]
    orders = Counter(tuple(weighted_order(weights, seed)) for seed in range(7000))
    for order, count in orders.items():
        left, chance = sum(weights), 1.0
        for place in order:
            chance *= weights[place] / left
            left -= weights[place]
        assert count / 7000 == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 7000))


def test_priority_takes_no_prompt_twice_while_there_are_others() -> None:
    order = curriculum(rows=6, order="priority", floor=1.0)
    assert sorted(rows_of(order.take(0, 6, step=0))) == list(range(6))
    assert sorted(rows_of(order.take(6, 4, step=0, busy={0, 3}))) == [1, 2, 4, 5]
    twice = Counter(rows_of(order.take(10, 9, step=0)))
    assert sum(twice.values()) == 9 and len(twice) == 6 and max(twice.values()) == 2
    assert [position for position, _ in order.take(10, 9, step=0)] == list(range(10, 19))


def test_from_a_step_on_only_hard_prompts_are_taken() -> None:
    """Kimi k1.5, section 3.5: uniform until iteration 24, then hard ones alone."""
    order = curriculum(rows=10, pass_rate="p", hard_from_step=24, hard_below=0.4)
    order.rates.starts = {row: row / 10 for row in range(10)}
    assert sorted(rows_of(order.take(0, 10, step=23))) == list(range(10))
    assert order.active(23) == 10
    hard = order.take(10, 10, step=24)
    assert sorted(rows_of(hard)) == sorted([0, 1, 2, 3, 4] * 2) and order.active(24) == 5
    assert [position for position, _ in hard] == sorted(position for position, _ in hard) and hard[-1][0] < 30


def test_mastered_prompts_are_retired_and_come_back_when_they_are_forgotten() -> None:
    """ScaleRL's zone: prompts with a pass rate of 0.9 and more are not sampled again."""
    order = curriculum(rows=3, retire_at=0.9, prior_weight=1.0, memory=0.5)
    order.rates.add(1, 1.0, 16)
    assert order.rates[1] > 0.9
    assert sorted(rows_of(order.take(0, 4, step=0))) == [0, 0, 2, 2]
    order.rates.add(1, 0.0, 8)
    assert 1 in rows_of(order.take(6, 3, step=0))


@pytest.mark.parametrize("order", ["shuffled", "easy_first", "priority"])
def test_where_no_prompt_is_left_it_says_why(order: Any) -> None:
    given = curriculum(rows=3, order=order, retire_at=0.9, pass_rate="p")
    given.rates.starts = dict.fromkeys(range(3), 0.95)
    with pytest.raises(TrainingError, match=r"no prompt is left to take in rollout step 8: of 3, 3 are right as often as retire_at 0\.9"):
        given.take(0, 1, step=7)
    # Canaries come up as ever, but are nothing to train on.
    given.unjudged = {1}
    with pytest.raises(TrainingError, match="no prompt is left"):
        given.take(0, 4, step=7)


@settings(max_examples=30, deadline=None)
@given(
    order=st.sampled_from(["shuffled", "easy_first", "priority", "variance"]),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=8),
    retire=st.sampled_from([None, 0.8]),
)
def test_a_stop_anywhere_changes_nothing(order: Any, cuts: list[int], retire: float | None) -> None:
    """Taking in pieces, through JSON and a fresh curriculum between any two, is taking without a stop."""
    columns = {"variance": "v"} if order == "variance" else {}
    if order != "variance" or retire:
        columns["pass_rate"] = "p"
    if order == "shuffled" and retire is None:
        columns = {}

    def fresh() -> Curriculum:
        made = curriculum(rows=9, order=order, retire_at=retire, **columns)
        made.rates.starts = {row: row / 12 for row in range(9)}
        made.variances = {row: (row % 4) / 10 for row in range(9)}
        return made

    def walk(stops: bool) -> list[int]:
        now, cursor, seen = fresh(), 0, list[int]()
        for step, count in enumerate(cuts):
            if stops:
                saved = json.loads(json.dumps(now.state()))
                now = fresh()
                now.restore(saved)
            taken = now.take(cursor, count, step=step)
            cursor = taken[-1][0] + 1
            for row in rows_of(taken):
                now.rates.add(row, (row * 7 + step) % 5 / 4, 3)
            seen += rows_of(taken)
        return seen

    assert walk(stops=True) == walk(stops=False)


# Dials


@pytest.mark.parametrize(
    "keys",
    [
        {"keep": (0.1, 0.6)},
        {"keep": (0.6, 0.1), "pass_rate": "p"},
        {"keep": (0.0, 1.5), "pass_rate": "p"},
        {"order": "variance"},
        {"variance": "v"},
        {"pass_rate": "p"},
        {"measure": 10},
        {"measure": 10, "pass_rate": "p", "keep": (0.1, 0.6)},
        {"prior": 0.2},
        {"prior": 0.2, "order": "priority", "pass_rate": "p"},
        {"memory": 0.9},
        {"floor": 0.1, "order": "easy_first"},
        {"hard_below": 0.3},
        {"order": "hardest"},
    ],
)
def test_a_curriculum_s_dials_that_would_do_nothing_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CurriculumOptions(**keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"keep": (0.1, 0.6), "pass_rate": "pass_rate"},
        {"keep": (0.1, 0.6), "measure": 10, "order": "variance"},
        {"order": "variance", "measure": 8, "pass_rate": "p", "retire_at": 0.9},
        {"order": "priority", "prior": 0.2, "memory": 0.8, "floor": 0.01},
        {"hard_from_step": 24, "hard_below": 0.3, "pass_rate": "p"},
    ],
)
def test_dials_that_go_together_are_taken(keys: dict[str, Any]) -> None:
    CurriculumOptions(**keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"max_generation_batches": 5},
        {"surplus": "keep"},
        {"generation_batch": 8},
        {"generation_batch": 48, "max_refills": 1.0},
        {"generation_batch": 48, "partial": {"budget": 8}},
        {"partial": {"budget": 64}},
        {"repetition": {}},
        {"repetition": {"loop_tokens": 100}},
        {"repetition": {"loop_tokens": 60, "max_period": 8, "check_every": 64}},
        {"repetition": {"loop_tokens": 65, "max_period": 8}},
        {"repetition": {"confident_tokens": 32, "max_period": 8}},
        {"repetition": {"loop_tokens": 40, "max_period": 8, "confidence": 0.9}},
        {"guess": {"instruction": " "}},
        {"reward": {}},
        {"reward": {"weights": {"a": 0.0}}},
        {"reward": {"weights": {"a": 1.0}, "order": ["a", "b"]}},
        {"reward": {"order": ["a"]}},
        {"reward": {"weights": {"a": 1.0}, "levels": 3}},
        {"curriculum": {"hard_from_step": 5}},
    ],
)
def test_a_rollout_s_dials_that_would_do_nothing_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RolloutOptions(steps=5, prompts_per_step=16, max_new_tokens=64, **keys)


# Loops


def straight_loop_end(tokens: list[int], run: int, max_period: int) -> int | None:
    for end in range(1, len(tokens) + 1):
        for period in range(1, max_period + 1):
            if end - run - period >= 0 and all(tokens[i] == tokens[i - period] for i in range(end - run, end)):
                return end
    return None


@settings(max_examples=200, deadline=None)
@given(
    head=st.lists(st.integers(0, 3), max_size=12),
    piece=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    times=st.integers(0, 8),
    tail=st.lists(st.integers(0, 3), max_size=6),
    run=st.integers(4, 12),
    max_period=st.integers(1, 5),
)
def test_a_loop_ends_where_a_straight_search_finds_it(
    head: list[int], piece: list[int], times: int, tail: list[int], run: int, max_period: int
) -> None:
    tokens = head + piece * times + tail
    assert periodic_end(tokens, run=run, max_period=max_period) == straight_loop_end(tokens, run, max_period)


def test_an_answer_is_a_loop_after_3000_tokens_above_99_percent() -> None:
    """MiniMax-M1 (arXiv 2506.13585): generation stops after 3,000 consecutive tokens of probability above 0.99."""
    options = RepetitionOptions(confident_tokens=3000)
    sure, unsure = math.log(0.995), math.log(0.98)
    tokens = list(range(7000))
    assert loop_end(options, tokens, [unsure] + [sure] * 2999 + [unsure] + [sure] * 2999) is None
    assert loop_end(options, tokens, [unsure] * 10 + [sure] * 3001) == 3010
    assert loop_end(options, tokens, [math.log(0.99)] * 5000) is None, "above, not at"
    with pytest.raises(EngineError, match="needs log-probabilities"):
        loop_end(options, tokens, None)


def test_the_earlier_of_two_signs_of_a_loop_counts() -> None:
    options = RepetitionOptions(loop_tokens=16, max_period=4, confident_tokens=8)
    tokens = [9, 8, 7] + [1, 2] * 20
    assert loop_end(options, tokens, [-1.0] * 43) == 3 + 2 + 16
    assert loop_end(options, tokens, [-1.0] * 5 + [-1e-4] * 38) == 13
