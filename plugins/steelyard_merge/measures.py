"""What a merge tells of its models: how far apart they are, and how often their changes disagree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["DENSITY", "Distances", "Signs", "kept_share"]

DENSITY = 0.2
"""The share that TIES keeps by default (Yadav et al., arXiv 2306.01708, section 5)."""


def kept_share(density: float | None) -> float:
    return DENSITY if density is None else density


class Distances:
    """Distances between all models, relative to the length of the first: ‖θ_i - θ_j‖ / ‖θ_0‖ over all weights."""

    def __init__(self, first: str, others: Sequence[str]):
        self._names = [first, *others]
        self._apart = dict.fromkeys(itertools.combinations(self._names, 2), 0.0)
        self._square = 0.0

    def add(self, pieces: Mapping[str, Tensor]) -> None:
        """Pieces of one tensor, the same of every model, in float64."""
        self._square += float(pieces[self._names[0]].square().sum())
        for one, two in self._apart:
            self._apart[one, two] += float((pieces[one] - pieces[two]).square().sum())

    @property
    def norm(self) -> float:
        """‖θ_0‖."""
        return math.sqrt(self._square)

    def largest(self) -> float:
        """The distance of the two that are furthest apart."""
        return max(self._relative(square) for square in self._apart.values())

    def same(self, names: Sequence[str]) -> bool:
        """Whether all of these have the same weights."""
        return not any(square for pair, square in self._apart.items() if set(pair) <= set(names))

    def twins(self) -> list[tuple[str, str]]:
        """Pairs with the same weights."""
        return [pair for pair, square in self._apart.items() if not square]

    def to_json(self) -> dict[str, float]:
        return {f"{one} – {two}": self._relative(square) for (one, two), square in self._apart.items()}

    def _relative(self, square: float) -> float:
        return math.sqrt(square) / max(self.norm, 1e-30)


class Signs:
    """How TIES' trimmed changes meet: counts of elements."""

    def __init__(self) -> None:
        self._kept = self._shared = self._conflicts = self._all = 0

    def add(self, kept: Tensor, conflict: Tensor) -> None:
        """``kept``: how many models changed an element; ``conflict``: where both signs are among them."""
        self._all += kept.numel()
        self._kept += int(torch.count_nonzero(kept))
        self._shared += int(torch.count_nonzero(kept > 1))
        self._conflicts += int(torch.count_nonzero(conflict))

    def metrics(self) -> dict[str, float]:
        """``changed``: share of the weights that any model still changes; ``shared``: of these, that several do; ``sign_conflicts``: of
        the shared ones, that they pull both ways."""
        if not self._all:
            return {}
        return {
            "merge/changed": self._kept / self._all,
            "merge/shared": self._shared / max(self._kept, 1),
            "merge/sign_conflicts": self._conflicts / max(self._shared, 1),
        }
