"""What lies ahead: a plan with what is known of each step before it runs, and what the gates can prove. For ``steelyard plan``."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from steelyard.errors import GateRefusal
from steelyard.run.artifacts import ArtifactStore
from steelyard.run.folder import RunFolder
from steelyard.run.plan import Plan, Step

if TYPE_CHECKING:
    from steelyard.gate import PolicyConfig
    from steelyard.gate.power import GatePlan
    from steelyard.recipe.schema import Recipe, Round
    from steelyard.recipe.suite import Suite

__all__ = ["FurtherLook", "GateOutlook", "Outlook", "StepOutlook", "count_groups", "count_items", "look_ahead", "plan_gates"]


@dataclass(frozen=True)
class StepOutlook:
    """A step to come. ``key`` is the one it has if every gate before it promotes; ``determined`` says that it cannot be another.
    ``after`` is the gate that must be inconclusive for it to run. ``rows`` and ``optimiser_steps`` are None where not known yet."""

    id: str
    kind: str
    key: str
    determined: bool
    there: bool
    inputs: Mapping[str, str]
    rows: int | None = None
    tokens: int | None = None
    optimiser_steps: int | None = None
    rollout_steps: int | None = None
    """Of a stage that samples its own data; how many optimiser steps each of them gives depends on what is sampled."""
    after: str | None = None


@dataclass(frozen=True)
class GateOutlook:
    """A round's gate: ``plan`` is its first look, None when ``unknown`` tasks do not say how many items they have; ``further_looks`` are
    those it takes where it is inconclusive."""

    round: str
    plan: GatePlan | None
    unknown: tuple[str, ...] = ()
    required: bool = True
    further_looks: tuple[FurtherLook, ...] = ()

    @property
    def refusals(self) -> tuple[str, ...]:
        """The guards that the items cannot prove even at the last look, which has the most."""
        last = self.further_looks[-1].plan if self.further_looks else self.plan
        return last.refusals if last is not None else ()

    def to_json(self) -> dict[str, Any]:
        plan = self.plan.to_json() if self.plan is not None else None
        looks = [look.to_json() for look in self.further_looks]
        return {"round": self.round, "plan": plan, "unknown": list(self.unknown), "required": self.required, "further_looks": looks}


@dataclass(frozen=True)
class FurtherLook:
    """A look that follows an inconclusive one: the tasks that have more ``samples`` or ``items`` then, and what can be proven with them.
    ``plan`` counts the items alone, since nobody knows beforehand what more samples are worth."""

    samples: Mapping[str, int]
    items: Mapping[str, int]
    plan: GatePlan | None

    def to_json(self) -> dict[str, Any]:
        plan = self.plan.to_json() if self.plan is not None else None
        return {"samples": dict(self.samples), "items": dict(self.items), "plan": plan}


@dataclass(frozen=True)
class Outlook:
    """``disk_bytes`` is what the models and checkpoints of the run will take, None where the base model's size is not known."""

    steps: tuple[StepOutlook, ...]
    gates: tuple[GateOutlook, ...]
    disk_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        steps = [asdict(step) for step in self.steps]
        return {"steps": steps, "gates": [gate.to_json() for gate in self.gates], "disk_bytes": self.disk_bytes}

    def require_provable(self) -> None:
        """Errors: :class:`GateRefusal` naming every guard that its items cannot prove, where the recipe asks for that."""
        refusals = [f"round {gate.round!r}: {reason}" for gate in self.gates if gate.required for reason in gate.refusals]
        if refusals:
            raise GateRefusal([*refusals, "or set gate.require_power to false"])


def look_ahead(recipe: Recipe, plan: Plan, folder: RunFolder | None, recipe_dir: Path, dev: Suite | None) -> Outlook:
    """The outlook of a plan, with what the run in ``folder`` (None: no run yet) has done already."""
    store = ArtifactStore(folder.artifacts) if folder is not None else None
    keys, undetermined = plan.optimistic_keys(), plan.undetermined()
    steps: dict[str, StepOutlook] = {}
    for step in plan.steps:
        there = store is not None and store.has(keys[step.id])
        known = store.manifest(keys[step.id]).summary if there and store is not None else {}
        rows = known.get("rows") or _planned_rows(step, steps)
        steps[step.id] = StepOutlook(
            id=step.id,
            kind=step.kind,
            key=keys[step.id],
            determined=step.id not in undetermined,
            there=there,
            inputs={**step.inputs, **{role: model.ref for role, model in step.outside.items()}},
            rows=rows,
            tokens=known.get("tokens"),
            optimiser_steps=_planned_optimiser_steps(step, steps),
            rollout_steps=_planned_rollout_steps(step),
            after=step.after,
        )
    gates: tuple[GateOutlook, ...] = ()
    if dev is not None:
        listed = keys.get("items/dev", "")
        counts = count_items(store.path(listed)) if store is not None and store.has(listed) else {}
        evaluated = keys.get("eval/base/dev", "")
        groups = count_groups(store.path(evaluated)) if store is not None and store.has(evaluated) else {}
        gates = plan_gates(recipe, dev, counts, groups)
    return Outlook(tuple(steps.values()), gates, _disk(recipe, plan, recipe_dir))


def plan_gates(
    recipe: Recipe, dev: Suite, counted: Mapping[str, int], groups: Mapping[str, Sequence[int]] = MappingProxyType({})
) -> tuple[GateOutlook, ...]:
    """What each round's gate can prove. ``counted`` is the number of items by task, where the items have been listed; else the suite's own
    word for it counts. ``groups`` are the sizes of a task's groups where those count alike and have been counted.

    Errors: :class:`GateRefusal` where a policy does not fit the suite."""
    from steelyard.gate.power import plan_guards
    from steelyard.run.gating import round_policy

    # Of a task that neither guards nor weighs anything, the size does not matter.
    sizes = {task.name: counted.get(task.name) or task.items or (None if task.guard or task.weight else 1) for task in dev.tasks}
    items = {task.name: _limited(sizes[task.name], task.limit) for task in dev.tasks if sizes[task.name] is not None}
    variances = {task.name: task.discordance for task in dev.tasks if task.discordance is not None}
    unknown = tuple(name for name, size in sizes.items() if size is None)
    found = []
    for entry in recipe.rounds:
        required = recipe.gate_of(entry).require_power
        policy = round_policy(recipe, entry, dev)
        if not unknown and policy.policy == "non_inferiority":
            try:
                plan = plan_guards({**items, **_whole_groups(items, groups)}, policy, discordance=variances)
                further = range(2, policy.extensions + 2)
                looks = [_further_look(recipe, entry, dev, policy, look, sizes, groups, variances) for look in further]
                found.append(GateOutlook(entry.name, plan, (), required, tuple(looks)))
            except GateRefusal as refusal:
                raise GateRefusal(f"round {entry.name!r}: {reason}" for reason in refusal.reasons) from None
        else:
            found.append(GateOutlook(entry.name, None, unknown, required))
    return tuple(found)


def _limited(size: int | None, limit: int | None) -> int:
    return min(size or 0, limit or size or 0)


def _whole_groups(items: Mapping[str, int], groups: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """The groups of the tasks that were counted with as many items as they are planned with."""
    return {name: list(sizes) for name, sizes in groups.items() if name in items and sum(sizes) == items[name]}


def _further_look(
    recipe: Recipe,
    entry: Round,
    dev: Suite,
    policy: PolicyConfig,
    look: int,
    sizes: Mapping[str, int | None],
    groups: Mapping[str, Sequence[int]],
    variances: Mapping[str, float],
) -> FurtherLook:
    from steelyard.gate.power import plan_guards
    from steelyard.recipe.looks import looked_at_again

    larger = {task.name: task for task in looked_at_again(dev, policy, recipe.gate_of(entry).extend, look)}
    items = {task.name: _limited(sizes[task.name], larger.get(task.name, task).limit) for task in dev.tasks}
    before = {task.name: task for task in dev.tasks}
    return FurtherLook(
        samples={name: task.samples for name, task in larger.items() if task.samples > before[name].samples},
        items={name: items[name] for name, task in larger.items() if task.limit != before[name].limit},
        plan=plan_guards({**items, **_whole_groups(items, groups)}, policy.at_look(look), discordance=variances),
    )


def count_groups(folder: Path) -> dict[str, list[int]]:
    """By task, the sizes of its groups, from an evaluation folder; tasks without groups are left out."""
    with open(folder / "items.jsonl", encoding="utf-8") as lines:
        items = {(row["task"], row["id"], row.get("stratum")) for row in map(json.loads, lines)}
    found: dict[str, Counter[str]] = {}
    for task, _, stratum in items:
        if stratum is not None:
            found.setdefault(task, Counter())[stratum] += 1
    return {task: sorted(sizes.values()) for task, sizes in found.items()}


def count_items(folder: Path) -> dict[str, int]:
    """Items by task in the artifact of an ``items`` step."""
    with open(folder / "items.jsonl", encoding="utf-8") as lines:
        return dict(Counter(json.loads(line)["task"] for line in lines))


def _planned_rows(step: Step, before: Mapping[str, StepOutlook]) -> int | None:
    """Rows of a dataset that its recipe entry fixes; cleaning may take some away."""
    if step.kind == "decontaminate":
        return before[step.inputs["data"]].rows
    if step.kind != "data" or step.config["engine"] is not None:
        return None
    total = 0
    for source in step.config["sources"]:
        size = source["options"].get("rows")
        if source["count"] is not None:
            total += source["count"]
        elif isinstance(size, int) and source["weight"] is None:
            total += round(size * (source["fraction"] or source["epochs"] or 1))
        else:
            return None
    return total or None


def _planned_optimiser_steps(step: Step, before: Mapping[str, StepOutlook]) -> int | None:
    """What a stage's options say, by the names that stages commonly use for them."""
    if step.kind != "stage":
        return None
    options = step.config["options"]
    if _planned_rollout_steps(step) is not None:
        return None
    for name in ("max_steps", "steps"):
        if isinstance(options.get(name), int):
            return int(options[name])
    rows = before[step.inputs["data"]].rows if "data" in step.inputs else None
    epochs, batch_size = options.get("epochs"), options.get("batch_size")
    if rows is None or not isinstance(epochs, int | float) or not isinstance(batch_size, int):
        return None
    # The last step of an epoch may have fewer rows.
    return math.ceil(epochs * math.ceil(rows / batch_size))


def _planned_rollout_steps(step: Step) -> int | None:
    options = step.config["options"] if step.kind == "stage" else {}
    steps = options.get("steps")
    return steps if isinstance(steps, int) and "prompts_per_step" in options else None


def _disk(recipe: Recipe, plan: Plan, recipe_dir: Path) -> int | None:
    """Models: the base and one a stage. Checkpoints: two of one stage at a time, each the weights and two moments in float32."""
    ref = recipe.base.model
    path = recipe_dir / Path(ref).expanduser() if ref is not None else None
    if path is None or not path.exists():
        return None
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    weights = sum(file.stat().st_size for file in files)
    stages = sum(step.kind == "stage" for step in plan.steps)
    return (weights * (1 + stages) + (2 * 3 * weights if stages else 0)) or None
