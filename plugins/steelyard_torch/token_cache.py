"""Encoded datasets kept by content: by the rows, the tokenizer with its template, and every option that changes the tokens.

A key that left one of them out would hand yesterday's tokens to today's tokenizer without a word.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from steelyard import __version__
from steelyard.errors import StorageError
from steelyard.run.durable import fsync_folder, storage_problem
from steelyard_torch.encoding import EncodedChats, EncodedPair, EncodedPairs, EncodedRow, EncodingStats
from steelyard_torch.templates import template_hash

__all__ = ["cache_key", "cached_pairs", "cached_rows", "file_sha256", "read_tensors", "write_tensors"]

_FORMAT = 3
_KINDS = {"BOOL": "?", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U8": "u1", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
"""numpy's names of safetensors' element types."""


def cache_key(dataset: Path, tokenizer: PreTrainedTokenizerFast, options: Mapping[str, Any]) -> str:
    """32 hex digits over the dataset's rows, :func:`template_hash` and ``options`` (JSON)."""
    parts = {
        "format": _FORMAT,
        "made by": __version__,
        "rows": file_sha256(dataset / "rows.parquet"),
        "template": template_hash(tokenizer),
        "options": dict(options),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def cached_rows(
    cache: Path, dataset: Path, tokenizer: PreTrainedTokenizerFast, options: Mapping[str, Any], encode: Callable[[], EncodedChats]
) -> EncodedChats:
    """What ``encode()`` gives, from the cache when the same rows were encoded the same way before."""
    path = cache / "tokens" / f"{cache_key(dataset, tokenizer, {**options, 'kind': 'rows'})}.safetensors"
    found = _load(path)
    if found is not None:
        return EncodedChats(*found)
    encoded = encode()
    _save(path, encoded.rows, encoded.stats)
    return encoded


def cached_pairs(
    cache: Path, dataset: Path, tokenizer: PreTrainedTokenizerFast, options: Mapping[str, Any], encode: Callable[[], EncodedPairs]
) -> EncodedPairs:
    """As :func:`cached_rows`, for preference pairs."""
    path = cache / "tokens" / f"{cache_key(dataset, tokenizer, {**options, 'kind': 'pairs'})}.safetensors"
    found = _load(path)
    if found is not None:
        rows, stats = found
        return EncodedPairs([EncodedPair(c, r, c.index) for c, r in zip(rows[::2], rows[1::2], strict=True)], stats)
    encoded = encode()
    _save(path, [row for pair in encoded.pairs for row in (pair.chosen, pair.rejected)], encoded.stats)
    return encoded


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]], facts: Mapping[str, Any]) -> None:
    """A safetensors file with ``facts`` (JSON) and a checksum in its header; complete or absent, whatever happens meanwhile.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    # One entry: the order of several is not fixed, and equal content should be equal bytes.
    header = {"about": json.dumps({"facts": facts, "sha256": _checksum(tensors)})}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), temporary, metadata=header)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except (OSError, SafetensorError) as error:  # the latter is how safetensors reports a full disk
        temporary.unlink(missing_ok=True)
        raise storage_problem(error, path) or StorageError(f"cannot write {str(path)!r}: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]] | None:
    """Tensors and facts as :func:`write_tensors` was given them; None when there is no such file, or it is not what was written: a
    damaged cache is only a cache.

    The tensors lie in the mapped file, to be read only: the system may drop their pages from memory, and processes share them.
    """
    try:
        with safe_open(path, framework="numpy") as file:  # checks the header against the file's length
            about = json.loads(file.metadata()["about"])
        tensors = _mapped(path)
        return (tensors, about["facts"]) if about["sha256"] == _checksum(tensors) else None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def _mapped(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A safetensors file's tensors without a copy; safetensors' own reader for numpy makes one."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            shape, kind = entry["shape"], np.dtype(_KINDS[entry["dtype"]])
            flat = np.frombuffer(whole, kind, math.prod(shape), start + entry["data_offsets"][0])
            tensors[name] = flat.reshape(shape)
    return tensors


def _checksum(tensors: Mapping[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _save(path: Path, rows: Sequence[EncodedRow], stats: EncodingStats) -> None:
    tensors = {
        "ids": np.concatenate([row.input_ids for row in rows]) if rows else np.zeros(0, np.int32),
        "trained": np.concatenate([row.trained for row in rows]) if rows else np.zeros(0, np.bool_),
        "lengths": np.array([len(row) for row in rows], np.int64),
        "index": np.array([row.index for row in rows], np.int64),
    }
    write_tensors(path, tensors, asdict(stats))


def _load(path: Path) -> tuple[list[EncodedRow], EncodingStats] | None:
    found = read_tensors(path)
    if found is None:
        return None
    tensors, facts = found
    ids, trained, lengths, index = (tensors[name] for name in ("ids", "trained", "lengths", "index"))
    ends = np.cumsum(lengths)
    rows = [EncodedRow(ids[e - n : e], trained[e - n : e], int(i)) for e, n, i in zip(ends, lengths, index, strict=True)]
    return rows, EncodingStats(**facts)
