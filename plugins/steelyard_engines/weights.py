"""New weights for a live model, checked before the first one is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steelyard.errors import EngineError, nearest
from steelyard_torch.adapters import MergedWeights
from steelyard_torch.models import load_model, load_tokenizer
from steelyard_torch.templates import check_template, template_hash

__all__ = ["load_folder", "load_tensors", "shares_storage"]


def load_folder(module: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, *, allow_remote_code: bool) -> None:
    """Take the weights of a model folder.

    Errors: :class:`~steelyard.errors.ModelError` for a folder that cannot be loaded or has another chat template or tokenizer;
    :class:`EngineError` for another architecture.
    """
    other = load_tokenizer(folder, allow_remote_code=allow_remote_code)
    check_template(template_hash(tokenizer), other, where=f"loading the weights of {str(folder)!r} into a running engine")
    source = load_model(folder, dtype=module.dtype, allow_remote_code=allow_remote_code)
    load_tensors(module, source.state_dict())


@torch.no_grad()
def load_tensors(module: PreTrainedModel, tensors: Mapping[str, Any]) -> None:
    """Copy tensors by name into the module, all of them or none. Tied weights may come under any of their names.

    Errors: :class:`EngineError` naming the first unknown, misshapen, missing or non-finite tensor.
    """
    own: dict[str, Tensor] = dict(module.state_dict())
    for name, tensor in tensors.items():
        if name not in own:
            raise EngineError(f"weight {name!r} is none of the model's{nearest(name, own)}")
        if not isinstance(tensor, Tensor) or tensor.shape != own[name].shape:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise EngineError(f"weight {name!r} has shape {shape!r}, the model's has {tuple(own[name].shape)!r}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise EngineError(f"weight {name!r} is not finite; the engine keeps the weights it has")
    covered = {own[name].data_ptr(): name for name in tensors}
    for name, tensor in own.items():
        given = covered.get(tensor.data_ptr())
        if given is None:
            raise EngineError(f"weight {name!r} is missing from an update of {len(tensors):,} tensors; send the whole state_dict()")
        if name in tensors and name != given and not torch.equal(tensors[name], tensors[given]):
            raise EngineError(f"weights {name!r} and {given!r} are tied in the model, but the update has two different tensors")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def shares_storage(module: PreTrainedModel, tensors: Mapping[str, Any]) -> bool:
    """Whether every tensor is the module's own, or made of its own (merged adapters), so that nothing needs copying."""
    if isinstance(tensors, MergedWeights):
        return tensors.module is module
    own = {tensor.data_ptr() for tensor in module.state_dict().values()}
    return all(isinstance(tensor, Tensor) and tensor.data_ptr() in own for tensor in tensors.values())
