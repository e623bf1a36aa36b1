"""What a step's result depends on, and the key made from it.

Two steps with the same key make the same artifact, so that an artifact is reused exactly when nothing it depends on has changed: the
kind of step, its resolved configuration, the keys of its inputs, its seed, the plugins that serve it, and the content of outside files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["KEY_FORMAT", "Serving", "canonical_json", "fingerprint_path", "step_key"]

KEY_FORMAT = 1
"""Part of every key; raised when the meaning of what goes into a key changes."""

_HASHED_WHOLE = 64 * 2**20
_KEY_LENGTH = 32


@dataclass(frozen=True, order=True)
class Serving:
    """A plugin that serves a step: its name, its distribution's version, and the hash of its code."""

    name: str
    version: str
    hash: str


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spare spaces: equal values give equal text. Errors: ``ValueError`` on NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def step_key(
    kind: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    *,
    seed: int | None,
    serving: Iterable[Serving],
    fingerprints: Mapping[str, str],
) -> str:
    """The key of a step: 32 hexadecimal digits.

    ``inputs`` holds the key of each input by role, ``fingerprints`` the content hash of each outside file or folder by where the recipe
    names it. ``seed`` is None for a step without randomness, so that the same work under two names is done once.
    """
    described = {
        "format": KEY_FORMAT,
        "kind": kind,
        "seed": seed,
        "config": config,
        "inputs": dict(inputs),
        "serving": [asdict(plugin) for plugin in sorted(set(serving))],
        "fingerprints": dict(fingerprints),
    }
    return hashlib.sha256(canonical_json(described).encode()).hexdigest()[:_KEY_LENGTH]


def fingerprint_path(path: Path) -> str:
    """A hash that changes when the file or folder at ``path`` does.

    Files up to 64 MiB go in by content, larger ones (weights) by size and time of change, so that planning stays quick. Hidden files,
    ``__pycache__`` and run folders below ``path`` are left out. Errors: ``FileNotFoundError``.
    """
    digest = hashlib.sha256()
    for name, file in _files(path):
        stat = file.stat()
        digest.update(f"{name}\0{stat.st_size}\0".encode())
        if stat.st_size <= _HASHED_WHOLE:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        else:
            digest.update(f"{stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def _files(path: Path) -> Iterable[tuple[str, Path]]:
    if not path.is_dir():
        path.stat()
        return [("", path)]
    found = []
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        folders[:] = [name for name in folders if not _passed_over(here / name)]
        found += [here / name for name in names if not name.startswith(".") and (here / name).is_file()]
    return sorted((str(p.relative_to(path)), p) for p in found)


def _passed_over(folder: Path) -> bool:
    """A run changes while it is at work; what it made is no part of what it is made from."""
    return folder.name.startswith(".") or folder.name == "__pycache__" or (folder / "ledger.db").exists()
