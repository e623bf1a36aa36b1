"""The plan: a resolved recipe written out as steps, each with the inputs it needs and the key its result will have.

Planning is pure: it reads the recipe, the plugins' descriptors and the fingerprints of outside files, starts nothing and imports no
heavy library. Which model is the champion is known only once the gates before it have decided; such an input is dynamic, and a plan's
keys are then *optimistic*: those that hold if every gate promotes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steelyard.errors import UsageError, nearest
from steelyard.recipe.model_refs import is_outside, last_policy, makes_policy, verifier_models, verifiers_given
from steelyard.run.keys import Serving, step_key

if TYPE_CHECKING:
    from steelyard.plugins import Registry
    from steelyard.recipe.schema import Recipe, Round
    from steelyard.run.outside_models import OutsideModel

__all__ = ["CHAMPION", "CHAMPION_EVALUATION", "Plan", "RoundPlan", "Step", "StepKind", "Title", "make_plan"]

StepKind = Literal["import", "items", "data", "decontaminate", "stage", "evaluate", "gate"]

CHAMPION = "champion"
"""Input that is whichever model holds the title when the step starts."""
CHAMPION_EVALUATION = "champion_evaluation"
"""Input that is the dev evaluation of that model."""

BASE = "base"
"""The step that imports the base model."""


@dataclass(frozen=True)
class Step:
    """A unit of execution and of resume.

    ``inputs`` maps a role to the id of an earlier step, or to one of the two dynamic inputs. ``config`` is all that decides the result
    beside the inputs; ``places`` holds paths that are needed and decide nothing (their content does, by ``fingerprints``).
    ``key_seed`` is the seed as the key sees it: None where the step draws no random number.
    """

    id: str
    kind: StepKind
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    round: str | None = None
    seed: int = 0
    key_seed: int | None = None
    serving: tuple[Serving, ...] = ()
    after: str | None = None
    """The gate that must have been inconclusive for this step to run: what it looks at next. None: the step always runs."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, OutsideModel] = field(default_factory=dict)
    """Models from outside the run, by role; ``fingerprints`` has what is in them."""

    def key(self, input_keys: Mapping[str, str]) -> str:
        """The key of this step's artifact, given the key of each input by role."""
        return step_key(self.kind, self.config, input_keys, seed=self.key_seed, serving=self.serving, fingerprints=self.fingerprints)


@dataclass(frozen=True)
class RoundPlan:
    """The stage that makes a round's challenger, its last policy, and the steps that evaluate and gate it; both None where there is no
    dev suite to gate by. ``last_stage`` may be another one, behind it, that makes a reward model.

    ``gate`` is the gate's first look; ``further_looks`` are those that it may take where the one before was inconclusive."""

    name: str
    challenger: str
    last_stage: str
    evaluation: str | None
    gate: str | None
    further_looks: tuple[str, ...] = ()

    @property
    def gates(self) -> tuple[str, ...]:
        """All looks of the gate, in order."""
        return (self.gate, *self.further_looks) if self.gate is not None else ()

    @property
    def last_step(self) -> str:
        """The step behind which nothing of the round is left."""
        return self.gates[-1] if self.gates else self.last_stage

    def look_after(self, gate: str) -> str | None:
        """The look that follows one that was inconclusive; None behind the last."""
        following = self.gates[self.gates.index(gate) + 1 :]
        return following[0] if following else None


class Title:
    """Who holds the title, as the steps are gone through in order."""

    def __init__(self) -> None:
        self.champion = BASE
        self.evaluation = "eval/base/dev"

    def resolve(self, source: str) -> str:
        """The id of the step behind an input."""
        return {CHAMPION: self.champion, CHAMPION_EVALUATION: self.evaluation}.get(source, source)

    def passes_to(self, round_plan: RoundPlan) -> None:
        self.champion = round_plan.challenger
        if round_plan.evaluation is not None:
            self.evaluation = round_plan.evaluation


@dataclass(frozen=True)
class Plan:
    """The steps in the order in which they run."""

    steps: tuple[Step, ...]
    rounds: tuple[RoundPlan, ...]

    def step(self, step_id: str) -> Step:
        """Errors: :class:`UsageError` with the nearest id."""
        found = next((step for step in self.steps if step.id == step_id), None)
        if found is None:
            raise UsageError(f"no step {step_id!r} in the plan{nearest(step_id, [step.id for step in self.steps])}")
        return found

    def round_decided_by(self, step: Step) -> RoundPlan | None:
        """The round that this step may decide: by a look of its gate, or as its last stage where there is no gate."""
        return next((r for r in self.rounds if step.id in (r.gates or (r.last_stage,))), None)

    def optimistic_keys(self) -> dict[str, str]:
        """The key of every step, if every gate promotes."""
        title, keys = Title(), dict[str, str]()
        for step in self.steps:
            keys[step.id] = step.key({role: keys[title.resolve(source)] for role, source in step.inputs.items()})
            decided = self.round_decided_by(step)
            if decided is not None and step.id == decided.last_step:
                title.passes_to(decided)
        return keys

    def undetermined(self) -> frozenset[str]:
        """Ids of the steps whose keys depend on how a gate of this plan decides."""
        found: set[str] = set()
        gates_before = False
        for step in self.steps:
            for source in step.inputs.values():
                if source in found or (gates_before and source in (CHAMPION, CHAMPION_EVALUATION)):
                    found.add(step.id)
            gates_before = gates_before or any(step.id == decided.last_step and decided.gates for decided in self.rounds)
        return frozenset(found)


def make_plan(recipe: Recipe, registry: Registry, recipe_dir: Path) -> Plan:
    """The plan of a recipe whose relative paths start at ``recipe_dir``.

    Errors: :class:`UsageError` for an outside file that is not there, :class:`~steelyard.errors.PluginError`."""
    from steelyard.run.step_configs import StepConfigs

    if "dev" in recipe.suites and "dev" not in recipe.decontaminate.against:
        waiver = "with decontaminate.waive" if recipe.decontaminate.waive else "with a reason under decontaminate.waive"
        raise UsageError(
            "decontaminate.against leaves out 'dev', and a gate refuses a model whose data was not held against its suite: "
            f"add dev; {waiver} the data is scanned too, and rows that overlap are kept"
        )
    planner = _Planner(recipe, registry, StepConfigs(recipe, registry, recipe_dir))
    return Plan(tuple(planner.steps()), tuple(planner.rounds()))


class _Planner:
    """Lays out the steps. What a step is made of is :class:`StepConfigs`'s to say; here is what follows from what."""

    def __init__(self, recipe: Recipe, registry: Registry, configs: Any):
        self._recipe, self._registry, self._configs = recipe, registry, configs
        self._gated = "dev" in recipe.suites
        self._placed: set[str] = set()

    def rounds(self) -> Iterator[RoundPlan]:
        for entry in self._recipe.rounds:
            name, gated = entry.name, self._gated
            last_stage = f"{name}/{entry.stages[-1].name}"
            looks = range(2, self._recipe.gate_of(entry).extensions + 2) if gated else ()
            gate, further = (f"gate/{name}" if gated else None), tuple(f"gate/{name}/look{look}" for look in looks)
            yield RoundPlan(name, self._challenger(entry), last_stage, f"eval/{name}/dev" if gated else None, gate, further)

    def steps(self) -> Iterator[Step]:
        yield self._configs.base()
        for role in self._roles_with_items():
            yield self._configs.items(role)
        # Data that needs no trained model is made first: a mistake in it should show before hours of training.
        for entry in self._recipe.rounds:
            for stage in entry.stages:
                if stage.data is not None and not self._per_round(stage.data):
                    yield from self._clean_data(stage.data, entry.name, "", None)
        if self._gated:
            yield self._configs.evaluate("eval/base/dev", "dev", BASE, None)
        previous = BASE
        for position, entry in enumerate(self._recipe.rounds):
            yield from self._round(position, previous)
            previous = self._challenger(entry)
            yield from self._opening(entry.name, last=position == len(self._recipe.rounds) - 1)

    def _opening(self, round_name: str, *, last: bool) -> Iterator[Step]:
        """The unseen suite behind a round, where the recipe opens it there; behind the last, no decision is left that it could sway."""
        declared = self._recipe.evaluate.unseen
        if "unseen" not in self._recipe.suites or not (last if declared == "last" else round_name in declared):
            return
        if "eval/base/unseen" not in self._placed:
            self._placed.add("eval/base/unseen")
            yield self._configs.evaluate("eval/base/unseen", "unseen", BASE, None)
        yield self._configs.evaluate("eval/champion/unseen" if last else f"eval/{round_name}/champion/unseen", "unseen", CHAMPION, None)

    def _round(self, position: int, previous: str) -> Iterator[Step]:
        entry = self._recipe.rounds[position]
        before = previous
        for index, stage in enumerate(entry.stages):
            stage_id = f"{entry.name}/{stage.name}"
            inputs = {"model": self._model(stage.init, position, index, before)}
            if stage.reference is not None:
                reference = stage.init if stage.reference == "init" else stage.reference
                inputs["reference"] = self._model(reference, position, index, before)
            for role, ref in stage.models.items():
                if not is_outside(ref):
                    inputs[f"model:{role}"] = self._model(stage.init if ref == "init" else ref, position, index, before)
            for _, ref in verifier_models(verifiers_given(self._recipe, self._registry, stage), self._registry):
                if not is_outside(ref):
                    inputs[f"model:{ref}"] = self._model(ref, position, index, before)
            if stage.data is not None:
                models = {ref: self._model(ref, position, index, before) for ref in self._sampled_models(stage.data)}
                yield from self._clean_data(stage.data, entry.name, before, models)
                inputs["data"] = self._trained_on(stage.data, entry.name)
            yield self._configs.stage(stage_id, stage, entry.name, inputs)
            # What the later stages go on from; a reward model is for those that name it.
            before = stage_id if makes_policy(stage, self._registry) else before
        if self._gated:
            stage_id = self._challenger(entry)
            evaluation = f"eval/{entry.name}/dev"
            yield self._configs.evaluate(evaluation, "dev", stage_id, entry)
            sources = {"champion": CHAMPION_EVALUATION, "challenger": evaluation, "champion_model": CHAMPION, "challenger_model": stage_id}
            yield self._configs.gate(f"gate/{entry.name}", entry, sources)
            yield from self._further_looks(entry, stage_id, sources)

    def _further_looks(self, entry: Round, challenger: str, sources: Mapping[str, str]) -> Iterator[Step]:
        """Both models on what the gate looks at when it looks again, and the gate over that and what it saw at first."""
        gate = f"gate/{entry.name}"
        for look in range(2, self._recipe.gate_of(entry).extensions + 2):
            more = {side: f"eval/{entry.name}/{side}/dev-look{look}" for side in ("champion", "challenger")}
            for side, model in (("champion", CHAMPION), ("challenger", challenger)):
                yield self._configs.evaluate(more[side], "dev", model, entry, look=look, after=gate)
            inputs = {**sources, "champion_more": more["champion"], "challenger_more": more["challenger"]}
            step = self._configs.gate(f"gate/{entry.name}/look{look}", entry, inputs, look=look, after=gate)
            gate = step.id
            yield step

    # Models

    def _challenger(self, entry: Round) -> str:
        stage = last_policy(entry.stages, self._registry)
        assert stage is not None, f"round {entry.name!r} makes no model to promote"
        return f"{entry.name}/{stage.name}"

    def _model(self, ref: str, position: int, index: int, before: str) -> str:
        """The source that a reference to a model means, seen from stage ``index`` of round ``position``."""
        if ref == "champion":
            return CHAMPION
        if ref == "base":
            return BASE
        if ref == "previous":
            return before
        name = ref.removeprefix("stage:")
        earlier = [
            f"{entry.name}/{stage.name}"
            for turn, entry in enumerate(self._recipe.rounds[: position + 1])
            for stage in (entry.stages[:index] if turn == position else entry.stages)
        ]
        # The nearest earlier one: in a repeated round every turn has a stage of that name.
        return next(step_id for step_id in reversed(earlier) if name in (step_id, step_id.partition("/")[2]))

    # Data

    def _per_round(self, name: str) -> bool:
        """Whether the dataset follows from a model that is made in this run, itself or by the dataset its prompts come from."""
        entry = self._recipe.data[name]
        samples = self._registry.get("mixers", entry.kind).samples_model and entry.from_ != "base"
        return samples or (entry.prompts is not None and self._per_round(entry.prompts))

    def _sampled_models(self, name: str) -> set[str]:
        entry = self._recipe.data[name]
        own = {entry.from_} if entry.from_ is not None else set()
        return own | (self._sampled_models(entry.prompts) if entry.prompts is not None else set())

    def _data_id(self, name: str, round_name: str) -> str:
        return f"data/{round_name}/{name}" if self._per_round(name) else f"data/{name}"

    def _trained_on(self, name: str, round_name: str) -> str:
        """The dataset a stage gets: the clean one, where there is anything to keep it clean of."""
        made = self._data_id(name, round_name)
        return made.replace("data/", "clean/", 1) if self._recipe.decontaminate.against else made

    def _clean_data(self, name: str, round_name: str, before: str, models: Mapping[str, str] | None) -> Iterator[Step]:
        """The steps that make a dataset and clean it, those not yet placed. A dataset of a round is made once in it, before the first
        stage that trains on it."""
        yield from self._data(name, round_name, models or {})
        made, clean = self._data_id(name, round_name), self._trained_on(name, round_name)
        if clean != made and clean not in self._placed:
            self._placed.add(clean)
            items = {f"items/{role}": f"items/{role}" for role in self._recipe.decontaminate.against}
            yield self._configs.decontaminate(clean, self._round_of(name, round_name), {"data": made, **items})

    def _data(self, name: str, round_name: str, models: Mapping[str, str]) -> Iterator[Step]:
        step_id = self._data_id(name, round_name)
        if step_id in self._placed:
            return
        self._placed.add(step_id)
        entry = self._recipe.data[name]
        inputs = {"model": BASE if entry.from_ in (None, "base") else models[entry.from_]}
        if entry.prompts is not None:
            yield from self._data(entry.prompts, round_name, models)
            inputs["prompts"] = self._data_id(entry.prompts, round_name)
        yield self._configs.data(step_id, entry, self._round_of(name, round_name), inputs)

    def _round_of(self, name: str, round_name: str) -> str | None:
        return round_name if self._per_round(name) else None

    def _roles_with_items(self) -> list[str]:
        """Suites whose items are listed: to decontaminate against, and to know what the gate can prove."""
        wanted = {*self._recipe.decontaminate.against, *(["dev"] if self._gated else [])}
        return [role for role in self._recipe.suites if role in wanted]
