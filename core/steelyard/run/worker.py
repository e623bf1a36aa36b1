"""The worker process: ``python -m steelyard.run.worker``. It runs one step after another until the conductor is gone.

It answers in JSON lines on the file descriptor the conductor gave it. What a step prints goes into the step's log. The kernel kills it
when the conductor dies, and it ends when its stdin does: no worker outlives its run.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.errors import ExitCode, Interrupted, SteelyardError, TrainingError
from steelyard.protocols import Rank
from steelyard.run.artifacts import ArtifactStore
from steelyard.run.checkpoints import FolderCheckpoints
from steelyard.run.durable import remove_tree, storage_problem
from steelyard.run.executors import Job, execute
from steelyard.run.launchers import CHANNEL, CONDUCTOR, SOCKET
from steelyard.run.parents import die_with_parent
from steelyard.run.ranks import RankCheckpoints, RankIO, take_rank
from steelyard.run.step_io import Channel, SampleLog, WorkerIO
from steelyard.run.tasks import Task

if TYPE_CHECKING:
    from steelyard.plugins import Registry

__all__ = ["main"]


def main() -> int:
    """Serves the conductor; returns when told to exit."""
    die_with_parent(int(os.environ[CONDUCTOR]))
    rank = take_rank(os.environ)
    # Where the socket is, which the launcher removes: what a rank leaves behind goes with it.
    scratch = Path(os.environ[SOCKET]).parent if SOCKET in os.environ else None
    descriptor, lines = _connect()
    channel = Channel(descriptor)
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whoever ends single processes (a cluster's time limit) gets the same as a stop: a checkpoint.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines, inbox, stop), daemon=True).start()
    # By number: a crash is then told in the log of the step that was running.
    faulthandler.enable(file=2)
    channel.send("hello", pid=os.getpid(), rank=rank.rank)
    worker = _Worker(channel, stop, rank, scratch)
    while (message := inbox.get()) is not None:
        worker.run(Task.from_json(message["task"]))
    return 0


class _Worker:
    def __init__(self, channel: Channel, stop: threading.Event, rank: Rank, scratch: Path | None):
        self._channel, self._stop, self._rank, self._scratch = channel, stop, rank, scratch
        self._registry: Registry | None = None
        self._stores: dict[Path, ArtifactStore] = {}

    def run(self, task: Task) -> None:
        """Runs a step and says what came of it: ``done``, ``interrupted`` or ``failed``."""
        started = time.monotonic()
        try:
            if self._rank.rank and not self._is_shared(task):
                return self._channel.send("done", key=task.key, summary={}, seconds=0.0)
            _redirect_output(task.log_of(self._rank.rank))
            print(f"--- {task.step} ({task.kind}) key {task.key}, {datetime.now(UTC).isoformat(timespec='seconds')}", flush=True)
            if self._rank.rank == 0:
                summary = self._execute(task, started)
            else:
                summary = {}
                self._share(task)
        except Interrupted as error:
            self._channel.send("interrupted", message=str(error), seconds=time.monotonic() - started)
        except BaseException as error:
            traceback.print_exc()
            sys.stderr.flush()
            self._channel.send("failed", error=describe(error, task.run_dir), seconds=time.monotonic() - started)
        else:
            self._channel.send("done", key=task.key, summary=summary, seconds=time.monotonic() - started)

    def _execute(self, task: Task, started: float) -> dict[str, Any]:
        store, inputs = self._open(task)
        output = store.temporary(task.key)
        try:
            summary = self._fill(task, inputs, output)
            seconds = time.monotonic() - started
            store.commit(output, task.key, step=task.step, kind=task.kind, inputs=task.input_keys, summary=summary, seconds=seconds)
        except BaseException:
            # A disk that is full gets its room back at once.
            remove_tree(output)
            raise
        return summary

    def _open(self, task: Task) -> tuple[ArtifactStore, dict[str, Path]]:
        """The run's artifacts, and those that the task is given, verified."""
        store = self._stores.setdefault(task.run_dir, ArtifactStore(task.run_dir / "artifacts"))
        inputs = {role: store.open(key) for role, key in task.input_keys.items()}
        return store, inputs | {role: model.open() for role, model in task.outside.items()}

    def _fill(self, task: Task, inputs: dict[str, Path], output: Path) -> dict[str, Any]:
        samples = SampleLog(task.samples)
        with ExitStack() as closing:
            closing.callback(samples.close)
            job = Job(
                task=task,
                registry=self._plugins(task),
                inputs=inputs,
                output=output,
                io=WorkerIO(self._channel, samples, self._stop),
                checkpoints=FolderCheckpoints(task.checkpoints, task.step, task.key, samples),
                closing=closing,
                rank=self._rank if self._is_shared(task) else Rank(),
            )
            summary = execute(job)
            if not samples.empty and not (output / "samples.jsonl").exists():
                samples.dump(output / "samples.jsonl")
        task.samples.unlink()
        return summary

    def _is_shared(self, task: Task) -> bool:
        """Whether all ranks run the step, and not the first alone."""
        return task.kind == "stage" and bool(self._plugins(task).get("stages", task.config["kind"]).distributed)

    def _share(self, task: Task) -> None:
        """Does this rank's part of a step that rank 0 runs, and leaves nothing behind."""
        _, inputs = self._open(task)
        output = Path(tempfile.mkdtemp(prefix=f"rank{self._rank.rank}-", dir=self._scratch))
        checkpoints = RankCheckpoints(FolderCheckpoints(task.checkpoints, task.step, task.key), self._rank.rank)
        try:
            with ExitStack() as closing:
                execute(Job(task, self._plugins(task), inputs, output, RankIO(), checkpoints, closing, self._rank))
        finally:
            remove_tree(output)

    def _plugins(self, task: Task) -> Registry:
        if self._registry is None:
            from steelyard.plugins import load_registry

            project = task.plugins.get("project")
            self._registry = load_registry(disabled=task.plugins.get("disabled", ()), project=Path(project) if project else None)
        return self._registry


def describe(error: BaseException, place: Path) -> dict[str, Any]:
    """An error as the conductor is told of it: its type, a message for the human, and the exit code it means."""
    known = _as_steelyard_error(error, place)
    if known is not None:
        return known.to_json()
    text = " ".join(str(error).split()) or "no message"
    return {"type": type(error).__name__, "message": f"{type(error).__name__}: {text}", "exit_code": int(ExitCode.INTERNAL)}


def _as_steelyard_error(error: BaseException, place: Path) -> SteelyardError | None:
    if isinstance(error, SteelyardError):
        return error
    text = " ".join(str(error).split())
    # Torch has a type of its own for an accelerator's memory and a plain RuntimeError for the host's.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return TrainingError(f"out of memory ({text or type(error).__name__}): use smaller batches, shorter sequences or a smaller model")
    if isinstance(error, SystemExit):
        return SteelyardError(f"the step called sys.exit({error.code!r})")
    return storage_problem(error, place)


def _connect() -> tuple[int, Iterable[bytes]]:
    """Where to answer, and where the conductor's messages come from: the pipes of a child, or a socket for the ranks of an agent."""
    address = os.environ.pop(SOCKET, None)
    if address is None:
        descriptor = int(os.environ.pop(CHANNEL))
        os.set_inheritable(descriptor, False)
        return descriptor, sys.stdin.buffer
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(address)
    return connection.fileno(), connection.makefile("rb")


def _listen(lines: Iterable[bytes], inbox: queue.SimpleQueue[dict[str, Any] | None], stop: threading.Event) -> None:
    """Takes the conductor's messages; the end of them means that there is no conductor any more."""
    for line in lines:
        message = json.loads(line)
        if message["type"] == "run":
            stop.clear()
            inbox.put(message)
        elif message["type"] == "stop":
            stop.set()
        elif message["type"] == "exit":
            inbox.put(None)
            return
    os._exit(int(ExitCode.INTERRUPTED))


def _redirect_output(log: Path) -> None:
    """Sends this process's stdout and stderr, those of libraries and children included, to the step's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
