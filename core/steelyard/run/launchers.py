"""The ``local`` launcher: a worker process on this machine, spoken to in JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.run.durable import storage_errors

if TYPE_CHECKING:
    from steelyard.run.local_config import LocalConfig

__all__ = [
    "CHANNEL",
    "CONDUCTOR",
    "SOCKET",
    "LocalLauncher",
    "LocalWorker",
    "parse_message",
    "threads_of",
    "worker_environment",
    "worker_threads",
]

CHANNEL = "STEELYARD_CHANNEL"
"""Number of the file descriptor on which a worker answers."""
SOCKET = "STEELYARD_SOCKET"
"""Path of the socket on which a worker without that descriptor is spoken to and answers."""
CONDUCTOR = "STEELYARD_CONDUCTOR"
"""Process id of the conductor; a worker whose parent is another one has outlived it."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS")


class LocalLauncher:
    """A :class:`~steelyard.protocols.Launcher` that starts ``python -m steelyard.run.worker``."""

    def __init__(self, config: LocalConfig | None = None):
        self._threads = None if config is None else config.threads

    def start(self, environment: Mapping[str, str], log: Path) -> LocalWorker:
        """``log`` takes what the worker prints outside any step. Errors: :class:`~steelyard.errors.StorageError`."""
        if self._threads is not None and threads_of(environment, "STEELYARD_THREADS") is None:
            environment = worker_environment({**environment, "STEELYARD_THREADS": str(self._threads)})
        reading, writing = os.pipe()
        try:
            with storage_errors(log), open(log, "ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "steelyard.run.worker"],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env={**environment, CHANNEL: str(writing), CONDUCTOR: str(os.getpid())},
                    pass_fds=(writing,),
                    # Its own session: the terminal's Ctrl-C is for the conductor, which asks the worker to stop.
                    start_new_session=True,
                )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return LocalWorker(process, reading)


class LocalWorker:
    """A :class:`~steelyard.protocols.WorkerHandle` on a child process and its process group."""

    def __init__(self, process: subprocess.Popen[bytes], channel: int):
        self._process, self._channel = process, channel
        self._buffer = b""
        self._ended = False
        self.pid = process.pid

    def send(self, message: Mapping[str, Any]) -> None:
        """A message to a worker that has died is lost; :meth:`poll` tells."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(dict(message)).encode() + b"\n")
            self._process.stdin.flush()

    def messages(self, timeout_s: float) -> Iterator[Mapping[str, Any]]:
        deadline = time.monotonic() + timeout_s
        while True:
            while b"\n" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\n")
                message = parse_message(line)
                if message is not None:
                    yield message
                    deadline = time.monotonic() + timeout_s
            left = deadline - time.monotonic()
            if left <= 0:
                return
            if self._ended:
                # Nothing more will come; do not spin while the process is being reaped.
                time.sleep(min(left, 0.01))
                return
            # Short waits, because a process that the worker left behind may hold the channel open after it.
            ready, _, _ = select.select([self._channel], [], [], min(left, 0.25))
            if ready:
                self._read()
            elif self.poll() is not None:
                return

    def poll(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the worker and everything it started, and waits until it is gone."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self.close()

    def close(self) -> None:
        """Lets go of the pipes, and ends what the worker may have left running."""
        self._signal(signal.SIGKILL)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if self._channel >= 0:
            os.close(self._channel)
            self._channel, self._ended = -1, True

    def wait(self, timeout_s: float) -> int | None:
        """The exit status, or None when it still runs after ``timeout_s``."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def _read(self) -> None:
        data = os.read(self._channel, 65536)
        self._buffer += data
        self._ended = not data

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` with the number of threads said outright, for every library that would else guess it from the whole machine."""
    threads = str(worker_threads(environ))
    return {**environ, **dict.fromkeys(_THREAD_VARIABLES, threads), "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def worker_threads(environ: Mapping[str, str]) -> int:
    """``STEELYARD_THREADS``, else ``OMP_NUM_THREADS``, else the physical cores that this process may use."""
    return threads_of(environ, "STEELYARD_THREADS") or threads_of(environ, "OMP_NUM_THREADS") or _usable_cores()


def threads_of(environ: Mapping[str, str], name: str) -> int | None:
    """What a variable says, if it is a number of threads."""
    value = environ.get(name, "")
    return int(value) if value.isdecimal() and int(value) > 0 else None


def _usable_cores() -> int:
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    logical, physical = psutil.cpu_count() or allowed, psutil.cpu_count(logical=False) or allowed
    cores = max(1, min(allowed, round(allowed * physical / logical)))
    quota = _cgroup_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cgroup_quota() -> float | None:
    """CPUs that the control group grants (v2), or None."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def parse_message(line: bytes) -> Mapping[str, Any] | None:
    """What a worker said; a torn last line of a killed worker, or a stray print, is no message."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("type"), str) else None
