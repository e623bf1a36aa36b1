"""Stages with further models, of the run, of another run and of a folder; and reward models, which nothing evaluates or promotes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from steelyard.run import open_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures" / "light_lab"))
from light_lab import make_project, steelyard

RECIPE = """\
steelyard: 1
name: {name}
seed: 7
base: {{model: base}}
engine: {{kind: light}}
suites: {{dev: dev.yaml}}
data:
  lines:
    kind: join
    sources: [{{kind: lines, path: lines.txt}}]
rounds:
  - name: first
    stages:
{stages}
"""
SIBLING = """\
      - {name: rm, kind: judge, data: lines}
      - {name: a, kind: count, data: lines, rate: 0.015}
"""
SOUP = """\
      - {name: rm, kind: judge, data: lines}
      - name: b
        kind: count
        data: lines
        verifiers: {own: {kind: liked, model: "stage:rm"}, other: {kind: liked, model: "run:runs/sibling#rm"}}
      - {name: soup, kind: blend, models: {own: previous, other: "run:runs/sibling#first/a", best: "run:runs/sibling", plain: ./folder}}
      - {name: rm2, kind: judge, data: lines, models: {older: "run:runs/sibling#rm"}}
"""


def write(folder: Path, name: str, stages: str) -> None:
    (folder / f"{name}.yaml").write_text(RECIPE.format(name=name, stages=stages))


def run(folder: Path, name: str, **extra: str) -> Any:
    return steelyard("run", f"{name}.yaml", cwd=folder, **extra)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sibling run, and a run that blends its own model, the sibling's and a plain folder's."""
    folder = tmp_path_factory.mktemp("soup")
    make_project(folder)
    (folder / "folder").mkdir()
    (folder / "folder" / "model.json").write_text(json.dumps({"skill": 0.3, "chain": "of its own"}))
    write(folder, "sibling", SIBLING)
    write(folder, "soup", SOUP)
    for name in ("sibling", "soup"):
        result = run(folder, name)
        assert result.returncode == 0, result.stderr
    return folder


def model(folder: Path, name: str, step: str) -> Path:
    with open_run(folder / "runs" / name) as view:
        found = view.artifact(step)
    assert found is not None
    return found


def skill(folder: Path) -> float:
    return float(json.loads((folder / "model.json").read_text())["skill"])


def test_a_stage_is_given_the_models_of_every_kind_of_reference(done: Path) -> None:
    soup = model(done, "soup", "first/soup")
    own, other = skill(model(done, "soup", "first/b")), skill(model(done, "sibling", "first/a"))
    assert own != other
    assert skill(soup) == pytest.approx((own + 2 * other + 0.3) / 4)
    assert json.loads((soup / "stage.json").read_text())["facts"]["roles"] == ["model:best", "model:other", "model:own", "model:plain"]


def test_the_last_policy_is_evaluated_and_promoted_and_not_the_reward_model_behind_it(done: Path) -> None:
    assert (done / "runs/soup/champion").resolve() == model(done, "soup", "first/soup")
    with open_run(done / "runs/soup") as view:
        assert {row.step for row in view.steps() if row.kind == "evaluate"} == {"eval/base/dev", "eval/first/dev"}
        assert [row.step for row in view.promotions()] == ["first/soup"]
    assert (model(done, "soup", "first/rm2") / "judge.json").read_text() == (model(done, "soup", "first/soup") / "model.json").read_text()
    assert json.loads((model(done, "soup", "first/rm2") / "lineage.json").read_text())["makes"] == "reward_model"


def test_the_lineage_tells_every_model_and_a_common_past_once(done: Path) -> None:
    lineage = json.loads((model(done, "soup", "first/soup") / "lineage.json").read_text())
    parents = lineage["parents"]
    assert set(parents) == {"model", "model:own", "model:other", "model:best", "model:plain"}
    best, other = parents["model:best"], parents["model:other"]
    assert best["outside"] == "run:runs/sibling" and best["step"] == "first/a" and best["data"]["certificate"] is not None
    # `best` and `other` are one model; it is told by the first in order of roles.
    assert other["told"] and other["key"] == best["key"] and other["parents"] == {} and other["outside"] == "run:runs/sibling#first/a"
    assert best["parents"]["model"]["told"], "both runs have the base"
    assert parents["model:own"]["told"] and parents["model:own"]["key"] == parents["model"]["key"]
    plain = parents["model:plain"]
    assert (plain["outside"], plain["step"], plain["data"], plain["parents"]) == ("./folder", "outside", None, {})
    shown = steelyard("lineage", "runs/soup", cwd=done).stdout
    assert "is run:runs/sibling" in shown and "told above" in shown


def test_a_verifier_may_be_a_reward_model_of_the_run_or_of_another(done: Path) -> None:
    stage = model(done, "soup", "first/b")
    manifest = json.loads((stage / "manifest.json").read_text())
    assert manifest["inputs"]["model:stage:rm"] == model(done, "soup", "first/rm").name
    parents = json.loads((stage / "lineage.json").read_text())["parents"]
    assert parents["model:stage:rm"]["makes"] == "reward_model" and parents["model:run:runs/sibling#rm"]["outside"] == "run:runs/sibling#rm"


def test_the_card_and_the_report_name_them(done: Path) -> None:
    card = (model(done, "soup", "first/soup") / "README.md").read_text()
    assert "with `best` `run:runs/sibling`, `other` `run:runs/sibling#first/a`, `own` `first/b`, `plain` `./folder`" in card
    card = (model(done, "soup", "first/rm2") / "README.md").read_text()
    assert card.count("reward model") == 1 and "pipeline_tag: text-classification" in card
    assert "run:runs/sibling" in (done / "runs/soup/report.html").read_text()


def test_the_plan_shows_where_they_come_from(done: Path) -> None:
    told = steelyard("plan", "soup.yaml", cwd=done).stdout
    line = next(line for line in told.splitlines() if line.startswith("first/soup"))
    assert "there" in line and "own first/b" in line and "other run:runs/sibling#first/a" in line and "plain ./folder" in line


def test_a_resume_takes_what_is_there_and_a_changed_folder_is_taken_anew(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(done, folder, symlinks=True)
    again = run(folder, "soup")
    assert again.returncode == 0 and "[" not in again.stdout
    with open_run(folder / "runs/soup") as view:
        assert [row.status for row in view.steps() if row.step == "first/soup"] == ["started", "done"]
    (folder / "folder" / "model.json").write_text(json.dumps({"skill": 0.5, "chain": "of its own"}))
    assert run(folder, "soup").returncode == 0
    with open_run(folder / "runs/soup") as view:
        rows = {step: [row.status for row in view.steps() if row.step == step] for step in ("first/b", "first/soup")}
    assert rows == {"first/b": ["started", "done"], "first/soup": ["started", "done", "started", "done"]}
    assert skill(model(folder, "soup", "first/soup")) == pytest.approx(skill(model(done, "soup", "first/soup")) + 0.2 / 4)


def test_a_damaged_model_of_another_run_stops_the_step_and_says_whose_it_is(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(done, folder, symlinks=True)
    shutil.rmtree(folder / "runs/soup")
    file = model(folder, "sibling", "first/a") / "model.json"
    file.write_bytes(file.read_bytes().replace(b"skill", b"skall"))
    result = run(folder, "soup")
    assert result.returncode == 5
    assert "model 'run:runs/sibling#first/a'" in result.stderr or "model 'run:runs/sibling'" in result.stderr
    assert "does not have the sha256 its manifest says" in result.stderr and "resume its own run" in result.stderr


def test_what_another_run_does_not_have_is_told_before_anything_runs(done: Path) -> None:
    write(done, "wrong", SOUP.replace("sibling#first/a", "sibling#first/aa"))
    result = run(done, "wrong")
    assert result.returncode == 2
    assert "model 'run:runs/sibling#first/aa': no model of a step 'first/aa' in that run (did you mean 'first/a'?)" in result.stderr
    assert not (done / "runs/wrong").exists()


def test_a_model_of_a_run_without_a_sandbox_is_not_promoted_by_way_of_a_blend(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(done, folder, symlinks=True)
    shutil.rmtree(folder / "runs/soup")
    marked = folder / "folder" / "lineage.json"
    unsafe = json.loads((model(folder, "sibling", "first/a") / "lineage.json").read_text()) | {"sandbox": "unsafe-local", "parents": {}}
    marked.write_text(json.dumps(unsafe))
    result = run(folder, "soup")
    assert result.returncode == 1 and "'first/a' ran model-written code with --allow-unsafe-local" in result.stdout
