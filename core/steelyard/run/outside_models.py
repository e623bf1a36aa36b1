"""Models from outside a run that its stages are given: of another run, or a folder. They are read where they are, never copied.

Their content is part of the step's key: what another run made by the hashes in its manifest, any other folder by
:func:`~steelyard.run.keys.fingerprint_path`. Before a step reads one it is held against that again, so that a model that was changed after
the plan was made stops the step and not the lineage's truth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelyard.errors import ArtifactError, DataError, ModelError, UsageError, nearest
from steelyard.run.artifacts import read_manifest, verify_folder
from steelyard.run.keys import canonical_json, fingerprint_path

__all__ = ["OutsideModel", "find_outside_model"]

_RUN = "run:"


@dataclass(frozen=True)
class OutsideModel:
    """A model from outside: as the recipe names it, the folder that this means now, and the hash of its content."""

    ref: str
    folder: str
    fingerprint: str

    def open(self) -> Path:
        """The folder, held against the fingerprint; of another run's artifact every file is read. Errors: :class:`ModelError`."""
        folder = Path(self.folder)
        again = "`steelyard resume` plans again with what is there now"
        try:
            if self.ref.startswith(_RUN):
                verify_folder(folder)
            found = _fingerprint(self.ref, folder)
        except ArtifactError as error:
            raise ModelError(
                f"model {self.ref!r} in {self.folder!r} is damaged: {str(error).partition(';')[0]}; resume its own run"
            ) from None
        except OSError:
            raise ModelError(f"model {self.ref!r} is no longer in {self.folder!r}; {again}") from None
        if found != self.fingerprint:
            raise ModelError(f"model {self.ref!r} in {self.folder!r} was changed since the run was planned; {again}")
        return folder

    def lineage(self) -> dict[str, Any]:
        """The lineage of the model: its own where it has one that fits its weights, and marked with the reference (``outside``).

        A lineage that speaks of other weights stands as the parent of what is there, so that what it tells is not lost.
        """
        from steelyard.run.lineage import LINEAGE_NAME, read_lineage
        from steelyard.run.weights import inspect_weights

        folder = Path(self.folder)
        own = read_lineage(folder) if (folder / LINEAGE_NAME).is_file() else None
        weights = inspect_weights(folder)
        sha256 = weights.sha256 if weights else None
        if own is not None and own.get("weights_sha256") == sha256:
            return {**own, "outside": self.ref}
        return {
            "format": 1,
            "step": "outside",
            "kind": "folder",
            "key": self.fingerprint,
            "config": {},
            "seed": None,
            "weights_sha256": sha256,
            "parameters": weights.parameters if weights else None,
            "template_hash": None,
            "origin": None,
            "outside": self.ref,
            "sandbox": None,
            "data": None,
            "parents": {"model": own} if own is not None else {},
        }

    def to_json(self) -> dict[str, str]:
        return {"ref": self.ref, "folder": self.folder, "fingerprint": self.fingerprint}

    @classmethod
    def from_json(cls, values: Mapping[str, str]) -> OutsideModel:
        return cls(**values)


def find_outside_model(ref: str, base: Path) -> OutsideModel:
    """The model that ``run:PATH``, ``run:PATH#STEP`` or a path means; relative paths start at ``base``.

    Errors: :class:`UsageError` where there is none."""
    folder = _of_run(ref, base) if ref.startswith(_RUN) else (base / Path(ref).expanduser()).resolve()
    if not folder.is_dir():
        raise UsageError(f"model {ref!r}: no model folder at {str(folder)!r}")
    try:
        return OutsideModel(ref, str(folder), _fingerprint(ref, folder))
    except (ArtifactError, OSError) as error:
        raise UsageError(f"model {ref!r}: {str(error).partition(';')[0]}") from None


def _of_run(ref: str, base: Path) -> Path:
    """The folder of another run's artifact: of its champion, or of the last that a step of it made."""
    from steelyard.run.view import open_run

    place, _, step = ref.removeprefix(_RUN).partition("#")
    try:
        with open_run((base / Path(place).expanduser()).resolve()) as run:
            if not step:
                champion = run.champion()
                if champion is None:
                    raise UsageError("that run has no model yet")
                return champion
            made = {row.step for row in run.steps() if row.kind in ("import", "stage") and run.artifact(row.step) is not None}
            named = [row.step for row in run.steps() if row.step in made and step in (row.step, row.step.partition("/")[2])]
            if not named:
                raise UsageError(f"no model of a step {step!r} in that run{nearest(step, made)}")
            folder = run.artifact(named[-1])
            assert folder is not None
            return folder.resolve()
    except (UsageError, DataError) as error:
        raise UsageError(f"model {ref!r}: {error}") from None


def _fingerprint(ref: str, folder: Path) -> str:
    """Where the manifest has the hash of every file, those count, so that a run that was moved or copied is the same."""
    if not ref.startswith(_RUN):
        return fingerprint_path(folder)
    files = {name: digest for name, (_, digest) in read_manifest(folder).files.items()}
    return hashlib.sha256(canonical_json(files).encode()).hexdigest()
