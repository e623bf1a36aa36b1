"""What a model folder weighs, without torch: the digest of its weights, and whether every number in them is finite."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from steelyard.errors import ModelError

__all__ = ["WeightsFacts", "inspect_weights"]

_BLOCK = 2**24
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@dataclass(frozen=True)
class WeightsFacts:
    """``sha256`` over names, dtypes, shapes and contents in order of names, however the tensors are spread over files; ``non_finite``
    names the tensors with a NaN or an infinity."""

    sha256: str
    parameters: int
    non_finite: tuple[str, ...]


@dataclass(frozen=True)
class _Tensor:
    file: Path
    dtype: str
    shape: list[int]
    begin: int
    size: int


def inspect_weights(folder: Path) -> WeightsFacts | None:
    """Reads every safetensors file of a model folder once; None where it has none.

    The digest is the one that ``steelyard_torch.models.weights_sha256`` gives. Errors: :class:`ModelError` for a file that is not
    safetensors, or is torn."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    tensors = {name: tensor for file in files for name, tensor in _tensors(file)}
    digest = hashlib.sha256()
    non_finite = []
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, f"torch.{_DTYPES.get(tensor.dtype, tensor.dtype)}", tensor.shape]).encode())
        with open(tensor.file, "rb") as file:
            file.seek(tensor.begin)
            if not _read(file, tensor, digest):
                non_finite.append(name)
    return WeightsFacts(digest.hexdigest(), sum(math.prod(t.shape) for t in tensors.values()), tuple(non_finite))


def _tensors(path: Path) -> list[tuple[str, _Tensor]]:
    """What a file's header lists (the format: https://github.com/huggingface/safetensors#format)."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        found = []
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                if not 0 <= begin <= end <= size - 8 - length:
                    raise ValueError(f"tensor {name!r} ends behind the file")
                found.append((name, _Tensor(path, entry["dtype"], list(entry["shape"]), 8 + length + begin, end - begin)))
        return found
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{str(path)!r} is not a whole safetensors file: {error}") from None


def _read(file: BinaryIO, tensor: _Tensor, digest: Any) -> bool:
    """Feeds a tensor's bytes to the digest; whether all its numbers are finite. Kinds that have no infinity count as finite."""
    import numpy as np

    kinds: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
    finite, left = True, tensor.size
    while left > 0:
        block = file.read(min(left, _BLOCK))
        if not block:
            raise ModelError(f"{str(tensor.file)!r} is torn")
        left -= len(block)
        digest.update(block)
        if tensor.dtype == "BF16":
            # A bfloat16 is not finite exactly when its eight exponent bits are all ones.
            finite = finite and not bool(((np.frombuffer(block, np.uint16) & 0x7F80) == 0x7F80).any())
        elif tensor.dtype in kinds:
            finite = finite and bool(np.isfinite(np.frombuffer(block, kinds[tensor.dtype])).all())
    return finite
