"""Numbers, durations and texts as a reader sees them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

__all__ = [
    "Fact",
    "bytes_text",
    "clip",
    "counted",
    "details",
    "duration",
    "moment",
    "number",
    "plain",
    "points",
    "score",
    "short",
    "value_text",
    "visible",
]

_UNSEEN = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)} | {127: "␡"}
_BIDI = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\N{REPLACEMENT CHARACTER}")
_CONTROLS = {**_UNSEEN, **_BIDI}


Fact = tuple[str, str | tuple[tuple[str, str], ...]]
"""A name and its value: a text, or names and texts of its own."""


def visible(text: str) -> str:
    """The text with control characters shown instead of obeyed (their Unicode pictures; direction overrides as U+FFFD), and with lone
    surrogates, which UTF-8 cannot hold, written as escapes."""
    return text.replace("\r\n", "\n").translate(_CONTROLS).encode("utf-8", "backslashreplace").decode("utf-8")


def clip(text: str, limit: int) -> tuple[str, int]:
    """The first ``limit`` characters, and how many were left out; never fewer than a tenth of the limit."""
    left = len(text) - limit
    return (text, 0) if left <= limit // 10 else (text[:limit], left)


def points(value: float | None, digits: int = 1) -> str:
    """A difference of scores in points (hundredths of a score unit), with its sign."""
    if value is None:
        return "–"
    text = f"{100 * value:+.{digits}f}"
    return text.replace("-", "−")


def score(value: float | None) -> str:
    """A mean score in points, without a sign."""
    return "–" if value is None else f"{100 * value:.1f}".replace("-", "−")


def number(value: float | int | None) -> str:
    """Whole numbers with separators, others with four significant digits."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    text = f"{value:.4g}"
    mantissa, sign, exponent = text.partition("e")
    return (mantissa + (f"e{int(exponent)}" if sign else "")).replace("-", "−")


def counted(count: int, noun: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 14 min``."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(value: Any) -> str:
    """An ISO time as ``2026-05-04 12:30 UTC``; another text as it stands."""
    try:
        return datetime.fromisoformat(str(value)).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return str(value or "")


def bytes_text(value: float | None) -> str:
    """A size with a binary unit."""
    if value is None:
        return "–"
    size = float(value)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def short(key: str | None) -> str:
    """The first twelve digits of a key or a hash."""
    return "–" if not key else str(key)[:12]


def plain(value: Any) -> str:
    """A step's metric or fact in one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    return value_text(value)


def value_text(value: Any) -> str:
    """A configuration value as it would stand in JSON; texts without their quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def details(value: Any, leaf: Callable[[Any], str] = value_text) -> str | tuple[tuple[str, str], ...]:
    """A fact's value: a mapping as names and texts, without those that are not set; anything else as a text."""
    if not isinstance(value, Mapping):
        return _flat(value, leaf)
    return tuple((str(name), _flat(item, leaf)) for name, item in value.items() if item not in _UNSET)


_UNSET: tuple[Any, ...] = (None, "", {}, [])


def _flat(value: Any, leaf: Callable[[Any], str]) -> str:
    """``default 0.03, correct 0.05``; what is nested deeper stands in parentheses."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_inner(item, leaf)}" for name, item in value.items() if item not in _UNSET)
    if isinstance(value, list | tuple):
        return ", ".join(_inner(item, leaf) for item in value)
    return leaf(value)


def _inner(value: Any, leaf: Callable[[Any], str]) -> str:
    text = _flat(value, leaf)
    return f"({text})" if isinstance(value, Mapping | list | tuple) else text
