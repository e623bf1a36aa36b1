"""Hands the events of each run to the trackers that were opened for it.

A tracker is a copy: the run's ``metrics.jsonl`` is the original. So whatever is wrong with a tracker is said once, in one line, and the
run goes on without it.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from steelyard.errors import PluginError, nearest
from steelyard.events import MetricsReported, RoundDecided, RunFinished, RunStarted
from steelyard.protocols import Tracker
from steelyard_trackers.config import TRACKERS, VARIABLE, chosen_trackers

__all__ = ["Mirrors", "RunTracker"]

_log = logging.getLogger("steelyard.trackers")


class RunTracker(Tracker, Protocol):
    """A tracker of one run, made from its :class:`RunStarted` event and a folder of its own inside the run folder.

    ``log`` gets names that begin with the reporting step's id, and that step's own count as ``step``; several steps of a run count
    independently from 1.
    """

    def note(self, name: str, text: str) -> None:
        """Keep a text, such as the sentence of a verdict."""

    def finish(self, exit_code: int) -> None:
        """The run has ended with this exit code; called before ``close``."""


@dataclass
class _Run:
    trackers: dict[str, RunTracker]
    reports: Counter[str] = field(default_factory=Counter)
    """Reports without an optimiser step, by the step that made them."""
    rounds: int = 0


class Mirrors:
    """The trackers of every run that is under way in this process, by run folder. A run without trackers takes no room here."""

    def __init__(self, environ: Mapping[str, str] = os.environ):
        self._environ = environ
        self._runs: dict[Path, _Run] = {}

    def run_started(self, event: RunStarted) -> None:
        """Opens the trackers that the environment asks for."""
        self._end(event.run_dir)
        names, unknown = chosen_trackers(self._environ)
        for name in unknown:
            _log.warning("%s names %r, which is no tracker%s; the run goes on without it", VARIABLE, name, nearest(name, TRACKERS))
        opened = {name: tracker for name in names if (tracker := _open(name, event)) is not None}
        if opened:
            self._runs[event.run_dir] = _Run(opened)

    def metrics(self, event: MetricsReported) -> None:
        run = self._runs.get(event.run_dir)
        if run is None:
            return
        step = event.optimiser_step
        if step is None:
            run.reports[event.step] += 1
            step = run.reports[event.step]
        named = {f"{event.step}/{name}": float(value) for name, value in event.metrics.items()}
        self._each(event.run_dir, lambda tracker: tracker.log(named, step))

    def round_decided(self, event: RoundDecided) -> None:
        run = self._runs.get(event.run_dir)
        if run is None:
            return
        run.rounds += 1
        turn = run.rounds
        numbers = {"gate/promoted": float(event.decision == "promote")}
        difference = (event.verdict.get("average") or {}).get("diff")
        if difference is not None:
            numbers["gate/average_diff"] = float(difference)
        self._each(event.run_dir, lambda tracker: tracker.note(f"{event.round}/verdict", event.sentence))
        self._each(event.run_dir, lambda tracker: tracker.log(numbers, turn))

    def run_finished(self, event: RunFinished) -> None:
        self._each(event.run_dir, lambda tracker: tracker.finish(event.exit_code))
        self._end(event.run_dir)

    def _end(self, run_dir: Path) -> None:
        """Closes and forgets a run's trackers."""
        self._each(run_dir, lambda tracker: tracker.close())
        self._runs.pop(run_dir, None)

    def _each(self, run_dir: Path, call: Callable[[RunTracker], None]) -> None:
        """Calls every tracker of a run; one that fails gets nothing more of this run."""
        run = self._runs.get(run_dir)
        for name, tracker in list(run.trackers.items()) if run is not None else ():
            try:
                call(tracker)
            except Exception as error:
                assert run is not None
                del run.trackers[name]
                _log.warning("tracker %r failed and gets nothing more of this run (metrics.jsonl has it all): %s", name, _one_line(error))


def _open(name: str, event: RunStarted) -> RunTracker | None:
    try:
        tracker: RunTracker = TRACKERS[name].load()(event, event.run_dir / "trackers" / name)
    except PluginError as error:
        # A package that is there but broken is another matter than one that is not.
        cause = error.__cause__
        missing = isinstance(cause, ModuleNotFoundError) and (cause.name or "").partition(".")[0] == name
        reason = f"package {name!r} is not installed; " if missing else f"{error}; "
        _log.warning("tracker %r is left out: %spip install 'steelyard[%s]'", name, reason, name)
        return None
    except Exception as error:
        _log.warning("tracker %r cannot start and is left out (metrics.jsonl is written all the same): %s", name, _one_line(error))
        return None
    return tracker


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
