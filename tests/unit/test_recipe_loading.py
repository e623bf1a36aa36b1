"""Recipes that are right: what they are completed to, and that JSON brings them back whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steelyard.errors import RecipeError, UsageError
from steelyard.plugins import Registry, load_registry
from steelyard.recipe import LoadedRecipe, Recipe, load_recipe, load_suite

RECIPE = """
steelyard: 1
name: small
base: {model: owner/model, chat_template: chatml}
verifiers: {right: {kind: exact}}
data:
  chats:
    kind: mix
    sources:
      - {kind: tasks, rows: 100}
      - {kind: tasks, rows: 50, weight: 2}
  questions: {kind: mix, sources: [{kind: tasks, rows: 20, form: prompt, verifier: right}]}
  pairs: {kind: preference_pairs, prompts: questions}
rounds:
  - name: first
    stages:
      - {kind: sft, data: chats, lr: 1e-3}
      - {kind: dpo, data: pairs, lr: 5e-4}
  - name: second
    stages: [{name: rl, kind: grpo, data: questions, lr: 1.0e-4, steps: 3, reference: "stage:first/sft"}]
    gate: {alpha: 0.1, margins: {addition: 0.05}}
gate: {margins: {default: 0.03}}
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(environ={})


def write(folder: Path, text: str, name: str = "small.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, registry: Registry, text: str = RECIPE, *overrides: str) -> LoadedRecipe:
    return load_recipe(write(folder, text), overrides, registry)


def test_a_number_in_exponent_form_is_a_number(tmp_path: Path, registry: Registry) -> None:
    stage = load(tmp_path, registry).recipe.rounds[0].stages[0]
    assert stage.options.lr == 1e-3


def test_what_is_left_out_is_filled_in(tmp_path: Path, registry: Registry) -> None:
    recipe = load(tmp_path, registry).recipe
    assert (recipe.engine.kind, recipe.launcher.kind, recipe.seed) == ("transformers", "local", 0)
    sft, dpo = recipe.rounds[0].stages
    assert (sft.name, sft.init, sft.reference) == ("sft", "champion", None)
    assert (dpo.name, dpo.init, dpo.reference) == ("dpo", "previous", "init")
    assert recipe.data["pairs"].from_ == "champion"
    assert recipe.data["chats"].from_ is None
    assert [source.name for source in recipe.data["chats"].sources] == ["tasks", "tasks-2"]


def test_a_resolved_recipe_comes_back_from_json_unchanged(tmp_path: Path, registry: Registry) -> None:
    loaded = load(tmp_path, registry)
    through_text = json.loads(json.dumps(loaded.recipe.to_json(), allow_nan=False))
    again = Recipe.from_json(through_text, registry, loaded.base)
    assert again == loaded.recipe
    assert again.to_json() == loaded.recipe.to_json()


def test_a_resolved_recipe_that_no_longer_fits_is_told_by_its_keys(tmp_path: Path, registry: Registry) -> None:
    loaded = load(tmp_path, registry)
    data = loaded.recipe.to_json()
    data["rounds"][0]["stages"][0]["kind"] = "gone"
    with pytest.raises(RecipeError, match=r"^the resolved recipe, rounds\.0\.stages\.0\.kind: no stage named 'gone'"):
        Recipe.from_json(data, registry, loaded.base)


def test_a_changed_value_makes_another_recipe(tmp_path: Path, registry: Registry) -> None:
    assert load(tmp_path, registry).recipe != load(tmp_path, registry, RECIPE, "stages.sft.lr=2e-3").recipe


def test_the_keys_of_a_plugin_stand_flat_in_json(tmp_path: Path, registry: Registry) -> None:
    stage = load(tmp_path, registry).recipe.to_json()["rounds"][0]["stages"][0]
    assert stage["lr"] == 1e-3
    assert "options" not in stage
    assert load(tmp_path, registry).recipe.to_json()["data"]["pairs"]["from"] == "champion"


def test_a_round_changes_single_margins_of_the_gate_and_knows_its_number(tmp_path: Path, registry: Registry) -> None:
    recipe = load(tmp_path, registry).recipe
    first, second = recipe.rounds
    assert recipe.policy_of(first).margins == {"default": 0.03}
    policy = recipe.policy_of(second)
    assert policy.margins == {"default": 0.03, "addition": 0.05}
    assert (policy.alpha, policy.round, policy.rounds) == (0.1, 2, 2)


def test_verifiers_of_the_recipe_serve_every_stage_and_a_stage_can_have_its_own(tmp_path: Path, registry: Registry) -> None:
    text = RECIPE.replace("steps: 3,", "steps: 3, verifiers: {right: {kind: number, timeout_s: 2}},")
    recipe = load(tmp_path, registry, text).recipe
    assert recipe.verifiers_of(recipe.data["pairs"])["right"].kind == "exact"
    own = recipe.verifiers_of(recipe.rounds[1].stages[0])["right"]
    assert (own.kind, own.timeout_s) == ("number", 2)


def test_a_repeated_round_is_written_out_and_told_its_number(tmp_path: Path, registry: Registry) -> None:
    text = """
steelyard: 1
name: loop
base: {model: owner/model}
data:
  chats: {kind: mix, sources: [{kind: tasks, rows: 10, seed: "${round}"}]}
rounds:
  - name: warm
    stages: [{kind: sft, data: chats, lr: 1e-3}]
  - name: loop
    repeat: 2
    stages: [{kind: sft, data: chats, lr: "1e-${round}", name: "sft-${round_name}"}]
"""
    recipe = load(tmp_path, registry, text).recipe
    assert [r.name for r in recipe.rounds] == ["warm", "loop-1", "loop-2"]
    assert [r.stages[0].options.lr for r in recipe.rounds] == [1e-3, 1e-2, 1e-3]
    assert recipe.rounds[2].stages[0].name == "sft-loop-2"
    assert [r.stages[0].data for r in recipe.rounds] == ["chats-1", "chats-2", "chats-3"]
    assert {name: entry.sources[0].options.seed for name, entry in recipe.data.items()} == {
        "chats-1": 1,
        "chats-2": 2,
        "chats-3": 3,
    }


def test_a_doubled_dollar_is_a_plain_one(tmp_path: Path, registry: Registry) -> None:
    loaded = load(tmp_path, registry, RECIPE.replace("name: small", "name: small\nsummary: costs $${round}"))
    assert loaded.recipe.summary == "costs ${round}"
    assert Recipe.from_json(loaded.recipe.to_json(), registry, loaded.base) == loaded.recipe


def test_only_yaml_1_2_is_read(tmp_path: Path, registry: Registry) -> None:
    loaded = load(tmp_path, registry, RECIPE.replace("name: small", "name: no\nsummary: 2024-01-01"))
    assert (loaded.recipe.name, loaded.recipe.summary) == ("no", "2024-01-01")


def test_anchors_and_merges_are_read(tmp_path: Path, registry: Registry) -> None:
    text = RECIPE.replace("- {kind: sft, data: chats, lr: 1e-3}", "- &sft {kind: sft, data: chats, lr: 1e-3}").replace(
        "- {kind: dpo, data: pairs, lr: 5e-4}", "- {<<: *sft, name: again, lr: 2e-3}"
    )
    again = load(tmp_path, registry, text).recipe.rounds[0].stages[1]
    assert (again.name, again.kind, again.options.lr) == ("again", "sft", 2e-3)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("seed=7", lambda r: r.seed == 7),
        ("stages.sft.lr=2e-5", lambda r: r.rounds[0].stages[0].options.lr == 2e-5),
        ("rounds.first.stages.dpo.beta=0.5", lambda r: r.rounds[0].stages[1].options.beta == 0.5),
        ("rounds.0.stages.1.beta=0.5", lambda r: r.rounds[0].stages[1].options.beta == 0.5),
        ("data.chats.sources.0.count=4", lambda r: r.data["chats"].sources[0].count == 4),
        ("data.questions.sources.tasks.rows=4", lambda r: r.data["questions"].sources[0].options.rows == 4),
        ("gate.margins.addition=0.1", lambda r: r.gate.margins == {"default": 0.03, "addition": 0.1}),
        ("engine.max_batch_rows=8", lambda r: r.engine.options.max_batch_rows == 8),
        ("evaluate.batch_size=8", lambda r: r.evaluate.batch_size == 8),
        ("base.chat_template=", lambda r: r.base.chat_template is None),
        ("rounds.second.repeat=2", lambda r: [x.name for x in r.rounds] == ["first", "second-1", "second-2"]),
        ("stages.rl={name: rl, kind: sft, data: chats, lr: 1}", lambda r: r.rounds[1].stages[0].kind == "sft"),
    ],
)
def test_an_override_reaches_its_value(tmp_path: Path, registry: Registry, override: str, read) -> None:  # type: ignore[no-untyped-def]
    assert not read(load(tmp_path, registry).recipe)
    assert read(load(tmp_path, registry, RECIPE, override).recipe)


def test_a_path_in_an_override_starts_at_the_current_folder(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    (here / "model").mkdir(parents=True)
    monkeypatch.chdir(here)
    recipe = load(tmp_path, registry, RECIPE, "base.model=./model").recipe
    assert recipe.base.model == str((here / "model").resolve())


def test_relative_paths_start_at_the_folder_of_the_recipe(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    text = RECIPE.replace("{kind: tasks, rows: 100}", "{kind: jsonl, path: rows.jsonl}")
    loaded = load(tmp_path, registry, text)
    assert loaded.base == tmp_path.resolve()
    assert loaded.text == text


SUITE = """
name: sums
version: 2
tasks:
  - {name: addition, task: tasks/addition.yaml, version: 1.0, metric: exact_match, guard: true, margin: 0.05}
  - {name: style, task: other, version: 0, metric: concise, weight: 2, score_range: [0, 2]}
"""


def test_a_suite_is_read_and_comes_back_from_json(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "addition.yaml").write_text("task: addition\n")
    suite = load_suite(write(tmp_path, SUITE, "sums.yaml"), registry)
    assert (suite.version, suite.harness, suite.task("addition").version) == ("2", "lm-eval", "1.0")
    assert suite.task("addition").guard and suite.task("addition").margin == 0.05
    assert suite.task("style").score_range == (0, 2)
    assert type(suite).from_json(json.loads(json.dumps(suite.to_json()))) == suite


def test_a_recipe_names_the_suites_its_data_is_kept_apart_from(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "addition.yaml").write_text("task: addition\n")
    write(tmp_path, SUITE, "sums.yaml")
    write(tmp_path, SUITE.replace("name: sums", "name: unseen-sums"), "unseen.yaml")
    recipe = load(tmp_path, registry, RECIPE + "suites: {dev: sums.yaml, unseen: unseen.yaml}\n").recipe
    assert recipe.decontaminate.against == ["dev", "unseen"]


def test_a_recipe_that_no_plugin_brings_is_a_usage_error(registry: Registry) -> None:
    with pytest.raises(UsageError, match="no recipe named 'nowhere-to-be-found'"):
        load_recipe("nowhere-to-be-found", [], registry)
