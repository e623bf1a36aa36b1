"""How well a reward model orders answers it was not trained on, and whether its differences mean what they say.

Under Bradley–Terry σ(s_a − s_b) is the probability that a is the better answer. Of a pair, the model's prediction is the answer it
scores higher, and its confidence max(p, 1 − p), from 0.5 up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Bin", "Calibration", "calibration"]

_BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs whose confidence lies in (``low``, ``high``]; the lowest bin has its lower end too."""

    low: float
    high: float
    pairs: int
    confidence: float
    """Their mean."""
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """On pairs, each counting once."""

    pairs: int
    accuracy: float
    """Share of pairs whose better answer has the higher score; a tie counts half."""
    log_loss: float
    """Mean of −log σ(s_better − s_worse), in nats; log 2 for a coin toss."""
    brier: float
    """Mean of (1 − σ(s_better − s_worse))² (Brier 1950); 0.25 for a coin toss."""
    ece: float
    """Expected calibration error: mean distance of accuracy from confidence over the bins, weighted by pairs (Guo et al., arXiv
    1706.04599, section 2)."""
    bins: tuple[Bin, ...]
    """Those with a pair."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def calibration(better: npt.NDArray[np.float64], worse: npt.NDArray[np.float64]) -> Calibration:
    """Of pairs' scores, (P,) each, P at least 1."""
    margin = better - worse
    right = (margin > 0) + 0.5 * (margin == 0)
    with np.errstate(over="ignore"):
        confidence = 1 / (1 + np.exp(-np.abs(margin)))
        probability = 1 / (1 + np.exp(-margin))
    edges = np.linspace(0.5, 1.0, _BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, _BINS - 1)
    bins = tuple(
        Bin(float(edges[i]), float(edges[i + 1]), int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean()))
        for i in range(_BINS)
        if (inside := place == i).any()
    )
    return Calibration(
        pairs=len(margin),
        accuracy=float(right.mean()),
        log_loss=float(np.logaddexp(0, -margin).mean()),
        brier=float(((1 - probability) ** 2).mean()),
        ece=float(sum(b.pairs * abs(b.accuracy - b.confidence) for b in bins) / len(margin)),
        bins=bins,
    )
