"""Trackers as a run meets them: what the environment asks for, what a missing package says, what is written and read back."""

from __future__ import annotations

import importlib.util
import logging
import os
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import steelyard_trackers
from steelyard.events import MetricsReported, RoundDecided, RunFinished, RunStarted
from steelyard_trackers import config as trackers_config
from steelyard_trackers.config import TRACKERS, chosen_trackers
from steelyard_trackers.mirrors import Mirrors

SENTENCE = "promote: over 2 tasks and 1000 items the challenger's average changed by +4.00 points"


def mirrors(trackers: str) -> Mirrors:
    return Mirrors({"STEELYARD_TRACKERS": trackers})


def tell_a_run(to: Mirrors, run_dir: Path, *, resumed: bool = False, offset: int = 0) -> None:
    """Two stages that both count from 1, a metric without a step, a promotion, the end."""
    to.run_started(RunStarted(run_dir, "tiny", {"name": "tiny", "seed": 7, "rounds": [{"name": "r1"}]}, resumed))
    for step in (1 + offset, 2 + offset):
        to.metrics(MetricsReported(run_dir, "r1/sft", step, {"train/loss": 2.0 / step, "train/lr": 0.5}))
    to.metrics(MetricsReported(run_dir, "r1/dpo", 1 + offset, {"train/loss": 0.6875}))
    to.metrics(MetricsReported(run_dir, "eval/r1/dev", None, {"score/sums": 0.75}))
    to.round_decided(RoundDecided(run_dir, "r1", "promote", SENTENCE, {"average": {"diff": 0.0625}}))
    to.run_finished(RunFinished(run_dir, 0, promotions=1))


def events_of(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def scalars(accumulator: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def text(accumulator: Any, tag: str) -> str:
    (event,) = accumulator.Tensors(tag)
    return str(event.tensor_proto.string_val[0].decode())


def test_names_are_taken_in_order_and_once() -> None:
    environ = {"STEELYARD_TRACKERS": " wandb, tensorboard,wandb,,nothing "}
    assert chosen_trackers(environ) == (["wandb", "tensorboard"], ["nothing"])
    assert chosen_trackers({}) == ([], [])


def test_every_tracker_has_an_extra_of_its_name_and_a_row_in_the_readme() -> None:
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    readme = (root / "plugins" / "steelyard_trackers" / "README.md").read_text()
    for name in TRACKERS:
        assert name in extras
        assert f"| `{name}` | `steelyard[{name}]` |" in readme


def test_tensorboard_gets_metrics_by_step_and_the_verdict_as_text(tmp_path: Path) -> None:
    tell_a_run(mirrors("tensorboard"), tmp_path)
    found = events_of(tmp_path / "trackers" / "tensorboard")
    assert scalars(found, "r1/sft/train/loss") == [(1, 2.0), (2, 1.0)]
    assert scalars(found, "r1/sft/train/lr") == [(1, 0.5), (2, 0.5)]
    assert scalars(found, "r1/dpo/train/loss") == [(1, 0.6875)]
    assert scalars(found, "eval/r1/dev/score/sums") == [(1, 0.75)]
    assert scalars(found, "gate/promoted") == [(1, 1.0)]
    assert scalars(found, "gate/average_diff") == [(1, 0.0625)]
    assert text(found, "r1/verdict") == SENTENCE
    assert '"seed": 7' in text(found, "recipe")
    assert found.SummaryMetadata("r1/verdict").plugin_data.plugin_name == "text"


def test_reports_without_an_optimiser_step_are_counted_by_step(tmp_path: Path) -> None:
    under_test = mirrors("tensorboard")
    under_test.run_started(RunStarted(tmp_path, "tiny", {}))
    for step, value in [("a", 1.0), ("b", 5.0), ("a", 2.0)]:
        under_test.metrics(MetricsReported(tmp_path, step, None, {"x": value}))
    under_test.run_finished(RunFinished(tmp_path, 0))
    found = events_of(tmp_path / "trackers" / "tensorboard")
    assert scalars(found, "a/x") == [(1, 1.0), (2, 2.0)]
    assert scalars(found, "b/x") == [(1, 5.0)]


def test_a_resumed_run_adds_to_what_is_there(tmp_path: Path) -> None:
    tell_a_run(mirrors("tensorboard"), tmp_path)
    tell_a_run(mirrors("tensorboard"), tmp_path, resumed=True, offset=2)
    found = events_of(tmp_path / "trackers" / "tensorboard")
    assert sorted(step for step, _ in scalars(found, "r1/sft/train/loss")) == [1, 2, 3, 4]


def test_two_runs_at_once_in_one_process_do_not_mix(tmp_path: Path) -> None:
    under_test = mirrors("tensorboard")
    one, other = tmp_path / "one", tmp_path / "other"
    for run_dir in (one, other):
        under_test.run_started(RunStarted(run_dir, run_dir.name, {}))
    under_test.metrics(MetricsReported(one, "s", 1, {"x": 1.0}))
    under_test.metrics(MetricsReported(other, "s", 1, {"x": 2.0}))
    under_test.run_finished(RunFinished(one, 0))
    under_test.metrics(MetricsReported(other, "s", 2, {"x": 3.0}))
    under_test.run_finished(RunFinished(other, 0))
    assert scalars(events_of(one / "trackers" / "tensorboard"), "s/x") == [(1, 1.0)]
    assert scalars(events_of(other / "trackers" / "tensorboard"), "s/x") == [(1, 2.0), (2, 3.0)]


def test_nothing_is_kept_of_a_run_that_has_ended(tmp_path: Path) -> None:
    under_test = mirrors("tensorboard")
    tell_a_run(under_test, tmp_path)
    under_test.metrics(MetricsReported(tmp_path, "late", 1, {"x": 1.0}))
    under_test.run_finished(RunFinished(tmp_path, 0))
    assert not under_test._runs
    assert "late/x" not in events_of(tmp_path / "trackers" / "tensorboard").Tags()["scalars"]


def test_without_the_variable_nothing_is_written(tmp_path: Path) -> None:
    tell_a_run(Mirrors({}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_told_once_with_the_nearest_and_the_others_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tell_a_run(mirrors("tensorbord,tensorboard"), tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == ("STEELYARD_TRACKERS names 'tensorbord', which is no tracker (did you mean 'tensorboard'?); the run goes on without it")
    assert scalars(events_of(tmp_path / "trackers" / "tensorboard"), "r1/dpo/train/loss") == [(1, 0.6875)]


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_a_missing_package_is_one_line_that_names_the_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, TRACKERS[name].path.partition(":")[0], raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    tell_a_run(mirrors(name), tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"tracker {name!r} is left out: package {name!r} is not installed; pip install 'steelyard[{name}]'"
    assert list(tmp_path.iterdir()) == []


class Failing:
    """A service that goes away after the first report."""

    def __init__(self, run: RunStarted, folder: Path):
        if run.name == "never":
            raise ConnectionError("no answer\nfrom the service")
        self.calls = 0

    def log(self, metrics: Mapping[str, float], step: int | None) -> None:
        self.calls += 1
        if self.calls > 1:
            raise ConnectionError("gone")

    def note(self, name: str, text: str) -> None:
        raise AssertionError("it was to get nothing more")

    def finish(self, exit_code: int) -> None:
        raise AssertionError("it was to get nothing more")

    def close(self) -> None:
        raise AssertionError("it was to get nothing more")


class _Direct:
    def load(self) -> Callable[..., Any]:
        return Failing


@pytest.fixture
def with_a_failing_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {**TRACKERS, "failing": _Direct()}
    for module in (trackers_config, sys.modules["steelyard_trackers.mirrors"]):
        monkeypatch.setattr(module, "TRACKERS", table)


@pytest.mark.usefixtures("with_a_failing_tracker")
def test_a_tracker_that_fails_is_told_once_and_the_others_get_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tell_a_run(mirrors("failing,tensorboard"), tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "tracker 'failing' failed and gets nothing more of this run" in line and "gone" in line
    assert scalars(events_of(tmp_path / "trackers" / "tensorboard"), "r1/sft/train/loss") == [(1, 2.0), (2, 1.0)]


@pytest.mark.usefixtures("with_a_failing_tracker")
def test_a_service_that_cannot_be_reached_is_one_line_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    under_test = mirrors("failing")
    under_test.run_started(RunStarted(tmp_path, "never", {}))
    under_test.metrics(MetricsReported(tmp_path, "s", 1, {"x": 1.0}))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "cannot start" in line and "no answer from the service" in line and "\n" not in line


def test_the_hooks_of_the_plugin_reach_the_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELYARD_TRACKERS", "tensorboard")
    steelyard_trackers.steelyard_run_started(RunStarted(tmp_path, "tiny", {}))
    steelyard_trackers.steelyard_metrics(MetricsReported(tmp_path, "s", 3, {"x": 0.25}))
    steelyard_trackers.steelyard_round_decided(RoundDecided(tmp_path, "r1", "reject", "reject: worse"))
    steelyard_trackers.steelyard_run_finished(RunFinished(tmp_path, 1))
    found = events_of(tmp_path / "trackers" / "tensorboard")
    assert scalars(found, "s/x") == [(3, 0.25)]
    assert scalars(found, "gate/promoted") == [(1, 0.0)]
    assert text(found, "r1/verdict") == "reject: worse"
    assert text(found, "exit code") == "1"


def test_neither_the_plugin_nor_tensorboard_imports_torch_or_another_service(tmp_path: Path) -> None:
    program = (
        "import sys, steelyard_trackers as t\n"
        "assert 'tensorboard' not in sys.modules\n"
        "from pathlib import Path\n"
        "from steelyard.events import RunStarted, RunFinished\n"
        "t.steelyard_run_started(RunStarted(Path(sys.argv[1]), 'r', {})); t.steelyard_run_finished(RunFinished(Path(sys.argv[1]), 0))\n"
        "assert 'tensorboard' in sys.modules\n"
        "print(sorted({'torch', 'tensorflow', 'transformers', 'wandb', 'mlflow', 'trackio'} & set(sys.modules)))"
    )
    environ = {**os.environ, "STEELYARD_TRACKERS": "tensorboard"}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, env=environ)
    assert done.stdout == "[]\n", done.stderr


# The services, each without a network; a package that is not installed here is skipped and says so.


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (pip install 'steelyard[{package}]')")


def test_wandb_writes_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    need("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with caplog.at_level(logging.WARNING, "steelyard.trackers"):
        tell_a_run(mirrors("wandb"), tmp_path)
    assert not [record for record in caplog.records if record.name == "steelyard.trackers"]
    folder = tmp_path / "trackers" / "wandb"
    identifier = (folder / "run-id").read_text().strip()
    (recorded,) = folder.rglob("*.wandb")
    assert identifier in recorded.name
    expected = (b"r1/sft/train/loss", b"r1/dpo/train/loss", b"gate/average_diff", b"optimiser_step", SENTENCE.encode())
    # W&B's own process writes the file, and closes it a moment after the run says it has finished.
    ends = time.monotonic() + 20
    while (missing := [part for part in expected if part not in recorded.read_bytes()]) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not missing


def test_mlflow_keeps_metrics_and_verdict_in_a_local_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need("mlflow")
    from mlflow import MlflowClient

    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_dir = tmp_path / "runs" / "tiny"
    with caplog.at_level(logging.WARNING, "steelyard.trackers"):
        tell_a_run(mirrors("mlflow"), run_dir)
        tell_a_run(mirrors("mlflow"), run_dir, resumed=True, offset=2)
    assert not [record for record in caplog.records if record.name == "steelyard.trackers"]
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("steelyard")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "tiny" and run.info.status == "FINISHED"
    assert run.data.tags["r1/verdict"] == SENTENCE
    history = client.get_metric_history(run.info.run_id, "r1/sft/train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 1.0), (3, 2 / 3), (4, 0.5)]


def test_trackio_keeps_a_local_run_and_leaves_stdout_alone(tmp_path: Path) -> None:
    need("trackio")
    # In a process of its own: trackio reads TRACKIO_DIR when it is imported.
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from steelyard.events import MetricsReported, RoundDecided, RunFinished, RunStarted\n"
        "from steelyard_trackers.mirrors import Mirrors\n"
        "m, d = Mirrors({'STEELYARD_TRACKERS': 'trackio'}), Path(sys.argv[1]) / 'tiny'\n"
        "m.run_started(RunStarted(d, 'tiny', {'seed': 7}))\n"
        "m.metrics(MetricsReported(d, 'r1/sft', 1, {'train/loss': 2.0}))\n"
        "m.round_decided(RoundDecided(d, 'r1', 'promote', 'promote: better'))\n"
        "m.run_finished(RunFinished(d, 0))\n"
    )
    environ = {**os.environ, "TRACKIO_DIR": str(tmp_path / "store"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr
    assert "is left out" not in done.stderr and "failed" not in done.stderr
    (database,) = (tmp_path / "store").glob("steelyard*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, metrics FROM metrics").fetchall()
    assert {name for name, _ in rows} == {"tiny"}
    kept = " ".join(str(metrics) for _, metrics in rows)
    assert "r1/sft/train/loss" in kept and "promote: better" in kept
