"""One worker process, started when first needed and kept for the steps that follow; and how its end is told."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from steelyard.errors import Interrupted, StepFailedError
from steelyard.protocols import Launcher, WorkerHandle
from steelyard.run.deaths import cause_of_death, log_tail
from steelyard.run.launchers import worker_environment
from steelyard.run.stopping import StopRequest
from steelyard.run.tasks import Task

__all__ = ["WarmWorker"]

_ANSWERS = ("done", "failed", "interrupted")
_LISTEN_SECONDS = 0.2
_EXIT_SECONDS = 10.0


class WarmWorker:
    """Runs tasks in a worker of ``launcher``. Close it: a worker must not outlive its run."""

    def __init__(self, launcher: Launcher, log: Path):
        self._launcher, self._log = launcher, log
        self._worker: WorkerHandle | None = None

    def run(self, task: Task, hear: Callable[[Mapping[str, Any]], None], stop: StopRequest) -> Mapping[str, Any]:
        """The worker's answer: ``done``, ``failed`` or ``interrupted``; what it says before goes to ``hear``.

        Errors: :class:`StepFailedError` when the worker dies, :class:`Interrupted` when a second signal orders the stop."""
        if self._worker is not None and self._worker.poll() is not None:
            # It died with nothing to do, which costs no step anything.
            self.kill()
        worker = self._worker = self._worker or self._launcher.start(worker_environment(os.environ), self._log)
        try:
            worker.send({"type": "run", "task": task.to_json()})
            answer = self._listen(worker, hear, stop)
        except BaseException:
            self.kill()
            raise
        if answer is None:
            status = worker.poll()
            self.kill()
            raise StepFailedError(task.step, f"{cause_of_death(status)}{log_tail(task.log)}")
        if answer["type"] == "failed":
            # Its memory may be full of whatever failed; the next step starts afresh.
            self.close()
        return answer

    def _listen(self, worker: WorkerHandle, hear: Callable[[Mapping[str, Any]], None], stop: StopRequest) -> Mapping[str, Any] | None:
        told = False
        while True:
            gone = worker.poll() is not None
            for message in worker.messages(_LISTEN_SECONDS):
                if message["type"] in _ANSWERS:
                    return message
                hear(message)
                if stop.asked:
                    break
            if gone:
                return None
            if stop.ordered:
                raise Interrupted(f"killed at the second {stop.name}")
            if stop.asked and not told:
                told = True
                worker.send({"type": "stop"})

    def close(self) -> None:
        """Asks the worker to end, and sees to it."""
        if self._worker is None:
            return
        self._worker.send({"type": "exit"})
        deadline = time.monotonic() + _EXIT_SECONDS
        while self._worker.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill()

    def kill(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None
