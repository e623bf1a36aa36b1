"""Answers as rows of tokens, and their log-probabilities under a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steelyard.errors import DataError
from steelyard_preference.format_tokens import FormatTokens
from steelyard_torch.batching import MicroBatch, gather_targets
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.head import sum_by_row, token_logprobs
from steelyard_torch.templates import as_dicts

__all__ = ["AnswerSums", "Answers", "Tally", "answer_messages"]


@dataclass(frozen=True, slots=True, eq=False)
class AnswerSums:
    """Of a micro-batch's B answers."""

    trained: torch.Tensor
    """(B,) log-probabilities summed over the trained tokens."""
    scored: torch.Tensor
    """(B,) the same over those that count in the preference term."""


class Answers:
    """Encoded answers, each with the trained tokens that its preference term counts: all of them, or those that are not the template's.

    Args:
        rows: of whole conversations.
        mask_format_tokens: leave out headers and terminations, see :class:`FormatTokens`.
    """

    def __init__(self, rows: Sequence[EncodedRow], tokenizer: PreTrainedTokenizerFast, *, mask_format_tokens: bool):
        self.rows = rows
        self._scored: list[torch.Tensor] | None = None
        self.counts = [row.targets for row in rows]
        if mask_format_tokens:
            found = FormatTokens(tokenizer)
            self._scored = [torch.from_numpy(found.content(row)[row.trained]) for row in rows]
            self.counts = [int(mask.sum()) for mask in self._scored]

    def of(self, places: Iterable[int]) -> list[EncodedRow]:
        """The rows at these places."""
        return [self.rows[place] for place in places]

    def sums(self, model: PreTrainedModel, batch: MicroBatch, places: Sequence[int]) -> AnswerSums:
        """Log-probabilities of a micro-batch that was made of the rows at ``places``, in the batch's own order."""
        scores = token_logprobs(model, batch)
        trained = sum_by_row(scores.logprobs, scores.rows, scores.n_rows)
        if self._scored is None:
            return AnswerSums(trained, trained)
        mask = gather_targets(batch, [self._scored[place] for place in places])
        return AnswerSums(trained, sum_by_row(scores.logprobs * mask, scores.rows, scores.n_rows))

    def tokens(self, places: Sequence[int], *, trained: bool = False) -> torch.Tensor:
        """How many scored (or trained) tokens the answers at these places have, as float32."""
        counts = [self.rows[place].targets if trained else self.counts[place] for place in places]
        return torch.tensor(counts, dtype=torch.float32)


def answer_messages(answer: Any, where: str) -> list[dict[str, Any]]:
    """The messages of an answer as a row holds it: a text, or a list of messages; none where it is empty.

    Raises:
        DataError: it is something else. ``where`` says which row's it is.
    """
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    if not isinstance(answer, list) or not all(isinstance(message, Mapping) for message in answer):
        raise DataError(f"{where}: an answer is a text or a list of messages, not {answer!r}"[:400])
    return as_dicts(answer) if answer else []


class Tally:
    """Sums of scalars over a step's micro-batches, fetched from the device once."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, name: str, amount: torch.Tensor) -> None:
        amount = amount.detach()
        self._sums[name] = self._sums[name] + amount if name in self._sums else amount

    def values(self) -> dict[str, float]:
        if not self._sums:
            return {}
        return dict(zip(self._sums, torch.stack([value.float() for value in self._sums.values()]).tolist(), strict=True))
