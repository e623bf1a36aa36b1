"""A whole run of the real program whose policy is trained against a value model that an earlier stage made."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures" / "small_lab"))
from small_lab import RECIPE, RUN, decisions, make_small_project, steelyard

STAGES = """\
      - {name: rm, kind: reward_model, data: pairs, batch_size: 8, lr: 1.0e-3, max_length: 64}
      - name: ppo
        kind: rl
        preset: ppo
        VALUE
        data: prompts
        steps: 4
        prompts_per_step: 16
        samples_per_prompt: 2
        max_new_tokens: 12
        lr: 1.0e-4
        value_lr: 1.0e-3
"""


def recipe(value: str = "models: {value: stage:rm}") -> str:
    head, _, rest = RECIPE.partition("  - name: dpo\n")
    gate = rest[rest.index("gate: {") :]
    return f"{head}  - name: rlvr\n    stages:\n{STAGES.replace('VALUE', value)}{gate}"


@pytest.mark.slow
def test_a_reward_models_stage_is_where_the_value_model_starts(tmp_path: Path) -> None:
    project = make_small_project(tmp_path / "project", recipe())
    done = steelyard("run", "recipe.yaml", cwd=project)
    assert done.returncode in (0, 1), done.stderr
    assert [name for name, _ in decisions(project / RUN)] == ["sft", "rlvr"]
    metrics = [json.loads(line) for line in (project / RUN / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in metrics if row["step"] == "rlvr/ppo" and "rl/value_loss" in row]
    assert len(steps) == 16, "four rollout steps of four epochs"
    assert all(row["rl/kl"] >= 0 and row["rl/groups"] == 16 for row in steps)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [("top_p: 1.0", "top_p"), ("clip_low: 0.2", "needs a value model"), ('models: {critic: "stage:rm"}', "critic")],
)
def test_a_recipe_without_a_value_model_is_refused_before_anything_runs(tmp_path: Path, value: str, complaint: str) -> None:
    project = make_small_project(tmp_path / "project", recipe(value))
    done = steelyard("plan", "recipe.yaml", cwd=project)
    assert done.returncode == 2
    assert complaint in done.stderr + done.stdout
