"""The stage `distill`: a student learns a teacher's token distributions, on given conversations or on what it samples itself.

Loss of a token: ``divergence_coefficient · D(teacher, student) + ce_coefficient · −log student(y_t)``, with D as in
:mod:`steelyard_distill.divergences`. Whose tokens a step takes, the conversations' or the student's, is drawn by the seed with the
probability ``on_policy_share`` (λ of GKD, Agarwal et al., arXiv 2306.13649, algorithm 1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from steelyard.protocols import Engine, StageContext
from steelyard.records import StageResult, derive_seed
from steelyard_distill.asking import open_teacher
from steelyard_distill.comparing import bind_compare, compare
from steelyard_distill.config import DistillConfig
from steelyard_distill.prompts import PromptPool
from steelyard_distill.teachers import Teacher
from steelyard_torch.batching import MicroBatch, StepSampler, StepTotals, count_targets
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.losses import sft_loss
from steelyard_torch.trainee import Trainee, memory_errors

__all__ = ["Distill", "is_on_policy"]


class Distill:
    """Trains on rows with ``messages``."""

    def __init__(self, config: DistillConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        config = self._config
        trainee = Trainee(context, config, dropout=False)
        bind_compare(trainee.model)
        data = _Data(trainee, config)
        teacher, told = open_teacher(trainee, config, data.rows)
        engine = trainee.engine() if config.on_policy_share else None
        trainee.schedule(data.total_steps)
        position = trainee.resume()
        if position is not None:
            data.resume(position)
        while trainee.step < data.total_steps:
            step = data.step(trainee, engine)
            teacher.prepare(step.rows, step.indices)
            totals = count_targets(step.rows)
            loss_value, metrics = 0.0, defaultdict[str, float](float)
            for batch in trainee.micro_batches(step.rows, groups=step.groups, whole=False):
                with memory_errors(batch, config):
                    loss_value += _backward(trainee, teacher, config, batch, totals, metrics, given=not step.on_policy)
            trainee.update(
                loss_value,
                tokens=sum(len(row) for row in step.rows),
                trained_tokens=totals.tokens,
                sequences=len(step.rows),
                metrics={f"distill/{name}": value for name, value in metrics.items()},
                shared=step.metrics,
            )
            trainee.rest(data.state(trainee.step))
        return trainee.finish({**data.facts(), "divergence": config.divergence, "teacher": told})


@dataclass(frozen=True)
class _Step:
    """What an optimiser step trains on."""

    rows: list[EncodedRow]
    indices: Sequence[int]
    """Of given conversations, their numbers in the data."""
    groups: list[int] | None
    on_policy: bool
    metrics: dict[str, float] = field(default_factory=dict)
    """The same on every rank."""


class _Data:
    """The conversations, the prompts, or both, and which of them a step takes. Position and step's kind follow from the seed and the
    step's number."""

    def __init__(self, trainee: Trainee, config: DistillConfig):
        self._config, self._seed = config, trainee.context.seed
        self.rows: list[EncodedRow] = []
        self._stats: dict[str, Any] | None = None
        self._samplers: dict[bool, StepSampler] = {}
        self._pool: PromptPool | None = None
        if config.on_policy_share < 1:
            encoded = trainee.conversations(
                max_length=config.max_length, on_too_long=config.on_too_long, trained_turns=config.trained_turns
            )
            trainee.context.io.log(encoded.stats.describe())
            self.rows, self._stats = encoded.rows, encoded.stats.to_json()
            self._samplers[False] = self._sampler([len(row) for row in self.rows])
        if config.on_policy_share > 0:
            self._pool = PromptPool(trainee, config)
            trainee.context.io.log(str(self._pool))
            self._samplers[True] = self._sampler(self._pool.lengths)
        self.total_steps = self._samplers[bool(self._pool)].total_steps

    def _sampler(self, lengths: Sequence[int]) -> StepSampler:
        config = self._config
        return StepSampler(lengths, batch_size=config.batch_size, seed=self._seed, epochs=config.epochs, max_steps=config.max_steps)

    def step(self, trainee: Trainee, engine: Engine | None) -> _Step:
        number, config, world = trainee.step, self._config, trainee.world
        on_policy = is_on_policy(self._seed, number, config.on_policy_share)
        sampler = self._samplers[on_policy]
        chosen = sampler.rows(number)
        metrics = {"train/epoch": sampler.epoch(number + 1), "distill/on_policy": float(on_policy)}
        if not on_policy:
            return _Step([self.rows[i] for i in chosen], chosen, None, False, metrics)
        assert self._pool is not None
        weights = trainee.weights()  # every rank takes part where they are sharded
        answers = None
        if engine is not None:
            engine.wake()
            engine.load_weights(weights, version=number)
            answers, examples = self._pool.answer(engine, chosen, number)
            engine.sleep()
            if number in {0, self.total_steps // 2, self.total_steps - 1}:
                for example in examples:
                    trainee.context.io.sample(example)
        answers = world.from_main(answers)
        metrics |= {
            "distill/student_length": answers.length,
            "distill/truncated": answers.truncated,
            "perf/rollout_s": answers.seconds,
        }
        return _Step(answers.rows, (), answers.groups, True, metrics)

    def state(self, step: int) -> dict[str, Any]:
        return {"step": step, **{_NAMES[on_policy]: sampler.state(step) for on_policy, sampler in self._samplers.items()}}

    def resume(self, state: Mapping[str, Any]) -> None:
        for on_policy, sampler in self._samplers.items():
            sampler.resume(state[_NAMES[on_policy]])

    def facts(self) -> dict[str, Any]:
        """Of the stage's record."""
        facts: dict[str, Any] = {"data": self._stats} if self._stats is not None else {}
        if self._pool is not None:
            facts["prompts"] = {"rows": len(self._pool), "too_long": self._pool.too_long}
            facts["on_policy_steps"] = sum(is_on_policy(self._seed, step, self._config.on_policy_share) for step in range(self.total_steps))
        return facts


_NAMES = {False: "conversations", True: "prompts"}


def is_on_policy(seed: int, step: int, share: float) -> bool:
    """Whether the student samples the answers of an optimiser step: with the probability ``share``, drawn for each step by itself."""
    return derive_seed(seed, "on policy", step) / 2**63 < share


def _backward(
    trainee: Trainee,
    teacher: Teacher,
    config: DistillConfig,
    batch: MicroBatch,
    totals: StepTotals,
    metrics: defaultdict[str, float],
    *,
    given: bool,
) -> float:
    """Loss and gradients of one micro-batch; adds its share of the step's metrics (means over the step's trained tokens)."""
    weights = _weights(batch, config, totals)
    with trainee.runtime.autocast():
        found = compare(
            trainee.model,
            batch,
            teacher.signal(batch),
            config,
            weights=weights,
            ce_coefficient=config.ce_coefficient if given else 0.0,
        )
    found.loss.backward()  # type: ignore[no-untyped-call]
    measured = found._asdict()
    loss = measured.pop("loss").detach()
    sums = {name: values.sum() / max(totals.tokens, 1) for name, values in measured.items() if values is not None}
    value, *amounts = torch.stack([loss, *sums.values()]).tolist()
    for name, amount in zip(sums, amounts, strict=True):
        metrics[name] += amount
    return float(value)


def _weights(batch: MicroBatch, config: DistillConfig, totals: StepTotals) -> torch.Tensor:
    """(N,) what each target's loss counts in the step's."""
    with torch.enable_grad():
        each = torch.zeros(len(batch.target_ids), device=batch.target_ids.device, requires_grad=True)
        # The reductions of a cross-entropy are linear in the tokens' losses, of which they take the negative.
        loss = sft_loss(-each, batch.target_rows, len(batch), reduction=config.loss_reduction, totals=totals)
        (weights,) = torch.autograd.grad(loss, each)
    return weights
