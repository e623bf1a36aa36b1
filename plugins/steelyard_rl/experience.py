"""A rollout step's groups as rows to train on, and what is known of each row's trained tokens."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from steelyard.errors import EngineError
from steelyard_rl.advantages import rollout_advantages, whiten
from steelyard_rl.buffer import Group
from steelyard_rl.config import RlConfig
from steelyard_rl.losses import divergence
from steelyard_torch.encoding import EncodedRow, encode_rollout
from steelyard_torch.head import split_by_row, token_logprobs
from steelyard_torch.trainee import Trainee, memory_errors

__all__ = ["Experience", "minibatches", "score"]


@dataclass
class Experience:
    """Rows in the groups' order; every list has one entry a row, of its trained tokens."""

    rows: list[EncodedRow] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    """The number of the row's group."""
    rewards: list[list[float]] = field(default_factory=list)
    """By group."""
    sampled: list[torch.Tensor] | None = field(default_factory=list)
    """The log-probabilities they were sampled with; None when the engine gives none."""
    old: dict[int, torch.Tensor] = field(default_factory=dict)
    """By row, the log-probabilities that ratios are against, as far as they have been computed."""
    reference: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    """The value model's, before the rollout step's training."""
    advantages: list[torch.Tensor] = field(default_factory=list)
    returns: list[torch.Tensor] = field(default_factory=list)
    """What the value model is to foresee."""
    stale: dict[int, torch.Tensor] = field(default_factory=dict)
    """By row, which of its trained tokens older weights sampled; rows without any are left out."""

    @classmethod
    def of(cls, groups: Sequence[Group], *, version: int) -> Experience:
        """The rows of ``groups``, without anything that a model has to compute; ``version`` is that of the trainer's weights."""
        made = cls()
        sampled: list[torch.Tensor | None] = []
        for number, group in enumerate(groups):
            made.rewards.append([float(rollout.reward or 0.0) for rollout in group.rollouts])
            for rollout, mask, stale in zip(group.rollouts, group.masks, group.stale(version), strict=True):
                completion, place, asked = rollout.completion, len(made.rows), rollout.prompt.token_ids or ()
                row = encode_rollout(asked, completion.token_ids, trained=True if mask is None else mask, index=place)
                # The row's own word: nothing predicts the first token of an answer to an empty prompt.
                trained: list[bool] = row.trained[len(asked) :].tolist()
                made.rows.append(row)
                made.prompts.append(number)
                sampled.append(_kept(completion.logprobs, trained, torch.float32))
                old = _kept(stale, trained, torch.bool)
                if old is not None and bool(old.any()):
                    made.stale[place] = old
        known = [values for values in sampled if values is not None]
        made.sampled = known if len(known) == len(sampled) else None
        if made.stale:
            made.need_sampled("tokens that older weights sampled cannot be trained on")
        return made

    @property
    def targets(self) -> list[int]:
        """Trained tokens of each row."""
        return [row.targets for row in self.rows]

    def of_groups(self, groups: Sequence[int]) -> list[int]:
        """The rows of these groups."""
        wanted = set(groups)
        return [place for place, prompt in enumerate(self.prompts) if prompt in wanted]

    def need_sampled(self, why: str) -> list[torch.Tensor]:
        """The engine's log-probabilities. Raises EngineError, naming the dial, where it gives none."""
        if self.sampled is None:
            raise EngineError(f"the engine gives no log-probabilities, so {why}; leave it out, or change the engine")
        return self.sampled

    def credit(self, config: RlConfig) -> None:
        """Make the advantages, from rewards, values and, where it counts in the reward, the divergence from the reference."""
        penalties = None
        if config.kl_coefficient and config.kl_in == "reward":
            penalties = [
                config.kl_coefficient
                * divergence(self.old[place], self.reference[place], estimator=config.kl_estimator, clamp=config.kl_clamp)
                for place in range(len(self.rows))
            ]
        values = [self.values[place] for place in range(len(self.rows))] if config.advantage == "gae" else None
        made = rollout_advantages(self.rewards, self.targets, config, penalties=penalties, values=values)
        if values is not None:
            self.returns = [(own + value).float() for own, value in zip(made, values, strict=True)]
        if config.whiten and made:
            made = list(torch.split(whiten(torch.cat(made)), self.targets))
        self.advantages = [own.float() for own in made]

    def keep_old(self, place: int, computed: torch.Tensor) -> torch.Tensor:
        """Take the trainer's log-probabilities of a row as those its ratios are against; a token that older weights sampled keeps those it
        was sampled with, since that is the policy it came from."""
        if place in self.stale:
            assert self.sampled is not None
            computed = torch.where(self.stale[place], self.sampled[place], computed)
        self.old[place] = computed
        return computed


def _kept(values: Sequence[Any] | None, trained: Sequence[bool], dtype: torch.dtype) -> torch.Tensor | None:
    if values is None:
        return None
    return torch.tensor([value for value, use in zip(values, trained, strict=True) if use], dtype=dtype)


def minibatches(groups: int, *, parts: int, epochs: int, seed: int) -> list[list[list[int]]]:
    """For every epoch the groups of each optimiser step: whole groups in ``parts`` of nearly equal number, fewer when there are fewer
    groups, drawn anew by ``seed`` in each epoch. One part keeps the order they came in."""
    parts = min(parts, groups)
    ends = [round(groups * (i + 1) / parts) for i in range(parts)]
    made = []
    draw = random.Random(seed)
    for _ in range(epochs):
        order = list(range(groups))
        if parts > 1:
            draw.shuffle(order)
        made.append([order[start:end] for start, end in zip([0, *ends], ends, strict=False)])
    return made


def score(
    trainee: Trainee, model: PreTrainedModel, experience: Experience, places: Sequence[int], config: RlConfig
) -> Mapping[int, torch.Tensor]:
    """By row, the log-probabilities of its trained tokens under ``model``, without gradient; every rank gets those of all rows."""
    found: dict[int, torch.Tensor] = {}
    rows, groups = [experience.rows[place] for place in places], [experience.prompts[place] for place in places]
    with torch.no_grad():
        for batch in trainee.micro_batches(rows, groups=groups, whole=False):
            with memory_errors(batch, config), trainee.runtime.autocast():
                scores = token_logprobs(model, batch, temperature=config.temperature, fp32_head=config.fp32_head)
            for place, values in zip(batch.order, split_by_row(scores.logprobs.cpu(), scores.rows.cpu(), scores.n_rows), strict=True):
                found[places[place]] = values
    return trainee.world.merged(found)
