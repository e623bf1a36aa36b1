"""Tensors in and out of a checkpoint's files, whole or each rank's part of them, in safetensors throughout.

Sharded tensors are written by torch.distributed.checkpoint, every rank its own part, and read back on any number of ranks. Whole ones are
in one file, of which a rank that shards its model reads its part.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from steelyard.errors import ArtifactError, StorageError
from steelyard.run.durable import storage_problem

__all__ = ["Header", "file_header", "read_file", "read_shards", "shards_header", "write_file", "write_shards"]

Header = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each tensor, by name."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def write_file(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Whole tensors, in one file. Raises StorageError."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise storage_problem(error, path) or StorageError(f"cannot write {str(path)!r}: {error}") from error


def file_header(path: Path) -> Header:
    """What a file of whole tensors holds. Raises SafetensorError, OSError."""
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        return {name: (tuple(found.get_shape()), _DTYPES[found.get_dtype()]) for name, found in slices.items()}


def read_file(path: Path, wanted: Mapping[str, torch.Tensor]) -> None:
    """Fill tensors, whole or sharded by rows, from a file of whole ones; their names and shapes are in it."""
    with safe_open(path, framework="pt") as file:
        for name, tensor in wanted.items():
            if isinstance(tensor, DTensor):
                local = tensor.to_local()
                start = _first_row(tensor)
                local.copy_(file.get_slice(name)[start : start + len(local)])
            else:
                tensor.copy_(file.get_tensor(name))


def write_shards(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Sharded tensors, every rank its own part; all ranks must take part, and if one fails all do. Raises StorageError."""
    with _quietly():
        try:
            save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True), no_dist=_alone())
        except CheckpointException as error:
            rank, (cause, _) = min(error.failures.items())
            raise storage_problem(cause, folder) or StorageError(f"rank {rank} cannot write to {str(folder)!r}: {cause}") from error


def shards_header(folder: Path) -> Header:
    """What all ranks' parts together hold. Raises SafetensorError, OSError."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: (tuple(one.size), one.properties.dtype) for name, one in found.items()}  # type: ignore[union-attr]


def read_shards(folder: Path, wanted: Mapping[str, torch.Tensor]) -> None:
    """Fill tensors, whole or sharded, from what any number of ranks has written; all ranks must take part. Raises ArtifactError."""
    with _quietly():
        try:
            load(dict(wanted), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=_alone())
        except CheckpointException as error:
            rank, (cause, _) = min(error.failures.items())
            raise ArtifactError(f"rank {rank} cannot read {str(folder)!r}: {cause}") from error


def _first_row(tensor: DTensor) -> int:
    """Of this rank's part: torch cuts by the rows of the first ranks, which all have equally many."""
    rows = -(-tensor.shape[0] // tensor.device_mesh.size())
    return min(tensor.device_mesh.get_local_rank() * rows, tensor.shape[0])


def _alone() -> bool:
    return not dist.is_initialized()


@contextmanager
def _quietly() -> Iterator[None]:
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
