"""One frozen event for each lifecycle hook, so that fields can be added without breaking an implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["GateEvent", "MetricsReported", "RoundDecided", "RunFinished", "RunStarted", "StepFinished", "StepStarted"]


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run begins, or is resumed."""

    run_dir: Path
    name: str
    resolved: Mapping[str, Any]
    """The resolved recipe."""
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class StepStarted:
    run_dir: Path
    step: str
    kind: str
    key: str


@dataclass(frozen=True, slots=True)
class StepFinished:
    """``status`` is ``done``, ``reused``, ``failed`` or ``interrupted``; ``artifact`` is set for the first two."""

    run_dir: Path
    step: str
    kind: str
    key: str
    status: str
    seconds: float
    artifact: Path | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class MetricsReported:
    run_dir: Path
    step: str
    optimiser_step: int | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class GateEvent:
    """A gate is about to decide: the folders it compares and the verdict its policy reached."""

    run_dir: Path | None
    round: str
    champion: Path
    challenger: Path
    verdict: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RoundDecided:
    run_dir: Path
    round: str
    decision: str
    sentence: str
    verdict: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunFinished:
    """``exit_code`` is the command's; ``champion`` the folder of the model that holds the title."""

    run_dir: Path
    exit_code: int
    champion: Path | None = None
    promotions: int = 0
