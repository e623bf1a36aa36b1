"""Student and teacher held against each other at a micro-batch's targets.

Logits of either model are as wide as the vocabulary. They are made for a few targets at a time, and what the loss's gradient needs of them
is taken at once, since the weight of every target is known beforehand: no logits are kept, and none are made a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import PreTrainedModel

from steelyard_distill.config import DistillConfig
from steelyard_distill.divergences import (
    TopK,
    divergence_and_slope,
    log_probabilities,
    sampled_reverse_kl,
    top_k_divergences,
)
from steelyard_distill.states import TargetStates, target_states
from steelyard_torch.batching import MicroBatch

__all__ = ["Compared", "Signal", "bind_compare", "compare", "compare_states"]

Signal = TargetStates | TopK | torch.Tensor
"""What a teacher says of N targets: its states, from which whole distributions follow; its most probable tokens; or no more than the
targets' log-probabilities (N,), at the divergence's temperature."""

_MOST_LOGITS = 2**25
_BOUND = "compare_targets"


class Compared(NamedTuple):
    """Of N targets; all but the loss (N,), in their order, in nats and without gradient."""

    loss: torch.Tensor
    """Scalar: Σ weight · (coefficient · divergence + coefficient · cross-entropy), with gradient to the student."""
    divergence: torch.Tensor
    cross_entropy: torch.Tensor
    """The student's −log Q(y) at temperature 1."""
    teacher_cross_entropy: torch.Tensor
    """The teacher's; from whole distributions at temperature 1, else at the divergence's."""
    agreement: torch.Tensor | None
    """1 where both models' first choices are the same token; None where the teacher's is not known."""


def compare(
    model: PreTrainedModel, batch: MicroBatch, teacher: Signal, config: DistillConfig, *, weights: torch.Tensor, ce_coefficient: float
) -> Compared:
    """The loss of a micro-batch and its measures.

    Args:
        weights: (N,) what a target's loss counts in the step's.
        ce_coefficient: in place of the configuration's, which is for given conversations.
    """
    run = getattr(model, _BOUND, None)
    arguments = (batch, teacher, config, weights, ce_coefficient)
    return Compared(*(_compare(model, *arguments) if run is None else run(*arguments)))


def bind_compare(model: PreTrainedModel) -> None:
    """Make a forward pass of its own of :func:`compare` on a model that shards its weights, so that they are gathered for the head, too."""
    if isinstance(model, FSDPModule):
        setattr(model, _BOUND, MethodType(_compare, model))
        register_fsdp_forward_method(model, _BOUND)


def _compare(
    model: Any, batch: MicroBatch, teacher: Signal, config: DistillConfig, weights: torch.Tensor, ce_coefficient: float
) -> tuple[torch.Tensor | None, ...]:
    student = target_states(model, batch)
    return tuple(compare_states(student, batch.target_ids, teacher, config, weights=weights, ce_coefficient=ce_coefficient))


def compare_states(
    student: TargetStates,
    targets: torch.Tensor,
    teacher: Signal,
    config: DistillConfig,
    *,
    weights: torch.Tensor,
    ce_coefficient: float = 0.0,
    max_logits: int = _MOST_LOGITS,
) -> Compared:
    """:func:`compare` behind the student's body, with gradient to its states and its head's parameters.

    Args:
        targets: (N,) token ids.
        max_logits: of both models together, worked on at once.
    """
    width = student.width + (teacher.width if isinstance(teacher, TargetStates) else 0)
    size = max(1, max_logits // width)
    plan = _Plan(student, targets, teacher, config, weights, ce_coefficient, size)
    loss, divergence, cross_entropy, theirs, agreement = _Comparison.apply(plan, student.states, *student.parameters)  # type: ignore[no-untyped-call]
    return Compared(loss, divergence, cross_entropy, theirs, None if isinstance(teacher, torch.Tensor) else agreement)


class _Plan(NamedTuple):
    """The arguments of :func:`compare_states`, and how many targets are worked on at once."""

    student: TargetStates
    targets: torch.Tensor
    teacher: Signal
    config: DistillConfig
    weights: torch.Tensor
    ce_coefficient: float
    size: int


class _Comparison(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, states: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wants = ctx.needs_input_grad[1:]
        inputs = (states, *parameters)
        gradients = [torch.zeros_like(one) if wanted else None for one, wanted in zip(inputs, wants, strict=True)]
        said: list[tuple[torch.Tensor, ...]] = []
        parts = zip(
            torch.split(states, plan.size),
            torch.split(plan.targets, plan.size),
            torch.split(plan.weights, plan.size),
            _split(plan.teacher, plan.size),
            strict=True,
        )
        for number, (some, ids, weights, teacher) in enumerate(parts):
            own = some.detach().requires_grad_(wants[0])
            with torch.set_grad_enabled(any(wants)):
                logits = plan.student.logits(own)
            measures, slope = _measure(logits.detach(), ids, teacher, plan, weights)
            said.append(measures)
            if any(wants):
                wanted = [one for one, want in zip((own, *parameters), wants, strict=True) if want]
                found = iter(torch.autograd.grad(logits, wanted, slope.to(logits.dtype)))
                for place, total in enumerate(gradients):
                    if total is not None and place == 0:
                        total[number * plan.size : number * plan.size + len(some)] = next(found)
                    elif total is not None:
                        total += next(found)
        ctx.gradients = gradients
        divergence, cross_entropy, theirs, agreement = (torch.cat(column) for column in zip(*said, strict=True))
        loss = (plan.weights * (plan.config.divergence_coefficient * divergence + plan.ce_coefficient * cross_entropy)).sum()
        ctx.mark_non_differentiable(divergence, cross_entropy, theirs, agreement)
        return loss, divergence, cross_entropy, theirs, agreement

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        # Scaled in place, as the head's may be gigabytes: for one backward pass, as with any graph that is not retained.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of a comparison were handed out already; compare again for another backward pass")
        return (None, *(None if one is None else one.mul_(grad) for one in gradients))


def _measure(
    logits: torch.Tensor, ids: torch.Tensor, said: Signal, plan: _Plan, weights: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """The measures of :class:`Compared` for a few targets, and the gradient of their loss by the student's logits, (n, V)."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    config, choice = plan.config, logits.argmax(dim=-1)
    student = log_probabilities(logits, 1.0)
    cross_entropy = -student.gather(1, ids[:, None])[:, 0]
    if isinstance(said, TargetStates):
        with torch.no_grad():
            theirs = said.logits(said.states).to(logits.dtype)
        teacher = log_probabilities(theirs, 1.0)
        others = -teacher.gather(1, ids[:, None])[:, 0], (choice == theirs.argmax(dim=-1)).to(logits.dtype)
        if config.divergence == "sampled_reverse_kl":
            divergence, slope = _known(logits, ids, theirs, config)
        else:
            width = min(logits.shape[1], theirs.shape[1])
            if config.temperature == 1 and logits.shape == theirs.shape:
                pair = (student, teacher)
            else:
                pair = (log_probabilities(logits[:, :width], config.temperature), log_probabilities(theirs[:, :width], config.temperature))
            divergence, slope = divergence_and_slope(*pair, divergence=config.divergence, beta=config.beta)
            slope = slope if config.temperature == 1 else slope.div_(config.temperature)
    else:
        others = (-said.target, (choice == said.ids[:, 0]).to(logits.dtype)) if isinstance(said, TopK) else (-said, torch.zeros_like(said))
        divergence, slope = _known(logits, ids, said, config)
    slope.mul_((config.divergence_coefficient * weights)[:, None])
    if slope.shape[1] < logits.shape[1]:
        slope = F.pad(slope, (0, logits.shape[1] - slope.shape[1]))
    if plan.ce_coefficient:
        factor = (plan.ce_coefficient * weights)[:, None].to(slope.dtype)
        slope.add_(student.exp_().mul_(factor))
        # Not scatter_add: each row has one place, and there are devices where adding by index has no fixed order.
        slope[torch.arange(len(ids), device=ids.device), ids] -= factor[:, 0]
    return (divergence, cross_entropy, *others), slope


def _known(logits: torch.Tensor, ids: torch.Tensor, said: TopK | torch.Tensor, config: DistillConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The divergence, and its slope by the logits: from the teacher's most probable tokens, or at the sampled token from the teacher's
    logits or that token's log-probability."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        if isinstance(said, TopK):
            assert config.divergence != "sampled_reverse_kl"
            keys: dict[str, Any] = {"divergence": config.divergence, "beta": config.beta, "temperature": config.temperature}
            divergence = top_k_divergences(leaf, said, tail=config.tail or "bucket", **keys)
        else:
            teacher = said if said.dim() == 1 else _chosen(said, ids, config.temperature)
            divergence = sampled_reverse_kl(_chosen(leaf, ids, config.temperature), teacher)
        (slope,) = torch.autograd.grad(divergence.sum(), leaf)
    return divergence.detach(), slope


def _chosen(logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    """(n,) log-probabilities of the tokens ``ids``."""
    return log_probabilities(logits, temperature).gather(1, ids[:, None])[:, 0]


def _split(said: Signal, size: int) -> Sequence[Signal]:
    if isinstance(said, torch.Tensor):
        return torch.split(said, size)
    if isinstance(said, TopK):
        columns = [torch.split(column, size) for column in said.columns]
        return [TopK(*row, width=said.width) for row in zip(*columns, strict=True)]
    return [TargetStates(states, said.logits, said.width) for states in torch.split(said.states, size)]
