"""JSON Schemas of recipes and suites, for editors: every kind of every active plugin with its own keys, defaults and help.

An entry that a plugin serves becomes one alternative for each kind, told apart by ``kind``. Put the schema's path into a recipe's
first line, and an editor with a YAML language server completes and checks it::

    # yaml-language-server: $schema=recipe.schema.json
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from steelyard.errors import PluginError, SteelyardError
from steelyard.plugins import Registry
from steelyard.recipe.entries import (
    DataEntry,
    EngineEntry,
    Entry,
    LauncherEntry,
    ShaperEntry,
    SourceEntry,
    StageEntry,
    VerifierEntry,
)
from steelyard.recipe.schema import Recipe
from steelyard.recipe.suite import Suite

__all__ = ["recipe_schema", "suite_schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ENTRIES: tuple[type[Entry], ...] = (
    EngineEntry,
    LauncherEntry,
    SourceEntry,
    DataEntry,
    StageEntry,
    VerifierEntry,
    ShaperEntry,
)
_DEFAULTED = ("engine", "launcher", "decontaminate", "gate", "evaluate")
"""Sections that a file may leave out."""
_VARIABLE = {"type": "string", "pattern": r"^\$\{(round|round_name)\}$"}


def recipe_schema(registry: Registry, complain: Callable[[str], None] = lambda message: None) -> dict[str, Any]:
    """The schema of a recipe file. A kind whose model cannot be imported is left out, and ``complain`` told why."""
    schema = Recipe.model_json_schema(by_alias=True)
    defs: dict[str, Any] = schema["$defs"]
    _as_written(schema, defs)
    for entry in _ENTRIES:
        _one_alternative_a_kind(entry, defs, registry, complain)
    kept = {key: value for key, value in schema.items() if key not in ("$defs", "title")}
    return {"$schema": _DIALECT, "title": "Steelyard recipe", **kept, "$defs": dict(sorted(defs.items()))}


def suite_schema() -> dict[str, Any]:
    """The schema of a suite file."""
    schema = Suite.model_json_schema()
    for key in ("path", "folders"):
        del schema["properties"][key]
    schema["required"] = ["name", "version"]
    schema["properties"]["drop"] = {
        "type": "array",
        "items": {"type": "string"},
        "description": "Tasks of the extended suite that this one leaves out.",
    }
    # An entry of a suite that extends another may change a few keys of a task.
    complete = schema["$defs"]["SuiteTask"].pop("required")
    schema["$defs"]["SuiteTask"]["required"] = ["name"]
    schema["if"] = {"not": {"required": ["extends"]}}
    schema["then"] = {"required": ["tasks"], "properties": {"tasks": {"items": {"required": complete}}}}
    for properties in (schema["properties"], schema["$defs"]["SuiteTask"]["properties"]):
        properties["version"] = {**properties["version"], "type": ["string", "number"]}
    return {"$schema": _DIALECT, **schema, "title": "Steelyard suite"}


def _as_written(schema: dict[str, Any], defs: dict[str, Any]) -> None:
    """What a file may say and a resolved recipe may not: left-out sections, default names, rounds that repeat."""
    schema["required"] = [key for key in schema["required"] if key not in _DEFAULTED]
    schema["properties"]["steelyard"]["const"] = 1
    defs["Round"]["required"].remove("name")
    defs["Round"]["properties"]["repeat"] |= {"type": "integer", "minimum": 1}
    defs["Round"]["properties"]["repeat"].pop("const", None)
    gate = defs["GateEntry"]["properties"]
    for counted in ("rounds", "round", "look"):
        gate.pop(counted, None)
    changes = {name: deepcopy(value) for name, value in gate.items()}
    for value in changes.values():
        value.pop("default", None)
    defs["Round"]["properties"]["gate"] |= {"properties": changes, "additionalProperties": False}


def _one_alternative_a_kind(entry: type[Entry], defs: dict[str, Any], registry: Registry, complain: Callable[[str], None]) -> None:
    own = defs.pop(entry.__name__, None)
    if own is None:
        return
    own["properties"].pop("options", None)
    default = entry.model_fields["kind"].get_default()
    alternatives = []
    for kind, spec in registry.all(entry.family).items():
        if getattr(spec, "hidden", False):
            continue
        name = f"{entry.__name__}.{kind}"
        try:
            defs[name] = _alternative(entry, own, kind, spec, name, defs)
        except SteelyardError as error:
            complain(f"{entry.what} of kind {kind!r} is left out: {error}")
            continue
        if kind != default:
            defs[name]["required"] = ["kind", *defs[name]["required"]]
        alternatives.append({"$ref": f"#/$defs/{name}"})
    if not alternatives:
        defs[entry.__name__] = {"not": {}, "description": f"No active plugin has {entry.family}."}
        return
    mapping = {ref["$ref"].rpartition(f"{entry.__name__}.")[2]: ref["$ref"] for ref in alternatives}
    defs[entry.__name__] = {
        "description": own.get("description", ""),
        "oneOf": alternatives,
        "discriminator": {"propertyName": "kind", "mapping": mapping},
    }


def _alternative(entry: type[Entry], own: dict[str, Any], kind: str, spec: Any, name: str, defs: dict[str, Any]) -> dict[str, Any]:
    common = entry.schema_of_kind(deepcopy(own["properties"]), spec)
    common["kind"] = {"const": kind, "description": spec.summary}
    required = [key for key in own.get("required", ()) if key not in ("kind", "name")]
    if "name" in common:
        common["name"]["default"] = kind
    plugins: dict[str, Any] = {}
    if spec.config is not None:
        plugins = _model_schema(spec, name)
        for inner, definition in plugins.pop("$defs", {}).items():
            defs[f"{name}.{inner}"] = definition
    return {
        "type": "object",
        "description": spec.summary or own.get("description", ""),
        "properties": {**common, **{k: _or_variable(v) for k, v in plugins.get("properties", {}).items()}},
        "required": [*required, *plugins.get("required", ())],
        "additionalProperties": plugins.get("additionalProperties") is True,
    }


def _model_schema(spec: Any, name: str) -> dict[str, Any]:
    model = spec.config.load()
    try:
        schema: dict[str, Any] = model.model_json_schema(by_alias=True, ref_template=f"#/$defs/{name}.{{model}}")
    except Exception as error:
        raise PluginError(f"{spec.config.path!r} has no JSON Schema: {error}") from error
    return schema


def _or_variable(schema: dict[str, Any]) -> dict[str, Any]:
    """A number may also be written ``${round}``."""
    if schema.get("type") not in ("integer", "number"):
        return schema
    outer: dict[str, Any] = {key: schema[key] for key in ("title", "description", "default") if key in schema}
    inner = {key: value for key, value in schema.items() if key not in outer}
    return {**outer, "anyOf": [inner, _VARIABLE]}
