"""Writes out what a recipe says in short: rounds that repeat, and ``${round}`` in values.

``repeat: 3`` on the round ``loop`` makes ``loop-1``, ``loop-2``, ``loop-3``. In a round's values ``${round}`` is the round's number among
all rounds, from 1, and ``${round_name}`` its name; a value that is nothing but ``${round}`` becomes a number. A data entry that says
``${round}`` is made once for each round that uses it, as ``name-1``, ``name-2`` …, and the stages then name those; one that no
stage uses is made as the first round's would be. ``$${`` is a plain ``${``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from steelyard.errors import nearest
from steelyard.recipe.complaints import Complaints, Location, shown
from steelyard.recipe.document import Document

__all__ = ["expand"]

_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NAMES = ("round", "round_name")


def expand(document: Document) -> Complaints:
    """Expand ``document`` in place, keeping its places; what cannot be expanded is left as it is and complained about."""
    complaints = Complaints()
    data = document.data
    for key, value in data.items():
        for location, name in _variables(value, (key,)):
            if name not in _NAMES:
                complaints.add(location, f"unknown variable '${{{name}}}'{nearest(name, _NAMES)}; '$${{' stands for a plain '${{'")
            elif key not in ("data", "rounds"):
                complaints.add(location, f"'${{{name}}}' means something in rounds and in data only")
    if complaints:
        return complaints
    for key in data:
        if key not in ("data", "rounds"):
            data[key] = _filled(data[key], {})
    if isinstance(data.get("rounds"), list):
        _repeat(document, complaints)
        if isinstance(data.get("data"), dict) and not complaints:
            _data_of_rounds(document, complaints)
    return complaints


def _repeat(document: Document, complaints: Complaints) -> None:
    """Write every round as often as it repeats, with its number and name filled in."""
    given = document.data["rounds"]
    written: list[Any] = []
    origins: list[Location] = []
    for position, round_ in enumerate(given):
        at: Location = ("rounds", position)
        times = round_.get("repeat", 1) if isinstance(round_, dict) else 1
        if isinstance(times, bool) or not isinstance(times, int) or times < 1:
            complaints.add((*at, "repeat"), f"repeat is {shown(times)}, not a whole number from 1")
            return
        for turn in range(1, times + 1):
            written.append(_turn(round_, turn, times, len(written) + 1, alone=len(given) == 1))
            origins.append(at)
    document.data["rounds"] = written
    _move(document, {("rounds", number): at for number, at in enumerate(origins)}, under="rounds")


def _turn(round_: Any, turn: int, times: int, number: int, *, alone: bool) -> Any:
    if not isinstance(round_, dict):
        return round_
    name = round_.get("name", "round" if alone else f"round-{number}")
    if any(_variables(name, ())):
        name = _filled(name, {"round": number, "round_name": turn})
    elif times > 1 and isinstance(name, str):
        name = f"{name}-{turn}"
    bare = {key: value for key, value in round_.items() if key not in ("repeat", "name")}
    return {"name": name, **_filled(bare, {"round": number, "round_name": name})}


def _data_of_rounds(document: Document, complaints: Complaints) -> None:
    """Make the data entries that differ from round to round, and have the stages name them."""
    given: dict[str, Any] = document.data["data"]
    rounds = document.data["rounds"]
    first = rounds[0]["name"] if rounds and isinstance(rounds[0], dict) else "round"
    varying = {name for name, entry in given.items() if any(_variables(entry, ()))}
    prompts = {name: entry.get("prompts") for name, entry in given.items() if isinstance(entry, dict)}
    while more := {name for name, of in prompts.items() if isinstance(of, str) and of in varying} - varying:
        varying |= more
    made = {name: _filled(entry, {}) for name, entry in given.items() if name not in varying}
    origins: dict[Location, Location] = {("data", name): ("data", name) for name in made}

    def make(name: Any, values: Mapping[str, Any]) -> Any:
        if name not in varying:
            return name
        own = f"{name}-{values['round']}"
        if own in given:
            complaints.add(("data", own), f"the data entry {name!r} of round {values['round']} has this name too: change it")
        elif own not in made:
            entry = made[own] = _filled(given[name], values)
            origins["data", own] = ("data", name)
            if isinstance(prompts.get(name), str):
                entry["prompts"] = make(entry["prompts"], values)
        return own

    for number, round_ in enumerate(rounds, 1):
        stages = round_.get("stages") if isinstance(round_, dict) else None
        for stage in stages if isinstance(stages, list) else ():
            if isinstance(stage, dict) and isinstance(stage.get("data"), str):
                stage["data"] = make(stage["data"], {"round": number, "round_name": round_["name"]})
    for name in sorted(varying - {origin[1] for origin in origins.values()}):
        made[name] = _filled(given[name], {"round": 1, "round_name": first})
        origins["data", name] = ("data", name)
    document.data["data"] = made
    _move(document, origins, under="data")


def _move(document: Document, origins: Mapping[Location, Location], *, under: str) -> None:
    """Have each new location (key) stand where the old one (value) stood."""
    tables: tuple[dict[Location, Any], ...] = (document.lines, document.overrides)
    for table in tables:
        old = {k: table.pop(k) for k in list(table) if k[0:1] == (under,) and len(k) > 1}
        for new_at, old_at in origins.items():
            table.update({new_at + k[len(old_at) :]: v for k, v in old.items() if k[: len(old_at)] == old_at})


def _variables(value: Any, location: Location) -> Iterator[tuple[Location, str]]:
    """Every variable in the texts of ``value``, with its place."""
    if isinstance(value, str):
        yield from ((location, found[2]) for found in _VARIABLE.finditer(value) if not found[1])
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _variables(inner, (*location, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _variables(inner, (*location, index))


def _filled(value: Any, variables: Mapping[str, Any]) -> Any:
    """A copy of ``value`` with the variables put in."""
    if isinstance(value, dict):
        return {key: _filled(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, variables) for inner in value]
    if not isinstance(value, str):
        return value
    alone = _VARIABLE.fullmatch(value)
    if alone and not alone[1]:
        return variables[alone[2]]
    return _VARIABLE.sub(lambda found: f"${{{found[2]}}}" if found[1] else str(variables[found[2]]), value)
