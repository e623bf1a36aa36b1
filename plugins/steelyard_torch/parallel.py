"""The processes of a stage: one alone, or the ranks that a launcher started. What they say to each other goes through here.

Every rank holds all rows of an optimiser step and computes its share of them. Losses are normalised by the whole step, so what the ranks
have adds up: values, metrics and gradients are summed, never averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from steelyard.errors import UsageError
from steelyard.protocols import Rank

__all__ = ["ALONE", "World", "open_group", "open_world", "sum_gradients"]

_T = TypeVar("_T")
# While rank 0 samples and verifies the others wait for it. A rank that fails or dies is noticed by the launcher, which ends them all.
_PATIENCE = timedelta(days=7)
_BUCKET_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class World:
    """This process among its ranks. What it does between them, all ranks must do, in the same order."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Its number on its machine, and that of its accelerator."""

    @property
    def main(self) -> bool:
        """Whether this rank speaks for all: it samples, reports, and writes what is not sharded."""
        return self.rank == 0

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value's sum over the ranks that have it, in the order of the main rank's names; the same on every rank."""
        total: dict[str, float] = {}
        for mine in self.gather(dict(values)):
            for name, value in mine.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def gather(self, value: _T) -> list[_T]:
        """Every rank's value, by rank, on every rank."""
        if self.size == 1:
            return [value]
        held: list[_T | None] = [None] * self.size
        dist.all_gather_object(held, value)
        return cast("list[_T]", held)

    def from_main(self, value: _T | None) -> _T:
        """The main rank's value, on every rank; the others may give None."""
        if self.size > 1:
            held = [value]
            dist.broadcast_object_list(held, src=0)
            value = held[0]
        return value  # type: ignore[return-value]

    def merged(self, mine: Mapping[int, _T]) -> dict[int, _T]:
        """What all ranks have together, on every rank; where two have the same key, the higher rank's."""
        return {key: value for part in self.gather(dict(mine)) for key, value in part.items()}

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


def open_world(rank: Rank) -> World:
    """The world of a stage's context; makes the process group, once in a process.

    Raises:
        UsageError: there are accelerators, but fewer than processes on this machine.
    """
    if rank.size == 1:
        return ALONE
    if torch.cuda.is_available():
        if rank.local >= torch.cuda.device_count():
            raise UsageError(
                f"the launcher starts at least {rank.local + 1} processes here, and this machine has {torch.cuda.device_count()} CUDA "
                "devices; each process needs one of its own: lower launcher.processes"
            )
        torch.cuda.set_device(rank.local)
    if not dist.is_initialized():
        host, _, port = rank.meeting.rpartition(":")
        store = dist.TCPStore(host, int(port), is_master=False, timeout=timedelta(minutes=5))  # type: ignore[attr-defined]
        open_group(dist.PrefixStore("steelyard", store), rank.rank, rank.size)  # type: ignore[attr-defined]
    return World(rank.rank, rank.size, rank.local)


def open_group(store: Any, rank: int, size: int) -> None:
    """Make the default process group over a ``torch.distributed.Store``: gloo for what is on the CPU, NCCL for what is on accelerators."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)


def sum_gradients(parameters: Iterable[torch.nn.Parameter], world: World) -> None:
    """Sum the gradients of whole (not sharded) weights over the ranks, in place.

    A weight that no rank has a gradient for stays without; one that only some have (an expert that only their tokens reached) gets the sum
    everywhere.
    """
    if world.size == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    have = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.uint8)
    dist.all_reduce(have, dist.ReduceOp.MAX)
    for parameter, some in zip(trained, have.tolist(), strict=True):
        if some and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    bucket: list[torch.Tensor] = []
    for gradient in [parameter.grad for parameter in trained if parameter.grad is not None]:
        if bucket and (gradient.dtype != bucket[0].dtype or sum(one.nbytes for one in bucket) + gradient.nbytes > _BUCKET_BYTES):
            _sum_bucket(bucket)
            bucket = []
        bucket.append(gradient)
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(bucket: list[torch.Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in bucket])
    dist.all_reduce(flat)
    for gradient, part in zip(bucket, torch.split(flat, [gradient.numel() for gradient in bucket]), strict=True):
        gradient.copy_(part.view_as(gradient))
