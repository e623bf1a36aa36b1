"""The descriptors that contribution hooks return: small, frozen, and free of imports until something is used.

Each names its implementation and its pydantic configuration model by :class:`LazyRef`. Collecting every descriptor of every plugin
imports nothing but the plugins' own ``__init__`` modules.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steelyard.errors import PluginError

__all__ = [
    "CommandSpec",
    "EngineSpec",
    "GatePolicySpec",
    "HarnessSpec",
    "LauncherSpec",
    "LazyRef",
    "MixerSpec",
    "RecipeSpec",
    "ShaperSpec",
    "SourceSpec",
    "Spec",
    "StageSpec",
    "SuiteSpec",
    "VerifierSpec",
]

Isolation = Literal["inline", "process", "sandbox"]
VerifierNeed = Literal["base", "engine", "parts"]
Makes = Literal["policy", "reward_model"]
RowFormat = Literal["messages", "preference", "prompts", "text"]


@dataclass(frozen=True, slots=True)
class LazyRef:
    """``"package.module:attribute"``, imported on :meth:`load` and not before."""

    path: str

    def __post_init__(self) -> None:
        module, colon, attribute = self.path.partition(":")
        if not (module and colon and attribute) or " " in self.path:
            raise ValueError(f"{self.path!r} is not of the form 'package.module:attribute'")

    def load(self) -> Any:
        """The object. Raises :class:`PluginError` naming the reference when its module or attribute cannot be had."""
        module_name, _, attribute = self.path.partition(":")
        try:
            found: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, SyntaxError) as error:
            raise PluginError(f"cannot load {self.path!r}: {error}") from error
        return found


@dataclass(frozen=True, slots=True)
class Spec:
    """What every descriptor has: the ``name`` a recipe uses, where the implementation is, where its configuration model is
    (None: it takes none), and a line of help."""

    name: str
    impl: LazyRef
    config: LazyRef | None = None
    summary: str = ""

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "_-." for c in self.name):
            raise ValueError(f"{self.name!r} is not a name: letters, digits, '_', '-' and '.' only")


@dataclass(frozen=True, slots=True)
class StageSpec(Spec):
    """A stage: ``impl`` is a class or function giving a :class:`~steelyard.protocols.Stage`."""

    data: RowFormat | None = "messages"
    """The row format it trains on; None for a stage without data."""
    needs_reference: bool = False
    """Whether it reads a reference model (``reference:`` in the recipe, default: the model it starts from)."""
    reference_must_differ: bool = False
    """Whether a reference that is the model it starts from is a mistake: the recipe must then name another. A configuration to which this
    does not apply has an attribute of this name that is False."""
    needs_verifiers: bool = False
    distributed: bool = False
    """Whether it runs in all processes of a launcher that starts several, each doing its share (``context.rank``); else in the first."""
    models: tuple[str, ...] | Literal["*"] = ()
    """Roles of the further models that it takes (``models: {role: ref}`` in the recipe); ``"*"``: the recipe chooses the names. The stage
    gets each as the folder ``context.inputs["model:ROLE"]``. Which roles go with which options, the configuration can say, see
    :class:`~steelyard.protocols.ModelsChecked`."""
    needs_models: bool = False
    """Whether it cannot do without: every role of ``models``, or under ``"*"`` at least one."""
    models_for_reference: bool = False
    """Whether ``models`` may stand in for the reference: the recipe then names one or the other."""
    makes: Makes = "policy"
    """What comes out. A ``reward_model`` scores text and writes none: it is never evaluated, gated or promoted, and ``previous`` passes
    it over; later stages name it by ``stage:NAME``."""
    hidden: bool = False
    """Left out of lists: for stages that the conductor places itself."""


@dataclass(frozen=True, slots=True)
class SourceSpec(Spec):
    """A place data comes from: ``impl(config, base)``, with the folder that relative paths start from, is a
    :class:`~steelyard.protocols.Source`."""


@dataclass(frozen=True, slots=True)
class MixerSpec(Spec):
    """Makes a training dataset from sources: ``impl(config)`` is a :class:`~steelyard.protocols.Mixer`."""

    samples_model: bool = False
    """Whether it samples a model (``from:`` in the recipe); such a dataset is made afresh in every round."""
    needs_verifiers: bool = False
    produces: RowFormat | None = None
    """The row format it makes; None: whatever its sources hold."""


@dataclass(frozen=True, slots=True)
class VerifierSpec(Spec):
    """Checks completions: ``impl(config)`` is a :class:`~steelyard.protocols.Verifier`."""

    isolation: Isolation = "process"
    """``inline``: pure, fast and trusted; runs where it is called, in any thread. ``process``: runs in a worker that can be killed, which
    is sent the completion without its log-probabilities and prompt tokens. ``sandbox``: runs model-written code; the verifier itself
    runs where it is called, made as ``impl(config, sandbox=...)`` with a :class:`~steelyard.protocols.Sandbox` for that code."""
    timeout_s: float = 10.0
    """Wall-clock seconds for one completion, after which the worker is killed and the outcome is ``timeout``; of ``process`` only."""
    needs: tuple[VerifierNeed, ...] = ()
    """What an ``inline`` verifier is given besides its configuration, as keyword arguments; ``base`` may be given to a ``sandbox`` one as
    well. ``base``: the folder that relative paths start from. ``engine``: an :class:`~steelyard.protocols.EngineFactory`, or None where
    there is none. ``parts``: the verifiers that its configuration's ``parts`` name, opened under their own isolation, as a list of
    :class:`~steelyard.protocols.Part` in that order; each of ``config.parts`` has ``kind``, ``options`` and ``timeout_s``. An inline
    verifier's ``close()``, where it has one, is called when the verifiers are closed."""
    model_option: str | None = None
    """Which of its options names a model that may also be one of the run (``stage:NAME``, for stages only) or of another run
    (``run:PATH#STEP``). The verifier then finds the path of the folder in it."""
    examples: LazyRef | None = None
    """What ``steelyard verify --audit`` tries: a list of mappings with ``response``, ``reference`` and ``correct`` (default true), perhaps
    ``options`` of the verifier that the example needs, and ``damaged``, a list of wrong versions of a right response where the usual
    damage would leave it right."""

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one this was written in.
        Spec.__post_init__(self)
        refused = [need for need in self.needs if self.isolation != "inline" and (self.isolation, need) != ("sandbox", "base")]
        if refused:
            raise ValueError(f"verifier {self.name!r} needs {' and '.join(refused)}, which only an inline one can be given")


@dataclass(frozen=True, slots=True)
class ShaperSpec(Spec):
    """Changes rewards within a group: ``impl(config)`` is a :class:`~steelyard.protocols.Shaper`."""


@dataclass(frozen=True, slots=True)
class EngineSpec(Spec):
    """Generates and scores text: ``impl(config, model_folder)`` is a :class:`~steelyard.protocols.Engine`."""


@dataclass(frozen=True, slots=True)
class HarnessSpec(Spec):
    """Evaluates suites: ``impl(registry)`` is a :class:`~steelyard.protocols.Harness`."""


@dataclass(frozen=True, slots=True)
class LauncherSpec(Spec):
    """Where a step's process runs: ``impl(config)`` is a :class:`~steelyard.protocols.Launcher`."""


@dataclass(frozen=True, slots=True)
class GatePolicySpec(Spec):
    """Decides from two evaluations: ``impl`` is a function with the signature of :func:`steelyard.gate.weigh`."""


@dataclass(frozen=True, slots=True)
class SuiteSpec:
    """A named set of tasks: the path of its YAML file, which names its harness."""

    name: str
    path: Path
    summary: str = ""


@dataclass(frozen=True, slots=True)
class RecipeSpec:
    """A recipe that ``steelyard run NAME`` finds: the path of its YAML file."""

    name: str
    path: Path
    summary: str = ""


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A further subcommand of ``steelyard``: ``impl`` is a :class:`click.Command`."""

    name: str
    impl: LazyRef
    summary: str = ""
