"""What one document covers of each item, the longest run they share, and the excerpts a reviewer reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelyard.decontaminate.index import GramTable, ItemIndex
from steelyard.decontaminate.rule import signed_words, word_spans

__all__ = ["Excerpt", "Run", "Text", "excerpt", "longest_common_run", "matched_items"]

_CONTEXT = 80
_EXCERPT = 600


@dataclass(frozen=True)
class Text:
    """One text of a document: as it stands, and as word numbers (−1 for a word that no item has)."""

    text: str
    words: NDArray[np.int32]


@dataclass(frozen=True)
class Run:
    """Words that an item's field and a text share: ``length`` of them, from ``item_start`` and ``text_start`` on."""

    length: int = 0
    item_start: int = 0
    text_start: int = 0


@dataclass(frozen=True)
class Excerpt:
    """A stretch of text around a match; what was cut is marked by ``…``."""

    before: str
    match: str
    after: str

    def to_dict(self) -> dict[str, Any]:
        return {"before": self.before, "match": self.match, "after": self.after}


def matched_items(
    index: ItemIndex, grams: Sequence[tuple[GramTable, NDArray[np.int64]]], texts: Sequence[Text]
) -> list[tuple[int, Fraction]]:
    """Items that a document of these texts covers above the rule's threshold: (position in ``index.items``, coverage),
    in that order.

    ``grams`` holds, by table, the grams that stand in the document, verified word by word. A word of an item is covered
    if it lies in one of them; the coverage of an item is the mean over its fields.
    """
    covered = _covered_words(index, grams, texts)
    if not covered:
        return []
    numbers = np.fromiter(covered, dtype=np.int64, count=len(covered))
    owners = np.array([index.fields[n].item for n in covered], dtype=np.int64)
    shares = np.array([covered[n] / index.fields[n].length for n in covered])
    items, slots = np.unique(owners, return_inverse=True)
    means = np.bincount(slots, weights=shares) / index.counted[items]
    # Floating point only sorts out what is clearly below; what is near or above is decided in exact fractions.
    near = np.flatnonzero(means > index.rule.coverage - 1e-9)
    found: list[tuple[int, Fraction]] = []
    for slot in near.tolist():
        fields = [index.fields[n] for n in numbers[slots == slot].tolist()]
        item = int(items[slot])
        total = sum((Fraction(covered[n], index.fields[n].length) for n in numbers[slots == slot].tolist()), Fraction(0))
        coverage = total / int(index.counted[item])
        if fields and coverage > index.rule.threshold:
            found.append((item, coverage))
    return found


def _covered_words(index: ItemIndex, grams: Sequence[tuple[GramTable, NDArray[np.int64]]], texts: Sequence[Text]) -> dict[int, int]:
    """Field → number of its words that the document covers, for fields with any."""
    covered: dict[int, int] = {}
    signed: list[str] = []
    for table, present in grams:
        fields, starts = _postings(table, np.unique(present))
        if table.length == index.rule.ngram:
            _count_union(fields, starts, table.length, covered)
            continue
        signed = signed or [_joined(signed_words(text.text)) for text in texts]
        for number in fields.tolist():
            wanted = _joined(signed_words(index.field_text(index.fields[number])))
            if any(wanted in text for text in signed):
                covered[number] = table.length
    if index.whole_texts:
        for text in texts:
            if len(text.words) < index.rule.min_words:
                for number in index.whole_texts.get(tuple(signed_words(text.text)), ()):
                    covered[number] = index.fields[number].length
    return covered


def _postings(table: GramTable, grams: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Fields and places of all postings of ``grams``."""
    begins = table.offsets[grams]
    counts = table.offsets[grams + 1] - begins
    which = np.repeat(begins - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
    return table.fields[which], table.starts[which]


def _count_union(fields: NDArray[np.int32], starts: NDArray[np.int64], length: int, covered: dict[int, int]) -> None:
    """Adds, by field, how many words the windows of ``length`` words at ``starts`` cover together."""
    order = np.argsort(starts)
    fields, starts = fields[order], starts[order]
    opens = np.append(True, fields[1:] != fields[:-1])
    fresh = np.full(len(starts), length, dtype=np.int64)
    fresh[1:] = np.where(opens[1:], length, np.minimum(length, np.diff(starts)))
    heads = np.flatnonzero(opens)
    for number, total in zip(fields[heads].tolist(), np.add.reduceat(fresh, heads).tolist(), strict=True):
        covered[number] = covered.get(number, 0) + total


def _joined(found: Sequence[str]) -> str:
    return " " + " ".join(found) + " "


def longest_common_run(item: Sequence[int], text: Sequence[int]) -> Run:
    """The longest run of consecutive words that both hold, the first one in ``text``; time linear in both lengths
    (suffix automaton of ``item``, Blumer et al. 1985). Numbers below 0 in ``text`` match nothing."""
    links, lengths, ends, nexts = [-1], [0], [-1], [dict[int, int]()]
    last = 0
    for position, word in enumerate(item):
        current = _state(links, lengths, ends, nexts, 0, lengths[last] + 1, position, {})
        state = last
        while state != -1 and word not in nexts[state]:
            nexts[state][word] = current
            state = links[state]
        if state != -1:
            target = nexts[state][word]
            if lengths[state] + 1 != lengths[target]:
                clone = _state(links, lengths, ends, nexts, links[target], lengths[state] + 1, ends[target], dict(nexts[target]))
                while state != -1 and nexts[state].get(word) == target:
                    nexts[state][word] = clone
                    state = links[state]
                links[target] = links[current] = clone
            else:
                links[current] = target
        last = current
    best, state, length = Run(), 0, 0
    for position, word in enumerate(text):
        while state and word not in nexts[state]:
            state = links[state]
            length = lengths[state]
        if word in nexts[state]:
            state, length = nexts[state][word], length + 1
        if length > best.length:
            best = Run(length, ends[state] - length + 1, position - length + 1)
    return best


def _state(
    links: list[int], lengths: list[int], ends: list[int], nexts: list[dict[int, int]], link: int, length: int, end: int,
    following: dict[int, int],
) -> int:  # fmt: skip
    links.append(link)
    lengths.append(length)
    ends.append(end)
    nexts.append(following)
    return len(links) - 1


def excerpt(text: str, start: int, length: int) -> Excerpt:
    """``length`` words of ``text`` from word ``start`` on, with some text on both sides; at most about 800 characters
    in all."""
    shown, spans = word_spans(text)
    if not length:
        return Excerpt("", _cut(shown), "")
    first, last = spans[start][0], spans[start + length - 1][1]
    before = ("…" if first > _CONTEXT else "") + shown[max(0, first - _CONTEXT) : first]
    after = shown[last : last + _CONTEXT] + ("…" if len(shown) > last + _CONTEXT else "")
    return Excerpt(before, _cut(shown[first:last]), after)


def _cut(text: str) -> str:
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…"
