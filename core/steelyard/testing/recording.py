"""A step's channel that keeps what it is told, for tests of stages, mixers and harnesses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["RecordedIO"]


class RecordedIO:
    """A :class:`~steelyard.protocols.StepIO`. Set ``stop`` to make :meth:`should_stop` say so."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.samples: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.done: list[tuple[float, float | None, str]] = []
        self.stop = False

    def report(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))

    def progress(self, done: float, total: float | None, unit: str, note: str = "") -> None:
        self.done.append((done, total, unit))

    def sample(self, row: Mapping[str, Any]) -> None:
        self.samples.append(dict(row))

    def log(self, message: str) -> None:
        self.lines.append(message)

    def should_stop(self) -> bool:
        return self.stop
