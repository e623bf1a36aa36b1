"""Geometry of the drawings, the choice of items, and how numbers and texts are written."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.report.drawing import axis_over, decimate, line_chart, rolling_mean, round_ticks
from steelyard.report.evaluations import as_text, changed_items, choose_pairs
from steelyard.report.formatting import bytes_text, clip, duration, number, points, visible


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (-12.0, 31.0, [0.0, 20.0]),
        (1, 300, [100, 200, 300]),
        (0.98, 1.02, [0.98, 0.99, 1.0, 1.01, 1.02]),
        (0, 2e-5, [0, 5e-6, 1e-5, 1.5e-5, 2e-5]),
        (3.0, 3.0, [3.0]),
    ],
)
def test_ticks_are_round_numbers_inside_the_range(low, high, expected):
    assert round_ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_there_are_never_more_ticks_than_can_be_read(low, span):
    ticks = round_ticks(low, low + span)
    assert len(ticks) <= 6 and all(low - span * 1e-6 <= t <= low + span * (1 + 1e-6) for t in ticks)


@given(st.lists(st.floats(-100, 100), max_size=8))
def test_an_axis_holds_zero_and_every_value(values):
    axis = axis_over(values)
    assert 0 < axis.zero < 100
    assert all(0 <= axis.at(v) <= 100 for v in values)
    assert [axis.at(v) for v in sorted(values)] == sorted(axis.at(v) for v in values)


def test_decimation_keeps_spikes_ends_and_order():
    series = [(float(i), 0.0) for i in range(100_000)]
    series[54_321] = (54_321.0, 9.0)
    series[70_000] = (70_000.0, -9.0)
    kept = decimate(series, 200)
    assert len(kept) <= 402
    assert (54_321.0, 9.0) in kept and (70_000.0, -9.0) in kept
    assert kept[0] == series[0] and kept[-1] == series[-1] and kept == sorted(kept)


def test_a_rolling_mean_is_centred_and_does_not_bend_a_line():
    line = [(float(i), 3.0 * i) for i in range(50)]
    assert [y for _, y in rolling_mean(line, 7)] == pytest.approx([y for _, y in line])
    assert rolling_mean([(0.0, 0.0), (1.0, 3.0), (2.0, 0.0)], 3)[1] == (1.0, 1.0)


def test_a_chart_stays_inside_its_area_and_counts_what_it_cannot_draw():
    series = [(float(i), math.nan if i == 5 else math.sin(i / 9)) for i in range(2_000)]
    chart = line_chart("train/loss", series)
    assert (chart.points, chart.left_out) == (2_000, 1)
    drawn = [tuple(map(float, pair.split(","))) for pair in chart.raw[1:].split("L")]
    assert all(chart.left <= x <= chart.right and chart.top <= y <= chart.bottom for x, y in drawn)
    assert chart.smooth and len(chart.raw) < 10_000
    assert line_chart("x", [(1.0, math.nan)]) is None


def test_a_chart_of_one_value_or_of_equal_values_can_be_drawn():
    assert line_chart("x", [(3.0, 2.0)]).raw.startswith("M")
    assert line_chart("x", [(1.0, 0.0), (2.0, 0.0)]).raw.count("L") == 1


def test_steps_are_labelled_with_whole_numbers():
    labels = [tick.label for tick in line_chart("x", [(1.0, 0.0), (2.0, 1.0), (3.0, 0.0)]).x_ticks]
    assert labels == ["1", "2", "3"]


def test_items_are_counted_by_the_mean_of_their_samples():
    old = {("t", "a", 0): 0.0, ("t", "a", 1): 1.0, ("t", "b", 0): 1.0, ("t", "c", 0): None, ("t", "d", 0): 1.0}
    new = {("t", "a", 0): 1.0, ("t", "a", 1): 1.0, ("t", "b", 0): 0.0, ("t", "c", 0): 1.0, ("t", "d", 0): 1.0}
    found = changed_items(old, new)["t"]
    assert (found.gained, found.lost, found.same, found.items) == (1, 1, 1, 3)


def test_items_to_show_take_turns_among_the_tasks():
    old = {(task, str(i), 0): 0.0 for task in ("a", "b") for i in range(9)} | {("c", "0", 0): 1.0}
    new = {key: 1.0 - value for key, value in old.items()}
    chosen = choose_pairs(old, new, {"lost": 5, "gained": 4, "same": 3})
    assert [(pair.change, pair.key[0]) for pair in chosen] == [("lost", "c"), *[("gained", t) for t in "abab"]]


def test_numbers_durations_and_sizes_read_well():
    assert [number(x) for x in (1234567, 0.00001234, -3.0, 0.5, None)] == ["1,234,567", "1.234e-5".replace("-", "−"), "−3", "0.5", "–"]
    assert [points(x) for x in (0.1234, -0.05, None)] == ["+12.3", "−5.0", "–"]
    assert [duration(x) for x in (0.44, 59.4, 185, 8040)] == ["0.4 s", "59 s", "3 min 05 s", "2 h 14 min"]
    assert [bytes_text(x) for x in (12, 2048, 3 * 2**30)] == ["12 bytes", "2.0 KiB", "3.0 GiB"]


def test_texts_lose_their_power_but_not_their_content():
    assert visible("a\x00b\x1b\x7f\r\nc\td\u202e\ud800é") == "a␀b␛␡\nc\td\ufffd\\ud800é"
    assert clip("x" * 105, 100) == ("x" * 105, 0)
    assert clip("x" * 150, 100) == ("x" * 100, 50)
    assert as_text([{"role": "user", "content": "hi"}]) == "hi"
    assert as_text([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]) == "system: s\nuser: u"
    assert as_text({"a": [1]}) == '{"a": [1]}'
