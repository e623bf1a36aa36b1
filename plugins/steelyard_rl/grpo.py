"""The stage `grpo`: group-relative policy optimisation (Shao et al. 2024) on verified answers.

A rollout step samples a group of answers for each prompt, verifies and shapes them, and takes one or several optimiser steps on
``-min(r A, clip(r) A) + κ k3`` with A from the group. The dials reach DAPO's clip and token mean and Dr. GRPO's constant; see the config.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from steelyard.errors import TrainingError
from steelyard.protocols import Engine, StageContext
from steelyard.records import StageResult
from steelyard_rl.config import GrpoConfig
from steelyard_rl.rollouts import Group, Harvest, PromptPool, roll_out
from steelyard_torch.batching import MicroBatch, count_targets, gather_targets, micro_batches
from steelyard_torch.encoding import EncodedRow, encode_rollout
from steelyard_torch.head import split_by_row, token_logprobs
from steelyard_torch.losses import grpo_loss
from steelyard_torch.models import load_model
from steelyard_torch.trainee import Trainee, out_of_memory

__all__ = ["Grpo"]


class Grpo:
    """Trains on rows with ``messages``, ``verifier`` and ``reference``."""

    def __init__(self, config: GrpoConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        config = self._config
        trainee = Trainee(context, config)
        pool = PromptPool(trainee, config)
        context.io.log(f"{len(pool):,} prompts" + (f"; {pool.too_long:,} too long and left out" if pool.too_long else ""))
        reference = self._reference(trainee)
        engine = context.engine(context.model, module=trainee.model, tokenizer=trainee.tokenizer)
        trainee.schedule(config.steps * config.minibatches)
        position = trainee.resume() or {"rollout_step": 0, "cursor": 0, "empty": 0, "empty_in_a_row": 0}
        try:
            while position["rollout_step"] < config.steps:
                position = self._rollout_step(trainee, engine, pool, reference, position)
                trainee.rest(position)
        finally:
            engine.close()
        return trainee.finish({"rollout_steps": config.steps, "empty_steps": position["empty"], "prompts": len(pool)})

    def _reference(self, trainee: Trainee) -> Any:
        context = trainee.context
        if not self._config.kl_coefficient:
            return None
        if context.reference is None:
            raise TrainingError("a kl_coefficient needs a reference model; say `reference: init` or name one")
        return load_model(context.reference, device=str(trainee.runtime.device)).requires_grad_(False)

    def _rollout_step(
        self, trainee: Trainee, engine: Engine, pool: PromptPool, reference: Any, position: Mapping[str, Any]
    ) -> dict[str, Any]:
        """One turn of sample, verify, train; returns where the next begins."""
        config, context, step = self._config, trainee.context, int(position["rollout_step"])
        engine.load_weights(trainee.model.state_dict(), version=step)
        engine.wake()
        harvest = roll_out(context, config, engine, pool, step=step, cursor=int(position["cursor"]))
        engine.sleep()
        _keep_samples(context, config, harvest, step)
        empty = not harvest.groups
        in_a_row = int(position["empty_in_a_row"]) + 1 if empty else 0
        if in_a_row >= config.max_empty_steps:
            raise TrainingError(_nothing_to_learn(in_a_row, harvest))
        if empty:
            context.io.report(harvest.metrics(), step=trainee.step)
            context.io.log(f"rollout step {step + 1:,} had no group to learn from")
        else:
            self._train(trainee, reference, harvest)
        return {
            "rollout_step": step + 1,
            "cursor": harvest.cursor,
            "empty": int(position["empty"]) + empty,
            "empty_in_a_row": in_a_row,
        }

    def _train(self, trainee: Trainee, reference: Any, harvest: Harvest) -> None:
        config = self._config
        parts = [_Part(groups, config) for groups in _split(harvest.groups, config.minibatches)]
        # With one optimiser step a rollout step the old policy is the current one: its log-probabilities are those of the forward pass.
        if config.minibatches > 1:
            for part in parts:
                part.old = _score(trainee, trainee.model, part.rows, config)
        for part in parts:
            part.reference = None if reference is None else _score(trainee, reference, part.rows, config)
        for part in parts:
            if not (totals := count_targets(part.rows)).tokens:
                continue
            loss_value, metrics, gap = 0.0, defaultdict[str, float](float), defaultdict[str, float](float)
            for batch in micro_batches(
                part.rows, token_budget=config.micro_batch_tokens, pad_id=trainee.tokenizer.pad_token_id, device=trainee.runtime.device
            ):
                try:
                    with trainee.runtime.autocast():
                        scores = token_logprobs(trainee.model, batch, temperature=config.temperature)
                    old = scores.logprobs.detach() if part.old is None else gather_targets(batch, part.old)
                    loss = grpo_loss(
                        scores.logprobs,
                        old,
                        part.advantages[batch.order].to(scores.logprobs.device),
                        scores.rows,
                        totals=totals,
                        clip_low=config.clip_low,
                        clip_high=config.clip_high,
                        reduction=config.loss_reduction,
                        constant_length=config.constant_length or config.max_new_tokens,
                        reference_logprobs=None if part.reference is None else gather_targets(batch, part.reference),
                        kl_coefficient=config.kl_coefficient,
                    )
                    loss.value.backward()  # type: ignore[no-untyped-call]
                except (RuntimeError, MemoryError) as error:
                    raise out_of_memory(error, padded_tokens=batch.padded_tokens, options=config) or error from error
                loss_value += float(loss.value.item())
                for name, amount in loss.metrics.items():
                    metrics[f"rl/{name}"] += float(amount)
                _compare(batch, old, part.sampled, gap)
            report = {**harvest.metrics(), **metrics, **_gap_metrics(gap)}
            self._refuse_gap(report)
            trainee.update(
                loss_value,
                tokens=sum(len(row) for row in part.rows),
                trained_tokens=totals.tokens,
                sequences=len(part.rows),
                metrics=report,
            )

    def _refuse_gap(self, report: Mapping[str, float]) -> None:
        limit, gap = self._config.max_logprob_gap, report.get("rl/logprob_gap", 0.0)
        if limit is not None and gap > limit:
            raise TrainingError(
                f"the engine's log-probabilities differ from the trainer's by {gap:.4g} on average, more than max_logprob_gap {limit:g}: "
                "its weights are stale, or it computes in another precision"
            )


class _Part:
    """The rollouts of one optimiser step as rows to train on, with what is known of each row's tokens."""

    def __init__(self, groups: Sequence[Group], config: GrpoConfig):
        self.rows: list[EncodedRow] = []
        self.sampled: list[torch.Tensor] = []
        advantages: list[float] = []
        for group in groups:
            for rollout, advantage in zip(group.rollouts, group.advantages.tolist(), strict=True):
                completion = rollout.completion
                trained = not (completion.finish_reason == "length" and config.truncated == "mask")
                self.rows.append(encode_rollout(completion.prompt_token_ids, completion.token_ids, trained=trained, index=len(self.rows)))
                self.sampled.append(torch.tensor((completion.logprobs or ()) if trained else (), dtype=torch.float32))
                advantages.append(advantage)
        self.advantages = torch.tensor(advantages, dtype=torch.float32)
        self.old: list[torch.Tensor] | None = None
        self.reference: list[torch.Tensor] | None = None


def _split(groups: Sequence[Group], parts: int) -> list[Sequence[Group]]:
    """Whole groups in ``parts`` runs of nearly equal size; fewer when there are fewer groups."""
    parts = min(parts, len(groups))
    ends = [round(len(groups) * (i + 1) / parts) for i in range(parts)]
    return [groups[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _score(trainee: Trainee, model: Any, rows: Sequence[EncodedRow], config: GrpoConfig) -> list[torch.Tensor]:
    """Log-probabilities of each row's trained tokens under ``model``, without gradient."""
    out: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    with torch.no_grad():
        for batch in micro_batches(
            rows, token_budget=config.micro_batch_tokens, pad_id=trainee.tokenizer.pad_token_id, device=trainee.runtime.device
        ):
            with trainee.runtime.autocast():
                scores = token_logprobs(model, batch, temperature=config.temperature)
            for place, values in zip(batch.order, split_by_row(scores.logprobs, scores.rows, scores.n_rows), strict=True):
                out[place] = values
    return out


def _compare(batch: MicroBatch, trainer: torch.Tensor, sampled: Sequence[torch.Tensor], gap: defaultdict[str, float]) -> None:
    """Add up how the engine's log-probabilities differ from the trainer's on the same tokens."""
    if any(len(sampled[place]) != int(batch.trained[i].sum()) for i, place in enumerate(batch.order)):
        return
    engine = gather_targets(batch, [values.to(trainer.device) for values in sampled])
    if not len(engine):
        return
    difference = (trainer.detach().float() - engine).abs()
    gap["tokens"] += len(engine)
    gap["sum"] += float(difference.sum())
    gap["max"] = max(gap["max"], float(difference.max()))
    gap["entropy"] += float(-engine.sum())


def _gap_metrics(gap: Mapping[str, float]) -> dict[str, float]:
    if not gap["tokens"]:
        return {}
    return {
        "rl/logprob_gap": gap["sum"] / gap["tokens"],
        "rl/logprob_gap_max": gap["max"],
        "rl/entropy": gap["entropy"] / gap["tokens"],
    }


def _keep_samples(context: StageContext, config: GrpoConfig, harvest: Harvest, step: int) -> None:
    """A few rollouts of the first, middle and last rollout step, for the report."""
    if step not in {0, config.steps // 2, config.steps - 1}:
        return
    for group in harvest.groups[:3]:
        for rollout in group.rollouts[:2]:
            context.io.sample(
                {
                    "kind": "rollout",
                    "step": step + 1,
                    "prompt": rollout.prompt.id,
                    "completion": rollout.completion.text,
                    "outcome": rollout.verdict.outcome.value,
                    "detail": rollout.verdict.detail,
                    "reward": rollout.reward,
                }
            )


def _nothing_to_learn(steps: int, harvest: Harvest) -> str:
    wrong, right, failed, rollouts = (int(harvest.counts[name]) for name in ("all wrong", "all right", "failures", "rollouts"))
    return (
        f"no group had both right and wrong answers in {steps} rollout steps in a row (in the last: {wrong} all wrong, "
        f"{right} all right, {failed} verifier failures of {rollouts} rollouts); a verifier that never "
        "passes, prompts that are too hard or too easy, or a model that needs `sft` first: look at the samples of this stage"
    )
