"""The entries of a recipe that a plugin serves: ``kind`` names it, some keys are the recipe's, all others are the plugin's own.

In a file and in JSON the plugin's keys stand beside the recipe's; in Python they are ``entry.options``, an instance of the plugin's
pydantic model. Validation needs the registry, as ``context={"registry": registry, "base": folder}``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from steelyard.errors import PluginError, SteelyardError, nearest
from steelyard.plugins import Registry
from steelyard.protocols import ModelsChecked
from steelyard.recipe.complaints import Complaints, complaints_in, keys_of, plain_words, shown
from steelyard.recipe.section import Name, Section
from steelyard.verify.configuring import walk_verifiers

__all__ = [
    "DataEntry",
    "EngineEntry",
    "Entry",
    "LauncherEntry",
    "ShaperEntry",
    "SourceEntry",
    "StageEntry",
    "VerifierEntry",
]

ModelRef = str
"""``champion``, ``base``, ``previous`` or ``stage:NAME``; see :mod:`steelyard.recipe.model_refs`."""


class Entry(Section):
    """An entry that a plugin serves."""

    family: ClassVar[str]
    """The family of descriptors its kinds come from."""

    kind: str
    """The name of the plugin's contribution that serves this entry."""
    options: Any = Field(default=None, repr=True)
    """The plugin's own keys, validated by the plugin's model; None where it takes none."""

    @classmethod
    def own_keys(cls) -> list[str]:
        """The keys that are the recipe's and not the plugin's."""
        return [key for key in keys_of(cls) if key != "options"]

    @classmethod
    def with_kind(cls, common: dict[str, Any], spec: Any, options: Any, complaints: Complaints) -> dict[str, Any]:
        """The recipe's keys with defaults that depend on the kind; complains about keys that the kind has no use for."""
        return common

    @classmethod
    def schema_of_kind(cls, properties: dict[str, Any], spec: Any) -> dict[str, Any]:
        """The recipe's keys in the JSON Schema of one kind: those that it has a use for."""
        return properties

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if isinstance(data, cls):
            return data
        complaints = Complaints()
        if not isinstance(data, Mapping):
            complaints.add((), f"{cls.what} is {shown(data)}, not a mapping with a 'kind'")
            raise complaints.to_error()
        data = cls.completed(data, info)
        registry = _registry(info)
        default = cls.model_fields["kind"].get_default()
        data = {"kind": default, **data} if isinstance(default, str) else data
        common = {key: value for key, value in data.items() if key in cls.own_keys()}
        spec = cls._spec(data, registry, complaints)
        if spec is None:
            # The other mistakes of the entry are told at once, where it is plain which kind was meant.
            meant = _nearest_spec(data.get("kind"), {n: s for n, s in registry.all(cls.family).items() if not getattr(s, "hidden", False)})
            if meant is not None:
                further = Complaints()
                cls._options(meant, {k: v for k, v in data.items() if k not in common}, registry, info, further)
                if not any(complaint.of_plugin for complaint in further):
                    complaints.take(further)
            raise complaints.to_error()
        rest = {key: value for key, value in data.items() if key not in common}
        options = cls._options(spec, rest, registry, info, complaints)
        complaints.take(plain_words(cls, common, cls.what))
        common = cls.with_kind(common, spec, options, complaints)
        try:
            made = handler({**common, "options": options})
        except ValidationError as error:
            complaints.take(complaints_in(error, cls, common, f"{cls.what} of kind {spec.name!r}"))
        if complaints:
            raise complaints.to_error()
        return made

    @classmethod
    def _spec(cls, data: Mapping[str, Any], registry: Registry, complaints: Complaints) -> Any:
        kind = data.get("kind")
        kinds = [n for n, s in registry.all(cls.family).items() if not getattr(s, "hidden", False)]
        if not isinstance(kind, str):
            told = f"needs a 'kind'{nearest('', kinds)}" if kind is None else f"has the kind {shown(kind)}, not a text"
            complaints.add(("kind",) if "kind" in data else (), f"{cls.what} {told}")
            return None
        try:
            spec = registry.get(cls.family, kind)
        except SteelyardError as error:
            complaints.add(("kind",), str(error), of_plugin=isinstance(error, PluginError))
            return None
        if getattr(spec, "hidden", False):
            complaints.add(("kind",), f"a recipe cannot place {kind!r} itself{nearest(kind, kinds)}")
            return None
        return spec

    @classmethod
    def _options(cls, spec: Any, given: Mapping[str, Any], registry: Registry, info: ValidationInfo, complaints: Complaints) -> Any:
        what = f"{cls.what} of kind {spec.name!r}"
        if spec.config is None:
            for key in given:
                complaints.unknown((key,), what, cls.own_keys())
            return None
        try:
            model = _load_model(spec)
        except (Exception, SystemExit) as error:
            who = registry.owner(spec)
            complaints.add((), f"the plugin {who.name!r} ({who.title}) cannot serve {what}: {error}", of_plugin=True)
            return None
        keys = keys_of(model)
        for key in sorted(set(keys) & set(cls.own_keys())):
            who = registry.owner(spec)
            complaints.add(
                (),
                f"the plugin {who.name!r} ({who.title}) gives {what} the key {key!r}, which the recipe itself uses: "
                "its author must rename it",
                of_plugin=True,
            )
        if model.model_config.get("extra") != "allow":
            for key in given:
                if key not in keys and key not in model.model_fields:
                    complaints.unknown((key,), what, [*keys, *cls.own_keys()])
            given = {key: value for key, value in given.items() if key in keys or key in model.model_fields}
        complaints.take(plain_words(model, given, what))
        try:
            return model.model_validate(dict(given), context=info.context)
        except ValidationError as error:
            complaints.take(complaints_in(error, model, given, what))
            return None

    @model_serializer(mode="wrap")
    def _flat(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        common: dict[str, Any] = handler(self)
        common.pop("options", None)
        # Left out where there are none, so that recipes without them read as they did before there were any.
        if common.get("models") == {}:
            del common["models"]
        if isinstance(self.options, BaseModel):
            common |= self.options.model_dump(mode="json", by_alias=True)
        return common


class EngineEntry(Entry):
    """What generates and scores text, for rollouts and for evaluation."""

    family, what = "engines", "the engine"

    kind: str = "transformers"
    """The engine's name."""

    def overridden(self, overrides: Mapping[str, Any], registry: Registry) -> EngineEntry:
        """This engine with some of its keys changed; raises :class:`pydantic.ValidationError`."""
        written = self.model_dump(mode="json", by_alias=True)
        return EngineEntry.model_validate({**written, **overrides}, context={"registry": registry})


class LauncherEntry(Entry):
    """Where the process of a step runs."""

    family, what = "launchers", "the launcher"

    kind: str = "local"
    """The launcher's name."""


class VerifierEntry(Entry):
    """Checks a completion against a reference; rows name it by its key under `verifiers`."""

    family, what = "verifiers", "a verifier"

    timeout_s: float | None = Field(default=None, gt=0)
    """Wall-clock seconds for one completion, after which the outcome is `timeout`; the default is the verifier's own. A verifier that
    runs inline has none, and one given to it puts it into a worker process."""

    @classmethod
    def _options(cls, spec: Any, given: Mapping[str, Any], registry: Registry, info: ValidationInfo, complaints: Complaints) -> Any:
        """Also those of the verifiers that this one combines."""
        options = super()._options(spec, given, registry, info, complaints)
        for number, part in enumerate(options.parts if options is not None and "parts" in spec.needs else ()):
            try:
                list(walk_verifiers(part.kind, part.kind, part.options, registry, timeout_s=part.timeout_s))
            except SteelyardError as error:
                complaints.add(("parts", number), str(error), of_plugin=isinstance(error, PluginError))
        return options

    @classmethod
    def with_kind(cls, common: dict[str, Any], spec: Any, options: Any, complaints: Complaints) -> dict[str, Any]:
        if common.get("timeout_s") is not None and (spec.needs or spec.isolation == "sandbox"):
            complaints.add(("timeout_s",), f"a verifier of kind {spec.name!r} keeps its own time: take 'timeout_s' out")
        return {"timeout_s": spec.timeout_s, **common} if spec.isolation == "process" else common


class ShaperEntry(Entry):
    """Changes rewards within a group; shapers run in the order of the list."""

    family, what = "shapers", "a shaper"


class SourceEntry(Entry):
    """One place data comes from. At most one of `count`, `fraction`, `weight` and `epochs` says how much of it is taken."""

    family, what = "sources", "a source"

    name: str
    """What reports call it; default: its dataset, or its kind."""
    count: int | None = Field(default=None, ge=0)
    """So many rows."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """This share of its rows."""
    weight: float | None = Field(default=None, gt=0)
    """Its share, by weight, of what the mix's total leaves."""
    epochs: float | None = Field(default=None, gt=0)
    """All its rows so many times."""

    @classmethod
    def with_kind(cls, common: dict[str, Any], spec: Any, options: Any, complaints: Complaints) -> dict[str, Any]:
        amounts = [key for key in ("count", "fraction", "weight", "epochs") if common.get(key) is not None]
        if len(amounts) > 1:
            complaints.add((amounts[1],), f"a source has {' and '.join(map(repr, amounts))}: give one of them")
        dataset = getattr(options, "dataset", None)
        return {"name": dataset if isinstance(dataset, str) else spec.name, **common}


class DataEntry(Entry):
    """A training dataset: a mixer, and the sources it mixes."""

    family, what = "mixers", "a data entry"

    sources: list[SourceEntry] = Field(default_factory=list)
    """What is mixed."""
    from_: ModelRef | None = Field(default=None, alias="from")
    """The model it samples: `champion`, `base`, `previous` or `stage:NAME`; only for kinds that sample one."""
    prompts: str | None = None
    """The data entry whose rows are its prompts."""
    verifiers: dict[Name, VerifierEntry] = Field(default_factory=dict)
    """Verifiers by the name that rows use; beside the recipe's, and before them."""

    @classmethod
    def completed(cls, data: Mapping[str, Any], info: ValidationInfo) -> Mapping[str, Any]:
        """Sources that take their names from the same kind or dataset get numbers, so that each can be told from the others."""
        sources = data.get("sources")
        if not isinstance(sources, list):
            return data
        taken = {s["name"] for s in sources if isinstance(s, Mapping) and isinstance(s.get("name"), str)}
        named = []
        for source in sources:
            if isinstance(source, Mapping) and "name" not in source:
                called = next((v for k in ("dataset", "kind") if isinstance(v := source.get(k), str)), None)
                name, number = called, 1
                while name in taken:
                    number += 1
                    name = f"{called}-{number}"
                if name is not None:
                    taken.add(name)
                    source = {**source, "name": name} if number > 1 else source
            named.append(source)
        return {**data, "sources": named}

    @classmethod
    def with_kind(cls, common: dict[str, Any], spec: Any, options: Any, complaints: Complaints) -> dict[str, Any]:
        names: set[Any] = set()
        for index, source in enumerate(sources if isinstance(sources := common.get("sources"), list) else ()):
            name = source.get("name") if isinstance(source, Mapping) else None
            if isinstance(name, str) and name in names:
                complaints.add(("sources", index, "name"), f"two sources are named {name!r}: change one")
            names.add(name)
        if spec.samples_model:
            return {"from": "champion", **common}
        if common.get("from") is not None:
            complaints.add(("from",), f"a data entry of kind {spec.name!r} samples no model: take 'from' out")
        return common


class StageEntry(Entry):
    """Makes a model from a model and data."""

    family, what = "stages", "a stage"

    name: Name
    """What it is called; default: its kind."""
    data: str | None = None
    """The data entry it trains on."""
    init: ModelRef = "champion"
    """The model it starts from: `champion` (default of a round's first stage), `previous` (default of the later ones), `base`, or
    `stage:NAME`."""
    reference: str | None = None
    """The reference model, for kinds that have one: `init` (the default), `champion`, `base`, `previous`, or `stage:NAME`."""
    models: dict[Name, str] = Field(default_factory=dict)
    """Further models by role, for kinds that take them: `init`, `champion`, `base`, `previous`, `stage:NAME`, `run:PATH` (the champion of
    another run folder), `run:PATH#STEP` (what one of its steps made), or the path of a model folder. Paths start at the recipe's folder."""
    verifiers: dict[Name, VerifierEntry] = Field(default_factory=dict)
    """Verifiers by the name that rows use; beside the recipe's, and before them."""
    shapers: list[ShaperEntry] = Field(default_factory=list)
    """What changes rewards within a group, in order."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Keys of the recipe's `engine` that are different in this stage."""

    @classmethod
    def with_kind(cls, common: dict[str, Any], spec: Any, options: Any, complaints: Complaints) -> dict[str, Any]:
        common = {"name": spec.name, **common}
        models = given if isinstance(given := common.get("models"), Mapping) else {}
        if spec.models_for_reference and models:
            if common.get("reference") is not None:
                complaints.add(("reference",), f"a stage of kind {spec.name!r} has either 'reference' or 'models': take one of them out")
        elif spec.needs_reference and common.get("reference") is None:
            common["reference"] = "init"
        cls._check_models(models, spec, options, complaints)
        if not spec.needs_reference and common.get("reference") is not None:
            complaints.add(("reference",), f"a stage of kind {spec.name!r} has no reference model: take 'reference' out")
        if spec.data is None and common.get("data") is not None:
            complaints.add(("data",), f"a stage of kind {spec.name!r} takes no data: take 'data' out")
        if spec.data is not None and common.get("data") is None:
            complaints.add((), f"a stage of kind {spec.name!r} needs 'data', the name of an entry of data")
        return common

    @classmethod
    def _check_models(cls, models: Mapping[str, Any], spec: Any, options: Any, complaints: Complaints) -> None:
        """Complains about roles that the kind does not take, and about those that it misses."""
        what = f"a stage of kind {spec.name!r}"
        if models and not spec.models:
            complaints.add(("models",), f"{what} takes no further models: take 'models' out")
        elif spec.models != "*":
            for role in models:
                if role not in spec.models:
                    complaints.add(("models", role), f"{what} takes no model {role!r}{nearest(str(role), spec.models)}")
        missing = [] if spec.models == "*" else [role for role in spec.models if role not in models]
        if spec.needs_models and (missing or not models):
            named = f" with {', '.join(map(repr, missing))}" if missing else ", one or more by names of your choice"
            complaints.add((), f"{what} needs 'models'{named}")
        elif isinstance(options, ModelsChecked):
            try:
                options.check_models(tuple(models))
            except ValueError as error:
                complaints.add(("models",) if models else (), f"{what}: {error}")

    @classmethod
    def schema_of_kind(cls, properties: dict[str, Any], spec: Any) -> dict[str, Any]:
        if not spec.models:
            properties.pop("models")
        elif spec.models != "*":
            models = properties["models"]
            models["properties"] = dict.fromkeys(spec.models, models["additionalProperties"])
            models["additionalProperties"] = False
        return properties


def _registry(info: ValidationInfo) -> Registry:
    registry = (info.context or {}).get("registry")
    if registry is None:
        raise TypeError("a recipe's entries are validated with context={'registry': registry}")
    return registry  # type: ignore[no-any-return]


def _nearest_spec(kind: Any, known: Mapping[str, Any]) -> Any:
    """The descriptor whose name :func:`nearest` would offer for a misspelt kind; None where no name is near."""
    close = difflib.get_close_matches(kind, known, n=1, cutoff=0.6) if isinstance(kind, str) else []
    return known[close[0]] if close else None


def _load_model(spec: Any) -> type[BaseModel]:
    """The plugin's model. Whatever importing it raises is the plugin's; :class:`PluginError` when it is no model."""
    model = spec.config.load()
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise PluginError(f"{spec.config.path!r} is {model!r}, not a pydantic model")
    return model
