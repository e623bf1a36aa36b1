"""What a model makes of a micro-batch's targets, short of its logits: those are as wide as the vocabulary and are made a few at a time."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import AutoConfig, PreTrainedModel

from steelyard.errors import ModelError
from steelyard_torch.batching import MicroBatch
from steelyard_torch.head import has_separate_head, head_logits, model_inputs, output_layer
from steelyard_torch.head import target_states as body_states
from steelyard_torch.packing import is_packable
from steelyard_torch.sharding import is_sharded, whole

__all__ = ["TargetStates", "frozen_states", "target_states", "vocabulary", "vocabulary_of"]


@dataclass(frozen=True, slots=True, eq=False)
class TargetStates:
    """States that predict N targets, and how the model goes on from them."""

    states: torch.Tensor
    """(N, ·)."""
    logits: Callable[[torch.Tensor], torch.Tensor]
    """Logits (n, V) of any rows (n, ·) of the states, in the model's own precision."""
    width: int
    """V."""
    parameters: tuple[torch.Tensor, ...] = ()
    """What ``logits`` computes with and is trained."""


def target_states(model: PreTrainedModel, batch: MicroBatch) -> TargetStates:
    """Hidden states before the head, or the logits themselves where a model's head cannot be told from the rest of it."""
    if has_separate_head(model):
        head = output_layer(model)
        trained = () if head is None else tuple(one for one in head.parameters() if one.requires_grad)
        return TargetStates(body_states(model, batch), lambda states: head_logits(model, states), vocabulary(model), trained)
    batch = batch if batch.layout is None or is_packable(model) else batch.padded()
    logits = model(**model_inputs(batch)).logits
    chosen = logits.reshape(-1, logits.shape[-1]).index_select(0, batch.target_positions)
    return TargetStates(chosen, lambda some: some, vocabulary(model))


def frozen_states(model: PreTrainedModel, device: torch.device) -> Callable[[MicroBatch], TargetStates]:
    """:func:`target_states` of a model that is not trained, without gradient.

    Weights that are sharded are there during a forward pass only, and the head is needed behind it, beside the student's: it is gathered
    here, once, and every rank keeps it whole.

    Raises:
        ModelError: a sharded model whose head cannot be told from the rest of it.
    """
    if not is_sharded(model):
        return torch.no_grad()(lambda batch: target_states(model, batch))
    head = output_layer(model)
    if head is None or not has_separate_head(model):
        raise ModelError(f"{type(model).__name__} has no head of its own, so it cannot be a sharded teacher; set `sharding.shard: false`")
    weight = whole(head.weight.detach()).to(device)
    bias = None if head.bias is None else whole(head.bias.detach()).to(device)
    own = _Linear(weight, bias)
    model.body_states = types.MethodType(body_states, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "body_states")

    @torch.no_grad()
    def ask(batch: MicroBatch) -> TargetStates:
        states: torch.Tensor = cast("Any", model).body_states(batch)
        return TargetStates(states, lambda states: head_logits(model, states, own), vocabulary(model))

    return ask


class _Linear(torch.nn.Module):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, self.weight, self.bias)


def vocabulary_of(folder: Path, *, allow_remote_code: bool) -> int:
    """:func:`vocabulary` of a model's folder."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=allow_remote_code)
    return int(config.get_text_config().vocab_size)


def vocabulary(model: PreTrainedModel) -> int:
    """How many logits the model has; its tokenizer may know fewer tokens."""
    return int(model.config.get_text_config().vocab_size)
