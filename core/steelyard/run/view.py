"""A run as a reader sees it: no lock taken, nothing changed, also while the run goes on or on a folder that cannot be written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from steelyard.errors import UsageError, nearest
from steelyard.run.artifacts import ArtifactStore, Manifest
from steelyard.run.folder import RunFolder
from steelyard.run.ledger import FailureRow, Ledger, MetricsRow, PromotionRow, StepRow, VerdictRow
from steelyard.run.lock import Holder, read_holder

__all__ = ["RunView", "find_run", "open_run"]


class RunView:
    """What a run has done so far. Made by :func:`open_run`; use it in a ``with`` block, or :meth:`close` it."""

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self._ledger = Ledger(folder.ledger, readonly=True) if folder.ledger.is_file() else None
        self._store = ArtifactStore(folder.artifacts)

    def __enter__(self) -> RunView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()

    @property
    def run_dir(self) -> Path:
        return self.folder.path

    @property
    def name(self) -> str:
        return str(self.resolved["name"])

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """The resolved recipe as JSON."""
        return self.folder.resolved()

    @property
    def recipe_text(self) -> str:
        """The recipe as the human wrote it."""
        return (self.run_dir / "recipe.yaml").read_text(encoding="utf-8")

    @property
    def manifest(self) -> dict[str, Any]:
        return self.folder.manifest()

    @property
    def holder(self) -> Holder | None:
        """Who works on the run now."""
        return read_holder(self.run_dir)

    def steps(self) -> list[StepRow]:
        """Every row of the ledger's steps, in order; a step has several (``started``, ``done`` …)."""
        return self._ledger.steps() if self._ledger else []

    def latest_steps(self) -> dict[str, StepRow]:
        """The last row of each step, by id, in the order in which the steps first ran."""
        latest: dict[str, StepRow] = {}
        for row in self.steps():
            latest[row.step] = row
        return latest

    def verdicts(self) -> list[VerdictRow]:
        return self._ledger.verdicts() if self._ledger else []

    def promotions(self) -> list[PromotionRow]:
        return self._ledger.promotions() if self._ledger else []

    def failures(self) -> list[FailureRow]:
        return self._ledger.failures() if self._ledger else []

    def metrics(self, step: str | None = None) -> list[MetricsRow]:
        """What was reported, of all steps or of one; after a resume each optimiser step counts once."""
        return self._ledger.metrics(step) if self._ledger else []

    def curve(self, step: str, name: str) -> list[tuple[int, float]]:
        """One metric of a step: (optimiser step, value), in order."""
        rows = [row for row in self.metrics(step) if row.optimiser_step is not None and name in row.metrics]
        return sorted((row.optimiser_step or 0, row.metrics[name]) for row in rows)

    def artifact(self, step: str) -> Path | None:
        """The folder of the step's latest artifact, None where it has none. Its content is not verified here."""
        for row in reversed(self.steps()):
            if row.step == step and row.status in ("done", "reused") and self._store.has(row.key):
                return self._store.path(row.key)
        return None

    def artifact_of(self, key: str) -> Path | None:
        """The folder of the artifact with that key."""
        return self._store.path(key) if self._store.has(key) else None

    def artifact_manifest(self, key: str) -> Manifest:
        return self._store.manifest(key)

    def champion(self) -> Path | None:
        """The model that holds the title, None before the base is there."""
        link = self.folder.champion
        return link.resolve() if link.exists() else None

    def samples(self, step: str) -> Iterator[Mapping[str, Any]]:
        """The examples that a step kept, of its artifact or, while it runs, so far."""
        folder = self.artifact(step)
        path = folder / "samples.jsonl" if folder is not None else self.folder.logs / f"{step}.samples.jsonl"
        if path.is_file():
            for line in path.read_text(encoding="utf-8").split("\n"):
                try:
                    yield json.loads(line)
                except ValueError:
                    continue  # The last line of a file that is being written.

    def log(self, step: str) -> Path:
        """Where the step's output is."""
        return self.folder.logs / f"{step}.log"


def find_run(ref: Path | str, runs: Path = Path("runs")) -> Path:
    """The folder that ``ref`` means: where there is none of that name, the one in ``runs``, where runs go by default."""
    path = Path(ref)
    if not path.exists() and len(path.parts) == 1 and RunFolder(runs / path).begun:
        return runs / path
    return path


def open_run(run_dir: Path | str) -> RunView:
    """A view of the run in ``run_dir``, see :func:`find_run`. Errors: :class:`UsageError` when it is no run."""
    folder = RunFolder(find_run(run_dir))
    if not folder.path.is_dir():
        siblings = [p.name for p in folder.path.parent.glob("*") if p.is_dir()] if folder.path.parent.is_dir() else []
        raise UsageError(f"no run folder at {str(run_dir)!r}{nearest(folder.path.name, siblings)}")
    if not folder.begun:
        raise UsageError(f"{str(run_dir)!r} is not a run folder: it has no resolved.json")
    return RunView(folder)
