"""The launcher `torchrun` under the real command: what runs where, and how it ends when a rank, the agent or the conductor does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures" / "light_lab"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures" / "small_lab"))
import light_lab
import small_lab

RECIPE = """\
steelyard: 1
name: light
base: {{model: base}}
engine: {{kind: light}}
launcher: {{kind: torchrun, processes: 2, threads: 1}}
rounds:
  - name: only
    stages:
      - {{name: a, kind: together{options}}}
"""
RUN = "runs/light"


def project(folder: Path, **options: Any) -> Path:
    written = "".join(f", {name}: {value}" for name, value in options.items())
    light_lab.make_project(folder, RECIPE.format(options=written))
    (folder / "tmp").mkdir()
    return folder


def steelyard(*arguments: object, cwd: Path) -> Any:
    return light_lab.steelyard(*arguments, cwd=cwd, TMPDIR=str(cwd / "tmp"))


def ranks_of(folder: Path) -> list[dict[str, Any]]:
    """What the ranks that met said of themselves."""
    return [json.loads(path.read_text()) for path in sorted((folder / RUN / "cache").glob("met-*/*.json"))]


def both_have_met(folder: Path) -> list[dict[str, Any]] | None:
    found = ranks_of(folder)
    return found if len(found) == 2 else None


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def leftovers(folder: Path) -> list[str]:
    """Unfinished artifacts of the run, and what the launcher keeps outside of it."""
    return [
        path.name for path in [*(folder / RUN).rglob("*"), *(folder / "tmp").iterdir()] if ".tmp" in path.name or path.parent.name == "tmp"
    ]


def test_a_shared_stage_runs_on_every_rank_and_all_else_on_the_first(tmp_path: Path) -> None:
    folder = project(tmp_path)
    done = steelyard("run", "recipe.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    run_dir = folder / RUN
    [stage] = [json.loads(path.read_text()) for path in run_dir.glob("artifacts/*/stage.json") if "together" in path.read_text()]
    ranks = stage["facts"]["ranks"]
    assert [(one["rank"], one["size"], one["local"], one["threads"]) for one in ranks] == [(0, 2, 0, "1"), (1, 2, 1, "1")]
    assert len({one["meeting"] for one in ranks}) == 1
    assert [one["torchs"] for one in ranks] == [[], []], "libraries and children must not take themselves for ranks"
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/loss"] for row in metrics] == [0.0], "rank 0 speaks for all"
    assert done.stderr.count("together") == 1
    assert "here is rank 0" in (run_dir / "logs/only/a.log").read_text()
    assert "here is rank 1" in (run_dir / "logs/only/a.rank1.log").read_text()
    assert not (run_dir / "logs/base.rank1.log").exists()
    assert not leftovers(folder) and not any(is_alive(one["pid"]) for one in ranks)


def test_a_run_goes_on_with_another_launcher(tmp_path: Path) -> None:
    folder = project(tmp_path)
    assert steelyard("run", "recipe.yaml", "--until", "base", cwd=folder).returncode == 0
    other = steelyard("run", "recipe.yaml", "launcher={kind: local}", "--until", "base", cwd=folder)
    assert other.returncode == 0, other.stderr
    assert [path.name for path in (folder / "runs").iterdir()] == ["light"]
    assert json.loads((folder / RUN / "resolved.json").read_text())["launcher"]["kind"] == "local", "what a resume takes"
    refused = steelyard("run", "recipe.yaml", "seed=9", "launcher={kind: local}", "--run-dir", RUN, cwd=folder)
    assert refused.returncode == 2 and "another recipe (seed is" in refused.stderr


@pytest.mark.slow
def test_no_name_needs_to_be_resolved(tmp_path: Path) -> None:
    """A network of its own with nothing in it but the loopback device, and no word on what `localhost` is."""
    folder = project(tmp_path)
    (folder / "hosts").write_text("127.0.0.9 somewhere\n")
    command = f"ip link set lo up && hostname nowhere-at-all && mount --bind {folder}/hosts /etc/hosts"
    alone = ["unshare", "--net", "--uts", "--mount", "sh", "-ec"]
    try:
        subprocess.run([*alone, command], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network of one's own can be made here: {error}")
    run = f"{command} && exec timeout -s KILL 100 {sys.executable} -m steelyard run recipe.yaml"
    done = subprocess.run([*alone, run], cwd=folder, env=light_lab.environment(TMPDIR=str(folder / "tmp")), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


FAULTS = [
    pytest.param("kill", 1, "rank 1 of 2 was killed by SIGKILL", 5, id="rank 1 killed"),
    pytest.param("raise", 1, "rank 1 of 2: ValueError: the parts do not fit", 3, id="an error on rank 1"),
    pytest.param("kill", 0, "rank 0 of 2 was killed by SIGKILL", 5, id="rank 0 killed", marks=pytest.mark.slow),
    pytest.param("exit", 1, "rank 1 of 2 ended with exit code 9 before the step was done", 5, id="rank 1 gone", marks=pytest.mark.slow),
    pytest.param("refuse", 1, "rank 1 of 2: row 3 has no text", 5, id="rank 1 refuses", marks=pytest.mark.slow),
    pytest.param("refuse", 0, "step 'only/a' failed: row 3 has no text", 5, id="rank 0 refuses", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("fault", "rank", "words", "code"), FAULTS)
def test_what_goes_wrong_on_one_rank_ends_the_step_though_the_others_wait(
    tmp_path: Path, fault: str, rank: int, words: str, code: int
) -> None:
    folder = project(tmp_path, fault=fault, rank=rank)
    started = time.monotonic()
    done = steelyard("run", "recipe.yaml", cwd=folder)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    if fault in ("kill", "exit"):
        assert f"here is rank {rank}" in done.stderr, "the end of that rank's log"
    if rank == 1 and fault != "refuse":
        assert "a.rank1.log" in done.stderr
    assert time.monotonic() - started < 60
    # Of a rank 0 that was killed the unfinished artifact is there, until the run is resumed.
    assert len(leftovers(folder)) <= 1
    assert not any(is_alive(one["pid"]) for one in ranks_of(folder))


@pytest.mark.slow
def test_a_failed_step_is_run_again_by_resume(tmp_path: Path) -> None:
    folder = project(tmp_path, fault="kill", once="true")
    assert steelyard("run", "recipe.yaml", cwd=folder).returncode == 5
    again = steelyard("resume", RUN, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert not leftovers(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_stops_all_ranks_and_leaves_none(tmp_path: Path, number: signal.Signals) -> None:
    folder = project(tmp_path, pause=60)
    process = light_lab.start_steelyard("run", "recipe.yaml", cwd=folder, TMPDIR=str(folder / "tmp"))
    ranks = light_lab.wait_for(lambda: both_have_met(folder))
    if number is signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does it
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75, said
    assert "go on with `steelyard resume" in said
    assert not any(is_alive(one["pid"]) for one in ranks) and not leftovers(folder)


@pytest.mark.parametrize("victim", ["conductor", pytest.param("agent", marks=pytest.mark.slow)])
def test_no_rank_outlives_the_conductor_or_the_agent(tmp_path: Path, victim: str) -> None:
    folder = project(tmp_path, pause=60)
    process = light_lab.start_steelyard("run", "recipe.yaml", cwd=folder, TMPDIR=str(folder / "tmp"))
    ranks = light_lab.wait_for(lambda: both_have_met(folder))
    agent = psutil.Process(ranks[0]["pid"]).ppid()
    assert psutil.Process(agent).ppid() == process.pid
    os.kill(process.pid if victim == "conductor" else agent, signal.SIGKILL)
    light_lab.wait_for(lambda: not any(is_alive(pid) for pid in (agent, *(one["pid"] for one in ranks))), timeout=10)
    _, said = process.communicate(timeout=30)
    if victim == "agent":
        assert process.returncode == 5
        assert "of 2 was killed by SIGKILL" in said or "torchrun's agent was killed by SIGKILL" in said or "closed the channel" in said


def test_a_plan_says_what_is_shared(tmp_path: Path) -> None:
    folder = project(tmp_path)
    told = json.loads(steelyard("plan", "recipe.yaml", "--json", cwd=folder).stdout)
    assert told["launcher"] == {"kind": "torchrun", "processes": 2, "shared": ["only/a"]}
    assert "launcher torchrun: 2 processes share only/a" in steelyard("plan", "recipe.yaml", cwd=folder).stdout
    assert "processes share" not in steelyard("plan", "recipe.yaml", "launcher={kind: local}", cwd=folder).stdout


SMALL = """\
steelyard: 1
name: small
seed: 3
base: {model: base}
suites: {dev: dev.yaml}
decontaminate: {min_words: 8}
launcher: {kind: torchrun, processes: 2, threads: 1}
data:
  chats: {kind: mix, sources: [{kind: tasks, tasks: [upper, maximum], form: chat, rows: 600, verbose_share: 0.6, seed: 1}]}
rounds:
  - name: sft
    stages:
      - {name: sft, kind: sft, data: chats, epochs: 2, batch_size: 32, lr: 2.0e-3, max_length: 64, checkpoint_every: 3}
gate: {guards: [], on_reject: continue, on_inconclusive: keep_champion}
"""


def ranks_under(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if "steelyard.run.worker" in child.cmdline()[-2:]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rank_killed_in_training_costs_no_more_than_the_steps_behind_the_last_checkpoint(tmp_path: Path) -> None:
    whole, broken = (small_lab.make_small_project(tmp_path / name, SMALL) for name in ("whole", "broken"))
    done = small_lab.steelyard("run", "recipe.yaml", cwd=whole)
    assert done.returncode in (0, 1), done.stderr
    assert "sft: " in done.stdout, "it went through its gate"

    process = small_lab.start_steelyard("run", "recipe.yaml", cwd=broken)
    run_dir = broken / small_lab.RUN
    small_lab.wait_for(lambda: list(run_dir.glob("checkpoints/*/step-*/manifest.json")))
    victim = ranks_under(process.pid)[-1]
    victim.kill()
    assert process.wait(timeout=60) == 5
    assert "of 2 was killed by SIGKILL" in small_lab.said(broken)
    assert not small_lab.processes_of(broken)
    assert not [row for row in small_lab.ledger_rows(run_dir) if row.step == "sft/sft" and row.status == "done"]

    resumed = small_lab.steelyard("resume", small_lab.RUN, cwd=broken)
    assert resumed.returncode == done.returncode, resumed.stderr
    assert "resumed from the checkpoint of optimiser step" in resumed.stderr
    mine, theirs = (small_lab.digests_of(place)["sft/sft"]["model.safetensors"] for place in (run_dir, whole / small_lab.RUN))
    assert mine == theirs, "the same weights to the last bit"
    assert small_lab.decisions(run_dir) == small_lab.decisions(whole / small_lab.RUN)
    assert not small_lab.leftovers(run_dir) and not small_lab.processes_of(broken)
