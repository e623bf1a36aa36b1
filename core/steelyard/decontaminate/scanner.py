"""The scan: rows stream through, batches of their words are hashed once and probed against the index."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelyard.decontaminate.documents import DocumentFile, numbered, row_source, row_texts
from steelyard.decontaminate.findings import Match, Overlap, Review, ScanReport, TaskOverlap
from steelyard.decontaminate.index import Field, GramTable, ItemIndex, window_hashes
from steelyard.decontaminate.matching import Run, Text, excerpt, longest_common_run, matched_items
from steelyard.decontaminate.rule import words

__all__ = ["Scanner", "scan"]

_BATCH_WORDS = 1 << 16


@dataclass(frozen=True)
class _Pending:
    """A row that waits in the batch; its texts' words are ``bounds[k]`` of the batch's words."""

    number: int
    row: Mapping[str, Any]
    texts: list[str]
    bounds: list[tuple[int, int]]


class Scanner:
    """Compares rows with an index. Feed it with :meth:`stream`, once, and take the :meth:`report`.

    Memory is that of the index, of a batch of rows and of what was found, whatever the size of the dataset.
    """

    def __init__(self, index: ItemIndex, *, source: str = "data", reviews: int = 200):
        """``source`` names rows that do not say where they come from; ``reviews`` is how many matches of a task and
        source are kept with their texts."""
        self.index = index
        self._source, self._reviews = source, reviews
        self._matches: list[Match] = []
        self._kept: list[Review] = []
        self._kept_by: Counter[tuple[str, str]] = Counter()
        self._sources: Counter[str] = Counter()
        self._items: dict[tuple[str, str], set[int]] = {}
        self._rows: dict[tuple[str, str], set[int]] = {}
        self._documents = self._texts = self._words = self._without_text = self._broken = 0
        self._seconds = 0.0

    def stream(self, rows: DocumentFile | Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any], bool]]:
        """Every row in order as (number, row, does it hold an item?), a batch behind what is read. A row is one
        document; its texts are scanned one by one, so that no n-gram crosses the border of a message."""
        pending: list[_Pending] = []
        ids: list[int] = []
        number_of = self.index.vocabulary.get
        for number, row in numbered(rows):
            started = time.perf_counter()
            texts = row_texts(row)
            bounds = []
            for text in texts:
                start = len(ids)
                ids += [number_of(word, -1) for word in words(text)]
                bounds.append((start, len(ids)))
                ids.append(-1)
            pending.append(_Pending(number, row, texts, bounds))
            self._seconds += time.perf_counter() - started
            if len(ids) >= _BATCH_WORDS:
                yield from self._decide(pending, ids)
                pending, ids = [], []
        yield from self._decide(pending, ids)
        self._broken = rows.broken_count if isinstance(rows, DocumentFile) else 0

    def _decide(self, pending: list[_Pending], ids: list[int]) -> list[tuple[int, Mapping[str, Any], bool]]:
        started = time.perf_counter()
        batch = np.array(ids, dtype=np.int32)
        grams = self._grams(batch, pending)
        decided = []
        for place, waiting in enumerate(pending):
            source = row_source(waiting.row, self._source)
            self._sources[source] += 1
            self._documents += 1
            self._texts += len(waiting.texts)
            self._words += sum(end - start for start, end in waiting.bounds)
            self._without_text += not waiting.texts
            found = False
            if place in grams or self._has_short_text(waiting):
                texts = [Text(t, batch[start:end]) for t, (start, end) in zip(waiting.texts, waiting.bounds, strict=True)]
                for item, coverage in matched_items(self.index, grams.get(place, ()), texts):
                    self._record(waiting.number, source, item, float(coverage), texts)
                    found = True
            decided.append((waiting.number, waiting.row, found))
        self._seconds += time.perf_counter() - started
        return decided

    def _has_short_text(self, waiting: _Pending) -> bool:
        shortest = self.index.rule.min_words
        return bool(self.index.whole_texts) and any(end - start < shortest for start, end in waiting.bounds)

    def _grams(self, batch: NDArray[np.int32], pending: list[_Pending]) -> dict[int, list[tuple[GramTable, NDArray[np.int64]]]]:
        """Place in ``pending`` → the index's grams that stand in its texts, by table; each compared word by word."""
        positions = np.arange(len(batch))
        last_unknown = np.maximum.accumulate(np.where(batch < 0, positions, -1)) if len(batch) else positions
        row_starts = np.array([waiting.bounds[0][0] if waiting.bounds else -1 for waiting in pending], dtype=np.int64)
        owners = np.flatnonzero(row_starts >= 0)
        found: dict[int, list[tuple[GramTable, NDArray[np.int64]]]] = {}
        for length, hashes in window_hashes(batch, self.index.tables, self.index.multiplier):
            table = self.index.tables[length]
            places, grams = table.probe(hashes, last_unknown[length - 1 :] < positions[: len(hashes)])
            same = np.ones(len(places), dtype=np.bool_)
            for k in range(length):
                same &= batch[places + k] == self.index.words[table.first[grams] + k]
            places, grams = places[same], grams[same]
            rows = owners[np.searchsorted(row_starts[owners], places, side="right") - 1]
            heads = np.flatnonzero(np.append(True, rows[1:] != rows[:-1])) if len(rows) else rows
            for row, present in zip(rows[heads].tolist(), np.split(grams, heads[1:]), strict=True) if len(rows) else ():
                found.setdefault(row, []).append((table, present))
        return found

    def _record(self, number: int, source: str, item: int, coverage: float, texts: list[Text]) -> None:
        entry = self.index.items[item]
        key = (entry.task, source)
        field, text, run = self._longest(item, texts)
        match = Match(number, entry.id, entry.task, coverage, run.length, source)
        self._matches.append(match)
        self._items.setdefault(key, set()).add(item)
        self._rows.setdefault(key, set()).add(number)
        if self._kept_by[key] < self._reviews:
            self._kept_by[key] += 1
            self._kept.append(
                Review(
                    match,
                    field.name,
                    excerpt(text.text, run.text_start, run.length),
                    excerpt(self.index.field_text(field), run.item_start, run.length),
                )
            )

    def _longest(self, item: int, texts: list[Text]) -> tuple[Field, Text, Run]:
        best: tuple[Field, Text, Run] | None = None
        for field in self.index.fields_of(item):
            if field.match == "none":
                continue
            sought = self.index.field_words(field)
            for text in texts:
                run = longest_common_run(sought, text.words.tolist())
                if best is None or run.length > best[2].length:
                    best = (field, text, run)
        assert best is not None, "an item was matched that has no field to match"
        return best

    def report(self) -> ScanReport:
        """What was found in the rows that have gone through."""
        tasks, overlaps = {}, []
        rule = self.index.rule
        for name, task in self.index.tasks.items():
            items: set[int] = set().union(*(found for (owner, _), found in self._items.items() if owner == name))
            rows: set[int] = set().union(*(found for (owner, _), found in self._rows.items() if owner == name))
            tasks[name] = TaskOverlap(
                items=task.items,
                unscannable=task.unscannable,
                whole_text=task.whole_text,
                matched=len(items),
                rows=len(rows),
                rate=len(items) / task.scannable if task.scannable else 0.0,
                contaminated=rule.exceeds_overlap(len(items), task.scannable),
            )
        for (name, source), found in sorted(self._items.items()):
            scannable = self.index.tasks[name].scannable
            overlaps.append(
                Overlap(
                    task=name,
                    source=source,
                    rows=len(self._rows[name, source]),
                    items=len(found),
                    rate=len(found) / scannable,
                    contaminated=rule.exceeds_overlap(len(found), scannable),
                )
            )
        return ScanReport(
            index_sha256=self.index.sha256,
            rule=rule,
            documents=self._documents,
            texts=self._texts,
            words=self._words,
            without_text=self._without_text,
            broken_lines=self._broken,
            scan_seconds=self._seconds,
            contaminated=tuple(self._matches),
            matches=tuple(self._kept),
            matches_left_out=len(self._matches) - len(self._kept),
            tasks=tasks,
            sources=dict(sorted(self._sources.items())),
            overlaps=tuple(overlaps),
            matched_rows=frozenset(match.row for match in self._matches),
        )


def scan(index: ItemIndex, rows: DocumentFile | Iterable[Mapping[str, Any]], *, source: str = "data", reviews: int = 200) -> ScanReport:
    """Compares every row with the index; see :class:`Scanner`. Rows may come from
    :func:`~steelyard.decontaminate.read_documents`, whose line numbers they then keep, or from any iterable of
    dictionaries, read once."""
    scanner = Scanner(index, source=source, reviews=reviews)
    for _ in scanner.stream(rows):
        pass
    return scanner.report()
