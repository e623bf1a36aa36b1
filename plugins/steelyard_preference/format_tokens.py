"""Which of an answer's trained tokens are the template's and not the author's: a header at its start, the end token at its end.

Llama 3 leaves them out of the preference term of both answers: a token that both have is pushed up and down at once, and answers then
trail off in repetition or break off (arXiv 2407.21783, section 4.1.4).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from steelyard.errors import ModelError
from steelyard_torch.encoding import EncodedRow, encode_chat
from steelyard_torch.templates import generation_prompt

__all__ = ["FormatTokens"]


class FormatTokens:
    """Finds header and termination tokens under a tokenizer's chat template.

    They are looked for at the ends of each trained span: at its start what the template opens an assistant's turn with, where its
    generation block holds some of that; at its end the special token that closes the turn, whichever it is, with those before it that
    the template closes every turn with, and the white space behind it. A span that was cut off has no termination, and keeps its last
    tokens; of a header that was cut off, or that shares its last token with the answer, what is the template's alone is found.

    Raises:
        ModelError: the template closes a turn with something else than a special token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._special = {*tokenizer.all_special_ids, *(id_ for id_, token in added.items() if token.special)}
        self._blank: dict[int, bool] = {}
        self._closers: set[int] = set()
        probe = encode_chat(tokenizer, [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}], trained_turns="last")
        span = probe.input_ids[probe.trained].tolist()
        opening: list[int] = tokenizer(generation_prompt(tokenizer), add_special_tokens=False)["input_ids"]
        longest = min(len(opening), len(span) - 1)
        self._header = next((opening[-k:] for k in range(longest, 0, -1) if span[:k] == opening[-k:]), [])
        self._closers = self._special & set(span[len(self._header) :])
        if self._closing(span, 0, len(span)) == len(span):
            closing = tokenizer.decode(span[len(self._header) :])
            raise ModelError(
                f"`mask_format_tokens` needs a chat template that closes an assistant turn with a special token; this one ends with "
                f"{closing[-20:]!r}"
            )

    def content(self, row: EncodedRow) -> npt.NDArray[np.bool_]:
        """(tokens,) the row's trained tokens without its headers and terminations."""
        kept = row.trained.copy()
        ids = row.input_ids.tolist()
        for start, end in _spans(row.trained):
            kept[start : start + self._opening(ids[start:end])] = False
            kept[self._closing(ids, start, end) : end] = False
        return kept

    def _opening(self, span: list[int]) -> int:
        """How many of the span's first tokens are the header's."""
        same = next((i for i, (one, other) in enumerate(zip(self._header, span, strict=False)) if one != other), len(self._header))
        if same >= min(len(self._header), len(span)):
            return min(same, len(span))
        rest = str(self._tokenizer.decode(self._header[same:]))
        return same if str(self._tokenizer.decode(span[same : same + 1])).startswith(rest) else 0

    def _closing(self, ids: list[int], start: int, end: int) -> int:
        """Where the termination of the span begins; its end where it has none."""
        place = end
        while place > start and self._is_blank(ids[place - 1]):
            place -= 1
        if place == start or ids[place - 1] not in self._special:
            return end
        place -= 1
        while place > start and ids[place - 1] in self._closers:
            place -= 1
        return place

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = token not in self._special and not str(self._tokenizer.decode([token])).strip()
        return self._blank[token]


def _spans(trained: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
