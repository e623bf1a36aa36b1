"""``metrics.jsonl``: every metric as it is reported, one JSON object a line, for whoever wants to follow with plain tools."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from steelyard.run.durable import storage_errors

__all__ = ["MetricsFile"]


class MetricsFile:
    """Appends to the file at ``path``. After a resume an optimiser step may stand there twice; the later line counts."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> MetricsFile:
        with storage_errors(self._path):
            torn = _ends_torn(self._path)
            self._file = open(self._path, "a", encoding="utf-8")
            if torn:
                self._file.write("\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, step: str, optimiser_step: int | None, metrics: Mapping[str, float]) -> None:
        """JSON has no NaN and no infinity; they are written as null. Errors: :class:`~steelyard.errors.StorageError`."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        row = {"time": round(time.time(), 3), "step": step, "optimiser_step": optimiser_step, **finite}
        with storage_errors(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()


def _ends_torn(path: Path) -> bool:
    """Whether a killed session left half a line."""
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False
