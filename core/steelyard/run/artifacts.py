"""The artifact store: folders named by their step's key, whole or absent, each with the sha256 of its files.

An artifact is written in a temporary folder beside the others, gets a ``manifest.json``, is fsynced and renamed. It is never changed
afterwards. What is read is held against the manifest first: sizes every time, contents once in each process.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steelyard.errors import ArtifactError
from steelyard.run.durable import publish_folder, remove_tree, storage_errors

__all__ = ["MANIFEST", "ArtifactStore", "Manifest", "hash_file", "read_manifest", "seal", "verify_folder"]

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a sealed folder holds. ``files`` maps each relative path to its size in bytes and its sha256; ``inputs`` maps each role to
    the key of the artifact that played it; ``summary`` holds the step's own few facts."""

    step: str
    kind: str
    key: str
    files: Mapping[str, tuple[int, str]]
    inputs: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    created: str = ""
    host: str = ""

    def to_json(self) -> dict[str, Any]:
        files = {name: {"size": size, "sha256": digest} for name, (size, digest) in self.files.items()}
        return {"format": 1, **asdict(self), "files": files}


class ArtifactStore:
    """The artifacts under ``root``. One per process: it remembers which contents it has verified."""

    def __init__(self, root: Path):
        self.root = root
        self._verified: set[str] = set()

    def path(self, key: str) -> Path:
        """Where the artifact is, or would be."""
        return self.root / key

    def has(self, key: str) -> bool:
        """Whether there is an artifact of that key; says nothing of its content."""
        return (self.root / key / MANIFEST).is_file()

    def manifest(self, key: str) -> Manifest:
        """The manifest alone. Errors: :class:`ArtifactError`."""
        return read_manifest(self.root / key)

    def open(self, key: str) -> Path:
        """The folder, after its files were held against the manifest. Errors: :class:`ArtifactError` naming the file."""
        folder = self.root / key
        manifest = verify_folder(folder, contents=key not in self._verified)
        if manifest.key != key:
            raise ArtifactError(f"{str(folder / MANIFEST)!r} is of another artifact, {manifest.key!r}; {_REMEDY}")
        self._verified.add(key)
        return folder

    def temporary(self, key: str) -> Path:
        """A fresh, empty folder to make the artifact in."""
        folder = self.root / f".tmp-{key}-{os.getpid()}"
        with storage_errors(folder):
            remove_tree(folder)
            folder.mkdir(parents=True)
        return folder

    def commit(
        self,
        temporary: Path,
        key: str,
        *,
        step: str,
        kind: str,
        inputs: Mapping[str, str],
        summary: Mapping[str, Any],
        seconds: float,
    ) -> Path:
        """Seals the temporary folder and gives it its name. Errors: :class:`~steelyard.errors.StorageError`."""
        seal(temporary, step=step, kind=kind, key=key, inputs=inputs, summary=summary, seconds=seconds)
        final = self.root / key
        if final.exists():
            self.set_aside(key)
        publish_folder(temporary, final)
        self._verified.add(key)
        return final

    def set_aside(self, key: str) -> Path:
        """Renames a damaged artifact to ``<key>.damaged``, so that its step runs again and the evidence stays."""
        number = 1
        while (target := self.root / (f"{key}.damaged" if number == 1 else f"{key}.damaged-{number}")).exists():
            number += 1
        with storage_errors(target):
            os.rename(self.root / key, target)
        self._verified.discard(key)
        return target

    def sweep(self) -> None:
        """Removes what killed steps left half-made. Only for the holder of the run's lock."""
        for folder in self.root.glob(".tmp-*"):
            remove_tree(folder)


_REMEDY = "it is set aside as *.damaged, and `steelyard resume` makes it again"


def seal(
    folder: Path,
    *,
    step: str,
    kind: str,
    key: str,
    inputs: Mapping[str, str] | None = None,
    summary: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
) -> Manifest:
    """Writes the manifest of every file under ``folder`` into it. Errors: :class:`~steelyard.errors.StorageError`."""
    with storage_errors(folder):
        files = {name: (path.stat().st_size, hash_file(path)) for name, path in _files(folder)}
        manifest = Manifest(
            step=step,
            kind=kind,
            key=key,
            files=files,
            inputs=dict(inputs or {}),
            summary=dict(summary or {}),
            seconds=round(seconds, 3),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            host=socket.gethostname(),
        )
        (folder / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a sealed folder. Errors: :class:`ArtifactError` when it is missing or torn."""
    path = folder / MANIFEST
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in values["files"].items()}
        known = {name: values[name] for name in ("step", "kind", "key", "inputs", "summary", "seconds", "created", "host")}
    except FileNotFoundError:
        raise ArtifactError(f"{str(path)!r} is missing; {_REMEDY}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{str(path)!r} is torn ({error}); {_REMEDY}") from None
    return Manifest(files=files, **known)


def verify_folder(folder: Path, *, contents: bool = True) -> Manifest:
    """Holds a sealed folder against its manifest: names and sizes, and with ``contents`` every sha256.

    Errors: :class:`ArtifactError` naming the first file that differs."""
    manifest = read_manifest(folder)
    for name, (size, digest) in manifest.files.items():
        path = folder / name
        try:
            actual = path.stat().st_size
        except FileNotFoundError:
            raise ArtifactError(f"{str(path)!r} is missing; {_REMEDY}") from None
        if actual != size:
            raise ArtifactError(f"{str(path)!r} has {actual:,} bytes where its manifest says {size:,}; {_REMEDY}")
        if contents and hash_file(path) != digest:
            raise ArtifactError(f"{str(path)!r} does not have the sha256 its manifest says ({digest[:12]}…); {_REMEDY}")
    return manifest


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal; memory is bounded."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            yield path.relative_to(folder).as_posix(), path
