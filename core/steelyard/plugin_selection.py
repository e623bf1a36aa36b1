"""Which plugins there are, and which are wanted: entry points, and the lists of the command line, the environment and the project."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import NamedTuple

from steelyard.errors import UsageError, nearest

__all__ = ["Found", "find_plugins", "normal", "project_lists", "reasons_to_leave_out"]


def normal(name: str) -> str:
    """A distribution's or plugin's name as names are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).strip().lower()


class Found(NamedTuple):
    """An entry point, and the name and version of the distribution that declares it."""

    entry: EntryPoint
    distribution: str
    version: str


def find_plugins(group: str) -> list[Found]:
    """Every entry point of the group: Steelyard's own first, then by distribution and name, in the same order on every machine."""
    read: dict[int, tuple[str, str]] = {}  # a distribution parses its whole metadata, README included, whenever it is asked
    found = []
    for entry in entry_points(group=group):
        if id(entry.dist) not in read:
            read[id(entry.dist)] = _name_and_version(entry.dist)
        found.append(Found(entry, *read[id(entry.dist)]))
    return sorted(found, key=lambda f: (normal(f.distribution) != "steelyard", normal(f.distribution), f.entry.name))


def _name_and_version(distribution: Distribution | None) -> tuple[str, str]:
    if distribution is None:
        return "unknown", "0"
    metadata = distribution.metadata
    return metadata["Name"] or "unknown", metadata["Version"] or "0"


def reasons_to_leave_out(
    disabled: Iterable[str], allowed: Iterable[str] | None, environ: Mapping[str, str], project: Path | None
) -> Callable[[Found], str]:
    """Says of a plugin why it is left out, or ''; see :func:`steelyard.plugins.load_registry` for the lists."""
    file, told = project_lists(project)
    off = {normal(n): f"left out by plugins.disabled in {file}" for n in told.get("disabled", ())}
    off |= {normal(n): "left out by STEELYARD_DISABLE_PLUGINS" for n in environ.get("STEELYARD_DISABLE_PLUGINS", "").split(",")}
    off |= {normal(n): "left out by --no-plugin" for n in disabled}
    only = allowed if allowed is not None else told.get("allowed")
    keep = None if only is None else {normal(n) for n in only}
    where = "" if allowed is not None else f" of {file}"

    def reason(plugin: Found) -> str:
        distribution = normal(plugin.distribution)
        names = {normal(plugin.entry.name), distribution}
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
