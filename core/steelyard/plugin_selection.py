"""Which plugins are wanted: the lists of the command line, the environment and the project."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path

from steelyard.errors import UsageError, nearest

__all__ = ["distribution_of", "entry_point_order", "normal", "project_lists", "reasons_to_leave_out"]


def normal(name: str) -> str:
    """A distribution's or plugin's name as names are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).strip().lower()


def distribution_of(entry: EntryPoint) -> tuple[str, str]:
    """The name and version of the distribution that declares an entry point."""
    return (entry.dist.name, entry.dist.version) if entry.dist is not None else ("unknown", "0")


def entry_point_order(entry: EntryPoint) -> tuple[bool, str, str]:
    """Steelyard's own plugins first, then by distribution and name: the same order on every machine."""
    distribution = normal(distribution_of(entry)[0])
    return distribution != "steelyard", distribution, entry.name


def reasons_to_leave_out(
    disabled: Iterable[str], allowed: Iterable[str] | None, environ: Mapping[str, str], project: Path | None
) -> Callable[[EntryPoint], str]:
    """Says of an entry point why it is left out, or ''; see :func:`steelyard.plugins.load_registry` for the lists."""
    file, told = project_lists(project)
    off = {normal(n): f"left out by plugins.disabled in {file}" for n in told.get("disabled", ())}
    off |= {normal(n): "left out by STEELYARD_DISABLE_PLUGINS" for n in environ.get("STEELYARD_DISABLE_PLUGINS", "").split(",")}
    off |= {normal(n): "left out by --no-plugin" for n in disabled}
    only = allowed if allowed is not None else told.get("allowed")
    keep = None if only is None else {normal(n) for n in only}
    where = "" if allowed is not None else f" of {file}"

    def reason(entry: EntryPoint) -> str:
        distribution = normal(distribution_of(entry)[0])
        names = {normal(entry.name), distribution}
        listed = next((off[name] for name in sorted(names) if name in off), "")
        if listed or keep is None or distribution == "steelyard" or names & keep:
            return listed
        return f"not in plugins.allowed{where}"

    return reason


def project_lists(project: Path | None) -> tuple[Path | None, dict[str, list[str]]]:
    """``plugins.disabled`` and ``plugins.allowed`` under ``[tool.steelyard]`` of a project's pyproject.toml, and the file's path.

    The file is the nearest one upwards from ``project`` (None: the current folder)."""
    start = (project or Path.cwd()).absolute()
    folders = [start, *start.parents]
    file = next((f / "pyproject.toml" for f in folders if (f / "pyproject.toml").is_file()), None)
    if file is None:
        return None, {}
    import tomllib

    try:
        table = tomllib.loads(file.read_text("utf-8")).get("tool", {}).get("steelyard", {}).get("plugins", {})
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from error
    if not isinstance(table, dict):
        raise UsageError(f"{file}: tool.steelyard.plugins is {table!r}, not a table")
    for key, names in table.items():
        if key not in ("disabled", "allowed"):
            raise UsageError(f"{file}: unknown key {key!r} in tool.steelyard.plugins{nearest(key, ('disabled', 'allowed'))}")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise UsageError(f"{file}: tool.steelyard.plugins.{key} is {names!r}, not a list of names")
    return file, table
