"""The formulas of merging, on tensors: no files, no names.

All but :func:`angle`, which needs whole tensors, go element by element and take and give float64, so that a tensor is merged in pieces.
Each is written so that what should be one of its inputs is that input to the last bit, wherever the arithmetic allows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["NEARLY_PARALLEL", "PIECE", "angle", "drop_and_rescale", "slerp", "task_arithmetic", "ties", "weighted_sum"]

PIECE = 2**22
"""Elements that are in float64 at one time."""

NEARLY_PARALLEL = 1e-4
"""Sine of an angle below which an arc and its chord are the same in float32: they differ by θ²/8 of the tensor's length at most."""


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``Σ w_i θ_i``; with weights that sum to 1 the average of models, a "soup" (Wortsman et al., arXiv 2203.05482, section 2).

    With such weights it is exact where all tensors agree, and where one weight is 1.
    """
    total = math.fsum(weights)
    if abs(total - 1) > 1e-12:
        return torch.stack([weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]).sum(0)
    # From the heaviest model on: where the others have no weight, or do not differ, nothing is added to it.
    heaviest = max(range(len(weights)), key=lambda i: weights[i])
    merged = tensors[heaviest].clone()
    for i, (tensor, weight) in enumerate(zip(tensors, weights, strict=True)):
        if i != heaviest and weight != 0:
            merged += weight * (tensor - tensors[heaviest])
    return merged


def angle(first: Tensor, second: Tensor) -> float:
    """The angle between two tensors as vectors, in radians from 0 to π; 0 where one of them is zero.

    ``2 atan2(‖a/‖a‖ - b/‖b‖‖, ‖a/‖a‖ + b/‖b‖‖)``, which keeps its digits at small angles, where an arc cosine loses half of them.
    """
    pieces = list(zip(torch.split(first.reshape(-1), PIECE), torch.split(second.reshape(-1), PIECE), strict=True))
    lengths = [math.sqrt(sum(float(pair[side].double().square().sum()) for pair in pieces)) for side in (0, 1)]
    if 0 in lengths:
        return 0.0
    apart = together = 0.0
    for pair in pieces:
        one, two = (part.double() / length for part, length in zip(pair, lengths, strict=True))
        apart += float((one - two).square().sum())
        together += float((one + two).square().sum())
    return 2 * math.atan2(math.sqrt(apart), math.sqrt(together))


def slerp(first: Tensor, second: Tensor, t: float, theta: float) -> Tensor:
    """``sin((1-t)θ)/sin θ · a + sin(tθ)/sin θ · b`` (Shoemake, SIGGRAPH 1985, section 3.3), with the angle θ between the whole tensors.

    Linear where they are nearly parallel or opposite (:data:`NEARLY_PARALLEL`): there the arc is the chord, or no single one exists.
    """
    if t in (0, 1):
        return (second if t else first).clone()
    if math.sin(theta) < NEARLY_PARALLEL:
        return weighted_sum([first, second], [1 - t, t])
    return (math.sin((1 - t) * theta) * first + math.sin(t * theta) * second) / math.sin(theta)


def task_arithmetic(base: Tensor, tensors: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """``θ_0 + Σ λ_i (θ_i - θ_0)``: task vectors added, or with negative λ taken away (Ilharco et al., arXiv 2212.04089, sections 2–4).

    Computed as ``(1 - Σ λ_i) θ_0 + Σ λ_i θ_i``, so that one model with λ = 1 is that model exactly.
    """
    return weighted_sum([base, *tensors], [1 - math.fsum(scales), *scales])


def drop_and_rescale(base: Tensor, tensor: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """``θ_0 + m ⊙ (θ - θ_0) / (1 - p)`` with m_j = 0 with probability p (DARE: Yu et al., arXiv 2311.03099, equations 1–3)."""
    kept = torch.rand(base.shape, generator=generator, dtype=torch.float64) >= drop
    return torch.where(kept, base + (tensor - base) / (1 - drop), base)


def ties(
    base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], scale: float, thresholds: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Trim, elect sign, disjoint merge (Yadav et al., arXiv 2306.01708, section 4.2, algorithm 1).

    Of the changes ``τ_i = θ_i - θ_0`` those of a magnitude (in float32) below ``thresholds[i]`` count as none; the sign of
    ``Σ w_i τ_i`` is elected; of what has that sign the weighted mean is taken, times ``scale`` (λ).

    Returns:
        the merged tensor; how many models kept a change, elementwise; where the kept changes have both signs.
    """
    changes = [tensor - base for tensor in tensors]
    kept = [(change.abs().float() >= bound) & (change != 0) for change, bound in zip(changes, thresholds, strict=True)]
    trimmed = [torch.where(mask, change, 0.0) for mask, change in zip(kept, changes, strict=True)]
    elected = torch.stack([weight * change for weight, change in zip(weights, trimmed, strict=True)]).sum(0).sign()
    mass, mean = torch.zeros_like(base), torch.zeros_like(base)
    for mask, change, tensor, weight in zip(kept, changes, tensors, weights, strict=True):
        share = weight * (mask & (change.sign() == elected)).double()
        mass += share
        mean += share * tensor
    # Over θ and not over τ, so that one model kept whole is that model exactly.
    chosen = mass > 0
    merged = torch.where(chosen, (1 - scale) * base + scale * mean / torch.where(chosen, mass, 1.0), base)
    positive = torch.stack([change > 0 for change in trimmed]).any(0)
    negative = torch.stack([change < 0 for change in trimmed]).any(0)
    return merged, torch.stack(kept).sum(0), positive & negative
