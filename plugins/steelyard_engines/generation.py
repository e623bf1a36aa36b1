"""The generation loop: a batch of prompts, filled once, then a token a step from the KV cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steelyard.errors import EngineError
from steelyard_engines.kv_cache import roomy_cache
from steelyard_engines.sampling import TokenChooser
from steelyard_engines.stopping import StopRule

__all__ = ["Generated", "Request", "forward_options", "generate_batch", "left_pad", "plan_batches"]

_COMPACT_SHARE = 8


@dataclass(slots=True)
class Generated:
    """One completion as tokens."""

    token_ids: list[int]
    logprobs: list[float] | None
    stopped: bool


@dataclass(slots=True)
class Request:
    """A prompt and the seeds of the samples wanted of it; ``room`` is the most new tokens it may get."""

    prompt_id: str
    token_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    room: int
    samples: list[Generated] = field(default_factory=list)


def plan_batches(requests: Sequence[Request], *, max_rows: int, max_tokens: int) -> Iterator[list[Request]]:
    """Batches of requests of like length, longest first, so that what does not fit in memory shows at once.

    A request with more samples than ``max_rows`` is split; the parts are requests of their own, with the same prompt.
    """
    batch: list[Request] = []
    rows = width = room = 0
    for request in sorted(requests, key=lambda r: len(r.token_ids), reverse=True):
        count, longest = len(request.seeds), max(width, len(request.token_ids)) + max(room, request.room)
        if batch and (rows + count > max_rows or (rows + count) * longest > max_tokens):
            yield batch
            batch, rows, width, room = [], 0, 0, 0
        batch.append(request)
        rows, width, room = rows + count, max(width, len(request.token_ids)), max(room, request.room)
    if batch:
        yield batch


def left_pad(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Token ids (rows, longest) padded on the left, and the mask of real tokens, or None where nothing is padded."""
    width = max(len(s) for s in sequences)
    ids = torch.tensor([[pad_id] * (width - len(s)) + list(s) for s in sequences], dtype=torch.int64)
    if all(len(s) == width for s in sequences):
        return ids.to(device), None
    lengths = torch.tensor([len(s) for s in sequences]).unsqueeze(1)
    mask = torch.arange(width).unsqueeze(0) >= width - lengths
    return ids.to(device), mask.to(torch.int64).to(device)


def forward_options(module: PreTrainedModel) -> frozenset[str]:
    """Which of the optional arguments the model's forward takes."""
    parameters = inspect.signature(module.forward).parameters
    return frozenset(name for name in ("position_ids", "logits_to_keep") if name in parameters)


class _Decoder:
    """The model, its cache and the live rows of one batch."""

    def __init__(self, module: PreTrainedModel, requests: Sequence[Request], pad_id: int):
        self._module = module
        self._options = forward_options(module)
        self._requests = requests
        self._cache = roomy_cache(module.config)
        self._ids, self._mask = left_pad([r.token_ids for r in requests], pad_id, module.device)
        self._next_position: Tensor | None = None

    def first_logits(self) -> Tensor:
        """Prefill every prompt once, then repeat its cache for each of its samples; logits (rows, vocabulary) after the prompts."""
        width = self._ids.shape[1]
        device = self._ids.device
        if self._mask is None:
            positions = torch.arange(width, device=device).unsqueeze(0).expand_as(self._ids)
        else:
            positions = (self._mask.cumsum(-1) - 1).clamp_(min=0)
        logits = self._forward(self._ids, positions)
        lengths = positions[:, -1] + 1
        counts = [len(r.seeds) for r in self._requests]
        if any(count != 1 for count in counts):
            rows = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device)
            self._cache.batch_select_indices(rows)
            logits, lengths = logits[rows], lengths[rows]
            self._mask = None if self._mask is None else self._mask[rows]
        self._next_position = lengths
        return logits

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Feed one token a row; logits (rows, vocabulary) after it."""
        assert self._next_position is not None
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        logits = self._forward(tokens.unsqueeze(1), self._next_position.unsqueeze(1))
        self._next_position = self._next_position + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        assert self._next_position is not None
        self._cache.batch_select_indices(rows)
        self._next_position = self._next_position[rows]
        if self._mask is not None:
            self._mask = self._mask[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        options: dict[str, Any] = {}
        if "position_ids" in self._options:
            options["position_ids"] = positions
        if "logits_to_keep" in self._options:
            options["logits_to_keep"] = 1
        output = self._module(
            input_ids=ids, attention_mask=self._mask, past_key_values=self._cache, use_cache=True, return_dict=True, **options
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def generate_batch(
    module: PreTrainedModel,
    requests: Sequence[Request],
    *,
    chooser: TokenChooser,
    stop: StopRule,
    pad_id: int,
    logprobs: bool,
) -> None:
    """Fill ``samples`` of every request, in the order of its seeds.

    Errors: :class:`EngineError` when the model gives logits that are not finite.
    """
    device = module.device
    owners = [r for r in requests for _ in r.seeds]
    rooms = torch.tensor([r.room for r in owners], device=device)
    seeds = torch.tensor([seed for r in requests for seed in r.seeds], dtype=torch.int64, device=device)
    longest = max(r.room for r in requests)
    tokens = torch.full((len(owners), longest), pad_id, dtype=torch.int64, device=device)
    scores = torch.zeros(len(owners), longest, device=device)
    lengths = torch.zeros(len(owners), dtype=torch.int64, device=device)
    stopped = torch.zeros(len(owners), dtype=torch.bool, device=device)
    ends = torch.tensor(sorted(stop.ends), dtype=torch.int64, device=device)

    live = torch.arange(len(owners), device=device)
    done = torch.zeros(len(owners), dtype=torch.bool, device=device)
    decoder = _Decoder(module, requests, pad_id)
    logits = decoder.first_logits()
    for position in range(longest):
        chosen, logprob = chooser.choose(logits, seeds[live], position, logprobs=logprobs)
        _check_finite(logits, chosen, [owners[i].prompt_id for i in live.tolist()] if position == 0 else (), position)
        tokens[live, position] = chosen
        if logprob is not None:
            scores[live, position] = logprob
        ended = torch.isin(chosen, ends)
        if stop.texts:
            ended = ended | torch.tensor(stop.stopped_by_text(tokens[live, : position + 1].tolist()), device=device)
        ended_now = ended & ~done
        finished = (ended | (rooms[live] <= position + 1)) & ~done
        lengths[live[finished]] = position + 1
        stopped[live[ended_now]] = True
        done = done | finished
        finished_count = int(done.sum())
        if finished_count == len(live):
            break
        if finished_count * _COMPACT_SHARE >= len(live):
            # Dropping rows copies the cache once, about what every step does anyway.
            kept = (~done).nonzero().squeeze(1)
            decoder.keep(kept)
            live, chosen, done = live[kept], chosen[kept], done[kept]
        logits = decoder.next_logits(chosen)
    _collect(owners, tokens, scores if logprobs else None, lengths, stopped)


def _collect(owners: Sequence[Request], tokens: Tensor, scores: Tensor | None, lengths: Tensor, stopped: Tensor) -> None:
    token_rows, lengths_list, stopped_list = tokens.tolist(), lengths.tolist(), stopped.tolist()
    score_rows = None if scores is None else scores.tolist()
    for row, owner in enumerate(owners):
        length = lengths_list[row]
        logprobs = None if score_rows is None else score_rows[row][:length]
        owner.samples.append(Generated(token_rows[row][:length], logprobs, stopped_list[row]))


def _check_finite(logits: Tensor, chosen: Tensor, prompt_ids: Sequence[str], position: int) -> None:
    """A NaN anywhere in a row makes its largest value NaN; a row without a finite value has a largest one of minus infinity."""
    largest = logits.amax(dim=-1)
    good = torch.isfinite(largest)
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        where = f" for prompt {prompt_ids[row]!r}" if prompt_ids else ""
        raise EngineError(
            f"the model gives logits that are not finite{where} at new token {position + 1}; its weights or its precision are at fault"
        )
