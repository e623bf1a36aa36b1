"""The largest changes of a model: the magnitude from which on a change is among them, found without holding the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["magnitude_threshold"]

_LOW_BITS = 16
_BINS = 1 << (31 - _LOW_BITS)


def magnitude_threshold(pieces: Callable[[], Iterable[Tensor]], keep: int) -> float:
    """The ``keep``-th largest magnitude, exactly, of what ``pieces()`` gives; it is called twice and must give the same each time.

    Non-negative float32 numbers are in the order of their bits. The first pass counts them by the upper half of the bits, the second by
    the lower half of those that share the upper half of the one sought.

    Args:
        pieces: tensors of magnitudes, float32, no NaN.
        keep: at least 1, at most the number of all elements.
    """
    upper, left = _find(_counts(bits >> _LOW_BITS for bits in map(_bits, pieces())), keep)
    within = (bits[bits >> _LOW_BITS == upper] & ((1 << _LOW_BITS) - 1) for bits in map(_bits, pieces()))
    lower, _ = _find(_counts(within), left)
    return float(torch.tensor([(upper << _LOW_BITS) | lower], dtype=torch.int32).view(torch.float32))


def _bits(piece: Tensor) -> Tensor:
    return piece.contiguous().view(torch.int32).flatten()


def _counts(pieces: Iterable[Tensor]) -> Tensor:
    counts = torch.zeros(max(_BINS, 1 << _LOW_BITS), dtype=torch.int64)
    for piece in pieces:
        counts += torch.bincount(piece, minlength=len(counts))
    return counts


def _find(counts: Tensor, keep: int) -> tuple[int, int]:
    """The bin that holds the ``keep``-th largest, and which one it is there, from 1."""
    at_least = counts.flip(0).cumsum(0).flip(0)
    index = int((at_least >= keep).nonzero()[-1])
    above = int(at_least[index] - counts[index])
    return index, keep - above
