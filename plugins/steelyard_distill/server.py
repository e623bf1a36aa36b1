"""A teacher behind a vLLM server: its most probable tokens, or the log-probabilities of the targets themselves.

vLLM's completions take token ids and, beyond OpenAI's API, ``prompt_logprobs: k``: for every position of the prompt the k most probable
tokens and the one that stands there, at temperature 1 unless the server was started with another ``--logprobs-mode``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from steelyard.endpoint.client import Endpoint, Trouble
from steelyard.errors import EngineError, ModelError
from steelyard_distill.comparing import Signal
from steelyard_distill.config import SAMPLED, DistillConfig
from steelyard_distill.divergences import TopK
from steelyard_distill.states import vocabulary
from steelyard_distill.teachers import KnownRows
from steelyard_torch.batching import MicroBatch
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.trainee import Trainee

__all__ = ["ServerTeacher", "read_positions"]

_LONGEST_REPLY = 1 << 30
_FEWEST_ALIKE = 0.9
"""Tokens that must spell alike here and there; the texts of parts of characters may differ between versions."""
_MOST = 1e-3
"""What a log-probability may be at most: 0, and what single precision makes of it. Logits and processed scores are above."""
_LEAST_REST = math.log(2**-24)
"""What the tokens beyond k are given at least: in the server's single precision their probabilities may add up to 1 and more."""

Position = Mapping[int, tuple[float, int, str | None]]
"""By token id: log-probability, rank from 1, text."""


class ServerTeacher:
    """Asks from the main rank alone.

    Raises:
        EngineError: the server does not answer, or not with what was asked for.
        ModelError: its tokens are other ones than the student's.
    """

    def __init__(self, config: DistillConfig, trainee: Trainee):
        assert config.server is not None
        self._config, self._trainee, self._server = config, trainee, config.server
        self._width = vocabulary(trainee.model)
        self._endpoint = Endpoint(config.server, thread_name="teacher", longest_reply=_LONGEST_REPLY)
        self._known = KnownRows([])
        self._compared = False

    def prepare(self, rows: Sequence[EncodedRow], indices: Sequence[int]) -> None:
        world = self._trainee.world
        if self._config.divergence == SAMPLED:
            self._known = KnownRows(world.from_main(self._own(rows) if world.main else None))
        else:
            self._known = KnownRows(self.score_top_k(rows))

    def signal(self, batch: MicroBatch) -> Signal:
        return self._known.signal(batch)

    def score_top_k(self, rows: Sequence[EncodedRow]) -> list[TopK]:
        """The ``top_k`` tokens at each row's targets, on every rank."""
        k, world = self._config.top_k or 1, self._trainee.world
        said = [self._top_k(row, positions, k) for row, positions in zip(rows, self._ask(rows, k), strict=True)] if world.main else None
        return world.from_main(said)

    def _own(self, rows: Sequence[EncodedRow]) -> list[torch.Tensor]:
        asked = self._ask(rows, 0)
        return [
            torch.tensor([position[token][0] for token, position in _targets(row, positions)], dtype=torch.float32)
            for row, positions in zip(rows, asked, strict=True)
        ]

    def _ask(self, rows: Sequence[EncodedRow], k: int) -> list[list[Position | None]]:
        """Of each row, every position's tokens."""
        given = {"model": self._server.model, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": k}
        bodies = [self._server.request({**given, "prompt": row.input_ids.tolist()}) for row in rows]
        replies = self._endpoint.post("/completions", bodies, read_positions, wanted="completion with prompt_logprobs", together=True)
        answers: list[list[Position | None]] = []
        for row, reply in zip(rows, replies, strict=False):
            if isinstance(reply, Trouble):
                raise EngineError(f"the teacher {self._server.model!r} at {self._server.url!r}: {reply.what}; {_advice(reply, k)}")
            if len(reply) != len(row) or any(token not in (position or {}) for token, position in _targets(row, reply)):
                raise EngineError(f"the teacher at {self._server.url!r} answered for other tokens than it was given")
            answers.append(reply)
        self._check_ids(answers)
        if not self._compared:
            self._check_tokens(answers)
        return answers

    def _check_ids(self, answers: Sequence[Sequence[Position | None]]) -> None:
        known = range(self._width)
        beyond = next((token for reply in answers for position in reply for token in position or () if token not in known), None)
        if beyond is not None:
            raise ModelError(f"the teacher's server knows a token {beyond}, the student {self._width:,} tokens: another vocabulary")

    def _check_tokens(self, answers: Sequence[Sequence[Position | None]]) -> None:
        """The texts that the server gives its token ids are the student's."""
        texts = {token: said[2] for reply in answers for position in reply for token, said in (position or {}).items()}
        known = {token: text for token, text in texts.items() if text}
        ours = {token: str(self._trainee.tokenizer.decode([token])) for token in known}
        alike = sum(ours[token].strip() == text.strip() for token, text in known.items())
        if known and alike < _FEWEST_ALIKE * len(known):
            other = next(token for token, text in known.items() if ours[token].strip() != text.strip())
            raise ModelError(
                f"the teacher's server has another vocabulary than the student: token {other} is {known[other]!r} there and "
                f"{ours[other]!r} here; serve a teacher with the student's tokenizer"
            )
        self._compared = True

    def _top_k(self, row: EncodedRow, positions: Sequence[Position | None], k: int) -> TopK:
        ids, logprobs, own = [], [], []
        for token, position in _targets(row, positions):
            best = sorted(position.items(), key=lambda item: item[1][1])[:k]
            if len(best) < k:
                raise EngineError(f"the teacher at {self._server.url!r} gave {len(best)} of the {k} tokens asked for")
            ids.append([one for one, _ in best])
            logprobs.append([said[0] for _, said in best])
            own.append(position[token][0])
        found = torch.tensor(logprobs, dtype=torch.float32)
        rest = torch.log1p(-found.double().exp().sum(dim=-1).clamp(max=1 - math.exp(_LEAST_REST))).float()
        return TopK(torch.tensor(ids, dtype=torch.int64), found, rest, torch.tensor(own, dtype=torch.float32))


def read_positions(reply: Any) -> list[Position | None]:
    """Of a completion with ``prompt_logprobs``; the first position has none. Raises a ``LookupError``, ``TypeError`` or ``ValueError``
    for anything else."""
    found = reply["choices"][0]["prompt_logprobs"]
    positions: list[Position | None] = []
    for place in found:
        if place is None:
            positions.append(None)
            continue
        said = {int(token): (float(one["logprob"]), int(one["rank"]), one.get("decoded_token")) for token, one in place.items()}
        if not all(math.isfinite(logprob) for logprob, _, _ in said.values()):
            raise ValueError("log-probabilities are not finite")
        if any(logprob > _MOST for logprob, _, _ in said.values()):
            raise ValueError("log-probabilities are above 0")
        positions.append(said)
    return positions


def _advice(trouble: Trouble, k: int) -> str:
    if trouble.kind == "timeout":
        return "see that it runs, or raise server.timeout_s and server.deadline_s"
    if trouble.status is not None and (trouble.status == 429 or trouble.status >= 500):
        return "see what its log says, or raise server.retries and lower server.concurrency"
    return f"it must be a vLLM server with the default `--logprobs-mode`, started with `--max-logprobs` of {max(k, 1)} at least"


def _targets(row: EncodedRow, positions: Sequence[Position | None]) -> list[tuple[int, Position]]:
    """Each trained token with what was said of its position."""
    return [(int(row.input_ids[place]), positions[place] or {}) for place in np.flatnonzero(row.trained).tolist()]
