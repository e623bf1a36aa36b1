"""Learning curves: what each step reported, drawn over its optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steelyard.report.drawing import LineChart, Point, line_chart
from steelyard.report.formatting import number
from steelyard.report.record import RunRecord

__all__ = ["StepCurves", "step_curves"]

_FIRST = ("train/loss", "rl/accuracy", "rl/reward")
_MACHINERY = ("perf/", "train/lr", "train/grad_norm", "train/skipped_steps", "train/epoch")
_SHOWN = 6


@dataclass(frozen=True)
class StepCurves:
    """The curves of one step: the ones to look at first, the others, and what never changed (name, value)."""

    step: str
    charts: tuple[LineChart, ...]
    more: tuple[LineChart, ...]
    constant: tuple[tuple[str, str], ...]


def step_curves(record: RunRecord) -> list[StepCurves]:
    """One entry for every step that reported metrics at two optimiser steps or more."""
    found: dict[tuple[str, str], dict[str, list[Point]]] = {}
    for row in record.metrics:
        if row.optimiser_step is not None:
            for name, value in row.metrics.items():
                if isinstance(value, int | float):
                    found.setdefault((row.step, row.key), {}).setdefault(name, []).append((float(row.optimiser_step), float(value)))
    latest = {step.step: step.key for step in record.steps}
    return [_curves(step, series) for (step, key), series in found.items() if latest.get(step, key) == key and _has_curve(series)]


def _has_curve(series: Mapping[str, Sequence[Point]]) -> bool:
    return any(len(points) > 1 for points in series.values())


def _curves(step: str, series: Mapping[str, Sequence[Point]]) -> StepCurves:
    changing = {name: points for name, points in series.items() if _changes(points)}
    first = sorted((name for name in changing if not name.startswith(_MACHINERY)), key=_rank)
    order = [*first, *sorted(name for name in changing if name.startswith(_MACHINERY))]
    charts = [chart for name in order if (chart := line_chart(name, changing[name])) is not None]
    shown = min(_SHOWN, max(1, len(first)))
    constant = tuple((name, number(points[-1][1])) for name, points in sorted(series.items()) if name not in changing)
    return StepCurves(step, tuple(charts[:shown]), tuple(charts[shown:]), constant)


def _rank(name: str) -> tuple[int, str]:
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def _changes(points: Sequence[Point]) -> bool:
    return len({y for _, y in points}) > 1 or any(not math.isfinite(y) for _, y in points)
