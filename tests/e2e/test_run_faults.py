"""Runs of the real program, killed, stopped, starved and damaged; a plugin without torch keeps each of them to seconds."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures" / "light_lab"))
from light_lab import RECIPE, make_project, models_of, start_steelyard, steelyard, wait_for, worker_of

SLOW = RECIPE.replace("kind: count, ", "kind: count, pause: 0.04, ")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The artifacts of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make_project(folder, SLOW)
    done = steelyard("run", "recipe.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return models_of(folder / "runs" / "light")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_project(tmp_path, SLOW)
    return tmp_path


def run_dir_of(project: Path) -> Path:
    return project / "runs" / "light"


def done_after_resume(project: Path) -> dict[str, dict[str, bytes]]:
    resumed = steelyard("resume", "runs/light", cwd=project)
    assert resumed.returncode == 0, resumed.stderr
    return models_of(run_dir_of(project))


def no_process_works_on(project: Path) -> bool:
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        command = " ".join(process.info["cmdline"] or ())
        if "steelyard" in command and process.info["cwd"] == str(project) and process.status() != psutil.STATUS_ZOMBIE:
            return False
    return True


@pytest.mark.parametrize("kills", [4, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("victim", ["conductor", "worker"])
def test_killed_at_random_moments_and_resumed_it_makes_the_same_bytes(
    victim: str, kills: int, project: Path, undisturbed: dict[str, dict[str, bytes]]
) -> None:
    moments = random.Random(f"{kills} moments of the {victim}")
    for attempt in range(kills):
        again = (run_dir_of(project) / "resolved.json").exists()
        process = start_steelyard(*(("resume", "runs/light") if again else ("run", "recipe.yaml")), cwd=project)
        if victim == "conductor" and attempt % 3 == 0:
            time.sleep(moments.uniform(0.1, 1.0))  # Also before there is a worker.
        else:
            worker = wait_for(partial(worker_of, process.pid))
            time.sleep(moments.uniform(0, 0.9))
        target = worker if victim == "worker" else process.pid
        assert process.poll() is None, "it ended before it could be killed"
        os.kill(target, signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
        if victim == "worker":
            assert process.returncode == 5, stderr
            assert "failed: its worker was killed by SIGKILL" in stderr
        wait_for(lambda: no_process_works_on(project), timeout=10)
    assert done_after_resume(project) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_stops_at_a_checkpoint_with_exit_75_and_resume_finishes(
    number: signal.Signals, project: Path, undisturbed: dict[str, dict[str, bytes]]
) -> None:
    process = start_steelyard("run", "recipe.yaml", cwd=project)
    wait_for(lambda: len(list((run_dir_of(project) / "checkpoints").glob("*/step-*"))) > 0)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75, stderr
    assert f"stopped by {number.name} in 'first/a'; go on with `steelyard resume runs/light`" in stderr
    assert no_process_works_on(project)
    status = json.loads(steelyard("status", "runs/light", "--json", cwd=project).stdout)
    assert {"step": "first/a", "status": "interrupted"}.items() <= status["steps"][-1].items()
    resumed = steelyard("resume", "runs/light", cwd=project)
    assert resumed.returncode == 0 and "resumed at" in resumed.stderr
    assert models_of(run_dir_of(project)) == undisturbed


def test_the_second_signal_kills_the_worker_at_once(tmp_path: Path) -> None:
    make_project(tmp_path, RECIPE.replace("{name: a, kind: count, data: lines}", "{name: a, kind: count, data: lines, pause: 60}"))
    process = start_steelyard("run", "recipe.yaml", cwd=tmp_path)
    wait_for(lambda: (run_dir_of(tmp_path) / "logs" / "first" / "a.log").exists())
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 75 and "killed at the second SIGINT" in stderr
    assert no_process_works_on(tmp_path)


def test_a_second_process_on_the_run_is_refused_and_told_who_holds_it(project: Path) -> None:
    process = start_steelyard("run", "recipe.yaml", cwd=project)
    try:
        wait_for(lambda: worker_of(process.pid))
        for command in (("run", "recipe.yaml"), ("resume", "runs/light")):
            second = steelyard(*command, cwd=project)
            assert second.returncode == 2
            assert f"is held by process {process.pid} on " in second.stderr and "recipe.yaml" in second.stderr
        looked = steelyard("status", "runs/light", "--json", cwd=project)
        assert json.loads(looked.stdout)["holder"]["pid"] == process.pid
    finally:
        process.kill()
        process.communicate()


def test_the_lock_of_a_killed_process_is_taken_over(project: Path) -> None:
    process = start_steelyard("run", "recipe.yaml", cwd=project)
    wait_for(lambda: worker_of(process.pid))
    process.kill()
    process.communicate()
    resumed = steelyard("resume", "runs/light", cwd=project)
    assert resumed.returncode == 0
    assert f"the last session ended without a word: process {process.pid} on" in resumed.stderr


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        ("segfault", 5, "killed by SIGSEGV"),
        ("kill", 5, "out-of-memory killer"),
        ("exit", 5, "ended with exit code 0 before the step was done"),
        ("raise", 3, "ValueError: the sum came out wrong (traceback in runs/light/logs/first/b.log)"),
        ("memory", 5, "out of memory (MemoryError): use smaller batches"),
        ("elsewhere", 5, "and not in the output folder it was given"),
        ("nothing", 5, "left no model in its output folder"),
    ],
)
def test_a_step_that_breaks_is_named_and_what_came_before_is_kept(fault: str, code: int, told: str, tmp_path: Path) -> None:
    make_project(tmp_path, RECIPE.replace("{name: b, kind: count,", f"{{name: b, kind: count, fault: {fault},", 1))
    ran = steelyard("run", "recipe.yaml", cwd=tmp_path)
    assert ran.returncode == code, ran.stderr
    assert "error: step 'first/b' failed: " in ran.stderr and told in ran.stderr
    assert no_process_works_on(tmp_path)
    status = json.loads(steelyard("status", "runs/light", "--json", cwd=tmp_path).stdout)
    assert [(s["step"], s["status"]) for s in status["steps"]][-2:] == [("first/a", "done"), ("first/b", "failed")]
    assert status["failures"][-1]["step"] == "first/b"
    assert not list((run_dir_of(tmp_path) / "artifacts").glob(".tmp-*")) or fault in ("segfault", "kill", "exit")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink], ids=["a flipped bit", "a lost byte", "a lost file"])
@pytest.mark.parametrize(("step", "file"), [("first/a", "model.json"), ("clean/lines", "rows.parquet"), ("eval/first/dev", "items.jsonl")])
def test_a_damaged_artifact_is_named_set_aside_and_made_again(
    damage: object, step: str, file: str, tmp_path: Path, undisturbed_copy: Path
) -> None:
    before = models_of(undisturbed_copy / "runs" / "light")
    status = json.loads(steelyard("status", "runs/light", "--json", cwd=undisturbed_copy).stdout)
    key = next(s["key"] for s in status["steps"] if s["step"] == step)
    path = undisturbed_copy / "runs" / "light" / "artifacts" / key / file
    damage(path)  # type: ignore[operator]
    resumed = steelyard("resume", "runs/light", cwd=undisturbed_copy)
    assert resumed.returncode == 0, resumed.stderr
    assert f"artifacts/{key}/{file}'" in resumed.stderr and f"(now {key}.damaged)" in resumed.stderr
    assert (path.parent.parent / f"{key}.damaged").is_dir()
    assert models_of(undisturbed_copy / "runs" / "light") == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    make_project(folder)
    done = steelyard("run", "recipe.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def undisturbed_copy(finished: Path, tmp_path: Path) -> Path:
    """A finished run that was moved elsewhere."""
    return Path(shutil.copytree(finished, tmp_path / "moved", symlinks=True))


def test_a_moved_run_is_resumed_without_doing_anything_again(undisturbed_copy: Path) -> None:
    resumed = steelyard("resume", "runs/light", cwd=undisturbed_copy)
    assert resumed.returncode == 0
    assert "done in" not in resumed.stderr and "second/b reused" in resumed.stderr
    assert (undisturbed_copy / "runs" / "light" / "champion" / "model.json").is_file()


def test_a_run_that_was_moved_with_its_recipe_goes_on_when_the_old_place_is_gone(project: Path, tmp_path_factory) -> None:
    assert steelyard("run", "recipe.yaml", "--until", "clean/lines", cwd=project).returncode == 0
    moved = Path(shutil.move(project, tmp_path_factory.mktemp("other") / "place"))
    resumed = steelyard("resume", "runs/light", "--until", "eval/base/dev", cwd=moved)
    assert resumed.returncode == 0, resumed.stderr
    assert "clean/lines reused" in resumed.stderr and "eval/base/dev done" in resumed.stderr


def test_a_lost_ledger_is_written_anew_from_the_artifacts(undisturbed_copy: Path) -> None:
    run_dir = undisturbed_copy / "runs" / "light"
    before = models_of(run_dir)
    for path in run_dir.glob("ledger.db*"):
        path.unlink()
    resumed = steelyard("resume", "runs/light", cwd=undisturbed_copy)
    assert resumed.returncode == 0, resumed.stderr
    assert models_of(run_dir) == before
    status = json.loads(steelyard("status", "runs/light", "--json", cwd=undisturbed_copy).stdout)
    assert [v["decision"] for v in status["verdicts"]] == ["promote", "promote"] and len(status["promotions"]) == 2


def test_a_damaged_ledger_is_named(undisturbed_copy: Path) -> None:
    path = undisturbed_copy / "runs" / "light" / "ledger.db"
    path.write_bytes(b"not a database at all" * 500)
    resumed = steelyard("resume", "runs/light", cwd=undisturbed_copy)
    assert resumed.returncode == 5 and "ledger.db' is damaged" in resumed.stderr


def test_the_ledger_refuses_to_forget(undisturbed_copy: Path) -> None:
    with sqlite3.connect(undisturbed_copy / "runs" / "light" / "ledger.db") as connection:
        for table in ("steps", "metrics", "verdicts", "promotions"):
            for change in (f"UPDATE {table} SET time = ''", f"DELETE FROM {table}"):
                with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                    connection.execute(change)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_named_and_after_making_room_the_run_goes_on(
    small_disk: Path, tmp_path: Path, undisturbed: dict[str, dict[str, bytes]]
) -> None:
    make_project(tmp_path / "project", SLOW.replace("{name: b, kind: count,", "{name: b, kind: count, fault: fill,", 1))
    ran = steelyard("run", "recipe.yaml", "--run-dir", small_disk / "run", cwd=tmp_path / "project")
    assert ran.returncode == 5, ran.stderr
    # Which of the two writes hits the full disk first, the step's or the ledger's, is a race; either is named.
    assert f"cannot write '{small_disk}/run" in ran.stderr and "the disk is full (" in ran.stderr and " free)" in ran.stderr
    made = models_of(small_disk / "run")
    assert {step: made[step] for step in made if step != "first/b"} == {step: undisturbed[step] for step in made}


def test_a_disk_that_is_full_of_other_things_is_named_at_any_moment(small_disk: Path, tmp_path: Path) -> None:
    make_project(tmp_path / "project")
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    sizes = [free - 20_000, free - 150_000, free - 250_000]
    for size in sizes:
        ballast.write_bytes(bytes(size))
        ran = steelyard("run", "recipe.yaml", "--run-dir", small_disk / "run", cwd=tmp_path / "project")
        assert ran.returncode == 5, ran.stderr
        assert "the disk is full" in ran.stderr and "Traceback" not in ran.stderr
    ballast.unlink()
    ran = steelyard("resume", small_disk / "run", cwd=tmp_path / "project")
    assert ran.returncode == 0, ran.stderr


def test_a_read_only_folder_is_named(small_disk: Path, tmp_path: Path) -> None:
    make_project(tmp_path / "project")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ran = steelyard("run", "recipe.yaml", "--run-dir", small_disk / "run", cwd=tmp_path / "project")
    assert ran.returncode == 5
    assert f"cannot write '{small_disk}/run'" in ran.stderr and "make the folder writable" in ran.stderr


def test_a_run_that_became_read_only_can_still_be_looked_at(small_disk: Path, tmp_path: Path) -> None:
    make_project(tmp_path / "project")
    ran = steelyard("run", "recipe.yaml", "--run-dir", small_disk / "run", "--until", "eval/base/dev", cwd=tmp_path / "project")
    assert ran.returncode == 0, ran.stderr
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    resumed = steelyard("resume", small_disk / "run", cwd=tmp_path / "project")
    assert resumed.returncode == 5 and "cannot write" in resumed.stderr
    looked = steelyard("status", small_disk / "run", cwd=tmp_path / "project")
    assert looked.returncode == 0 and "eval/base/dev" in looked.stdout


def test_a_worker_told_to_end_from_outside_checkpoints_and_the_run_exits_75(project: Path) -> None:
    process = start_steelyard("run", "recipe.yaml", cwd=project)
    wait_for(lambda: (run_dir_of(project) / "logs" / "first" / "a.log").exists())
    os.kill(worker_of(process.pid) or 0, signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75 and "stopped by a signal to the worker" in stderr
    assert list((run_dir_of(project) / "checkpoints").glob("*/step-*"))
