"""Student and teacher held against each other at a micro-batch's targets.

Logits of either model are as wide as the vocabulary. They are made for a few targets at a time and again in the backward pass, so that
what is kept is the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from steelyard_distill.config import SAMPLED, DistillConfig
from steelyard_distill.divergences import TopK, log_probabilities, sampled_reverse_kl, token_divergences, top_k_divergences
from steelyard_distill.states import TargetStates, target_states
from steelyard_torch.batching import MicroBatch

__all__ = ["Compared", "Signal", "bind_compare", "compare", "compare_states"]

Signal = TargetStates | TopK | torch.Tensor
"""What a teacher says of N targets: its states, from which whole distributions follow; its most probable tokens; or no more than the
targets' log-probabilities (N,), at the divergence's temperature."""

_MOST_LOGITS = 2**25
_BOUND = "compare_targets"


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """Of N targets, in their order; all (N,), in nats."""

    divergence: torch.Tensor
    """With gradient to the student."""
    cross_entropy: torch.Tensor
    """The student's −log Q(y) at temperature 1, with gradient."""
    teacher_cross_entropy: torch.Tensor
    """The teacher's; from whole distributions at temperature 1, else at the divergence's."""
    agreement: torch.Tensor | None
    """1 where both models' first choices are the same token; None where the teacher's is not known."""


def compare(model: PreTrainedModel, batch: MicroBatch, teacher: Signal, config: DistillConfig) -> Compared:
    """Divergence and measures at each target of the batch, with gradient to the student."""
    run = getattr(model, _BOUND, None)
    found = _compare(model, batch, teacher, config) if run is None else run(batch, teacher, config)
    return Compared(*found)


def bind_compare(model: PreTrainedModel) -> None:
    """Make a forward pass of its own of :func:`compare` on a model that shards its weights, so that they are gathered for the head, too."""
    if isinstance(model, FSDPModule):
        setattr(model, _BOUND, MethodType(_compare, model))
        register_fsdp_forward_method(model, _BOUND)


def _compare(model: Any, batch: MicroBatch, teacher: Signal, config: DistillConfig) -> tuple[torch.Tensor | None, ...]:
    found = compare_states(target_states(model, batch), batch.target_ids, teacher, config)
    return found.divergence, found.cross_entropy, found.teacher_cross_entropy, found.agreement


def compare_states(
    student: TargetStates, targets: torch.Tensor, teacher: Signal, config: DistillConfig, *, max_logits: int = _MOST_LOGITS
) -> Compared:
    """Divergence and measures at each target, with gradient to the student's states and head only.

    Args:
        targets: (N,) token ids.
        max_logits: of both models together, worked on at once.
    """
    width = student.width + (teacher.width if isinstance(teacher, TargetStates) else 0)
    size = max(1, max_logits // width)
    parts = list(zip(torch.split(student.states, size), torch.split(targets, size), _split(teacher, size), strict=True))
    if len(parts) == 1 or not torch.is_grad_enabled():
        done = [_measure(student, *part, config) for part in parts]
    else:
        done = [checkpoint(_measure, student, *part, config, use_reentrant=False) for part in parts]
    agreement = None if isinstance(teacher, torch.Tensor) else torch.cat([part[3] for part in done])
    divergence, cross_entropy, theirs = (torch.cat([part[column] for part in done]) for column in range(3))
    return Compared(divergence, cross_entropy, theirs, agreement)


def _measure(student: TargetStates, states: torch.Tensor, ids: torch.Tensor, said: Signal, config: DistillConfig) -> Any:
    """The fields of :class:`Compared` for a few targets."""
    logits = student.logits(states)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    cross_entropy = F.cross_entropy(logits, ids, reduction="none")
    if isinstance(said, torch.Tensor):
        return sampled_reverse_kl(_chosen(logits, ids, config.temperature), said), cross_entropy, -said, None
    choice = logits.detach().argmax(dim=-1)
    if isinstance(said, TopK):
        assert config.divergence != SAMPLED
        divergence = top_k_divergences(
            logits, said, divergence=config.divergence, beta=config.beta, temperature=config.temperature, tail=config.tail or "bucket"
        )
        return divergence, cross_entropy, -said.target, (choice == said.ids[:, 0]).to(logits.dtype)
    with torch.no_grad():
        theirs = said.logits(said.states).to(logits.dtype)
        teacher_cross_entropy = F.cross_entropy(theirs, ids, reduction="none")
        agreement = (choice == theirs.argmax(dim=-1)).to(logits.dtype)
    if config.divergence == SAMPLED:
        divergence = sampled_reverse_kl(_chosen(logits, ids, config.temperature), _chosen(theirs, ids, config.temperature))
    else:
        divergence = token_divergences(logits, theirs, divergence=config.divergence, beta=config.beta, temperature=config.temperature)
    return divergence, cross_entropy, teacher_cross_entropy, agreement


def _chosen(logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    """(n,) log-probabilities of the tokens ``ids``."""
    return log_probabilities(logits, temperature).gather(1, ids[:, None])[:, 0]


def _split(said: Signal, size: int) -> Sequence[Signal]:
    if isinstance(said, torch.Tensor):
        return torch.split(said, size)
    if isinstance(said, TopK):
        columns = [torch.split(getattr(said, field.name), size) for field in fields(said)]
        return [TopK(*row) for row in zip(*columns, strict=True)]
    return [TargetStates(states, said.logits, said.width) for states in torch.split(said.states, size)]
