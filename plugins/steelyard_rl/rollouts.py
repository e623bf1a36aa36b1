"""Rollouts: prompts in a seeded order, sampled, verified, shaped, and kept when they teach something."""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from steelyard.errors import DataError, PluginError, VerifierError, nearest
from steelyard.protocols import Engine, StageContext
from steelyard.records import Prompt, Rollout, Row, Sampling, derive_seed
from steelyard.rows import read_rows
from steelyard_rl.config import GrpoConfig
from steelyard_torch.encoding import encode_prompt
from steelyard_torch.losses import group_advantages
from steelyard_torch.trainee import Trainee

__all__ = ["Group", "Harvest", "PromptPool", "has_signal", "is_truncated", "roll_out"]

_EXAMPLES = 6


@dataclass(frozen=True)
class Group:
    """One prompt's rollouts with their rewards and advantages (R − mean, over the standard deviation where asked)."""

    rollouts: Sequence[Rollout]
    advantages: torch.Tensor


@dataclass
class Harvest:
    """What a rollout step brought in: the groups to train on, and counts over everything that was sampled."""

    groups: list[Group] = field(default_factory=list)
    cursor: int = 0
    counts: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    examples: list[tuple[Row, Rollout]] = field(default_factory=list)
    """Two rollouts of each of the first prompts, with the rows they came from."""
    seconds: float = 0.0

    def metrics(self) -> dict[str, float]:
        """Means over all rollouts of the step, whether trained on or not; accuracy and reward over those that have a verdict."""
        counts = self.counts
        rollouts, scored = max(counts["rollouts"], 1), max(counts["scored"], 1)
        return {
            "rl/accuracy": counts["score"] / scored,
            "rl/reward": counts["reward"] / scored,
            "rl/completion_length": counts["tokens"] / rollouts,
            "rl/truncated": counts["truncated"] / rollouts,
            "rl/unparseable": counts["unparseable"] / rollouts,
            "rl/verifier_failures": counts["failures"] / rollouts,
            "rl/groups": float(len(self.groups)),
            "rl/groups_all_right": float(counts["all right"]),
            "rl/groups_all_wrong": float(counts["all wrong"]),
            "rl/prompts_sampled": float(counts["prompts"]),
            "perf/rollout_s": self.seconds,
        }


class PromptPool:
    """The prompts of a stage in an endless order: every pass is another seeded permutation, so a cursor says everything."""

    def __init__(self, trainee: Trainee, config: GrpoConfig):
        context = trainee.context
        names = tuple(context.verifiers.names())
        if not names:
            raise VerifierError("the stage has no verifier; name one under `verifiers:`")
        self.too_long = 0
        self._rows: list[tuple[Row, tuple[int, ...]]] = []
        for row in read_rows(trainee.dataset()):
            _check(row, names)
            tokens = tuple(encode_prompt(trainee.tokenizer, row["messages"]))
            if len(tokens) > config.max_prompt_length:
                self.too_long += 1
            else:
                self._rows.append((row, tokens))
        if not self._rows:
            raise DataError(f"no prompt is left: {self.too_long:,} are longer than max_prompt_length {config.max_prompt_length:,} tokens")
        self._seed = derive_seed(context.seed, "prompts")
        self._pass, self._order = -1, list[int]()

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, cursor: int, count: int) -> list[tuple[Prompt, Row]]:
        """``count`` prompts from position ``cursor`` of the endless order; a prompt's id names its position, so repeats draw anew."""
        taken = []
        for position in range(cursor, cursor + count):
            row, tokens = self._rows[self._index(position)]
            taken.append((Prompt(f"{position}:{row.get('id', '')}", token_ids=tokens), row))
        return taken

    def _index(self, position: int) -> int:
        lap, place = divmod(position, len(self._rows))
        if lap != self._pass:
            self._order = list(range(len(self._rows)))
            random.Random(derive_seed(self._seed, lap)).shuffle(self._order)
            self._pass = lap
        return self._order[place]


def roll_out(context: StageContext, config: GrpoConfig, engine: Engine, pool: PromptPool, *, step: int, cursor: int) -> Harvest:
    """Sample, verify and shape until ``prompts_per_step`` groups can be learnt from, or the refills are used up."""
    harvest = Harvest(cursor=cursor)
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        n=config.samples_per_prompt,
        seed=derive_seed(context.seed, "rollout", step),
    )
    allowed = config.prompts_per_step + int(config.max_refills * config.prompts_per_step)
    started = time.monotonic()
    while (missing := config.prompts_per_step - len(harvest.groups)) > 0 and (room := allowed - int(harvest.counts["prompts"])) > 0:
        taken = pool.take(harvest.cursor, min(missing, room))
        harvest.cursor += len(taken)
        harvest.counts["prompts"] += len(taken)
        for (_, row), rollouts in zip(taken, _sample(context, engine, taken, sampling), strict=True):
            _count(harvest, rollouts)
            rewarded = _rewarded(context, config, [rollout for rollout in rollouts if _is_scored(rollout)])
            harvest.counts["reward"] += sum(rollout.reward or 0.0 for rollout in rewarded)
            if len(harvest.examples) < _EXAMPLES:
                harvest.examples.extend((row, rollout) for rollout in (rewarded or rollouts)[:2])
            if _teaches(config, harvest, rewarded):
                harvest.groups.append(_group(config, rewarded))
    harvest.seconds = time.monotonic() - started
    return harvest


def has_signal(rollouts: Sequence[Rollout]) -> bool:
    """Whether a group's verdicts differ: judged on the verifier's scores, which no shaper has touched."""
    return len({rollout.verdict.score for rollout in rollouts}) > 1


def is_truncated(rollout: Rollout) -> bool:
    """Whether the answer was cut off before it ended."""
    return rollout.completion.finish_reason == "length"


def _is_scored(rollout: Rollout) -> bool:
    """A verifier's failure is no score of 0, and what an engine gave up on is no answer: both leave the group."""
    return rollout.verdict.score is not None and rollout.completion.finish_reason != "abort"


def _sample(context: StageContext, engine: Engine, taken: Sequence[tuple[Prompt, Row]], sampling: Sampling) -> list[list[Rollout]]:
    groups = engine.generate([prompt for prompt, _ in taken], sampling)
    checks = [
        (row["verifier"], completion, row["reference"]) for (_, row), group in zip(taken, groups, strict=True) for completion in group
    ]
    verdicts = iter(context.verifiers.verify(checks))
    return [[Rollout(prompt, completion, next(verdicts)) for completion in group] for (prompt, _), group in zip(taken, groups, strict=True)]


def _count(harvest: Harvest, rollouts: Sequence[Rollout]) -> None:
    counts = harvest.counts
    for rollout in rollouts:
        counts["rollouts"] += 1
        counts["tokens"] += len(rollout.completion.token_ids)
        counts["truncated"] += is_truncated(rollout)
        counts["unparseable"] += rollout.verdict.outcome == "unparseable"
        counts["failures"] += rollout.verdict.score is None
        if _is_scored(rollout):
            counts["scored"] += 1
            counts["score"] += rollout.verdict.score or 0.0


def _rewarded(context: StageContext, config: GrpoConfig, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """One prompt's rollouts with their rewards, shaped in the recipe's order."""
    rewards = [_reward(config, rollout) for rollout in rollouts]
    for shaper in context.shapers if rollouts else ():
        shaped = [float(reward) for reward in shaper.shape(rollouts, rewards)]
        if len(shaped) != len(rewards) or not all(map(math.isfinite, shaped)):
            raise PluginError(
                f"shaper {type(shaper).__name__!r} made {shaped!r} of {len(rewards)} rewards; it must give as many finite ones"
            )
        rewards = shaped
    return [replace(rollout, reward=reward) for rollout, reward in zip(rollouts, rewards, strict=True)]


def _teaches(config: GrpoConfig, harvest: Harvest, rollouts: Sequence[Rollout]) -> bool:
    """Whether a group is to be trained on; counts why not."""
    if len(rollouts) < 2:
        return False
    if not has_signal(rollouts):
        harvest.counts["all right" if rollouts[0].verdict.score == 1.0 else "all wrong"] += 1
        if config.drop_without_signal:
            return False
    if config.truncated == "mask" and all(map(is_truncated, rollouts)):
        harvest.counts["all cut off"] += 1
        return False
    return True


def _group(config: GrpoConfig, rollouts: Sequence[Rollout]) -> Group:
    rewards = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64)
    return Group(rollouts, group_advantages(rewards, scale_by_std=config.scale_by_std, ddof=config.std_ddof, eps=config.std_eps))


def _reward(config: GrpoConfig, rollout: Rollout) -> float:
    if is_truncated(rollout) and config.truncated == "penalise":
        return config.truncation_reward
    assert rollout.verdict.score is not None
    return config.reward_scale * rollout.verdict.score


def _check(row: Row, verifiers: Sequence[str]) -> None:
    place = f"row {row.get('id', '?')!r}"
    if not row.get("messages") or "reference" not in row:
        raise DataError(f"{place}: an RL prompt needs `messages` and a `reference`; it has {', '.join(sorted(row))}")
    if row["messages"][-1]["role"] != "user":
        raise DataError(f"{place}: an RL prompt ends in a user turn, not {row['messages'][-1]['role']!r}")
    name = row.get("verifier")
    if name is None and len(verifiers) == 1:
        row["verifier"] = verifiers[0]
    elif name not in verifiers:
        raise DataError(f"{place}: verifier {name!r} is not one of the stage's{nearest(str(name), verifiers)}; name it under `verifiers:`")
