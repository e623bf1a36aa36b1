"""What a running step says and asks: the worker's end of the conversation with the conductor."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Channel", "SampleLog", "WorkerIO"]

_PROGRESS_SECONDS = 0.1


class Channel:
    """JSON lines to the conductor; may be used from several threads."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, type_name: str, **values: Any) -> None:
        line = json.dumps({"type": type_name, **values}, default=str).encode() + b"\n"
        with self._lock:
            view = memoryview(line)
            while view:
                view = view[os.write(self._descriptor, view) :]


class SampleLog:
    """The examples a step kept, one JSON object a line; as old as the checkpoint the step goes on from."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115

    def add(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(dict(row), ensure_ascii=False, default=str) + "\n")

    def dump(self, path: Path) -> None:
        self._file.flush()
        shutil.copyfile(self.path, path)

    def restore(self, path: Path) -> None:
        self._file.close()
        shutil.copyfile(path, self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def close(self) -> None:
        self._file.close()

    @property
    def empty(self) -> bool:
        self._file.flush()
        return self.path.stat().st_size == 0


class WorkerIO:
    """A :class:`~steelyard.protocols.StepIO` that talks to the conductor."""

    def __init__(self, channel: Channel, samples: SampleLog, stop: threading.Event):
        self._channel, self._samples, self._stop = channel, samples, stop
        self._told_at = 0.0

    def report(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        self._channel.send("metrics", step=step, metrics={name: float(value) for name, value in metrics.items()})

    def progress(self, done: float, total: float | None, unit: str, note: str = "") -> None:
        now = time.monotonic()
        if now - self._told_at >= _PROGRESS_SECONDS or (total is not None and done >= total):
            self._told_at = now
            self._channel.send("progress", done=done, total=total, unit=unit, note=note)

    def sample(self, row: Mapping[str, Any]) -> None:
        self._samples.add(row)

    def log(self, message: str) -> None:
        print(message, flush=True)
        self._channel.send("log", message=message)

    def should_stop(self) -> bool:
        return self._stop.is_set()
