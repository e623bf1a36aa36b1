"""AdamW with named decay groups, learning-rate schedules, and an optimiser step that non-finite numbers cannot pass."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from steelyard.errors import TrainingError, UsageError
from steelyard_torch.sharding import whole

__all__ = ["NonFiniteGuard", "Schedule", "StepOutcome", "adamw", "learning_rate", "optimiser_step", "warmup_steps"]

Schedule = Literal["linear", "cosine", "constant"]

_LOG = logging.getLogger(__name__)


def adamw(
    model: PreTrainedModel,
    *,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decay_embeddings: bool = False,
) -> torch.optim.AdamW:
    """AdamW in two parameter groups: weight matrices are decayed; norms, biases and other vectors never are.

    Embeddings, and an LM head tied to them, are decayed only with ``decay_embeddings``: decay would pull the rows of rare tokens to zero,
    which get hardly any gradient to hold them.

    Raises:
        TrainingError: no parameter requires a gradient.
    """
    embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    decayed: list[torch.nn.Parameter] = []
    kept: list[torch.nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and (decay_embeddings or id(parameter) not in embeddings)
            (decayed if matrix else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise TrainingError("the model has no parameter that requires a gradient")
    # The fused kernel is several times faster than one launch a tensor, on the CPU as well, and just as deterministic.
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def warmup_steps(total_steps: int, *, ratio: float | None = None, steps: int | None = None) -> int:
    """Warm-up in steps, from a share of all steps (rounded up) or as given.

    Raises:
        UsageError: both are given, or a number out of range.
    """
    if ratio is not None and steps is not None:
        raise UsageError("give the warm-up as a ratio or in steps, not both")
    if ratio is not None and not 0 <= ratio <= 1:
        raise UsageError(f"a warm-up ratio lies between 0 and 1, got {ratio!r}")
    if steps is not None and steps < 0:
        raise UsageError(f"warm-up steps must not be negative, got {steps!r}")
    return min(total_steps, math.ceil(ratio * total_steps) if ratio is not None else steps or 0)


def learning_rate(
    step: int, *, peak: float, schedule: Schedule = "linear", total_steps: int, warmup_steps: int = 0, floor: float = 0.0
) -> float:
    """The learning rate of an update; a pure function, so that resuming needs no scheduler state.

    Update ``step`` = 0 … w−1 of the warm-up gets peak·(step + 1)/w, so the first update is not wasted on a rate of 0. After it, with
    p = (step − w)/(total − w) in [0, 1): ``linear`` 1 − p, ``cosine`` (1 + cos πp)/2, ``constant`` 1; times peak, never below ``floor``.

    Args:
        step: counted from 0.
        peak: the highest rate.
        total_steps: in all; later steps stay at the end value.
        warmup_steps: w.
        floor: the lowest rate after the warm-up.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return max(floor, peak * (1 - progress))
    if schedule == "cosine":
        return max(floor, peak * (1 + math.cos(math.pi * progress)) / 2)
    raise UsageError(f"unknown schedule {schedule!r} (known: linear, cosine, constant)")


@dataclass(slots=True)
class NonFiniteGuard:
    """Counts optimiser steps skipped for a NaN or an infinity; ``limit`` in a row end the training."""

    limit: int = 3
    in_a_row: int = 0
    skipped: int = 0

    def state(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"in_a_row": self.in_a_row, "skipped": self.skipped}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.in_a_row, self.skipped = int(state["in_a_row"]), int(state["skipped"])


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What an optimiser step did."""

    grad_norm: float
    """L2 norm of all gradients before clipping; may be NaN or infinite in a skipped step."""
    skipped: bool = False
    reason: str | None = None


def optimiser_step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    *,
    loss: float,
    lr: float,
    max_grad_norm: float | None,
    guard: NonFiniteGuard,
    step: int,
) -> StepOutcome:
    """Clip, step and zero the gradients; or, where the loss or a gradient is not finite, leave the weights and the moments as they are.

    Clipping does not help there: a NaN norm makes every gradient NaN. Where an earlier update has left weights that are not finite, no
    step to come can be better, and the training ends. (They are looked for when the loss tells of them and, like those that no row has
    used since, before every checkpoint: a look after every update would cost as much as the gradient's norm does.)

    Args:
        loss: of the whole step.
        lr: set on every parameter group.
        max_grad_norm: clip the gradients to this L2 norm; ``None`` only measures it.
        guard: counts skipped steps.
        step: for messages.

    Raises:
        TrainingError: the guard's limit is reached; the message names what was not finite, and the weights are those of the last good
            step. Or it is weights that are not finite.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    grad_norm = norm.item()
    reason = _what_is_not_finite(model, loss, grad_norm)
    if reason is None:
        if max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_grad_norm, norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        guard.in_a_row = 0
    optimizer.zero_grad(set_to_none=True)
    if reason is None:
        return StepOutcome(grad_norm)
    broken = _not_finite((name, parameter.detach()) for name, parameter in model.named_parameters())
    if broken is not None:
        raise TrainingError(
            f"{reason} at step {step} since the weights of {broken} are not finite after the update before; checkpoints hold none of that: "
            "lower lr, or raise adam_eps, and resume"
        )
    guard.in_a_row += 1
    guard.skipped += 1
    if guard.in_a_row >= guard.limit:
        raise TrainingError(
            f"{reason} at step {step}, {guard.in_a_row} steps in a row; the weights are those of the last good step; lower lr, or look at "
            "the rows of these steps"
        )
    _LOG.warning("step %d skipped: %s", step, reason)
    return StepOutcome(grad_norm, skipped=True, reason=reason)


def _what_is_not_finite(model: PreTrainedModel, loss: float, grad_norm: float) -> str | None:
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return None
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    broken = _not_finite((name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None)
    if broken is None:
        return f"the gradient norm is {grad_norm}, though every gradient is finite (it overflows)"
    return f"the gradient of {broken} is not finite"


def _not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The first tensor with a NaN or an infinity, and how many more there are. On several ranks all look, and find the same."""
    bad = [name for name, tensor in tensors if tensor.is_floating_point() and int(whole(torch.isfinite(tensor).sum())) < tensor.numel()]
    if not bad:
        return None
    return repr(bad[0]) + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
