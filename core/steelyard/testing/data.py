"""What every source and mixer keeps: rows that are JSON, in an order that repeats; counts that add up."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from steelyard.protocols import MixContext, Mixer, Source
from steelyard.records import Row

__all__ = ["MixerContract", "SourceContract"]

_COLUMNS = {
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "prompts": ("messages", "verifier", "reference"),
}


class SourceContract:
    """Subclass and implement :meth:`make`; see README.md."""

    def make(self) -> Source:
        """The source under test, with at least one row."""
        raise NotImplementedError

    def test_it_satisfies_the_protocol(self) -> None:
        assert isinstance(self.make(), Source)

    def test_it_has_rows_with_text_for_keys_that_are_json(self) -> None:
        rows = list(self.make().rows())
        assert rows, "the source has no rows, so nothing would be tested"
        for row in rows:
            assert isinstance(row, dict) and all(isinstance(key, str) for key in row), row
            json.dumps(row, allow_nan=False)

    def test_it_gives_the_same_rows_in_the_same_order_every_time(self) -> None:
        source = self.make()
        first = list(source.rows())
        assert list(source.rows()) == first, "a second reading of one source differs"
        assert list(self.make().rows()) == first, "another source of the same configuration differs"


class MixerContract:
    """Subclass, implement :meth:`make` and :meth:`context`; see README.md."""

    row_format: str | None = None
    """The row format the mixer makes; its columns are then checked."""

    one_row_for_each_taken: bool = True
    """False for a mixer that makes more or fewer rows than it takes, as one that samples a model does."""

    def make(self) -> Mixer:
        """The mixer under test."""
        raise NotImplementedError

    def context(self) -> MixContext:
        """What it mixes: a fresh context each time, always of the same content, that gives at least one row."""
        raise NotImplementedError

    def _mixed(self, context: MixContext | None = None) -> tuple[list[Row], Any]:
        result = self.make().mix(context or self.context())
        return list(result.rows), result

    def test_it_satisfies_the_protocol(self) -> None:
        assert isinstance(self.make(), Mixer)

    def test_it_makes_rows_that_are_json(self) -> None:
        rows, _ = self._mixed()
        assert rows, "the mixer made no rows, so nothing would be tested"
        for row in rows:
            json.dumps(row, allow_nan=False)
            missing = _missing(row, _COLUMNS.get(self.row_format or "", ()))
            assert not missing, f"{missing} missing in {row}"

    def test_the_same_context_gives_the_same_rows_in_the_same_order(self) -> None:
        assert self._mixed()[0] == self._mixed()[0]

    def test_another_seed_changes_nothing_but_the_choice_and_the_order(self) -> None:
        rows, _ = self._mixed()
        context = self.context()
        others, _ = self._mixed(replace(context, seed=context.seed + 1))
        assert {frozenset(row) for row in others} == {frozenset(row) for row in rows}

    def test_it_says_what_it_took_from_where(self) -> None:
        rows, result = self._mixed()
        assert result.shares, "no shares"
        if self.one_row_for_each_taken:
            assert sum(share.rows_taken for share in result.shares) == len(rows)
        assert len({share.source for share in result.shares}) == len(result.shares), "two shares of one name"
        json.dumps(dict(result.facts), allow_nan=False)


def _missing(row: Row, columns: Iterable[str]) -> list[str]:
    return [column for column in columns if column not in row]
