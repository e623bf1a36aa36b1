"""What each kind of step is made of: its configuration as JSON, the plugins that serve it, its seed, the outside files it depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.errors import UsageError
from steelyard.protocols import Fingerprinted
from steelyard.recipe.model_refs import is_outside, verifier_models, verifiers_given
from steelyard.records import derive_seed
from steelyard.run.keys import Serving, fingerprint_path
from steelyard.run.outside_models import OutsideModel, find_outside_model
from steelyard.run.plan import BASE, Step
from steelyard.run.suite_files import parts_in, suite_fingerprints
from steelyard.specs import VerifierSpec
from steelyard.verify.configuring import walk_verifiers

if TYPE_CHECKING:
    from steelyard.plugins import Registry
    from steelyard.recipe.entries import DataEntry, Entry, StageEntry, VerifierEntry
    from steelyard.recipe.schema import Recipe, Round
    from steelyard.recipe.suite import Suite

__all__ = ["StepConfigs"]


class StepConfigs:
    """Makes the steps of a recipe; the caller says what their inputs are."""

    def __init__(self, recipe: Recipe, registry: Registry, recipe_dir: Path):
        self._recipe, self._registry, self._recipe_dir = recipe, registry, recipe_dir
        self._suites: dict[str, Suite] = {}
        self._known_servings: dict[tuple[str, str], Serving] = {}

    def base(self) -> Step:
        base = self._recipe.base.model_dump(mode="json")
        seed = derive_seed(self._recipe.seed, BASE)
        config = {"base": base}
        fingerprints = {**self._fingerprint("base", self._registry.configure(self._registry.get("stages", "import"), base))}
        if base["model"] is not None:
            fingerprints |= self._local("base.model", base["model"])
        if (base["chat_template"] or "").endswith(".jinja"):
            fingerprints |= self._local("base.chat_template", base["chat_template"], must_exist=True)
        key_seed = seed if base["new"] is not None else None
        serving = self._serving(("stages", "import"))
        return Step(BASE, "import", config, seed=seed, key_seed=key_seed, serving=serving, fingerprints=fingerprints)

    def items(self, role: str) -> Step:
        from steelyard.recipe.looks import suite_with_all_items

        suite = suite_with_all_items(self._recipe, self.suite(role)) if role == "dev" else self.suite(role)
        return Step(
            f"items/{role}",
            "items",
            {"suite": suite.without_places()},
            serving=self._serving(("harnesses", suite.harness), *self._kinds_in(suite)),
            fingerprints=suite_fingerprints(suite, self._registry),
            places=suite.places(),
        )

    def data(self, step_id: str, entry: DataEntry, round_name: str | None, inputs: Mapping[str, str]) -> Step:
        spec = self._registry.get("mixers", entry.kind)
        verifiers = verifiers_given(self._recipe, self._registry, entry)
        shares = ("name", "count", "fraction", "weight", "epochs")
        sources = [{**_plain(source), **{name: getattr(source, name) for name in shares}} for source in entry.sources]
        asks_model = any("engine" in found.needs for name, one in verifiers.items() for _, found, _ in self._walk(name, one))
        engine = _plain(self._recipe.engine) if spec.samples_model or asks_model else None
        config = {**_plain(entry), "sources": sources, "verifiers": _verifiers(verifiers), "engine": engine}
        if engine:
            config["model_options"] = self._model_options()
        outside = self._outside({}, verifiers)
        fingerprints = {
            **self._fingerprint(f"data.{entry.kind}", entry.options),
            **self._read_by(verifiers),
            **{role: model.fingerprint for role, model in outside.items()},
        }
        for number, source in enumerate(entry.sources):
            fingerprints |= self._fingerprint(f"sources.{number}", source.options)
        served_by = [("mixers", entry.kind), *(("sources", s.kind) for s in entry.sources), *self._kinds(verifiers)]
        serving = self._serving(*served_by, *([("engines", self._recipe.engine.kind)] if engine else []))
        # By the entry's name and round, so that two runs of one recipe agree and two rounds differ.
        seed = derive_seed(self._recipe.seed, step_id)
        return Step(
            step_id,
            "data",
            config,
            inputs,
            round_name,
            seed=seed,
            key_seed=seed,
            serving=serving,
            fingerprints=fingerprints,
            outside=outside,
        )

    def decontaminate(self, step_id: str, round_name: str | None, inputs: Mapping[str, str]) -> Step:
        from steelyard import __version__
        from steelyard.decontaminate.rule import NORMALISATION

        wanted = self._recipe.decontaminate
        suites = {role: self.suite(role) for role in wanted.against}
        config = {
            "rule": {
                "ngram": wanted.ngram,
                "coverage": wanted.coverage,
                "max_overlap": wanted.max_overlap,
                "min_words": min(wanted.min_words, wanted.ngram),
                "template": wanted.template,
            },
            "normalisation": NORMALISATION,
            "action": "report" if wanted.waive else wanted.action,
            "reason": wanted.waive,
            "roles": {role: suite.name for role, suite in suites.items()},
            "suites": {suite.name: str(suite.version) for suite in suites.values()},
        }
        fingerprints: dict[str, str] = {}
        if wanted.paraphrases is not None:
            config["paraphrases"] = wanted.paraphrases.model_dump(mode="json")
            fingerprints = self._local("decontaminate.paraphrases.model", wanted.paraphrases.model)
        serving = (Serving("core", __version__, ""),)
        return Step(step_id, "decontaminate", config, inputs, round_name, serving=serving, fingerprints=fingerprints)

    def stage(self, step_id: str, entry: StageEntry, round_name: str, inputs: Mapping[str, str]) -> Step:
        engine = self._recipe.engine.overridden(entry.engine, self._registry) if entry.engine else self._recipe.engine
        verifiers = verifiers_given(self._recipe, self._registry, entry)
        config = {
            **_plain(entry),
            "engine": _plain(engine),
            "verifiers": _verifiers(verifiers),
            "shapers": [_plain(shaper) for shaper in entry.shapers],
            "model_options": self._model_options(),
        }
        serving = self._serving(
            ("stages", entry.kind), ("engines", engine.kind), *self._kinds(verifiers), *(("shapers", s.kind) for s in entry.shapers)
        )
        seed = derive_seed(self._recipe.seed, step_id)
        outside = self._outside(entry.models, verifiers)
        fingerprints = {
            **self._fingerprint("stage", entry.options),
            **self._read_by(verifiers),
            **{role: model.fingerprint for role, model in outside.items()},
        }
        return Step(
            step_id,
            "stage",
            config,
            inputs,
            round_name,
            seed=seed,
            key_seed=seed,
            serving=serving,
            fingerprints=fingerprints,
            outside=outside,
        )

    def evaluate(self, step_id: str, role: str, model: str, entry: Round | None, *, look: int = 1, after: str | None = None) -> Step:
        """An evaluation; at a further ``look`` of a round's gate (see :class:`Step`), of what there is more of."""
        suite = self.suite(role)
        if look > 1 and entry is not None:
            suite = self._looked_at_again(suite, entry, look)
        wanted = self._recipe.evaluate
        engine = self._recipe.engine.overridden(wanted.engine, self._registry) if wanted.engine else self._recipe.engine
        # One seed for all models on a suite: the champion and the challenger see the same prompts and the same draws.
        seed = derive_seed(self._recipe.seed, "evaluate", role)
        return Step(
            step_id,
            "evaluate",
            {
                "suite": suite.without_places(),
                "engine": _plain(engine),
                "options": {"batch_size": wanted.batch_size},
                "model_options": self._model_options(),
            },
            {"model": model},
            entry.name if entry is not None else None,
            seed=seed,
            key_seed=seed,
            serving=self._serving(("harnesses", suite.harness), ("engines", engine.kind), *self._kinds_in(suite)),
            after=after,
            fingerprints=suite_fingerprints(suite, self._registry),
            places=suite.places(),
        )

    def gate(self, step_id: str, entry: Round, inputs: Mapping[str, str], *, look: int = 1, after: str | None = None) -> Step:
        from steelyard.run.gating import round_policy

        policy = round_policy(self._recipe, entry, self.suite("dev")).at_look(look)
        # Keys that a policy need not have count where they say something, so that a gate's key is what it was before they were there.
        optional = {"extensions": 0, "look": 1, "candidates": 1}
        said = {key: value for key, value in policy.model_dump(mode="json").items() if key not in optional or value != optional[key]}
        config = {"policy": said}
        serving = self._serving(("gate_policies", policy.policy))
        return Step(step_id, "gate", config, inputs, entry.name, serving=serving, after=after)

    def _looked_at_again(self, suite: Suite, entry: Round, look: int) -> Suite:
        from steelyard.recipe.looks import looked_at_again

        tasks = looked_at_again(suite, self._recipe.policy_of(entry), self._recipe.gate_of(entry).extend, look)
        return suite.model_copy(update={"tasks": tasks})

    def suite(self, role: str) -> Suite:
        """The suite of that role, read once."""
        from steelyard.recipe.suite import load_suite

        if role not in self._suites:
            self._suites[role] = load_suite(self._recipe.suites[role], self._registry, self._recipe_dir)
        return self._suites[role]

    # What goes into keys

    def _model_options(self) -> dict[str, Any]:
        return {"trust_remote_code": self._recipe.base.trust_remote_code, "chat_template": self._recipe.base.chat_template}

    def _serving(self, *kinds: tuple[str, str]) -> tuple[Serving, ...]:
        return tuple(sorted({self._serving_of(family, kind) for family, kind in kinds}))

    def _serving_of(self, family: str, kind: str) -> Serving:
        if (family, kind) not in self._known_servings:
            owner = self._registry.owner(self._registry.get(family, kind))
            # The hash of core would change with every file of it, whatever that file is for; its version speaks for it.
            code = "" if owner.module.startswith("steelyard.") else owner.hash
            self._known_servings[family, kind] = Serving(owner.name, owner.version, code)
        return self._known_servings[family, kind]

    def _kinds(self, entries: Mapping[str, VerifierEntry]) -> list[tuple[str, str]]:
        """The verifiers and, of those that combine others, their parts."""
        return [("verifiers", spec.name) for name, entry in entries.items() for _, spec, _ in self._walk(name, entry)]

    def _walk(self, name: str, entry: VerifierEntry) -> Iterator[tuple[str, VerifierSpec, Any]]:
        return walk_verifiers(name, entry.kind, entry.options, self._registry)

    def _read_by(self, entries: Mapping[str, VerifierEntry]) -> dict[str, str]:
        """The fingerprints of what verifiers read: a judge's model, a template."""
        found: dict[str, str] = {}
        for name, entry in entries.items():
            named = dict(verifier_models({name: entry}, self._registry))
            for place, _, options in self._walk(name, entry):
                if place not in named:
                    found |= self._fingerprint(f"verifiers.{place}", options)
        return found

    def _outside(self, models: Mapping[str, str], verifiers: Mapping[str, VerifierEntry]) -> dict[str, OutsideModel]:
        """The models from outside the run, by role: of a stage's ``models``, and of verifiers by their reference."""
        wanted = {f"model:{role}": ref for role, ref in models.items()}
        wanted |= {f"model:{ref}": ref for _, ref in verifier_models(verifiers, self._registry)}
        return {role: find_outside_model(ref, self._recipe_dir) for role, ref in wanted.items() if is_outside(ref)}

    def _kinds_in(self, suite: Suite) -> list[tuple[str, str]]:
        """The sources and verifiers that the suite's tasks name in their options."""
        named = [(f"{role}s", task.options.get(role)) for task in suite.tasks for role in ("source", "verifier")]
        kinds = [(family, entry["kind"]) for family, entry in named if isinstance(entry, Mapping) and isinstance(entry.get("kind"), str)]
        return [*kinds, *(("verifiers", part) for part in parts_in(suite, self._registry))]

    def _fingerprint(self, place: str, options: Any) -> dict[str, str]:
        if not isinstance(options, Fingerprinted):
            return {}
        try:
            return {place: options.fingerprint(self._recipe_dir)}
        except OSError as error:
            raise UsageError(f"{place}: {error.strerror or error}: {error.filename!r}") from error

    def _local(self, place: str, ref: str, *, must_exist: bool = False) -> dict[str, str]:
        """The fingerprint of what ``ref`` names on this disk; nothing for a reference to elsewhere."""
        path = self._recipe_dir / Path(ref).expanduser()
        if path.exists():
            return {place: fingerprint_path(path)}
        if must_exist:
            raise UsageError(f"{place}: no file {str(path)!r}")
        return {}


def _plain(entry: Entry) -> dict[str, Any]:
    """An entry's kind and its plugin's options, complete, as JSON."""
    options = entry.options.model_dump(mode="json", by_alias=True) if entry.options is not None else {}
    return {"kind": entry.kind, "options": options}


def _verifiers(entries: Mapping[str, VerifierEntry]) -> dict[str, dict[str, Any]]:
    return {name: {**_plain(entry), "timeout_s": entry.timeout_s} for name, entry in entries.items()}
