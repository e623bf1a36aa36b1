"""Texts that models wrote: champion and challenger on the same items, and what stages and mixers sampled on their way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steelyard.report.evaluations import Answer, Pair, as_text, choose_pairs, item_scores, read_texts, sampled_keys
from steelyard.report.formatting import clip, plain
from steelyard.report.record import RunRecord, StepState
from steelyard.report.rounds import DEV

__all__ = ["Comparison", "Said", "SideBySide", "StepSamples", "Text", "comparisons", "step_samples"]

_LIMIT = 1600
_SHOWN = {"lost": 6, "gained": 8, "same": 4}
_SAMPLES = 12


@dataclass(frozen=True)
class Text:
    """A text, and how many of its characters are not shown."""

    text: str
    left_out: int = 0


@dataclass(frozen=True)
class SideBySide:
    """One item: what was asked, what was wanted, what each model said, and the score that got."""

    task: str
    item: str
    change: str
    prompt: Text
    target: Text
    champion: Text
    challenger: Text
    champion_score: float | None
    challenger_score: float | None
    champion_cut: bool
    """Whether it was still writing when its tokens ran out."""
    challenger_cut: bool


@dataclass(frozen=True)
class Comparison:
    """The items of one round; ``kept`` is how many have their texts on file on both sides."""

    round: str
    champion: str
    challenger: str
    items: tuple[SideBySide, ...]
    lost: int
    gained: int
    kept: int


@dataclass(frozen=True)
class Said:
    """A part of a sample: what it is, and its text."""

    label: str
    text: Text


@dataclass(frozen=True)
class StepSamples:
    """What one step kept. Each sample has its texts, and small facts beside them."""

    step: str
    samples: tuple[tuple[tuple[Said, ...], tuple[tuple[str, str], ...]], ...]
    total: int


def comparisons(record: RunRecord) -> list[Comparison]:
    """Every decided round whose evaluations kept texts; items that changed come first, losses before gains."""
    found = []
    for row in record.verdicts:
        folders = [record.evaluations.get((key, DEV)) for key in (row.champion, row.challenger)]
        if folders[0] is None or folders[1] is None:
            continue
        kept = sampled_keys(record, folders[0]) & sampled_keys(record, folders[1])
        old, new = ({key: value for key, value in item_scores(record, folder).items() if key in kept} for folder in folders if folder)
        pairs = choose_pairs(old, new, _SHOWN)
        wanted = {pair.key for pair in pairs}
        before, after = (read_texts(record, folder, wanted) for folder in folders if folder)
        every = choose_pairs(old, new, {"lost": len(kept), "gained": len(kept)})
        found.append(
            Comparison(
                round=row.round,
                champion=record.title(row.champion),
                challenger=record.title(row.challenger),
                items=tuple(_side_by_side(p, before[p.key], after[p.key]) for p in pairs if p.key in before and p.key in after),
                lost=sum(pair.change == "lost" for pair in every),
                gained=sum(pair.change == "gained" for pair in every),
                kept=len(kept),
            )
        )
    return [comparison for comparison in found if comparison.items]


def _side_by_side(pair: Pair, before: Answer, after: Answer) -> SideBySide:
    task, item, sample = pair.key
    return SideBySide(
        task=task,
        item=item if sample == 0 else f"{item}, sample {sample}",
        change=pair.change,
        prompt=_text(after.prompt),
        target=_text(after.target),
        champion=_text(before.completion),
        challenger=_text(after.completion),
        champion_score=pair.champion,
        challenger_score=pair.challenger,
        champion_cut=before.finish == "length",
        challenger_cut=after.finish == "length",
    )


def step_samples(record: RunRecord) -> list[StepSamples]:
    """What mixers and stages handed to ``io.sample``."""
    return [found for step in record.steps if step.kind in ("data", "stage") and (found := _samples(record, step)) is not None]


def _samples(record: RunRecord, step: StepState) -> StepSamples | None:
    # A step that is still at work, or failed, has its samples beside its log.
    path = record.artifact(step.key) if step.committed else record.folder / "logs"
    path = path / "samples.jsonl" if step.committed else path / f"{step.step}.samples.jsonl"
    rows = list(record.lines(path))
    if not rows:
        return None
    spread = rows if len(rows) <= _SAMPLES else [rows[i * (len(rows) - 1) // (_SAMPLES - 1)] for i in range(_SAMPLES)]
    return StepSamples(step.step, tuple(_sample(row) for row in spread), len(rows))


def _sample(row: Mapping[str, Any]) -> tuple[tuple[Said, ...], tuple[tuple[str, str], ...]]:
    texts = {name: value for name, value in row.items() if isinstance(value, list | dict) or name in _TEXTS}
    facts = tuple((str(name), plain(value)) for name, value in row.items() if name not in texts and value not in (None, ""))
    order = sorted(texts, key=lambda name: _TEXTS.index(name) if name in _TEXTS else len(_TEXTS))
    return tuple(Said(name, _text(as_text(texts[name]))) for name in order), facts


_TEXTS = ("prompt", "messages", "text", "completion", "chosen", "rejected", "target", "reference")


def _text(text: str) -> Text:
    return Text(*clip(text, _LIMIT))
