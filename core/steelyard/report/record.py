"""What a run folder says of itself, as the report reads it: the ledger, what was asked, what ran it, and the artifacts' own files.

Reads only; a run may be working on the folder meanwhile. What is missing or torn is noted in ``problems`` and never stops the report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from steelyard.errors import ArtifactError
from steelyard.report.formatting import counted
from steelyard.run.artifacts import MANIFEST, read_manifest
from steelyard.run.ledger import FailureRow, MetricsRow, PromotionRow, StepRow, VerdictRow
from steelyard.run.view import open_run

__all__ = ["RunRecord", "StepState", "read_run"]

COMMITTED = ("done", "reused")


@dataclass(frozen=True)
class StepState:
    """A step as its last row has it; ``seconds`` are of all its sessions together."""

    step: str
    kind: str
    key: str
    status: str
    seconds: float
    round: str | None
    summary: Mapping[str, Any]
    time: str

    @property
    def committed(self) -> bool:
        return self.status in COMMITTED

    @property
    def name(self) -> str:
        """The last part of its id: the stage, the data entry, or the role of the suite."""
        return self.step.rpartition("/")[2]


@dataclass(frozen=True)
class RunRecord:
    """A run, read once. ``steps`` are in the order in which they were first started."""

    folder: Path
    resolved: Mapping[str, Any]
    manifest: Mapping[str, Any]
    steps: tuple[StepState, ...]
    verdicts: tuple[VerdictRow, ...]
    promotions: tuple[PromotionRow, ...]
    failures: tuple[FailureRow, ...]
    metrics: tuple[MetricsRow, ...]
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.resolved.get("name") or self.folder.resolve().name)

    @property
    def round_names(self) -> list[str]:
        return [str(entry.get("name", "")) for entry in self.resolved.get("rounds") or () if isinstance(entry, Mapping)]

    @property
    def sessions(self) -> list[Mapping[str, Any]]:
        """What ran the run: the first session, then every resume."""
        sessions = self.manifest.get("sessions")
        found = sessions if isinstance(sessions, list) else [self.manifest] if self.manifest else []
        return [session for session in found if isinstance(session, Mapping)]

    def of_kind(self, kind: str) -> list[StepState]:
        """The committed steps of a kind."""
        return [step for step in self.steps if step.kind == kind and step.committed]

    @cached_property
    def step_of_key(self) -> Mapping[str, str]:
        """Artifact key → the first step that made it."""
        found: dict[str, str] = {}
        for step in self.steps:
            found.setdefault(step.key, step.step)
        return found

    def title(self, key: str) -> str:
        """The step that made an artifact, or the start of its key."""
        return self.step_of_key.get(key, key[:12])

    @property
    def base_key(self) -> str | None:
        """The model the run started from."""
        return next((step.key for step in self.of_kind("import")), None)

    @property
    def champion_key(self) -> str | None:
        """The model that holds the title now."""
        return self.promotions[-1].key if self.promotions else self.base_key

    @cached_property
    def evaluations(self) -> Mapping[tuple[str, str], Path]:
        """(model key, role of the suite) → the evaluation folder."""
        found = {}
        for step in self.of_kind("evaluate"):
            model = self.inputs(step.key).get("model")
            if model is not None:
                found[model, step.name] = self.artifact(step.key)
        return found

    def artifact(self, key: str) -> Path:
        """Where the artifact of that key is."""
        return self.folder / "artifacts" / key

    def inputs(self, key: str) -> Mapping[str, str]:
        """The keys of the artifacts that it was made from, by role."""
        if not (self.artifact(key) / MANIFEST).is_file():
            self.note(f"artifact {key[:12]} of step {self.title(key)!r} is not in the folder")
            return {}
        try:
            return read_manifest(self.artifact(key)).inputs
        except ArtifactError as error:
            self.note(str(error))
            return {}

    def json(self, path: Path) -> dict[str, Any]:
        """A JSON object from the run folder; empty where the file is missing or torn."""
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.note(f"{_place(path, self.folder)} cannot be read: {error}")
            return {}
        if not isinstance(value, dict):
            self.note(f"{_place(path, self.folder)} is not a JSON object")
            return {}
        return value

    def lines(self, path: Path) -> Iterator[dict[str, Any]]:
        """The JSON objects of a file, one a line; lines that are none are counted and left out."""
        broken = 0
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    try:
                        row = json.loads(line)
                    except ValueError:
                        row = None
                    if isinstance(row, dict):
                        yield row
                    elif line.strip():
                        broken += 1
        except FileNotFoundError:
            return
        except OSError as error:
            self.note(f"{_place(path, self.folder)} cannot be read: {error}")
        if broken:
            self.note(f"{_place(path, self.folder)} has {counted(broken, 'broken line')}")

    def note(self, problem: str) -> None:
        """Keeps what could not be read, for the reader; once."""
        if problem not in self.problems:
            self.problems.append(problem)


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder. Errors: :class:`~steelyard.errors.UsageError` where there is no run."""
    with open_run(folder) as view:
        return RunRecord(
            folder=folder,
            resolved=view.resolved,
            manifest=view.manifest,
            steps=tuple(_states(view.steps())),
            verdicts=tuple(view.verdicts()),
            promotions=tuple(view.promotions()),
            failures=tuple(view.failures()),
            metrics=tuple(view.metrics()),
        )


def _states(rows: Sequence[StepRow]) -> Iterator[StepState]:
    by_step: dict[str, list[StepRow]] = {}
    for row in rows:
        by_step.setdefault(row.step, []).append(row)
    for name, own in by_step.items():
        last = own[-1]
        # What a resume took up again was paid for before.
        seconds = sum(row.seconds for row in own if row.key == last.key and row.status != "reused")
        yield StepState(name, last.kind, last.key, last.status, seconds, last.round, last.summary, last.time)


def _place(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
