"""Conversations, preference pairs, texts and rollouts as token ids with a mask of the trained tokens.

Text is encoded whole, without special tokens beyond those in it (so a BOS comes from the template or not at all), and a token is
trained if its characters lie within a span that the assistant generates (:mod:`steelyard_torch.templates`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from steelyard.errors import DataError, ModelError
from steelyard_torch.templates import as_dicts, render, render_with_spans

__all__ = [
    "EncodedChats",
    "EncodedPair",
    "EncodedPairs",
    "EncodedRow",
    "EncodingStats",
    "OnTooLong",
    "TrainedTurns",
    "encode_chat",
    "encode_chats",
    "encode_pairs",
    "encode_prompt",
    "encode_rollout",
    "encode_texts",
]

OnTooLong = Literal["truncate", "drop", "refuse"]
TrainedTurns = Literal["all", "last"]

_T = TypeVar("_T")

_BATCH = 512
_LONGEST_SHARE_OF_STRADDLED_SPANS = 0.5


_LOSSES = {
    "truncated": "truncated",
    "dropped_too_long": "dropped as too long",
    "dropped_untrained": "dropped without an answer left",
    "dropped_empty": "dropped with an empty answer",
    "dropped_unshared": "dropped without a shared prompt",
    "dropped_identical": "dropped as chosen and rejected are the same",
}
_COUNTS = ("rows_in", "rows", *_LOSSES, "tokens", "trained_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRow:
    """One sequence. ``trained[i]`` says that token i is a target; the first token never is, since nothing predicts it."""

    input_ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    index: int = 0
    """Position in the data it was made from; rows may have been dropped before it."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def targets(self) -> int:
        """How many tokens are trained."""
        return int(self.trained.sum())


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPair:
    """A preference pair: two sequences with the same prompt."""

    chosen: EncodedRow
    rejected: EncodedRow
    index: int = 0

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)


@dataclass(slots=True)
class EncodingStats:
    """What encoding made of the data. For pairs, a row is a pair and tokens are those of both sides."""

    rows_in: int = 0
    rows: int = 0
    truncated: int = 0
    dropped_too_long: int = 0
    dropped_untrained: int = 0
    """Rows with nothing left to train, for example because truncation cut the answer off."""
    dropped_empty: int = 0
    """Pairs with an answer without text."""
    dropped_unshared: int = 0
    """Pairs whose two conversations have no prompt in common."""
    dropped_identical: int = 0
    """Pairs whose two sides are the same tokens, as they stand or once truncated."""
    tokens: int = 0
    trained_tokens: int = 0
    spans: int = 0
    straddled_spans: int = 0
    """Spans whose first characters share a token with the header before them; that token is not trained."""
    by_source: dict[str, dict[str, int]] = field(default_factory=dict)
    """The counts that are not 0, those of spans apart, for each source that rows name."""

    @property
    def dropped(self) -> int:
        return self.rows_in - self.rows

    @property
    def trained_share(self) -> float:
        """Share of the tokens that are trained, 0 to 1."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "trained_share": self.trained_share}

    def describe(self) -> str:
        """One line for people."""
        line = f"{self.rows:,} of {self.rows_in:,} rows, {self.tokens:,} tokens, {self.trained_share:.1%} of them trained"
        line += "".join(f"; {told}" for told in self._losses(asdict(self)))
        if len(self.by_source) > 1:
            sources = {source: ", ".join(self._losses(counts)) for source, counts in sorted(self.by_source.items())}
            line += "".join(f"; of {source!r}: {told}" for source, told in sources.items() if told)
        return line

    @staticmethod
    def _losses(counts: Mapping[str, Any]) -> list[str]:
        return [f"{counts[name]:,} {what}" for name, what in _LOSSES.items() if counts.get(name)]

    @contextmanager
    def counting(self, source: str | None) -> Iterator[None]:
        """What is counted in here is of a row of this source."""
        before = [getattr(self, name) for name in _COUNTS]
        yield
        if source is not None:
            own = self.by_source.setdefault(source, {})
            for name, then in zip(_COUNTS, before, strict=True):
                if (more := getattr(self, name) - then) != 0:
                    own[name] = own.get(name, 0) + more


@dataclass(slots=True)
class EncodedChats:
    """Encoded sequences and what was made of them."""

    rows: list[EncodedRow]
    stats: EncodingStats = field(default_factory=EncodingStats)


@dataclass(slots=True)
class EncodedPairs:
    """Encoded preference pairs and what was made of them."""

    pairs: list[EncodedPair]
    stats: EncodingStats = field(default_factory=EncodingStats)


@dataclass(frozen=True, slots=True)
class _Text:
    """Text to encode: the character spans to train, whether an end token follows, whether a BOS goes in front."""

    text: str
    spans: Sequence[tuple[int, int]]
    end: bool = False
    begin: bool = False


def encode_chat(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Any], *, trained_turns: TrainedTurns = "all", index: int = 0
) -> EncodedRow:
    """Encode one conversation; :func:`encode_chats` for many, with counts and limits.

    Args:
        messages: dictionaries or records with ``role`` and ``content``.
        trained_turns: train every assistant turn, or the last one only.

    Raises:
        DataError, ModelError: see :func:`steelyard_torch.templates.render_with_spans`.
    """
    encode, stats = _encoder(tokenizer), EncodingStats()
    return next(encode([(index, _chat_text(tokenizer, messages, trained_turns))], stats))


def encode_chats(
    tokenizer: PreTrainedTokenizerFast,
    conversations: Iterable[Sequence[Any]],
    *,
    max_length: int,
    on_too_long: OnTooLong = "truncate",
    trained_turns: TrainedTurns = "all",
    sources: Sequence[str | None] = (),
) -> EncodedChats:
    """Encode conversations for supervised training.

    Args:
        max_length: in tokens.
        on_too_long: cut the end off, leave the row out, or refuse. All are counted; a row without a trained token is left out.
        trained_turns: train every assistant turn, or the last one only.
        sources: where each conversation is from, to be counted apart; without them nothing is.

    Raises:
        DataError: no trained token at all, or a row over ``max_length`` under ``refuse``.
        ModelError: the template's spans cannot be told.
    """
    texts = ((index, _chat_text(tokenizer, messages, trained_turns)) for index, messages in enumerate(conversations))
    return _encode_rows(tokenizer, texts, max_length=max_length, on_too_long=on_too_long, sources=sources)


def encode_texts(
    tokenizer: PreTrainedTokenizerFast,
    rows: Iterable[tuple[str, str]],
    *,
    max_length: int,
    on_too_long: OnTooLong = "truncate",
    train_prompt: bool = False,
    end_token: bool = True,
    sources: Sequence[str | None] = (),
) -> EncodedChats:
    """Encode (prompt, answer) texts without a template, for pre-training; the answer is trained.

    A tokenizer that puts a BOS before plain text by itself does so here, since that is what the model will meet when it is prompted with
    plain text.

    Args:
        rows: a prompt may be empty.
        max_length, on_too_long: as in :func:`encode_chats`.
        train_prompt: train the prompt too.
        end_token: put the tokenizer's end token behind the answer and train it. Without it the model goes on after an answer.
        sources: as in :func:`encode_chats`.

    Raises:
        DataError: as :func:`encode_chats`.
    """
    begin = bool(tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id)
    texts = (
        (index, _Text(prompt + answer, [(0 if train_prompt else len(prompt), len(prompt) + len(answer))], end=end_token, begin=begin))
        for index, (prompt, answer) in enumerate(rows)
    )
    return _encode_rows(tokenizer, texts, max_length=max_length, on_too_long=on_too_long, sources=sources)


def encode_pairs(
    tokenizer: PreTrainedTokenizerFast,
    rows: Iterable[tuple[Sequence[Any], Sequence[Any], Sequence[Any]]],
    *,
    max_length: int,
    on_too_long: OnTooLong = "truncate",
    trained_turns: TrainedTurns = "last",
    sources: Sequence[str | None] = (),
) -> EncodedPairs:
    """Encode preference pairs (prompt, chosen, rejected), each a list of messages.

    Args:
        rows: ``chosen`` and ``rejected`` hold what follows the prompt; a repetition of the prompt in front of them is recognised, and where
            the prompt is empty it is what both begin with. Pairs with an empty answer, without a shared prompt, or with equal sides teach
            nothing, or something else than a preference: they are left out and counted.
        trained_turns: ``last`` scores the final answer only; ``all`` also the assistant turns of the prompt, as Tülu 3 does. The latter
            cancel in ``dpo``, but weigh in the per-token average of ``dpo_norm``.
        sources: as in :func:`encode_chats`.

    Raises:
        DataError: as :func:`encode_chats`, a completion that does not end with an assistant turn, or no pair that is left.
    """
    stats = EncodingStats()
    encode = _encoder(tokenizer)
    pairs: list[EncodedPair] = []
    for chunk in _chunks(enumerate(rows)):
        texts: list[tuple[int, _Text]] = []
        for index, row in chunk:
            with stats.counting(_source(sources, index)):
                conversations = _two_conversations(*row, index, stats)
            texts += [(index, _chat_text(tokenizer, conversation, trained_turns)) for conversation in conversations]
        sides = encode(texts, stats)
        for chosen, rejected in zip(sides, sides, strict=True):
            with stats.counting(_source(sources, chosen.index)):
                read = slice(max_length if on_too_long == "truncate" else None)
                if chosen.trained[read].any() and np.array_equal(chosen.input_ids[read], rejected.input_ids[read]):
                    stats.dropped_identical += 1
                    continue
                kept = _fit([chosen, rejected], stats, max_length=max_length, on_too_long=on_too_long, sources=sources)
                if kept is not None:
                    pairs.append(EncodedPair(kept[0], kept[1], chosen.index))
    _check_pairs(stats)
    _check_trained(stats)
    return EncodedPairs(pairs, stats)


def encode_prompt(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Any]) -> list[int]:
    """Token ids from which an engine samples the answer: the conversation and the generation prompt."""
    text = render(tokenizer, messages, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    _check_begin(tokenizer, ids)
    return ids


def encode_rollout(
    prompt_ids: Sequence[int], completion_ids: Sequence[int], *, trained: bool | Sequence[bool] = True, index: int = 0
) -> EncodedRow:
    """A sequence from the token ids that an engine was given and returned; nothing is decoded and encoded again.

    Args:
        trained: whether the completion's tokens are targets, all or each; ``False`` masks them, for completions that were cut off.
    """
    ids = np.concatenate([np.asarray(prompt_ids, dtype=np.int32), np.asarray(completion_ids, dtype=np.int32)])
    mask = np.zeros(len(ids), dtype=np.bool_)
    mask[len(prompt_ids) :] = trained
    # Nothing predicts the first token, which without a prompt is the completion's.
    mask[:1] = False
    return EncodedRow(ids, mask, index)


def _encode_rows(
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[tuple[int, _Text]],
    *,
    max_length: int,
    on_too_long: OnTooLong,
    sources: Sequence[str | None],
) -> EncodedChats:
    stats = EncodingStats()
    encode = _encoder(tokenizer)
    rows: list[EncodedRow] = []
    for chunk in _chunks(texts):
        for row in encode(chunk, stats):
            with stats.counting(_source(sources, row.index)):
                stats.rows_in += 1
                kept = _fit([row], stats, max_length=max_length, on_too_long=on_too_long, sources=sources)
            if kept is not None:
                rows.append(kept[0])
    _check_trained(stats)
    return EncodedChats(rows, stats)


def _source(sources: Sequence[str | None], index: int) -> str | None:
    return sources[index] if sources else None


def _fit(
    rows: list[EncodedRow], stats: EncodingStats, *, max_length: int, on_too_long: OnTooLong, sources: Sequence[str | None]
) -> list[EncodedRow] | None:
    """Apply the length limit to the sequences of one row, count, and say what is kept; ``None`` if it is left out."""
    longest = max(len(row) for row in rows)
    if longest > max_length:
        if on_too_long == "refuse":
            source = _source(sources, rows[0].index)
            where = f"row {rows[0].index}" + (f" of source {source!r}" if source is not None else "")
            raise DataError(
                f"{where} has {longest} tokens, over max_length {max_length}; raise it, or set on_too_long to 'truncate' or 'drop'"
            )
        if on_too_long == "drop":
            stats.dropped_too_long += 1
            return None
        stats.truncated += 1
        rows = [EncodedRow(row.input_ids[:max_length], row.trained[:max_length], row.index) for row in rows]
    if not all(row.targets for row in rows):
        stats.dropped_untrained += 1
        return None
    stats.rows += 1
    stats.tokens += sum(len(row) for row in rows)
    stats.trained_tokens += sum(row.targets for row in rows)
    return rows


def _check_trained(stats: EncodingStats) -> None:
    if stats.straddled_spans > _LONGEST_SHARE_OF_STRADDLED_SPANS * stats.spans:
        raise ModelError(
            f"in {stats.straddled_spans} of {stats.spans} answers the first token also covers the end of the prompt before it, so the "
            "model would be prompted otherwise than it is trained; let the prompt, or the header in the chat template, end where a token "
            "ends (for example, with a newline instead of a space)"
        )
    if stats.trained_tokens == 0:
        raise DataError(
            f"0 of {stats.rows_in} rows have a token to train ({stats.dropped_too_long} dropped as too long, {stats.dropped_untrained} "
            "without an assistant answer within max_length); check the columns, max_length and the chat template"
        )


def _chat_text(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Any], trained_turns: TrainedTurns) -> _Text:
    chat = render_with_spans(tokenizer, messages)
    return _Text(chat.text, chat.spans if trained_turns == "all" else chat.spans[-1:])


def _two_conversations(
    prompt: Sequence[Any], chosen: Sequence[Any], rejected: Sequence[Any], index: int, stats: EncodingStats
) -> tuple[list[dict[str, Any]], ...]:
    """A pair's conversations; none, and a count, where it is no pair."""
    stats.rows_in += 1
    sides = [as_dicts(side) if len(side) else [] for side in (chosen, rejected)]
    before = as_dicts(prompt) if len(prompt) else _common_start(*sides)
    sides = [side[len(before) :] if side[: len(before)] == before else side for side in sides]
    for side in sides:
        if side and side[-1]["role"] != "assistant":
            raise DataError(f"row {index}: a chosen or rejected completion must end with an assistant message, got {side!r}"[:400])
    if any(not side or not (side[-1]["content"].strip() or side[-1].get("tool_calls")) for side in sides):
        stats.dropped_empty += 1
        return ()
    if not before or any(side[0]["role"] != "assistant" for side in sides):
        stats.dropped_unshared += 1
        return ()
    return tuple(before + side for side in sides)


def _common_start(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages that both conversations begin with, without the last of either."""
    shared = 0
    while shared < min(len(first), len(second)) - 1 and first[shared] == second[shared]:
        shared += 1
    return first[:shared]


def _check_pairs(stats: EncodingStats) -> None:
    left_out = {
        "with an empty answer": stats.dropped_empty,
        "without a prompt that both sides share": stats.dropped_unshared,
        "with the same tokens on both sides": stats.dropped_identical,
    }
    if stats.rows == 0 and any(left_out.values()):
        why = ", ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
        raise DataError(f"none of the {stats.rows_in:,} pairs has anything to prefer: {why}; a row has prompt, chosen and rejected")


def _chunks(items: Iterable[_T]) -> Iterator[list[_T]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, _BATCH)):
        yield chunk


def _encoder(
    tokenizer: PreTrainedTokenizerFast,
) -> Callable[[list[tuple[int, _Text]], EncodingStats], Iterator[EncodedRow]]:
    """A function that encodes texts with masks, under a copy of the tokenizer that reports each token's full characters.

    A post-processor adds special tokens, not wanted here, and may trim white space off the offsets (``trim_offsets`` of byte-level ones),
    which would leave white-space tokens without a place.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.Sequence([])
    backend.no_padding()
    backend.no_truncation()

    def encode(texts: list[tuple[int, _Text]], stats: EncodingStats) -> Iterator[EncodedRow]:
        encodings = backend.encode_batch([text.text for _, text in texts], add_special_tokens=False)
        for (index, text), encoding in zip(texts, encodings, strict=True):
            ids = np.asarray(encoding.ids, dtype=np.int32)
            trained = _mask(encoding.offsets, text.spans, stats)
            if text.end:
                ids, trained = np.append(ids, np.int32(tokenizer.eos_token_id)), np.append(trained, True)
            if text.begin:
                ids, trained = np.insert(ids, 0, tokenizer.bos_token_id), np.insert(trained, 0, False)
            _check_begin(tokenizer, ids)
            trained[:1] = False
            yield EncodedRow(ids, trained, index)

    return encode


def _mask(offsets: list[tuple[int, int]], spans: Sequence[tuple[int, int]], stats: EncodingStats) -> npt.NDArray[np.bool_]:
    places = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = places[:, 0], places[:, 1]
    trained = np.zeros(len(places), dtype=np.bool_)
    for start, end in spans:
        trained |= (starts >= start) & (ends <= end) & (starts < end)
        stats.spans += 1
        stats.straddled_spans += bool(((starts < start) & (ends > start)).any())
    return trained


def _check_begin(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int] | npt.NDArray[np.int32]) -> None:
    if len(ids) > 1 and tokenizer.bos_token_id is not None and ids[0] == ids[1] == tokenizer.bos_token_id:
        raise ModelError(f"a sequence begins with {tokenizer.bos_token!r} twice; take it out of the chat template or of the data")
