"""What is different for a worker that is one of several: which one it is, and what the others than the first may do.

Rank 0 is the step's worker in every respect. The others do the same computation beside it and leave no trace: they report nothing,
check nothing, write into a folder that is thrown away, and never decide when to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from steelyard.errors import VerifierError
from steelyard.protocols import CheckpointStore, Rank
from steelyard.records import Completion, Verdict

__all__ = ["NamedVerifiers", "RankCheckpoints", "RankIO", "take_rank"]

_OTHERS_OF_TORCHRUN = ("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "LOCAL_WORLD_SIZE")


def take_rank(environ: MutableMapping[str, str]) -> Rank:
    """This process's place, as torchrun's variables say it. They are taken away: libraries and child processes that know them (an engine,
    a harness) would wait for ranks that do something else."""
    found = {name: environ.pop(name, None) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    for name in [*_OTHERS_OF_TORCHRUN, *(name for name in environ if name.startswith("TORCHELASTIC_"))]:
        environ.pop(name, None)
    if found["RANK"] is None:
        return Rank()
    return Rank(
        rank=int(found["RANK"]),
        size=int(found["WORLD_SIZE"] or 1),
        local=int(found["LOCAL_RANK"] or 0),
        meeting=f"{found['MASTER_ADDR']}:{found['MASTER_PORT']}",
    )


class RankIO:
    """A :class:`~steelyard.protocols.StepIO` that keeps what it is told to itself; lines go to the rank's own log."""

    def report(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        pass

    def progress(self, done: float, total: float | None, unit: str, note: str = "") -> None:
        pass

    def sample(self, row: Mapping[str, Any]) -> None:
        pass

    def log(self, message: str) -> None:
        print(message, flush=True)

    def should_stop(self) -> bool:
        """Never: rank 0 decides, and tells the others between optimiser steps."""
        return False


class RankCheckpoints:
    """A :class:`~steelyard.protocols.CheckpointStore` that another rank writes."""

    def __init__(self, store: CheckpointStore, rank: int):
        self._store, self._rank = store, rank

    def latest(self) -> Path | None:
        return self._store.latest()

    def write(self, step: int, fill: Callable[[Path], None]) -> Path:
        raise RuntimeError(f"rank {self._rank} makes no checkpoints of its own; rank 0 does, and the others fill its folder with it")


class NamedVerifiers:
    """A :class:`~steelyard.protocols.VerifierSet` that is known by its names alone."""

    def __init__(self, names: Sequence[str], rank: int):
        self._names, self._rank = tuple(names), rank

    def names(self) -> Sequence[str]:
        return self._names

    def verify(self, checks: Sequence[tuple[str, Completion, Any]]) -> list[Verdict]:
        if checks:
            raise VerifierError(f"rank {self._rank} has no verifiers: the stage must sample and verify on rank 0 alone")
        return []

    def metrics(self) -> dict[str, float]:
        return {}

    def canary(self, name: str, reference: Any, seed: int) -> None:
        return None

    def sandbox_backend(self) -> None:
        return None

    def close(self) -> None:
        pass
