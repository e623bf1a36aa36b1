"""Flipped bits, torn files, folders that cannot be written and full disks: named, nothing committed lost, nothing torn loaded."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures" / "small_lab"))
from small_lab import (
    PLAN,
    RUN,
    Reference,
    digests_of,
    forget,
    key_of,
    last_rows,
    ledger_rows,
    leftovers,
    said,
    start_steelyard,
    steelyard,
    wait_for,
    wait_until_in,
)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


Damage = Callable[[Path], None]


@pytest.mark.parametrize(
    ("step", "file", "damage", "said_of_it"),
    [
        ("dpo/dpo", "model.safetensors", flip_a_bit, "does not have the sha256 its manifest says"),
        ("data/dpo/pairs", "rows.parquet", cut_short, " bytes where its manifest says "),
        ("eval/rlvr/dev", "items.jsonl", flip_a_bit, "does not have the sha256 its manifest says"),
    ],
    ids=["weights", "rows", "scores"],
)
def test_a_damaged_artifact_is_named_set_aside_and_made_again_as_it_was(
    step: str, file: str, damage: Damage, said_of_it: str, finished_project: Path, reference: Reference
) -> None:
    run_dir = finished_project / RUN
    key = key_of(run_dir, step)
    damage(run_dir / "artifacts" / key / file)
    resumed = steelyard("resume", RUN, cwd=finished_project)
    assert resumed.returncode == reference.done.returncode, resumed.stderr
    assert f"{step}: '{RUN}/artifacts/{key}/{file}'" in resumed.stderr and said_of_it in resumed.stderr
    assert f"(now {key}.damaged)" in resumed.stderr and (run_dir / "artifacts" / f"{key}.damaged" / file).is_file()
    assert f"{step} done in" in resumed.stderr and resumed.stderr.count(" done in ") == 1
    assert digests_of(run_dir) == reference.digests


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short])
def test_a_damaged_champion_is_not_evaluated_by_hand(damage: Damage, finished_project: Path) -> None:
    damage(finished_project / RUN / "champion" / "model.safetensors")
    done = steelyard("eval", RUN, "--suite", "dev.yaml", cwd=finished_project)
    assert done.returncode == 5 and done.stdout == ""
    assert "model.safetensors'" in done.stderr and "Traceback" not in done.stderr


def test_a_gate_by_hand_does_not_weigh_a_torn_evaluation(finished_project: Path) -> None:
    run_dir = finished_project / RUN
    sides = [run_dir / "artifacts" / key_of(run_dir, f"eval/{name}/dev") for name in ("base", "sft")]
    cut_short(sides[1] / "items.jsonl")
    done = steelyard("gate", *sides, cwd=finished_project)
    assert done.returncode == 5 and "items.jsonl" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("which", "damage"), [("the newest", flip_a_bit), ("all", cut_short)])
def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(
    which: str, damage: Damage, finished_project: Path, reference: Reference
) -> None:
    run_dir = finished_project / RUN
    key = key_of(run_dir, "rlvr/grpo")
    forget(run_dir, ["rlvr/grpo", "eval/rlvr/dev"])
    process = start_steelyard("resume", RUN, cwd=finished_project)
    wait_until_in(process, run_dir, "rlvr/grpo")
    wait_for(lambda: len(list((run_dir / "checkpoints" / key).glob("step-*/manifest.json"))) == 2)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert process.returncode == 75, said(finished_project)
    written = sorted((run_dir / "checkpoints" / key).glob("step-*"))
    assert len(written) == 2
    for folder in written if which == "all" else written[-1:]:
        damage(folder / "optimizer.safetensors")
    resumed = steelyard("resume", RUN, cwd=finished_project)
    assert resumed.returncode == reference.done.returncode, resumed.stderr
    told = f"resumed from the checkpoint of optimiser step {int(written[0].name.removeprefix('step-'))}"
    assert (told in resumed.stderr) == (which == "the newest"), resumed.stderr
    assert digests_of(run_dir) == reference.digests


def test_a_read_only_run_folder_is_named_and_can_be_read(finished_project: Path, mounted: Path, reference: Reference) -> None:
    run_dir = mounted / "run"
    shutil.copytree(finished_project / RUN, run_dir, symlinks=True)
    forget(run_dir, ["eval/champion/unseen"])
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    refused = steelyard("resume", run_dir, cwd=finished_project)
    assert refused.returncode == 5 and "Traceback" not in refused.stderr
    assert f"cannot write '{run_dir}" in refused.stderr and "make the folder writable and resume the run" in refused.stderr
    looked = steelyard("status", run_dir, cwd=finished_project)
    assert looked.returncode == 0 and "champion: " in looked.stdout
    subprocess.run(["mount", "-o", "remount,rw", str(mounted)], check=True)
    resumed = steelyard("resume", run_dir, cwd=finished_project)
    assert resumed.returncode == reference.done.returncode, resumed.stderr
    assert digests_of(run_dir) == reference.digests


def test_a_full_disk_is_named_keeps_what_was_done_and_after_making_room_the_run_ends_the_same(
    small_project: Path, mounted: Path, reference: Reference
) -> None:
    run_dir, ballast = mounted / "run", mounted / "ballast"
    failed = set()
    for number, left in enumerate((1_000_000, 6_000_000, 2_500_000)):
        ballast.unlink(missing_ok=True)
        ballast.write_bytes(bytes(shutil.disk_usage(mounted).free - left))
        tried = steelyard(*(("resume", run_dir) if number else ("run", "recipe.yaml", "--run-dir", run_dir)), cwd=small_project)
        assert tried.returncode == 5, tried.stderr
        failed.add(ledger_rows(run_dir)[-1].step)
        last = tried.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ") and "the disk is full (" in last and "make room and resume the run" in last
        assert "Traceback" not in tried.stderr
        made = digests_of(run_dir)
        assert made == {step: reference.digests[step] for step in made}
        assert not leftovers(run_dir / "artifacts"), "what could not be finished gives its room back"
    assert len(failed) >= 2 and last_rows(run_dir)["base"].status == "done", failed
    ballast.unlink()
    resumed = steelyard("resume", run_dir, cwd=small_project)
    assert resumed.returncode == reference.done.returncode, resumed.stderr
    assert digests_of(run_dir) == reference.digests
    assert list(last_rows(run_dir)) == list(PLAN)
