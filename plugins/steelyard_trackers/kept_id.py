"""A service's own id of a run, kept in the run folder so that a resumed run is not a second one there."""

from __future__ import annotations

from pathlib import Path

__all__ = ["keep_id", "kept_id"]

_NAME = "run-id"


def kept_id(folder: Path) -> str | None:
    """The id, or None for a run the service does not know yet."""
    path = folder / _NAME
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None


def keep_id(folder: Path, identifier: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _NAME).write_text(f"{identifier}\n", encoding="utf-8")
