"""Which rows an optimiser step takes, and how they become padded micro-batches.

An optimiser step has a fixed number of rows. It is cut into micro-batches by a budget of padded tokens, with rows of like length
together. Which rows a step takes is a pure function of the seed and the step, so resuming needs the step's number and nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from steelyard.errors import DataError, UsageError
from steelyard_torch.encoding import EncodedRow

__all__ = ["MicroBatch", "StepSampler", "StepTotals", "collate", "count_targets", "gather_targets", "micro_batches"]


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
    """Right-padded rows. Its targets are in row-major order, N in all; B rows, T positions."""

    input_ids: torch.Tensor
    """(B, T) int64."""
    attention_mask: torch.Tensor
    """(B, T) int64, 1 at tokens and 0 at padding."""
    trained: torch.Tensor
    """(B, T) bool, the targets."""
    order: tuple[int, ...]
    """For each row, its position in the rows given to :func:`micro_batches`."""
    lengths: tuple[int, ...]
    """For each row, its tokens without padding."""
    target_positions: torch.Tensor
    """(N,) flat positions, row · T + column, of the hidden states that predict the targets."""
    target_ids: torch.Tensor
    """(N,) the targets."""
    target_rows: torch.Tensor
    """(N,) the row of each target, 0 … B-1."""

    def __len__(self) -> int:
        return len(self.order)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def padded_tokens(self) -> int:
        return self.input_ids.numel()


def micro_batches(
    rows: Sequence[EncodedRow],
    *,
    token_budget: int,
    pad_id: int,
    device: str | torch.device = "cpu",
    groups: Sequence[int] | None = None,
    whole: bool = True,
) -> list[MicroBatch]:
    """Cut a step's rows into micro-batches of at most ``token_budget`` tokens with padding, longest rows first.

    A row longer than the budget is a micro-batch of its own. The cut does not change a step's loss, only its memory and speed.

    Args:
        groups: for each row the number of its group, such as the pair or the prompt it belongs to; rows of a group stand side by side in
            the order given.
        whole: groups are never parted, even where one exceeds the budget; else a group may go over several micro-batches.
    """
    units = _units(rows, groups, whole)
    width = {unit: max(len(rows[i]) for i in unit) for unit in units}
    order = sorted(units, key=lambda unit: (-width[unit], unit))
    batches: list[list[int]] = []
    for unit in order:
        if batches and (len(batches[-1]) + len(unit)) * max(len(rows[i]) for i in batches[-1]) <= token_budget:
            batches[-1].extend(unit)
        else:
            batches.append(list(unit))
    return [collate([rows[i] for i in batch], pad_id=pad_id, device=device, order=batch) for batch in batches]


def _units(rows: Sequence[EncodedRow], groups: Sequence[int] | None, whole: bool) -> list[tuple[int, ...]]:
    """Rows that stay together."""
    if groups is None or not whole:
        return [(i,) for i in range(len(rows))]
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return [tuple(unit) for unit in members.values()]


def collate(
    rows: Sequence[EncodedRow], *, pad_id: int, device: str | torch.device = "cpu", order: Sequence[int] | None = None
) -> MicroBatch:
    """Pad rows on the right into one micro-batch."""
    lengths = [len(row) for row in rows]
    width = max(lengths)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    trained = np.zeros((len(rows), width), dtype=np.bool_)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]] = row.input_ids
        trained[i, : lengths[i]] = row.trained
    trained[:, 0] = False
    target_rows, columns = np.nonzero(trained)
    mask = (np.arange(width)[None, :] < np.asarray(lengths)[:, None]).astype(np.int64)
    tensors = (ids, mask, trained, target_rows * width + columns - 1, ids[target_rows, columns], target_rows)
    on_device = [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in tensors]
    return MicroBatch(
        input_ids=on_device[0],
        attention_mask=on_device[1],
        trained=on_device[2],
        order=tuple(range(len(rows)) if order is None else order),
        lengths=tuple(lengths),
        target_positions=on_device[3],
        target_ids=on_device[4],
        target_rows=on_device[5],
    )


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
