"""One process at a time works on a run folder; the others are told who it is.

The lock is the system's own (``flock``), which ends with the process that holds it, however it ends; a stale lock cannot exist. What the
file says is only for the message.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from steelyard.errors import RunLockedError
from steelyard.run.durable import storage_errors

__all__ = ["Holder", "RunLock", "read_holder"]

LOCK_NAME = "run.lock"

_LONGEST_LOOK_S = 0.2


@dataclass(frozen=True)
class Holder:
    """Who holds a run: process id, host, since when (UTC), and its command line."""

    pid: int
    host: str
    since: str
    command: str

    @classmethod
    def of_this_process(cls) -> Holder:
        return cls(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"), shlex.join(sys.argv))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


class RunLock:
    """A context manager that holds the run in ``run_dir``. Errors: :class:`RunLockedError` naming the holder, :class:`StorageError`."""

    def __init__(self, run_dir: Path):
        self._path = run_dir / LOCK_NAME
        self._descriptor: int | None = None
        self.previous: Holder | None = None
        """The last holder, when it ended without letting go (it was killed)."""

    def __enter__(self) -> RunLock:
        with storage_errors(self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not _acquire(descriptor):
            os.close(descriptor)
            holder = _parse(self._path)
            who = str(holder) if holder else "another process"
            run_dir = self._path.parent
            raise RunLockedError(
                f"run {str(run_dir)!r} is held by {who}: wait for it, stop it, or look on with `steelyard status {run_dir}`"
            )
        self.previous = _parse(self._path)
        self._descriptor = descriptor
        self._say(json.dumps(asdict(Holder.of_this_process())) + "\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._descriptor is not None:
            self._say("")
            os.close(self._descriptor)
            self._descriptor = None

    def _say(self, text: str) -> None:
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)
        except OSError:
            pass  # A full disk spoils the message, not the lock.


def _acquire(descriptor: int) -> bool:
    """Takes the lock, unless somebody holds it for longer than a look (:func:`read_holder`) takes."""
    deadline = time.monotonic() + _LONGEST_LOOK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)


def read_holder(run_dir: Path) -> Holder | None:
    """Who holds the run now, or None when nobody does. Looking takes a shared lock for a moment, which :class:`RunLock` waits for."""
    path = run_dir / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parse(path) or Holder(0, "?", "?", "?")
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _parse(path: Path) -> Holder | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        return Holder(int(values["pid"]), str(values["host"]), str(values["since"]), str(values["command"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
