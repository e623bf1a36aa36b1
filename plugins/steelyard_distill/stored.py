"""A teacher's most probable tokens at every trained token of a dataset, asked for once and kept by content.

The key is made of the teacher's weights, the dataset, the tokenizer with its template, and all that changes what is asked. The files are
parts of a bounded size, each complete or absent: scoring that was interrupted goes on at the part that is missing, and training reads
the rows of a step without holding the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from steelyard.errors import DataError, Interrupted
from steelyard_distill.comparing import Signal
from steelyard_distill.divergences import TopK
from steelyard_distill.teachers import KnownRows
from steelyard_torch.batching import MicroBatch
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.token_cache import cache_key, read_tensors, write_tensors
from steelyard_torch.trainee import Trainee

__all__ = ["StoredTeacher"]

_PART_VALUES = 2**25
"""Most log-probabilities in a file: 256 MiB with their token ids."""


class StoredTeacher:
    """Reads what the teacher said; asks it for the parts that are not there.

    Args:
        facts: what the answers depend on beside dataset and tokenizer, JSON.
        width: of the teacher's vocabulary, where it may be below the student's.
        score: asks the teacher about rows; only called where something is missing, then on every rank.

    Raises:
        Interrupted: the run was asked to stop meanwhile; whole parts stay.
    """

    def __init__(
        self,
        trainee: Trainee,
        rows: Sequence[EncodedRow],
        *,
        top_k: int,
        facts: Mapping[str, Any],
        score: Callable[[Sequence[EncodedRow]], list[TopK]],
        width: int | None = None,
        part_values: int = _PART_VALUES,
    ):
        self._width = width
        self.key = cache_key(trainee.dataset(), trainee.tokenizer, {**facts, "kind": "teacher log-probabilities", "part": part_values})
        folder = trainee.context.cache / "teacher-logprobs" / self.key
        self._parts = _parts([row.targets for row in rows], max(1, part_values // top_k))
        self._paths = [folder / f"part-{number:05d}.safetensors" for number in range(len(self._parts))]
        self._places = {index: (number, *place) for number, part in enumerate(self._parts) for index, place in part.items()}
        self._opened: dict[int, Any] = {}
        self._known = KnownRows([])
        self.scored_tokens = self._fill(trainee, rows, top_k, facts, score)
        """Tokens that the teacher was asked about now; the others were there."""

    def prepare(self, rows: Sequence[EncodedRow], indices: Sequence[int]) -> None:
        self._known = KnownRows([self._read(index) for index in indices])

    def signal(self, batch: MicroBatch) -> Signal:
        return self._known.signal(batch)

    def _fill(
        self,
        trainee: Trainee,
        rows: Sequence[EncodedRow],
        top_k: int,
        facts: Mapping[str, Any],
        score: Callable[[Sequence[EncodedRow]], list[TopK]],
    ) -> int:
        io, world, asked = trainee.context.io, trainee.world, 0
        for number, (part, path) in enumerate(zip(self._parts, self._paths, strict=True)):
            tokens = sum(stop - start for start, stop in part.values())
            there, stop_now = world.from_main((_is_whole(path, (tokens, top_k)), io.should_stop()) if world.main else None)
            if there:
                continue
            if stop_now:
                raise Interrupted("stopped while asking the teacher; a resumed run goes on behind the parts that are there")
            said = score([rows[index] for index in part])
            if world.main:
                write_tensors(path, {name: _column(said, name) for name in _COLUMNS}, facts)
            asked += tokens
            io.progress(number + 1, len(self._parts), "parts", "teacher log-probabilities")
        world.barrier()
        return asked

    def _read(self, index: int) -> TopK:
        number, start, stop = self._places[index]
        if number not in self._opened:
            self._opened[number] = safe_open(self._paths[number], framework="pt").__enter__()  # type: ignore[no-untyped-call]
        columns = {name: self._opened[number].get_slice(name)[start:stop] for name in _COLUMNS}
        if len(columns["ids"]) != stop - start:
            raise DataError(f"{str(self._paths[number])!r} ends before row {index}; delete it, and it is made again")
        return TopK(**{**columns, "ids": columns["ids"].long()}, width=self._width)


_COLUMNS = ("ids", "logprobs", "tail", "target")


def _is_whole(path: Path, shape: tuple[int, int]) -> bool:
    found = read_tensors(path)
    return found is not None and found[0]["ids"].shape == shape


def _column(said: Sequence[TopK], name: str) -> np.ndarray[Any, Any]:
    values = torch.cat([getattr(row, name) for row in said]).numpy()
    return values.astype(np.int32) if name == "ids" else values


def _parts(targets: Sequence[int], most: int) -> list[dict[int, tuple[int, int]]]:
    """Rows in runs of at most ``most`` targets (a row may exceed them alone); of each row where its targets stand in its part."""
    parts: list[dict[int, tuple[int, int]]] = []
    end = 0
    for index, count in enumerate(targets):
        if not parts or end + count > most:
            parts.append({})
            end = 0
        parts[-1][index] = (end, end + count)
        end += count
    return parts
