"""Overrides from the command line: ``seed=7``, ``data.pairs.sources.0.count=100``, ``stages.sft.lr=1e-5``.

A path goes through mappings by key and through lists by index or by the member's name. ``stages.NAME`` is the stage of that name in
whichever round has it. Values are YAML. A value that begins with ``./`` or ``../`` is a path from the current folder, as it would be
anywhere on a command line, while the same text in a recipe starts at the recipe's folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from steelyard.errors import RecipeError, nearest
from steelyard.recipe.complaints import Location, shown
from steelyard.recipe.document import Document, parse_value

__all__ = ["apply_overrides"]

_NAMED_BY_THE_RECIPE = ("data", "verifiers")
"""Mappings whose keys are names the recipe gives: an override changes what a name means, and does not invent one on the way."""


def apply_overrides(document: Document, overrides: Iterable[str], known: Iterable[str]) -> None:
    """Change ``document`` in place. ``known`` are the keys of a recipe's top. Raises :class:`RecipeError` naming the override."""
    for text in overrides:
        path, equals, value = text.partition("=")
        try:
            if not equals or not path.strip():
                raise RecipeError("not of the form key=value")
            location = _set(document.data, path.strip().split("."), _from_here(parse_value(value)), sorted(known))
        except RecipeError as error:
            raise RecipeError(f"override {text!r}: {error.message}") from None
        document.overridden(location, text)


def _set(data: dict[str, Any], parts: list[str], value: Any, known: list[str]) -> Location:
    """Set the value at the path ``parts`` and return the location it turned out to be."""
    location = _start(data, parts)
    if not location and parts[0] not in known:
        raise RecipeError(f"unknown key {parts[0]!r}{nearest(parts[0], [*known, 'stages'])}")
    here: Any = data
    for part in location:
        here = here[part]
    rest = parts[2:] if location else parts
    if not rest:
        _put(data, location, value)
        return location
    for position, part in enumerate(rest):
        last = position == len(rest) - 1
        key = _member(here, part, location, may_be_new=last)
        location = (*location, key)
        if last:
            here[key] = value
        elif isinstance(here, dict) and here.get(key) is None:
            here[key] = {}
        here = here[key]
    return location


def _put(data: Any, location: Location, value: Any) -> None:
    for part in location[:-1]:
        data = data[part]
    data[location[-1]] = value


def _start(data: dict[str, Any], parts: list[str]) -> Location:
    """Where ``stages.NAME`` is; nothing for any other path."""
    if parts[0] != "stages" or "stages" in data:
        return ()
    if len(parts) < 2:
        raise RecipeError("stages of which name? write stages.NAME.key=value")
    found: dict[Location, str] = {}
    names: list[str] = []
    for r, round_ in enumerate(_list(data.get("rounds"))):
        for s, stage in enumerate(_list(round_.get("stages")) if isinstance(round_, Mapping) else ()):
            names.append(_name(stage))
            if _name(stage) == parts[1]:
                found["rounds", r, "stages", s] = f"rounds.{_name(round_) or r}.stages.{parts[1]}"
    if not found:
        raise RecipeError(f"no stage named {parts[1]!r}{nearest(parts[1], filter(None, names))}")
    if len(found) > 1:
        raise RecipeError(f"{len(found)} stages are named {parts[1]!r}: write {' or '.join(found.values())}")
    return next(iter(found))


def _member(here: Any, part: str, location: Location, *, may_be_new: bool) -> str | int:
    where = ".".join(map(str, location))
    if isinstance(here, list):
        return _index(here, part, where)
    if not isinstance(here, dict):
        raise RecipeError(f"{where} is {shown(here)}, it has no key {part!r}")
    if part not in here and not may_be_new and where in _NAMED_BY_THE_RECIPE:
        raise RecipeError(f"{where} has no {part!r}{nearest(part, here)}")
    return part


def _index(members: list[Any], part: str, where: str) -> int:
    if part.isdecimal():
        if int(part) < len(members):
            return int(part)
        raise RecipeError(f"{where} has {len(members)} members, counted from 0; there is no {part}")
    named = [i for i, member in enumerate(members) if _name(member) == part]
    if len(named) == 1:
        return named[0]
    if named:
        raise RecipeError(f"{len(named)} members of {where} are named {part!r}: give an index, {' or '.join(map(str, named))}")
    raise RecipeError(f"{where} has no member {part!r}{nearest(part, filter(None, map(_name, members)))}")


def _name(member: Any) -> str:
    """What a list member is called: its name, or else what it would be named after."""
    if not isinstance(member, Mapping):
        return ""
    return next((v for key in ("name", "dataset", "kind") if isinstance(v := member.get(key), str)), "")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _from_here(value: Any) -> Any:
    """Texts that are plainly paths of the current folder, made absolute."""
    if isinstance(value, str) and value.startswith(("./", "../")):
        return str(Path(value).resolve())
    if isinstance(value, dict):
        return {k: _from_here(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_from_here(v) for v in value]
    return value
