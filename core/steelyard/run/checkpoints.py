"""A step's checkpoints: sealed folders, complete or absent, the newest two of them kept.

What the step had said by then (its samples) travels with the checkpoint, so that a resumed step's record is that of one that was never
stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from steelyard.errors import ArtifactError
from steelyard.run.artifacts import seal, verify_folder
from steelyard.run.durable import publish_folder, remove_tree, storage_errors

__all__ = ["Carried", "FolderCheckpoints"]

_KEPT = 2
_CARRIED = "said.jsonl"


class Carried(Protocol):
    """A record that must be as old as the checkpoint a step goes on from."""

    def dump(self, path: Path) -> None: ...

    def restore(self, path: Path) -> None: ...


class FolderCheckpoints:
    """A :class:`~steelyard.protocols.CheckpointStore` in ``root``, made on the first write."""

    def __init__(self, root: Path, step: str, key: str, carried: Carried | None = None):
        self._root, self._step, self._key, self._carried = root, step, key, carried

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole; torn ones are passed over, and what killed writes left half-made is removed."""
        self._sweep()
        for folder in reversed(self._folders()):
            try:
                manifest = verify_folder(folder)
            except ArtifactError:
                continue
            if manifest.key != self._key:
                continue
            if self._carried is not None and (folder / _CARRIED).is_file():
                self._carried.restore(folder / _CARRIED)
            return folder
        return None

    def write(self, step: int, fill: Callable[[Path], None]) -> Path:
        """See the protocol. Errors: :class:`~steelyard.errors.StorageError`; the older checkpoints are then still there."""
        final = self._root / f"step-{step:09d}"
        temporary = self._root / f".tmp-{step:09d}-{os.getpid()}"
        with storage_errors(final):
            self._root.mkdir(parents=True, exist_ok=True)
            remove_tree(temporary)
            temporary.mkdir()
            try:
                fill(temporary)
                if self._carried is not None:
                    self._carried.dump(temporary / _CARRIED)
                seal(temporary, step=self._step, kind="checkpoint", key=self._key, summary={"step": step})
                # The same step again after a torn one: the rename needs the name free.
                remove_tree(final)
                publish_folder(temporary, final)
            except BaseException:
                remove_tree(temporary)
                raise
        for old in self._folders()[:-_KEPT]:
            remove_tree(old)
        return final

    def clear(self) -> None:
        """Removes all checkpoints, once the step's artifact is committed."""
        remove_tree(self._root)

    def _sweep(self) -> None:
        for folder in self._root.glob(".tmp-*"):
            remove_tree(folder)

    def _folders(self) -> list[Path]:
        return sorted(self._root.glob("step-*"))
