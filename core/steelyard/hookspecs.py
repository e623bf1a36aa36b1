"""The hooks of Steelyard: this file is the plugin author's manual (``steelyard plugins hooks`` prints it).

A plugin is a Python distribution with an entry point in the group ``steelyard``::

    [project.entry-points.steelyard]
    roman = "steelyard_roman"

and a module that implements any of the hooks below::

    from steelyard import hookimpl
    from steelyard.specs import LazyRef, VerifierSpec

    @hookimpl
    def steelyard_verifiers():
        yield VerifierSpec(
            "roman_numerals",
            impl=LazyRef("steelyard_roman.verifier:Roman"),
            config=LazyRef("steelyard_roman.config:RomanConfig"),
        )

Keep that module light: it is imported by every ``steelyard`` command. What a descriptor names by :class:`~steelyard.specs.LazyRef`
is imported when it is used. A recipe then says ``verifiers: {roman: {kind: roman_numerals}}``, and the plugin's own pydantic model
validates the other keys. A plugin that needs a newer hook API says so with a module attribute ``STEELYARD_API = 2``; this is API 1.

There are four kinds of hook.

*Contribution* hooks are called once, when a registry is built, and return descriptors. A name taken twice is an error that names both
distributions; ``distribution/name`` in a recipe says which is meant. *Veto* hooks can only object. *Notification* hooks get one frozen
event; an exception in one is reported once and never stops a run. *Resolver* hooks are asked in turn until one does not return None.
No hook is called for every sample: resolve once, then plain calls.

``steelyard plugins new NAME`` writes such a package to start from, with tests that use the conformance kit (:mod:`steelyard.testing`);
``steelyard plugins check NAME`` loads all that an installed one contributes. A plugin that cannot be imported, gives something else than
descriptors, or names a hook that does not exist is *broken*: ``steelyard plugins list`` says why, and the rest goes on without it. What a
plugin prints while it is loaded does not reach stdout. Plugins are left out by ``--no-plugin NAME``, by the comma-separated
``STEELYARD_DISABLE_PLUGINS``, and by ``plugins.disabled`` or ``plugins.allowed`` under ``[tool.steelyard]`` in the project's
pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pluggy

from steelyard.events import GateEvent, MetricsReported, RoundDecided, RunFinished, RunStarted, StepFinished, StepStarted
from steelyard.protocols import Resolved
from steelyard.specs import (
    CommandSpec,
    EngineSpec,
    GatePolicySpec,
    HarnessSpec,
    LauncherSpec,
    MixerSpec,
    RecipeSpec,
    ShaperSpec,
    SourceSpec,
    StageSpec,
    SuiteSpec,
    VerifierSpec,
)

API_VERSION = 1
"""The version of the hooks in this file; raised when a hook is added, and never lowered."""

hookspec = pluggy.HookspecMarker("steelyard")
hookimpl = pluggy.HookimplMarker("steelyard")


# Contributions


@hookspec
def steelyard_stages() -> Iterable[StageSpec]:  # type: ignore[empty-body]
    """Stages: what makes a model from a model and data. A recipe names one by ``kind`` in ``rounds[].stages[]``.

    A descriptor says which further ``models`` it takes, and whether it makes a policy or a reward model."""


@hookspec
def steelyard_mixers() -> Iterable[MixerSpec]:  # type: ignore[empty-body]
    """Mixers: what makes a training dataset from sources. A recipe names one by ``kind`` in an entry of ``data``."""


@hookspec
def steelyard_sources() -> Iterable[SourceSpec]:  # type: ignore[empty-body]
    """Sources: one place data comes from. A recipe names one by ``kind`` in ``sources`` of a data entry."""


@hookspec
def steelyard_verifiers() -> Iterable[VerifierSpec]:  # type: ignore[empty-body]
    """Verifiers: what checks a completion against a reference. A recipe names one by ``kind`` in ``verifiers``.

    ``isolation`` says where it runs; the default, a process that can be killed, suits anything that parses a model's text."""


@hookspec
def steelyard_shapers() -> Iterable[ShaperSpec]:  # type: ignore[empty-body]
    """Shapers: what changes rewards within a group. They run in the order of the recipe's ``shapers`` list."""


@hookspec
def steelyard_engines() -> Iterable[EngineSpec]:  # type: ignore[empty-body]
    """Engines: what generates and scores text, for rollouts and for evaluation. A recipe names one by ``engine.kind``."""


@hookspec
def steelyard_harnesses() -> Iterable[HarnessSpec]:  # type: ignore[empty-body]
    """Harnesses: what evaluates a suite. A suite's YAML names one by ``harness``."""


@hookspec
def steelyard_launchers() -> Iterable[LauncherSpec]:  # type: ignore[empty-body]
    """Launchers: where a step's process runs. A recipe names one by ``launcher.kind``."""


@hookspec
def steelyard_suites() -> Iterable[SuiteSpec]:  # type: ignore[empty-body]
    """Suites: named sets of tasks, each a YAML file."""


@hookspec
def steelyard_gate_policies() -> Iterable[GatePolicySpec]:  # type: ignore[empty-body]
    """Gate policies: what decides from two evaluations of the same items. A recipe names one by ``gate.policy``."""


@hookspec
def steelyard_recipes() -> Iterable[RecipeSpec]:  # type: ignore[empty-body]
    """Recipes that ``steelyard run NAME`` finds by name."""


@hookspec
def steelyard_commands() -> Iterable[CommandSpec]:  # type: ignore[empty-body]
    """Further subcommands of ``steelyard``. A built-in command's name cannot be taken."""


# Veto


@hookspec
def steelyard_gate_objections(event: GateEvent) -> Iterable[str] | None:
    """Reasons why the challenger must not be promoted, or None.

    Called once a gate, when the policy would promote. Every plugin is asked; any reason keeps the champion and stands in the verdict
    under ``objections``. An exception counts as an objection: a broken watchdog must not wave a model through."""


# Notifications


@hookspec
def steelyard_run_started(event: RunStarted) -> None:
    """A run begins or is resumed; in the conductor's process."""


@hookspec
def steelyard_step_started(event: StepStarted) -> None:
    """A step begins; not called for a step whose artifact is reused."""


@hookspec
def steelyard_step_finished(event: StepFinished) -> None:
    """A step is done, reused, failed or interrupted. Its artifact, if any, is committed."""


@hookspec
def steelyard_metrics(event: MetricsReported) -> None:
    """A step reported metrics, at most once an optimiser step."""


@hookspec
def steelyard_round_decided(event: RoundDecided) -> None:
    """A gate decided; the verdict is in the ledger."""


@hookspec
def steelyard_run_finished(event: RunFinished) -> None:
    """The run ended, in whatever way the conductor lived to see."""


# Resolvers


@hookspec(firstresult=True)
def steelyard_resolve_model(ref: str, base: Path) -> Resolved | None:
    """Where the model ``ref`` is on this machine: a folder or file. ``base`` is the folder that relative paths start from.

    Asked before the import of a base model looks for a folder, a file or a hub id of that name: for registries and stores of your own."""


@hookspec(firstresult=True)
def steelyard_resolve_dataset(ref: str, base: Path) -> Resolved | None:
    """Where the dataset ``ref`` is on this machine, for the ``hub`` source and for the tasks of a suite: a folder with the files of the
    hub's repository. ``base`` is the folder that relative paths start from. None: leave it to the ``datasets`` library.

    Asked last of all is Steelyard itself, which looks in the folder that the environment variable ``STEELYARD_DATASETS`` names."""
