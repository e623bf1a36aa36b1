"""Logits where a token is trained, and nowhere else."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedModel

from steelyard_torch.batching import MicroBatch

__all__ = ["target_logits"]


def target_logits(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """(N, V) logits that predict the batch's N targets, in row-major order, in the model's own precision.

    The model runs its own forward pass; on the way into its LM head the positions without a target are left out, so that whatever an
    architecture does to its logits is done here too. A head that is not given all positions in their shape gets what it is given, and
    the selection follows.
    """
    selected = False

    def select(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal selected
        if not args or args[0].shape[:-1] != batch.input_ids.shape:
            return None
        selected = True
        hidden = args[0].reshape(-1, args[0].shape[-1]).index_select(0, batch.target_positions)
        return (hidden[None], *args[1:])

    head = cast("torch.nn.Module | None", model.get_output_embeddings())  # type: ignore[no-untyped-call]
    handle = head.register_forward_pre_hook(select) if head is not None else None
    # Without padding, attention may take its faster causal path.
    mask = None if batch.tokens == batch.padded_tokens else batch.attention_mask
    try:
        logits: torch.Tensor = model(input_ids=batch.input_ids, attention_mask=mask, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    flat = logits.reshape(-1, logits.shape[-1])
    return flat if selected else flat.index_select(0, batch.target_positions)
