"""What a recipe may say about each verifier."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["ExactConfig", "NumberConfig", "bounded_pattern"]

LONGEST_PATTERN = 100
_TOKEN = re.compile(
    r"""(?P<class>\[\^?\]?(?:\\.|[^\]\\])*\])
    |(?P<other_group>\(\?(?![aims]*:))
    |(?P<group>\((?:\?[aims]*:)?)
    |(?P<close>\))
    |(?P<back_reference>\\[1-9])
    |(?P<literal>\\.)
    |(?P<count>\{[0-9]*,?[0-9]*\}[?+]?)
    |(?P<repeat>[*+][?+]?)
    |(?P<optional>\?[?+]?)
    |(?P<bar>\|)
    |(?P<character>.)""",
    re.VERBOSE | re.DOTALL,
)
_MOST = {"repeats ('*', '+', '{…}')": (("repeat", "count"), 2), "'?'": (("optional",), 4), "'|'": (("bar",), 4)}


def bounded_pattern(pattern: str) -> str:
    """``pattern`` when it is a regular expression whose time is bounded; ValueError says what is not allowed in it.

    Backtracking costs at most the product of the choices of each part, so the parts that choose are few, and none repeats a group: two
    repeats, four optional characters, four bars. On the 128 characters it is tried on (see :mod:`steelyard_verifiers.exact`) that
    is a few million steps at the very worst."""
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"a pattern of {len(pattern)} characters, at most {LONGEST_PATTERN} are allowed")
    kinds = [(found.lastgroup or "", found.group()) for found in _TOKEN.finditer(pattern)]
    for kind, text in kinds:
        if kind in ("other_group", "back_reference"):
            raise ValueError(f"{text!r} in {pattern!r}: look-around, named groups and back references are not allowed")
        if kind == "count" and any(int(n) > LONGEST_PATTERN for n in re.findall("[0-9]+", text)):
            raise ValueError(f"{text!r} in {pattern!r}: counts above {LONGEST_PATTERN} are not allowed")
    for (before, _), (kind, text) in pairwise(kinds):
        if before == "close" and kind in ("repeat", "count", "optional"):
            raise ValueError(f"{text!r} behind ')' in {pattern!r}: a repeated group is not allowed")
    for what, (members, most) in _MOST.items():
        if sum(kind in members for kind, _ in kinds) > most:
            raise ValueError(f"more than {most} {what} in {pattern!r}")
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ExactConfig(_Config):
    """Options of ``exact``. What a completion goes through, in order: ``extract``, ``strip``, ``remove_prefix``, ``remove_suffix``,
    ``collapse_spaces``, ``ignore_case``; the reference, only ``strip``, ``collapse_spaces`` and ``ignore_case``."""

    extract: Literal["all", "first_line", "last_line", "after"] = "all"
    """Which part of the completion is the answer: all of it, its first or last line that is not blank, or what stands behind the last
    ``marker``."""
    marker: str = Field(default="####", min_length=1)
    """The text that announces the answer, for ``extract: after``."""
    strip: bool = True
    """Leave out white space at both ends."""
    remove_prefix: Annotated[str, AfterValidator(bounded_pattern)] | None = None
    """A regular expression for what may stand before the answer, such as ``ans: ``; removed once. Kept simple, so that its time is
    bounded: no repeated groups, look-around or back references, and few repeats. It must match within the first 128 characters."""
    remove_suffix: str | None = None
    """A literal text that may stand behind the answer, such as ``.``; removed once."""
    collapse_spaces: bool = False
    """Make every run of white space one space."""
    ignore_case: bool = False
    """Compare without regard to case (Unicode case folding)."""


class NumberConfig(_Config):
    """Options of ``number``. With neither tolerance the comparison is exact."""

    markers: tuple[Annotated[str, Field(min_length=1)], ...] = ("####",)
    """Texts that announce the answer. The last one found counts, with the first number behind it on the same line; a marker without a
    number behind it is ``unparseable``."""
    require_marker: bool = False
    """Whether a completion without a marker is ``unparseable``; else its last number counts."""
    absolute_tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """The largest difference from the reference that is still correct."""
    relative_tolerance: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)
    """The same, as a fraction of the reference's size; the larger of the two tolerances counts."""
    percent: Literal["ignore", "divide"] = "ignore"
    """What ``%`` behind a number does: nothing (50% is 50), or divide by a hundred (50% is 1/2); in the reference too."""
