"""The run folder: where everything is, and how a new one begins.

::

    recipe.yaml resolved.json manifest.json   what was asked; what it meant; what ran it
    ledger.db metrics.jsonl                   the record
    artifacts/<key>/ champion                 what was made, and the link to the model that holds the title
    cache/ checkpoints/<key>/ logs/<step>.log what may be deleted once the run is done
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.errors import DataError, UsageError
from steelyard.run.durable import storage_errors, write_json, write_text
from steelyard.run.ledger import LEDGER_NAME
from steelyard.run.lock import LOCK_NAME
from steelyard.run.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from steelyard.plugins import Registry
    from steelyard.recipe.loading import LoadedRecipe
    from steelyard.recipe.schema import Recipe

__all__ = ["RunFolder", "choose_folder"]

_RESOLVED = "resolved.json"


@dataclass(frozen=True)
class RunFolder:
    """The places of a run."""

    path: Path

    @property
    def ledger(self) -> Path:
        return self.path / LEDGER_NAME

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def champion(self) -> Path:
        """The link to the model that holds the title."""
        return self.path / "champion"

    @property
    def begun(self) -> bool:
        """Whether a recipe was put here; the last thing that :meth:`begin` does."""
        return (self.path / _RESOLVED).is_file()

    def begin(self, loaded: LoadedRecipe) -> None:
        """Writes down what was asked and what it means. Errors: :class:`~steelyard.errors.StorageError`."""
        write_text(self.path / "recipe.yaml", loaded.text)
        places = {"recipe": str(loaded.path), **self._recipe_places(loaded.base)}
        write_json(self.path / MANIFEST_NAME, {"format": 1, **places, "sessions": []})
        write_json(self.path / _RESOLVED, loaded.recipe.to_json())

    def change_launcher(self, loaded: LoadedRecipe) -> None:
        """Goes on with another launcher than the run was begun with, where ``loaded`` is the same recipe otherwise."""
        if self.resolved() != loaded.recipe.to_json():
            write_text(self.path / "recipe.yaml", loaded.text)
            write_json(self.path / _RESOLVED, loaded.recipe.to_json())

    def add_session(self, session: dict[str, Any]) -> None:
        """Notes in the manifest that a session begins."""
        manifest = self.manifest()
        write_json(self.path / MANIFEST_NAME, {**manifest, "sessions": [*manifest["sessions"], session]})

    def permit_unsafe_local(self) -> None:
        """Notes in the manifest, for good, that model-written code may run without a sandbox in this run."""
        write_json(self.path / MANIFEST_NAME, {**self.manifest(), "allow_unsafe_local": True})

    @property
    def allows_unsafe_local(self) -> bool:
        return bool(self.manifest().get("allow_unsafe_local"))

    def manifest(self) -> dict[str, Any]:
        return self._read(MANIFEST_NAME)

    def resolved(self) -> dict[str, Any]:
        """The resolved recipe as JSON."""
        return self._read(_RESOLVED)

    def recipe(self, registry: Registry) -> Recipe:
        """The resolved recipe. Errors: :class:`~steelyard.errors.RecipeError`."""
        from steelyard.recipe.schema import Recipe

        return Recipe.from_json(self.resolved(), registry, self.recipe_dir())

    def recipe_dir(self) -> Path:
        """The folder that the recipe's relative paths start from: as it lies to the run, so that both can be moved together, or where it
        was when the run began. Errors: :class:`UsageError` where it is in neither place."""
        manifest = self.manifest()
        noted, name = Path(manifest["recipe_dir"]), Path(manifest["recipe"]).name
        beside = self.path.resolve() / manifest.get("recipe_dir_from_run", noted)
        # Another folder may lie there by chance; the recipe's own holds the recipe.
        for folder in (beside, noted):
            if (folder / name).is_file():
                return folder.resolve()
        if noted.is_dir():
            return noted
        raise UsageError(
            f"the folder of the recipe {name!r}, which its relative paths start from, is neither at {str(noted)!r} nor at "
            f"{os.path.normpath(beside)!r}: say where it is with `steelyard resume {self.path} --recipe-dir FOLDER`"
        )

    def move_recipe_dir(self, recipe_dir: Path) -> None:
        """Notes where the recipe's folder is now. Errors: :class:`UsageError` when it is no folder."""
        if not recipe_dir.is_dir():
            raise UsageError(f"--recipe-dir {str(recipe_dir)!r} is not a folder: name the one that the recipe's relative paths start from")
        write_json(self.path / MANIFEST_NAME, {**self.manifest(), **self._recipe_places(recipe_dir.resolve())})

    def _recipe_places(self, recipe_dir: Path) -> dict[str, str]:
        return {"recipe_dir": str(recipe_dir), "recipe_dir_from_run": os.path.relpath(recipe_dir, self.path.resolve())}

    def prepare(self) -> None:
        """Makes the subfolders. Errors: :class:`~steelyard.errors.StorageError`."""
        with storage_errors(self.path):
            for folder in (self.artifacts, self.checkpoints, self.logs, self.path / "cache"):
                folder.mkdir(parents=True, exist_ok=True)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{str(self.path)!r} is not a run folder: it has no {name}") from None
        except ValueError as error:
            raise DataError(f"{str(path)!r} is torn: {error}") from None
        return values


def choose_folder(loaded: LoadedRecipe, wanted: Path | None, runs: Path = Path("runs")) -> tuple[RunFolder, str]:
    """The folder that a recipe runs in, and a remark for the human where that needs one.

    Without ``wanted`` it is ``runs/<name>``, or the next free number behind it when another recipe is there. A folder that has the same
    resolved recipe, the launcher apart, is gone on with. Errors: :class:`UsageError` when ``wanted`` holds something else."""
    resolved = loaded.recipe.to_json()
    if wanted is not None:
        folder = RunFolder(wanted)
        if folder.begun and not _same_work(folder.resolved(), resolved):
            difference = _difference(folder.resolved(), resolved)
            raise UsageError(f"{str(wanted)!r} is a run of another recipe ({difference}): name another --run-dir")
        if not folder.begun and _occupied(wanted):
            raise UsageError(f"{str(wanted)!r} is not empty and not a run: name another --run-dir")
        return folder, ""
    for path in _candidates(runs / loaded.recipe.name):
        folder = RunFolder(path)
        if folder.begun and _same_work(folder.resolved(), resolved):
            return folder, ""
        if not folder.begun and not _occupied(path):
            first = runs / loaded.recipe.name
            remark = f"{str(first)!r} is a run of another version of this recipe; this one goes to {str(path)!r}" if path != first else ""
            return folder, remark
    raise AssertionError("the numbers do not end")


def _same_work(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two resolved recipes differ in nothing but where their steps run, on which no key depends."""
    return {**one, "launcher": None} == {**other, "launcher": None}


def _candidates(first: Path) -> Iterator[Path]:
    yield first
    number = 2
    while True:
        yield first.with_name(f"{first.name}-{number}")
        number += 1


def _occupied(path: Path) -> bool:
    """Whether there is anything but what a begin that was cut short leaves."""
    if not path.exists():
        return False
    if not path.is_dir():
        return True
    own = {"recipe.yaml", MANIFEST_NAME, LOCK_NAME}
    return any(entry.name not in own and ".tmp-" not in entry.name for entry in path.iterdir())


def _difference(old: Any, new: Any, place: str = "") -> str:
    """The first place where two resolved recipes differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}, key=lambda name: (name == "launcher", name)):
            if old.get(name) != new.get(name):
                return _difference(old.get(name), new.get(name), f"{place}.{name}".lstrip("."))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            if a != b:
                return _difference(a, b, f"{place}.{number}")
    return f"{place} is {_short(old)} there and {_short(new)} here"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"
