"""What plugin authors and recipe authors rely on is written down: hooks, contributions, options, the skeleton."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from steelyard import hookspecs
from steelyard.plugins import FAMILIES, load_registry
from steelyard.specs import Spec

ROOT = Path(__file__).parent.parent.parent
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "steelyard_spec")]


def _contributions() -> list[tuple[str, str]]:
    registry = load_registry(environ={}, project=ROOT, allowed=[])
    return [
        (family, name)
        for family in FAMILIES
        for name, spec in registry.all(family).items()
        if family != "recipes" and not getattr(spec, "hidden", False) and registry.owner(spec).distribution == "steelyard"
    ]


def test_the_hooks_are_those_of_the_design() -> None:
    contributions = {f"steelyard_{family}" for family in FAMILIES}
    lifecycle = {"run_started", "step_started", "step_finished", "metrics", "round_decided", "run_finished"}
    others = {"gate_objections", "resolve_model", "resolve_dataset"}
    assert set(HOOKS) == contributions | {f"steelyard_{name}" for name in lifecycle | others}


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_what_it_is_for(name: str) -> None:
    doc = getattr(hookspecs, name).__doc__ or ""
    assert len(doc.split()) >= 5


def test_the_manual_is_printed_with_every_hook() -> None:
    done = subprocess.run([sys.executable, "-m", "steelyard", "plugins", "hooks"], capture_output=True, text=True, timeout=60, check=True)
    assert "entry point" in done.stdout
    assert [name for name in HOOKS if name not in done.stdout] == []


@pytest.mark.parametrize(("family", "name"), _contributions())
def test_every_built_in_is_listed_in_the_readme_of_its_room(family: str, name: str) -> None:
    registry = load_registry(environ={}, project=ROOT, allowed=[])
    module = registry.owner(registry.get(family, name)).module.partition(".")[0]
    folder = next(ROOT / top / module for top in ("core", "plugins", "evals") if (ROOT / top / module).is_dir())
    texts = [path.read_text("utf-8") for path in folder.rglob("README.md")]
    word = re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w-])")
    assert any(word.search(text) for text in texts), f"no README.md under {folder} names {name!r}"


@pytest.mark.parametrize(("family", "name"), _contributions())
def test_every_built_in_has_a_summary_and_documented_options(family: str, name: str) -> None:
    registry = load_registry(environ={}, project=ROOT, allowed=[])
    spec = registry.get(family, name)
    assert spec.summary, "no summary"
    if isinstance(spec, Spec) and spec.config is not None:
        model = spec.config.load()
        assert model.model_config.get("extra") == "forbid"


def test_the_skeleton_of_a_plugin_installs_passes_its_tests_and_its_check(tmp_path: Path) -> None:
    def run(*command: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "pyproject.toml").write_text("")
    run("-m", "steelyard", "plugins", "new", "last-word")
    package = tmp_path / "steelyard-last-word"
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    run("-m", "pip", "install", "-q", *offline, "--target", str(tmp_path / "site"), str(package))
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    assert "passed" in run("-m", "pytest", "-p", "no:cacheprovider", str(package / "tests"), "--rootdir", str(package), PYTHONPATH=path)
    assert "problem" not in run("-m", "steelyard", "plugins", "check", "steelyard-last-word", PYTHONPATH=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("9lives",), "is not a name for a plugin"), (("a b",), "is not a name for a plugin"), (("x", "--dir", "."), "not an empty folder")],
)
def test_a_skeleton_is_not_written_over_something_or_under_an_impossible_name(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "file").write_text("mine")
    command = [sys.executable, "-m", "steelyard", "plugins", "new", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
