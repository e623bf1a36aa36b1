"""What happens to one entry point: import, registration, collection, each kept from harming the rest; and where its files are."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from types import FunctionType
from typing import Any, get_args

import pluggy

from steelyard import hookspecs, specs
from steelyard.errors import nearest

__all__ = ["FAMILIES", "Loaded", "load_entry_point", "location", "source_text"]

FAMILIES: Mapping[str, tuple[str, type[Any]]] = {
    "stages": ("stage", specs.StageSpec),
    "mixers": ("mixer", specs.MixerSpec),
    "sources": ("source", specs.SourceSpec),
    "verifiers": ("verifier", specs.VerifierSpec),
    "shapers": ("shaper", specs.ShaperSpec),
    "engines": ("engine", specs.EngineSpec),
    "harnesses": ("harness", specs.HarnessSpec),
    "launchers": ("launcher", specs.LauncherSpec),
    "suites": ("suite", specs.SuiteSpec),
    "gate_policies": ("gate policy", specs.GatePolicySpec),
    "recipes": ("recipe", specs.RecipeSpec),
    "commands": ("command", specs.CommandSpec),
}
"""Family → (its singular, its descriptor); the hook of a family is ``steelyard_<family>``."""

_NO_WRAPPERS = {f"steelyard_{family}" for family in FAMILIES} | {"steelyard_gate_objections"}


@dataclass
class Loaded:
    """What came of loading: ``error`` is empty for a sound plugin, else ``incompatible`` says of which kind it is."""

    error: str = ""
    incompatible: bool = False
    printed: str = ""
    contributions: dict[str, list[Any]] = field(default_factory=dict)


class _Defect(Exception):
    """What is wrong with a plugin, in words for its user."""


def load_entry_point(manager: pluggy.PluginManager, key: str, entry: EntryPoint) -> Loaded:
    """Imports an entry point, registers its hooks under ``key`` and calls its contribution hooks.

    Nothing but KeyboardInterrupt comes out, whatever the plugin does; a faulty one is left unregistered."""
    loaded = Loaded()
    with _stdout_kept_apart() as printed:
        try:
            plugin = entry.load()
            needs = getattr(plugin, "STEELYARD_API", 1)
            if not isinstance(needs, int):
                raise _Defect(f"STEELYARD_API is {needs!r}, not a number")
            if needs > hookspecs.API_VERSION:
                loaded.incompatible = True
                raise _Defect(f"needs hook API {needs}, this Steelyard has {hookspecs.API_VERSION}: upgrade steelyard")
            _register(manager, key, plugin)
            loaded.contributions = {family: _contributions(manager, key, family) for family in FAMILIES}
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, and whatever else a module may raise while it is imported
            loaded.error = str(error) if isinstance(error, _Defect) else _in_words(error)
            loaded.contributions = {}
            if manager.get_plugin(key) is not None:
                manager.unregister(name=key)
    loaded.printed = printed.getvalue().strip()[:2000]
    return loaded


def _register(manager: pluggy.PluginManager, key: str, plugin: Any) -> None:
    known = set(vars(manager.hook))
    try:
        manager.register(plugin, key)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        unknown = re.search(r"unknown hook '(\w+)'", str(error))
        if unknown:
            raise _Defect(f"unknown hook {unknown[1]!r}{nearest(unknown[1], known)}") from error
        raise _Defect(" ".join(str(error).split())) from error
    callers = manager.get_hookcallers(manager.get_plugin(key)) or []
    for caller in callers:
        for hook in caller.get_hookimpls():
            if hook.plugin_name == key and caller.name in _NO_WRAPPERS and (hook.wrapper or hook.hookwrapper):
                raise _Defect(f"{caller.name} cannot be wrapped")
    implemented = {caller.name for caller in callers}
    for name in sorted(known - implemented):
        if isinstance(getattr(plugin, name, None), FunctionType):
            raise _Defect(f"{name} is not marked with @hookimpl, so it would never be called")


def _contributions(manager: pluggy.PluginManager, key: str, family: str) -> list[Any]:
    hook_name = f"steelyard_{family}"
    kind = FAMILIES[family][1]
    given: list[Any] = []
    for hook in getattr(manager.hook, hook_name).get_hookimpls():
        if hook.plugin_name != key:
            continue
        answer = hook.function()
        if answer is None:
            continue
        if isinstance(answer, str | bytes | Mapping) or not hasattr(answer, "__iter__"):
            raise _Defect(f"{hook_name} gave {_shown(answer)}, not an iterable of {kind.__name__}")
        for spec in answer:
            if not isinstance(spec, kind):
                raise _Defect(f"{hook_name} gave {_shown(spec)}, not a {kind.__name__}")
            _check_fields(hook_name, spec)
            given.append(spec)
    return given


def _check_fields(hook_name: str, spec: Any) -> None:
    wanted: dict[str, Any] = {"name": str, "summary": str, "impl": specs.LazyRef, "config": (specs.LazyRef, type(None))}
    wanted |= {"path": Path, "timeout_s": (int, float)}
    for name, kind in wanted.items():
        if hasattr(spec, name) and not isinstance(getattr(spec, name), kind):
            raise _Defect(f"{hook_name}: {name} of {_shown(spec.name)} is {_shown(getattr(spec, name))}, of the wrong type")
    if isinstance(spec, specs.VerifierSpec):
        if spec.isolation not in get_args(specs.Isolation):
            hint = nearest(str(spec.isolation), get_args(specs.Isolation))
            raise _Defect(f"{hook_name}: isolation of {spec.name!r} is {spec.isolation!r}{hint}")
        if not spec.timeout_s > 0:
            raise _Defect(f"{hook_name}: timeout_s of {spec.name!r} is {spec.timeout_s!r}, not above 0")


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '…'} ({type(value).__name__})"


def _in_words(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"called sys.exit({error.code!r}) while it was loaded"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@contextlib.contextmanager
def _stdout_kept_apart() -> Iterator[io.StringIO]:
    """Collects what is printed, and sends what goes to the file descriptor itself to stderr: stdout belongs to a command's data."""
    saved: int | None = None
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            yield printed
    finally:
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


def location(module: str) -> Path | None:
    """The folder of the package that holds a plugin's hooks, or the file of a lone module; found without importing it."""
    parts = module.partition(":")[0].split(".")
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin and len(parts) == 1 else None
    for top in map(Path, spec.submodule_search_locations):
        inner = top.joinpath(*parts[1:])
        if inner.is_dir():
            return inner
        if inner.with_suffix(".py").is_file():
            return inner.parent if (inner.parent / "__init__.py").is_file() else inner.with_suffix(".py")
    return None


def source_text(module: str) -> str:
    """The text of the module with a plugin's hooks, empty when there is none to read."""
    root = location(module)
    try:
        if root is None or root.is_file():
            return root.read_text("utf-8") if root else ""
        lone = root / f"{module.partition(':')[0].rpartition('.')[2]}.py"
        return (lone if lone.is_file() else root / "__init__.py").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
