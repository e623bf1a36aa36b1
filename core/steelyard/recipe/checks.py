"""What no single section can see: names that must exist, models that must come earlier, keys that must suit each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from steelyard.errors import PluginError, RecipeError, SteelyardError, UsageError, nearest
from steelyard.plugins import Registry
from steelyard.recipe.complaints import Complaints, Location, complaints_in
from steelyard.recipe.entries import DataEntry, EngineEntry, StageEntry
from steelyard.recipe.model_refs import check_models
from steelyard.recipe.schema import GateEntry, Recipe
from steelyard.recipe.suite import Suite, load_suite

__all__ = ["check"]


def check(recipe: Recipe, registry: Registry, base: Path) -> Complaints:
    """Everything that does not fit together."""
    complaints = Complaints()
    _files(recipe, base, complaints)
    suites = _suites(recipe, registry, base, complaints)
    _names(recipe, complaints)
    _data(recipe, registry, complaints)
    for at, stage in _stages(recipe):
        _stage(recipe, registry, at, stage, complaints)
        _engine(recipe.engine, stage.engine, (*at, "engine"), registry, complaints)
    check_models(recipe, registry, base, complaints)
    _engine(recipe.engine, recipe.evaluate.engine, ("evaluate", "engine"), registry, complaints)
    _gates(recipe, registry, suites.get("dev"), complaints)
    _openings(recipe, complaints)
    return complaints


def _stages(recipe: Recipe) -> Iterator[tuple[Location, StageEntry]]:
    for r, round_ in enumerate(recipe.rounds):
        for s, stage in enumerate(round_.stages):
            yield ("rounds", r, "stages", s), stage


def _files(recipe: Recipe, base: Path, complaints: Complaints) -> None:
    model, template = recipe.base.model, recipe.base.chat_template
    if model is not None and _is_path(model) and not (base / Path(model).expanduser()).exists():
        complaints.add(("base", "model"), f"no file or folder {model!r} in {str(base)!r}")
    if template is not None and template.endswith(".jinja") and not (base / Path(template).expanduser()).is_file():
        complaints.add(("base", "chat_template"), f"no file {template!r} in {str(base)!r}")

    for name, entry in recipe.data.items():
        for index, source in enumerate(entry.sources):
            for key, path in _source_paths(source.options):
                if not (base / Path(path).expanduser()).exists():
                    complaints.add(("data", name, "sources", index, key), f"no file or folder {path!r} in {str(base)!r}")


def _source_paths(options: Any) -> Iterator[tuple[str, str]]:
    """By convention, ``path`` of a source is a path or a list of them, and ``dataset`` may be one; patterns are the source's own."""
    paths, dataset = getattr(options, "path", None), getattr(options, "dataset", None)
    for path in [paths] if isinstance(paths, str) else paths if isinstance(paths, list) else ():
        if isinstance(path, str) and not set(path) & set("*?["):
            yield "path", path
    if isinstance(dataset, str) and _is_path(dataset):
        yield "dataset", dataset


def _is_path(model: str) -> bool:
    """Whether a model reference can be nothing but a path; ``owner/name`` may be either."""
    return model.startswith((".", "/", "~")) or model.endswith(".gguf")


def _suites(recipe: Recipe, registry: Registry, base: Path, complaints: Complaints) -> dict[str, Suite]:
    suites: dict[str, Suite] = {}
    for role, ref in recipe.suites.items():
        try:
            suites[role] = load_suite(ref, registry, base)
            registry.get("harnesses", suites[role].harness)
        except RecipeError as error:
            complaints.add(("suites", role), f"suite {ref!r}: {error}")
        except (UsageError, PluginError) as error:
            complaints.add(("suites", role), str(error), of_plugin=isinstance(error, PluginError))
    dev, unseen = suites.get("dev"), suites.get("unseen")
    if dev is not None and unseen is not None and (dev.path == unseen.path or dev.name == unseen.name):
        complaints.add(("suites", "unseen"), f"dev and unseen are both the suite {dev.name!r}: what gates see is not unseen; name another")
    for index, role in enumerate(recipe.decontaminate.against):
        if role not in recipe.suites:
            complaints.add(("decontaminate", "against", index), f"no suite has the role {role!r}{nearest(role, recipe.suites)}")
    return suites


def _names(recipe: Recipe, complaints: Complaints) -> None:
    rounds: set[str] = set()
    for r, round_ in enumerate(recipe.rounds):
        if round_.name in rounds:
            complaints.add(("rounds", r, "name"), f"two rounds are named {round_.name!r}: change one")
        rounds.add(round_.name)
        stages: set[str] = set()
        for s, stage in enumerate(round_.stages):
            if stage.name in stages:
                complaints.add(("rounds", r, "stages", s, "name"), f"two stages of a round are named {stage.name!r}: name them")
            stages.add(stage.name)


def _data(recipe: Recipe, registry: Registry, complaints: Complaints) -> None:
    for name, entry in recipe.data.items():
        at: Location = ("data", name)
        if entry.prompts is not None and entry.prompts not in recipe.data:
            complaints.add((*at, "prompts"), f"no data entry {entry.prompts!r}{nearest(entry.prompts, recipe.data)}")
        path = _circle(recipe.data, name)
        if path and name == min(path):
            complaints.add((*at, "prompts"), f"data entries go round in a circle: {' → '.join([*path, path[0]])}")
        spec = registry.get("mixers", entry.kind)
        if spec.needs_verifiers and not recipe.verifiers_of(entry):
            complaints.add(at, f"data entry {name!r} of kind {entry.kind!r} needs 'verifiers'")


def _circle(data: Mapping[str, DataEntry], start: str) -> list[str]:
    """The entries of the circle of `prompts` that ``start`` is in; empty when it is in none."""
    path = [start]
    while (following := data[path[-1]].prompts) is not None and following in data:
        if following == start:
            return path
        if following in path:
            return []
        path.append(following)
    return []


def _stage(recipe: Recipe, registry: Registry, at: Location, stage: StageEntry, complaints: Complaints) -> None:
    spec = registry.get("stages", stage.kind)
    if spec.needs_verifiers and not recipe.verifiers_of(stage):
        complaints.add(at, f"stage {stage.name!r} of kind {stage.kind!r} needs 'verifiers'")
    if stage.data is None:
        return
    if stage.data not in recipe.data:
        complaints.add((*at, "data"), f"no data entry {stage.data!r}{nearest(stage.data, recipe.data)}")
        return
    made = registry.get("mixers", recipe.data[stage.data].kind).produces
    if made is not None and made != spec.data:
        kind = recipe.data[stage.data].kind
        complaints.add(
            (*at, "data"),
            f"stage {stage.name!r} of kind {stage.kind!r} trains on {spec.data!r} rows, and data entry {stage.data!r} of kind "
            f"{kind!r} makes {made!r} rows",
        )


def _engine(engine: EngineEntry, overrides: Mapping[str, Any], at: Location, registry: Registry, complaints: Complaints) -> None:
    if not overrides:
        return
    if "kind" in overrides:
        complaints.add((*at, "kind"), "one engine serves the whole recipe: only its other keys can differ")
        return
    try:
        engine.overridden(overrides, registry)
    except ValidationError as error:
        for complaint in complaints_in(error, EngineEntry, overrides, EngineEntry.what):
            complaints.add((*at, *complaint.location), complaint.message, of_plugin=complaint.of_plugin)


def _gates(recipe: Recipe, registry: Registry, dev: Suite | None, complaints: Complaints) -> None:
    _gate(recipe.gate, {"policy", "margins", "weights", "guards"}, ("gate",), registry, dev, complaints)
    _extensions(recipe.gate, ("gate",), dev, complaints)
    for index, round_ in enumerate(recipe.rounds):
        at: Location = ("rounds", index, "gate")
        try:
            gate = recipe.gate.overridden(round_.gate)
        except ValidationError as error:
            for complaint in complaints_in(error, GateEntry, round_.gate, GateEntry.what):
                complaints.add((*at, *complaint.location), complaint.message, of_plugin=complaint.of_plugin)
        else:
            _gate(gate, set(round_.gate), at, registry, dev, complaints)
            if {"extensions", "extend", "weights", "guards"} & set(round_.gate):
                _extensions(gate, at, dev, complaints)


def _openings(recipe: Recipe, complaints: Complaints) -> None:
    """The rounds behind which the unseen suite is opened must exist, and so must the suite."""
    at: Location = ("evaluate", "unseen")
    if isinstance(recipe.evaluate.unseen, list):
        known = [round_.name for round_ in recipe.rounds]
        for index, name in enumerate(recipe.evaluate.unseen):
            if name not in known:
                complaints.add((*at, index), f"no round is named {name!r}{nearest(name, known)}")
        if recipe.evaluate.unseen and "unseen" not in recipe.suites:
            complaints.add(at, "the recipe has no suite of the role 'unseen' to open: name one under suites")


def _extensions(gate: GateEntry, at: Location, dev: Suite | None, complaints: Complaints) -> None:
    from steelyard.recipe.looks import why_not_extended

    if gate.extensions and dev is None:
        complaints.add((*at, "extensions"), "the recipe has no suite of the role 'dev', so that there is no gate to look again")
    elif dev is not None and (reason := why_not_extended(dev, gate, gate.extend)):
        complaints.add((*at, "extensions"), reason)


def _gate(gate: GateEntry, given: set[str], at: Location, registry: Registry, dev: Suite | None, complaints: Complaints) -> None:
    """Of the keys ``given``: the policy must exist, and tasks that are named must be in the suite that gates see."""
    if "policy" in given:
        try:
            registry.get("gate_policies", gate.policy)
        except SteelyardError as error:
            complaints.add((*at, "policy"), str(error), of_plugin=isinstance(error, PluginError))
    if dev is None:
        return
    tasks = {task.name for task in dev.tasks}
    named: list[tuple[Location, str]] = []
    if "margins" in given:
        named += [(("margins", name), name) for name in gate.margins if name != "default"]
    if "weights" in given:
        named += [(("weights", name), name) for name in gate.weights]
    if "guards" in given and isinstance(gate.guards, list):
        named += [(("guards", index), name) for index, name in enumerate(gate.guards)]
    for location, name in named:
        if name not in tasks:
            complaints.add((*at, *location), f"the suite {dev.name!r} has no task {name!r}{nearest(name, tasks)}")
