"""Rows on disk with random access: what a mixer needs to shuffle more rows than fit in memory."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from steelyard.records import Row

__all__ = ["Spool"]


class Spool:
    """An append-only list of rows in a temporary file; memory is eight bytes a row. A context manager."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        # Has no name on disk, so that a killed step leaves nothing behind.
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 -- closed by __exit__
        self._starts = array("Q")
        self._end = 0

    def __len__(self) -> int:
        return len(self._starts)

    def extend(self, rows: Iterable[Row]) -> None:
        self._file.seek(self._end)
        for row in rows:
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            self._starts.append(self._end)
            self._file.write(line)
            self._end += len(line)

    def __getitem__(self, index: int) -> Row:
        self._file.seek(self._starts[index])
        row: Row = json.loads(self._file.readline())
        return row

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
