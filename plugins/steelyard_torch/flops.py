"""Floating-point operations that training a dense transformer needs, for model FLOP utilisation (``perf/mfu``).

A product of matrices takes 2 FLOPs a weight and token. A forward pass makes one product with each of the body's matrices, with the LM head
only where a token is trained, and two in attention over each pair of a token and one that it sees (itself and those before it, in a
sliding window those inside; PaLM, arXiv 2204.02311, appendix B, counts every pair). The backward pass makes one more product for the
gradient of what goes in, one for that of the weights if they are trained, and four in attention; it goes no further down than the first
layer with something to train. Grouped queries change the weights of keys and values, not the pairs. Padding, recomputation and all that is
no product of matrices are left out; what rows share counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from steelyard_torch.batching import MicroBatch
from steelyard_torch.freezing import stored_numel
from steelyard_torch.head import output_layer

__all__ = ["batch_flops", "mfu", "training_flops"]


def batch_flops(model: PreTrainedModel, batch: MicroBatch, *, backward: bool = True) -> float | None:
    """FLOPs that a micro-batch's tokens, pairs and targets need.

    Args:
        backward: ``False`` for scoring only.

    Returns:
        ``None`` for an architecture this count does not fit (mixtures of experts, other than transformers).
    """
    facts = _facts(model)
    if facts is None:
        return None
    if batch.layout is None:
        segments = [(length, 0) for length in batch.lengths]
    else:
        segments = [(segment.length, segment.prefix_length) for segment in batch.layout.segments]
    # A rank without rows of its own works on another's, which is no use to anyone.
    tokens = sum(length for length, _ in segments) if batch.order else 0
    pairs = [_pairs(segments, window) if batch.order else 0 for window in facts.windows]
    return facts.flops(tokens=tokens, pairs=pairs, targets=len(batch.target_ids), backward=backward)


def training_flops(model: PreTrainedModel, *, tokens: int, trained_tokens: int, mean_length: float, backward: bool = True) -> float | None:
    """FLOPs that training on so many tokens needs, with nothing shared; an estimate from totals, where :func:`batch_flops` counts.

    Args:
        tokens: without padding.
        trained_tokens: those the LM head is applied to.
        mean_length: of the sequences, weighted by tokens; a token sees half of it.
        backward: ``False`` for scoring only.

    Returns:
        As :func:`batch_flops`.
    """
    facts = _facts(model)
    if facts is None:
        return None
    pairs = [tokens * (mean_length / 2 if window is None else min(mean_length / 2, window)) for window in facts.windows]
    return facts.flops(tokens=tokens, pairs=pairs, targets=trained_tokens, backward=backward)


def mfu(flops: float | None, seconds: float, *, peak_flops: float | None) -> float | None:
    """Share of the hardware's peak that useful work took; ``None``, and not reported, where either number is unknown.

    Args:
        flops: done in ``seconds``.
        peak_flops: a second, of all devices used, at the precision used.
    """
    return flops / seconds / peak_flops if flops is not None and peak_flops and seconds > 0 else None


@dataclass(frozen=True, slots=True)
class _Facts:
    """Numbers of a model."""

    body: int
    """Weights in the matrices of the layers."""
    trained_body: int
    passed_body: int
    """Of them, those that the backward pass goes through."""
    first: int
    """The first layer that it goes through."""
    head: int
    trained_head: int
    pair: float
    """FLOPs of a forward pass for a pair of tokens in one layer: two products of a head's width, for each query head."""
    windows: list[int | None]
    """Each layer's sliding window."""

    def flops(self, *, tokens: float, pairs: Sequence[float], targets: int, backward: bool) -> float:
        """``pairs`` are those of each layer."""
        forward = 2.0 * self.body * tokens + 2.0 * self.head * targets + self.pair * sum(pairs)
        if not backward:
            return forward
        weights = 2.0 * self.trained_body * tokens + 2.0 * self.trained_head * targets
        inputs = 2.0 * self.passed_body * tokens + (2.0 * self.head * targets if self.first < len(pairs) else 0.0)
        return forward + weights + inputs + 2 * self.pair * sum(pairs[self.first :])


def _facts(model: PreTrainedModel) -> _Facts | None:
    config = model.config.get_text_config()
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    head = output_layer(model)
    experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    if layers is None or heads is None or head is None or experts:
        return None
    outside = {id(head.weight)}
    outside |= {id(p) for module in model.modules() if isinstance(module, torch.nn.Embedding) for p in module.parameters(recurse=False)}
    matrices = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in outside]
    first, below = _first_trained(model, layers)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return _Facts(
        body=sum(stored_numel(p) for p in matrices),
        trained_body=sum(p.numel() for p in matrices if p.requires_grad),
        passed_body=sum(stored_numel(p) for p in matrices if id(p) not in below),
        first=first,
        head=head.weight.numel(),
        trained_head=head.weight.numel() if head.weight.requires_grad else 0,
        pair=4.0 * heads * head_dim,
        windows=_windows(model, layers),
    )


def _first_trained(model: PreTrainedModel, layers: int) -> tuple[int, set[int]]:
    """The first layer that the backward pass has to reach, ``layers`` where only what is behind them is trained; and the ids of the
    parameters in front of it."""
    stacks = (module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == layers)
    stack = next(stacks, None)
    embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    if stack is None or any(p.requires_grad for module in embeddings for p in module.parameters()):
        return 0, set()
    trained = (i for i, layer in enumerate(stack) if any(p.requires_grad for p in layer.parameters()))
    first = next(trained, layers)
    return first, {id(p) for layer in stack[:first] for p in layer.parameters()}


def _windows(model: PreTrainedModel, layers: int) -> list[int | None]:
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) is not False else None
    kinds = getattr(config, "layer_types", None) or (["sliding_attention"] * layers)
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _pairs(segments: Iterable[tuple[int, int]], window: int | None) -> int:
    """Pairs of a query and a key it sees, over segments of a length behind a prefix."""
    total = 0
    for length, prefix in segments:
        if window is None or prefix + length <= window:
            total += prefix * length + length * (length + 1) // 2
        else:
            total += sum(min(prefix + i + 1, window) for i in range(length))
    return total
