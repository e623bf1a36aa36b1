"""Mistakes in a recipe and dangerous base models: one line with the place and the fix, the right exit code, and nothing run."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures" / "small_lab"))
from small_lab import RECIPE, RUN, make_small_project, processes_of, steelyard

CHATS = "{kind: tasks, tasks: [upper, maximum], form: chat, rows: 1200, verbose_share: 0.6, seed: 1}"

MISTAKES = {
    "an unknown key": ("batch_size: 32", "bath_size: 32", "unknown key 'bath_size' in a stage of kind 'sft' (did you mean 'batch_size'?)"),
    "a wrong type": ("rows: 1200", "rows: many", "rows is 'many', not a whole number"),
    "a duplicate key": ("seed: 3\nbase", "seed: 3\nseed: 4\nbase", "the key 'seed' a second time (first in line 3): keep one of them"),
    "a missing data file": (CHATS, "{kind: jsonl, path: chats.jsonl}", "no file or folder 'chats.jsonl' in '"),
    "an unknown kind": ("kind: dpo,", "kind: dop,", "no stage named 'dop' (did you mean 'dpo'?)"),
    "an unknown data entry": ("data: chats", "data: chat", "no data entry 'chat' (did you mean 'chats'?)"),
    "an unknown task of a source": ("[upper, maximum], form: chat", "[uper], form: chat", "unknown task 'uper': one of "),
    "a missing suite": ("dev: dev.yaml", "dev: dve.yaml", "no suite file '"),
    "a cycle": (
        "    verifier: concise\n",
        "    verifier: concise\n    prompts: pairs\n",
        "data entries go round in a circle: pairs → ",
    ),
    "broken YAML": ("name: small\nseed: 3\n", "name: small\nseed: 3: 4\n", "not YAML: a ':' where none can stand"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_project(tmp_path_factory.mktemp("mistakes"))


def line_of_the_change(old: str, new: str) -> int:
    """The line in which the changed recipe first differs, 1-based."""
    before, after = RECIPE.splitlines(), RECIPE.replace(old, new, 1).splitlines()
    return next(number for number, (a, b) in enumerate(zip(before, after, strict=False), start=1) if a != b)


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line_with_its_place_and_the_fix(mistake: str, command: str, project: Path) -> None:
    old, new, message = MISTAKES[mistake]
    assert old in RECIPE
    (project / "recipe.yaml").write_text(RECIPE.replace(old, new, 1))
    done = steelyard(command, "recipe.yaml", cwd=project)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: recipe.yaml:{line_of_the_change(old, new)}: {message}")
    assert not (project / "runs").exists()


def test_several_mistakes_are_told_at_once_in_the_order_of_the_file(project: Path) -> None:
    text = RECIPE.replace("batch_size: 32", "bath_size: 32").replace("rows: 1200", "rows: many").replace("kind: grpo", "kind: grop")
    (project / "recipe.yaml").write_text(text)
    done = steelyard("run", "recipe.yaml", cwd=project)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    places = [done.stderr.index(words) for words in ("rows is 'many'", "unknown key 'bath_size'", "no stage named 'grop'")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["recipe.yaml", "stages.sft.lrr=3"],
            "override 'stages.sft.lrr=3': unknown key 'lrr' in a stage of kind 'sft' (did you mean 'lr'?)",
        ),
        (["quikstart"], "'quikstart'"),
        (["recipe.yaml", "--until", "sft/stf"], "no step 'sft/stf' in the plan (did you mean 'sft/sft'"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_with_the_nearest_name(arguments: list[str], message: str, project: Path) -> None:
    (project / "recipe.yaml").write_text(RECIPE)
    done = steelyard("run", *arguments, cwd=project)
    assert done.returncode == 2 and message in done.stderr and "did you mean" in done.stderr and "Traceback" not in done.stderr
    assert not (project / RUN / "artifacts").exists()
    shutil.rmtree(project / "runs", ignore_errors=True)


class Bomb:
    """What unpickles as the creation of a file."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.place,))


def refused(project: Path, *overrides: str) -> str:
    """The words with which the base model is refused; nothing comes of the run."""
    done = steelyard("run", "recipe.yaml", *overrides, cwd=project)
    assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: step 'base' failed: ")
    assert list((project / RUN / "artifacts").iterdir()) == [] and not (project / RUN / "champion").exists()
    assert not processes_of(project)
    return last


def test_a_base_model_that_is_only_pickled_is_refused_with_the_safe_way_and_never_unpickled(small_project: Path) -> None:
    (small_project / "base" / "model.safetensors").unlink()
    fired = small_project / "fired"
    (small_project / "base" / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(fired)))
    words = refused(small_project)
    assert "holds its weights only as pickle (pytorch_model.bin)" in words and "convert it to safetensors" in words
    assert not fired.exists()


def test_a_pickle_file_as_base_model_is_refused_and_never_unpickled(small_project: Path) -> None:
    fired = small_project / "fired"
    (small_project / "weights.bin").write_bytes(pickle.dumps(Bomb(fired)))
    words = refused(small_project, "base.model=weights.bin")
    assert "weights.bin' is a pickle file, and unpickling runs code from it" in words
    assert not fired.exists()


@pytest.fixture
def with_own_code(small_project: Path) -> Path:
    """A base model of a type that only the Python beside it knows, which leaves a mark when it is run."""
    config = json.loads((small_project / "base" / "config.json").read_text())
    names = {"AutoConfig": "modelling.OwnConfig", "AutoModelForCausalLM": "modelling.OwnModel"}
    (small_project / "base" / "config.json").write_text(json.dumps({**config, "model_type": "homemade", "auto_map": names}))
    code = f"open({str(small_project / 'fired')!r}, 'w').close()\nraise RuntimeError('the model brought its own code')\n"
    (small_project / "base" / "modelling.py").write_text(code)
    return small_project


def test_a_base_model_with_its_own_code_is_refused_by_name_and_the_code_is_not_run(with_own_code: Path) -> None:
    words = refused(with_own_code)
    assert "brings its own Python code, which is off by default" in words
    assert "write what `base.model` says once more as `base.trust_remote_code`" in words
    assert not (with_own_code / "fired").exists()


def test_own_code_that_the_recipe_allows_by_name_is_run(with_own_code: Path) -> None:
    done = steelyard("run", "recipe.yaml", "base.trust_remote_code=base", cwd=with_own_code)
    assert done.returncode != 0 and "the model brought its own code" in done.stderr
    assert (with_own_code / "fired").exists()


def test_leave_given_to_another_model_is_no_leave(with_own_code: Path) -> None:
    done = steelyard("run", "recipe.yaml", "base.trust_remote_code=somebody/else", cwd=with_own_code)
    assert done.returncode == 2 and "write its reference 'base' again" in done.stderr and "Traceback" not in done.stderr
    assert not (with_own_code / "fired").exists()


def test_own_code_beside_a_model_type_that_is_known_is_left_alone(small_project: Path) -> None:
    config = json.loads((small_project / "base" / "config.json").read_text())
    names = {"AutoModelForCausalLM": "modelling.OwnModel"}
    (small_project / "base" / "config.json").write_text(json.dumps({**config, "auto_map": names}))
    (small_project / "base" / "modelling.py").write_text(f"open({str(small_project / 'fired')!r}, 'w').close()\n")
    done = steelyard("run", "recipe.yaml", "--until", "base", cwd=small_project)
    assert done.returncode == 0, done.stderr
    assert not (small_project / "fired").exists()
    folder = small_project / RUN / "champion"
    assert not list(folder.glob("*.py")) and "auto_map" not in json.loads((folder / "config.json").read_text())


def test_a_base_model_that_is_nowhere_is_named(small_project: Path) -> None:
    words = refused(small_project, "base.model=bsae")
    assert "base model 'bsae' is no local folder" in words and "give a local folder or a .gguf file to work offline" in words
