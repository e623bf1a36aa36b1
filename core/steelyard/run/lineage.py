"""What a model was made from: ``lineage.json`` in every model folder, nested down to the base, so that it holds away from its run too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.errors import DataError, UsageError
from steelyard.run.artifacts import read_manifest

if TYPE_CHECKING:
    from steelyard.run.tasks import Task
    from steelyard.run.weights import WeightsFacts

__all__ = ["LINEAGE_NAME", "Branch", "branches", "find_lineage", "model_lineage", "read_lineage", "write_lineage"]

LINEAGE_NAME = "lineage.json"
_MODEL_ROLES = ("model", "reference")
_NAMED_MODEL = "model:"


def model_lineage(
    task: Task,
    inputs: Mapping[str, Path],
    kind: str,
    weights: WeightsFacts | None,
    facts: Mapping[str, Any],
    sandbox: str | None = None,
    *,
    makes: str = "policy",
) -> dict[str, Any]:
    """The lineage of the model that ``task`` made. Holds no time and no path: the same work gives the same text.

    Keys: ``format``, ``step``, ``kind``, ``key``, ``config``, ``seed`` (None of a base that was there already), ``weights_sha256``,
    ``parameters``, ``template_hash``, ``origin`` (of a base), ``sandbox`` (what model-written code ran in, if any did), ``data`` (step,
    key, rows, shares, sandbox, certificate) and ``parents`` (role → the lineage of that model). One from outside the run has the reference
    to it as ``outside``; a reward model has ``makes``. Of several models with a common past the later ones name what an earlier one tells.
    """
    parents: dict[str, dict[str, Any]] = {}
    for role in _MODEL_ROLES:
        # A reference that is the starting model itself is said once.
        if role in inputs and task.input_keys[role] not in [parent["key"] for parent in parents.values()]:
            parents[role] = read_lineage(inputs[role])
    told = {_identity(ancestor) for parent in parents.values() for ancestor in _walk(parent)}
    for role in sorted(name for name in inputs if name.startswith(_NAMED_MODEL)):
        outside = task.outside.get(role)
        parents[role] = _without_told(outside.lineage() if outside is not None else read_lineage(inputs[role]), told)
        told |= {_identity(ancestor) for ancestor in _walk(parents[role])}
    return {
        "format": 1,
        "step": task.step,
        "kind": kind,
        **({"makes": makes} if makes != "policy" else {}),
        "key": task.key,
        "config": dict(task.config.get("options") or task.config.get("base") or {}),
        "seed": task.seed if _draws(task) else None,
        "weights_sha256": weights.sha256 if weights else None,
        "parameters": weights.parameters if weights else None,
        "template_hash": facts.get("template_hash"),
        "origin": facts.get("origin") or None,
        "sandbox": sandbox,
        "data": _dataset(inputs["data"], task.input_keys["data"]) if "data" in inputs else None,
        "parents": parents,
    }


def _identity(lineage: Mapping[str, Any]) -> tuple[str, str | None]:
    return str(lineage["key"]), lineage.get("weights_sha256")


def _walk(lineage: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield lineage
    for parent in lineage["parents"].values():
        yield from _walk(parent)


def _without_told(lineage: dict[str, Any], told: Set[tuple[str, str | None]]) -> dict[str, Any]:
    """The lineage, cut where it comes to models whose own is told already: merged models would else repeat their common past with
    every merge."""
    if _identity(lineage) in told:
        return {**lineage, "config": {}, "data": None, "parents": {}, "told": True}
    return {**lineage, "parents": {role: _without_told(parent, told) for role, parent in lineage["parents"].items()}}


def _draws(task: Task) -> bool:
    """Whether the seed decides anything: a base that is there already is the same under every seed."""
    base = task.config.get("base")
    return base is None or base.get("new") is not None


def _dataset(folder: Path, key: str) -> dict[str, Any]:
    facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    certificate = folder / "certificate.json"
    return {
        "step": read_manifest(folder).step,
        "key": key,
        "rows": facts.get("rows"),
        "shares": facts.get("shares", []),
        "sandbox": facts.get("sandbox"),
        "certificate": json.loads(certificate.read_text(encoding="utf-8")) if certificate.is_file() else None,
    }


def write_lineage(folder: Path, lineage: Mapping[str, Any]) -> None:
    """Writes ``lineage.json`` into a model folder that is not published yet."""
    (folder / LINEAGE_NAME).write_text(json.dumps(lineage, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_lineage(folder: Path) -> dict[str, Any]:
    """The lineage of a model folder. Errors: :class:`UsageError` where there is none, :class:`DataError` for one that is torn."""
    path = folder / LINEAGE_NAME
    try:
        lineage = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{str(folder)!r} has no {LINEAGE_NAME}: it was not made by Steelyard") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}") from None
    if not isinstance(lineage, dict) or lineage.get("format") != 1:
        raise DataError(f"{str(path)!r} is not a lineage of format 1")
    return lineage


def find_lineage(place: Path) -> dict[str, Any]:
    """The lineage of a model folder, or of a run's champion. Errors: as :func:`read_lineage`."""
    if not place.exists():
        raise UsageError(f"no model folder and no run folder at {str(place)!r}")
    champion = place / "champion"
    if champion.exists() and not (place / LINEAGE_NAME).is_file():
        return read_lineage(champion)
    if (place / "resolved.json").is_file() and not (place / LINEAGE_NAME).is_file():
        raise UsageError(f"the run in {str(place)!r} has no model yet: `steelyard resume {place}` goes on with it")
    return read_lineage(place)


@dataclass(frozen=True)
class Branch:
    """A line of the tree: how deep it stands, the role it plays for the line above, what it is, and facts about it."""

    depth: int
    role: str
    title: str
    facts: str


def branches(lineage: Mapping[str, Any], role: str = "", depth: int = 0) -> Iterator[Branch]:
    """The lineage as the lines of a tree, the model itself first, then what it was made from."""
    weights, parameters = lineage.get("weights_sha256"), lineage.get("parameters")
    facts = [f"key {lineage['key'][:12]}"]
    facts += [f"{parameters:,} parameters"] if parameters else []
    facts += [f"weights sha256 {weights[:12]}"] if weights else []
    facts += [f"from {lineage['origin']}"] if lineage.get("origin") else []
    facts += [f"is {lineage['outside']}"] if lineage.get("outside") else []
    facts += ["told above"] if lineage.get("told") else []
    yield Branch(depth, role, f"{lineage['step']} ({lineage['kind']})", ", ".join(facts))
    data = lineage.get("data")
    if data:
        facts = [f"{data['rows']:,} rows", f"key {data['key'][:12]}", _certified(data["certificate"])]
        yield Branch(depth + 1, "data", data["step"], ", ".join(facts))
    for name, parent in lineage["parents"].items():
        yield from branches(parent, name, depth + 1)


def _certified(certificate: Mapping[str, Any] | None) -> str:
    if certificate is None:
        return "no decontamination certificate"
    suites = ", ".join(f"{name} {version}" for name, version in certificate["suites"].items())
    return f"{certificate['decision']} against {suites}"
