"""What a model makes of a micro-batch's targets, short of its logits: those are as wide as the vocabulary and are made a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from steelyard_torch.batching import MicroBatch
from steelyard_torch.head import has_separate_head, head_logits, model_inputs
from steelyard_torch.head import target_states as body_states
from steelyard_torch.packing import is_packable

__all__ = ["TargetStates", "target_states", "vocabulary"]


@dataclass(frozen=True, slots=True, eq=False)
class TargetStates:
    """States that predict N targets, and how the model goes on from them."""

    states: torch.Tensor
    """(N, ·)."""
    logits: Callable[[torch.Tensor], torch.Tensor]
    """Logits (n, V) of any rows (n, ·) of the states, in the model's own precision."""
    width: int
    """V."""


def target_states(model: PreTrainedModel, batch: MicroBatch) -> TargetStates:
    """Hidden states before the head, or the logits themselves where a model's head cannot be told from the rest of it."""
    if has_separate_head(model):
        return TargetStates(body_states(model, batch), lambda states: head_logits(model, states), vocabulary(model))
    batch = batch if batch.layout is None or is_packable(model) else batch.padded()
    logits = model(**model_inputs(batch)).logits
    chosen = logits.reshape(-1, logits.shape[-1]).index_select(0, batch.target_positions)
    return TargetStates(chosen, lambda some: some, vocabulary(model))


def vocabulary(model: PreTrainedModel) -> int:
    """How many logits the model has; its tokenizer may know fewer tokens."""
    return int(model.config.get_text_config().vocab_size)
