"""The processes of a stage: one alone, or the ranks that torchrun started. What differs between them is kept in this file.

Every rank holds all rows of an optimiser step and computes its share of them. Losses are normalised by the whole step, so what the ranks
have adds up: values, metrics and gradients are summed, never averaged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

__all__ = ["ALONE", "World", "current_world"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class World:
    """This process among its ranks."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this rank speaks for all: it samples, reports, and writes what is not sharded."""
        return self.rank == 0

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value's sum over the ranks, which must all name the same values in the same order."""
        if self.size == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=_device())
        dist.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def from_main(self, value: _T | None) -> _T:
        """The main rank's value, on every rank; the others may give None."""
        if self.size > 1:
            held = [value]
            dist.broadcast_object_list(held, src=0)
            value = held[0]
        return value  # type: ignore[return-value]

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


def current_world() -> World:
    """The world that torchrun's environment describes."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return World(int(os.environ.get("RANK", "0")), size) if size > 1 else ALONE


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
