"""Reward models: how often they were right on the pairs that were held out, and whether their certainty means what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steelyard.report.evaluations import finite
from steelyard.report.record import RunRecord

__all__ = ["CertaintyBin", "HeldOut", "held_out"]


@dataclass(frozen=True)
class CertaintyBin:
    """Pairs of which the model was about equally certain; ``low`` to ``high`` are probabilities."""

    low: float
    high: float
    pairs: int
    certainty: float | None
    accuracy: float | None


@dataclass(frozen=True)
class HeldOut:
    """A reward model on the pairs that it was not trained on."""

    step: str
    pairs: int
    accuracy: float | None
    log_loss: float | None
    brier: float | None
    ece: float | None
    """Expected calibration error."""
    bins: tuple[CertaintyBin, ...]


def held_out(record: RunRecord) -> list[HeldOut]:
    """Every committed stage that measured itself so, in order."""
    found = []
    for step in record.of_kind("stage"):
        facts = record.json(record.artifact(step.key) / "stage.json").get("facts")
        told = facts.get("heldout") if isinstance(facts, Mapping) else None
        if isinstance(told, Mapping) and _count(told.get("pairs")):
            bins = tuple(_bin(one) for one in told.get("bins") or () if isinstance(one, Mapping))
            accuracy, log_loss, brier, ece = (finite(told.get(name)) for name in ("accuracy", "log_loss", "brier", "ece"))
            found.append(HeldOut(step.step, _count(told["pairs"]), accuracy, log_loss, brier, ece, bins))
    return found


def _bin(told: Mapping[str, Any]) -> CertaintyBin:
    low, high = finite(told.get("low")) or 0.0, finite(told.get("high")) or 0.0
    return CertaintyBin(low, high, _count(told.get("pairs")), finite(told.get("confidence")), finite(told.get("accuracy")))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
