"""The tensors of a model folder, read one at a time and written shard by shard, so that no model is ever whole in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from steelyard.errors import ModelError

__all__ = ["MAX_SHARD_BYTES", "FolderWeights", "TensorFacts", "write_shards"]

MAX_SHARD_BYTES = 2**30
"""What is held in memory before it is written."""

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What a file's header says of a tensor; ``dtype`` as safetensors spells it (``F32``, ``BF16`` …)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * _BYTES.get(self.dtype, 8)

    @property
    def floating(self) -> bool:
        """Whether it holds numbers that can be merged, and not whole ones."""
        return self.dtype.startswith(("F", "BF"))


class FolderWeights:
    """The tensors of a folder's safetensors files by name; a context manager that keeps the files open.

    Args:
        folder: a model folder.
        tied: name → the name it shares its tensor with. A file may hold either or both; here only the second exists.

    Raises:
        ModelError: no or torn safetensors files, a tensor twice, or tied names with different contents.
    """

    def __init__(self, folder: Path, *, tied: Mapping[str, str]):
        self.folder = folder
        self._closing = ExitStack()
        self._files: dict[str, Any] = {}
        self._stored: dict[str, str] = {}
        try:
            self._open()
            self._untie(tied)
        except SafetensorError as error:
            self._closing.close()
            raise ModelError(f"model folder {str(folder)!r} has a torn or invalid safetensors file: {error}") from error
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> FolderWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def names(self) -> list[str]:
        return sorted(self._stored)

    def facts(self, name: str) -> TensorFacts:
        stored = self._stored[name]
        part = self._files[stored].get_slice(stored)
        return TensorFacts(str(part.get_dtype()), tuple(part.get_shape()))

    def read(self, name: str) -> torch.Tensor:
        stored = self._stored[name]
        tensor: torch.Tensor = self._files[stored].get_tensor(stored)
        return tensor

    def _open(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")):
            file = self._closing.enter_context(safe_open(path, framework="pt"))
            for name in file.keys():  # noqa: SIM118 - the handle is no mapping
                if name in self._files:
                    raise ModelError(f"model folder {str(self.folder)!r} holds tensor {name!r} in two files")
                self._files[name], self._stored[name] = file, name

    def _untie(self, tied: Mapping[str, str]) -> None:
        for copy, original in tied.items():
            if copy not in self._stored:
                continue
            if original in self._stored and not torch.equal(self.read(copy), self.read(original)):
                raise ModelError(
                    f"model folder {str(self.folder)!r} says that {copy!r} and {original!r} are tied, but they hold different numbers; "
                    "loading it would drop one of them"
                )
            stored = self._stored.pop(copy)
            self._stored.setdefault(original, stored)


def write_shards(
    folder: Path, facts: Mapping[str, TensorFacts], tensors: Iterator[tuple[str, torch.Tensor]], *, max_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write tensors as ``model.safetensors``, or as numbered files and their index where they are more than ``max_bytes``.

    Args:
        facts: of every tensor, in the order in which ``tensors`` gives them.
    """
    shards = _plan(facts, max_bytes)
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(names, shards, strict=True):
        held = dict(next(tensors) for _ in shard)
        if list(held) != list(shard):
            raise ValueError(f"tensors came in another order than planned: {list(held)[:3]!r}")
        save_file(held, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(fact.size for fact in facts.values())},
            "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name in shard},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _plan(facts: Mapping[str, TensorFacts], max_bytes: int) -> Sequence[Sequence[str]]:
    shards: list[list[str]] = [[]]
    held = 0
    for name, fact in facts.items():
        if shards[-1] and held + fact.size > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += fact.size
    return shards
