"""Complaints about a recipe or a suite: pydantic's errors in plain words, each with the place it stands at.

Every model of this room turns its own errors into words where they arise, because only there the known keys are at hand; the outer models
add their part of the location and leave the words alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from steelyard.errors import nearest

__all__ = ["Complaint", "Complaints", "Location", "complaints_in", "keys_of", "plain_words", "shown"]

Location = tuple[str | int, ...]
"""Keys and list indices from the top of the document."""

_SAID = "steelyard_complaint"
_SAID_OF_PLUGIN = "steelyard_plugin_complaint"

_MISSING = "which is missing"

_NOUNS = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping of keys to values",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "mapping_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "none_required": "null",
    "path_type": "a path",
    "set_type": "a list",
    "string_type": "a text",
    "tuple_type": "a list",
}
_BOUNDS = {
    "greater_than": ("gt", "must be greater than {}"),
    "greater_than_equal": ("ge", "must be at least {}"),
    "less_than": ("lt", "must be less than {}"),
    "less_than_equal": ("le", "must be at most {}"),
    "multiple_of": ("multiple_of", "must be a multiple of {}"),
    "too_short": ("min_length", "must have at least {} members"),
    "too_long": ("max_length", "must have at most {} members"),
    "string_too_short": ("min_length", "must have at least {} characters"),
    "string_too_long": ("max_length", "must have at most {} characters"),
}


@dataclass(frozen=True)
class Complaint:
    """What is wrong, where in the document, and whether a plugin is to blame and not its user."""

    location: Location
    message: str
    of_plugin: bool = False


class Complaints(list[Complaint]):
    """Complaints on their way through pydantic: raised by a validator, found again by :func:`complaints_in`."""

    def add(self, location: Location, message: str, *, of_plugin: bool = False) -> None:
        self.append(Complaint(location, message, of_plugin))

    def take(self, others: Complaints) -> None:
        self.extend(others)
        self._meant |= others._meant

    def unknown(self, location: Location, what: str, known: Iterable[str]) -> None:
        """An unknown key. The key that was meant is then not also said to be missing."""
        known = sorted(set(known))
        near = nearest(str(location[-1]), known)
        self.add(location, f"unknown key {str(location[-1])!r} in {what}{near}")
        self._meant |= {(*location[:-1], key) for key in known if near == f" (did you mean {key!r}?)"}

    @cached_property
    def _meant(self) -> set[Location]:
        return set()

    def to_error(self) -> ValidationError:
        """What a validator raises; an outer model prefixes the locations and keeps the words."""
        details = [
            InitErrorDetails(
                type=PydanticCustomError(_SAID_OF_PLUGIN if c.of_plugin else _SAID, "{message}", {"message": c.message}),
                loc=c.location,
                input=None,
            )
            for c in self
            if not (c.location in self._meant and c.message.endswith(_MISSING))
        ]
        return ValidationError.from_exception_data("recipe", details)


def complaints_in(error: ValidationError, model: type[BaseModel], data: Any, what: str) -> Complaints:
    """The errors of validating ``data`` by ``model`` as complaints. ``what`` names the model to the user ("stage kind 'sft'")."""
    found = Complaints()
    grouped: dict[Location, list[ErrorDetails]] = {}
    for item in error.errors(include_url=False):
        if item["type"] in (_SAID, _SAID_OF_PLUGIN):
            found.add(item["loc"], item["ctx"]["message"], of_plugin=item["type"] == _SAID_OF_PLUGIN)
        else:
            grouped.setdefault(_real_location(item, data), []).append(item)
    for location, items in grouped.items():
        if items[0]["type"] == "extra_forbidden":
            found.unknown(location, what, _keys_at(model, location[:-1]))
            continue
        found.add(location, _words(location, items, model, what))
    return found


def plain_words(model: type[BaseModel], data: Any, what: str) -> Complaints:
    """What pydantic would let pass and a reader would not: true and false given for numbers."""
    found = Complaints()
    if isinstance(data, Mapping):
        for name, field in model.model_fields.items():
            key = field.alias or name
            value = data.get(key)
            if isinstance(value, bool) and _wants_number(field.annotation):
                found.add((key,), f"{key} is {shown(value)}, not a number")
    return found


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys a model is written with, aliases applied."""
    return [field.alias or name for name, field in model.model_fields.items()]


def shown(value: Any) -> str:
    """A value as an error shows it: Python's ``repr``, but true, false and null as in YAML, and cut when long."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _real_location(item: ErrorDetails, data: Any) -> Location:
    """The location without the tags that pydantic adds for the branches of a union and for keys."""
    real: list[str | int] = []
    for position, part in enumerate(item["loc"]):
        if (isinstance(data, Mapping) and part in data) or (_is_list(data) and part in range(len(data))):
            data = data[part]
            real.append(part)
        elif item["type"] == "missing" and position == len(item["loc"]) - 1:
            real.append(part)
    return tuple(real)


def _is_list(data: Any) -> bool:
    return isinstance(data, Sequence) and not isinstance(data, str)


def _words(location: Location, items: Sequence[ErrorDetails], model: type[BaseModel], what: str) -> str:
    key = _dotted(location) or what
    branches = [item for item in items if item["type"] not in _NOUNS] or list(items)
    item = branches[0]
    match item["type"]:
        case "missing":
            return f"{what} needs {key!r}, {_MISSING}"
        case "literal_error" | "enum":
            choices = _choices(items)
            near = nearest(str(item["input"]), choices) if isinstance(item["input"], str) else ""
            return f"{key} is {shown(item['input'])}, not one of {', '.join(map(repr, choices))}" + (near if "did you mean" in near else "")
        case "value_error" | "assertion_error":
            message = str(item["ctx"]["error"]).removeprefix("Value error, ")
            told = not location or message.startswith(key) or repr(item["input"]) in message
            return message if told else f"{key} is {shown(item['input'])}: {message}"
        case kind if kind in _BOUNDS:
            limit, rule = _BOUNDS[kind]
            return f"{key} is {shown(item['input'])}, {rule.format(item['ctx'][limit])}"
        case kind if kind in _NOUNS:
            nouns = dict.fromkeys(_NOUNS[i["type"]] for i in branches)
            return f"{key} is {shown(item['input'])}, not {' or '.join(nouns)}{_hint(item)}"
    message = item["msg"][:1].lower() + item["msg"][1:]
    return f"{key} is {shown(item['input'])}: {message}"


def _hint(item: ErrorDetails) -> str:
    if item["type"] == "string_type" and isinstance(item["input"], bool | int | float):
        return " (put it in quotes)"
    if item["input"] is None:
        return " (give it a value, or take the key out)"
    return ""


def _choices(items: Iterable[ErrorDetails]) -> list[str]:
    """What a Literal or an Enum takes; pydantic lists it as text: ``'a', 'b' or 'c'``."""
    found: list[str] = []
    for item in items:
        if item["type"] in ("literal_error", "enum"):
            listed = item["ctx"]["expected"].replace(" or ", ", ").split(", ")
            found += [choice.strip("'") for choice in listed]
    return found


def _dotted(location: Location) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _keys_at(model: type[BaseModel], location: Location) -> Collection[str]:
    annotations: list[Any] = [model]
    for part in location:
        annotations = [inner for a in annotations for inner in _inside(a, part)]
    return [key for a in annotations for flat in _branches(a) if _is_model(flat) for key in keys_of(flat)]


def _inside(annotation: Any, part: str | int) -> Iterator[Any]:
    for flat in _branches(annotation):
        if _is_model(flat):
            yield from (f.annotation for name, f in flat.model_fields.items() if part == (f.alias or name))
        elif get_origin(flat) is not None and get_origin(flat) is not Literal:
            yield get_args(flat)[-1]


def _branches(annotation: Any) -> Iterator[Any]:
    """The members of a union, type aliases and annotations taken off."""
    if hasattr(annotation, "__value__"):
        yield from _branches(annotation.__value__)
    elif get_origin(annotation) is Annotated:
        yield from _branches(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for branch in get_args(annotation):
            yield from _branches(branch)
    else:
        yield annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _wants_number(annotation: Any) -> bool:
    branches = list(_branches(annotation))
    return any(b in (int, float) for b in branches) and not any(b in (bool, Any, object) for b in branches)
