"""Opens the verifiers of a step: configured by the registry, each under the isolation it asks for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from steelyard.errors import PluginError, SteelyardError, UsageError
from steelyard.protocols import BatchVerifier, CanaryVerifier, EngineFactory, Sandbox, Verifier
from steelyard.records import Completion, Verdict
from steelyard.specs import VerifierSpec
from steelyard.verify.checking import judge
from steelyard.verify.configuring import DEEPEST_PARTS, Entry, configured, refuse_time_limit
from steelyard.verify.limit import FailureLimit
from steelyard.verify.opened import Checker, OpenVerifiers
from steelyard.verify.pool import WorkerPool, WorkerSetup

if TYPE_CHECKING:
    from steelyard.plugins import Registry

__all__ = ["Entry", "open_verifiers"]


def open_verifiers(
    entries: Mapping[str, Entry],
    registry: Registry,
    *,
    max_failure_rate: float = 0.01,
    min_verdicts: int = 100,
    evidence: Path | None = None,
    memory_bytes: int = 4 << 30,
    workers: int | None = None,
    engine: EngineFactory | None = None,
    base: Path | None = None,
    models: Mapping[str, Path] = MappingProxyType({}),
    allow_unsafe_local: bool = False,
) -> OpenVerifiers:
    """The verifiers ``entries`` name, ready to check; close them, or use them in a ``with`` block.

    A verifier whose isolation is ``process``, or an inline one which is given a time limit, runs in worker processes: at most ``workers``
    of each (default: the usable cores, at most 4), each with ``memory_bytes`` of address space beyond what loading it took. One whose
    isolation is ``sandbox`` shares one sandbox with the others, of as many places. ``engine`` is for verifiers that ask a language
    model, ``base`` the folder that paths in their options start from (default: the current one), ``models`` the folder of each model
    of a run that an option names (``stage:NAME``, ``run:PATH#STEP``). Failed checks are appended to ``evidence`` as JSON lines.

    Raises :class:`UsageError` for wrong options, :class:`PluginError` for a verifier that is unknown or cannot be loaded, and
    :class:`VerifierError` where no sandbox works: ``allow_unsafe_local`` then has model-written code run as the user that runs this."""
    given = {"engine": engine, "base": base or Path.cwd()}
    opener = _Opener(registry, workers or min(4, _usable_cores()), memory_bytes, given, models, allow_unsafe_local)
    try:
        checkers = {name: opener.checker(name, entry) for name, entry in entries.items()}
    except BaseException:
        opener.close()
        raise
    limit = FailureLimit(max_failure_rate, min_verdicts, evidence)
    return OpenVerifiers(checkers, limit, opener.workers, opener.close, opener.sandbox_backend)


class _Opener:
    """Makes checkers, and keeps what has to be closed behind them."""

    def __init__(
        self,
        registry: Registry,
        workers: int,
        memory_bytes: int,
        given: Mapping[str, Any],
        models: Mapping[str, Path],
        allow_unsafe_local: bool,
    ):
        self.workers = workers
        self._registry, self._memory_bytes, self._given, self._models = registry, memory_bytes, given, models
        self._allow_unsafe_local = allow_unsafe_local
        self._pools: list[WorkerPool] = []
        self._sandbox: Sandbox | None = None
        self._closing: list[Callable[[], object]] = []

    @property
    def sandbox_backend(self) -> str | None:
        return None if self._sandbox is None else self._sandbox.backend

    def checker(self, name: str, entry: Entry, depth: int = 0) -> Checker:
        kind, options, timeout_s = entry
        spec: VerifierSpec = self._registry.get("verifiers", kind)
        refuse_time_limit(name, spec, timeout_s)
        config = self._with_model(name, spec, configured(name, spec, options, self._registry))
        if spec.isolation == "process" or timeout_s is not None:
            return self._in_workers(name, spec, config, timeout_s)
        given: dict[str, Any] = {need: self._given[need] for need in spec.needs if need != "parts"}
        if spec.isolation == "sandbox":
            given["sandbox"] = self._shared_sandbox()
        if "parts" in spec.needs:
            if depth == DEEPEST_PARTS:
                raise UsageError(f"verifier {name!r}: parts within parts are more than {DEEPEST_PARTS} deep")
            parts = [
                self.checker(f"{name}.{number} ({part.kind})", (part.kind, part.options, part.timeout_s), depth + 1)
                for number, part in enumerate(config.parts)
            ]
            given["parts"] = parts
            return _inline(self._made(name, spec, config, given), waits=any(part.waits for part in parts))
        return _inline(self._made(name, spec, config, given), waits=spec.isolation == "sandbox")

    def close(self) -> None:
        for close in self._closing:
            close()
        for pool in self._pools:
            pool.close()
        if self._sandbox is not None:
            self._sandbox.close()

    def _with_model(self, name: str, spec: VerifierSpec, config: Any) -> Any:
        """The configuration with the folder of a run's model in place of the reference to it."""
        ref = getattr(config, spec.model_option) if spec.model_option is not None else None
        if not (isinstance(ref, str) and ref.startswith(("stage:", "run:"))):
            return config
        if ref not in self._models:
            raise UsageError(f"verifier {name!r}: {spec.model_option} is {ref!r}, and only steps of a recipe know the models of runs")
        return config.model_copy(update={spec.model_option: str(self._models[ref])})

    def _shared_sandbox(self) -> Sandbox:
        from steelyard.verify.sandbox import open_sandbox

        if self._sandbox is None:
            self._sandbox = open_sandbox(workers=self.workers, allow_unsafe_local=self._allow_unsafe_local)
        return self._sandbox

    def _in_workers(self, name: str, spec: VerifierSpec, config: Any, timeout_s: float | None) -> Checker:
        pool = WorkerPool(name, _setup(spec, config, timeout_s, self._memory_bytes), self.workers)
        self._pools.append(pool)
        pool.warm_up()
        return Checker(check=pool.check, unsolvable=pool.unsolvable, waits=True)

    def _made(self, name: str, spec: VerifierSpec, config: Any, given: Mapping[str, Any]) -> Verifier:
        implementation = self._registry.load(spec)
        try:
            verifier = implementation(config, **given)
        except SteelyardError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(f"verifier {name!r} cannot be made by {self._registry.owner(spec).title}: {error!r}") from error
        if not isinstance(verifier, Verifier):
            made = type(verifier).__name__
            raise PluginError(f"verifier {name!r}: {spec.impl.path!r} gave {made}, which has no verify(completion, reference)")
        if callable(close := getattr(verifier, "close", None)):
            self._closing.append(close)
        return verifier


def _inline(verifier: Verifier, *, waits: bool) -> Checker:
    def check(completion: Completion, reference: Any) -> Verdict:
        try:
            return judge(verifier, completion, reference)
        except MemoryError:
            return Verdict.error("out of memory")

    def check_many(checks: Sequence[tuple[Completion, Any]]) -> list[Verdict]:
        assert isinstance(verifier, BatchVerifier)
        try:
            verdicts = verifier.verify_many(checks)
            if len(verdicts) != len(checks):
                raise ValueError(f"{len(verdicts)} verdicts for {len(checks)} checks")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return [Verdict.error(f"{type(error).__name__}: {error}"[:2000])] * len(checks)
        # As strictly as one by one, whatever is in the list.
        given: list[Any] = list(verdicts)
        return [judge(_Said(verdict), completion, reference) for verdict, (completion, reference) in zip(given, checks, strict=True)]

    many: Callable[[Sequence[tuple[Completion, Any]]], list[Verdict]] | None = check_many if isinstance(verifier, BatchVerifier) else None
    unsolvable = verifier.unsolvable if isinstance(verifier, CanaryVerifier) else _no_canary
    return Checker(check=check, check_many=many, unsolvable=unsolvable, waits=waits)


class _Said:
    """What a batch said of one completion, as a verifier."""

    def __init__(self, verdict: Any):
        self._verdict = verdict

    def verify(self, completion: Completion, reference: Any) -> Verdict:
        verdict: Verdict = self._verdict
        return verdict


def _no_canary(reference: Any, seed: int) -> None:
    return None


def _setup(spec: VerifierSpec, config: Any, timeout_s: float | None, memory_bytes: int) -> WorkerSetup:
    options = None if config is None else config.model_dump(mode="json", by_alias=True)
    return WorkerSetup(
        impl=spec.impl.path,
        config=None if spec.config is None else spec.config.path,
        options=options,
        timeout_s=spec.timeout_s if timeout_s is None else timeout_s,
        memory_bytes=memory_bytes,
    )


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
