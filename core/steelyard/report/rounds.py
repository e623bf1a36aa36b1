"""The rounds: where the run stands, the ladder of promotions, and each gate's paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steelyard.report.drawing import Axis, Strip, axis_over
from steelyard.report.evaluations import Changes, changed_items, item_scores, task_facts
from steelyard.report.formatting import number
from steelyard.report.record import RunRecord

__all__ = ["DEV", "Headline", "Ladder", "Note", "RoundView", "Rung", "TaskLine", "headline", "ladder", "round_views"]

DEV = "dev"


@dataclass(frozen=True)
class Note:
    """A line under the verdict; ``alarm`` sets off one that nobody should overlook."""

    text: str
    alarm: bool = False


@dataclass(frozen=True)
class Headline:
    """The top of the page. ``tone`` is ``promote``, ``reject``, ``inconclusive``, ``failed`` or ``quiet``."""

    tone: str
    title: str
    sentence: str
    gain: float | None
    champion: str
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class TaskLine:
    """A task in a round's comparison; differences and bounds in score units."""

    name: str
    n: int
    champion: float | None
    challenger: float | None
    diff: float
    lower: float | None
    upper: float | None
    margin: float | None
    status: str
    changes: Changes | None
    strip: Strip


@dataclass(frozen=True)
class RoundView:
    """A gate and what it decided."""

    name: str
    decision: str
    sentence: str
    champion: str
    challenger: str
    average: TaskLine
    p_improved: float | None
    alpha: float | None
    tasks: tuple[TaskLine, ...]
    axis: Axis
    objections: tuple[str, ...]
    policy: str
    last: bool
    """Whether its sentence stands at the top of the page."""


@dataclass(frozen=True)
class Rung:
    """A step of the ladder: who held the title after a round, who had challenged, and what it was worth."""

    round: str
    decision: str
    champion: str
    key: str
    challenger: str
    average: float | None
    diff: float | None
    lower: float | None
    upper: float | None
    dot: float | None
    """Where the champion's average stands on the ladder's axis, in percent."""
    from_dot: float | None
    """Where the former champion's average stands, after a promotion."""
    challenger_dot: float | None
    """Where a refused challenger's average stands."""


@dataclass(frozen=True)
class Ladder:
    """The champion after each round, and the scores of every evaluation: ``scores[task]`` has one value a column."""

    rungs: tuple[Rung, ...]
    axis: Axis
    columns: tuple[tuple[str, str], ...]
    """(model, role of the suite), one a column."""
    scores: Mapping[str, tuple[float | None, ...]]


def headline(record: RunRecord) -> Headline:
    """Where the run stands, in the reader's words."""
    failure = _open_failure(record)
    champion = record.champion_key
    common: dict[str, Any] = {"champion": record.title(champion) if champion else "", "notes": tuple(_notes(record))}
    if record.verdicts:
        last = record.verdicts[-1]
        promoted = sum(verdict.decision == "promote" for verdict in record.verdicts)
        total = max(len(record.round_names), len(record.verdicts))
        title = _title(last.decision, promoted, len(record.verdicts), total)
        gain = _number(_mapping(last.verdict.get("average")).get("diff"))
        if failure:
            common["notes"] = (Note(failure, alarm=True), *common["notes"])
        return Headline(tone=last.decision, title=title, sentence=last.sentence, gain=gain, **common)
    if failure:
        return Headline(tone="failed", title="Failed before the first verdict", sentence=failure, gain=None, **common)
    if record.promotions:
        sentence = f"nothing to gate: the recipe has no dev suite, so that {common['champion']} took the title without being weighed"
        return Headline(tone="quiet", title="Done, without a gate", sentence=sentence, gain=None, **common)
    done = sum(step.committed for step in record.steps)
    last_step = f", the last was {record.steps[-1].step} ({record.steps[-1].status})" if record.steps else ""
    sentence = f"no round has been decided: {done} steps are done{last_step}"
    return Headline(tone="quiet", title="No verdict yet", sentence=sentence, gain=None, **common)


def _title(decision: str, promoted: int, decided: int, total: int) -> str:
    word = {"promote": "Promoted", "reject": "Rejected", "inconclusive": "Inconclusive"}.get(decision, decision.capitalize())
    if total == 1:
        return word
    if promoted == decided == total:
        return f"Promoted in {'both' if total == 2 else f'all {total}'} rounds"
    left = "" if decided == total else f", {total - decided} not decided"
    share = f"promoted in {promoted} of {decided} round{'' if decided == 1 else 's'}{left}" if promoted else f"no round promoted{left}"
    return share.capitalize() if decision == "promote" else f"{word}; {share}"


def _open_failure(record: RunRecord) -> str:
    """The failure the run stands at; empty when it went on after its last one."""
    if not record.failures or not record.steps:
        return ""
    last = record.failures[-1]
    state = next((step for step in record.steps if step.step == last.step), None)
    return "" if state is None or state.status != "failed" else f"step {last.step} failed: {last.message}"


def _notes(record: RunRecord) -> list[Note]:
    notes = [Note(f"step {step.step} was interrupted; `steelyard resume` goes on") for step in record.steps if step.status == "interrupted"]
    gap = record.json(record.folder / "unseen.json")
    if gap.get("sentence"):
        opened = gap.get("opened")
        told = f"; the unseen suite was opened {opened} time{'' if opened == 1 else 's'}" if opened else ""
        notes.append(Note(f"{gap['sentence']}{told}", alarm=bool(gap.get("overfitted"))))
    return notes


def round_views(record: RunRecord) -> list[RoundView]:
    """Every decided round, in order."""
    views = []
    for row in record.verdicts:
        verdict = row.verdict
        average, tasks = _mapping(verdict.get("average")), _mapping(verdict.get("tasks"))
        changes = _changes(record, row.champion, row.challenger)
        values = [v for t in (average, *tasks.values()) for v in _extent(_mapping(t))]
        axis = axis_over([100 * value for value in values])
        weights = _weights(record, row.round, row.challenger)
        whole = {
            **average,
            "n": sum(int(_mapping(task).get("n") or 0) for task in tasks.values()),
            "champion": _weighted({name: _number(_mapping(t).get("champion")) for name, t in tasks.items()}, weights),
            "challenger": _weighted({name: _number(_mapping(t).get("challenger")) for name, t in tasks.items()}, weights),
            "upper": _upper(average),
        }
        views.append(
            RoundView(
                name=row.round,
                decision=row.decision,
                sentence=row.sentence,
                champion=record.title(row.champion),
                challenger=record.title(row.challenger),
                average=_line("average", whole, None, axis),
                p_improved=_number(average.get("p_improved")),
                alpha=_number(average.get("alpha")),
                tasks=tuple(_line(name, _mapping(task), changes.get(name), axis) for name, task in tasks.items()),
                axis=axis,
                objections=tuple(map(str, verdict.get("objections") or ())),
                policy=str(verdict.get("policy", "")),
                last=row is record.verdicts[-1],
            )
        )
    return views


def _changes(record: RunRecord, champion: str, challenger: str) -> dict[str, Changes]:
    sides = [record.evaluations.get((key, DEV)) for key in (champion, challenger)]
    if sides[0] is None or sides[1] is None:
        return {}
    return changed_items(item_scores(record, sides[0]), item_scores(record, sides[1]))


def _line(name: str, task: Mapping[str, Any], changes: Changes | None, axis: Axis) -> TaskLine:
    diff, lower, upper = _number(task.get("diff")) or 0.0, _number(task.get("lower")), _number(task.get("upper"))
    margin = _number(task.get("margin"))
    strip = Strip(
        point=axis.at(100 * diff),
        low=None if lower is None else axis.at(100 * lower),
        high=None if upper is None else axis.at(100 * upper),
        margin=None if margin is None else axis.at(-100 * margin),
    )
    return TaskLine(
        name=name,
        n=int(task.get("n") or 0),
        champion=_number(task.get("champion")),
        challenger=_number(task.get("challenger")),
        diff=diff,
        lower=lower,
        upper=upper,
        margin=margin,
        status=str(task.get("status") or ""),
        changes=changes,
        strip=strip,
    )


def _extent(task: Mapping[str, Any]) -> list[float]:
    """Everything of a task that its strip must have room for."""
    margin, upper = _number(task.get("margin")), _upper(task)
    found = [_number(task.get("diff")), _number(task.get("lower")), upper, None if margin is None else -margin]
    return [value for value in found if value is not None]


def _upper(task: Mapping[str, Any]) -> float | None:
    """The upper bound; the average's is as far above the difference as its lower bound is below."""
    upper, lower, diff = _number(task.get("upper")), _number(task.get("lower")), _number(task.get("diff"))
    return upper if upper is not None or lower is None or diff is None else 2 * diff - lower


def ladder(record: RunRecord) -> Ladder:
    """Base first, then the champion after each round."""
    start = record.verdicts[0].champion if record.verdicts else record.base_key
    if start is None:
        return Ladder((), axis_over([]), (), {})
    by_round = {row.round: row for row in record.verdicts}
    rounds = list(dict.fromkeys([*by_round, *(row.round for row in record.promotions)]))
    title = start
    found: list[tuple[str, str, str, str, Mapping[str, Any]]] = [("", "start", start, "", {})]
    for name in rounds:
        row = by_round.get(name)
        promotion = next((p for p in record.promotions if p.round == name), None)
        title = promotion.key if promotion else title
        challenger = row.challenger if row else title
        found.append((name, row.decision if row else "ungated", title, challenger, _mapping(row.verdict.get("average")) if row else {}))
    averages = {key: _average(record, name, key) for name, _, *keys, _ in found for key in keys if key}
    known = [100 * value for value in averages.values() if value is not None]
    axis = axis_over(known, label=number)
    before = [None, *(key for _, _, key, _, _ in found)]
    rungs = [
        Rung(
            round=name,
            decision=decision,
            champion=record.title(key),
            key=key,
            challenger=record.title(challenger) if challenger else "",
            average=averages.get(key),
            diff=_number(average.get("diff")),
            lower=_number(average.get("lower")),
            upper=_upper(average),
            dot=_at(axis, averages.get(key)),
            from_dot=_at(axis, averages.get(former)) if former not in (None, key) else None,
            challenger_dot=_at(axis, averages.get(challenger)) if challenger != key else None,
        )
        for (name, decision, key, challenger, average), former in zip(found, before, strict=False)
    ]
    columns, scores = _score_table(record, [key for _, _, key, _, _ in found])
    return Ladder(tuple(rungs), axis, columns, scores)


def _at(axis: Axis, value: float | None) -> float | None:
    return None if value is None else axis.at(100 * value)


def _average(record: RunRecord, round_name: str, key: str) -> float | None:
    folder = record.evaluations.get((key, DEV))
    if folder is None:
        return None
    scores = {name: _number(facts.get("score")) for name, facts in task_facts(record, folder).items()}
    return _weighted(scores, _weights(record, round_name, key))


def _weights(record: RunRecord, round_name: str, key: str) -> Mapping[str, float]:
    """The suite's weights, under those of the recipe's gate and the round's."""
    folder = record.evaluations.get((key, DEV))
    facts = task_facts(record, folder) if folder is not None else {}
    weights = {name: _number(task.get("weight")) for name, task in facts.items()}
    found = {name: 1.0 if weight is None else weight for name, weight in weights.items()}
    entry = next((r for r in record.resolved.get("rounds") or () if isinstance(r, Mapping) and r.get("name") == round_name), {})
    for gate in (record.resolved.get("gate"), entry.get("gate")):
        given = _mapping(_mapping(gate).get("weights"))
        found |= {name: value for name, value in given.items() if isinstance(value, int | float)}
    return found


def _weighted(scores: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    known = {name: value for name, value in scores.items() if value is not None and weights.get(name, 1.0) > 0}
    total = math.fsum(weights.get(name, 1.0) for name in known)
    return math.fsum(weights.get(name, 1.0) * value for name, value in known.items()) / total if total else None


def _score_table(record: RunRecord, champions: Sequence[str]) -> tuple[tuple[tuple[str, str], ...], dict[str, tuple[float | None, ...]]]:
    """Dev scores of the base and of every champion in turn, then what was evaluated on other suites."""
    ordered = list(dict.fromkeys(champions))
    roles = [DEV, *sorted({role for _, role in record.evaluations} - {DEV})]
    cells = [(key, role) for role in roles for key in ordered if (key, role) in record.evaluations]
    facts = [task_facts(record, record.evaluations[cell]) for cell in cells]
    names = list(dict.fromkeys(name for tasks in facts for name in tasks))
    scores = {name: tuple(_number(_mapping(tasks.get(name)).get("score")) for tasks in facts) for name in names}
    return tuple((record.title(key), role) for key, role in cells), scores


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None
