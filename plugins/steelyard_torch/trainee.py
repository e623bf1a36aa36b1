"""The model in training, with its optimiser, schedule and checkpoints: what every stage does around its own loss.

Not a trainer: a stage keeps its loop in its own hands and calls :meth:`Trainee.update` once the gradients of an optimiser step are there
and :meth:`Trainee.rest` between steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from steelyard.errors import Interrupted, TrainingError
from steelyard.protocols import StageContext
from steelyard.records import StageResult
from steelyard_torch.checkpoint import load_checkpoint, save_checkpoint
from steelyard_torch.config import TrainingOptions
from steelyard_torch.device import seed_everything, set_gradient_checkpointing, setup_runtime
from steelyard_torch.flops import mfu, training_flops
from steelyard_torch.models import load_model, load_tokenizer, save_model
from steelyard_torch.optim import NonFiniteGuard, StepOutcome, adamw, learning_rate, optimiser_step, warmup_steps

__all__ = ["Trainee", "out_of_memory"]


class Trainee:
    """Loads the stage's initial model; owns optimiser, guard, schedule and checkpoints.

    ``step`` counts finished optimiser steps. ``context`` is the stage's; ``options`` its dials.
    """

    def __init__(self, context: StageContext, options: TrainingOptions):
        self.context, self.options = context, options
        self.runtime = setup_runtime(precision=options.precision, deterministic=options.deterministic)
        seed_everything(context.seed)
        remote = bool(context.options.get("trust_remote_code"))
        self.tokenizer = load_tokenizer(context.model, allow_remote_code=remote)
        self.model = load_model(context.model, device=str(self.runtime.device), allow_remote_code=remote).train()
        set_gradient_checkpointing(self.model, options.gradient_checkpointing)
        self.optimizer = adamw(self.model, lr=options.lr, weight_decay=options.weight_decay, betas=options.betas, eps=options.adam_eps)
        self.guard = NonFiniteGuard(options.max_non_finite)
        self.step = 0
        self.total_steps = 0
        self._warmup = 0
        self._last: dict[str, float] = {}
        self._skipped = 0
        self._step_started = self._checkpointed = time.monotonic()
        self._checkpointed_step = -1

    def schedule(self, total_steps: int) -> None:
        """Fix the number of optimiser steps that the learning-rate schedule spans."""
        if total_steps < 1:
            raise TrainingError("there is no optimiser step to take: too few rows, or none with anything to train on")
        self.total_steps = total_steps
        self._warmup = warmup_steps(total_steps, ratio=self.options.warmup_ratio, steps=self.options.warmup_steps)

    def resume(self) -> Mapping[str, Any] | None:
        """Load the newest whole checkpoint, if there is one; returns the data position it was saved with."""
        found = self.context.checkpoints.latest()
        if found is None:
            return None
        saved = load_checkpoint(found, model=self.model, optimizer=self.optimizer)
        self.step = self._checkpointed_step = saved.step
        self.guard.restore(saved.extra["guard"])
        self._skipped = int(saved.extra["skipped"])
        self.context.io.log(f"resumed from the checkpoint of optimiser step {saved.step:,}")
        return saved.data

    def update(self, loss: float, *, tokens: int, trained_tokens: int, sequences: int, metrics: Mapping[str, float]) -> StepOutcome:
        """Clip, guard, step, count and report. ``loss`` is the value over the whole optimiser step, ``tokens`` what went through the
        model without padding."""
        options = self.options
        lr = learning_rate(
            self.step,
            peak=options.lr,
            schedule=options.schedule,
            total_steps=self.total_steps,
            warmup_steps=self._warmup,
            floor=options.lr * options.lr_floor,
        )
        outcome = optimiser_step(
            self.model, self.optimizer, loss=loss, lr=lr, max_grad_norm=options.max_grad_norm, guard=self.guard, step=self.step
        )
        now = time.monotonic()
        seconds, self._step_started = max(now - self._step_started, 1e-9), now
        self.step += 1
        self._skipped += outcome.skipped
        if outcome.skipped:
            self.context.io.log(f"optimiser step {self.step:,} skipped: {outcome.reason}")
        report = {
            "train/loss": loss,
            "train/lr": lr,
            "train/grad_norm": float(outcome.grad_norm),
            "train/skipped_steps": float(self._skipped),
            "perf/tokens_per_s": tokens / seconds,
            "perf/step_s": seconds,
            **metrics,
        }
        self._add_mfu(report, tokens, trained_tokens, sequences, seconds)
        self._last = report
        self.context.io.report(report, step=self.step)
        self.context.io.progress(self.step, self.total_steps, "steps", f"loss {loss:.3f}")
        return outcome

    def _add_mfu(self, report: dict[str, float], tokens: int, trained_tokens: int, sequences: int, seconds: float) -> None:
        if self.options.peak_flops is None or not tokens:
            return
        flops = training_flops(self.model, tokens=tokens, trained_tokens=trained_tokens, mean_length=tokens / max(sequences, 1))
        share = None if flops is None else mfu(flops, seconds, peak_flops=self.options.peak_flops)
        if share is not None:
            report["perf/mfu"] = share

    def rest(self, position: Mapping[str, Any]) -> None:
        """Between optimiser steps: write a checkpoint when one is due, and stop when asked to. ``position`` (JSON) is where in the data
        the next step begins."""
        stop = self.context.io.should_stop()
        every = self.options.checkpoint_every
        due = time.monotonic() - self._checkpointed >= self.options.checkpoint_every_s or (every and self.step % every == 0)
        if (stop or due) and self.step < self.total_steps and self.step != self._checkpointed_step:
            save_checkpoint(
                self.context.checkpoints,
                step=self.step,
                model=self.model,
                optimizer=self.optimizer,
                data=position,
                extra={"guard": self.guard.state(), "skipped": self._skipped},
            )
            self._checkpointed, self._checkpointed_step = time.monotonic(), self.step
        if stop and self.step < self.total_steps:
            raise Interrupted(f"stopped after optimiser step {self.step:,} of {self.total_steps:,}; a checkpoint is written")

    def finish(self, facts: Mapping[str, Any]) -> StageResult:
        """Save the model into the stage's output folder."""
        self.model.eval()
        save_model(self.model, self.tokenizer, self.context.output)
        return StageResult(self.context.output, self._last, {"optimiser_steps": self.step, "skipped_steps": self._skipped, **facts})


def out_of_memory(error: BaseException, *, padded_tokens: int, options: TrainingOptions) -> TrainingError | None:
    """What to tell a user whose batch does not fit in memory; None when ``error`` is something else."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error):
        return TrainingError(
            f"out of memory with {padded_tokens:,} padded tokens in a micro-batch; lower `micro_batch_tokens` (now "
            f"{options.micro_batch_tokens:,}) or `max_length` (now {options.max_length:,}), or set `gradient_checkpointing: true`"
        )
    return None
