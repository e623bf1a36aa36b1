"""The rule that says when a document holds an evaluation item, and the words it speaks of.

The rule is that of Tülu 3 (Lambert et al. 2024, §3.2): lower-case words split at spaces and punctuation, word n-grams,
an item is matched by a document when more than half of its words lie in n-grams that the document holds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any

from steelyard.errors import UsageError, nearest

__all__ = ["NORMALISATION", "Rule", "signed_words", "word_spans", "words"]

NORMALISATION = 1
"""Version of the way texts become words; part of every index hash, raised whenever :func:`words` changes its answer."""

# Scripts written without spaces: each character is a word, or a whole sentence would be one and no n-gram would ever be found.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
# Hyphens, stars and slashes are also mark-up; only before a number or a bracket are they taken for arithmetic.
_SIGN = r"[+<=>^×÷−·]|[-*/](?=\s*[\d(])"
_SIGNED_WORD = re.compile(rf"{_SIGN}|[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_SIGN_ONLY = re.compile(r"[^\w]")
_ASCII = "".join(chr(code).lower() if chr(code).isalnum() else " " for code in range(128))


def words(text: str) -> list[str]:
    """The words of a text: Unicode-normalised (NFKC), case-folded, split at everything that is neither letter nor
    digit. In scripts without spaces (Chinese, Japanese, Thai …) each character is a word."""
    if text.isascii():
        return text.translate(_ASCII).split()
    return [word.casefold() for word in _WORD.findall(unicodedata.normalize("NFKC", text))]


def word_spans(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The normalised text (case kept) and, for each of its :func:`words`, where in that text it stands."""
    shown = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return shown, [match.span() for match in _WORD.finditer(shown)]


def signed_words(text: str) -> list[str]:
    """:func:`words` with arithmetic signs between them: what tells ``12 + 7`` from ``12 - 7`` in an item too short for
    n-grams. A closing sign (``12 + 7 =``) says nothing and is dropped."""
    found = _SIGNED_WORD.findall(unicodedata.normalize("NFKC", text))
    while found and _SIGN_ONLY.fullmatch(found[-1]):
        found.pop()
    return [word.casefold() for word in found]


@dataclass(frozen=True)
class Rule:
    """When a document holds an item, and when a dataset counts as contaminated."""

    ngram: int = 8
    """Length in words of the n-grams that are compared."""
    coverage: float = 0.5
    """An item is matched by a document that covers *more* than this share of its words; in [0, 1)."""
    max_overlap: float = 0.02
    """A dataset is contaminated for a task when *more* than this share of the task's items is matched; in [0, 1)."""
    min_words: int = 3
    """Items shorter than ``ngram`` words are looked for whole, as consecutive words of a text; those under
    ``min_words`` only as a text that says nothing else, because one or two words stand by chance in any large dataset.
    From 1 to ``ngram``."""

    def __post_init__(self) -> None:
        for name in ("ngram", "min_words"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"decontamination rule: {name} is {value!r}; give a whole number of words, at least 1")
        for name in ("coverage", "max_overlap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise UsageError(f"decontamination rule: {name} is {value!r}; give a share from 0 up to, but not, 1 (0.5 is a half)")
        if self.min_words > self.ngram:
            raise UsageError(f"decontamination rule: min_words {self.min_words!r} is above ngram {self.ngram!r}; lower min_words")

    @cached_property
    def threshold(self) -> Fraction:
        """``coverage`` as the decimal that was written, so that 3 of 5 words are not above 0.6 by a rounding error."""
        return Fraction(str(self.coverage))

    def exceeds_overlap(self, matched: int, items: int) -> bool:
        """Is ``matched`` of ``items`` above ``max_overlap``? Exact."""
        return matched > Fraction(str(self.max_overlap)) * items

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rule:
        """The rule that :meth:`to_dict` wrote. Errors: :class:`UsageError` on an unknown key or a value out of
        range."""
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise UsageError(f"decontamination rule: unknown key {name!r}{nearest(name, known)}")
        return cls(**values)
