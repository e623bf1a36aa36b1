"""Evaluation folders as the report reads them: scores by item, what changed between two models, and the texts behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelyard.report.record import RunRecord

__all__ = [
    "Answer",
    "Changes",
    "Pair",
    "as_text",
    "changed_items",
    "choose_pairs",
    "finite",
    "item_scores",
    "read_texts",
    "sampled_keys",
    "task_facts",
]

ItemKey = tuple[str, str, int]
"""Task, item id, and the number of the sample (0 where there is one)."""


@dataclass(frozen=True)
class Changes:
    """How a task's items moved from the champion to the challenger; an item's score is the mean over its samples."""

    gained: int
    lost: int
    same: int

    @property
    def items(self) -> int:
        return self.gained + self.lost + self.same


@dataclass(frozen=True)
class Pair:
    """One item on both sides. ``change`` is ``lost``, ``gained`` or ``same``."""

    key: ItemKey
    champion: float | None
    challenger: float | None

    @property
    def change(self) -> str:
        if self.champion is None or self.challenger is None or self.champion == self.challenger:
            return "same"
        return "gained" if self.challenger > self.champion else "lost"


@dataclass(frozen=True)
class Answer:
    """What a model was asked and what it said."""

    prompt: str
    completion: str
    target: str
    finish: str
    """Why it ended: ``stop``, ``length`` …; empty where the harness does not say."""


def item_scores(record: RunRecord, folder: Path) -> dict[ItemKey, float | None]:
    """The score of every item and sample of an evaluation; None where its verifier failed."""
    return {_key(row): finite(row.get("score")) for row in record.lines(folder / "items.jsonl")}


def task_facts(record: RunRecord, folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """What ``eval.json`` says of each task (``n``, ``score``, ``metric``, ``weight`` …)."""
    tasks = record.json(folder / "eval.json").get("tasks")
    return {name: facts for name, facts in tasks.items() if isinstance(facts, Mapping)} if isinstance(tasks, Mapping) else {}


def changed_items(champion: Mapping[ItemKey, float | None], challenger: Mapping[ItemKey, float | None]) -> dict[str, Changes]:
    """By task, how many items went up, went down and stayed."""
    before, after = _item_means(champion), _item_means(challenger)
    counts: dict[str, list[int]] = {}
    for (task, item), old in before.items():
        new = after.get((task, item))
        if new is None:
            continue
        tally = counts.setdefault(task, [0, 0, 0])
        tally[0 if new > old else 1 if new < old else 2] += 1
    return {task: Changes(*tally) for task, tally in counts.items()}


def _item_means(scores: Mapping[ItemKey, float | None]) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], list[float]] = {}
    for (task, item, _), value in scores.items():
        if value is not None:
            found.setdefault((task, item), []).append(value)
    return {key: math.fsum(values) / len(values) for key, values in found.items()}


def choose_pairs(
    champion: Mapping[ItemKey, float | None], challenger: Mapping[ItemKey, float | None], limits: Mapping[str, int]
) -> list[Pair]:
    """Items to show, by change: so many of each, in the order of ``limits``, taking turns among the tasks."""
    groups: dict[str, dict[str, list[Pair]]] = {change: {} for change in limits}
    for key in sorted(champion.keys() & challenger.keys()):
        pair = Pair(key, champion[key], challenger[key])
        if pair.change in groups:
            groups[pair.change].setdefault(key[0], []).append(pair)
    return [pair for change, limit in limits.items() for pair in _in_turn(groups[change], limit)]


def _in_turn(by_task: Mapping[str, list[Pair]], limit: int) -> Iterator[Pair]:
    turn = 0
    while limit > 0 and any(len(pairs) > turn for pairs in by_task.values()):
        for pairs in by_task.values():
            if len(pairs) > turn and limit > 0:
                limit -= 1
                yield pairs[turn]
        turn += 1


def sampled_keys(record: RunRecord, folder: Path) -> set[ItemKey]:
    """The items whose texts were kept."""
    return {_key(row) for row in record.lines(folder / "samples.jsonl")}


def read_texts(record: RunRecord, folder: Path, wanted: set[ItemKey]) -> dict[ItemKey, Answer]:
    """The texts of the wanted items; one pass, nothing else is kept."""
    found = {}
    for row in record.lines(folder / "samples.jsonl"):
        key = _key(row)
        if key in wanted and key not in found:
            prompt, completion, target = (as_text(row.get(name)) for name in ("prompt", "completion", "target"))
            found[key] = Answer(prompt, completion, target, finish=str(row.get("finish_reason") or ""))
    return found


def as_text(value: Any) -> str:
    """A prompt, completion or target as text: messages one a line behind their role, anything else as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) and "content" in turn for turn in value):
        if len(value) == 1:
            return as_text(value[0]["content"])
        return "\n".join(f"{turn.get('role', '?')}: {as_text(turn['content'])}" for turn in value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _key(row: Mapping[str, Any]) -> ItemKey:
    sample = row.get("sample")
    return str(row.get("task", "")), str(row.get("id", "")), sample if isinstance(sample, int) else 0


def finite(value: Any) -> float | None:
    """A number that a score or a bound can be; None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None
