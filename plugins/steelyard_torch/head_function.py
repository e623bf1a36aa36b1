"""The LM head with its cross-entropy as one differentiable function that keeps little and passes over the logits few times.

For hidden states h (N, H), weights W (V, H), logits z = f(a · (h Wᵀ + b)) with a constant a and an optional soft cap f, and targets y it
gives log softmax(z)[y] and, where asked, the entropy E = −Σ p log p. The logits' gradient, g · (1[y] − p) − g' · p · (log p + E), is
written over the logits in place. No softmax is kept: the logits are, as long as they are few, and else they are computed again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

__all__ = ["HeadOptions", "score_tokens"]


class HeadOptions(NamedTuple):
    """How logits come from the head's products."""

    dtype: torch.dtype
    """Of the matrix products; the rest is float32."""
    scale: float = 1.0
    """a, before the soft cap."""
    softcap: float | None = None
    """c in c · tanh(z / c)."""
    temperature: float = 1.0
    """Divides the logits, behind the soft cap."""
    entropy: bool = False
    chunk: int = 1024
    """Rows whose logits are worked on at once; the fewer, the slower the product for the weights' gradient."""
    kept: int = 0
    """Rows whose logits are kept from the forward to the backward pass."""


def score_tokens(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, options: HeadOptions
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities (N,) of the targets and, where asked, entropies (N,) in nats; float32, with gradient."""
    if not torch.is_grad_enabled():
        options = options._replace(kept=0)
    logprobs, entropy = _Head.apply(hidden, weight, bias, targets, options)  # type: ignore[no-untyped-call]
    return logprobs, entropy if options.entropy else None


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, options: HeadOptions
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.options = options
        count = len(targets)
        logprobs = hidden.new_empty(count, dtype=torch.float32)
        norms = torch.empty_like(logprobs)
        entropy = torch.empty_like(logprobs) if options.entropy else logprobs.new_empty(0)
        kept: list[torch.Tensor] = []
        cast = weight.to(options.dtype)
        for start, end in _chunks(count, options.chunk):
            logits = _logits(hidden[start:end], cast, bias, options)
            norm = torch.logsumexp(logits, dim=-1)
            norms[start:end] = norm
            logprobs[start:end] = logits.gather(1, targets[start:end, None]).squeeze(1) - norm
            if options.entropy:
                entropy[start:end] = norm - _expected(logits, norm)
            if end <= options.kept:
                kept.append(logits)
        ctx.kept = kept
        ctx.save_for_backward(hidden, weight, bias, targets, norms, entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprobs: torch.Tensor | None, grad_entropy: torch.Tensor | None) -> Any:
        hidden, weight, bias, targets, norms, entropy = ctx.saved_tensors
        options: HeadOptions = ctx.options
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight: torch.Tensor | None = None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None
        kept, ctx.kept = list(ctx.kept), []
        cast = weight.to(options.dtype)
        for i, (start, end) in enumerate(_chunks(len(targets), options.chunk)):
            states = hidden[start:end]
            logits = kept[i] if i < len(kept) else _logits(states, cast, bias, options)
            if i < len(kept):
                kept[i] = logits.new_empty(0)
            part = slice(start, end)
            slope = _grad_logits(
                logits,
                targets[part],
                norms[part],
                None if grad_logprobs is None else grad_logprobs[part],
                None if grad_entropy is None else (grad_entropy[part], entropy[part]),
                options,
            )
            if grad_bias is not None:
                grad_bias += slope.sum(dim=0)
            slope = slope.to(options.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = slope @ cast
            if wants_weight:
                grad_weight = _add_product(grad_weight, slope, states.to(options.dtype))
        if wants_weight and grad_weight is None:
            grad_weight = torch.zeros_like(weight)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _chunks(count: int, size: int) -> list[tuple[int, int]]:
    """Of about equal size, none above ``size``."""
    parts = -(-count // size)
    ends = [count * (i + 1) // parts for i in range(parts)]
    return list(zip([0, *ends], ends, strict=False))


def _logits(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, options: HeadOptions) -> torch.Tensor:
    """(n, V) float32, a tensor of its own."""
    logits = F.linear(states.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)).float()
    if options.softcap is not None:
        logits.mul_(options.scale / options.softcap).tanh_().mul_(options.softcap / options.temperature)
    elif options.scale != options.temperature:
        logits.mul_(options.scale / options.temperature)
    return logits


def _expected(logits: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Σ p z (n,)."""
    expected: torch.Tensor = torch.linalg.vecdot(torch.softmax(logits, dim=-1), logits)
    return expected


def _grad_logits(
    logits: torch.Tensor,
    targets: torch.Tensor,
    norms: torch.Tensor,
    grad: torch.Tensor | None,
    grad_entropy: tuple[torch.Tensor, torch.Tensor] | None,
    options: HeadOptions,
) -> torch.Tensor:
    """The gradient of the head's products, in the place of ``logits`` (which it consumes)."""
    slope_of_cap = None
    if options.softcap is not None:
        slope_of_cap = logits.mul(options.temperature / options.softcap).square_().neg_().add_(1)
    weights = torch.zeros_like(norms) if grad is None else grad.neg()
    if grad_entropy is None:
        slope = logits.sub_(norms[:, None]).exp_().mul_(weights[:, None])
    else:
        of_entropy, entropy = grad_entropy
        log_probabilities = logits.sub_(norms[:, None])
        factor = (log_probabilities + entropy[:, None]).mul_(-of_entropy[:, None]).add_(weights[:, None])
        slope = log_probabilities.exp_().mul_(factor)
    if grad is not None:
        slope.scatter_add_(1, targets[:, None], grad[:, None])
    if slope_of_cap is not None:
        slope.mul_(slope_of_cap)
    if options.scale != options.temperature:
        slope.mul_(options.scale / options.temperature)
    return slope


def _add_product(total: torch.Tensor | None, slope: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """total (V, H) float32 plus slopeᵀ states."""
    if total is None:
        return (slope.t() @ states).float()
    if slope.dtype == torch.float32:
        return total.addmm_(slope.t(), states)
    return total.add_(slope.t() @ states)
