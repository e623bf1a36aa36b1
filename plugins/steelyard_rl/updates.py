"""What a rollout step's groups teach: scores of the models involved, advantages, and the optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from steelyard.errors import EngineError, TrainingError
from steelyard.records import derive_seed
from steelyard_rl.advantages import explained_variance
from steelyard_rl.buffer import Group
from steelyard_rl.config import RlConfig
from steelyard_rl.experience import Experience, minibatches, score
from steelyard_rl.losses import PolicyTokens, policy_loss, row_weights, value_loss
from steelyard_rl.value_model import ValueModel
from steelyard_torch.batching import MicroBatch, gather_targets
from steelyard_torch.head import TokenScores, split_by_row, token_logprobs
from steelyard_torch.sharding import local_part, reshard
from steelyard_torch.trainee import Trainee, memory_errors

__all__ = ["Learner"]


class Learner:
    """The policy's trainee with the models that its loss needs beside it: reference, value model."""

    def __init__(self, trainee: Trainee, config: RlConfig):
        self._trainee, self._config = trainee, config
        self._reference = trainee.load_reference() if config.kl_coefficient else None
        if config.reference_refresh is not None and self._reference is not None:
            trainee.accompany("reference", self._reference)
        self._value = ValueModel(trainee, config) if config.advantage == "gae" else None
        self._refreshed = 0
        self._entropy = _EntropyControl(config)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, JSON-able."""
        value = None if self._value is None else self._value.state()
        return {"refreshed": self._refreshed, "entropy": self._entropy.state(), "value": value}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state:
            self._refreshed = int(state["refreshed"])
            self._entropy.restore(state["entropy"])
            if self._value is not None:
                self._value.restore(state["value"])

    def learn(self, groups: Sequence[Group], *, step: int, version: int, metrics: Mapping[str, float]) -> None:
        """Train on a rollout step's groups, which weights of this ``version`` sampled last. ``metrics`` of its sampling are reported with
        each optimiser step."""
        config, trainee = self._config, self._trainee
        self._begin_step()
        experience = Experience.of(groups, version=version)
        epochs = minibatches(
            len(groups), parts=config.minibatches, epochs=config.epochs, seed=derive_seed(trainee.context.seed, "minibatches", step)
        )
        shared = {**metrics, **self._look(experience, first=epochs[0][0])}
        note = f"accuracy {metrics['rl/accuracy']:.2f}" if "rl/accuracy" in metrics else ""
        for update, part in enumerate(part for epoch in epochs for part in epoch):
            self._update(experience, experience.of_groups(part), shared, note=note, first=update == 0)

    def _begin_step(self) -> None:
        config, trainee = self._config, self._trainee
        if config.reset_optimiser:
            trainee.optimizer.state.clear()
        if config.reference_refresh is not None and self._reference is not None:
            due = trainee.step // config.reference_refresh
            if due > self._refreshed:
                _move_towards(self._reference, trainee.model, config.reference_mix)
                self._refreshed = due

    def _look(self, experience: Experience, *, first: Sequence[int]) -> dict[str, float]:
        """Scores that are needed before the weights change, and the advantages; gives what was measured."""
        config, trainee = self._config, self._trainee
        every = list(range(len(experience.rows)))
        if config.correction != "none":
            experience.need_sampled(f"correction {config.correction!r} cannot be made")
        if config.old_logprobs == "engine":
            experience.old = dict(enumerate(experience.need_sampled("old_logprobs 'engine' cannot be had")))
        else:
            # The first optimiser step's forward pass is by the weights that sampled, and gives its rows' log-probabilities itself.
            in_reward = config.kl_coefficient > 0 and config.kl_in == "reward"
            own = set() if in_reward else set(experience.of_groups(first))
            if needed := [place for place in every if place not in own]:
                for place, values in score(trainee, trainee.model, experience, needed, config).items():
                    experience.keep_old(place, values)
        if self._reference is not None:
            experience.reference = dict(score(trainee, self._reference, experience, every, config))
        if self._value is None:
            experience.credit(config)
            return {}
        experience.values = dict(self._value.foresee(experience))
        experience.credit(config)
        if not any(experience.targets):
            return {}
        values = torch.cat([experience.values[place] for place in every])
        returns = torch.cat(experience.returns)
        return {
            "rl/explained_variance": explained_variance(values, returns),
            "rl/value": values.mean().item(),
            "rl/return": returns.mean().item(),
        }

    def _update(self, experience: Experience, places: Sequence[int], shared: Mapping[str, float], *, note: str, first: bool) -> None:
        """An optimiser step on the rows ``places``."""
        config, trainee = self._config, self._trainee
        rows, prompts = [experience.rows[place] for place in places], [experience.prompts[place] for place in places]
        targets = [row.targets for row in rows]
        weights = row_weights(
            targets,
            reduction="sequence_sum" if config.objective == "mirror_descent" else config.loss_reduction,
            prompts=prompts,
            constant_length=config.constant_length or config.max_new_tokens,
        )
        part = _Part(experience, places, weights, sum(targets))
        batches = trainee.micro_batches(rows, groups=prompts, whole=False)
        if config.loss_scope == "micro_batch":
            with_targets = sum(len(batch.target_ids) > 0 for batch in batches)
            part.micro_batches = int(trainee.world.sum({"count": float(with_targets)})["count"])
        for batch in batches:
            self._backward(part, batch, first=first)
        if first and config.epochs > 1 and config.old_logprobs == "trainer":
            # Other ranks may get these rows in the next epoch.
            experience.old = trainee.world.merged(experience.old)
        measured = part.sums.values_as_floats()
        whole = self._gap(part)
        if self._value is not None:
            norm = self._value.update(trainee.world.sum({"loss": measured.get("rl/value_loss", 0.0)})["loss"]).grad_norm
            whole = {**whole, "rl/value_grad_norm": norm}
        if self._entropy.is_on:
            whole = {**whole, "rl/entropy_coefficient": self._entropy.coefficient}
            self._entropy.observe(trainee.world.sum({"entropy": measured.get("rl/policy_entropy", 0.0)})["entropy"])
        loss = measured.pop("loss")
        trainee.update(
            loss,
            tokens=sum(map(len, rows)),
            trained_tokens=sum(targets),
            sequences=len(rows),
            metrics=measured,
            shared={**shared, **whole},
            note=note,
        )

    def _backward(self, part: _Part, batch: MicroBatch, *, first: bool) -> None:
        """A micro-batch's gradients, and what it adds to the step's sums."""
        config, trainee, experience = self._config, self._trainee, part.experience
        with memory_errors(batch, config):
            with trainee.runtime.autocast():
                scores = token_logprobs(
                    trainee.model, batch, temperature=config.temperature, entropy=self._entropy.is_on, fp32_head=config.fp32_head
                )
            old = self._old(part, batch, scores)
            tokens = PolicyTokens(
                scores.logprobs,
                old,
                part.gathered(batch, experience.advantages),
                scores.rows,
                scores.n_rows,
                sampled=None if experience.sampled is None else part.gathered(batch, experience.sampled),
                reference=part.gathered(batch, experience.reference) if experience.reference else None,
                entropy=scores.entropy,
            )
            loss = policy_loss(
                tokens, config, weights=part.weights_of(batch), step_tokens=part.tokens, entropy_coefficient=self._entropy.coefficient
            )
            loss.value.backward()  # type: ignore[no-untyped-call]
        part.sums.add("loss", loss.value)
        for name, amount in loss.metrics.items():
            part.sums.add(f"rl/{name}", amount)
        if tokens.sampled is not None:
            fresh = part.fresh(batch)
            now = scores.logprobs.detach() if config.old_logprobs == "engine" else old
            if first or config.old_logprobs == "trainer":
                part.compare(now, tokens.sampled, fresh)
        if self._value is not None:
            self._value_backward(part, batch)

    def _value_backward(self, part: _Part, batch: MicroBatch) -> None:
        assert self._value is not None
        config, experience = self._config, part.experience
        with memory_errors(batch, config):
            loss = value_loss(
                self._value.values(batch),
                part.gathered(batch, experience.values),
                part.gathered(batch, experience.returns),
                clip=config.value_clip,
                coefficient=config.value_coefficient,
                step_tokens=part.tokens,
            )
            loss.value.backward()  # type: ignore[no-untyped-call]
        part.sums.add("rl/value_loss", loss.value)
        for name, amount in loss.metrics.items():
            part.sums.add(f"rl/{name}", amount)

    def _old(self, part: _Part, batch: MicroBatch, scores: TokenScores) -> torch.Tensor:
        """(N,) what the ratio is against; where it was not computed before, this forward pass is by the weights that sampled."""
        experience = part.experience
        places = [part.places[at] for at in batch.order]
        if all(place in experience.old for place in places):
            return part.gathered(batch, experience.old)
        own = scores.logprobs.detach()
        if self._config.epochs == 1 and not experience.stale:
            return own
        for place, values in zip(places, split_by_row(own.cpu(), scores.rows.cpu(), scores.n_rows), strict=True):
            experience.keep_old(place, values)
        return part.gathered(batch, experience.old)

    def _gap(self, part: _Part) -> dict[str, float]:
        """How the engine's log-probabilities differ from the trainer's, over all ranks.

        Raises:
            EngineError: there is a limit, and the engine gives none.
            TrainingError: they differ by more than the limit.
        """
        limit = self._config.max_logprob_gap
        if part.experience.sampled is None:
            if limit is not None:
                raise EngineError(
                    "the engine gives no log-probabilities, so max_logprob_gap cannot be kept; leave it out, or change the engine"
                )
            return {}
        parts = self._trainee.world.gather(part.gap.tolist())
        tokens, total, surprise = (sum(values) for values in list(zip(*parts, strict=True))[:3])
        if not tokens:
            return {}
        gap = total / tokens
        if limit is not None and not gap <= limit:
            raise TrainingError(
                f"the engine's log-probabilities differ from the trainer's by {gap:.4g} on average, more than max_logprob_gap {limit:g}: "
                "its weights are stale, or it computes in another precision"
            )
        return {"rl/logprob_gap": gap, "rl/logprob_gap_max": max(values[3] for values in parts), "rl/entropy": surprise / tokens}


class _Sums:
    """Scalars that add up over micro-batches; read once, so that the device is waited for once."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, name: str, amount: torch.Tensor) -> None:
        amount = amount.detach().double()
        self._sums[name] = amount if name not in self._sums else self._sums[name] + amount

    def values_as_floats(self) -> dict[str, float]:
        if not self._sums:
            return {"loss": 0.0}
        return dict(zip(self._sums, torch.stack(list(self._sums.values())).tolist(), strict=True))


class _Part:
    """The rows of one optimiser step."""

    def __init__(self, experience: Experience, places: Sequence[int], weights: torch.Tensor, tokens: int):
        self.experience, self.places, self.tokens = experience, places, tokens
        self._weights = weights
        self.micro_batches: int | None = None
        """Over all ranks, where each one's mean counts alike."""
        self.sums = _Sums()
        self.gap = torch.zeros(4, dtype=torch.float64)
        """Tokens, and over them the engine's and the trainer's difference, the engine's surprise and the largest difference."""

    def gathered(self, batch: MicroBatch, values: Sequence[torch.Tensor] | Mapping[int, torch.Tensor]) -> torch.Tensor:
        """(N,) in the order of the batch's targets, of what is kept by row of the experience."""
        chosen = {at: values[self.places[at]] for at in batch.order}
        return gather_targets(batch, chosen)  # type: ignore[arg-type]

    def weights_of(self, batch: MicroBatch) -> torch.Tensor:
        """(R,) what a token of each of the batch's rows weighs."""
        if self.micro_batches is not None:
            return torch.full(
                (len(batch),), 1 / (max(self.micro_batches, 1) * max(len(batch.target_ids), 1)), device=batch.input_ids.device
            )
        return self._weights[list(batch.order)].to(batch.input_ids.device, torch.float32)

    def fresh(self, batch: MicroBatch) -> torch.Tensor | None:
        """(N,) which tokens the current weights sampled; None for all of them."""
        stale, targets = self.experience.stale, self.experience.targets
        if not stale:
            return None
        none = {at: torch.zeros(targets[self.places[at]], dtype=torch.bool) for at in batch.order}
        return ~gather_targets(batch, {at: stale.get(self.places[at], flags) for at, flags in none.items()})  # type: ignore[arg-type]

    def compare(self, trainer: torch.Tensor, engine: torch.Tensor, fresh: torch.Tensor | None) -> None:
        """Both (N,)."""
        if fresh is not None:
            trainer, engine = trainer[fresh], engine[fresh]
        if len(engine):
            difference = (trainer - engine).abs().double()
            sums = torch.stack([difference.sum(), -engine.double().sum()])
            self.gap = self.gap.to(engine.device)
            self.gap[0] += len(engine)
            self.gap[1:3] += sums
            self.gap[3] = torch.maximum(self.gap[3], difference.max())


class _EntropyControl:
    """The weight of the entropy: as the recipe says, or steered to a target (Skywork-OR1, arXiv 2505.22312, section 4.4): it changes by a
    fixed amount after each optimiser step, and counts only while the entropy is not above the target."""

    def __init__(self, config: RlConfig):
        self._config = config
        self._weight, self._low = config.entropy_coefficient, True

    @property
    def is_on(self) -> bool:
        return self._config.entropy_coefficient > 0

    @property
    def coefficient(self) -> float:
        return self._weight if self._low else 0.0

    def observe(self, entropy: float) -> None:
        """The mean entropy of an optimiser step's tokens, before it."""
        target = self._config.entropy_target
        # One that is not finite is of a step that is skipped.
        if target is not None and math.isfinite(entropy):
            self._low = entropy <= target
            change = self._config.entropy_change if entropy < target else -self._config.entropy_change
            self._weight = max(0.0, self._weight + change)

    def state(self) -> list[float]:
        return [self._weight, float(self._low)]

    def restore(self, state: Sequence[float]) -> None:
        self._weight, self._low = float(state[0]), bool(state[1])


@torch.no_grad()
def _move_towards(reference: PreTrainedModel, policy: PreTrainedModel, share: float) -> None:
    """Reference ← (1 − share) reference + share policy."""
    # Where weights are sharded, scoring leaves them gathered.
    reshard(reference)
    reshard(policy)
    for old, new in zip(reference.parameters(), policy.parameters(), strict=True):
        local_part(old).lerp_(local_part(new).to(old.dtype), share)
