"""The recipe as Python sees it: complete, checked, unchangeable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from steelyard.gate.policy import PolicyConfig
from steelyard.plugins import Registry
from steelyard.recipe.complaints import Complaints, complaints_in, plain_words, shown
from steelyard.recipe.entries import DataEntry, EngineEntry, LauncherEntry, StageEntry, VerifierEntry
from steelyard.recipe.section import Name, Section

__all__ = ["Base", "Decontaminate", "EvaluateEntry", "Extend", "GateEntry", "NewModel", "NewTokenizer", "Paraphrases", "Recipe", "Round"]

FORMAT = 1


class NewTokenizer(Section):
    """A tokenizer with one token for each character."""

    what = "the new tokenizer"

    characters: str = Field(min_length=1)
    """Every character it knows."""
    extra_tokens: list[str] = Field(default_factory=list)
    """Further tokens, such as the role marks of a chat template."""


class NewModel(Section):
    """A model with random weights, to be pre-trained."""

    what = "the new model"

    architecture: dict[str, Any]
    """Keys of the Hugging Face configuration, `model_type` among them; the vocabulary's size is filled in."""
    tokenizer: NewTokenizer
    """Its tokenizer."""

    @field_validator("architecture")
    @classmethod
    def _has_a_type(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("model_type"), str):
            raise ValueError("architecture needs 'model_type', such as 'llama'")
        return value


class Base(Section):
    """The model everything starts from: an existing one (`model`), or one with random weights (`new`)."""

    what = "base"

    model: str | None = None
    """A hub id, a local folder, or a GGUF file; a relative path starts at the recipe's folder."""
    new: NewModel | None = None
    """Make a model with random weights instead."""
    revision: str | None = None
    """The commit, branch or tag of a hub id."""
    chat_template: str | None = None
    """A built-in template's name (such as `chatml`), the path of a `.jinja` file, or nothing: the model's own."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """The type of the weights; `auto` keeps that of the model."""
    trust_remote_code: str | None = None
    """The model's own reference, written out again: then, and only then, code that comes with it may run."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        complaints = Complaints()
        if (self.model is None) == (self.new is None):
            complaints.add((), "base needs either 'model' (an existing model) or 'new' (random weights)")
        if self.new is not None and self.revision is not None:
            complaints.add(("revision",), "revision belongs to a hub id, and this base is new: take it out")
        if self.trust_remote_code is not None and self.trust_remote_code != self.model:
            complaints.add(
                ("trust_remote_code",),
                f"trust_remote_code is {shown(self.trust_remote_code)}: to run the code that comes with the model, write its "
                f"reference {self.model!r} again",
            )
        if complaints:
            raise complaints.to_error()
        return self


class Paraphrases(Section):
    """A second look for rows that say what an item says in other words, by the embeddings of an encoder: a likeness and no proof."""

    what = "decontaminate.paraphrases"

    model: str = Field(min_length=1)
    """The encoder: a folder, from the recipe's, or a hub id."""
    threshold: float = Field(default=0.9, gt=0, le=1)
    """The likeness (cosine) from which on a row is listed."""
    remove: bool = False
    """Whether the rows listed are taken out; not with `waive`, which keeps every row."""


class Decontaminate(Section):
    """Training rows that overlap with a suite's items are removed, or refused."""

    what = "decontaminate"

    against: list[str] = Field(default_factory=list)
    """Roles of the suites; default: all of them."""
    ngram: int = Field(default=8, ge=2, le=1000)
    """Length of the n-grams, in words."""
    coverage: float = Field(default=0.5, ge=0, lt=1)
    """A row overlaps with an item when more than this share of the item's words lies in n-grams of the row."""
    max_overlap: float = Field(default=0.02, ge=0, lt=1)
    """Under `action: refuse`, the largest share of a task's items that a dataset may overlap with; it decides nothing else."""
    min_words: int = Field(default=3, ge=1)
    """Items of fewer words match a row's whole text only; at most `ngram` counts."""
    template: float = Field(default=0.02, ge=0, lt=1)
    """An n-gram in more than this share of a task's items, and in more than twenty, is their template, and its words are not counted."""
    action: Literal["remove", "refuse"] = "remove"
    """Rows that overlap are taken out (`remove`); under `refuse` too, unless the overlap is above `max_overlap`: then the run stops."""
    waive: str | None = Field(default=None, min_length=1)
    """A reason to keep every row, whatever `action` says; the data is scanned all the same, and the reason stands in the certificate."""
    paraphrases: Paraphrases | None = None
    """Look for paraphrases too; they are listed apart, and count in no rate and no certificate."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        complaints = Complaints()
        if self.waive is not None and not self.waive.strip():
            complaints.add(("waive",), f"waive is {shown(self.waive)}: say in words why rows that hold items may stay")
        if self.waive is not None and self.paraphrases is not None and self.paraphrases.remove:
            complaints.add(
                ("paraphrases", "remove"), "remove takes rows out, and decontaminate.waive keeps every row: take one of the two back"
            )
        if complaints:
            raise complaints.to_error()
        return self


class Extend(Section):
    """What a gate that looks again is given more of, each time."""

    what = "extend"

    samples: int = Field(default=2, ge=1, le=100)
    """By how much the `samples` of a task are multiplied that has more than one; 1 leaves them as they are."""
    items: int = Field(default=2, ge=1, le=100)
    """By how much the `limit` of a task is multiplied that has one, as far as it has items; 1 leaves it as it is."""


class GateEntry(PolicyConfig):
    """How a challenger is weighed against the champion, and what follows."""

    what: ClassVar[str] = "the gate"

    rounds: int = Field(default=1, exclude=True)
    round: int = Field(default=1, exclude=True)
    look: int = Field(default=1, exclude=True)
    extend: Extend = Field(default_factory=Extend)
    """What a look that follows an inconclusive one (`extensions`) has more of."""
    on_reject: Literal["stop", "continue"] = "stop"
    """After a rejected round: stop, or go on with the next round from the champion."""
    on_inconclusive: Literal["keep_champion", "stop"] = "keep_champion"
    """After an inconclusive round: go on with the next round from the champion, or stop."""
    require_power: bool = True
    """Refuse, before anything is trained, a guard that would fail more often than not although nothing changed."""

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, cls):
            return data
        complaints = plain_words(cls, data, cls.what)
        if not isinstance(data, Mapping):
            complaints.add((), f"{cls.what} is {shown(data)}, not a mapping of keys to values")
            raise complaints.to_error()
        for key in ("rounds", "round", "look"):
            if key in data:
                counts = "its own looks" if key == "look" else "the recipe's own rounds"
                complaints.add((key,), f"unknown key {key!r} in the gate: a run counts {counts}")
        try:
            made = handler(data)
        except ValidationError as error:
            complaints.take(complaints_in(error, cls, data, cls.what))
        if complaints:
            raise complaints.to_error()
        return made

    def overridden(self, overrides: Mapping[str, Any]) -> GateEntry:
        """This gate with some keys changed; `margins` and `weights` are merged task by task. Raises
        :class:`pydantic.ValidationError`."""
        written = self.model_dump(mode="json")
        for key, value in overrides.items():
            merge = isinstance(value, Mapping) and isinstance(written.get(key), Mapping)
            written[key] = {**written[key], **value} if merge else value
        return GateEntry.model_validate(written)

    def to_policy(self, *, number: int, of: int) -> PolicyConfig:
        """The policy of round ``number`` (from 1) ``of`` so many."""
        statistical = {name: getattr(self, name) for name in PolicyConfig.model_fields}
        return PolicyConfig(**{**statistical, "round": number, "rounds": of})


class EvaluateEntry(Section):
    """How suites are evaluated."""

    what = "evaluate"

    engine: dict[str, Any] = Field(default_factory=dict)
    """Keys of the recipe's `engine` that are different in evaluations."""
    batch_size: int | None = Field(default=None, ge=1)
    """Requests in one batch; default: the engine's."""
    unseen: Literal["last", "never"] | list[Name] = "last"
    """When the unseen suite is opened, on the base and on the champion: behind the last round (`last`), behind each of the rounds named
    here, or not at all. Every opening is counted and told."""


class Round(Section):
    """Stages, an evaluation, and a gate."""

    what = "a round"

    name: Name
    """What it is called."""
    repeat: Literal[1] = 1
    """A resolved recipe has every round written out, so this is 1; in a file, how often the round is run."""
    stages: list[StageEntry] = Field(min_length=1)
    """What makes the challenger, in order."""
    gate: dict[str, Any] = Field(default_factory=dict)
    """Keys of the recipe's `gate` that are different in this round."""

    @classmethod
    def completed(cls, data: Mapping[str, Any], info: ValidationInfo) -> Mapping[str, Any]:
        stages = data.get("stages")
        if not isinstance(stages, list):
            return data
        registry: Registry = (info.context or {})["registry"]
        kinds, filled, init = registry.all("stages"), [], "champion"
        for stage in stages:
            filled.append({"init": init, **stage} if isinstance(stage, Mapping) else stage)
            spec = kinds.get(stage["kind"]) if isinstance(stage, Mapping) and isinstance(stage.get("kind"), str) else None
            if spec is None or spec.makes == "policy":
                init = "previous"
        return {**data, "stages": filled}


class Recipe(Section):
    """Everything a run is made from."""

    steelyard: int
    """The recipe format: 1."""
    name: Name
    """The recipe's name, and its runs'."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Every random number of the run comes from it."""
    summary: str = ""
    """A line of help."""
    base: Base
    """The model everything starts from."""
    engine: EngineEntry
    """What generates and scores text."""
    launcher: LauncherEntry
    """Where the process of a step runs."""
    suites: dict[Name, str] = Field(default_factory=dict)
    """Evaluation suites by role: `dev` is what gates see, `unseen` is opened for the report only. A suite's name, or the path of its
    YAML file from the recipe's folder."""
    decontaminate: Decontaminate
    """How training data is kept apart from the suites."""
    verifiers: dict[Name, VerifierEntry] = Field(default_factory=dict)
    """Verifiers by the name that rows use, for all stages and data."""
    data: dict[Name, DataEntry] = Field(default_factory=dict)
    """Training datasets by name."""
    rounds: list[Round] = Field(min_length=1)
    """The rounds, in order."""
    gate: GateEntry
    """How challengers are weighed."""
    evaluate: EvaluateEntry
    """How suites are evaluated."""

    @field_validator("steelyard", mode="before")
    @classmethod
    def _is_known_format(cls, value: Any) -> Any:
        if value != FORMAT or isinstance(value, bool):
            raise ValueError(f"this Steelyard reads recipe format {FORMAT}")
        return value

    @classmethod
    def completed(cls, data: Mapping[str, Any], info: ValidationInfo) -> Mapping[str, Any]:
        """Sections that may be left out, and the roles that training data is kept apart from."""
        data = {"engine": {}, "launcher": {}, "decontaminate": {}, "gate": {}, "evaluate": {}, **data}
        kept_apart, suites = data["decontaminate"], data.get("suites")
        if isinstance(kept_apart, Mapping) and "against" not in kept_apart and isinstance(suites, Mapping):
            data = {**data, "decontaminate": {**kept_apart, "against": list(suites)}}
        return data

    def to_json(self) -> dict[str, Any]:
        """The whole recipe, every default written out; :meth:`from_json` is the way back."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], registry: Registry, base: Path) -> Recipe:
        """The recipe that :meth:`to_json` wrote. ``base`` is the folder relative paths start from. Raises :class:`RecipeError`."""
        from steelyard.recipe.loading import recipe_from

        return recipe_from(data, registry, base)

    def round(self, name: str) -> Round:
        """The round of that name; KeyError when there is none."""
        return {known.name: known for known in self.rounds}[name]

    def gate_of(self, of: Round) -> GateEntry:
        """The recipe's gate with the round's changes."""
        return self.gate.overridden(of.gate) if of.gate else self.gate

    def policy_of(self, of: Round) -> PolicyConfig:
        """The policy that weighs the round's challenger, knowing which of how many rounds it is."""
        names = [known.name for known in self.rounds]
        return self.gate_of(of).to_policy(number=names.index(of.name) + 1, of=len(names))

    def verifiers_of(self, entry: StageEntry | DataEntry) -> dict[str, VerifierEntry]:
        """The recipe's verifiers and the entry's own, which come first where both have a name."""
        return {**self.verifiers, **entry.verifiers}
