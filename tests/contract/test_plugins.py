"""Third-party distributions, built and installed for real, side by side: each is isolated, reported, and refused where it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from steelyard.errors import PluginError, UsageError
from steelyard.events import GateEvent, RoundDecided
from steelyard.plugins import Registry, load_registry

THIRD_PARTY = Path(__file__).parent.parent / "fixtures" / "third_party"
ROMAN = {"id": 1, "response": "XIV", "reference": 14}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every distribution of fixtures/third_party, built by hatchling and installed by pip."""
    target = tmp_path_factory.mktemp("third_party")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    folders = sorted(str(p.parent) for p in THIRD_PARTY.glob("*/pyproject.toml"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", str(target), *folders]
    subprocess.run(pip, check=True, capture_output=True, text=True, timeout=300)
    return target


class Shell:
    """The real program with the installed plugins on its path."""

    def __init__(self, target: Path, folder: Path):
        self.target, self.folder = target, folder

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, [str(self.target), os.environ.get("PYTHONPATH", "")]))
        variables = os.environ | {"PYTHONPATH": path, "STEELYARD_DISABLE_PLUGINS": ""} | environment
        command = [sys.executable, "-m", "steelyard", *arguments]
        return subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=120)

    def plugins(self, *options: str, **environment: str) -> dict[str, dict[str, Any]]:
        done = self(*options, "plugins", "list", "--json", **environment)
        assert done.returncode == 0, done.stderr
        return {info["name"]: info for info in json.loads(done.stdout)["plugins"]}

    def verify(self, kind: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "in.jsonl").write_text(json.dumps(ROMAN) + "\n")
        return self(*options, "verify", kind, "in.jsonl", **environment)


@pytest.fixture
def shell(installed: Path, tmp_path: Path) -> Shell:
    (tmp_path / "pyproject.toml").write_text("")
    return Shell(installed, tmp_path)


@pytest.fixture(scope="session")
def listed(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "pyproject.toml").write_text("")
    return Shell(installed, folder).plugins()


@pytest.fixture
def registry(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.syspath_prepend(str(installed))
    return load_registry(environ={}, project=tmp_path)


CLASH = (
    "verifier 'coin' is provided by steelyard-same-name-a 1.0.0 (plugin 'same_name_a') and steelyard-same-name-b 2.5.0 "
    "(plugin 'same_name_b'): write 'steelyard-same-name-a/coin' or 'steelyard-same-name-b/coin', or leave one out with --no-plugin"
)


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("roman", "active", ""),
        ("prints", "active", ""),
        ("import_error", "broken", "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
        ("wrong_types", "broken", "steelyard_verifiers gave 'wrongly_typed' (str), not a VerifierSpec"),
        ("misspelt_hook", "broken", "unknown hook 'steelyard_verifyers' (did you mean 'steelyard_verifiers'?)"),
        ("newer_api", "incompatible", "needs hook API 99, this Steelyard has 1: upgrade steelyard"),
        ("sys_exit", "broken", "called sys.exit(0) while it was loaded"),
        ("same_name_a", "conflict", CLASH),
        ("same_name_b", "conflict", CLASH),
    ],
)
def test_the_list_says_what_became_of_every_plugin(listed: dict[str, dict[str, Any]], name: str, status: str, error: str) -> None:
    assert (listed[name]["status"], listed[name]["error"]) == (status, error)


def test_every_built_in_is_active_beside_broken_plugins(listed: dict[str, dict[str, Any]]) -> None:
    own = {name: info["status"] for name, info in listed.items() if info["distribution"] == "steelyard"}
    assert {"core", "data", "torch", "verifiers"} <= set(own)
    assert set(own.values()) == {"active"}


def test_a_broken_plugin_contributes_nothing_and_a_sound_one_says_what(listed: dict[str, dict[str, Any]]) -> None:
    assert listed["roman"]["provides"] == {"verifiers": ["roman_numerals"]}
    assert all(info["provides"] == {} for info in listed.values() if info["status"] in ("broken", "incompatible"))


def test_the_list_names_distribution_version_and_module(listed: dict[str, dict[str, Any]]) -> None:
    roman = listed["roman"]
    assert (roman["distribution"], roman["version"], roman["module"]) == ("steelyard-roman", "1.2.0", "steelyard_roman")


def test_what_a_plugin_prints_is_reported_and_never_on_stdout(listed: dict[str, dict[str, Any]], shell: Shell) -> None:
    assert listed["prints"]["printed"] == "hello from an import\nhello from a hook"
    done = shell("plugins", "list", "--json")
    json.loads(done.stdout)
    assert "past sys.stdout" in done.stderr


def test_the_readable_list_says_the_same(shell: Shell) -> None:
    done = shell("plugins", "list")
    assert done.returncode == 0
    assert CLASH in done.stdout
    assert "import_error (steelyard-import-error 0.3.0) is broken: ModuleNotFoundError" in done.stdout


def test_a_sound_plugin_serves_a_command(shell: Shell) -> None:
    done = shell.verify("roman_numerals")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "correct"


def test_a_verifier_that_prints_and_forges_in_its_process_neither_scores_nor_reaches_stdout(shell: Shell) -> None:
    done = shell.verify("chatty")
    assert done.returncode == 0, done.stderr
    [row] = [json.loads(line) for line in done.stdout.splitlines()]
    assert (row["outcome"], row["detail"]) == ("incorrect", "honest")


@pytest.mark.parametrize(
    ("kind", "plugin", "why"),
    [
        ("from_broken", "'import_error' (steelyard-import-error 0.3.0)", "is broken: ModuleNotFoundError: No module named"),
        ("wrongly_typed", "'wrong_types' (steelyard-wrong-types 0.1.0)", "is broken: steelyard_verifiers gave 'wrongly_typed'"),
        ("from_the_future", "'newer_api' (steelyard-newer-api 9.0.0)", "is incompatible: needs hook API 99"),
    ],
)
def test_what_needs_a_plugin_that_is_not_active_is_told_which_and_why_with_exit_code_4(
    shell: Shell, kind: str, plugin: str, why: str
) -> None:
    done = shell.verify(kind)
    assert done.returncode == 4
    assert done.stdout == ""
    assert f"no verifier named {kind!r}" in done.stderr
    assert f"plugin {plugin} mentions it, but {why}" in done.stderr


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("verifiers.bare.kind=coin", CLASH),
        ("stages.sft.kind=from_broken", "plugin 'import_error' (steelyard-import-error 0.3.0) mentions it, but is broken"),
        ("verifiers.bare.kind=from_the_future", "mentions it, but is incompatible: needs hook API 99"),
    ],
)
def test_a_run_that_needs_a_plugin_that_is_down_is_refused_before_it_begins(
    shell: Shell, command: str, override: str, message: str
) -> None:
    done = shell(command, "quickstart", override)
    assert done.returncode == 4
    assert message in done.stderr
    assert override in done.stderr
    assert not (shell.folder / "runs").exists()


def test_a_name_that_nobody_has_is_a_usage_error_that_still_names_the_plugins_that_are_down(shell: Shell) -> None:
    done = shell.verify("roman_numeral")
    assert done.returncode == 2
    assert "no verifier named 'roman_numeral' (did you mean 'roman_numerals'?)" in done.stderr
    assert "'import_error' (broken)" in done.stderr and "steelyard plugins list" in done.stderr


def test_a_name_taken_twice_is_refused_with_exit_code_4_and_both_distributions(shell: Shell) -> None:
    done = shell.verify("coin")
    assert done.returncode == 4
    assert f"error: {CLASH}\n" in done.stderr


@pytest.mark.parametrize("letter", ["a", "b"])
def test_the_distribution_in_front_says_which_of_two_is_meant(shell: Shell, letter: str) -> None:
    done = shell.verify(f"steelyard-same-name-{letter}/coin")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["detail"] == f"judged by {letter}"


def test_a_conflict_costs_only_the_name_that_is_taken_twice(shell: Shell) -> None:
    assert json.loads(shell.verify("only_a").stdout)["detail"] == "judged by a"


def test_leaving_one_of_two_out_ends_the_conflict(shell: Shell) -> None:
    done = shell.verify("coin", "--no-plugin", "same_name_a")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["detail"] == "judged by b"


@pytest.mark.parametrize("name", ["roman", "steelyard-roman", "Steelyard_Roman"])
def test_a_plugin_is_left_out_by_its_name_or_its_distribution_s(shell: Shell, name: str) -> None:
    done = shell.verify("roman_numerals", "--no-plugin", name)
    assert done.returncode == 4
    assert "plugin 'roman' (steelyard-roman 1.2.0) mentions it, but is disabled: left out by --no-plugin" in done.stderr


def test_a_misspelt_name_to_leave_out_is_an_error(shell: Shell) -> None:
    done = shell("--no-plugin", "romann", "plugins", "list")
    assert done.returncode == 2
    assert "--no-plugin 'romann': no such plugin (did you mean 'roman'?)" in done.stderr


def test_the_environment_leaves_plugins_out(shell: Shell) -> None:
    plugins = shell.plugins(STEELYARD_DISABLE_PLUGINS="roman, steelyard-prints,nobody")
    assert [plugins[name]["error"] for name in ("roman", "prints")] == ["left out by STEELYARD_DISABLE_PLUGINS"] * 2
    assert plugins["same_name_a"]["status"] == "conflict"


def test_a_plugin_that_is_left_out_is_not_imported(shell: Shell) -> None:
    done = shell("--no-plugin", "prints", "plugins", "list", "--json")
    assert "past sys.stdout" not in done.stderr + done.stdout


def test_the_project_s_pyproject_leaves_plugins_out_also_below_its_folder(shell: Shell) -> None:
    (shell.folder / "pyproject.toml").write_text('[tool.steelyard.plugins]\ndisabled = ["roman"]\n')
    below = shell.folder / "deep" / "down"
    below.mkdir(parents=True)
    for folder in (shell.folder, below):
        roman = Shell(shell.target, folder).plugins()["roman"]
        assert roman["status"] == "disabled"
        assert roman["error"] == f"left out by plugins.disabled in {shell.folder / 'pyproject.toml'}"


def test_the_project_s_allow_list_keeps_the_built_ins_and_those_named(shell: Shell) -> None:
    (shell.folder / "pyproject.toml").write_text('[tool.steelyard]\nplugins.allowed = ["steelyard-roman"]\n')
    plugins = shell.plugins()
    active = {name for name, info in plugins.items() if info["status"] == "active" and info["distribution"] != "steelyard"}
    assert active == {"roman"}
    assert plugins["verifiers"]["status"] == "active"
    assert plugins["sys_exit"]["error"] == f"not in plugins.allowed of {shell.folder / 'pyproject.toml'}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.steelyard.plugins]\ndisable = []\n", "unknown key 'disable' in tool.steelyard.plugins (did you mean 'disabled'?)"),
        ("[tool.steelyard.plugins]\nallowed = 'roman'\n", "tool.steelyard.plugins.allowed is 'roman', not a list of names"),
        ("[tool.steelyard\n", "cannot be read"),
    ],
)
def test_a_wrong_list_in_the_project_is_an_error_that_names_the_file(shell: Shell, text: str, message: str) -> None:
    (shell.folder / "pyproject.toml").write_text(text)
    done = shell("plugins", "list")
    assert done.returncode == 2
    assert f"{shell.folder / 'pyproject.toml'}: {message}" in done.stderr


def test_the_check_of_a_sound_plugin_finds_no_problem(shell: Shell) -> None:
    done = shell("plugins", "check", "steelyard-roman", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["problems"] == 0


@pytest.mark.parametrize(
    ("name", "finding"), [("import_error", "ModuleNotFoundError"), ("same_name_a", "says 'correct' of"), ("misspelt_hook", "unknown hook")]
)
def test_the_check_of_a_faulty_plugin_says_what_is_wrong_with_exit_code_4(shell: Shell, name: str, finding: str) -> None:
    done = shell("plugins", "check", name)
    assert done.returncode == 4
    assert finding in done.stdout


def test_an_exception_in_a_notification_is_reported_once_and_goes_no_further(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two"):
        registry.notify(RoundDecided(tmp_path, name, "promote", "because"))
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "plugin 'roman' (steelyard-roman 1.2.0) failed in steelyard_round_decided: RuntimeError('round one was noticed'); not shown again"
    ]


def test_objections_name_the_plugin_that_raises_them(registry: Registry, tmp_path: Path) -> None:
    assert registry.objections(GateEvent(None, "ides", tmp_path, tmp_path, {})) == [
        "roman (steelyard-roman 1.2.0): no promotion on the ides"
    ]
    assert registry.objections(GateEvent(None, "calends", tmp_path, tmp_path, {})) == []


@pytest.mark.parametrize(
    ("body", "objections"),
    [
        ("return None", []),
        ("return []", []),
        ("return 'one text'", ["watchdog (local 0): one text"]),
        ("return ['a', 'b']", ["watchdog (local 0): a", "watchdog (local 0): b"]),
        ("return ['']", ["watchdog (local 0): no reason given"]),
        ("return True", ["watchdog (local 0): its hook failed: TypeError(\"'bool' object is not iterable\")"]),
        ("raise KeyError('x')", ["watchdog (local 0): its hook failed: KeyError('x')"]),
        ("raise SystemExit(0)", ["watchdog (local 0): its hook failed: SystemExit(0)"]),
    ],
)
def test_a_veto_hook_that_fails_or_answers_nonsense_objects(tmp_path: Path, body: str, objections: Sequence[str]) -> None:
    code = f"from steelyard import hookimpl\n@hookimpl\ndef steelyard_gate_objections(event):\n    {body}\n"
    registry = _with_local_plugin(tmp_path, "watchdog", code)
    assert registry.objections(GateEvent(None, "r", tmp_path, tmp_path, {})) == objections


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("def steelyard_stages():\n    return []\n", "steelyard_stages is not marked with @hookimpl"),
        ("@hookimpl(wrapper=True)\ndef steelyard_stages():\n    return (yield)\n", "steelyard_stages cannot be wrapped"),
        ("@hookimpl(wrapper=True)\ndef steelyard_gate_objections(event):\n    yield\n    return None\n", "cannot be wrapped"),
        ("@hookimpl\ndef steelyard_metrics(event, step):\n    pass\n", "step"),
        ("@hookimpl\ndef steelyard_stages():\n    return 'sft'\n", "gave 'sft' (str), not an iterable of StageSpec"),
        ("@hookimpl\ndef steelyard_stages():\n    raise OSError('no disk')\n", "OSError: no disk"),
        ("STEELYARD_API = 'two'\n", "STEELYARD_API is 'two', not a number"),
        ("raise BaseException('odd')\n", "BaseException: odd"),
        ("def (\n", "SyntaxError"),
        (
            "from steelyard.specs import *\n@hookimpl\ndef steelyard_verifiers():\n    yield VerifierSpec('v', impl='m:V')\n",
            "impl of 'v' (str) is 'm:V' (str), of the wrong type",
        ),
        (
            "from steelyard.specs import *\n@hookimpl\ndef steelyard_verifiers():\n"
            "    yield VerifierSpec('v', impl=LazyRef('m:V'), isolation='inlined')\n",
            "isolation of 'v' is 'inlined' (did you mean 'inline'?)",
        ),
        (
            "from steelyard.specs import *\n@hookimpl\ndef steelyard_verifiers():\n    yield VerifierSpec('a b', impl=LazyRef('m:V'))\n",
            "'a b' is not a name",
        ),
    ],
)
def test_a_faulty_hook_module_is_broken_with_the_reason_and_serves_no_hook(tmp_path: Path, code: str, error: str) -> None:
    registry = _with_local_plugin(tmp_path, "faulty", f"from steelyard import hookimpl\n{code}")
    [info] = [p for p in registry.plugins if p.name == "faulty"]
    assert info.status == "broken"
    assert error in info.error
    names = [
        hook.plugin_name for caller in vars(registry.hook).values() if hasattr(caller, "get_hookimpls") for hook in caller.get_hookimpls()
    ]
    assert not [name for name in names if name.startswith("local:")]


def test_a_third_party_plugin_cannot_silently_replace_a_built_in(tmp_path: Path) -> None:
    code = (
        "from steelyard import hookimpl\nfrom steelyard.specs import *\n@hookimpl\ndef steelyard_verifiers():\n"
        "    yield VerifierSpec('exact', impl=LazyRef('m:V'))\n"
    )
    registry = _with_local_plugin(tmp_path, "usurper", code)
    with pytest.raises(PluginError, match=r"'exact' is provided by steelyard .* and local 0"):
        registry.get("verifiers", "exact")
    assert registry.get("verifiers", "steelyard/exact").impl.path == "steelyard_verifiers.exact:Exact"
    assert {"steelyard/exact", "local/exact"} <= set(registry.all("verifiers")) and "exact" not in registry.all("verifiers")


def test_an_implementation_that_exits_when_it_is_imported_is_a_plugin_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from steelyard import hookimpl\nfrom steelyard.specs import *\n@hookimpl\ndef steelyard_verifiers():\n"
        "    yield VerifierSpec('exits', impl=LazyRef('module_that_exits:V'))\n"
    )
    registry = _with_local_plugin(tmp_path, "lazy", code)
    (tmp_path / "module_that_exits.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=r"plugin 'lazy' \(local 0\) cannot serve 'exits': cannot load .*SystemExit"):
        registry.load(registry.get("verifiers", "exits"))


def test_options_for_what_takes_none_are_refused(registry: Registry) -> None:
    assert registry.configure(registry.get("verifiers", "only_a"), {}) is None
    with pytest.raises(UsageError, match="'only_a' takes no options, got 'bias'"):
        registry.configure(registry.get("verifiers", "only_a"), {"bias": 1})


def test_the_owner_of_a_descriptor_is_the_plugin_that_gave_it(registry: Registry) -> None:
    assert registry.owner(registry.get("verifiers", "roman_numerals")).distribution == "steelyard-roman"
    assert registry.owner(registry.get("verifiers", "steelyard-same-name-b/coin")).name == "same_name_b"


def test_a_plugin_s_hash_follows_its_files(tmp_path: Path) -> None:
    def hash_of(folder: str, extra: str) -> str:
        (tmp_path / folder).mkdir()
        registry = _with_local_plugin(tmp_path / folder, "hashed", f"from steelyard import hookimpl\n{extra}")
        return next(p.hash for p in registry.plugins if p.name == "hashed")

    first, same, other = hash_of("a", ""), hash_of("b", ""), hash_of("c", "# changed\n")
    assert len(first) == 32
    assert first == same != other


def test_two_registries_share_nothing(installed: Path, tmp_path: Path, registry: Registry) -> None:
    other = load_registry(environ={}, project=tmp_path, disabled=["roman"])
    assert "roman_numerals" in registry.all("verifiers")
    assert "roman_numerals" not in other.all("verifiers")
    assert other.disabled == ("roman",)


def test_an_explicit_allow_list_overrides_the_project_s(installed: Path, tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.steelyard.plugins]\nallowed = ["prints"]\n')
    statuses = {p.name: p.status for p in load_registry(environ={}, project=tmp_path, allowed=["roman"]).plugins}
    assert (statuses["roman"], statuses["prints"], statuses["verifiers"]) == ("active", "disabled", "active")


def test_loading_plugins_imports_no_heavy_library() -> None:
    heavy = "torch transformers datasets lm_eval vllm numpy pyarrow pydantic scipy"
    code = f"import sys; from steelyard.plugins import load_registry; load_registry(); print(*(set('{heavy}'.split()) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def _with_local_plugin(folder: Path, name: str, code: str) -> Registry:
    """A registry that sees one more distribution, ``local`` 0, with one hook module."""
    module = f"local_plugin_{name}"
    (folder / "pyproject.toml").write_text("")
    (folder / f"{module}.py").write_text(code)
    info = folder / "local-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: local\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[steelyard]\n{name} = {module}\n")
    sys.modules.pop(module, None)
    sys.path.insert(0, str(folder))
    try:
        registry = load_registry(environ={}, project=folder)
        for plugin in registry.plugins:
            assert plugin.hash is not None
        return registry
    finally:
        sys.path.remove(str(folder))
