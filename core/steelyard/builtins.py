"""What core itself contributes, by the same hooks as anyone's plugin: the gate's policy, the local launcher, its recipes, mirrors of
datasets."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from steelyard.hookspecs import hookimpl
from steelyard.protocols import Resolved
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
        config=LazyRef("steelyard.run.local_config:LocalConfig"),
        summary="one worker process on this machine, kept warm for the steps that follow",
    )
    yield LauncherSpec(
        "torchrun",
        impl=LazyRef("steelyard.run.torchrun:TorchrunLauncher"),
        config=LazyRef("steelyard.run.torchrun_config:TorchrunConfig"),
        summary="several worker processes on this machine that share the training of a stage, started by torchrun",
    )


@hookimpl
def steelyard_recipes() -> Iterator[RecipeSpec]:
    seen: set[str] = set()
    for folder in recipe_folders():
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name not in seen:
                seen.add(name)
                yield RecipeSpec(name, path, _summary(path))


@hookimpl(trylast=True)
def steelyard_resolve_dataset(ref: str) -> Resolved | None:
    from steelyard.dataset_mirrors import find_mirror

    return find_mirror(ref)


def recipe_folders() -> tuple[Path, ...]:
    """Folders of the recipes shipped with Steelyard: inside the installed package, or ``recipes/`` of the checkout an editable
    install points to."""
    package = Path(str(files("steelyard")))
    checkout = package.parent.parent
    places = [package / "recipes"]
    if (checkout / "pyproject.toml").is_file() and package.parent.name == "core":
        places.append(checkout / "recipes")
    return tuple(folder for folder in places if folder.is_dir())


def _summary(path: Path) -> str:
    """The recipe's ``summary`` for lists. Every command asks for it, so the file is not parsed: the text on the key's own line counts."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        text = next((line.removeprefix("summary:") for line in lines if line.startswith("summary:")), "").strip()
    if text[:1] in ("'", '"') and text[-1:] == text[:1]:
        return text[1:-1]
    return text.partition(" #")[0].rstrip()
