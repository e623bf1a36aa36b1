"""Builds what a step is given from its configuration: engines, verifiers, shapers, sources; and puts them away again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from steelyard.errors import EngineError, UsageError, VerifierError, nearest
from steelyard.protocols import Engine, EngineFactory, OpenedSource, Shaper, Source, VerifierSet
from steelyard.records import Completion, Verdict

if TYPE_CHECKING:
    from steelyard.plugins import Registry

__all__ = ["configure", "open_engines", "open_shapers", "open_source", "open_sources", "open_step_verifiers"]


def configure(registry: Registry, family: str, kind: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The descriptor and the validated configuration. Errors: :class:`UsageError` naming the first wrong option."""
    from pydantic import ValidationError

    spec = registry.get(family, kind)
    try:
        return spec, registry.configure(spec, options)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            what = f"needs the option {place!r}"
        elif first["type"] == "extra_forbidden":
            what = f"unknown option {place!r}{nearest(place, _options(spec) if len(first['loc']) == 1 else ())}"
        else:
            what = f"option {place!r}: {first['msg'].removeprefix('Value error, ').lower()}"
        raise UsageError(f"{kind!r} ({family}): {what}") from error


def _options(spec: Any) -> Sequence[str]:
    return tuple(field.alias or name for name, field in spec.config.load().model_fields.items())


def _make(registry: Registry, family: str, kind: str, options: Mapping[str, Any], *arguments: Any) -> Any:
    """The implementation, made from its configuration and ``arguments``."""
    spec, config = configure(registry, family, kind, options)
    return registry.load(spec)(config, *arguments)


def open_engines(
    registry: Registry,
    entry: Mapping[str, Any] | None,
    model: Path,
    closing: ExitStack,
    *,
    why_none: str = "",
    trust_remote_code: bool = False,
) -> EngineFactory:
    """The engine factory of a context. Engines it made are closed with ``closing``. Without an entry it refuses: ``why_none``.
    ``trust_remote_code`` goes to engines that take it, when the recipe trusts the base model's own code by name."""
    return _Engines(registry, entry, model, closing, why_none, trust_remote_code)


class _Engines:
    def __init__(self, registry: Registry, entry: Mapping[str, Any] | None, model: Path, closing: ExitStack, why_none: str, trusted: bool):
        self._registry, self._entry, self._model, self._closing, self._why_none = registry, entry, model, closing, why_none
        self._live: Mapping[str, Any] = {"trust_remote_code": True} if trusted else {}

    def __call__(self, model: Path | None = None, **overrides: Any) -> Engine:
        if self._entry is None:
            raise EngineError(self._why_none)
        spec = self._registry.get("engines", self._entry["kind"])
        implementation = self._registry.load(spec)
        live, keys = _split(spec, implementation, {**self._live, **overrides})
        _, config = configure(self._registry, "engines", self._entry["kind"], {**self._entry["options"], **keys})
        engine: Engine = implementation(config, model or self._model, **live)
        self._closing.callback(engine.close)
        return engine


_TAKEN_BY_SOME = {"module", "tokenizer", "trust_remote_code"}


def _split(spec: Any, implementation: Callable[..., Any], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the engine itself takes, and keys of its configuration. What only some engines take is left out for the others."""
    fields = set(spec.config.load().model_fields) if spec.config is not None else set()
    takes = set(inspect.signature(implementation).parameters) - {"config"}
    live = {name: value for name, value in overrides.items() if name not in fields and name in takes}
    keys = {name: value for name, value in overrides.items() if name not in live and name not in _TAKEN_BY_SOME}
    return live, keys


def open_step_verifiers(
    registry: Registry,
    entries: Mapping[str, Mapping[str, Any]],
    evidence: Path,
    closing: ExitStack,
    *,
    engine: EngineFactory | None = None,
    base: Path | None = None,
    models: Mapping[str, Path] = MappingProxyType({}),
    allow_unsafe_local: bool = False,
) -> VerifierSet:
    """The verifiers of a step, closed with ``closing``. What failed is kept in ``evidence``; ``engine`` is for those that ask a model,
    ``base`` the folder that their relative paths start from, ``models`` where the models of runs are that they name."""
    if not entries:
        return _NoVerifiers()
    from steelyard.verify import open_verifiers

    wanted = {name: (entry["kind"], entry["options"], entry.get("timeout_s")) for name, entry in entries.items()}
    opened = open_verifiers(
        wanted, registry, evidence=evidence, engine=engine, base=base, models=models, allow_unsafe_local=allow_unsafe_local
    )
    closing.callback(opened.close)
    return opened


class _NoVerifiers:
    def names(self) -> Sequence[str]:
        return ()

    def verify(self, checks: Sequence[tuple[str, Completion, Any]]) -> list[Verdict]:
        if checks:
            raise VerifierError(f"no verifier {checks[0][0]!r}: the recipe gives this step none; name it under `verifiers`")
        return []

    def metrics(self) -> dict[str, float]:
        return {}

    def canary(self, name: str, reference: Any, seed: int) -> None:
        return None

    def sandbox_backend(self) -> None:
        return None

    def close(self) -> None:
        pass


def open_shapers(registry: Registry, entries: Sequence[Mapping[str, Any]]) -> list[Shaper]:
    """The shapers of a stage, in the recipe's order."""
    return [_make(registry, "shapers", entry["kind"], entry["options"]) for entry in entries]


def open_source(registry: Registry, kind: str, options: Mapping[str, Any], base: Path) -> Source:
    """One source; relative paths start at ``base``. A source that takes ``resolve`` is given the hook that knows where datasets are.

    Errors: :class:`UsageError` naming the first wrong option."""
    spec, config = configure(registry, "sources", kind, options)
    implementation = registry.load(spec)
    takes = inspect.signature(implementation).parameters
    given = {"resolve": registry.hook.steelyard_resolve_dataset} if "resolve" in takes else {}
    source: Source = implementation(config, base, **given)
    return source


def open_sources(registry: Registry, entries: Sequence[Mapping[str, Any]], recipe_dir: Path) -> list[OpenedSource]:
    """The sources of a data entry, in the recipe's order; relative paths start at ``recipe_dir``."""
    opened = []
    for entry in entries:
        source = open_source(registry, entry["kind"], entry["options"], recipe_dir)
        shares = {name: entry.get(name) for name in ("count", "fraction", "weight", "epochs")}
        opened.append(OpenedSource(name=entry["name"], source=source, **shares))
    return opened
