"""The stage `rl`: reinforcement learning from verified answers, by the method that its dials or preset say; `grpo` is it with that preset.

A rollout step samples groups of answers, verifies and shapes them, turns rewards into advantages, and takes one or several optimiser steps
on the policy loss. What is sampled is in `rollouts.py`; advantages, losses and updates are in files of these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from steelyard.errors import TrainingError
from steelyard.protocols import Engine, StageContext
from steelyard.records import StageResult
from steelyard_rl.config import RlConfig
from steelyard_rl.monitoring import Monitors
from steelyard_rl.prepasses import prepare
from steelyard_rl.rollouts import Harvest, PromptPool, roll_out, sample_heldout
from steelyard_rl.updates import Learner
from steelyard_torch.trainee import Trainee

__all__ = ["PolicyOptimisation"]

_START: Mapping[str, Any] = {"rollout_step": 0, "cursor": 0, "empty": 0, "empty_in_a_row": 0, "monitors": {}, "pool": {}, "learner": {}}
_EMPTY_TOLD_EVERY = 10


class PolicyOptimisation:
    """Trains on rows with ``messages``, ``verifier`` and ``reference``. Of several ranks the main one samples, verifies and rewards."""

    def __init__(self, config: RlConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        config = self._config
        trainee = Trainee(context, config, dropout=False)
        work = _Work(trainee, config)
        trainee.schedule(config.steps * config.updates_per_step)
        position = work.restore(trainee.resume() or _START)
        while position["rollout_step"] < config.steps:
            position = work.rollout_step(position)
            trainee.rest(position)
        return trainee.finish({"rollout_steps": config.steps, "empty_steps": position["empty"], **work.pool.facts()})


class _Work:
    """A stage under way."""

    def __init__(self, trainee: Trainee, config: RlConfig):
        self._trainee, self._config = trainee, config
        self.pool = PromptPool(trainee, config)
        self._monitors = Monitors(trainee.context, config)
        trainee.context.io.log(str(self.pool))
        self._learner = Learner(trainee, config)
        self._engine = trainee.engine()

    def restore(self, position: Mapping[str, Any]) -> Mapping[str, Any]:
        """Go on from a checkpoint's position, or from the start; gives where the next rollout step begins."""
        self._monitors.restore(position["monitors"])
        self._learner.restore(position["learner"])
        self.pool.restore(position["pool"])
        prepare(
            self._trainee,
            self._config,
            cast("Engine", self._engine),  # of other ranks nobody asks for it
            self.pool,
            lambda: self._trainee.rest({**position, "pool": self.pool.state()}),
        )
        return position

    def rollout_step(self, position: Mapping[str, Any]) -> Mapping[str, Any]:
        """One turn of sample, verify, train."""
        config, trainee, step = self._config, self._trainee, int(position["rollout_step"])
        context = trainee.context
        weights = trainee.weights()
        harvest = trainee.world.from_main(self._sample(self._engine, weights, step, int(position["cursor"])) if self._engine else None)
        in_a_row = int(position["empty_in_a_row"]) + 1 if harvest.is_empty else 0
        if step in {0, config.steps // 2, config.steps - 1} or in_a_row >= config.max_empty_steps:
            _keep_samples(context, harvest, step)
        if in_a_row >= config.max_empty_steps:
            raise TrainingError(_nothing_to_learn(in_a_row, harvest))
        if harvest.groups:
            self._learner.learn(harvest.groups, step=step, version=harvest.version, metrics=harvest.metrics())
        # With fewer groups than mini-batches there were fewer optimiser steps; the schedule goes by rollout steps all the same.
        trainee.pass_over((step + 1) * config.updates_per_step)
        if not harvest.groups:
            if harvest.is_empty:
                _tell_empty(context, harvest, step, int(position["empty"]))
            context.io.report(harvest.metrics(), step=trainee.step)
            context.io.progress(trainee.step, trainee.total_steps, "steps", "no group to learn from")
        return {
            "rollout_step": step + 1,
            "cursor": harvest.cursor,
            "empty": int(position["empty"]) + harvest.is_empty,
            "empty_in_a_row": in_a_row,
            "monitors": self._monitors.state(),
            "pool": harvest.state,
            "learner": self._learner.state(),
        }

    def _sample(self, engine: Engine, weights: Mapping[str, Any], step: int, cursor: int) -> Harvest:
        """On the main rank: a rollout step's groups, by the engine with these weights."""
        config, context, pool, monitors = self._config, self._trainee.context, self.pool, self._monitors
        engine.wake()
        # An engine that shares the live module only takes note of the version; another one gets the tensors.
        engine.load_weights(weights, version=step)
        if pool.heldout and step % config.heldout_every == 0:
            monitors.look_at_heldout(pool.heldout, sample_heldout(context, config, engine, pool, step=step))
        harvest = roll_out(context, config, engine, pool, step=step, cursor=cursor, monitors=monitors)
        engine.sleep()
        return harvest


def _keep_samples(context: StageContext, harvest: Harvest, step: int) -> None:
    """A few rollouts for the report, whether they were learnt from or not."""
    for row, rollout in harvest.examples:
        context.io.sample(
            {
                "kind": "rollout",
                "step": step + 1,
                "messages": row["messages"],
                "completion": rollout.completion.text,
                "reference": row["reference"],
                "outcome": rollout.verdict.outcome.value,
                "detail": rollout.verdict.detail,
                "reward": rollout.reward,
                "finish_reason": rollout.completion.finish_reason,
            }
        )


def _tell_empty(context: StageContext, harvest: Harvest, step: int, earlier: int) -> None:
    """Says why a rollout step taught nothing; of many such steps every tenth is told."""
    if earlier % _EMPTY_TOLD_EVERY:
        return
    right, wrong, cut = (int(harvest.counts[name]) for name in ("all right", "all wrong", "all cut off"))
    why = f"{right} groups all right, {wrong} all wrong" + (f", {cut} all cut off" if cut else "")
    again = f"; {earlier + 1:,} such steps so far" if earlier else ""
    context.io.log(f"rollout step {step + 1:,} had no group to learn from ({why}){again}")


def _nothing_to_learn(steps: int, harvest: Harvest) -> str:
    wrong, right, cut, failed, rollouts = (
        int(harvest.counts[name]) for name in ("all wrong", "all right", "all cut off", "failures", "rollouts")
    )
    return (
        f"no group had both right and wrong answers in {steps} rollout steps in a row (in the last: {wrong} all wrong, {right} all right, "
        f"{cut} all cut off, {failed} verifier failures of {rollouts} rollouts); a verifier that never passes, prompts that are too hard "
        "or too easy, max_new_tokens that is too small, or a model that needs `sft` first: look at the samples of this stage"
    )
