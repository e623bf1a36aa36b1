"""What the human sees while a run goes on, on stderr: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

__all__ = ["LiveProgress", "PlainProgress", "Progress", "SilentProgress", "counted", "duration", "open_progress"]

_PLAIN_SECONDS = 10.0
_TELLING = ("rl/accuracy", "dpo/accuracy", "train/loss")
"""The metrics that say what became of a stage, the most telling first: a policy's loss is near zero whatever it learns."""


class Progress(Protocol):
    """A context manager that is told what happens."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def planned(self, steps: int) -> None: ...

    def begin(self, step: str, position: int) -> None:
        """A step begins, the ``position``-th of the plan (from 1)."""

    def update(self, done: float, total: float | None, unit: str, note: str) -> None: ...

    def log(self, message: str) -> None: ...

    def finish(self, step: str, position: int, status: str, seconds: float, summary: Mapping[str, Any]) -> None: ...


def open_progress(stream: TextIO | None = None) -> Progress:
    """Bars when ``stream`` (default: stderr) is a terminal, else lines."""
    stream = stream or sys.stderr
    return LiveProgress() if stream.isatty() else PlainProgress(stream)


class PlainProgress:
    """A line when a step begins and ends, and one every ten seconds in between."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._steps = 0
        self._told = 0.0
        self._pace = _Pace()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def planned(self, steps: int) -> None:
        self._steps = steps

    def begin(self, step: str, position: int) -> None:
        self._told, self._pace = time.monotonic(), _Pace()
        self.log(f"[{position}/{self._steps}] {step} …")

    def update(self, done: float, total: float | None, unit: str, note: str) -> None:
        now = time.monotonic()
        rate = self._pace.at(now, done, unit)
        if now - self._told < _PLAIN_SECONDS:
            return
        self._told = now
        parts = [f"{done:g}" + (f"/{total:g}" if total else "") + f" {unit}"]
        parts += [f"{rate:.3g} {unit}/s"] if rate else []
        parts += [f"{duration((total - done) / rate)} left"] if total and rate else []
        self.log("    " + ", ".join([*parts, *([note] if note else [])]))

    def log(self, message: str) -> None:
        print(message, file=self._stream, flush=True)

    def finish(self, step: str, position: int, status: str, seconds: float, summary: Mapping[str, Any]) -> None:
        took = "" if status == "reused" else f" in {duration(seconds)}"
        said = in_words(summary)
        self.log(f"[{position}/{self._steps}] {step} {status}{took}{f' — {said}' if said else ''}")


class _Pace:
    """How fast what is under way goes. A step counts one thing after another (pairs scored, then optimiser steps), so the clock starts
    again when the unit changes or the count falls."""

    def __init__(self) -> None:
        self._unit: str | None = None
        self._began = self._had = self._last = 0.0

    def at(self, now: float, done: float, unit: str) -> float | None:
        """Units a second, None before anything is known."""
        if unit != self._unit or done < self._last:
            # A step that was resumed begins with what it had done before.
            self._unit, self._began, self._had = unit, now, done
        self._last = done
        passed = now - self._began
        return (done - self._had) / passed if passed > 0 and done > self._had else None


class SilentProgress(PlainProgress):
    """Says nothing."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def log(self, message: str) -> None:
        pass


class LiveProgress:
    """Two bars: the steps of the run, and the step that is running with its rate and the time left. Finished steps scroll up. The steps
    of a run are too unlike to say when it ends."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True, highlight=False),
            transient=True,
            # Where stdout is not the terminal it must get its data untouched.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._run = self._bars.add_task("steps", total=None, rate="", left="", note="")
        self._step: Any = None
        self._pace = _Pace()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def planned(self, steps: int) -> None:
        self._bars.update(self._run, total=steps)

    def begin(self, step: str, position: int) -> None:
        self._step = self._bars.add_task(step, total=None, rate="", left="", note="")
        self._pace = _Pace()

    def update(self, done: float, total: float | None, unit: str, note: str) -> None:
        if self._step is not None:
            # Not rich's own estimate: to it what was done before a resume was done just now.
            speed = self._pace.at(time.monotonic(), done, unit)
            rate = f"{speed:.3g} {unit}/s" if speed else unit
            left = f"{duration((total - done) / speed)} left" if total and speed else ""
            self._bars.update(self._step, completed=done, total=total, rate=rate, left=left, note=note)

    def log(self, message: str) -> None:
        self._bars.console.print(message, markup=False)

    def finish(self, step: str, position: int, status: str, seconds: float, summary: Mapping[str, Any]) -> None:
        if self._step is not None:
            self._bars.remove_task(self._step)
            self._step = None
        self._bars.update(self._run, completed=position)
        took = "" if status == "reused" else f" in {duration(seconds)}"
        said = in_words(summary)
        self.log(f"{step} {status}{took}{f' — {said}' if said else ''}")


def counted(number: int, noun: str) -> str:
    """``"1 round"``, ``"2 rounds"``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """``"3.2 s"``, ``"4 min 05 s"``, ``"2 h 10 min"``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def in_words(summary: Mapping[str, Any]) -> str:
    """The few facts of a step's summary that fit on its line."""
    parts = []
    for name in ("items", "rows", "tokens", "parameters"):
        if isinstance(summary.get(name), int):
            parts.append(f"{summary[name]:,} {name}")
    if summary.get("removed"):
        parts.append(f"{summary['removed']:,} removed")
    metrics = summary.get("metrics") or {}
    telling = next((name for name in _TELLING if name in metrics), None)
    parts += [f"{telling} {metrics[telling]:.4g}"] if telling is not None else []
    tasks = {name: task.get("score") for name, task in (summary.get("tasks") or {}).items()}
    parts += [f"{name} {score:.3f}" for name, score in list(tasks.items())[:8] if isinstance(score, int | float)]
    return ", ".join(parts)
