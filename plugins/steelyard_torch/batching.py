"""Which rows an optimiser step takes, and how they become micro-batches, packed or padded, on one rank or several.

An optimiser step has a fixed number of rows. Which ones is a pure function of the seed and the step, so resuming needs the step's number
and nothing else. The rows are cut into micro-batches by a budget of tokens; the cut changes a step's memory and speed, not its loss.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from steelyard.errors import DataError, UsageError
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.packing import Layout, Segment

__all__ = ["MicroBatch", "StepSampler", "StepTotals", "collate", "count_targets", "gather_targets", "micro_batches", "pack"]

_SHORTEST_SHARED = 8
"""A common beginning of fewer tokens is not worth a segment of its own."""


class StepSampler:
    """The rows of every optimiser step, epoch after epoch, each epoch in its own random order.

    Args:
        lengths: of the rows, in tokens.
        batch_size: rows in a step; the last step of an epoch may have fewer.
        seed: of the order.
        epochs: may be a fraction; ignored when ``max_steps`` is given.
        max_steps: the number of steps in all, over as many epochs as it takes.
        length_window: 1 draws each step at random from all rows. k > 1 sorts by length within random groups of k steps, so that a step has
            rows of like length and less padding; the groups' steps are shuffled again.

    Raises:
        DataError: no rows.
        UsageError: a size below 1.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        epochs: float = 1,
        max_steps: int | None = None,
        length_window: int = 1,
    ) -> None:
        if not lengths:
            raise DataError("there are no rows to train on")
        sizes = {"batch_size": batch_size, "length_window": length_window, "max_steps": max_steps or 1}
        for name, value in sizes.items():
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value!r}")
        if max_steps is None and not epochs > 0:
            raise UsageError(f"epochs must be above 0, got {epochs!r}")
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._batch_size, self._seed, self._window = batch_size, seed, length_window
        self.steps_per_epoch = math.ceil(len(lengths) / batch_size)
        self.total_steps = max_steps if max_steps is not None else math.ceil(epochs * self.steps_per_epoch)
        self._cached: tuple[int, list[npt.NDArray[np.int64]]] | None = None

    def rows(self, step: int) -> list[int]:
        """Indices of the rows of a step, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, self._epoch_steps(epoch))
        return [int(row) for row in self._cached[1][position]]

    def epoch(self, step: int) -> float:
        """Epochs done before a step."""
        return step / self.steps_per_epoch

    def state(self, step: int) -> dict[str, Any]:
        """The position before ``step``, for a checkpoint: small and JSON-able."""
        return {"step": step, **self._identity()}

    def resume(self, state: Mapping[str, Any]) -> int:
        """The step to go on with.

        Raises:
            DataError: the state is of other data, another batch size or another seed, so that rows would be skipped or seen twice.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise DataError(
                    f"the checkpoint's data position has {name} {state.get(name)!r}, this run has {value!r}; "
                    "going on would skip or replay rows"
                )
        return int(state["step"])

    def _identity(self) -> dict[str, Any]:
        return {
            "n_rows": len(self._lengths),
            "batch_size": self._batch_size,
            "seed": self._seed,
            "length_window": self._window,
            "lengths_sha256": hashlib.sha256(self._lengths.tobytes()).hexdigest(),
        }

    def _epoch_steps(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        # RandomState's streams are frozen by NumPy's policy; those of Generator may change between versions and with them a resumed run.
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([self._seed % 2**64, epoch])))
        order = random.permutation(len(self._lengths)).astype(np.int64)
        size = self._batch_size
        if self._window == 1:
            return [order[start : start + size] for start in range(0, len(order), size)]
        group = size * self._window
        parts = [order[start : start + group] for start in range(0, len(order), group)]
        order = np.concatenate([part[np.argsort(-self._lengths[part], kind="stable")] for part in parts])
        steps = [order[start : start + size] for start in range(0, len(order), size)]
        full = len(order) // size
        return [steps[i] for i in random.permutation(full)] + steps[full:]


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Normalisers of an optimiser step, over all of its micro-batches."""

    tokens: int
    """Trained tokens."""
    sequences: int
    """Rows with at least one trained token."""


def count_targets(rows: Iterable[EncodedRow]) -> StepTotals:
    """Count a step's trained tokens and sequences; losses take them, so that micro-batches add up to the step exactly."""
    counts = [row.targets for row in rows]
    return StepTotals(tokens=sum(counts), sequences=sum(count > 0 for count in counts))


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """B rows as one packed line, or padded on the right. Targets stand row by row, N in all.

    *Places* are flat: positions of ``input_ids.flatten()``, or of hidden states likewise. Packed, what rows of a group begin with in common
    is there once, so one place may serve several rows.
    """

    input_ids: torch.Tensor
    """(1, T) int64 packed, (B, T) padded."""
    attention_mask: torch.Tensor | None
    """(B, T) int64, 1 at tokens and 0 at padding; None when packed."""
    order: tuple[int, ...]
    """For each row, its position in the rows given to :func:`micro_batches`."""
    lengths: tuple[int, ...]
    """For each row, its tokens."""
    target_positions: torch.Tensor
    """(N,) places of the hidden states that predict the targets."""
    target_ids: torch.Tensor
    """(N,) the targets."""
    target_rows: torch.Tensor
    """(N,) the row of each target, 0 … B-1."""
    target_counts: torch.Tensor
    """(B,) int64, each row's targets."""
    last_positions: torch.Tensor
    """(B,) places of the rows' last tokens."""
    position_ids: torch.Tensor | None = None
    """(1, T) when packed: each token's position in its own row."""
    layout: Layout | None = None
    """How the packed line is cut; None when padded."""
    rows: tuple[EncodedRow, ...] = ()
    """What it was made of. A rank without rows of its own computes one of another's: then this is longer than ``order``."""

    def __len__(self) -> int:
        return len(self.order)

    @property
    def tokens(self) -> int:
        """Of the rows, each counted whole."""
        return sum(self.lengths)

    @property
    def padded_tokens(self) -> int:
        """That go through the model."""
        return self.input_ids.numel()

    def padded(self) -> MicroBatch:
        """The same rows and targets, padded; for a model that does not take packed ones."""
        if self.layout is None:
            return self
        made = collate(self.rows, pad_id=0, device=self.input_ids.device, order=range(len(self.rows)))
        return replace(
            made,
            order=self.order,
            lengths=self.lengths,
            target_counts=made.target_counts[: len(self)],
            last_positions=made.last_positions[: len(self)],
        )


def micro_batches(
    rows: Sequence[EncodedRow],
    *,
    token_budget: int,
    pad_id: int,
    device: str | torch.device = "cpu",
    groups: Sequence[int] | None = None,
    whole: bool = True,
    packed: bool = False,
    rank: int = 0,
    size: int = 1,
    boundary: int | None = None,
) -> list[MicroBatch]:
    """Cut a step's rows into micro-batches of at most ``token_budget`` tokens, longest first, and take a rank's share of them.

    Packed, the tokens are those that go through the model, and micro-batches are about equally large; padded, they are those of the
    padded rows, and rows of like length are together. What cannot be parted and exceeds the budget is a micro-batch of its own.

    Args:
        groups: for each row the number of its group, such as the pair or the prompt it belongs to; rows of a group stand side by side in
            the order given, and packed they share what they begin with in common.
        whole: groups are never parted, even where one exceeds the budget; else a group may go over several micro-batches, and padded
            rows, which gain nothing by it, do not stand by group.
        packed: for a model that :func:`~steelyard_torch.packing.is_packable`.
        rank, size: every rank gets the same number of micro-batches and every row is in one of them. Where there are too few rows, a rank
            gets micro-batches of no rows and no targets (``order`` is empty), so that it takes part in what all ranks do together.
        boundary: rows of more tokens are in other micro-batches than the rest; see :mod:`steelyard_torch.rotary`.

    Raises:
        DataError: a group that is not to be parted has rows on both sides of the boundary.
    """
    if not rows:
        return []
    sides = [] if boundary is None else _sides(rows, groups if whole else None, boundary)
    if len(sides) > 1:
        made = []
        for side in sides:
            numbers = None if groups is None else [groups[place] for place in side]
            options: dict[str, Any] = {"token_budget": token_budget, "pad_id": pad_id, "device": device, "groups": numbers, "whole": whole}
            for batch in micro_batches([rows[place] for place in side], **options, packed=packed, rank=rank, size=size):
                made.append(replace(batch, order=tuple(side[place] for place in batch.order)))
        return made
    units = _units(rows, groups, whole, token_budget if packed else None)
    if packed:
        bins = _balanced(units, [_packed_tokens(rows, unit) for unit in units], token_budget, size)
    else:
        bins = _by_length(units, rows, token_budget, size)
    mine = [units for place, units in enumerate(bins) if rank == (place % size if place // size % 2 == 0 else size - 1 - place % size)]

    def build(share: Sequence[tuple[int, ...]]) -> MicroBatch:
        if not share:
            return _without_rows(rows, pad_id=pad_id, device=device, packed=packed)
        order = [place for unit in share for place in unit]
        chosen = [rows[place] for place in order]
        if packed:
            return pack(chosen, device=device, order=order, groups=[len(unit) for unit in share])
        return collate(chosen, pad_id=pad_id, device=device, order=order)

    return [build(share) for share in mine]


def _sides(rows: Sequence[EncodedRow], groups: Sequence[int] | None, boundary: int) -> list[list[int]]:
    """The places of the rows above a boundary and of those up to it, where there are any."""
    above = [len(row) > boundary for row in rows]
    if groups is not None:
        for i, group in enumerate(groups):
            if above[i] != above[groups.index(group)]:
                lengths = sorted(len(row) for row, number in zip(rows, groups, strict=True) if number == group)
                raise DataError(
                    f"rows of {lengths[0]} and {lengths[-1]} tokens belong together, but this model's positions change for all rows of a "
                    f"micro-batch once one is longer than {boundary}; keep rows to {boundary} tokens (`max_length`)"
                )
    sides = [[i for i in range(len(rows)) if above[i] is side] for side in (True, False)]
    return [side for side in sides if side]


_Unit = tuple[int, ...]
"""Rows that stay together."""


def _units(rows: Sequence[EncodedRow], groups: Sequence[int] | None, whole: bool, budget: int | None) -> list[_Unit]:
    """``budget`` is that of packed rows; padded ones gain nothing from standing together, unless they have to."""
    if groups is None or (not whole and budget is None):
        return [(i,) for i in range(len(rows))]
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    if whole or budget is None:
        return [tuple(unit) for unit in members.values()]
    return [part for unit in members.values() for part in _parted(rows, unit, budget)]


def _parted(rows: Sequence[EncodedRow], unit: Sequence[int], budget: int) -> list[_Unit]:
    """A group in parts within the budget, each with the whole group's prefix before it."""
    prefix = _shared(_of(rows, unit))
    parts: list[list[int]] = []
    room = 0
    for place in unit:
        own = len(rows[place]) - prefix
        if not parts or own > room:
            parts.append([])
            room = budget - prefix
        parts[-1].append(place)
        room -= own
    return [tuple(part) for part in parts]


def _balanced(units: Sequence[_Unit], costs: Sequence[int], budget: int, size: int) -> list[list[_Unit]]:
    """Bins of about equal cost, at most the budget where that can be, their number a multiple of ``size``: the dearest unit first, each
    into the emptiest bin."""
    dearest_first = sorted(range(len(units)), key=lambda i: (-costs[i], i))
    count = math.ceil(min(len(units), math.ceil(sum(costs) / budget)) / size) * size
    while True:
        bins: list[list[_Unit]] = [[] for _ in range(count)]
        heap = [(0, place) for place in range(count)]
        fits = True
        for i in dearest_first:
            load, place = heapq.heappop(heap)
            fits = fits and (load == 0 or load + costs[i] <= budget)
            bins[place].append(units[i])
            heapq.heappush(heap, (load + costs[i], place))
        if fits:
            loads = {place: load for load, place in heap}
            return [bins[place] for place in sorted(range(count), key=lambda place: (-loads[place], place))]
        count += size


def _by_length(units: Sequence[_Unit], rows: Sequence[EncodedRow], budget: int, size: int) -> list[list[_Unit]]:
    """Bins of units of like length within the budget, longest first, their number a multiple of ``size``."""
    width = {unit: max(len(row) for row in _of(rows, unit)) for unit in units}
    bins: list[list[_Unit]] = []
    count = 0
    for unit in sorted(units, key=lambda unit: (-width[unit], unit)):
        if bins and (count + len(unit)) * width[bins[-1][0]] <= budget:
            bins[-1].append(unit)
            count += len(unit)
        else:
            bins.append([unit])
            count = len(unit)
    while len(bins) % size:
        largest = max((place for place in range(len(bins)) if len(bins[place]) > 1), key=lambda i: (len(bins[i]), -i), default=None)
        if largest is None:
            bins.append([])
        else:
            half = len(bins[largest]) // 2
            bins[largest : largest + 1] = [bins[largest][:half], bins[largest][half:]]
    return bins


def _of(rows: Sequence[EncodedRow], unit: Sequence[int]) -> list[EncodedRow]:
    return [rows[place] for place in unit]


def _packed_tokens(rows: Sequence[EncodedRow], unit: Sequence[int]) -> int:
    members = _of(rows, unit)
    return sum(map(len, members)) - (len(members) - 1) * _shared(members)


def _shared(rows: Sequence[EncodedRow]) -> int:
    """How many tokens all rows begin with in common, as long as each has one of its own after them; 0 for too few."""
    if len(rows) < 2:
        return 0
    shared = min(len(row) for row in rows) - 1
    first = rows[0].input_ids
    for row in rows[1:]:
        different = np.flatnonzero(first[:shared] != row.input_ids[:shared])
        if len(different):
            shared = int(different[0])
    return shared if shared >= _SHORTEST_SHARED else 0


def _without_rows(rows: Sequence[EncodedRow], *, pad_id: int, device: str | torch.device, packed: bool) -> MicroBatch:
    shortest = min(rows, key=len)
    idle = EncodedRow(shortest.input_ids, np.zeros(len(shortest), dtype=np.bool_), shortest.index)
    made = pack([idle], device=device) if packed else collate([idle], pad_id=pad_id, device=device)
    return replace(made, order=(), lengths=(), target_counts=made.target_counts[:0], last_positions=made.last_positions[:0])


def collate(
    rows: Sequence[EncodedRow], *, pad_id: int, device: str | torch.device = "cpu", order: Sequence[int] | None = None
) -> MicroBatch:
    """Pad rows on the right into one micro-batch."""
    lengths = np.array([len(row) for row in rows])
    width = int(lengths.max())
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]] = row.input_ids
    mask = (np.arange(width)[None, :] < lengths[:, None]).astype(np.int64)
    places = [i * width + np.arange(len(row)) for i, row in enumerate(rows)]
    on_device = _on_device(device, {"input_ids": ids, "attention_mask": mask, **_targets(rows, places)})
    return MicroBatch(**on_device, **_facts(rows, order))


def pack(
    rows: Sequence[EncodedRow],
    *,
    device: str | torch.device = "cpu",
    order: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
) -> MicroBatch:
    """Put rows into one line without padding; ``groups`` are the numbers of rows, one after another, that share their beginning."""
    segments: list[Segment] = []
    tokens: list[npt.NDArray[Any]] = []
    positions: list[npt.NDArray[Any]] = []
    places: list[npt.NDArray[Any]] = []
    at = 0

    def put(row: EncodedRow, begin: int, end: int, prefix_start: int) -> npt.NDArray[Any]:
        nonlocal at
        segments.append(Segment(at, end - begin, prefix_start if begin else 0, begin))
        tokens.append(row.input_ids[begin:end])
        positions.append(np.arange(begin, end))
        at += end - begin
        return np.arange(at - (end - begin), at)

    first = 0
    for count in groups or [1] * len(rows):
        members = rows[first : first + count]
        first += count
        shared, start = _shared(members), at
        prefix = put(members[0], 0, shared, 0) if shared else np.zeros(0, dtype=np.int64)
        places += [np.concatenate([prefix, put(row, shared, len(row), start)]) for row in members]
    ids = {"input_ids": np.concatenate(tokens)[None].astype(np.int64), "position_ids": np.concatenate(positions)[None]}
    on_device = _on_device(device, {**ids, **_targets(rows, places)})
    return MicroBatch(**on_device, attention_mask=None, layout=Layout(tuple(segments)), **_facts(rows, order))


def _targets(rows: Sequence[EncodedRow], places: Sequence[npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The fields about targets; ``places`` are those of each row's tokens. A first token is no target: nothing predicts it."""
    columns = [np.flatnonzero(row.trained[1:]) for row in rows]
    counts = np.array([len(found) for found in columns])
    return {
        "target_positions": np.concatenate([place[found] for place, found in zip(places, columns, strict=True)]),
        "target_ids": np.concatenate([row.input_ids[1:][found] for row, found in zip(rows, columns, strict=True)]).astype(np.int64),
        "target_rows": np.repeat(np.arange(len(rows)), counts),
        "target_counts": counts,
        "last_positions": np.array([place[-1] for place in places]),
    }


def _on_device(device: str | torch.device, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    if torch.device(device).type == "cuda":
        # From pinned memory the copies need not wait for what the device is doing.
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _facts(rows: Sequence[EncodedRow], order: Sequence[int] | None) -> dict[str, Any]:
    return {
        "order": tuple(range(len(rows)) if order is None else order),
        "lengths": tuple(len(row) for row in rows),
        "rows": tuple(rows),
    }


def gather_targets(batch: MicroBatch, values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Per-token values kept for each row of a step (old or reference log-probabilities), in the order of the batch's targets.

    Args:
        values: for each row given to :func:`micro_batches`, a 1-D tensor with one value a target.

    Returns:
        (N,) on the batch's device.

    Raises:
        DataError: the numbers of values and targets differ.
    """
    gathered = torch.cat([values[i] for i in batch.order]) if batch.order else torch.empty(0)
    if len(gathered) != len(batch.target_ids):
        raise DataError(
            f"{len(gathered)} values were kept for {len(batch.target_ids)} trained tokens; they are of other rows or another mask"
        )
    return gathered.to(batch.input_ids.device)
