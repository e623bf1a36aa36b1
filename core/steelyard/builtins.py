"""What core itself contributes, by the same hooks as anyone's plugin: the gate's policy, the local launcher, its recipes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from steelyard.hookspecs import hookimpl
from steelyard.specs import GatePolicySpec, LauncherSpec, LazyRef, RecipeSpec

__all__ = ["recipe_folders"]


@hookimpl
def steelyard_gate_policies() -> Iterator[GatePolicySpec]:
    yield GatePolicySpec(
        "non_inferiority",
        impl=LazyRef("steelyard.gate:weigh"),
        config=LazyRef("steelyard.gate:PolicyConfig"),
        summary="promote when no guarded task got worse by more than its margin and the weighted average did not fall",
    )


@hookimpl
def steelyard_launchers() -> Iterator[LauncherSpec]:
    yield LauncherSpec(
        "local",
        impl=LazyRef("steelyard.run.launchers:LocalLauncher"),
        summary="one worker process on this machine, kept warm for the steps that follow",
    )


@hookimpl
def steelyard_recipes() -> Iterator[RecipeSpec]:
    seen: set[str] = set()
    for folder in recipe_folders():
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name not in seen:
                seen.add(name)
                yield RecipeSpec(name, path, _first_comment(path))


def recipe_folders() -> tuple[Path, ...]:
    """Folders of the recipes shipped with Steelyard: inside the installed package, or ``recipes/`` of the checkout an editable
    install points to."""
    package = Path(str(files("steelyard")))
    checkout = package.parent.parent
    places = [package / "recipes"]
    if (checkout / "pyproject.toml").is_file() and package.parent.name == "core":
        places.append(checkout / "recipes")
    return tuple(folder for folder in places if folder.is_dir())


def _first_comment(path: Path) -> str:
    """The recipe's summary for lists: its first line, when that is a comment."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        first = lines.readline().strip()
    return first.lstrip("# ") if first.startswith("#") else ""
