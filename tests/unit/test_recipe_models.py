"""Further models of a stage, and stages that make a reward model: what recipes may say, and what plans make of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from steelyard.errors import RecipeError, UsageError
from steelyard.hookspecs import hookimpl
from steelyard.plugins import Registry, load_registry
from steelyard.recipe import Recipe, load_recipe
from steelyard.recipe.json_schema import recipe_schema
from steelyard.run.plan import Plan, make_plan
from steelyard.specs import LazyRef, StageSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures" / "light_lab"))
from light_lab import OTHER_PLUGINS, PLUGIN, make_project

HEAD = """\
steelyard: 1
name: light
base: {model: base}
engine: {kind: light}
suites: {dev: dev.yaml}
data:
  lines:
    kind: join
    sources: [{kind: lines, path: lines.txt}]
rounds:
"""
ROUNDS = """\
  - name: first
    stages:
      - {name: rm, kind: judge, data: lines}
      - {name: a, kind: count, data: lines}
      - {name: b, kind: count, data: lines, init: base}
      - {name: soup, kind: blend, models: {one: previous, two: "stage:a", start: init, old: base}}
      - {name: rm2, kind: judge, data: lines, models: {older: "stage:rm"}}
  - name: second
    stages:
      - {name: a, kind: count, data: lines, init: previous}
"""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.syspath_prepend(PLUGIN)
    return load_registry(environ={"STEELYARD_DISABLE_PLUGINS": OTHER_PLUGINS})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_project(tmp_path, HEAD + ROUNDS)
    return tmp_path


def load(project: Path, registry: Registry, rounds: str = ROUNDS) -> Recipe:
    (project / "recipe.yaml").write_text(HEAD + rounds)
    return load_recipe(project / "recipe.yaml", (), registry).recipe


def planned(project: Path, registry: Registry, rounds: str = ROUNDS) -> Plan:
    return make_plan(load(project, registry, rounds), registry, project)


def complaint(project: Path, registry: Registry, old: str, new: str) -> str:
    assert old in ROUNDS
    with pytest.raises(RecipeError) as caught:
        load(project, registry, ROUNDS.replace(old, new))
    return str(caught.value)


# Plans


def test_each_role_is_an_input_of_the_stage(project: Path, registry: Registry) -> None:
    assert planned(project, registry).step("first/soup").inputs == {
        "model": "first/b",
        "model:one": "first/b",
        "model:two": "first/a",
        "model:start": "first/b",
        "model:old": "base",
    }


def test_a_reward_model_is_neither_the_previous_model_nor_the_challenger(project: Path, registry: Registry) -> None:
    plan = planned(project, registry)
    # The first stage that starts behind a reward model alone starts where the round does.
    assert plan.step("first/a").inputs["model"] == "champion"
    assert plan.step("first/rm2").inputs == {"model": "first/soup", "data": "clean/lines", "model:older": "first/rm"}
    assert plan.step("second/a").inputs["model"] == "first/soup"
    assert plan.step("eval/first/dev").inputs == {"model": "first/soup"}
    assert plan.step("gate/first").inputs["challenger_model"] == "first/soup"
    assert plan.rounds[0].challenger == "first/soup"


def test_without_a_gate_a_round_ends_behind_its_last_stage_and_its_last_policy_takes_the_title(project: Path, registry: Registry) -> None:
    (project / "recipe.yaml").write_text((HEAD + ROUNDS).replace("suites: {dev: dev.yaml}\n", ""))
    plan = make_plan(load_recipe(project / "recipe.yaml", (), registry).recipe, registry, project)
    assert plan.round_decided_by(plan.step("first/soup")) is None
    decided = plan.round_decided_by(plan.step("first/rm2"))
    assert decided is not None and decided.challenger == "first/soup" and decided.last_step == "first/rm2"


def test_the_models_of_a_stage_are_part_of_its_key(project: Path, registry: Registry) -> None:
    before = planned(project, registry).optimistic_keys()
    swapped = planned(project, registry, ROUNDS.replace('two: "stage:a"', 'two: "stage:b"')).optimistic_keys()
    assert before["first/b"] == swapped["first/b"] and before["first/soup"] != swapped["first/soup"]


OUTSIDE = ROUNDS.replace("old: base", "old: other")


def test_a_folder_outside_counts_by_its_content_wherever_it_lies(project: Path, registry: Registry) -> None:
    (project / "other").mkdir()
    (project / "other" / "model.json").write_text("1")
    step = planned(project, registry, OUTSIDE).step("first/soup")
    assert "model:old" not in step.inputs
    assert step.outside["model:old"].folder == str(project / "other")
    before = planned(project, registry, OUTSIDE).optimistic_keys()["first/soup"]
    (project / "elsewhere").mkdir()
    (project / "elsewhere" / "model.json").write_text("1")
    assert planned(project, registry, OUTSIDE.replace("old: other", "old: ./elsewhere")).optimistic_keys()["first/soup"] == before
    (project / "other" / "model.json").write_text("2")
    assert planned(project, registry, OUTSIDE).optimistic_keys()["first/soup"] != before


def test_a_run_folder_that_is_none_stops_the_plan(project: Path, registry: Registry) -> None:
    with pytest.raises(UsageError, match=r"model 'run:base': .* is not a run folder: it has no resolved.json"):
        planned(project, registry, ROUNDS.replace("old: base", "old: 'run:base'"))


# Complaints


def test_references_that_mean_nothing_are_told_by_line_with_the_nearest(project: Path, registry: Registry) -> None:
    told = complaint(project, registry, "old: base", "old: campion")
    assert "recipe.yaml:16: models.old is 'campion', not one of init, champion, base, previous, stage:NAME, run:PATH" in told
    assert "no model folder of that name" in told and "did you mean 'champion'?" in told
    told = complaint(project, registry, '"stage:a"', '"stage:aa"')
    assert "models.two is 'stage:aa', but no earlier stage is named 'aa' (did you mean 'a'?)" in told
    told = complaint(project, registry, "old: base", "old: 'run:../gone#a/b'")
    assert "models.old is 'run:../gone#a/b', and there is no run folder '../gone'" in told


def test_a_role_that_the_kind_does_not_take_is_told_with_the_nearest(project: Path, registry: Registry) -> None:
    assert "a stage of kind 'judge' takes no model 'oldest' (did you mean 'older'?)" in complaint(
        project, registry, "models: {older:", "models: {oldest:"
    )
    told = complaint(project, registry, "{name: a, kind: count, data: lines}", "{name: a, kind: count, data: lines, models: {x: base}}")
    assert "a stage of kind 'count' takes no further models: take 'models' out" in told


def test_a_kind_that_needs_models_says_so(project: Path, registry: Registry) -> None:
    told = complaint(project, registry, 'models: {one: previous, two: "stage:a", start: init, old: base}', "init: base")
    assert "a stage of kind 'blend' needs 'models', one or more by names of your choice" in told


def test_a_reward_model_is_refused_where_text_has_to_be_written(project: Path, registry: Registry) -> None:
    told = complaint(project, registry, "data: lines, init: base", 'data: lines, init: "stage:rm"')
    assert "init is 'stage:rm', and that stage (kind 'judge') makes a reward model" in told


def test_a_round_of_reward_models_alone_is_refused(project: Path, registry: Registry) -> None:
    told = complaint(project, registry, "{name: a, kind: count, data: lines, init: previous}", "{kind: judge, data: lines}")
    assert "round 'second' makes reward models only" in told


JUDGED = "verifiers: {good: {kind: liked, model: 'stage:rm'}}"


def test_a_verifier_whose_model_is_of_the_run_is_an_input_of_the_stage(project: Path, registry: Registry) -> None:
    judged = ROUNDS.replace("{name: a, kind: count, data: lines}", f"{{name: a, kind: count, data: lines, {JUDGED}}}")
    assert planned(project, registry, judged).step("first/a").inputs["model:stage:rm"] == "first/rm"
    told = complaint(project, registry, "{name: rm, kind: judge, data: lines}", f"{{name: rm, kind: judge, data: lines, {JUDGED}}}")
    assert "the model of verifier 'good', at stage 'rm', is 'stage:rm', but no earlier stage is named 'rm'" in told


def test_data_is_not_checked_by_a_model_of_the_run(project: Path, registry: Registry) -> None:
    (project / "recipe.yaml").write_text((HEAD + ROUNDS).replace("    kind: join\n", f"    kind: join\n    {JUDGED}\n"))
    with pytest.raises(RecipeError, match="data entry 'lines' would be given the verifier 'good', whose model is 'stage:rm'"):
        load_recipe(project / "recipe.yaml", (), registry)


class _Plugin:
    """Stages whose configuration or descriptor goes with some models only."""

    @hookimpl
    def steelyard_stages(self) -> list[StageSpec]:
        impl = LazyRef("steelyard_light.stages:Blend")
        config = LazyRef("picky_config:Picky")
        return [
            StageSpec("picky", impl=impl, config=config, data=None, models=("value", "old")),
            StageSpec("pair", impl=impl, data=None, models="*", needs_reference=True, models_for_reference=True),
            StageSpec("strict", impl=impl, data=None, models=("value", "old"), needs_models=True),
        ]


PICKY = """\
from pydantic import BaseModel

class Picky(BaseModel):
    preset: str = "plain"

    def check_models(self, roles):
        if self.preset == "ppo" and "value" not in roles:
            raise ValueError("preset 'ppo' needs the model 'value'")
"""


@pytest.fixture
def picky(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "plugin"
    folder.mkdir()
    (folder / "picky_config.py").write_text(PICKY)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "picky_config", raising=False)
    light = next(info for info in registry.plugins if info.name == "light")
    for spec in _Plugin().steelyard_stages():
        registry._entries["stages"][spec.name] = [(light, spec)]
    return registry


def stage(text: str) -> str:
    return f"  - name: r\n    stages: [{text}]\n"


def test_a_configuration_can_refuse_models_before_anything_runs(project: Path, picky: Registry) -> None:
    load(project, picky, stage("{kind: picky, preset: ppo, models: {value: base}}"))
    with pytest.raises(RecipeError, match="a stage of kind 'picky': preset 'ppo' needs the model 'value'"):
        load(project, picky, stage("{kind: picky, preset: ppo, models: {old: base}}"))


def test_roles_that_are_missing_are_named(project: Path, picky: Registry) -> None:
    with pytest.raises(RecipeError, match="a stage of kind 'strict' needs 'models' with 'old'"):
        load(project, picky, stage("{kind: strict, models: {value: base}}"))


def test_models_may_stand_in_for_a_reference_and_not_beside_it(project: Path, picky: Registry) -> None:
    assert load(project, picky, stage("{kind: pair, models: {a: base}}")).rounds[0].stages[0].reference is None
    assert load(project, picky, stage("{kind: pair}")).rounds[0].stages[0].reference == "init"
    with pytest.raises(RecipeError, match="has either 'reference' or 'models': take one of them out"):
        load(project, picky, stage("{kind: pair, reference: base, models: {a: base}}"))


# What is written


def test_a_resolved_recipe_has_models_where_there_are_some(project: Path, registry: Registry) -> None:
    recipe = load(project, registry)
    written = recipe.to_json()["rounds"][0]["stages"]
    assert written[4]["models"] == {"older": "stage:rm"} and "models" not in written[1]
    assert Recipe.from_json(recipe.to_json(), registry, project) == recipe


def test_the_schema_offers_models_to_the_kinds_that_take_them(registry: Registry) -> None:
    stages = {
        name.partition(".")[2]: value["properties"] for name, value in recipe_schema(registry)["$defs"].items() if "StageEntry." in name
    }
    assert "models" not in stages["count"]
    assert stages["judge"]["models"]["additionalProperties"] is False and list(stages["judge"]["models"]["properties"]) == ["older"]
    assert stages["blend"]["models"]["additionalProperties"] == {"type": "string"}
