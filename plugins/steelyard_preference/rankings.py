"""Ranked answers to a prompt, best first, as rows of a dataset hold them, and as tokens."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from steelyard.errors import DataError
from steelyard.records import Row
from steelyard_preference.answers import answer_messages
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.templates import as_dicts, render

__all__ = ["EncodedRanking", "Ranking", "RankingStats", "encode_rankings", "read_ranking", "split_by_prompt"]

_BATCH = 512


@dataclass(frozen=True, slots=True)
class Ranking:
    """Answers to one prompt, best first."""

    prompt: list[dict[str, Any]]
    answers: list[list[dict[str, Any]]]
    """What follows the prompt."""
    margin: float = 0.0
    where: str = ""
    source: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRanking:
    """The whole conversations; nothing in them is marked as trained, since a score is no token."""

    answers: tuple[EncodedRow, ...]
    pairs: tuple[tuple[int, int], ...]
    """(better, worse) places in ``answers``: every two answers that differ."""
    margin: float
    prompt: str
    """The prompt's text, by which lists of one prompt are told."""

    def __len__(self) -> int:
        return sum(map(len, self.answers))


@dataclass(slots=True)
class RankingStats:
    """What became of a dataset's lists; a pair is a list of two."""

    lists_in: int = 0
    lists: int = 0
    pairs: int = 0
    dropped_too_long: int = 0
    dropped_empty: int = 0
    """Lists with an answer without text."""
    dropped_unshared: int = 0
    """Lists whose conversations have no prompt in common."""
    dropped_identical: int = 0
    """Lists whose answers are all the same."""
    dropped_contradictory: int = 0
    """Lists with an answer both above and below another one."""
    tokens: int = 0
    by_source: dict[str, dict[str, int]] = field(default_factory=dict)
    """The counts of lists that are not 0, for each source that rows name."""

    def count(self, what: str, source: str | None) -> None:
        """One more list of a source: ``lists_in``, ``lists`` or why it was dropped."""
        setattr(self, what, getattr(self, what) + 1)
        if source is not None:
            own = self.by_source.setdefault(source, {})
            own[what] = own.get(what, 0) + 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        """One line for people."""
        line = f"{self.lists:,} of {self.lists_in:,} pairs or lists, {self.pairs:,} pairs in all, {self.tokens:,} tokens"
        told = {
            "dropped as too long": self.dropped_too_long,
            "dropped with an empty answer": self.dropped_empty,
            "dropped without a shared prompt": self.dropped_unshared,
            "dropped as their answers are the same": self.dropped_identical,
            "dropped as they rank an answer above and below another": self.dropped_contradictory,
        }
        return line + "".join(f"; {count:,} {what}" for what, count in told.items() if count)


def read_ranking(row: Row, *, margin: bool = False) -> Ranking:
    """The ranking of a row: ``ranked``, best first; or ``edited`` (where it is there), ``chosen`` and ``rejected``.

    Args:
        margin: read the column ``margin``.

    Raises:
        DataError: no such columns, or a margin that is no number from 0 up.
    """
    where = f"row {row.get('id', '?')!r}"
    if not isinstance(row.get("prompt"), list):
        raise DataError(f"{where} has no messages under 'prompt'; it has {', '.join(sorted(row))}")
    if "ranked" in row:
        answers = row["ranked"]
        if not isinstance(answers, list) or len(answers) < 2:
            raise DataError(f"{where}: 'ranked' is a list of at least two answers, best first, not {answers!r}"[:400])
    else:
        names = [name for name in ("edited", "chosen", "rejected") if name in row]
        if not {"chosen", "rejected"} <= set(names):
            raise DataError(f"{where} has neither 'ranked' nor 'chosen' and 'rejected'; it has {', '.join(sorted(row))}")
        answers = [row[name] for name in names]
    prompt = as_dicts(row["prompt"]) if row["prompt"] else []
    return Ranking(
        prompt, [answer_messages(answer, where) for answer in answers], _margin(row, where) if margin else 0.0, where, row.get("source")
    )


def encode_rankings(
    tokenizer: PreTrainedTokenizerFast, rankings: Iterable[Ranking], *, max_length: int, refuse_too_long: bool
) -> tuple[list[EncodedRanking], RankingStats]:
    """Encode conversations as the verifier ``reward_model`` encodes them: rendered whole, without special tokens beyond the template's.

    Raises:
        DataError: nothing is left, an answer does not end with the assistant, or is too long where that is refused.
        ModelError: the tokenizer has no chat template.
    """
    stats = RankingStats()
    encoded: list[EncodedRanking] = []
    usable = _usable(rankings, stats)
    while chunk := list(itertools.islice(usable, _BATCH)):
        texts = [render(tokenizer, ranking.prompt + answer) for ranking in chunk for answer in ranking.answers]
        rows = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
        for ranking in chunk:
            made = _fit(ranking, [next(rows) for _ in ranking.answers], stats, max_length=max_length, refuse=refuse_too_long)
            if made is not None:
                encoded.append(made)
    if not encoded:
        raise DataError(f"nothing to learn a reward from: {stats.describe()}; a row has a prompt, with chosen and rejected, or ranked")
    return encoded, stats


def split_by_prompt(rankings: Sequence[EncodedRanking], *, heldout: float, seed: int) -> tuple[list[EncodedRanking], list[EncodedRanking]]:
    """The lists to train on and those held out: all lists of about ``heldout`` of the prompts, of one at least where there are two."""
    prompts = sorted({ranking.prompt for ranking in rankings})
    random.Random(seed).shuffle(prompts)
    count = min(max(1, round(heldout * len(prompts))), len(prompts) - 1) if heldout else 0
    out = set(prompts[:count])
    return [r for r in rankings if r.prompt not in out], [r for r in rankings if r.prompt in out]


def _usable(rankings: Iterable[Ranking], stats: RankingStats) -> Iterator[Ranking]:
    """With what follows the prompt as answers; without the empty and the unrelated."""
    for ranking in rankings:
        stats.count("lists_in", ranking.source)
        prompt = ranking.prompt or _common_start(ranking.answers)
        answers = [answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer for answer in ranking.answers]
        if any(not answer or not (answer[-1]["content"].strip() or answer[-1].get("tool_calls")) for answer in answers):
            stats.count("dropped_empty", ranking.source)
        elif not prompt or any(answer[0]["role"] != "assistant" for answer in answers):
            stats.count("dropped_unshared", ranking.source)
        else:
            for answer in answers:
                if answer[-1]["role"] != "assistant":
                    raise DataError(f"{ranking.where}: an answer must end with an assistant message, got {answer!r}"[:400])
            yield replace(ranking, prompt=prompt, answers=answers)


def _fit(ranking: Ranking, rows: list[list[int]], stats: RankingStats, *, max_length: int, refuse: bool) -> EncodedRanking | None:
    longest = max(map(len, rows))
    if longest > max_length:
        if refuse:
            raise DataError(
                f"{ranking.where} has an answer that ends after {longest} tokens, over max_length {max_length}; raise it, or drop"
            )
        stats.count("dropped_too_long", ranking.source)
        return None
    pairs = tuple((a, b) for a, b in itertools.combinations(range(len(rows)), 2) if rows[a] != rows[b])
    if not pairs:
        stats.count("dropped_identical", ranking.source)
        return None
    said = {(tuple(rows[a]), tuple(rows[b])) for a, b in pairs}
    if any((worse, better) in said for better, worse in said):
        stats.count("dropped_contradictory", ranking.source)
        return None
    stats.count("lists", ranking.source)
    stats.pairs += len(pairs)
    stats.tokens += sum(map(len, rows))
    answers = tuple(EncodedRow(np.asarray(ids, np.int32), np.zeros(len(ids), np.bool_)) for ids in rows)
    return EncodedRanking(answers, pairs, ranking.margin, json.dumps(ranking.prompt, sort_keys=True))


def _common_start(conversations: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    shared = 0
    shortest = min(map(len, conversations))
    while shared < shortest - 1 and all(c[shared] == conversations[0][shared] for c in conversations):
        shared += 1
    return conversations[0][:shared]


def _margin(row: Row, where: str) -> float:
    if "ranked" in row or "edited" in row:
        raise DataError(f"{where}: a column 'margin' belongs to pairs of chosen and rejected, and this is a list of more")
    value = row.get("margin")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise DataError(f"{where} has the margin {value!r}, not a number from 0 up; `margin: column` needs one in every row")
    return float(value)
