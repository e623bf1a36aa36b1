"""Finds, loads and collects plugins, and says what became of each.

A :class:`Registry` is made by :func:`load_registry` and handed around; there is no global one. Every plugin is loaded by itself, so that
a broken one costs its own contributions and nothing else. Implementations are not imported here: descriptors name them lazily.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pluggy

from steelyard import events, hookspecs, specs
from steelyard.errors import PluginError, SteelyardError, UsageError, nearest
from steelyard.plugin_loading import FAMILIES, load_entry_point, location, source_text
from steelyard.plugin_selection import find_plugins, normal, reasons_to_leave_out

__all__ = ["ENTRY_POINT_GROUP", "FAMILIES", "AnySpec", "PluginInfo", "Registry", "Status", "load_registry"]

ENTRY_POINT_GROUP = "steelyard"
Status = Literal["active", "disabled", "conflict", "broken", "incompatible"]
AnySpec = specs.Spec | specs.SuiteSpec | specs.RecipeSpec | specs.CommandSpec

_HOOK_OF_EVENT: Mapping[type[Any], str] = {
    events.RunStarted: "steelyard_run_started",
    events.StepStarted: "steelyard_step_started",
    events.StepFinished: "steelyard_step_finished",
    events.MetricsReported: "steelyard_metrics",
    events.RoundDecided: "steelyard_round_decided",
    events.RunFinished: "steelyard_run_finished",
}
_log = logging.getLogger("steelyard.plugins")


@dataclass(frozen=True)
class PluginInfo:
    """One entry point of the group ``steelyard`` and what became of it."""

    name: str
    distribution: str
    version: str
    module: str
    status: Status = "active"
    error: str = ""
    """Why it is not ``active``."""
    provides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names it contributes, by family."""
    printed: str = ""
    """What it wrote to stdout while it was imported and asked; such text never reaches the real stdout."""

    @property
    def title(self) -> str:
        return f"{self.distribution} {self.version}"

    @cached_property
    def hash(self) -> str:
        """sha256 over the plugin's files (names and contents), first 32 hex digits; empty when they cannot be found."""
        digest = hashlib.sha256()
        root = location(self.module)
        if root is None:
            return ""
        files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        for path in files:
            name = path.relative_to(root.parent).as_posix()
            if "__pycache__" not in name and not any(part.startswith(".") for part in name.split("/")):
                digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return digest.hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        keys = ("name", "distribution", "version", "module", "status", "error", "printed", "hash")
        return {key: getattr(self, key) for key in keys} | {"provides": {k: list(v) for k, v in self.provides.items()}}


@dataclass(frozen=True, eq=False)
class Registry:
    """What all active plugins contribute."""

    plugins: tuple[PluginInfo, ...]
    hook: Any
    """The hooks as pluggy calls them (resolvers)."""
    disabled: tuple[str, ...] = ()
    """The names given on the command line, to be handed on to worker processes."""
    _entries: Mapping[str, Mapping[str, tuple[tuple[PluginInfo, Any], ...]]] = field(default_factory=dict, repr=False)
    _infos: Mapping[str, PluginInfo] = field(default_factory=dict, repr=False)
    _reported: set[tuple[str, str]] = field(default_factory=set, repr=False)

    def get(self, family: str, name: str) -> Any:
        """The descriptor of that name, or of ``distribution/name``.

        Raises :class:`PluginError` for a name taken twice and for one that a plugin which is not active seems to have, and
        :class:`UsageError` for one that nobody has."""
        found = self._entries[family].get(name, ())
        if not found and "/" in name:
            distribution, _, bare = name.partition("/")
            same = self._entries[family].get(bare, ())
            found = tuple(e for e in same if normal(e[0].distribution) == normal(distribution))
        if len(found) == 1:
            return found[0][1]
        noun = FAMILIES[family][0]
        if found:
            raise PluginError(_conflict(noun, name, [info for info, _ in found]))
        raise self._missing(family, noun, name)

    def all(self, family: str) -> dict[str, Any]:
        """Every descriptor of a family by name, sorted; those whose name is taken twice by ``distribution/name``."""
        names = self._entries[family]
        both = {n: found[0][1] for n, found in names.items() if len(found) == 1}
        both |= {f"{info.distribution}/{n}": spec for n, found in names.items() if len(found) > 1 for info, spec in found}
        return dict(sorted(both.items()))

    def owner(self, spec: AnySpec) -> PluginInfo:
        """The plugin that contributed a descriptor."""
        return next(info for names in self._entries.values() for info, known in names.get(spec.name, ()) if known == spec)

    def load(self, spec: specs.Spec | specs.CommandSpec) -> Any:
        """The implementation a descriptor names; :class:`PluginError` naming its plugin when it cannot be imported."""
        return self._load(spec, spec.impl)

    def configure(self, spec: specs.Spec, data: Mapping[str, Any]) -> Any:
        """The validated configuration, an instance of the descriptor's pydantic model; None when it takes none.

        Raises :class:`pydantic.ValidationError` for wrong options, :class:`UsageError` for options where none are taken."""
        if spec.config is None:
            if data:
                raise UsageError(f"{spec.name!r} takes no options, got {', '.join(map(repr, data))}")
            return None
        model = self._load(spec, spec.config)
        if not hasattr(model, "model_validate"):
            raise PluginError(f"{spec.config.path!r} of {self.owner(spec).title} is {model!r}, not a pydantic model")
        return model.model_validate(dict(data))

    def notify(self, event: object) -> None:
        """Hands an event to the notification hook made for it. A plugin's failure is logged once and goes no further."""
        hook_name = _HOOK_OF_EVENT[type(event)]
        for implementation in getattr(self.hook, hook_name).get_hookimpls():
            try:
                implementation.function(*(event for _ in implementation.argnames))
            except (Exception, SystemExit) as error:
                key = (implementation.plugin_name, hook_name)
                if key not in self._reported:
                    self._reported.add(key)
                    who = self._infos[implementation.plugin_name]
                    _log.warning("plugin %r (%s) failed in %s: %r; not shown again", who.name, who.title, hook_name, error)

    def objections(self, event: object) -> list[str]:
        """Every plugin's reasons against a promotion. A veto hook that fails, or answers with nonsense, objects."""
        reasons: list[str] = []
        for implementation in self.hook.steelyard_gate_objections.get_hookimpls():
            who = self._infos[implementation.plugin_name]
            try:
                answer = implementation.function(*(event for _ in implementation.argnames))
                said = [] if answer is None else [answer] if isinstance(answer, str) else [str(x) for x in answer]
            except (Exception, SystemExit) as error:
                said = [f"its hook failed: {error!r}"]
            reasons += [f"{who.name} ({who.title}): {reason or 'no reason given'}" for reason in said]
        return reasons

    def _load(self, spec: Any, ref: specs.LazyRef) -> Any:
        try:
            return ref.load()
        except (Exception, SystemExit) as error:
            who = self.owner(spec)
            why = str(error) if isinstance(error, SteelyardError) else f"cannot load {ref.path!r}: {error!r}"
            raise PluginError(f"plugin {who.name!r} ({who.title}) cannot serve {spec.name!r}: {why}") from error

    def _missing(self, family: str, noun: str, name: str) -> SteelyardError:
        idle = [p for p in self.plugins if p.status in ("disabled", "broken", "incompatible")]
        bare = name.rpartition("/")[2]
        suspects = [p for p in idle if f'"{bare}"' in source_text(p.module) or f"'{bare}'" in source_text(p.module)]
        known = [n for n, spec in self.all(family).items() if not getattr(spec, "hidden", False)]
        message = f"no {noun} named {name!r}{nearest(name, known)}"
        if suspects:
            told = "; ".join(f"plugin {p.name!r} ({p.title}) mentions it, but is {p.status}: {p.error}" for p in suspects)
            return PluginError(f"{message}; {told}")
        if idle:
            told = ", ".join(f"{p.name!r} ({p.status})" for p in idle)
            return UsageError(f"{message}; these plugins are not active: {told}; see 'steelyard plugins list'")
        return UsageError(message)


def load_registry(
    *,
    disabled: Iterable[str] = (),
    allowed: Iterable[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    project: Path | None = None,
) -> Registry:
    """Discovers and loads every plugin of this environment.

    ``disabled`` (the command line's ``--no-plugin``), the comma-separated ``STEELYARD_DISABLE_PLUGINS`` of ``environ`` and
    ``plugins.disabled`` under ``[tool.steelyard]`` in the nearest pyproject.toml upwards from ``project`` (default: the current
    folder) add up; they name plugins by entry point or by distribution. ``allowed``, or else the project's
    ``plugins.allowed``, leaves out every other plugin that is not one of Steelyard's own. Raises :class:`UsageError` for a name in
    ``disabled`` that no plugin has, and for a project file that cannot be read; a faulty plugin raises nothing."""
    disabled = tuple(disabled)
    found = find_plugins(ENTRY_POINT_GROUP)
    known = {name for entry, distribution, _ in found for name in (entry.name, distribution)}
    for name in disabled:
        if normal(name) not in map(normal, known):
            raise UsageError(f"--no-plugin {name!r}: no such plugin{nearest(name, known)}")
    why_off = reasons_to_leave_out(disabled, allowed, environ, project)
    manager = pluggy.PluginManager(ENTRY_POINT_GROUP)
    manager.add_hookspecs(hookspecs)
    infos: dict[str, PluginInfo] = {}
    taken: dict[str, dict[str, list[tuple[str, Any]]]] = {family: {} for family in FAMILIES}
    for plugin in found:
        entry, distribution, version = plugin
        key = f"{distribution}:{entry.name}"
        info = infos[key] = PluginInfo(entry.name, distribution, version, entry.value)
        if reason := why_off(plugin):
            infos[key] = replace(info, status="disabled", error=reason)
            continue
        loaded = load_entry_point(manager, key, entry)
        status: Status = "incompatible" if loaded.incompatible else "broken" if loaded.error else "active"
        provides = {family: tuple(spec.name for spec in given) for family, given in loaded.contributions.items() if given}
        infos[key] = replace(info, status=status, error=loaded.error, printed=loaded.printed, provides=provides)
        for family, given in loaded.contributions.items():
            for spec in given:
                taken[family].setdefault(spec.name, []).append((key, spec))
    _mark_conflicts(infos, taken)
    entries = {f: {n: tuple((infos[k], s) for k, s in t) for n, t in names.items()} for f, names in taken.items()}
    return Registry(tuple(infos.values()), manager.hook, disabled, entries, infos)


def _mark_conflicts(infos: dict[str, PluginInfo], taken: Mapping[str, Mapping[str, Sequence[tuple[str, Any]]]]) -> None:
    for family, names in taken.items():
        for name, takers in names.items():
            keys = dict.fromkeys(key for key, _ in takers)
            if len(takers) > 1:
                clash = _conflict(FAMILIES[family][0], name, [infos[key] for key, _ in takers])
                for key in keys:
                    error = "; ".join(filter(None, (infos[key].error, clash)))
                    infos[key] = replace(infos[key], status="conflict", error=error)


def _conflict(noun: str, name: str, takers: Sequence[PluginInfo]) -> str:
    who = " and ".join(f"{info.title} (plugin {info.name!r})" for info in takers)
    if len({info.distribution for info in takers}) == len(takers):
        choice = " or ".join(repr(f"{info.distribution}/{name}") for info in takers)
        return f"{noun} {name!r} is provided by {who}: write {choice}, or leave one out with --no-plugin"
    return f"{noun} {name!r} is provided by {who}: leave one out with --no-plugin"
