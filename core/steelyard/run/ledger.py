"""The ledger: a run's append-only record in SQLite. A step is committed when its row is.

Rows are only ever inserted; the database itself refuses an update or a deletion. Steps, verdicts, promotions and failures are written
with ``synchronous=FULL`` (they survive a power cut), metrics with ``NORMAL`` (the last few may be lost with the power, never torn).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steelyard.errors import StorageError, UsageError
from steelyard.run.durable import storage_errors, storage_problem

__all__ = ["LEDGER_NAME", "FailureRow", "Ledger", "MetricsRow", "PromotionRow", "StepRow", "VerdictRow"]

LEDGER_NAME = "ledger.db"
FORMAT = 1

_TABLES = {
    "steps": "step TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, status TEXT NOT NULL, seconds REAL NOT NULL, "
    "round TEXT, summary TEXT NOT NULL, time TEXT NOT NULL",
    "metrics": "step TEXT NOT NULL, key TEXT NOT NULL, optimiser_step INTEGER, time TEXT NOT NULL, metrics TEXT NOT NULL",
    "verdicts": "round TEXT NOT NULL, step TEXT NOT NULL, key TEXT NOT NULL, decision TEXT NOT NULL, sentence TEXT NOT NULL, "
    "champion TEXT NOT NULL, challenger TEXT NOT NULL, verdict TEXT NOT NULL, time TEXT NOT NULL",
    "promotions": "round TEXT NOT NULL, step TEXT NOT NULL, key TEXT NOT NULL, previous TEXT NOT NULL, gate TEXT, time TEXT NOT NULL",
    "failures": "step TEXT NOT NULL, key TEXT NOT NULL, type TEXT NOT NULL, message TEXT NOT NULL, log TEXT NOT NULL, time TEXT NOT NULL",
}


@dataclass(frozen=True, slots=True)
class StepRow:
    """What became of a step. ``status``: ``started``, ``done``, ``reused``, ``failed``, ``interrupted``."""

    id: int
    step: str
    kind: str
    key: str
    status: str
    seconds: float
    round: str | None
    summary: Mapping[str, Any]
    time: str


@dataclass(frozen=True, slots=True)
class MetricsRow:
    id: int
    step: str
    key: str
    optimiser_step: int | None
    time: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """A gate's decision. ``champion`` and ``challenger`` are artifact keys of the two models; ``verdict`` is ``verdict.json``."""

    id: int
    round: str
    step: str
    key: str
    decision: str
    sentence: str
    champion: str
    challenger: str
    verdict: Mapping[str, Any]
    time: str


@dataclass(frozen=True, slots=True)
class PromotionRow:
    """The title moved from artifact ``previous`` to artifact ``key``, made by ``step``. ``gate`` is the gate's key, None where the
    recipe has no suite to gate by. After a resume with other inputs it may have moved back: to the base, or to a former champion."""

    id: int
    round: str
    step: str
    key: str
    previous: str
    gate: str | None
    time: str


@dataclass(frozen=True, slots=True)
class FailureRow:
    id: int
    step: str
    key: str
    type: str
    message: str
    log: str
    time: str


class Ledger:
    """The ledger at ``path``. ``readonly`` opens it beside a running conductor, or on a folder that cannot be written.

    Errors: :class:`StorageError` on a full or read-only disk, :class:`UsageError` where there is no ledger to read."""

    def __init__(self, path: Path, *, readonly: bool = False):
        self._path = path
        with storage_errors(path):
            if readonly:
                self._commits = self._metrics = _open_readonly(path)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            self._commits = _open(path, "FULL")
            self._create()
            self._metrics = _open(path, "NORMAL")

    def close(self) -> None:
        self._metrics.close()
        self._commits.close()

    # Writing

    def add_step(
        self,
        step: str,
        kind: str,
        key: str,
        status: str,
        *,
        seconds: float = 0.0,
        round_name: str | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        with self._transaction():
            self._insert_step(step, kind, key, status, seconds, round_name, summary or {})

    def add_metrics(self, step: str, key: str, optimiser_step: int | None, metrics: Mapping[str, float]) -> None:
        with storage_errors(self._path), self._metrics:
            self._metrics.execute(
                "INSERT INTO metrics (step, key, optimiser_step, time, metrics) VALUES (?, ?, ?, ?, ?)",
                (step, key, optimiser_step, _now(), json.dumps(dict(metrics))),
            )

    def add_failure(self, step: str, key: str, type_name: str, message: str, log: str = "") -> None:
        with self._transaction():
            self._insert("failures", step=step, key=key, type=type_name, message=message, log=log)

    def add_decision(
        self,
        *,
        round_name: str,
        step: str,
        key: str,
        champion: str,
        challenger: str,
        challenger_step: str,
        verdict: Mapping[str, Any],
        seconds: float,
    ) -> None:
        """A gate's verdict, its step, and the promotion if there is one: all of them or none."""
        decision, sentence = str(verdict["decision"]), str(verdict["sentence"])
        with self._transaction():
            self._insert(
                "verdicts",
                round=round_name,
                step=step,
                key=key,
                decision=decision,
                sentence=sentence,
                champion=champion,
                challenger=challenger,
                verdict=json.dumps(dict(verdict), ensure_ascii=False),
            )
            if decision == "promote":
                self._insert("promotions", round=round_name, step=challenger_step, key=challenger, previous=champion, gate=key)
            self._insert_step(step, "gate", key, "done", seconds, round_name, {"decision": decision})

    def add_promotion(self, *, round_name: str, step: str, key: str, previous: str, gate: str | None = None) -> None:
        """The title moves without a new verdict: where the recipe has nothing to gate by, or back to whom older verdicts give it."""
        with self._transaction():
            self._insert("promotions", round=round_name, step=step, key=key, previous=previous, gate=gate)

    # Reading

    def steps(self) -> list[StepRow]:
        return [StepRow(**{**row, "summary": json.loads(row["summary"])}) for row in self._rows("steps")]

    def committed(self, step: str, key: str) -> bool:
        """Whether the step's artifact has its row."""
        found = self._commits.execute(
            "SELECT 1 FROM steps WHERE step = ? AND key = ? AND status IN ('done', 'reused') LIMIT 1", (step, key)
        ).fetchone()
        return found is not None

    def verdicts(self) -> list[VerdictRow]:
        return [VerdictRow(**{**row, "verdict": json.loads(row["verdict"])}) for row in self._rows("verdicts")]

    def verdict_of(self, key: str) -> VerdictRow | None:
        """The verdict of the gate with that key, once it has been decided."""
        return next((row for row in self.verdicts() if row.key == key), None)

    def promotions(self) -> list[PromotionRow]:
        return [PromotionRow(**row) for row in self._rows("promotions")]

    def failures(self) -> list[FailureRow]:
        return [FailureRow(**row) for row in self._rows("failures")]

    def metrics(self, step: str | None = None) -> list[MetricsRow]:
        """In the order reported. What was reported again after a resume counts once, as last reported."""
        where, values = ("WHERE step = ?", (step,)) if step is not None else ("", ())
        latest: dict[tuple[Any, ...], MetricsRow] = {}
        for row in self._rows("metrics", where, values):
            found = MetricsRow(**{**row, "metrics": json.loads(row["metrics"])})
            place = found.id if found.optimiser_step is None else found.optimiser_step
            latest[(found.step, found.key, found.optimiser_step is None, place, tuple(sorted(found.metrics)))] = found
        return list(latest.values())

    # Inside

    def _create(self) -> None:
        version = int(self._commits.execute("PRAGMA user_version").fetchone()[0])
        if version == FORMAT:
            return
        if version > FORMAT:
            raise UsageError(f"{str(self._path)!r} was written by a newer Steelyard (ledger format {version}): upgrade to go on with it")
        with self._transaction():
            for name, columns in _TABLES.items():
                self._commits.execute(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY AUTOINCREMENT, {columns})")
                for change in ("UPDATE", "DELETE"):
                    self._commits.execute(
                        f"CREATE TRIGGER {name}_no_{change.lower()} BEFORE {change} ON {name} "
                        f"BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
                    )
            self._commits.execute("CREATE INDEX metrics_of_step ON metrics (step, optimiser_step)")
            self._commits.execute(f"PRAGMA user_version = {FORMAT}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with storage_errors(self._path):
            self._commits.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._commits.execute("ROLLBACK")
                raise
            self._commits.execute("COMMIT")

    def _insert_step(
        self, step: str, kind: str, key: str, status: str, seconds: float, round_name: str | None, summary: Mapping[str, Any]
    ) -> None:
        text = json.dumps(dict(summary), ensure_ascii=False)
        self._insert("steps", step=step, kind=kind, key=key, status=status, seconds=seconds, round=round_name, summary=text)

    def _insert(self, table: str, **values: Any) -> None:
        values["time"] = _now()
        names, marks = ", ".join(values), ", ".join("?" for _ in values)
        self._commits.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))

    def _rows(self, table: str, where: str = "", values: tuple[Any, ...] = ()) -> list[dict[str, Any]]:
        return [dict(row) for row in self._commits.execute(f"SELECT * FROM {table} {where} ORDER BY id", values)]


def _open(path: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection


def _open_readonly(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise UsageError(f"{str(path.parent)!r} is not a run folder: it has no {LEDGER_NAME}")
    # A folder that cannot be written cannot hold SQLite's shared-memory file; nobody writes there either, so none is needed.
    for mode in ("mode=ro", "immutable=1"):
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=30, isolation_level=None)
        connection.row_factory = sqlite3.Row
        try:
            connection.execute("SELECT count(*) FROM steps").fetchone()
        except sqlite3.Error as error:
            connection.close()
            problem = error
            continue
        return connection
    raise storage_problem(problem, path) or StorageError(f"cannot read the ledger {str(path)!r}: {problem}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
