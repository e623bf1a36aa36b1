"""Reads YAML 1.2 into plain values, and remembers where each of them stood.

What only YAML 1.1 does is not done: ``no`` is a text, ``1e-5`` a number, a date a text. A key given twice, a tag, and a number that JSON
cannot hold are errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steelyard.errors import RecipeError, UsageError
from steelyard.recipe.complaints import Complaints, Location

__all__ = ["Document", "parse_document", "parse_value", "read_document"]

_CORE = "tag:yaml.org,2002:"
_SHOWN_AT_MOST = 5


@dataclass
class Document:
    """Plain values, and where they came from: a line of ``file``, or the override that set them."""

    file: str
    data: Any
    lines: dict[Location, int] = field(default_factory=dict)
    """The 1-based line of each key and list member."""
    overrides: dict[Location, str] = field(default_factory=dict)
    """What a command line set, by location; it hides the lines at and under that location."""

    def overridden(self, location: Location, text: str) -> None:
        """Say that the override ``text`` set the value at ``location``."""
        tables: tuple[dict[Location, Any], ...] = (self.lines, self.overrides)
        for table in tables:
            for known in [k for k in table if k[: len(location)] == location]:
                del table[known]
        self.overrides[location] = text

    def place(self, location: Location) -> tuple[str | None, int | None, str]:
        """File and line of the nearest thing at or above ``location``; or None, None and the override that set it. Values that were
        not read from a text have no lines; their keys stand for them."""
        for end in range(len(location), -1, -1):
            known = location[:end]
            if known in self.overrides:
                return None, None, self.overrides[known]
            if known in self.lines:
                return self.file, self.lines[known], ""
        return (f"{self.file}, {'.'.join(map(str, location))}" if location else self.file), None, ""

    def error(self, complaints: Complaints) -> RecipeError:
        """One error that tells the first few complaints, a line each, in the order of the file."""
        told = sorted(((self.place(c.location), c.message) for c in complaints), key=lambda p: p[0][1] or 0)
        lines = list(dict.fromkeys(_line(*place, message) for place, message in told))
        (file, line, override), message = told[0]
        first = f"override {override!r}: {message}" if override else message
        rest = lines[1:_SHOWN_AT_MOST]
        if len(lines) > _SHOWN_AT_MOST:
            rest.append(f"… and {len(lines) - _SHOWN_AT_MOST} more")
        return RecipeError("\n".join([first, *rest]), file=file, line=line)


def _line(file: str | None, line: int | None, override: str, message: str) -> str:
    if override:
        return f"override {override!r}: {message}"
    return f"{file}: {message}" if line is None else f"{file}:{line}: {message}"


def read_document(path: Path) -> Document:
    """The document in a file. Raises :class:`UsageError` when it cannot be read, :class:`RecipeError` with file and line when it is
    not YAML, and when its top is not a mapping."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()
        raise UsageError(f"cannot read {str(path)!r}: {reason}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        byte = f"0x{raw[error.start]:02x}"
        raise RecipeError(f"not UTF-8 (byte {byte}): save the file as UTF-8", file=str(path), line=line) from None
    return parse_document(text, str(path))


def parse_document(text: str, file: str) -> Document:
    """The document in a text; ``file`` stands in the errors."""
    document = Document(file, None)
    node = _compose(text, file)
    if node is None:
        raise RecipeError("the file is empty: `steelyard init` writes a recipe to start from", file=file, line=1)
    document.data = _Reader(file, document.lines).value(node, ())
    if not isinstance(document.data, dict):
        what = "a list" if isinstance(document.data, list) else repr(document.data)
        raise RecipeError(f"the top of the file is {what}, not a mapping of keys to values", file=file, line=1)
    return document


def parse_value(text: str) -> Any:
    """One value, as an override gives it; nothing at all is None."""
    node = _compose(text, None)
    return None if node is None else _Reader(None, {}).value(node, ())


def _compose(text: str, file: str | None) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise RecipeError(_syntax(error, text, mark), file=file, line=line) from None
    except YAMLError as error:
        raise RecipeError(f"not YAML: {' '.join(str(error).split())}", file=file, line=1) from None


def _syntax(error: Any, text: str, mark: Any) -> str:
    problem = " ".join(str(error.problem).split())
    lines = text.splitlines()
    if mark and mark.line < len(lines) and "\t" in lines[mark.line][: mark.column + 1]:
        return "a tab where YAML wants spaces: indent with spaces"
    if mark and mark.line < len(lines) and "${" in lines[mark.line]:
        return "not YAML: a '${' inside braces or brackets must stand in quotes"
    if "mapping values are not allowed" in problem:
        return "not YAML: a ':' where none can stand; check the indentation, or put the text in quotes"
    if "another document" in problem:
        return "a second document ('---'): a file holds one"
    context = f" {' '.join(str(error.context).split())}" if error.context else ""
    return f"not YAML: {problem}{context}"


class _Reader:
    """Turns YAML nodes into values, filling ``lines`` on the way."""

    def __init__(self, file: str | None, lines: dict[Location, int]):
        from ruamel.yaml import YAML

        self._file, self._lines = file, lines
        self._open: list[int] = []
        self._constructor = YAML(typ="safe", pure=True).constructor

    def value(self, node: Any, location: Location) -> Any:
        from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

        self._lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            raise self._error("an alias that holds itself", node)
        self._open.append(id(node))
        try:
            if isinstance(node, MappingNode) and node.tag == f"{_CORE}map":
                return self._mapping(node, location)
            if isinstance(node, SequenceNode) and node.tag == f"{_CORE}seq":
                return [self.value(member, (*location, i)) for i, member in enumerate(node.value)]
        finally:
            self._open.pop()
        raise self._error(f"the tag {node.tag!r}: a recipe holds plain values only", node)

    def _mapping(self, node: Any, location: Location) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: list[Mapping[str, Any]] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_CORE}merge":
                merged += self._merged(value_node, location)
                continue
            key = self._key(key_node)
            at = (*location, key)
            if key in found:
                first = self._lines[at]
                raise self._error(f"the key {key!r} a second time (first in line {first}): keep one of them", key_node)
            self._lines[at] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, at)
        for mapping in merged:
            found = {**mapping, **found}
        return found

    def _merged(self, node: Any, location: Location) -> list[Mapping[str, Any]]:
        """``<<: *alias`` or a list of them; the keys' own lines are those of the anchor."""
        value = self.value(node, (*location, "<<"))
        self._forget((*location, "<<"), location)
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(v, dict) for v in values):
            raise self._error("'<<' takes an alias of a mapping", node)
        return values

    def _forget(self, old: Location, new: Location) -> None:
        for known in [k for k in self._lines if k[: len(old)] == old]:
            line = self._lines.pop(known)
            if len(known) > len(old):
                self._lines.setdefault(new + known[len(old) :], line)

    def _key(self, node: Any) -> str:
        if node.tag == f"{_CORE}str":
            return str(node.value)
        raise self._error(f"the key {node.value!r} is not a text: put it in quotes", node)

    def _scalar(self, node: Any) -> Any:
        kind = node.tag.removeprefix(_CORE)
        if kind in ("str", "timestamp"):
            return str(node.value)
        if kind in ("null", "bool", "int", "float"):
            try:
                value = self._constructor.construct_object(node)
            except (ValueError, TypeError):
                raise self._error(f"{node.value!r} is not {kind}", node) from None
            if isinstance(value, float) and not math.isfinite(value):
                raise self._error(f"{node.value!r} is not a finite number", node)
            return value
        raise self._error(f"the tag {node.tag!r}: a recipe holds plain values only", node)

    def _error(self, message: str, node: Any) -> RecipeError:
        return RecipeError(message, file=self._file, line=node.start_mark.line + 1 if self._file else None)
