"""A soup of two sibling runs and a merge of stages, by the real program on a real model: stopped between, resumed, and the same again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from steelyard.run import open_run
from steelyard_torch.models import load_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures" / "small_lab"))
from small_lab import digests_of, ledger_rows, make_small_project, steelyard

pytestmark = pytest.mark.slow

HEAD = """\
steelyard: 1
name: {name}
seed: {seed}
base: {{model: base}}
data:
  chats:
    kind: mix
    sources: [{{kind: tasks, tasks: [upper, maximum], form: chat, rows: 64, seed: 1}}]
rounds:
  - name: first
    stages:
"""
TRAINED = "      - {{name: {stage}, kind: sft, data: chats, batch_size: 16, lr: 1.0e-3, max_length: 64, init: base}}\n"
MERGED = """\
      - {name: soup, kind: merge, models: {one: "run:runs/one", two: "run:runs/two#sft", own: previous}, weights: {one: 1, two: 1, own: 2}}
      - {name: ties, kind: merge, init: base, method: ties, density: 0.5, models: {one: "run:runs/one", sft: "stage:sft"}}
"""


def write(folder: Path, name: str, seed: int, stages: str) -> None:
    (folder / f"{name}.yaml").write_text(HEAD.format(name=name, seed=seed) + stages)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_small_project(tmp_path_factory.mktemp("merging"))
    for seed, name in enumerate(("one", "two")):
        write(folder, name, seed, TRAINED.format(stage="sft"))
        result = steelyard("run", f"{name}.yaml", cwd=folder)
        assert result.returncode == 0, result.stderr
    write(folder, "soup", 2, TRAINED.format(stage="sft") + MERGED)
    # Stopped behind the first merge, and gone on with.
    early = steelyard("run", "soup.yaml", "--until", "first/soup", cwd=folder)
    assert early.returncode == 0, early.stderr
    late = steelyard("resume", "runs/soup", cwd=folder)
    assert late.returncode == 0, late.stderr
    return folder


def model(folder: Path, run: str, step: str) -> Path:
    with open_run(folder / "runs" / run) as view:
        found = view.artifact(step)
    assert found is not None
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stage.json").read_text())
    return found


def test_a_soup_of_sibling_runs_is_their_weighted_average(project: Path) -> None:
    one, two, own = (weights(model(project, run, "first/sft")) for run in ("one", "two", "soup"))
    assert any(not torch.equal(one[name], two[name]) for name in one)
    soup = weights(model(project, "soup", "first/soup"))
    for name, tensor in soup.items():
        torch.testing.assert_close(tensor, 0.25 * one[name] + 0.25 * two[name] + 0.5 * own[name], atol=1e-7, rtol=1e-6)
    load_model(model(project, "soup", "first/soup"))


def test_the_siblings_are_told_with_their_data_in_the_lineage(project: Path) -> None:
    parents = json.loads((model(project, "soup", "first/soup") / "lineage.json").read_text())["parents"]
    for role, run, ref in (("model:one", "one", "run:runs/one"), ("model:two", "two", "run:runs/two#sft")):
        own = json.loads((model(project, run, "first/sft") / "lineage.json").read_text())
        assert parents[role]["outside"] == ref and parents[role]["data"] == own["data"]
        assert parents[role]["weights_sha256"] == own["weights_sha256"]


def test_a_merge_of_stages_reports_how_their_changes_meet(project: Path) -> None:
    told = facts(model(project, "soup", "first/ties"))
    assert told["facts"]["method"] == "ties" and told["facts"]["weights"] == {"model 'one'": 1.0, "model 'sft'": 1.0}
    # Each keeps half of its changes, and of those that both keep few pull both ways: both runs learn the same.
    assert 0.5 < told["metrics"]["merge/changed"] < 0.9 and 0 < told["metrics"]["merge/sign_conflicts"] < 0.5
    assert (project / "runs/soup/champion").resolve() == model(project, "soup", "first/ties")


def test_a_resume_took_the_soup_as_it_was_and_another_run_makes_the_same(project: Path) -> None:
    rows = [(row.step, row.status) for row in ledger_rows(project / "runs/soup") if row.step == "first/soup"]
    assert rows == [("first/soup", "started"), ("first/soup", "done")]
    again = steelyard("run", "soup.yaml", "--run-dir", "runs/again", cwd=project)
    assert again.returncode == 0, again.stderr
    assert digests_of(project / "runs/again") == digests_of(project / "runs/soup")


def test_a_recipe_whose_weights_and_models_do_not_agree_is_told_by_its_line(project: Path) -> None:
    write(project, "wrong", 2, TRAINED.format(stage="sft") + MERGED.replace("own: 2}", "won: 2}"))
    result = steelyard("plan", "wrong.yaml", cwd=project)
    assert result.returncode == 2
    assert "wrong.yaml:13: a stage of kind 'merge': 'weights' names 'won', and 'models' does not (did you mean 'two'?)" in result.stderr
