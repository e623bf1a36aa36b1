"""Floating-point operations of training a dense transformer, for model FLOP utilisation (``perf/mfu``)."""

from __future__ import annotations

from transformers import PreTrainedModel

from steelyard_torch.head import output_layer

__all__ = ["mfu", "training_flops"]


def training_flops(model: PreTrainedModel, *, tokens: int, trained_tokens: int, mean_length: float, backward: bool = True) -> float | None:
    """FLOPs that the algorithm needs for ``tokens`` tokens; recomputation and padding are not counted.

    A forward pass takes 2 FLOPs a weight and token in the body's matrices, 2 a weight and *trained* token in the LM head, and
    2·layers·heads·head_dim·length a token in attention (two products over half the positions, those before it, on average; PaLM,
    arXiv 2204.02311, appendix B, counts all positions). The backward pass takes twice the forward.

    Args:
        tokens: without padding.
        trained_tokens: those the LM head is applied to.
        mean_length: of the sequences, weighted by tokens.
        backward: ``False`` for scoring only.

    Returns:
        FLOPs, or ``None`` for an architecture this count does not fit (mixtures of experts, other than transformers).
    """
    config = model.config.get_text_config()
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    head = output_layer(model)
    experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    if layers is None or heads is None or head is None or experts:
        return None
    outside = {id(parameter) for module in (head, model.get_input_embeddings()) for parameter in module.parameters()}
    body = sum(p.numel() for p in model.parameters() if p.ndim >= 2 and id(p) not in outside)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 2.0 * layers * heads * head_dim * mean_length
    forward: float = (2.0 * body + attention) * tokens + 2.0 * head.weight.numel() * trained_tokens
    return forward * 3 if backward else forward


def mfu(flops: float | None, seconds: float, *, peak_flops: float | None) -> float | None:
    """Share of the hardware's peak that useful work took; ``None``, and not reported, where either number is unknown.

    Args:
        flops: done in ``seconds``.
        peak_flops: a second, of all devices used, at the precision used.
    """
    return flops / seconds / peak_flops if flops is not None and peak_flops and seconds > 0 else None
