"""The ``torchrun`` launcher: several workers on this machine under torch's elastic agent, spoken to as if they were one.

The agent hands on no file descriptors, so every rank connects to a Unix-domain socket in a private folder. All get the same messages.
Rank 0 answers for all; its answer is passed on once the others have come to their end as well. What goes wrong on any rank ends the step
at once: the others may be waiting for it in a collective operation, and would wait for ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.errors import ExitCode, StepFailedError
from steelyard.run.deaths import cause_of_death, log_tail
from steelyard.run.durable import storage_errors
from steelyard.run.launchers import CONDUCTOR, SOCKET, parse_message, threads_of, worker_environment, worker_threads
from steelyard.run.tasks import Task

if TYPE_CHECKING:
    from steelyard.run.torchrun_config import TorchrunConfig

__all__ = ["TorchrunLauncher", "TorchrunWorker"]

_ANSWERS = ("done", "failed", "interrupted")
_SETTLE_SECONDS = 2.0
"""How long the other ranks may go on once one has failed or stopped: whose fault it was is often told by a later word."""
_AGENT_SECONDS = 3.0
_LONGEST_ADDRESS = 100
_FOLDER, _HELD = "steelyard-ranks-", "held"
_YOUNG_SECONDS = 10.0
_EXIT = re.compile(r"exitcode\s*:\s*(-?\d+)\s*\(pid:\s*(\d+)\)")
_COLLECTIVE = re.compile(r"DistBackendError|DistNetworkError|Connection (closed|reset)|Broken pipe|\bgloo\b|\bNCCL\b", re.IGNORECASE)


class TorchrunLauncher:
    """A :class:`~steelyard.protocols.Launcher` that starts ``torch.distributed.run`` on ``steelyard.run.worker``."""

    def __init__(self, config: TorchrunConfig):
        self._processes, self._threads = config.processes, config.threads

    def start(self, environment: Mapping[str, str], log: Path) -> TorchrunWorker:
        """``log`` takes what the agent and the workers print outside any step. Errors: :class:`~steelyard.errors.StorageError`."""
        folder, lock = _private_folder()
        try:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(folder / "ranks"))
            listener.listen(self._processes)
            with storage_errors(log), open(log, "ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "steelyard.run.torchrun_agent", *self._arguments(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment(environment, folder),
                    # Its own session: the terminal's Ctrl-C is for the conductor, which asks the workers to stop.
                    start_new_session=True,
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
            raise
        return TorchrunWorker(process, listener, folder, self._processes, log, lock)

    def _arguments(self, folder: Path) -> list[str]:
        # Numbers only: not every machine can resolve its own name, nor the `localhost` of `--standalone`. Port 0 is a free one.
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", folder.name, "--local-addr", "127.0.0.1"]
        options = [*meeting, "--max-restarts", "0", "--log-dir", str(folder / "logs")]
        return [*options, "--nproc-per-node", str(self._processes), "-m", "steelyard.run.worker"]

    def _environment(self, environment: Mapping[str, str], folder: Path) -> dict[str, str]:
        insisted = threads_of(environment, "STEELYARD_THREADS")
        threads = insisted or self._threads or max(1, worker_threads(environment) // self._processes)
        # They are all on this machine, and its name need not lead to it.
        loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
        return {
            **loopback,
            **worker_environment({**environment, "STEELYARD_THREADS": str(threads)}),
            SOCKET: str(folder / "ranks"),
            CONDUCTOR: str(os.getpid()),
        }


@dataclass(eq=False)
class _Rank:
    """A worker as the conductor sees it."""

    connection: socket.socket
    number: int = -1
    """Unknown until it says so."""
    pid: int = 0
    buffer: bytes = b""
    answer: Mapping[str, Any] | None = None
    lost: bool = False
    """Whether its end of the connection is closed."""


@dataclass
class _Talk:
    """The step that the ranks are at."""

    task: Task | None = None
    trouble_since: float | None = None
    ended: list[_Rank] = field(default_factory=list)
    """The ranks that came to an end, in that order: by an answer or by their death."""


class TorchrunWorker:
    """A :class:`~steelyard.protocols.WorkerHandle` on the agent and its ranks."""

    def __init__(
        self, process: subprocess.Popen[bytes], listener: socket.socket, folder: Path, size: int, log: Path, lock: int | None = None
    ):
        self._process, self._listener, self._folder, self._size, self._log = process, listener, folder, size, log
        self._lock = lock
        self._ranks: list[_Rank] = []
        self._sent: list[bytes] = []
        self._talk = _Talk()
        self._heard: deque[Mapping[str, Any]] = deque()
        self.pid = process.pid

    def send(self, message: Mapping[str, Any]) -> None:
        """A message to all ranks; those that have not come yet get it when they do."""
        line = json.dumps(dict(message)).encode() + b"\n"
        if message["type"] == "run":
            self._talk = _Talk(Task.from_json(message["task"]))
            for rank in self._ranks:
                rank.answer = None
        if len(self._ranks) < self._size:
            self._sent.append(line)
        for rank in self._ranks:
            _send(rank, line)

    def messages(self, timeout_s: float) -> Iterator[Mapping[str, Any]]:
        deadline = time.monotonic() + timeout_s
        while True:
            for rank in self._wait(min(max(deadline - time.monotonic(), 0), 0.1)):
                self._read(rank)
            # Kept apart from the reading: the caller may stop listening behind any message, and come back.
            while self._heard:
                yield self._heard.popleft()
                deadline = time.monotonic() + timeout_s
            answer = self._verdict()
            if answer is not None:
                yield answer
                return
            # In trouble the caller waits until it is known what happened.
            if time.monotonic() >= deadline and self._talk.trouble_since is None:
                return

    def poll(self) -> int | None:
        """Of the agent; None as long as the step that it was at has no answer."""
        status = self._process.poll()
        return None if self._talk.task is not None else status

    def terminate(self) -> None:
        self._signal(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kills the agent, the ranks and everything they started, and waits until they are gone."""
        self._kill_ranks()
        self._signal(self.pid, signal.SIGKILL)
        self._process.wait()
        # The kernel kills those whose process id is not known yet; they close the connection, or never make one.
        deadline = time.monotonic() + _AGENT_SECONDS
        while any(not rank.lost for rank in self._ranks) and time.monotonic() < deadline:
            for rank in self._wait(0.05):
                self._read(rank)
        for rank in self._ranks:
            rank.connection.close()
        self._listener.close()
        self._talk = _Talk()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _wait(self, seconds: float) -> list[_Rank]:
        """The ranks that have something to say; new ones are let in."""
        live = {rank.connection.fileno(): rank for rank in self._ranks if not rank.lost}
        own = self._listener.fileno()
        ready, _, _ = select.select([own, *live], [], [], seconds)
        if own in ready:
            connection, _ = self._listener.accept()
            rank = _Rank(connection)
            self._ranks.append(rank)
            for line in self._sent:
                _send(rank, line)
            if len(self._ranks) == self._size:
                self._sent = []
        return [live[descriptor] for descriptor in ready if descriptor != own]

    def _read(self, rank: _Rank) -> None:
        """Takes what a rank says, and keeps what of it is for the conductor to hear."""
        try:
            data = rank.connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            rank.lost = True
            if rank.answer is not None and rank.answer["type"] == "done" and self._talk.task is not None:
                # It died while the others were still at the step; the agent will end them for it.
                rank.answer = None
                self._talk.ended.remove(rank)
            if rank.answer is None:
                self._ends(rank)
            return
        rank.buffer += data
        while b"\n" in rank.buffer:
            line, _, rank.buffer = rank.buffer.partition(b"\n")
            message = parse_message(line)
            if message is None:
                continue
            if message["type"] == "hello":
                rank.number, rank.pid = int(message["rank"]), int(message["pid"])
            elif message["type"] in _ANSWERS:
                rank.answer = message
                self._ends(rank)
            elif rank.number == 0:
                self._heard.append(message)

    def _ends(self, rank: _Rank) -> None:
        self._talk.ended.append(rank)
        if rank.answer is None or rank.answer["type"] != "done":
            self._talk.trouble_since = self._talk.trouble_since or time.monotonic()

    def _verdict(self) -> Mapping[str, Any] | None:
        """The answer for all ranks, once there is one; the step is then over."""
        talk = self._talk
        if talk.task is None:
            return None
        if talk.trouble_since is None and self._process.poll() is not None:
            talk.trouble_since = time.monotonic()
        everyone = len(talk.ended) == self._size
        if talk.trouble_since is None:
            if not everyone:
                return None
            talk.task = None
            return self._answer_of(0)
        late = time.monotonic() - talk.trouble_since > _SETTLE_SECONDS
        if not (everyone or late or any(rank.lost for rank in talk.ended)):
            return None
        answer = self._explain(talk.task)
        talk.task = None
        return answer

    def _explain(self, task: Task) -> Mapping[str, Any]:
        """What went wrong where; whoever is still at work is ended."""
        said = [rank for rank in self._talk.ended if rank.answer is not None]
        failed = [rank for rank in said if rank.answer is not None and rank.answer["type"] == "failed"]
        lost = [rank for rank in self._talk.ended if rank.answer is None]
        stopped = self._answer_of(0)
        if stopped is not None and stopped["type"] == "interrupted" and not failed and not lost:
            if len(said) < self._size:
                self._kill_ranks()
            return stopped
        # A rank that lost its partner says so too, and perhaps first.
        own = [rank for rank in failed if not _blames_another(rank)]
        first = next((rank for rank in self._talk.ended if rank in lost or rank in own), None)
        if first is not None and first.answer is None:
            status = self._status_of(first)
            if status is None and (self._process.poll() or 0) < 0:
                # Its ranks went with it, and nobody is left to tell how they ended.
                return self._failure(task, -1, cause_of_death(self._process.poll(), "torchrun's agent"), with_tail=True)
            who = f"rank {first.number} of {self._size}" if first.number >= 0 else f"one of {self._size} ranks, as it started,"
            return self._failure(task, first.number, cause_of_death(status, who), with_tail=True)
        if not failed:
            # The agent ended and no rank was ever heard.
            self._kill_ranks()
            return self._failure(task, -1, cause_of_death(self._process.poll(), "torchrun's agent"), with_tail=True)
        rank = first or failed[0]
        # What is wrong with the recipe or the data they all find out, and no rank needs to be named.
        rank = next((other for other in failed if other.number == 0 and _message(other) == _message(rank)), rank)
        self._kill_ranks()
        assert rank.answer is not None
        if rank.number == 0:
            return rank.answer
        error = dict(rank.answer["error"])
        message = f"rank {rank.number} of {self._size}: {error['message']}"
        return self._failure(task, rank.number, message, with_tail=False, type_name=error["type"], exit_code=error["exit_code"])

    def _failure(
        self, task: Task, rank: int, message: str, *, with_tail: bool, type_name: str = "", exit_code: int = int(ExitCode.DATA)
    ) -> Mapping[str, Any]:
        log = task.log_of(rank) if rank >= 0 else self._log
        if not log.is_file():
            # A rank that has no part in the step has no log of it.
            log = self._log
        text = f"{message}{log_tail(log)}" if with_tail else message
        error = {"type": type_name or StepFailedError.__name__, "message": text, "exit_code": exit_code, "log": str(log)}
        return {"type": "failed", "error": error, "seconds": 0.0}

    def _status_of(self, rank: _Rank) -> int | None:
        """How a rank ended, as only the agent knows: it says so in its log once all ranks are gone."""
        deadline = time.monotonic() + _AGENT_SECONDS
        # It looks at its ranks ten times a second, and takes those that are then gone for the ones to blame.
        time.sleep(0.3)
        self._kill_ranks()
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        with contextlib.suppress(OSError):
            told = self._log.read_text(encoding="utf-8", errors="replace")
            statuses = {int(pid): int(status) for status, pid in _EXIT.findall(told)}
            return statuses.get(rank.pid)
        return None

    def _answer_of(self, number: int) -> Mapping[str, Any] | None:
        return next((rank.answer for rank in self._ranks if rank.number == number), None)

    def _kill_ranks(self) -> None:
        for rank in self._ranks:
            # Each has a session of its own. What a dead one left behind is still in its group.
            if rank.pid:
                self._signal(rank.pid, signal.SIGKILL)

    @staticmethod
    def _signal(group: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def _send(rank: _Rank, line: bytes) -> None:
    """A message to a rank that has died is lost; reading from it tells."""
    with contextlib.suppress(OSError):
        rank.connection.sendall(line)


def _message(rank: _Rank) -> str:
    return "" if rank.answer is None else str(rank.answer["error"]["message"])


def _blames_another(rank: _Rank) -> bool:
    """Whether a failed rank's error only says that a collective operation broke, which another rank's end does to it."""
    assert rank.answer is not None
    return rank.answer["error"]["exit_code"] == ExitCode.INTERNAL and _COLLECTIVE.search(_message(rank)) is not None


def _private_folder() -> tuple[Path, int]:
    """A folder that nobody else may enter, with a path that is short enough for a socket's address; and a lock that says it is in use,
    which the kernel lets go of with the conductor. What killed conductors left behind is removed."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent / f"{_FOLDER}12345678" / "ranks")) > _LONGEST_ADDRESS:
        parent = Path("/tmp")
    for stale in parent.glob(f"{_FOLDER}*"):
        _remove_unless_held(stale)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=parent))
    lock = os.open(folder / _HELD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # A file system without locks: the folder is then never taken for stale either.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return folder, lock


def _remove_unless_held(folder: Path) -> None:
    with contextlib.suppress(OSError):
        # Another conductor may be about to take its lock.
        if time.time() - (folder / _HELD).stat().st_mtime < _YOUNG_SECONDS:
            return
        lock = os.open(folder / _HELD, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
