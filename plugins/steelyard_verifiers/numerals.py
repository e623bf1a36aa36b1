"""Reads numbers as people and models write them, exactly.

A numeral is an optional sign, an optional currency sign, and an integer, decimal, fraction or mixed number: ``-3``, ``$1,234.50``,
``1{,}000``, ``2 1/2``, ``\\frac{3}{4}``, ``1.5e-3``, ``2 \\times 10^{5}``, ``5 million``. What is not one number makes no numeral: part of a
word or a version (``x2``, ``1.2.3``), an expression that was not worked out (``3 + 4``, ``2^5``), magnitude letters (``5k``). Every regular
expression here is applied to texts of bounded length (``LONGEST_TEXT``) and gives back at most once a group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["LONGEST_TEXT", "Numeral", "numerals", "only_numeral"]

LONGEST_TEXT = 4096
_LARGEST_EXPONENT = 400
_MOST_DIGITS = 400

_SEPARATOR = r"(?:,|\{,\}|\\,|\\!|['’_\u00a0\u2009\u202f])"
_DIGITS = rf"(?:[0-9]{{1,3}}(?>(?:{_SEPARATOR}[0-9]{{3}})+)(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
_CURRENCY = r"(?:\\?[$€£¥]|\\?\$)"
_NUMERAL = re.compile(
    rf"""
    (?P<sign>[-+−–]?){_CURRENCY}?(?P<sign2>[-−]?)
    (?:
      \\[dt]?frac\{{(?P<tex_top>[-−]?{_DIGITS})\}}\{{(?P<tex_bottom>{_DIGITS})\}}
      |(?:(?P<whole>[0-9]+)[ ](?=[0-9]+/))?(?P<top>{_DIGITS})[ ]?[/⁄][ ]?(?P<bottom>{_DIGITS})(?![.]?[0-9])
      |(?P<decimal>{_DECIMAL})
       (?:[eE](?P<e>[-+]?[0-9]{{1,9}})(?![0-9A-Za-z]))?
       (?:[ ]?(?:\\times|\\cdot|×|x|\*)[ ]?10(?:\^|\*\*)(?:\{{(?P<ten_braced>[-−+]?[0-9]{{1,9}})\}}|(?P<ten>[-−+]?[0-9]{{1,9}})))?
    )
    """,
    re.VERBOSE,
)
_WORDS = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"[ ](?P<word>{'|'.join(_WORDS)})\b", re.IGNORECASE)
_PERCENT = re.compile(r"[ ]?\\?%")
_OPERATOR = r"(?:[-+*/^×÷·⋅±∓−–—~:]|\\(?:times|cdot|div|pm)\b)"
_EXPRESSION_BEHIND = re.compile(rf"[ \t]*{_OPERATOR}[ \t]*\(?[$]?[.]?[0-9]|\^|\*\*|[⁰¹²³⁴⁵⁶⁷⁸⁹!]")
_EXPRESSION_BEFORE = re.compile(rf"[0-9)}}][ \t]*{_OPERATOR}[ \t]*\(?[$]?$|\^\{{?$")
_WORD_BEFORE = re.compile(r"[\w.,](?<![\s.,])$|[0-9][.,]$|(?<!\w)\.$")
_ODD_BEHIND = re.compile(r"[,.]?[0-9]|[kKmMbBxyznieπ](?![A-Za-z])|_")


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number as it stands in a text. ``value`` is None where the text at that place is not one plain number, ``why`` says why."""

    text: str
    start: int
    end: int
    value: Fraction | None
    why: str = ""


def numerals(text: str, percent_divides: bool = False) -> Iterator[Numeral]:
    """Every numeral in ``text`` (at most ``LONGEST_TEXT`` characters), from left to right."""
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"a text of {len(text)} characters, at most {LONGEST_TEXT} can be read")
    position = 0
    while found := _NUMERAL.search(text, position):
        numeral = _read(text, found, percent_divides)
        position = max(numeral.end, found.start() + 1)
        yield numeral


def only_numeral(text: str, percent_divides: bool = False) -> Fraction | None:
    """The value of a text that is one number and at most a unit (``18 dollars``); None for any other."""
    found = list(numerals(text.strip()[:LONGEST_TEXT], percent_divides))
    return found[0].value if len(found) == 1 and len(text) <= LONGEST_TEXT else None
