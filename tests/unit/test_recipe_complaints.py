"""Recipes that are wrong: each complaint is one line with file and line, says what is wrong, and what to do."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelyard.errors import ExitCode, PluginError, RecipeError, SteelyardError
from steelyard.plugins import Registry, load_registry
from steelyard.recipe import Recipe, load_recipe, load_suite

RECIPE = """\
steelyard: 1
name: small
seed: 1
base: {model: owner/model}
verifiers: {right: {kind: exact}}
data:
  chats: {kind: mix, sources: [{kind: tasks, rows: 100}]}
  questions:
    kind: mix
    sources: [{kind: tasks, rows: 20, form: prompt}]
  pairs:
    kind: preference_pairs
    prompts: questions
rounds:
  - name: first
    stages:
      - {kind: sft, data: chats, lr: 1e-3}
      - kind: dpo
        data: pairs
        lr: 5e-4
  - name: second
    stages:
      - kind: grpo
        data: questions
        lr: 1e-4
        steps: 3
gate: {alpha: 0.05}
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(environ={})


def complaint(folder: Path, registry: Registry, text: str | bytes, *overrides: str) -> str:
    """What is said about a recipe, without the folder; every complaint must be a recipe error."""
    path = folder / "small.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, registry)
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value).replace(f"{folder}/", "")


def test_the_recipe_of_these_tests_is_right(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    load_recipe(path, [], registry)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed: 1", "sede: 1", "small.yaml:3: unknown key 'sede' in the recipe (did you mean 'seed'?)"),
        ("seed: 1", "seed: one", "small.yaml:3: seed is 'one', not a whole number"),
        ("seed: 1", "seed: true", "small.yaml:3: seed is true, not a number"),
        ("seed: 1", "seed: -1", "small.yaml:3: seed is -1, must be at least 0"),
        ("seed: 1", "seed: 1.5", "small.yaml:3: seed is 1.5, not a whole number"),
        ("seed: 1", "seed:", "small.yaml:3: seed is empty, not a whole number (give it a value, or take the key out)"),
        ("seed: 1", "seed: .inf", "small.yaml:3: '.inf' is not a finite number"),
        ("seed: 1", "seed: !!python/name:os.system ''", "small.yaml:3: the tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("seed: 1", "1: one", "small.yaml:3: the key '1' is not a text: put it in quotes"),
        ("seed: 1", "name: again", "small.yaml:3: the key 'name' a second time (first in line 2): keep one of them"),
        ("seed: 1", "summary: &a [*a]", "small.yaml:3: an alias that holds itself"),
        ("seed: 1", "summary: *nothing", "small.yaml:3: not YAML: found undefined alias 'nothing'"),
        ("seed: 1", "summary: a: b", "small.yaml:3: not YAML: a ':' where none can stand; check the indentation"),
        ("seed: 1", "summary: ${round}", "small.yaml:3: '${round}' means something in rounds and in data only"),
        ("seed: 1", "summary: ${rond}", "small.yaml:3: unknown variable '${rond}' (did you mean 'round'?)"),
        ("seed: 1", "suites: {dev: nowhere}", "small.yaml:3: no suite named 'nowhere'"),
        ("seed: 1", "suites: {dev: nowhere.yaml}", "small.yaml:3: no suite file"),
        ("seed: 1", "engine: {kind: transfomers}", "small.yaml:3: no engine named 'transfomers' (did you mean 'transformers'?)"),
        ("seed: 1", "decontaminate: {coverage: 1}", "small.yaml:3: coverage is 1, must be less than 1"),
        ("seed: 1", "decontaminate: {max_overlap: 1.0}", "small.yaml:3: max_overlap is 1.0, must be less than 1"),
        ("seed: 1", "decontaminate: {template: 1}", "small.yaml:3: template is 1, must be less than 1"),
        ("seed: 1", "decontaminate: {ngram: 1001}", "small.yaml:3: ngram is 1001, must be at most 1000"),
        ("seed: 1", "decontaminate: {waive: ' '}", "small.yaml:3: waive is ' ': say in words why"),
        ("seed: 1", "decontaminate: {paraphrases: {}}", "small.yaml:3: decontaminate.paraphrases needs 'model'"),
        ("seed: 1", "decontaminate: {paraphrases: {model: a, threshold: 2}}", "small.yaml:3: threshold is 2, must be at most 1"),
        ("seed: 1", "decontaminate: {waive: ours, paraphrases: {model: a, remove: true}}", "small.yaml:3: remove takes rows out"),
        ("seed: 1", "decontaminate: {against: [dev]}", "small.yaml:3: no suite has the role 'dev'"),
        ("name: small", "name: 8", "small.yaml:2: name is 8, not a text (put it in quotes)"),
        ("name: small", "name: a/b", "small.yaml:2: name is 'a/b': a name is made of letters"),
        ("steelyard: 1", "steelyard: 2", "small.yaml:1: steelyard is 2: this Steelyard reads recipe format 1"),
        ("steelyard: 1\n", "", "small.yaml:1: the recipe needs 'steelyard', which is missing"),
        ("base: {model: owner/model}", "base: {}", "small.yaml:4: base needs either 'model' (an existing model) or 'new'"),
        ("base: {model: owner/model}", "base: owner/model", "small.yaml:4: base is 'owner/model', not a mapping of keys to values"),
        ("model: owner/model", "model: ./model", "small.yaml:4: no file or folder './model'"),
        ("model: owner/model", "model: a/b, trust_remote_code: b/c", "small.yaml:4: trust_remote_code is 'b/c'"),
        ("model: owner/model", "model: a/b, dtype: fp16", "small.yaml:4: dtype is 'fp16', not one of 'auto', 'float32', 'bfloat16'"),
        ("kind: exact", "kind: exakt", "small.yaml:5: no verifier named 'exakt' (did you mean 'exact'?)"),
        ("rows: 100", "rows: 1e-5x", "small.yaml:7: rows is '1e-5x', not a whole number"),
        ("rows: 100", "rows: 0", "small.yaml:7: rows is 0, must be greater than 0"),
        ("rows: 100", "rosw: 9", "small.yaml:7: unknown key 'rosw' in a source of kind 'tasks' (did you mean 'rows'?)"),
        ("rows: 100", "rows: 9, count: 1, weight: 2", "small.yaml:7: a source has 'count' and 'weight': give one of them"),
        ("kind: tasks, rows: 100", "kind: jsonl, path: no.jsonl", "small.yaml:7: no file or folder 'no.jsonl'"),
        ("kind: tasks, rows: 100", "rows: 100", "small.yaml:7: a source needs a 'kind' (known: hub, jsonl, parquet, tasks)"),
        ("kind: mix, sources: [{kind: tasks, rows: 100}]", "kind: mix, from: base", "small.yaml:7: a data entry of kind 'mix' samples no"),
        ("prompts: questions", "prompts: question", "small.yaml:13: no data entry 'question' (did you mean 'questions'?)"),
        ("prompts: questions", "prompts: pairs", "small.yaml:13: data entries go round in a circle: pairs → pairs"),
        ("prompts: questions", "from: chmapion", "small.yaml:13: from is 'chmapion', not one of champion, base, previous, stage:NAME"),
        ("prompts: questions", "from: stage:dpo", "small.yaml:13: from is 'stage:dpo', but no earlier stage is named 'dpo'"),
        ("lr: 1e-3", "lr: 1e-3x", "small.yaml:17: lr is '1e-3x', not a number"),
        ("lr: 1e-3", "lr: 1e-3, data: chats", "small.yaml:17: the key 'data' a second time (first in line 17)"),
        ("lr: 1e-3", "lr: 1e-3, init: stage:dpo", "small.yaml:17: init is 'stage:dpo', but no earlier stage is named 'dpo'"),
        ("lr: 1e-3", "lr: 1e-3, reference: base", "small.yaml:17: a stage of kind 'sft' has no reference model: take 'reference' out"),
        ("lr: 1e-3", "lr: 1e-3, engine: {kind: x}", "small.yaml:17: one engine serves the whole recipe"),
        ("lr: 1e-3", "lr: 1e-3, engine: {max_batch_row: 1}", "small.yaml:17: unknown key 'max_batch_row' in the engine of kind"),
        ("data: chats, lr", "lr", "small.yaml:17: a stage of kind 'sft' needs 'data', the name of an entry of data"),
        ("data: chats, lr", "data: chat, lr", "small.yaml:17: no data entry 'chat' (did you mean 'chats'?)"),
        ("data: chats, lr", "data: pairs, lr", "small.yaml:17: stage 'sft' of kind 'sft' trains on 'messages' rows"),
        ("kind: dpo", "kind: doo", "small.yaml:18: no stage named 'doo' (did you mean 'dpo'?)"),
        ("kind: dpo", "kind: import", "small.yaml:18: a recipe cannot place 'import' itself"),
        (
            "kind: dpo",
            "kind: dpo\n        loss: dop",
            "small.yaml:19: loss is 'dop', not one of 'dpo', 'dpo_norm', 'ipo', 'cdpo' (did you mean 'dpo'?)",
        ),
        ("        lr: 5e-4", "\tlr: 5e-4", "small.yaml:20: a tab where YAML wants spaces: indent with spaces"),
        ("name: second", "name: first", "small.yaml:21: two rounds are named 'first': change one"),
        ("name: second", "name: second\n    repeat: 0", "small.yaml:22: repeat is 0, not a whole number from 1"),
        ("name: second", "name: second\n    gate: {alfa: 1}", "small.yaml:22: unknown key 'alfa' in the gate (did you mean 'alpha'?)"),
        ("alpha: 0.05", "alpha: 0.6", "small.yaml:27: alpha is 0.6, must be less than 0.5"),
        ("alpha: 0.05", "rounds: 3", "small.yaml:27: unknown key 'rounds' in the gate: a run counts the recipe's own rounds"),
        ("alpha: 0.05", "policy: superiority", "small.yaml:27: no gate policy named 'superiority'"),
        ("alpha: 0.05", "margins: [1]", "small.yaml:27: margins is [1], not a mapping of keys to values"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_the_fix(tmp_path: Path, registry: Registry, old: str, new: str, said: str) -> None:
    assert RECIPE.count(old) == 1
    told = complaint(tmp_path, registry, RECIPE.replace(old, new))
    assert told.startswith(said)
    assert "\n" not in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "small.yaml:1: the file is empty"),
        ("# nothing\n", "small.yaml:1: the file is empty"),
        ("- a\n- b\n", "small.yaml:1: the top of the file is a list, not a mapping of keys to values"),
        ("hello\n", "small.yaml:1: the top of the file is 'hello', not a mapping"),
        ("a: [1\nb: 2\n", "small.yaml:2: not YAML: expected ',' or ']', but got ':' while parsing a flow sequence"),
        ("a: 1\n---\nb: 2\n", "small.yaml:2: a second document ('---'): a file holds one"),
        (b"name: caf\xe9\n", "small.yaml:1: not UTF-8 (byte 0xe9): save the file as UTF-8"),
        (b"a: 1\nname: \x00\n", "small.yaml:1: not YAML"),
        ("a: {b: 1${round}}\n", "small.yaml:1: not YAML: a '${' inside braces or brackets must stand in quotes"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_so(tmp_path: Path, registry: Registry, text: str | bytes, said: str) -> None:
    assert complaint(tmp_path, registry, text).startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sede=1", "override 'sede=1': unknown key 'sede' (did you mean 'seed'?)"),
        ("seed", "override 'seed': not of the form key=value"),
        ("seed=[", "override 'seed=[': not YAML"),
        ("seed.deep=1", "override 'seed.deep=1': seed is 1, it has no key 'deep'"),
        ("stages.sft.lrr=1", "override 'stages.sft.lrr=1': unknown key 'lrr' in a stage of kind 'sft' (did you mean 'lr'?)"),
        ("stages.sft.lr=fast", "override 'stages.sft.lr=fast': lr is 'fast', not a number"),
        ("stages.sfd.lr=1", "override 'stages.sfd.lr=1': no stage named 'sfd' (did you mean 'sft'?)"),
        ("stages.sft.data=chat", "override 'stages.sft.data=chat': no data entry 'chat' (did you mean 'chats'?)"),
        ("stages=1", "override 'stages=1': stages of which name? write stages.NAME.key=value"),
        ("data.chat.kind=mix", "override 'data.chat.kind=mix': data has no 'chat' (did you mean 'chats'?)"),
        ("data.chats.sources.7.rows=1", "override 'data.chats.sources.7.rows=1': data.chats.sources has 1 members"),
        ("data.chats.sources.taks.rows=1", "has no member 'taks' (did you mean 'tasks'?)"),
        ("gate.alfa=1", "override 'gate.alfa=1': unknown key 'alfa' in the gate (did you mean 'alpha'?)"),
        ("rounds.frist.repeat=2", "rounds has no member 'frist' (did you mean 'first'?)"),
    ],
)
def test_a_mistaken_override_is_named(tmp_path: Path, registry: Registry, override: str, said: str) -> None:
    assert said in complaint(tmp_path, registry, RECIPE, override)


def test_a_stage_name_in_two_rounds_must_be_told_apart(tmp_path: Path, registry: Registry) -> None:
    text = RECIPE.replace("      - kind: grpo", "      - {kind: sft, data: chats, lr: 1}\n      - kind: grpo")
    told = complaint(tmp_path, registry, text, "stages.sft.lr=1")
    assert "2 stages are named 'sft': write rounds.first.stages.sft or rounds.second.stages.sft" in told


def test_several_mistakes_are_told_in_the_order_of_the_file(tmp_path: Path, registry: Registry) -> None:
    text = RECIPE.replace("seed: 1", "seed: x").replace("alpha: 0.05", "alfa: 1").replace("lr: 1e-3", "lr: y, betas: [1, z]")
    assert complaint(tmp_path, registry, text).splitlines() == [
        "small.yaml:3: seed is 'x', not a whole number",
        "small.yaml:17: lr is 'y', not a number",
        "small.yaml:17: betas[1] is 'z', not a number",
        "small.yaml:27: unknown key 'alfa' in the gate (did you mean 'alpha'?)",
    ]


def test_a_misspelt_kind_hides_no_other_mistake_of_its_entry(tmp_path: Path, registry: Registry) -> None:
    said = complaint(tmp_path, registry, RECIPE.replace("kind: sft, data: chats, lr: 1e-3", "kind: sftt, data: chats, lrr: 3, epochs: x"))
    lines = [line.partition(": ")[2] for line in said.splitlines()]
    assert lines == [
        "no stage named 'sftt' (did you mean 'sft'?)",
        "unknown key 'lrr' in a stage of kind 'sft' (did you mean 'lr'?)",
        "epochs is 'x', not a number",
    ]


def test_what_needs_a_verifier_and_has_none_is_told(tmp_path: Path, registry: Registry) -> None:
    assert complaint(tmp_path, registry, RECIPE.replace("verifiers: {right: {kind: exact}}\n", "")).splitlines() == [
        "small.yaml:10: data entry 'pairs' of kind 'preference_pairs' needs 'verifiers'",
        "small.yaml:22: stage 'grpo' of kind 'grpo' needs 'verifiers'",
    ]


def test_a_circle_of_data_entries_is_told_once(tmp_path: Path, registry: Registry) -> None:
    text = RECIPE.replace("    sources: [{kind: tasks, rows: 20, form: prompt}]", "    prompts: pairs")
    told = complaint(tmp_path, registry, text)
    assert told.count("go round in a circle: pairs → questions → pairs") == 1


def test_dev_and_unseen_cannot_be_the_same_suite(tmp_path: Path, registry: Registry) -> None:
    for name in ("sums", "again"):
        (tmp_path / f"{name}.yaml").write_text(SUITE)
    for other in ("sums", "again"):
        text = RECIPE.replace("seed: 1", f"suites:\n  dev: sums.yaml\n  unseen: {other}.yaml")
        assert "small.yaml:5: dev and unseen are both the suite 'sums': what gates see is not unseen" in complaint(tmp_path, registry, text)


MERGED = "      - {kind: merge, name: soup, init: INIT, reference: REFERENCE}\n"


@pytest.mark.parametrize(
    ("place", "init", "reference"),
    [
        ("first", "previous", "init"),
        ("first", "previous", "previous"),
        ("first", "previous", "stage:dpo"),
        ("first", "stage:first/dpo", "previous"),
        ("first", "champion", "base"),
        ("second", "champion", "init"),
        ("second", "stage:grpo", "stage:second/grpo"),
    ],
)
def test_a_merge_of_a_model_with_itself_is_told_before_anything_is_trained(
    tmp_path: Path, registry: Registry, place: str, init: str, reference: str
) -> None:
    merged = MERGED.replace("INIT", init).replace("REFERENCE", reference)
    text = (
        RECIPE.replace("  - name: second\n", merged + "  - name: second\n")
        if place == "first"
        else RECIPE.replace("gate:", merged + "gate:")
    )
    line = 1 + text[: text.index("kind: merge")].count("\n")
    told = complaint(tmp_path, registry, text)
    assert f"small.yaml:{line}: stage 'soup' of kind 'merge' needs a reference other than the model it starts from" in told


def test_two_models_that_may_differ_are_merged_and_distilled(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "small.yaml"
    for init, reference in (("champion", "base"), ("previous", "champion"), ("previous", "stage:first/sft")):
        path.write_text(RECIPE.replace("gate:", MERGED.replace("INIT", init).replace("REFERENCE", reference) + "gate:"))
        load_recipe(path, [], registry)
    absent = RECIPE.replace("gate:", "      - {kind: distill, data: chats, lr: 1e-4}\ngate:")
    assert "small.yaml:27: stage 'distill' of kind 'distill' needs a reference other than" in complaint(tmp_path, registry, absent)


def test_a_round_that_is_no_mapping_is_shown_as_it_was_written(tmp_path: Path, registry: Registry) -> None:
    text = RECIPE[: RECIPE.index("rounds:")] + "rounds: [once]\n"
    told = complaint(tmp_path, registry, text)
    assert "a round is 'once', not a mapping" in told and "<built-in" not in told


def test_a_repeated_round_is_complained_about_where_it_is_written(tmp_path: Path, registry: Registry) -> None:
    text = RECIPE.replace("name: second", "name: second\n    repeat: 3").replace("steps: 3", "stesp: 3")
    told = complaint(tmp_path, registry, text)
    assert "small.yaml:27: unknown key 'stesp' in a stage of kind 'grpo' (did you mean 'steps'?)" in told
    assert told.count("stesp") == 1


SUITE = """\
name: sums
version: 1
tasks:
  - {name: addition, task: addition, version: 1, metric: exact_match, guard: true}
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: 1\ntasks", "tasks", "sums.yaml:1: the suite needs 'version', which is missing"),
        ("guard: true", "guarded: true", "sums.yaml:4: unknown key 'guarded' in a task (did you mean 'guard'?)"),
        ("guard: true", "weight: heavy", "sums.yaml:4: weight is 'heavy', not a number"),
        ("guard: true", "score_range: [1, 0]", "sums.yaml:4: score_range is [1, 0]: the smallest score comes first"),
        ("task: addition", "task: addition.yaml", "sums.yaml:4: no file 'addition.yaml'"),
        ("name: sums", "path: x", "sums.yaml:1: unknown key 'path' in the suite"),
    ],
)
def test_a_mistake_in_a_suite_is_told_with_its_line(tmp_path: Path, registry: Registry, old: str, new: str, said: str) -> None:
    path = tmp_path / "sums.yaml"
    path.write_text(SUITE.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_suite(path, registry)
    assert said in str(caught.value).replace(f"{tmp_path}/", "")


def test_a_margin_for_a_task_that_the_suite_lacks_is_told(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "sums.yaml").write_text(SUITE)
    text = RECIPE.replace("seed: 1", "suites: {dev: sums.yaml}").replace("alpha: 0.05", "margins: {aditon: 0.1}, guards: [sum]")
    told = complaint(tmp_path, registry, text)
    assert "small.yaml:27: the suite 'sums' has no task 'aditon' (did you mean 'addition'?)" in told
    assert "small.yaml:27: the suite 'sums' has no task 'sum'" in told


def test_a_mistake_in_a_suite_of_a_recipe_names_both_files(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "sums.yaml").write_text(SUITE.replace("metric", "metrik"))
    told = complaint(tmp_path, registry, RECIPE.replace("seed: 1", "suites: {dev: sums.yaml}"))
    assert told.startswith("small.yaml:3: suite 'sums.yaml': sums.yaml:4: ")


PLUGIN = """
from steelyard import hookimpl
from steelyard.specs import LazyRef, StageSpec, VerifierSpec

@hookimpl
def steelyard_stages():
    yield StageSpec("greedy", impl=LazyRef("greedy_plugin:Stage"), config=LazyRef("greedy_config:Config"), data=None)

@hookimpl
def steelyard_verifiers():
    yield VerifierSpec("unloadable", impl=LazyRef("greedy_plugin:V"), config=LazyRef("greedy_config:Nothing"))
"""
CONFIG = """
from pydantic import BaseModel

class Config(BaseModel):
    init: str = "mine"
    lr: float = 1.0
"""


@pytest.fixture
def greedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry with a third party's distribution, installed in a folder of its own."""
    site = tmp_path / "site"
    info = site / "greedy-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greedy\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[steelyard]\ngreedy = greedy_plugin\n")
    (site / "greedy_plugin.py").write_text(PLUGIN)
    (site / "greedy_config.py").write_text(CONFIG)
    monkeypatch.syspath_prepend(str(site))
    return load_registry(environ={})


def test_a_plugin_that_takes_a_key_of_the_recipe_is_named(tmp_path: Path, greedy: Registry) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("steelyard: 1\nname: x\nbase: {model: a/b}\nrounds:\n  - name: r\n    stages:\n      - {kind: greedy}\n")
    with pytest.raises(PluginError, match=r"small.yaml:7: the plugin 'greedy' \(greedy 2.0\) gives .* the key 'init'"):
        load_recipe(path, [], greedy)


def test_a_plugin_whose_model_is_missing_is_named(tmp_path: Path, greedy: Registry) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.replace("kind: exact", "kind: unloadable"))
    with pytest.raises(PluginError, match=r"small.yaml:5: .*'greedy'.*greedy_config:Nothing"):
        load_recipe(path, [], greedy)


junk = st.sampled_from([None, True, 0, -1, 1.5, "", "x", "${round}", "stage:x", [], [None], ["x"], {}, {"kind": "x"}, {"name": 3}])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_recipe_the_answer_is_a_complaint_or_a_recipe(tmp_path: Path, registry: Registry, data: st.DataObject) -> None:
    """Any value put anywhere: never an internal error."""
    from ruamel.yaml import YAML

    recipe = YAML(typ="safe", pure=True).load(RECIPE)
    broken = copy.deepcopy(recipe)
    here = broken
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(here[key], dict | list) or not here[key] or data.draw(st.booleans()):
            here[key] = data.draw(junk)
            break
        here = here[key]
    path = tmp_path / "broken.yaml"
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(broken, file)
    try:
        loaded = load_recipe(path, [], registry)
    except SteelyardError as error:
        said = str(error)
        assert "broken.yaml:" in said
    else:
        assert Recipe.from_json(loaded.recipe.to_json(), registry, loaded.base) == loaded.recipe
