"""The worker's side of a run and what the human sees of it: threads, messages, errors across the border, signals, progress."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.errors import DataError, ExitCode, TrainingError
from steelyard.run import progress as progress_module
from steelyard.run.launchers import LocalLauncher, worker_environment, worker_threads
from steelyard.run.outside_models import OutsideModel
from steelyard.run.progress import PlainProgress, duration
from steelyard.run.stopping import StopRequest
from steelyard.run.tasks import Task
from steelyard.run.worker import describe


def test_threads_are_said_outright() -> None:
    assert worker_threads({"STEELYARD_THREADS": "3", "OMP_NUM_THREADS": "5"}) == 3
    assert worker_threads({"OMP_NUM_THREADS": "5"}) == 5
    assert 1 <= worker_threads({}) <= len(os.sched_getaffinity(0))
    assert worker_threads({"STEELYARD_THREADS": "many"}) == worker_threads({})
    made = worker_environment({"STEELYARD_THREADS": "3", "HOME": "/h"})
    assert made["OMP_NUM_THREADS"] == made["MKL_NUM_THREADS"] == "3" and made["HOME"] == "/h"


def test_a_recipe_fixes_the_threads_unless_the_environment_insists(tmp_path: Path) -> None:
    from steelyard.run.local_config import LocalConfig

    for environ, threads in (({"OMP_NUM_THREADS": "7"}, "3"), ({"STEELYARD_THREADS": "5"}, "5")):
        environment = worker_environment({**os.environ, "STEELYARD_THREADS": "", **environ})
        worker = LocalLauncher(LocalConfig(threads=3)).start(environment, tmp_path / "log")
        next(iter(worker.messages(20)))
        found = dict(line.partition("=")[::2] for line in Path(f"/proc/{worker.pid}/environ").read_text().split("\0"))
        assert found["OMP_NUM_THREADS"] == threads
        worker.kill()


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("error", "type_name", "code", "told"),
    [
        (DataError("no rows"), "DataError", ExitCode.DATA, "no rows"),
        (TrainingError("loss is nan"), "TrainingError", ExitCode.DATA, "loss is nan"),
        (MemoryError(), "TrainingError", ExitCode.DATA, "out of memory (MemoryError)"),
        (OutOfMemoryError("CUDA out of memory. Tried …"), "TrainingError", ExitCode.DATA, "out of memory (CUDA"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "TrainingError", ExitCode.DATA, "smaller batches"),
        (OSError(28, "No space left on device"), "StorageError", ExitCode.DATA, "the disk is full"),
        (SystemExit(0), "SteelyardError", ExitCode.INTERNAL, "called sys.exit(0)"),
        (KeyError("x"), "KeyError", ExitCode.INTERNAL, "KeyError: 'x'"),
    ],
)
def test_errors_cross_the_border_with_their_type_and_what_to_do(
    error: BaseException, type_name: str, code: ExitCode, told: str, tmp_path: Path
) -> None:
    said = describe(error, tmp_path)
    assert (said["type"], said["exit_code"]) == (type_name, code) and told in said["message"]
    json.dumps(said)


def test_a_task_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    task = Task("r/a", "stage", "k", {"lr": 0.1}, {"model": "k0"}, tmp_path, tmp_path / "x", 1, 2, {"suite": "s"}, {"disabled": []})
    task = replace(task, outside={"model:a": OutsideModel("run:../a", "/runs/a/artifacts/k1", "f")})
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


def test_a_worker_greets_and_ends_when_told(tmp_path: Path) -> None:
    worker = LocalLauncher().start(worker_environment(os.environ), tmp_path / "log")
    assert next(iter(worker.messages(20)))["type"] == "hello"
    worker.send({"type": "exit"})
    assert worker.wait(10) == 0
    worker.close()


def test_a_worker_ends_with_its_stdin(tmp_path: Path) -> None:
    worker = LocalLauncher().start(worker_environment(os.environ), tmp_path / "log")
    next(iter(worker.messages(20)))
    assert worker._process.stdin is not None
    worker._process.stdin.close()
    assert worker.wait(10) == ExitCode.INTERRUPTED
    worker.close()


def test_a_worker_dies_with_its_conductor(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\n"
        "from steelyard.run.launchers import LocalLauncher, worker_environment\n"
        "worker = LocalLauncher().start(worker_environment(os.environ), pathlib.Path(sys.argv[1]))\n"
        "next(iter(worker.messages(20)))\n"
        "print(worker.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    worker = int(done.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the worker outlived its conductor"
        time.sleep(0.02)


def test_a_worker_that_died_between_steps_costs_none(tmp_path: Path) -> None:
    from steelyard.plugins import load_registry
    from steelyard.recipe import load_suite
    from steelyard.run.warm_worker import WarmWorker

    suite = load_suite("tiny-base-dev", load_registry())
    config = {"suite": {name: value for name, value in suite.to_json().items() if name != "path"}}
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "logs").mkdir()
    worker = WarmWorker(LocalLauncher(), tmp_path / "worker.log")
    try:
        for key in ("first", "second"):
            task = Task("items/dev", "items", key, config, {}, tmp_path, tmp_path, 0, 0, {"suite": str(suite.path)}, {"disabled": []})
            with StopRequest() as stop:
                assert worker.run(task, lambda message: None, stop)["type"] == "done"
            assert (tmp_path / "artifacts" / key / "items.jsonl").is_file()
            assert worker._worker is not None
            os.kill(worker._worker.pid, signal.SIGKILL)
            while worker._worker.poll() is None:
                time.sleep(0.01)
    finally:
        worker.close()


def test_stray_text_on_the_channel_is_no_message(tmp_path: Path) -> None:
    worker = LocalLauncher().start(worker_environment(os.environ), tmp_path / "log")
    worker._buffer = b'stray\n{"no": "type"}\n{"type": "log", "message": "m"}\n'
    assert next(iter(worker.messages(0)))["message"] == "m"
    worker.kill()
    assert worker.poll() == -signal.SIGKILL
    worker.send({"type": "exit"})


def test_the_first_signal_asks_the_second_orders_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked and not stop.ordered and stop.name == "SIGTERM"
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.ordered
    assert signal.getsignal(signal.SIGTERM) is before


def test_plain_progress_tells_rate_and_time_left_of_this_session(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    shown = PlainProgress(stream)
    shown.planned(3)
    shown.begin("r/a", 2)
    clock[0] += 5
    shown.update(100, 200, "steps", "")
    clock[0] += 10
    shown.update(150, 200, "steps", "loss 1.5")
    shown.finish("r/a", 2, "done", 75.0, {"parameters": 1234567, "metrics": {"train/loss": 1.5}})
    assert stream.getvalue().splitlines() == [
        "[2/3] r/a …",
        "    150/200 steps, 5 steps/s, 10.0 s left, loss 1.5",
        "[2/3] r/a done in 1 min 15 s — 1,234,567 parameters, train/loss 1.5",
    ]


def test_the_rate_starts_again_where_the_unit_changes_or_the_count_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    shown = PlainProgress(stream)
    shown.begin("r/dpo", 1)
    for seconds, done, total, unit in (
        (1, 0, 400, "pairs"),
        (8, 400, 400, "pairs"),
        (2, 3, 38, "steps"),
        (10, 13, 38, "steps"),
        (10, 2, 38, "steps"),
    ):
        clock[0] += seconds
        shown.update(done, total, unit, "")
    assert stream.getvalue().splitlines()[1:] == ["    3/38 steps", "    13/38 steps, 1 steps/s, 25.0 s left", "    2/38 steps"]


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"train/loss": 2.7e-09, "rl/accuracy": 0.875}, "rl/accuracy 0.875"),
        ({"train/loss": 0.5, "dpo/accuracy": 0.75}, "dpo/accuracy 0.75"),
        ({"train/loss": 0.5}, "train/loss 0.5"),
        ({}, ""),
    ],
)
def test_a_finished_stage_tells_its_most_telling_metric(metrics: dict[str, float], said: str) -> None:
    assert progress_module.in_words({"metrics": metrics}) == said


def test_time_left_on_a_terminal_counts_from_where_a_resumed_step_began(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    shown = progress_module.LiveProgress()
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    shown.planned(3)
    shown.begin("r/a", 2)
    shown.update(100, 200, "steps", "")
    clock[0] += 10
    shown.update(150, 200, "steps", "")
    run, step = shown._bars.tasks
    assert (step.fields["rate"], step.fields["left"]) == ("5 steps/s", "10.0 s left")
    assert run.fields["left"] == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (61, "1 min 01 s"), (7800, "2 h 10 min")])
def test_durations_are_told_in_fitting_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
