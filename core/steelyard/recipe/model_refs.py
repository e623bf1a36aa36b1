"""References to models: what a recipe may write where it names one, and which model it means.

``champion``, ``base``, ``previous`` and ``stage:NAME`` are models of the run itself. Under ``models`` of a stage there may be models from
outside too: ``run:PATH`` and ``run:PATH#STEP`` of another run folder, or the path of a model folder. ``previous`` is the last policy that
was made before; a reward model is no policy, and only ``stage:NAME`` under ``models`` means one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from steelyard.errors import nearest
from steelyard.plugins import Registry
from steelyard.recipe.complaints import Complaints, Location
from steelyard.recipe.entries import DataEntry, StageEntry, VerifierEntry
from steelyard.recipe.schema import Recipe, Round
from steelyard.verify.configuring import walk_verifiers

__all__ = ["check_models", "is_outside", "last_policy", "makes_policy", "verifier_models", "verifiers_given"]

_OF_THE_RUN = ("champion", "base", "previous")


def is_outside(ref: str) -> bool:
    """Whether a reference under ``models`` means a model from outside the run."""
    return ref not in ("init", *_OF_THE_RUN) and not ref.startswith("stage:")


def makes_policy(stage: StageEntry, registry: Registry) -> bool:
    """Whether what the stage makes can answer, be evaluated and become champion."""
    return bool(registry.get("stages", stage.kind).makes == "policy")


def last_policy(stages: list[StageEntry], registry: Registry) -> StageEntry | None:
    """The last of the stages that makes a policy: of a whole round, what makes its challenger."""
    return next((stage for stage in reversed(stages) if makes_policy(stage, registry)), None)


def verifiers_given(recipe: Recipe, registry: Registry, entry: StageEntry | DataEntry) -> dict[str, VerifierEntry]:
    """The verifiers that a stage or a mixer gets: its own, and the recipe's where its kind uses verifiers."""
    spec = registry.get(entry.family, entry.kind)
    wanted = spec.needs_verifiers or getattr(spec, "samples_model", False)
    return recipe.verifiers_of(entry) if wanted else entry.verifiers


def verifier_models(verifiers: Mapping[str, VerifierEntry], registry: Registry) -> Iterator[tuple[str, str]]:
    """The verifiers, parts of others among them, whose model is one of the run or of another: their names and the references."""
    for name, entry in verifiers.items():
        for place, spec, options in walk_verifiers(name, entry.kind, entry.options, registry):
            ref = getattr(options, spec.model_option) if spec.model_option is not None else None
            if isinstance(ref, str) and ref.startswith(("stage:", "run:")):
                yield place, ref


def check_models(recipe: Recipe, registry: Registry, base: Path, complaints: Complaints) -> None:
    """Complains about every reference, of stages and of the data they train on, that means no model, or one of no use there."""
    for r, round_ in enumerate(recipe.rounds):
        if last_policy(round_.stages, registry) is None:
            complaints.add(
                ("rounds", r, "stages"), f"round {round_.name!r} makes reward models only: it needs a stage that makes a model to promote"
            )
        for s, stage in enumerate(round_.stages):
            _Checker(recipe, registry, base, round_, s, complaints).check(stage, ("rounds", r, "stages", s))
    for name, entry in recipe.data.items():
        for place, ref in verifier_models(verifiers_given(recipe, registry, entry), registry):
            if ref.startswith("stage:"):
                complaints.add(
                    ("data", name),
                    f"data entry {name!r} would be given the verifier {place!r}, whose model is {ref!r}: only a stage can be; move the "
                    "verifier to the 'verifiers' of that stage",
                )


@dataclass(frozen=True)
class _Earlier:
    """A stage that came before."""

    name: str
    full: str
    kind: str
    policy: bool


@dataclass(frozen=True)
class _Checker:
    """The references of a stage, seen from its place."""

    recipe: Recipe
    registry: Registry
    base: Path
    round: Round
    index: int
    complaints: Complaints

    def check(self, stage: StageEntry, at: Location) -> None:
        reads_policy = makes_policy(stage, self.registry)
        self._model(stage.init, (*at, "init"), _OF_THE_RUN, policy=reads_policy)
        if stage.reference is not None:
            self._model(stage.reference, (*at, "reference"), ("init", *_OF_THE_RUN), policy=reads_policy)
            self._differs(stage, stage.reference, (*at, "reference"))
        for role, ref in stage.models.items():
            self._model(ref, (*at, "models", role), ("init", *_OF_THE_RUN), policy=False, outside=True)
        for place, ref in verifier_models(verifiers_given(self.recipe, self.registry, stage), self.registry):
            name = place.partition(".")[0]
            own = (*at, "verifiers", name) if name in stage.verifiers else ("verifiers", name)
            self._model(ref, own, (), policy=False, outside=True, called=f"the model of verifier {place!r}, at stage {stage.name!r},")
        data, seen = stage.data, set[str]()
        while data in self.recipe.data and data not in seen:
            seen.add(data)
            entry = self.recipe.data[data]
            if entry.from_ is not None:
                self._model(entry.from_, ("data", data, "from"), _OF_THE_RUN)
            data = entry.prompts

    def _model(
        self, ref: str, at: Location, known: tuple[str, ...], *, policy: bool = True, outside: bool = False, called: str = ""
    ) -> None:
        if ref in known:
            return
        what = called or (".".join(map(str, at[-2:])) if outside else str(at[-1]))
        kind, _, name = ref.partition(":")
        if kind == "stage" and name:
            found = self._stage_named(name)
            if found is None:
                names = [known_name for stage in self._earlier() for known_name in (stage.name, stage.full)]
                self.complaints.add(at, f"{what} is {ref!r}, but no earlier stage is named {name!r}{nearest(name, names)}")
            elif policy and not found.policy:
                self.complaints.add(
                    at, f"{what} is {ref!r}, and that stage (kind {found.kind!r}) makes a reward model, which writes no text"
                )
        elif outside:
            self._outside(ref, at, what, known)
        else:
            near = nearest(ref, known)
            self.complaints.add(at, f"{what} is {ref!r}, not one of {', '.join(known)}, stage:NAME{near if 'mean' in near else ''}")

    def _outside(self, ref: str, at: Location, what: str, known: tuple[str, ...]) -> None:
        """A folder that is not there; what a folder holds is looked at when the run is planned."""
        place = ref.removeprefix("run:").partition("#")[0] if ref.startswith("run:") else ref
        if place and (self.base / Path(place).expanduser()).is_dir():
            return
        if ref.startswith("run:"):
            self.complaints.add(at, f"{what} is {ref!r}, and there is no run folder {place!r} in {str(self.base)!r}")
            return
        near = nearest(ref, [*known, "stage:", "run:"])
        told = f"not one of {', '.join(known)}, stage:NAME, run:PATH, and there is no model folder of that name in {str(self.base)!r}"
        self.complaints.add(at, f"{what} is {ref!r}, {told}{near if 'mean' in near else ''}")

    def _differs(self, stage: StageEntry, reference: str, at: Location) -> None:
        """A reference that can only be the model the stage starts from, where the kind needs two models."""
        if not self.registry.get("stages", stage.kind).reference_must_differ or not getattr(stage.options, "reference_must_differ", True):
            return
        if reference == "init" or self._meant(reference) == self._meant(stage.init):
            self.complaints.add(
                at,
                f"stage {stage.name!r} of kind {stage.kind!r} needs a reference other than the model it starts from ({stage.init!r}), and "
                f"reference is {reference!r}: name another of champion, base, previous, stage:NAME",
            )

    def _meant(self, ref: str) -> str:
        """One name for each model that references can mean, as far as that is known before any gate has decided."""
        if ref == "previous":
            policies = [stage.full for stage in self._earlier() if stage.policy]
            return policies[-1] if policies else "base"
        if ref == "champion" and self.round is self.recipe.rounds[0]:
            return "base"
        found = self._stage_named(ref.removeprefix("stage:")) if ref.startswith("stage:") else None
        return found.full if found is not None else ref

    def _stage_named(self, name: str) -> _Earlier | None:
        """The nearest earlier stage of that name, bare or with its round."""
        return next((stage for stage in reversed(list(self._earlier())) if name in (stage.name, stage.full)), None)

    def _earlier(self) -> Iterator[_Earlier]:
        for known in self.recipe.rounds:
            here = known is self.round
            for stage in known.stages[: self.index] if here else known.stages:
                yield _Earlier(stage.name, f"{known.name}/{stage.name}", stage.kind, makes_policy(stage, self.registry))
            if here:
                return
