"""Recipes and suites: read, completed, checked; complaints say file and line. See README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steelyard.recipe.entries import (
        DataEntry,
        EngineEntry,
        LauncherEntry,
        ShaperEntry,
        SourceEntry,
        StageEntry,
        VerifierEntry,
    )
    from steelyard.recipe.json_schema import recipe_schema, suite_schema
    from steelyard.recipe.loading import LoadedRecipe, find_recipe, load_recipe
    from steelyard.recipe.schema import Base, Decontaminate, EvaluateEntry, GateEntry, Recipe, Round
    from steelyard.recipe.suite import Suite, SuiteTask, find_suite, load_suite

__all__ = [
    "Base",
    "DataEntry",
    "Decontaminate",
    "EngineEntry",
    "EvaluateEntry",
    "GateEntry",
    "LauncherEntry",
    "LoadedRecipe",
    "Recipe",
    "Round",
    "ShaperEntry",
    "SourceEntry",
    "StageEntry",
    "Suite",
    "SuiteTask",
    "VerifierEntry",
    "find_recipe",
    "find_suite",
    "load_recipe",
    "load_suite",
    "recipe_schema",
    "suite_schema",
]

_HOMES = {
    "entries": (
        "DataEntry",
        "EngineEntry",
        "LauncherEntry",
        "ShaperEntry",
        "SourceEntry",
        "StageEntry",
        "VerifierEntry",
    ),
    "json_schema": ("recipe_schema", "suite_schema"),
    "loading": ("LoadedRecipe", "find_recipe", "load_recipe"),
    "schema": ("Base", "Decontaminate", "EvaluateEntry", "GateEntry", "Recipe", "Round"),
    "suite": ("Suite", "SuiteTask", "find_suite", "load_suite"),
}


def __getattr__(name: str) -> Any:
    """Pydantic and the models are imported when a name is first used."""
    import importlib

    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"steelyard.recipe.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
