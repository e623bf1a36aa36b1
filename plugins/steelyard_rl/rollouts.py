"""A rollout step: prompts are taken, their answers written, verified and shaped, and groups kept that teach something."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steelyard.protocols import Engine, ScheduledShaper, StageContext
from steelyard.records import Completion, Prompt, Rollout, Row, Sampling, derive_seed
from steelyard_rl.answers import Answer, Draft, write_on
from steelyard_rl.buffer import Group
from steelyard_rl.monitoring import Monitors
from steelyard_rl.prompts import PromptPool
from steelyard_rl.rewards import Judged, is_scored, is_truncated, judge, shaped
from steelyard_rl.rollout_options import RolloutOptions

__all__ = ["Group", "Harvest", "PromptPool", "has_signal", "is_truncated", "roll_out", "sample_heldout"]

_EXAMPLES = 6
_SHARES = {"completion_length": "tokens", "truncated": "truncated", "unparseable": "unparseable", "verifier_failures": "failures"}
"""What is counted over all rollouts, by the name of its mean."""


@dataclass
class Harvest:
    """What a rollout step brought in: the groups to train on, and counts over everything that was sampled."""

    groups: list[Group] = field(default_factory=list)
    cursor: int = 0
    counts: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    examples: list[tuple[Row, Rollout]] = field(default_factory=list)
    """Two rollouts of each of the first prompts, with the rows they came from."""
    watched: dict[str, float] = field(default_factory=dict)
    """What the monitors, the verifiers and the dials that are on measured."""
    seconds: float = 0.0
    version: int = 0
    """Of the weights that sampled in this step."""
    waiting: int = 0
    """Groups with answers that go on in the next step."""
    stale_tokens: int = 0
    """Tokens that earlier weights sampled, among those to be trained."""
    state: dict[str, Any] = field(default_factory=dict)
    """The pool's, for a checkpoint."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing came of the step: no group to learn from, and none under way."""
        return not self.groups and not self.waiting

    @property
    def off_policy(self) -> bool:
        """Whether earlier weights sampled some of the tokens to be trained."""
        return self.stale_tokens > 0

    def metrics(self) -> dict[str, float]:
        """Means over all rollouts that the step verified, whether trained on or not; accuracy and reward over those that have a verdict. A
        step that verified none has no means."""
        counts = self.counts
        rollouts, scored = counts["rollouts"], max(counts["scored"], 1)
        means = {
            "rl/accuracy": counts["score"] / scored,
            "rl/reward": counts["reward"] / scored,
            **{f"rl/{name}": counts[count] / max(rollouts, 1) for name, count in _SHARES.items()},
        }
        return {
            **(means if rollouts else {}),
            "rl/groups": float(len(self.groups)),
            "rl/groups_all_right": float(counts["all right"]),
            "rl/groups_all_wrong": float(counts["all wrong"]),
            "rl/prompts_sampled": float(counts["prompts"]),
            "perf/rollout_s": self.seconds,
            **self.watched,
        }


def roll_out(
    context: StageContext,
    config: RolloutOptions,
    engine: Engine,
    pool: PromptPool,
    *,
    step: int,
    cursor: int,
    monitors: Monitors | None = None,
) -> Harvest:
    """Sample, verify and shape until ``prompts_per_step`` groups can be learnt from, or the refills are used up. Of several ranks the main
    one calls this; the harvest can be sent to the others."""
    started = time.monotonic()
    harvest = Harvest(cursor=cursor, version=step, groups=pool.buffer.surplus)
    pool.buffer.surplus = []
    work = _Work(context, config, engine, pool, harvest, monitors, step)
    waiting, pool.buffer.drafts = pool.buffer.drafts, []
    work.go_on(waiting)
    while (count := work.missing()) > 0:
        taken = pool.take(harvest.cursor, count, step=step, busy=work.busy())
        harvest.cursor = taken[-1].position + 1
        work.begin([Draft(one) for one in taken])
    work.put_surplus_away()
    harvest.waiting = len(pool.buffer.drafts)
    harvest.watched = {
        **context.verifiers.metrics(),
        **(monitors.conclude() if monitors is not None else {}),
        **work.measured(),
    }
    harvest.state = pool.state()
    harvest.seconds = time.monotonic() - started
    return harvest


def sample_heldout(context: StageContext, config: RolloutOptions, engine: Engine, pool: PromptPool, *, step: int) -> list[list[Rollout]]:
    """A group for each held-out prompt, sampled as for training, in one go; a verifier that has a second one leaves the verdict to it."""
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        n=config.samples_per_prompt,
        seed=derive_seed(context.seed, "heldout", step),
    )
    groups = engine.generate([prompt for prompt, _ in pool.heldout], sampling)
    second = config.monitors.second
    asked: list[tuple[Prompt, Row, list[Completion]]] = []
    for (prompt, row), group in zip(pool.heldout, groups, strict=True):
        name = second.get(row["verifier"], row["verifier"])
        alone = {**row, "verifier": name, "verifiers": [name], "references": {name: row["reference"]}}
        asked.append((prompt, alone, [replace(completion, messages=tuple(row["messages"])) for completion in group]))
    return [[judged.rollout for judged in group] for group in judge(context.verifiers, None, asked)]


def has_signal(rollouts: Sequence[Rollout]) -> bool:
    """Whether a group's verdicts differ: judged on the scores that accuracy goes by, which no other verifier and no shaper has touched."""
    return len({rollout.verdict.score for rollout in rollouts}) > 1


class _Work:
    """A rollout step under way."""

    def __init__(
        self,
        context: StageContext,
        config: RolloutOptions,
        engine: Engine,
        pool: PromptPool,
        harvest: Harvest,
        monitors: Monitors | None,
        step: int,
    ):
        self._context, self._config, self._engine, self._pool = context, config, engine, pool
        self._harvest, self._monitors, self._step = harvest, monitors, step
        self._seed = derive_seed(context.seed, "rollout", step)
        self._shapers = [shaper.at(step) if isinstance(shaper, ScheduledShaper) else shaper for shaper in context.shapers]
        self._taken: set[int] = set()
        self._batches = 0

    def missing(self) -> int:
        """How many prompts to begin next; 0 where the step has what it needs, or may not go on."""
        config, counts = self._config, self._harvest.counts
        wanted = config.prompts_per_step
        if config.generation_batch is not None:
            enough = len(self._harvest.groups) >= wanted or self._batches >= config.max_generation_batches
            return 0 if enough else config.generation_batch
        # Of partial rollouts a prompt that was begun is as good as a group, until it turns out to teach nothing.
        have = len(self._harvest.groups) if config.partial is None else int(counts["prompts"] - counts["dropped"])
        allowed = wanted + int(config.max_refills * wanted)
        return min(wanted - have, allowed - int(counts["prompts"]))

    def busy(self) -> set[int]:
        """Rows whose answers this step samples, or waits for."""
        return self._taken | self._pool.buffer.rows

    def begin(self, drafts: Sequence[Draft]) -> None:
        """Writes the first answers to prompts that were just taken."""
        self._batches += 1
        self._taken.update(draft.taken.index for draft in drafts)
        self._harvest.counts["prompts"] += sum(not draft.taken.row.get("canary") for draft in drafts)
        self.go_on(drafts)

    def go_on(self, drafts: Sequence[Draft]) -> None:
        """Lets answers go on; the groups of which all have ended are settled, the others kept."""
        if not drafts:
            return
        write_on(self._engine, drafts, self._config, seed=self._seed)
        # Somebody's answer has just been written on, and its last tokens are of the engine's present weights.
        self._harvest.version = max(answer.segments[-1][0] for draft in drafts for answer in draft.answers)
        for draft in drafts:
            if not draft.is_done:
                for answer in draft.answers:
                    answer.text = None
                self._pool.buffer.drafts.append(draft)
        self._settle([draft for draft in drafts if draft.is_done])

    def put_surplus_away(self) -> None:
        """Groups beyond what the step trains on."""
        config, harvest = self._config, self._harvest
        if config.generation_batch is None:
            return
        beyond = harvest.groups[config.prompts_per_step :]
        harvest.groups = harvest.groups[: config.prompts_per_step]
        harvest.counts["surplus"] = len(beyond)
        if config.surplus == "keep":
            self._pool.buffer.surplus = beyond

    def measured(self) -> dict[str, float]:
        """What the dials that are on have done."""
        config, harvest, counts = self._config, self._harvest, self._harvest.counts
        found: dict[str, float] = {}
        if config.generation_batch is not None:
            found |= {"rl/generation_batches": float(self._batches), "rl/groups_surplus": counts["surplus"]}
        if config.repetition is not None and counts["rollouts"]:
            found["rl/looped"] = counts["looped"] / counts["rollouts"]
        if config.partial is not None:
            found |= {"rl/groups_waiting": float(harvest.waiting), "rl/answers_waiting": float(self._pool.buffer.unfinished)}
        if config.partial is not None or config.surplus == "keep":
            harvest.stale_tokens, tokens = _count_stale(harvest.groups, harvest.version)
            found["rl/stale_tokens"] = harvest.stale_tokens / max(tokens, 1)
        if config.curriculum.retire_at is not None or config.curriculum.hard_from_step is not None:
            found["rl/prompts_active"] = float(self._pool.curriculum.active(self._step))
        for name, count in counts.items():
            if name.startswith("scores/"):
                verifier = name.removeprefix("scores/")
                found[f"rl/score/{verifier}"] = counts[f"score/{verifier}"] / count
        return found

    def _settle(self, drafts: Sequence[Draft]) -> None:
        """Verifies, rewards and counts the groups of drafts that are done."""
        asked = [(draft.taken.prompt, draft.taken.row, draft.completions(self._pool.tokenizer)) for draft in drafts]
        judged = judge(self._context.verifiers, self._config.reward, asked)
        if self._monitors is not None:
            self._monitors.look([draft.taken.row for draft in drafts], [[one.rollout for one in group] for group in judged])
        for draft, group in zip(drafts, judged, strict=True):
            if not draft.taken.row.get("canary"):
                self._take_in(draft, [_with_past(one, answer) for one, answer in zip(group, draft.answers, strict=True)])

    def _take_in(self, draft: Draft, group: Sequence[Judged]) -> None:
        harvest, config, row = self._harvest, self._config, draft.taken.row
        _count(harvest, group)
        scored = [one for one in group if is_scored(one.rollout)]
        rollouts = shaped(self._shapers, config, scored)
        harvest.counts["reward"] += sum(rollout.reward or 0.0 for rollout in rollouts)
        if len(harvest.examples) < _EXAMPLES:
            harvest.examples.extend((row, rollout) for rollout in (rollouts or [one.rollout for one in group])[:2])
        if rollouts and config.curriculum.uses_running_rates:
            rate = sum(rollout.verdict.score or 0.0 for rollout in rollouts) / len(rollouts)
            self._pool.curriculum.rates.add(draft.taken.index, rate, len(rollouts))
        masks = [_mask(config, one) for one in scored]
        if _teaches(config, harvest, rollouts, masks):
            segments = tuple(one.segments if len(one.segments) > 1 else () for one in scored)
            origin = (draft.taken.position, draft.taken.index)
            harvest.groups.append(Group(rollouts, masks, segments if any(segments) else (), origin))
        else:
            harvest.counts["dropped"] += 1


def _with_past(judged: Judged, answer: Answer) -> Judged:
    return replace(judged, looped=answer.looped, segments=answer.segments)


def _count(harvest: Harvest, group: Sequence[Judged]) -> None:
    counts = harvest.counts
    for one in group:
        rollout = one.rollout
        counts["rollouts"] += 1
        counts["tokens"] += len(rollout.completion.token_ids)
        counts["looped"] += one.looped
        counts["truncated"] += is_truncated(rollout) and not one.looped
        counts["unparseable"] += rollout.verdict.outcome == "unparseable"
        counts["failures"] += rollout.verdict.score is None
        if is_scored(rollout):
            counts["scored"] += 1
            counts["score"] += rollout.verdict.score or 0.0
            for name, score in one.scores.items():
                counts[f"scores/{name}"] += 1
                counts[f"score/{name}"] += score


def _mask(config: RolloutOptions, judged: Judged) -> list[bool] | None:
    """Which tokens of an answer are trained; None for all of them."""
    length = len(judged.rollout.completion.token_ids)
    if config.truncated == "mask" and is_truncated(judged.rollout) and not judged.looped:
        return [False] * length
    if config.partial is not None and config.partial.stale == "mask" and len(judged.segments) > 1:
        last = judged.segments[-1][1]
        return [False] * (length - last) + [True] * last
    return None


def _teaches(config: RolloutOptions, harvest: Harvest, rollouts: Sequence[Rollout], masks: Sequence[Sequence[bool] | None]) -> bool:
    """Whether a group is to be trained on; counts why not."""
    if len(rollouts) < min(config.samples_per_prompt, 2):
        return False
    if not has_signal(rollouts):
        harvest.counts["all right" if rollouts[0].verdict.score == 1.0 else "all wrong"] += 1
        if config.drop_without_signal:
            return False
    if all(mask is not None and not any(mask) for mask in masks):
        harvest.counts["all cut off"] += 1
        return False
    return True


def _count_stale(groups: Sequence[Group], version: int) -> tuple[int, int]:
    """Tokens to be trained that other weights than ``version`` sampled, and all tokens to be trained."""
    stale = total = 0
    for group in groups:
        for rollout, mask, old in zip(group.rollouts, group.masks, group.stale(version), strict=True):
            trained = mask if mask is not None else [True] * len(rollout.completion.token_ids)
            total += sum(trained)
            stale += 0 if old is None else sum(use and made_before for use, made_before in zip(trained, old, strict=True))
    return stale, total
