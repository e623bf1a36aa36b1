"""``init``, ``recipes`` and ``suites``, run as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

GOOD = """\
steelyard: 1
name: small
base: {model: owner/model}
data:
  chats: {kind: mix, sources: [{kind: tasks, rows: 100}]}
rounds:
  - name: first
    stages:
      - {kind: sft, data: chats, lr: 1e-3}
"""


def steelyard(*arguments: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "steelyard", *arguments]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=timeout, check=False)


def test_the_recipe_that_init_writes_is_right_and_is_never_overwritten(tmp_path: Path) -> None:
    first = steelyard("init", "mine", cwd=tmp_path)
    assert (first.returncode, first.stdout) == (0, "mine/recipe.yaml\n")
    written = (tmp_path / "mine" / "recipe.yaml").read_text()
    shown = steelyard("recipes", "show", "mine/recipe.yaml", "--resolved", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["rounds"][0]["stages"][0]["kind"] == "sft"
    (tmp_path / "mine" / "recipe.yaml").write_text(written + "# changed\n")
    again = steelyard("init", "mine", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr == "error: 'mine/recipe.yaml' is there already: give another folder, as in `steelyard init my-project`\n"
    assert (tmp_path / "mine" / "recipe.yaml").read_text() == written + "# changed\n"


@pytest.mark.slow
def test_the_recipe_that_init_writes_runs_to_a_promotion(tmp_path: Path) -> None:
    steelyard("init", ".", cwd=tmp_path)
    done = steelyard("run", "recipe.yaml", "--json", cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "my-recipe" / "champion" / "model.safetensors").is_file()


def test_a_recipe_is_shown_as_written_and_as_meant(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(GOOD)
    assert steelyard("recipes", "show", "small.yaml", cwd=tmp_path).stdout == GOOD
    meant = json.loads(steelyard("recipes", "show", "small.yaml", "stages.sft.lr=2e-3", cwd=tmp_path).stdout)
    assert meant["rounds"][0]["stages"][0]["lr"] == 2e-3


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: small", "nmae: small", "error: small.yaml:2: unknown key 'nmae' in the recipe (did you mean 'name'?)\n"),
        ("lr: 1e-3", "lr: 1e-3x", "error: small.yaml:9: lr is '1e-3x', not a number\n"),
        ("name: small", "name: a\nname: b", "error: small.yaml:3: the key 'name' a second time (first in line 2): keep one of them\n"),
        ("kind: tasks, rows: 100", "kind: jsonl, path: no.jsonl", "error: small.yaml:5: no file or folder 'no.jsonl' in "),
        ("kind: sft", "kind: stf", "error: small.yaml:9: no stage named 'stf' (did you mean 'sft'?)\n"),
        ("kind: mix", "kind: mix, prompts: chats", "error: small.yaml:5: data entries go round in a circle: chats → chats\n"),
        ("data: chats,", "data: chat,", "error: small.yaml:9: no data entry 'chat' (did you mean 'chats'?)\n"),
        ("name: small", "name: small\nsuites: {dev: quickstart-dve}", "error: small.yaml:3: no suite named 'quickstart-dve' (did you mean"),
        ("lr: 1e-3", "lr: 1e-3, init: stage:later", "error: small.yaml:9: init is 'stage:later', but no earlier stage is named 'later'"),
        ("  chats:", "\tchats:", "error: small.yaml:5: a tab where YAML wants spaces: indent with spaces\n"),
        ("rounds:", "rounds: [", "error: small.yaml:7: not YAML: "),
    ],
)
def test_a_bad_recipe_is_one_line_with_file_and_line_and_exit_2(tmp_path: Path, old: str, new: str, said: str) -> None:
    (tmp_path / "small.yaml").write_text(GOOD.replace(old, new, 1))
    told = steelyard("recipes", "show", "small.yaml", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(said)
    assert told.stderr.count("\n") == 1
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "error: small.yaml:1: the file is empty"),
        (b"- a\n", "error: small.yaml:1: the top of the file is a list"),
        (b"name: caf\xe9\n", "error: small.yaml:1: not UTF-8"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line_and_exit_2(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "small.yaml").write_bytes(content)
    told = steelyard("recipes", "show", "small.yaml", cwd=tmp_path)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert told.stderr.startswith(said)


def test_a_recipe_file_that_is_not_there_is_exit_2(tmp_path: Path) -> None:
    told = steelyard("recipes", "show", "nowhere.yaml", cwd=tmp_path)
    assert told.returncode == 2
    assert told.stderr.startswith("error: no recipe file 'nowhere.yaml'; `steelyard recipes list` shows")


def test_a_folder_stands_for_the_recipe_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("steelyard: 1\nname: my-own\nbogus: 1\n")
    for ref, cwd in (("mine", tmp_path), ("../mine", tmp_path / "mine"), ("./mine/", tmp_path)):
        done = steelyard("plan", ref, cwd=cwd)
        assert done.returncode == 2 and "recipe.yaml:3: unknown key 'bogus'" in done.stderr
    (tmp_path / "bare").mkdir()
    done = steelyard("plan", "bare", cwd=tmp_path)
    assert done.returncode == 2 and "the folder 'bare' holds no recipe.yaml" in done.stderr


def test_every_named_recipe_is_right(tmp_path: Path) -> None:
    listed = steelyard("recipes", "list", "--json", cwd=tmp_path)
    assert listed.returncode == 0
    for recipe in json.loads(listed.stdout):
        shown = steelyard("recipes", "show", recipe["name"], "--resolved", cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert recipe["summary"] and json.loads(shown.stdout)["summary"] == recipe["summary"]


def test_every_named_suite_is_right(tmp_path: Path) -> None:
    listed = json.loads(steelyard("suites", "list", "--json", cwd=tmp_path).stdout)
    assert {"quickstart-dev", "quickstart-unseen"} <= {suite["name"] for suite in listed}
    for suite in listed:
        shown = steelyard("suites", "show", suite["name"], "--json", cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)["tasks"]


def test_the_schema_takes_right_recipes_and_refuses_wrong_ones(tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    made = steelyard("recipes", "schema", cwd=tmp_path)
    assert made.returncode == 0
    validator = jsonschema.Draft202012Validator(json.loads(made.stdout))
    validator.check_schema(validator.schema)
    yaml = YAML(typ="safe", pure=True)
    right = yaml.load(GOOD)
    assert not list(validator.iter_errors(right))
    steelyard("init", ".", cwd=tmp_path)
    assert not list(validator.iter_errors(yaml.load((tmp_path / "recipe.yaml").read_text())))
    for old, new in [
        ("lr: 1e-3", "lr: fast"),
        ("lr: 1e-3", "lrr: 1"),
        ("kind: sft", "kind: stf"),
        ("rows: 100", "rows: 0"),
        ("name", "nmae"),
    ]:
        assert list(validator.iter_errors(yaml.load(GOOD.replace(old, new, 1)))), new


def test_a_resolved_recipe_fits_the_schema(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(GOOD)
    resolved = json.loads(steelyard("recipes", "show", "small.yaml", "--resolved", cwd=tmp_path).stdout)
    schema = json.loads(steelyard("recipes", "schema", cwd=tmp_path).stdout)
    assert not list(jsonschema.Draft202012Validator(schema).iter_errors(resolved))


def test_the_schema_of_suites_takes_the_suites_that_ship(tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    steelyard("recipes", "schema", "--suite", "-o", "suite.schema.json", cwd=tmp_path)
    validator = jsonschema.Draft202012Validator(json.loads((tmp_path / "suite.schema.json").read_text()))
    for suite in json.loads(steelyard("suites", "list", "--json", cwd=tmp_path).stdout):
        assert not list(validator.iter_errors(YAML(typ="safe", pure=True).load(Path(suite["path"]).read_text())))
