"""Where the models come from, what was asked, what ran it, and how long each step took."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from steelyard.errors import SteelyardError
from steelyard.report.drawing import Bar
from steelyard.report.formatting import Fact, bytes_text, details, number, short
from steelyard.report.record import RunRecord, StepState
from steelyard.run.lineage import read_lineage

__all__ = ["Configuration", "Lineage", "Node", "StageConfig", "Timing", "configuration", "lineages", "timings"]


@dataclass(frozen=True)
class Node:
    """A model or dataset on a lineage, with what else it was made from in ``branches``: each a line of its own."""

    role: str
    title: str
    kind: str
    facts: tuple[Fact, ...]
    branches: tuple[tuple[Node, ...], ...] = ()


@dataclass(frozen=True)
class Lineage:
    """One model; ``standing`` says what it is in the run, ``line`` goes from it to the base."""

    standing: str
    line: tuple[Node, ...]


@dataclass(frozen=True)
class StageConfig:
    """A stage of a round with its resolved keys."""

    round: str
    name: str
    kind: str
    keys: tuple[Fact, ...]


@dataclass(frozen=True)
class Configuration:
    """What was asked and what ran it."""

    summary: str
    asked: tuple[Fact, ...]
    stages: tuple[StageConfig, ...]
    versions: tuple[Fact, ...]
    hardware: tuple[Fact, ...]
    plugins: tuple[tuple[str, str, str, str], ...]
    """(name, distribution, version, hash)."""
    sessions: tuple[Fact, ...]
    resolved: str
    """The whole resolved recipe as JSON."""


@dataclass(frozen=True)
class Timing:
    """One step; ``bar`` is its stretch of the run's working time."""

    step: str
    kind: str
    status: str
    seconds: float
    bar: Bar


def lineages(record: RunRecord) -> list[Lineage]:
    """The champion's first, then those of challengers that did not take the title."""
    champion, promoted = record.champion_key, {promotion.key for promotion in record.promotions}
    wanted = {champion: "champion"} if champion else {}
    for row in record.verdicts:
        if row.challenger not in promoted:
            wanted.setdefault(row.challenger, f"challenger of round {row.round}: {row.decision}")
    found = []
    for key, standing in wanted.items():
        try:
            found.append(Lineage(standing, _line(read_lineage(record.artifact(key)), "model", set())))
        except (SteelyardError, KeyError, TypeError, AttributeError) as error:
            record.note(f"the lineage of {record.title(key)} cannot be read: {error}")
    return found


def _line(lineage: Mapping[str, Any] | None, role: str, seen: set[str]) -> tuple[Node, ...]:
    """From a model down to the first one; a model that ``seen`` has is named and not followed again."""
    if lineage is None:
        return ()
    if lineage["key"] in seen:
        return (
            Node(role, str(lineage["step"]), str(lineage["kind"]), (("key", f"{short(lineage['key'])}…, told elsewhere in this tree"),)),
        )
    seen.add(lineage["key"])
    parents, data = lineage.get("parents") or {}, lineage.get("data")
    # The line itself is followed first, so that a reference that stands on it is only named.
    below = _line(parents.get("model"), "model", seen)
    branches: list[tuple[Node, ...]] = [(_data_node(data),)] if isinstance(data, Mapping) else []
    branches += [_line(parent, name, seen) for name, parent in parents.items() if name != "model"]
    node = Node(role, str(lineage["step"]), str(lineage["kind"]), _model_facts(lineage), tuple(branches))
    return (node, *below)


def _model_facts(lineage: Mapping[str, Any]) -> tuple[Fact, ...]:
    weights, parameters = lineage.get("weights_sha256"), lineage.get("parameters")
    facts = [("key", str(lineage["key"]))]
    facts += [("weights sha256", str(weights))] if weights else []
    facts += [("parameters", number(parameters))] if parameters else []
    facts += [("template", short(lineage["template_hash"]))] if lineage.get("template_hash") else []
    if lineage.get("origin"):
        random = bool(_mapping(lineage.get("config")).get("new"))
        facts.append(("from", "random weights" if random else str(lineage["origin"])))
    facts += [("outside", str(lineage["outside"]))] if lineage.get("outside") else []
    facts += [("makes", "a reward model")] if lineage.get("makes") == "reward_model" else []
    return tuple(facts)


def _data_node(data: Mapping[str, Any]) -> Node:
    shares = ", ".join(str(share.get("source")) for share in data.get("shares") or ())
    certificate = data.get("certificate")
    told = "no decontamination certificate"
    if isinstance(certificate, Mapping):
        suites = ", ".join(f"{name} {version}" for name, version in certificate["suites"].items())
        told = f"{certificate['decision']} against {suites}"
    facts = [("key", str(data["key"])), ("rows", number(data.get("rows"))), ("sources", shares), ("decontamination", told)]
    return Node("data", str(data.get("step", "")), "dataset", tuple(fact for fact in facts if fact[1]))


def configuration(record: RunRecord) -> Configuration:
    """The resolved recipe in short and in full, and the sessions that ran it."""
    recipe, sessions = record.resolved, record.sessions
    last = sessions[-1] if sessions else {}
    return Configuration(
        summary=str(recipe.get("summary") or ""),
        asked=tuple(_asked(recipe)),
        stages=tuple(_stages(recipe)),
        versions=tuple(_versions(last)),
        hardware=tuple(_hardware(_mapping(last.get("hardware")))),
        plugins=tuple(
            (str(p.get("name", "")), str(p.get("distribution", "")), str(p.get("version", "")), short(p.get("hash")))
            for p in last.get("plugins") or ()
            if isinstance(p, Mapping)
        ),
        sessions=tuple((str(session.get("started", "")), str(session.get("command", ""))) for session in sessions),
        resolved=json.dumps(recipe, indent=2, ensure_ascii=False) if recipe else "",
    )


def _asked(recipe: Mapping[str, Any]) -> Iterator[Fact]:
    base = _mapping(recipe.get("base"))
    if base:
        told = base.get("model") or ("a new model" if base.get("new") else "")
        revision = f" at {base['revision']}" if base.get("revision") else ""
        yield "base", f"{told}{revision}"
        rest = {key: value for key, value in base.items() if key not in ("model", "revision", "new") and value is not None}
        yield from ((key.replace("_", " "), details(value)) for key, value in rest.items())
    if "seed" in recipe:
        yield "seed", details(recipe["seed"])
    for name in ("engine", "launcher"):
        if recipe.get(name):
            yield name, details(_mapping(recipe[name]))
    for name in ("suites", "decontaminate", "gate"):
        if recipe.get(name):
            yield name, details(_mapping(recipe[name]))


def _stages(recipe: Mapping[str, Any]) -> Iterator[StageConfig]:
    for entry in recipe.get("rounds") or ():
        for stage in _mapping(entry).get("stages") or ():
            given = {key: value for key, value in stage.items() if key not in ("name", "kind") and value not in (None, {}, [])}
            keys = tuple((key, details(value)) for key, value in given.items())
            yield StageConfig(str(entry.get("name", "")), str(stage.get("name", "")), str(stage.get("kind", "")), keys)


def _versions(session: Mapping[str, Any]) -> Iterator[Fact]:
    for name in ("steelyard", "python", "platform"):
        if session.get(name):
            yield name, str(session[name])
    for name, version in _mapping(session.get("libraries")).items():
        yield str(name), str(version)
    git = session.get("git")
    if isinstance(git, Mapping):
        yield "git", f"{git.get('commit')}{' with changes that are not committed' if git.get('dirty') else ''}"


def _hardware(hardware: Mapping[str, Any]) -> Iterator[Fact]:
    for name, value in hardware.items():
        if name == "memory_bytes":
            yield "memory", bytes_text(value)
        elif name == "accelerators":
            yield "accelerators", ", ".join(map(str, value)) if value else "none"
        elif value not in (None, ""):
            yield name.replace("_", " "), details(value)


def timings(record: RunRecord) -> list[Timing]:
    """Every step in the order started, with its share of the time the steps took together."""
    total = sum(step.seconds for step in record.steps) or 1.0
    found, start = [], 0.0
    for step in record.steps:
        found.append(_timing(step, start, total))
        start += step.seconds
    return found


def _timing(step: StepState, start: float, total: float) -> Timing:
    bar = Bar(round(100 * start / total, 2), round(100 * step.seconds / total, 2))
    return Timing(step.step, step.kind, step.status, step.seconds, bar)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
