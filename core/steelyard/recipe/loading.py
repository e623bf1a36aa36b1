"""From a recipe's file and the overrides of a command line to the checked recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from steelyard.errors import PluginError, UsageError
from steelyard.plugins import Registry
from steelyard.recipe.checks import check
from steelyard.recipe.complaints import Complaints, complaints_in, keys_of
from steelyard.recipe.document import Document, read_document
from steelyard.recipe.expansion import expand
from steelyard.recipe.overrides import apply_overrides
from steelyard.recipe.schema import Recipe

__all__ = ["LoadedRecipe", "find_recipe", "load_recipe", "recipe_from"]

_FILE = re.compile(r"\.ya?ml$")
_IN_FOLDER = "recipe.yaml"


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and where it came from."""

    recipe: Recipe
    text: str
    """The file as it was written."""
    path: Path
    base: Path
    """The folder that the recipe's relative paths start from."""


def load_recipe(ref: str | Path, overrides: Sequence[str], registry: Registry) -> LoadedRecipe:
    """Reads, completes and checks a recipe. ``ref`` is a file, or the name of a recipe that a plugin brings.

    Raises :class:`UsageError` for a recipe that is not there, :class:`RecipeError` for one that is wrong (its message holds the first few
    complaints, a line each), and :class:`PluginError` where a plugin is to blame."""
    path = find_recipe(ref, registry)
    document = read_document(path)
    text = path.read_text(encoding="utf-8-sig")
    apply_overrides(document, overrides, keys_of(Recipe))
    complaints = expand(document)
    if complaints:
        raise document.error(complaints)
    base = path.resolve().parent
    return LoadedRecipe(_checked(document, registry, base), text, path, base)


def find_recipe(ref: str | Path, registry: Registry) -> Path:
    """The file of a recipe: what ends in ``.yaml`` is a path, anything else a name, or else a file or a folder with a recipe.yaml."""
    if isinstance(ref, Path) or (_FILE.search(ref) and not Path(ref).is_dir()):
        path = _in_folder(Path(ref).expanduser())
        if not path.is_file():
            raise UsageError(f"no recipe file {str(path)!r}; `steelyard recipes list` shows those that have names")
        return path
    known = registry.all("recipes")
    place = _in_folder(Path(ref).expanduser())
    if ref not in known and place.is_file():
        return place
    if ref not in known and place.is_dir():
        raise UsageError(f"the folder {str(place)!r} holds no {_IN_FOLDER}: give a recipe's file, or write one by `steelyard init {ref}`")
    return Path(registry.get("recipes", ref).path)


def _in_folder(path: Path) -> Path:
    """A folder stands for the recipe that `steelyard init` writes into it."""
    inside = path / _IN_FOLDER
    return inside if inside.is_file() else path


def recipe_from(data: Mapping[str, Any], registry: Registry, base: Path) -> Recipe:
    """A resolved recipe, as :meth:`Recipe.to_json` wrote it, checked again."""
    return _checked(Document("the resolved recipe", dict(data)), registry, base)


def _checked(document: Document, registry: Registry, base: Path) -> Recipe:
    try:
        recipe = Recipe.model_validate(document.data, context={"registry": registry, "base": base})
    except ValidationError as error:
        _raise(document, complaints_in(error, Recipe, document.data, Recipe.what))
        raise
    _raise(document, check(recipe, registry, base))
    return recipe


def _raise(document: Document, complaints: Complaints) -> None:
    if not complaints:
        return
    error = document.error(complaints)
    if any(complaint.of_plugin for complaint in complaints):
        raise PluginError(str(error))
    raise error
