"""A whole run of the real program, from the base model to the last gate: what it leaves, and that it can be had again bit for bit."""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures" / "small_lab"))
from small_lab import (
    PLAN,
    RUN,
    Reference,
    decisions,
    digests_of,
    key_of,
    last_rows,
    ledger_rows,
    leftovers,
    processes_of,
    steelyard,
)


def artifact(run_dir: Path, step: str) -> Path:
    return run_dir / "artifacts" / key_of(run_dir, step)


def test_it_goes_through_every_kind_of_step_and_says_each_verdict(reference: Reference) -> None:
    rows = ledger_rows(reference.run_dir)
    assert [row.step for row in rows if row.status == "done"] == list(PLAN)
    lines = reference.done.stdout.strip().splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["sft", "dpo", "rlvr"]
    assert lines[0].startswith("sft: promote: over 2 tasks and 80 items the challenger's average changed by +")
    assert all("round " in line and " of 3" in line for line in lines[:3])
    assert "dev gain" in lines[3] and "unseen gain" in lines[3]
    decided = decisions(reference.run_dir)
    assert [(line.split(": ")[0], line.split(": ")[1]) for line in lines[:3]] == decided
    promoted = all(decision == "promote" for _, decision in decided)
    assert reference.done.returncode == (0 if promoted else 1)
    assert not processes_of(reference.project)


def test_the_run_folder_is_as_documented(reference: Reference) -> None:
    run_dir = reference.run_dir
    for name in ("recipe.yaml", "resolved.json", "manifest.json", "ledger.db", "metrics.jsonl", "report.html"):
        assert (run_dir / name).stat().st_size > 0
    assert (run_dir / "recipe.yaml").read_text() == (reference.project / "recipe.yaml").read_text()
    assert len(list((run_dir / "artifacts").iterdir())) == len(PLAN)
    link = (run_dir / "champion").readlink()
    promoted = [name for name, decision in decisions(run_dir) if decision == "promote"]
    stage = {"sft": "sft/sft", "dpo": "dpo/dpo", "rlvr": "rlvr/grpo"}[promoted[-1]]
    assert str(link) == f"artifacts/{key_of(run_dir, stage)}"
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for step in ("sft/sft", "dpo/dpo", "rlvr/grpo"):
        steps = [row["optimiser_step"] for row in metrics if row["step"] == step]
        assert steps == sorted(steps) and len(steps) >= 8
        first = next(row for row in metrics if row["step"] == step)
        assert {"train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_s"} <= set(first)
    session = json.loads((run_dir / "manifest.json").read_text())["sessions"][0]
    assert session["hardware"]["worker_threads"] == 1
    assert {"torch", "data", "sft", "preference", "rl", "engines", "evals"} <= {plugin["name"] for plugin in session["plugins"]}
    assert not leftovers(run_dir) and not list((run_dir / "checkpoints").iterdir())


def test_the_champion_is_a_plain_model_folder_that_transformers_loads(reference: Reference) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = reference.run_dir / "champion"
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "upper abc"}], add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**ids).logits
    assert torch.isfinite(logits).all() and model.num_parameters() > 100_000
    assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl", ".pickle")]


def test_the_champion_brings_its_card_and_its_descent_with_clean_data(reference: Reference) -> None:
    card = (reference.run_dir / "champion" / "README.md").read_text()
    assert card.startswith("---\n") and "small" in card and "dpo" in card
    lineage = json.loads((reference.run_dir / "champion" / "lineage.json").read_text())
    last = lineage["step"].partition("/")[0]
    header = json.loads((artifact(reference.run_dir, f"eval/{last}/dev") / "eval.json").read_text())
    assert (header["weights_sha256"], header["template_hash"]) == (lineage["weights_sha256"], lineage["template_hash"])
    kinds = []
    while True:
        kinds.append(lineage["kind"])
        if lineage["data"]:
            certificate = lineage["data"]["certificate"]
            assert certificate["decision"] == "clean" and certificate["suites"] == {"small-dev": "1", "small-unseen": "1"}
            assert certificate["rule"]["min_words"] == 8
        if not lineage["parents"]:
            break
        lineage = lineage["parents"]["model"]
    assert kinds[-1] == "import" and kinds[-2] == "sft"
    for step in ("clean/chats", "clean/prompts", "clean/dpo/pairs"):
        assert json.loads((artifact(reference.run_dir, step) / "certificate.json").read_text())["decision"] == "clean"


def test_pairs_were_sampled_from_the_champion_of_their_time(reference: Reference) -> None:
    from steelyard.rows import read_rows

    pairs = artifact(reference.run_dir, "data/dpo/pairs")
    inputs = json.loads((pairs / "manifest.json").read_text())["inputs"]
    assert inputs["model"] == key_of(reference.run_dir, "sft/sft")
    rows = list(read_rows(pairs))
    assert len(rows) == 64 and all(row["chosen"] != row["rejected"] for row in rows)


def test_every_reading_command_gives_json(reference: Reference) -> None:
    project = reference.project
    status = json.loads(steelyard("status", RUN, "--json", cwd=project).stdout)
    assert status["holder"] is None and [step["step"] for step in status["steps"]] == list(PLAN)
    assert {step["status"] for step in status["steps"]} == {"done"} and status["failures"] == []
    lineage = json.loads(steelyard("lineage", RUN, "--json", cwd=project).stdout)
    assert lineage["key"] == (reference.run_dir / "champion").readlink().name
    report = json.loads(steelyard("report", RUN, "-o", "again.html", "--json", cwd=project).stdout)
    assert report and (project / "again.html").stat().st_size > 10_000
    planned = json.loads(steelyard("plan", "recipe.yaml", "--json", cwd=project).stdout)
    assert [step["id"] for step in planned["steps"]] == list(PLAN)


def test_the_report_shows_verdicts_and_needs_no_network(reference: Reference) -> None:
    page = html.unescape((reference.run_dir / "report.html").read_text())
    for line in reference.done.stdout.strip().splitlines()[:3]:
        words = line.split(": ", 1)[1].split(" (")[0]
        assert words in page
    assert not re.search(r"(?:src|href)=[\"']https?://", page)


def test_run_again_it_reuses_every_artifact_and_starts_no_worker(finished_project: Path, reference: Reference) -> None:
    again = steelyard("run", "recipe.yaml", cwd=finished_project)
    assert again.returncode == reference.done.returncode and again.stdout == reference.done.stdout
    assert again.stderr.count(" reused") == len(PLAN) and " done in " not in again.stderr
    assert digests_of(finished_project / RUN) == reference.digests


def test_a_moved_run_goes_on_where_it_was(finished_project: Path, reference: Reference) -> None:
    run_dir = finished_project / RUN
    for step in ("rlvr/grpo", "eval/rlvr/dev"):
        shutil.rmtree(artifact(run_dir, step))
    elsewhere = finished_project.parent / "elsewhere"
    run_dir.rename(elsewhere)
    resumed = steelyard("resume", elsewhere, cwd=finished_project)
    assert resumed.returncode == reference.done.returncode, resumed.stderr
    assert "rlvr/grpo done in" in resumed.stderr and "dpo/dpo reused" in resumed.stderr
    assert digests_of(elsewhere) == reference.digests


def test_until_stops_and_the_same_seed_in_another_folder_gives_the_same_bits(small_project: Path, reference: Reference) -> None:
    begun = steelyard("run", "recipe.yaml", "--until", "sft/sft", "--run-dir", "other/place", cwd=small_project)
    run_dir = small_project / "other" / "place"
    assert begun.returncode == 0 and "stopped behind 'sft/sft', as asked" in begun.stderr
    assert list(last_rows(run_dir)) == list(PLAN[: PLAN.index("sft/sft") + 1])
    finished = steelyard("run", "recipe.yaml", "--run-dir", "other/place", cwd=small_project)
    assert finished.returncode == reference.done.returncode, finished.stderr
    assert finished.stdout == reference.done.stdout
    assert digests_of(run_dir) == reference.digests


def test_another_seed_gives_other_weights(small_project: Path, reference: Reference) -> None:
    done = steelyard("run", "recipe.yaml", "seed=4", "stages.sft.max_steps=3", "--until", "sft/sft", cwd=small_project)
    assert done.returncode == 0, done.stderr
    mine, theirs = digests_of(small_project / RUN), reference.digests
    weights = "model.safetensors"
    assert mine["base"][weights] == theirs["base"][weights] and mine["sft/sft"][weights] != theirs["sft/sft"][weights]
    assert mine["data/chats"]["rows.parquet"] != theirs["data/chats"]["rows.parquet"]


def test_an_evaluation_by_hand_scores_as_the_run_did(reference: Reference, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    done = steelyard("eval", RUN, "--suite", "dev.yaml", "--out", out, "--json", cwd=reference.project)
    assert done.returncode == 0, done.stderr
    champion = decisions(reference.run_dir)
    last = [name for name, decision in champion if decision == "promote"][-1]
    theirs = artifact(reference.run_dir, f"eval/{last}/dev")
    assert (out / "items.jsonl").read_text() == (theirs / "items.jsonl").read_text()
    tasks = json.loads(done.stdout)["tasks"]
    header = json.loads((theirs / "eval.json").read_text())
    assert {name: (task["hash"], task["score"]) for name, task in tasks.items()} == {
        name: (task["hash"], task["score"]) for name, task in header["tasks"].items()
    }


@pytest.mark.parametrize(("round_name", "before"), [("sft", "base"), ("dpo", "sft")])
def test_the_gate_by_hand_decides_as_the_run_did(round_name: str, before: str, reference: Reference, tmp_path: Path) -> None:
    folder = artifact(reference.run_dir, f"gate/{round_name}")
    verdict = json.loads((folder / "verdict.json").read_text())
    policy = tmp_path / "policy.json"
    number = ["sft", "dpo", "rlvr"].index(round_name) + 1
    policy.write_text(json.dumps({"guards": [], "rounds": 3, "round": number}))
    sides = [artifact(reference.run_dir, f"eval/{name}/dev") for name in (before, round_name)]
    done = steelyard("gate", *sides, "--policy", policy, "--json", cwd=reference.project)
    mine = json.loads(done.stdout)
    assert mine["decision"] == verdict["decision"] and mine["average"] == verdict["average"]
    assert done.returncode == (0 if verdict["decision"] == "promote" else 1)
