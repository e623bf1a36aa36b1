"""The index of evaluation items: which word n-grams they are made of, and where each stands.

Words are numbered, items lie one after another in one array of word numbers, and each length of gram has a table sorted
by a 64-bit polynomial hash. A hash only proposes: whoever probes a table compares the words themselves before believing
it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steelyard.decontaminate.items import Item, ItemLike, unique_items
from steelyard.decontaminate.rule import NORMALISATION, Rule, signed_words, words

__all__ = ["Field", "GramTable", "ItemIndex", "ItemTask", "window_hashes"]

_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xD1342543DE82EF95, 0xAF251AF3B0F025B5, 0xF1357AEA2E62A9C5)
_MAX_BITMAP_BITS = 24


def window_hashes(ids: NDArray[np.int32], lengths: Iterable[int], multiplier: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """For each length L, shortest first, the hash modulo 2^64 of every window of L neighbouring words: (L, array of
    len(ids) − L + 1)."""
    wanted = set(lengths)
    base = np.uint64(multiplier)
    values = ids.astype(np.int64).astype(np.uint64) + np.uint64(1)
    hashes = values
    for length in range(1, max(wanted, default=0) + 1):
        if length > len(ids):
            return
        if length > 1:
            hashes = hashes[:-1] * base + values[length - 1 :]
        if length in wanted:
            yield length, hashes


@dataclass(frozen=True)
class Field:
    """One text of one item."""

    item: int
    """Position in :attr:`ItemIndex.items`."""
    name: str
    start: int
    """Where its words begin in :attr:`ItemIndex.words`."""
    length: int
    """Number of words."""
    match: Literal["ngrams", "phrase", "text", "none"]
    """How it is looked for: by n-grams; whole, as consecutive words; as a whole text; not at all (it has no words, or
    other fields of its item speak for it)."""


@dataclass(frozen=True)
class ItemTask:
    """What the index holds of one task."""

    items: int
    unscannable: int
    """Items without a single word: nothing can find them."""
    whole_text: int
    """Items under ``min_words``: found only where a text says nothing else."""

    @property
    def scannable(self) -> int:
        return self.items - self.unscannable


@dataclass(frozen=True, eq=False, repr=False)
class GramTable:
    """The grams of one length, sorted by hash; all gram contents differ."""

    length: int
    hashes: NDArray[np.uint64]
    first: NDArray[np.int64]
    """A place in :attr:`ItemIndex.words` where the gram stands."""
    offsets: NDArray[np.int64]
    """The postings of gram g are ``offsets[g]:offsets[g + 1]``."""
    fields: NDArray[np.int32]
    """Posting → position in :attr:`ItemIndex.fields`."""
    starts: NDArray[np.int64]
    """Posting → place in :attr:`ItemIndex.words`."""
    bitmap: NDArray[np.bool_]
    shift: int
    """``bitmap[hash >> shift]`` is false for nearly every hash that is not in the table."""

    def probe(self, hashes: NDArray[np.uint64], valid: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Windows whose hash is in the table, and the gram each would be: (positions, grams)."""
        positions = np.flatnonzero(valid & self.bitmap[hashes >> np.uint64(self.shift)])
        grams = np.searchsorted(self.hashes, hashes[positions])
        found = self.hashes[np.minimum(grams, len(self.hashes) - 1)] == hashes[positions]
        return positions[found], grams[found]


@dataclass(frozen=True, eq=False, repr=False)
class ItemIndex:
    """The evaluation items of some suites, ready to be found. Made by :meth:`build`; never changed."""

    rule: Rule
    sha256: str
    """Hash of the items, the rule and the normalisation; the same for the same items in any order."""
    items: tuple[Item, ...]
    """Sorted by task and id."""
    tasks: Mapping[str, ItemTask]
    fields: tuple[Field, ...]
    """By item."""
    first_field: tuple[int, ...]
    """Item → its first field; one more entry closes the last."""
    counted: NDArray[np.int32]
    """Item → number of its fields that its coverage is the average of; 0 where it is unscannable."""
    words: NDArray[np.int32]
    vocabulary: Mapping[str, int]
    multiplier: int
    tables: Mapping[int, GramTable]
    whole_texts: Mapping[tuple[str, ...], tuple[int, ...]]
    """Signed words of a whole text → fields that say just that."""

    @classmethod
    def build(cls, items: Iterable[Mapping[str, Any] | ItemLike], rule: Rule | None = None) -> ItemIndex:
        """An index of ``items`` (see :func:`~steelyard.decontaminate.items.as_item` for their forms).

        Errors: :class:`~steelyard.errors.DataError` on no items, a bad one, or two with the same task and id.
        """
        rule = rule or Rule()
        kept = tuple(unique_items(items))
        vocabulary: dict[str, int] = {}
        numbers: list[int] = []
        fields: list[Field] = []
        counted: list[int] = []
        first_field: list[int] = []
        for position, item in enumerate(kept):
            texts = {name: words(text) for name, text in item.fields.items()}
            first_field.append(len(fields))
            ways = _ways({name: len(found) for name, found in texts.items()}, rule)
            counted.append(sum(way != "none" for way in ways.values()))
            for name, found in texts.items():
                fields.append(Field(position, name, len(numbers), len(found), ways[name]))
                numbers.extend(vocabulary.setdefault(word, len(vocabulary)) for word in found)
        flat = np.array(numbers, dtype=np.int32)
        multiplier, tables = _tables(flat, fields, rule)
        return cls(
            rule=rule,
            sha256=_sha256(kept, rule),
            items=kept,
            tasks=_tasks(kept, fields, counted),
            fields=tuple(fields),
            first_field=(*first_field, len(fields)),
            counted=np.array(counted, dtype=np.int32),
            words=flat,
            vocabulary=vocabulary,
            multiplier=multiplier,
            tables=tables,
            whole_texts=_whole_texts(kept, fields),
        )

    def __repr__(self) -> str:
        return f"ItemIndex({len(self.items)} items of {', '.join(self.tasks)}; sha256={self.sha256[:12]!r}, {self.rule})"

    def fields_of(self, item: int) -> tuple[Field, ...]:
        return self.fields[self.first_field[item] : self.first_field[item + 1]]

    def field_text(self, field: Field) -> str:
        return self.items[field.item].fields[field.name]

    def field_words(self, field: Field) -> list[int]:
        found: list[int] = self.words[field.start : field.start + field.length].tolist()
        return found


def _ways(lengths: Mapping[str, int], rule: Rule) -> dict[str, Literal["ngrams", "phrase", "text", "none"]]:
    """How each field of one item is looked for. Fields under ``min_words`` (an option letter, a number) count only
    where the item has nothing longer: found by chance they would lift the average, missing they would hide a question
    that leaked without its answer."""
    has_long = any(length >= rule.min_words for length in lengths.values())
    ways: dict[str, Literal["ngrams", "phrase", "text", "none"]] = {}
    for name, length in lengths.items():
        if length >= rule.ngram:
            ways[name] = "ngrams"
        elif length >= rule.min_words:
            ways[name] = "phrase"
        else:
            ways[name] = "none" if has_long or length == 0 else "text"
    return ways


def _tables(flat: NDArray[np.int32], fields: list[Field], rule: Rule) -> tuple[int, dict[int, GramTable]]:
    """Tables by gram length, under the first multiplier that gives different grams different hashes."""
    owners: dict[int, list[tuple[int, int, int]]] = {}
    for number, field in enumerate(fields):
        if field.match == "ngrams":
            owners.setdefault(rule.ngram, []).append((number, field.start, field.length - rule.ngram + 1))
        elif field.match == "phrase":
            owners.setdefault(field.length, []).append((number, field.start, 1))
    for multiplier in _MULTIPLIERS:
        tables: dict[int, GramTable] = {}
        for length, hashes in window_hashes(flat, owners, multiplier):
            table = _table(flat, length, hashes, owners[length])
            if table is None:
                break
            tables[length] = table
        else:
            return multiplier, tables
    raise AssertionError("every hash multiplier gave two n-grams the same 64-bit hash")


def _table(flat: NDArray[np.int32], length: int, hashes: NDArray[np.uint64], owners: list[tuple[int, int, int]]) -> GramTable | None:
    """The table of one gram length, or None if two different grams share a hash."""
    counts = np.array([count for _, _, count in owners], dtype=np.int64)
    fields = np.repeat(np.array([number for number, _, _ in owners], dtype=np.int32), counts)
    begins = np.repeat(np.array([start for _, start, _ in owners], dtype=np.int64), counts)
    starts = begins + np.arange(len(begins)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(hashes[starts], kind="stable")
    fields, starts = fields[order], starts[order]
    unique, offsets = np.unique(hashes[starts], return_index=True)
    bounds = np.append(offsets, len(starts)).astype(np.int64)
    first = starts[offsets]
    representative = np.repeat(first, np.diff(bounds))
    if any(np.any(flat[starts + k] != flat[representative + k]) for k in range(length)):
        return None
    bits = min(_MAX_BITMAP_BITS, max(10, int(len(unique) * 16).bit_length()))
    shift = 64 - bits
    bitmap = np.zeros(1 << bits, dtype=np.bool_)
    bitmap[unique >> np.uint64(shift)] = True
    return GramTable(length, unique, first, bounds, fields, starts, bitmap, shift)


def _tasks(items: tuple[Item, ...], fields: list[Field], counted: list[int]) -> dict[str, ItemTask]:
    by_text = {field.item for field in fields if field.match == "text"}
    totals: dict[str, list[int]] = {}
    for position, item in enumerate(items):
        total = totals.setdefault(item.task, [0, 0, 0])
        total[0] += 1
        total[1] += counted[position] == 0
        total[2] += position in by_text
    return {task: ItemTask(*total) for task, total in totals.items()}


def _whole_texts(items: tuple[Item, ...], fields: list[Field]) -> dict[tuple[str, ...], tuple[int, ...]]:
    found: dict[tuple[str, ...], list[int]] = {}
    for number, field in enumerate(fields):
        if field.match == "text":
            found.setdefault(tuple(signed_words(items[field.item].fields[field.name])), []).append(number)
    return {key: tuple(numbers) for key, numbers in found.items()}


def _sha256(items: tuple[Item, ...], rule: Rule) -> str:
    digest = hashlib.sha256(json.dumps({"normalisation": NORMALISATION, "rule": rule.to_dict()}, sort_keys=True).encode())
    for item in items:
        digest.update(b"\n" + json.dumps([item.task, item.id, dict(item.fields)], sort_keys=True).encode())
    return digest.hexdigest()
