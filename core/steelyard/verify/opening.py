"""Opens the verifiers of a step: configured by the registry, each under the isolation it asks for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from steelyard.errors import PluginError, UsageError, VerifierError, nearest
from steelyard.protocols import Verifier
from steelyard.records import Completion, Verdict
from steelyard.specs import VerifierSpec
from steelyard.verify.checking import judge
from steelyard.verify.limit import FailureLimit
from steelyard.verify.pool import WorkerPool, WorkerSetup

if TYPE_CHECKING:
    from steelyard.plugins import Registry

__all__ = ["Check", "Entry", "OpenVerifiers", "open_verifiers"]

Entry = tuple[str, Any, float | None]
"""A verifier's kind, its options (a mapping, or its configuration already validated), and seconds for a check (None: its own default)."""
Check = tuple[str, Completion, Any]
"""A verifier's name, what it checks, and the reference."""

_CheckOne = Callable[[Completion, Any], Verdict]


def open_verifiers(
    entries: Mapping[str, Entry],
    registry: Registry,
    *,
    max_failure_rate: float = 0.01,
    min_verdicts: int = 100,
    evidence: Path | None = None,
    memory_bytes: int = 4 << 30,
    workers: int | None = None,
) -> OpenVerifiers:
    """The verifiers ``entries`` name, ready to check; close them, or use them in a ``with`` block.

    A verifier whose isolation is ``process``, or which is given a time limit, runs in worker processes: at most ``workers`` of each
    (default: the usable cores, at most 4), each with ``memory_bytes`` of address space beyond what loading it took. Failed checks are
    appended to ``evidence`` as JSON lines.

    Raises :class:`UsageError` for wrong options, :class:`PluginError` for a verifier that is unknown or cannot be loaded, and
    :class:`VerifierError` for one that needs the sandbox, which this version does not have."""
    workers = workers or min(4, _usable_cores())
    checkers: dict[str, _CheckOne] = {}
    pools: list[WorkerPool] = []
    try:
        for name, (kind, options, timeout_s) in entries.items():
            spec: VerifierSpec = registry.get("verifiers", kind)
            if timeout_s is not None and not timeout_s > 0:
                raise UsageError(f"verifier {name!r}: timeout_s is {timeout_s!r}, not above 0")
            config = _configured(name, spec, options, registry)
            if spec.isolation == "sandbox":
                raise VerifierError(
                    f"verifier {name!r} (kind {kind!r}) runs model-written code and needs a sandbox, which this version of Steelyard "
                    "does not have; it is not run without one"
                )
            if spec.isolation == "inline" and timeout_s is None:
                checkers[name] = _inline(_made(name, spec, config, registry))
                continue
            pool = WorkerPool(name, _setup(spec, config, timeout_s, memory_bytes), workers)
            pools.append(pool)
            pool.warm_up()
            checkers[name] = pool.check
    except BaseException:
        for pool in pools:
            pool.close()
        raise
    return OpenVerifiers(checkers, pools, FailureLimit(max_failure_rate, min_verdicts, evidence), workers)


class OpenVerifiers:
    """A :class:`~steelyard.protocols.VerifierSet`; may be used from several threads."""

    def __init__(self, checkers: Mapping[str, _CheckOne], pools: Sequence[WorkerPool], limit: FailureLimit, workers: int):
        self._checkers, self._pools, self._limit = dict(checkers), pools, limit
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="verify") if pools else None
        self._closing = threading.Lock()
        self._closed = False

    def names(self) -> tuple[str, ...]:
        return tuple(self._checkers)

    def verify(self, checks: Sequence[Check]) -> list[Verdict]:
        """One verdict a check, in order. Raises :class:`VerifierError` when failures are above the limit, and RuntimeError once
        closed."""
        return [verdict for verdict, _ in self.verify_timed(checks)]

    def verify_timed(self, checks: Sequence[Check]) -> list[tuple[Verdict, float]]:
        """Like :meth:`verify`, with the seconds each check took."""
        if self._closed:
            raise RuntimeError("the verifiers are closed")
        answers = list(self._threads.map(self._one, checks) if self._threads else map(self._one, checks))
        self._limit.check()
        return answers

    def _one(self, check: Check) -> tuple[Verdict, float]:
        name, completion, reference = check
        started = time.perf_counter()
        if name in self._checkers:
            verdict = self._checkers[name](completion, reference)
        else:
            verdict = Verdict.error(f"no verifier named {name!r} here{nearest(name, self._checkers)}")
        seconds = time.perf_counter() - started
        self._limit.count(name, completion, reference, verdict, seconds)
        return verdict, seconds

    def close(self) -> None:
        """Ends the worker processes; waits for checks under way. A second call does nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
        for pool in self._pools:
            pool.close()

    def __enter__(self) -> OpenVerifiers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _inline(verifier: Verifier) -> _CheckOne:
    def check(completion: Completion, reference: Any) -> Verdict:
        try:
            return judge(verifier, completion, reference)
        except MemoryError:
            return Verdict.error("out of memory")

    return check


def _made(name: str, spec: VerifierSpec, config: Any, registry: Registry) -> Verifier:
    implementation = registry.load(spec)
    try:
        verifier = implementation(config)
    except (Exception, SystemExit) as error:
        raise PluginError(f"verifier {name!r} cannot be made by {registry.owner(spec).title}: {error!r}") from error
    if not isinstance(verifier, Verifier):
        made = type(verifier).__name__
        raise PluginError(f"verifier {name!r}: {spec.impl.path!r} gave {made}, which has no verify(completion, reference)")
    return verifier


def _setup(spec: VerifierSpec, config: Any, timeout_s: float | None, memory_bytes: int) -> WorkerSetup:
    options = None if config is None else config.model_dump(mode="json", by_alias=True)
    return WorkerSetup(
        impl=spec.impl.path,
        config=None if spec.config is None else spec.config.path,
        options=options,
        timeout_s=spec.timeout_s if timeout_s is None else timeout_s,
        memory_bytes=memory_bytes,
    )


def _configured(name: str, spec: VerifierSpec, options: Any, registry: Registry) -> Any:
    if options is not None and not isinstance(options, Mapping):
        return options
    from pydantic import ValidationError

    try:
        return registry.configure(spec, options or {})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            what = f"unknown option {field!r}{nearest(field, _fields(spec))}"
        else:
            what = f"{f'option {field!r}: ' if field else ''}{first['msg'].removeprefix('Value error, ')}"
        raise UsageError(f"verifier {name!r} (kind {spec.name!r}): {what}") from error


def _fields(spec: VerifierSpec) -> Sequence[str]:
    return () if spec.config is None else tuple(spec.config.load().model_fields)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
