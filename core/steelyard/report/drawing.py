"""Geometry of the drawings: what goes where. The templates turn it into SVG, so that every text passes through their escaping.

Strips use percentages of their width, so that one strip is right at every width of the page. Line charts have a fixed drawing area.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steelyard.report.formatting import number

__all__ = ["Axis", "Bar", "LineChart", "Strip", "Tick", "axis_over", "decimate", "line_chart", "rolling_mean", "round_ticks"]

Point = tuple[float, float]

WIDTH, HEIGHT = 360.0, 176.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 10.0, 24.0
_COLUMNS = 280


@dataclass(frozen=True)
class Tick:
    """A mark on an axis. ``at`` is a percentage on strips and a coordinate on charts."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A horizontal axis from ``low`` to ``high``, in the unit of its ticks."""

    low: float
    high: float
    ticks: tuple[Tick, ...]
    zero: float | None
    """Where zero stands, in percent; None where it is off the axis."""

    def at(self, value: float) -> float:
        """Where ``value`` stands, in percent; kept on the axis."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


@dataclass(frozen=True)
class Strip:
    """An estimate with its bounds and margin on an axis, in percent."""

    point: float
    low: float | None
    high: float | None
    margin: float | None


@dataclass(frozen=True)
class Bar:
    """A stretch of a bar, in percent."""

    start: float
    width: float


@dataclass(frozen=True)
class LineChart:
    """One metric over optimiser steps; ``raw`` and ``smooth`` are SVG path data, ``smooth`` empty for short series."""

    name: str
    raw: str
    smooth: str
    dots: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    points: int
    """How many values were reported."""
    left_out: int
    """How many of them are not finite, and so not drawn."""
    first: str
    last: str
    lowest: str
    highest: str
    window: int
    """Values in the rolling mean; 0 where there is none."""
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most about ``count`` multiples of 1, 2 or 5 times a power of ten within ``low`` … ``high``."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 if abs(step) >= 1e-9 else i * step for i in range(first, last + 1)]


def signed(value: float) -> str:
    """An axis label of a difference."""
    return "0" if value == 0 else ("+" if value > 0 else "") + number(value)


def axis_over(values: Sequence[float], *, count: int = 7, label: Callable[[float], str] = signed) -> Axis:
    """An axis that holds every value and zero, with a little room at its ends."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    if high - low < 1e-9:
        low, high = -1.0, 1.0
    room = 0.06 * (high - low)
    low, high = low - room, high + room
    bare = Axis(low, high, (), None)
    marks = tuple(Tick(bare.at(value), label(value)) for value in round_ticks(low, high, count))
    return Axis(low, high, marks, bare.at(0.0))


def decimate(points: Sequence[Point], columns: int = _COLUMNS) -> list[Point]:
    """At most two points a column, the lowest and the highest of each, so that a spike is still a spike. First and last points stay."""
    if len(points) <= 2 * columns:
        return list(points)
    kept: list[Point] = [points[0]]
    inner = points[1:-1]
    for column in range(columns):
        bucket = inner[column * len(inner) // columns : (column + 1) * len(inner) // columns]
        if bucket:
            ends = {bucket.index(min(bucket, key=_height)), bucket.index(max(bucket, key=_height))}
            kept.extend(bucket[i] for i in sorted(ends))
    return [*kept, points[-1]]


def _height(point: Point) -> float:
    return point[1]


def rolling_mean(points: Sequence[Point], window: int) -> list[Point]:
    """The centred mean over ``window`` points; the window shrinks, evenly on both sides, towards the ends."""
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    half, last = window // 2, len(points) - 1
    found = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, last - i)
        found.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return found


def line_chart(name: str, series: Sequence[Point]) -> LineChart | None:
    """A chart of (optimiser step, value) pairs, in the order of their steps; None without a finite value."""
    points = [point for point in sorted(series) if math.isfinite(point[1])]
    if not points:
        return None
    values = [y for _, y in points]
    low, high = min(values), max(values)
    x_low, x_high = points[0][0], points[-1][0]
    y_low, y_high = _with_room(low, high)
    x_span = (x_high - x_low) or 1.0

    def place(point: Point) -> Point:
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * ((point[0] - x_low) / x_span if x_high > x_low else 0.5)
        y = _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - (point[1] - y_low) / (y_high - y_low))
        return round(x, 1), round(y, 1)

    window = 0 if len(points) < 40 else 2 * max(2, len(points) // 50) + 1
    drawn = [place(point) for point in decimate(points)]
    smooth = [place(point) for point in decimate(rolling_mean(points, window))] if window else []
    return LineChart(
        name=name,
        raw=_path(drawn),
        smooth=_path(smooth),
        dots=tuple(drawn) if len(drawn) <= 12 else (),
        x_ticks=tuple(Tick(place((x, y_low))[0], number(x)) for x in _step_ticks(x_low, x_high)),
        y_ticks=tuple(Tick(place((x_low, y))[1], number(y)) for y in round_ticks(y_low, y_high, 5)),
        points=len(series),
        left_out=len(series) - len(points),
        first=number(points[0][1]),
        last=number(points[-1][1]),
        lowest=number(low),
        highest=number(high),
        window=window,
    )


def _with_room(low: float, high: float) -> tuple[float, float]:
    if high > low:
        room = 0.05 * (high - low)
        # An axis of counts, shares or losses starts at zero when zero is near.
        return (0.0 if 0 <= low < 0.25 * (high - low) else low - room), high + room
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _step_ticks(low: float, high: float) -> list[float]:
    """Round, whole steps; both ends when there is no room for more."""
    if high <= low:
        return [low]
    whole = [x for x in round_ticks(low, high, 5) if x == int(x)]
    return whole if len(whole) >= 2 else [low, high]


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points) if points else ""
