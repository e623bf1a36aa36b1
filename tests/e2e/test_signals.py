"""SIGTERM and Ctrl-C in every long step: a checkpoint, exit 75 and the words to go on with; and what is resumed ends in the same bits."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures" / "small_lab"))
from small_lab import (
    RUN,
    Reference,
    digests_of,
    key_of,
    last_rows,
    leftovers,
    processes_of,
    said,
    start_steelyard,
    steelyard,
    wait_for,
    wait_until_in,
)

TRAINING = ("sft/sft", "dpo/dpo", "rlvr/grpo")
SIGNALS = (
    ("sft/sft", signal.SIGTERM), ("data/dpo/pairs", signal.SIGINT), ("dpo/dpo", signal.SIGINT), ("rlvr/grpo", signal.SIGTERM),
    ("eval/rlvr/dev", signal.SIGINT),
)  # fmt: skip


def begin(project: Path) -> subprocess.Popen[str]:
    begun = (project / RUN / "resolved.json").exists()
    return start_steelyard(*(("resume", RUN) if begun else ("run", "recipe.yaml")), cwd=project)


def stop(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """SIGINT as a terminal sends it, to the whole process group; SIGTERM to the one process."""
    if number is signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.wait(timeout=60)


def checkpoints(run_dir: Path, key: str) -> list[Path]:
    return sorted((run_dir / "checkpoints" / key).glob("step-*/manifest.json"))


def reports(run_dir: Path, step: str) -> int:
    """How many optimiser steps ``step`` has reported."""
    path = run_dir / "metrics.jsonl"
    return path.read_text().count(f'"step": "{step}"') if path.exists() else 0


def test_stopped_in_every_long_step_it_exits_with_75_and_resumes_to_the_same_bits(small_project: Path, reference: Reference) -> None:
    run_dir = small_project / RUN
    for step, number in SIGNALS:
        process = begin(small_project)
        reached = wait_until_in(process, run_dir, step)
        if step in TRAINING:
            assert reached == step
            wait_for(lambda step=step: reports(run_dir, step) >= 2)
        stop(process, number)
        words = said(small_project)
        assert process.returncode == 75, words
        told = re.search(rf"error: stopped by {number.name} (in|before) '(\S+)'; go on with `steelyard resume {RUN}`$", words.strip())
        assert told is not None, words
        if step in TRAINING:
            row = last_rows(run_dir)[step]
            assert told.groups() == ("in", step) and row.status == "interrupted"
            assert len(checkpoints(run_dir, row.key)) in (1, 2)
        assert "Traceback" not in words and not processes_of(small_project) and not leftovers(run_dir / "artifacts")
    resumed = steelyard("resume", RUN, cwd=small_project)
    assert resumed.returncode == reference.done.returncode, resumed.stderr
    for step in TRAINING:
        log = (run_dir / "logs" / f"{step}.log").read_text()
        assert "resumed from the checkpoint of optimiser step " in log
    assert digests_of(run_dir) == reference.digests
    assert not list((run_dir / "checkpoints").iterdir())


@pytest.fixture
def in_grpo(finished_project: Path) -> Path:
    """A project whose run has all but its last round."""
    for step in ("rlvr/grpo", "eval/rlvr/dev"):
        shutil.rmtree(finished_project / RUN / "artifacts" / key_of(finished_project / RUN, step))
    return finished_project


def test_a_second_process_is_refused_and_told_who_holds_the_run_and_a_second_signal_ends_it_at_once(
    in_grpo: Path, reference: Reference
) -> None:
    run_dir = in_grpo / RUN
    process = begin(in_grpo)
    try:
        wait_until_in(process, run_dir, "rlvr/grpo")
        for command in (("run", "recipe.yaml"), ("resume", RUN)):
            second = steelyard(*command, cwd=in_grpo)
            assert second.returncode == 2
            assert f"error: run '{RUN}' is held by process {process.pid} on " in second.stderr
        looked = steelyard("status", RUN, cwd=in_grpo)
        assert f"held by process {process.pid}" in looked.stdout
        os.kill(process.pid, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGCONT)
        process.wait(timeout=30)
        assert process.returncode == 75 and "killed at the second SIG" in said(in_grpo)
    finally:
        process.kill()
        process.wait()
    assert not processes_of(in_grpo)
    resumed = steelyard("resume", RUN, cwd=in_grpo)
    assert resumed.returncode == reference.done.returncode, resumed.stderr
    assert digests_of(run_dir) == reference.digests
