"""A model whose weights are spread over the ranks: torch's FSDP2 (``fully_shard``), one unit a decoder layer and one for the rest.

Only rank 0 reads the weights. The others make the model without any (on the meta device) and get their part of each tensor as it is
broadcast, so that no more than one copy of the whole model exists at any time, and that in rank 0's host memory. Gathering for a save or
an engine goes the same way back.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from steelyard.errors import ModelError
from steelyard_torch.config import ShardingOptions
from steelyard_torch.device import Precision
from steelyard_torch.head import adopt_scoring, find_last_states, score_targets, scoring_facts
from steelyard_torch.parallel import World, open_group

__all__ = ["empty_model", "full_state", "is_sharded", "local_part", "reshard", "shard_model", "whole", "without_weights"]


def empty_model(folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder without its weights, as ranks other than the first build it; the first one checks the folder."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return model


def without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with its weights taken away."""
    _to_meta(model)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard_model` was applied."""
    return isinstance(model, FSDPModule)


@torch.no_grad()
def shard_model(model: PreTrainedModel, world: World, options: ShardingOptions, *, device: torch.device, precision: Precision) -> None:
    """Spread a model over the ranks, in place; its scores are then computed through :func:`~steelyard_torch.head.token_logprobs` as before.

    Weights and optimiser state stay in the dtype they have. With ``bf16`` the layers' weights are gathered in bfloat16 and their
    gradients summed in float32; embeddings and head are gathered as they are and cast by autocast, as without sharding. Gradients are
    summed over the ranks, not averaged.

    Args:
        model: on rank 0 with its weights, on the CPU; on the others without any. Frozen weights and adapters are in place already.
        device: where each rank computes.
    """
    facts = world.from_main(scoring_facts(model) if world.main else None)
    adopt_scoring(model, facts)
    weights = {name: tensor.detach() for name, tensor in _tensors(model)} if world.main else {}
    _to_meta(model)
    if not dist.is_initialized():
        open_group(dist.HashStore(), 0, 1)  # type: ignore[attr-defined]
    keys: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (world.size,)),
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda") if options.cpu_offload else OffloadPolicy(),
    }
    # Casting the inputs would make the residual stream bfloat16, which autocast keeps in float32.
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in _layers(model):
        fully_shard(
            layer,
            reshard_after_forward=options.reshard_after_forward,
            mp_policy=half if precision == "bf16" else MixedPrecisionPolicy(),
            **keys,
        )
    # The backward pass begins with what the root holds, the head; and heads of other stages are applied after the forward pass.
    fully_shard(model, reshard_after_forward=False, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False), **keys)
    for module in _units(model):
        # What the ranks have adds up; gloo knows no other reduction than the sum anyway.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    _fill(model, weights, world, device, torch.device("cpu") if options.cpu_offload else device)
    for method in (score_targets, find_last_states):
        setattr(model, method.__name__, types.MethodType(method, model))
        register_fsdp_forward_method(model, method.__name__)


def reshard(model: nn.Module) -> None:
    """Let go of gathered weights. Scoring without a backward pass leaves some, and an optimiser step would make them stale."""
    for module in _units(model):
        module.reshard()


def full_state(model: nn.Module, world: World) -> dict[str, torch.Tensor]:
    """The state dict with whole tensors in rank 0's host memory, gathered one by one; the other ranks, who must take part, get an empty
    one. Tied weights are one tensor."""
    reshard(model)
    state: dict[str, torch.Tensor] = {}
    gathered: dict[torch.Tensor, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor not in gathered:
            found = whole(tensor.detach())
            gathered[tensor] = found.cpu() if world.main else found.new_empty(0)
        if world.main:
            state[name] = gathered[tensor]
    return state


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may be sharded, whole on every rank; all of them must take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank has of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _units(model: nn.Module) -> Iterator[FSDPModule]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers, by the architecture's own word on what must stay together."""
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ModelError(f"{type(model).__name__} does not say what its layers are, so it cannot be sharded; set `sharding.shard: false`")
    return layers


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers, those that are never saved included, each once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _replace(model: nn.Module, made: Mapping[torch.Tensor, torch.Tensor]) -> None:
    """Puts other tensors in the place of a model's own, under all the names these have: ties stay, which ``Module.to`` would cut."""
    for module in model.modules():
        for entries in (module._parameters, module._buffers):
            for name, tensor in list(entries.items()):
                if tensor is not None:
                    entries[name] = made[tensor]  # type: ignore[assignment]


def _to_meta(model: nn.Module) -> None:
    """Takes the weights away."""
    made: dict[torch.Tensor, torch.Tensor] = {}
    for _, tensor in _tensors(model):
        empty = torch.empty_like(tensor, device="meta")
        made[tensor] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    _replace(model, made)


def _fill(model: nn.Module, weights: dict[str, torch.Tensor], world: World, device: torch.device, home: torch.device) -> None:
    """Gives every rank its part of rank 0's ``weights``, tensor by tensor; parts are kept on ``home``, buffers on ``device``."""
    made: dict[torch.Tensor, torch.Tensor] = {}
    for name, tensor in _tensors(model):
        sent = weights.pop(name).to(device) if world.main else torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        sent = sent.contiguous()
        if world.size > 1:
            dist.broadcast(sent, src=0)
        if not isinstance(tensor, DTensor):
            made[tensor] = sent
            continue
        parts = torch.chunk(sent, world.size)
        part = parts[world.rank] if world.rank < len(parts) else sent.new_empty((0, *sent.shape[1:]))
        if part.shape != tensor.to_local().shape:
            raise ModelError(f"torch cuts {name!r} into parts of {tuple(tensor.to_local().shape)}, and {tuple(part.shape)} was sent")
        # A copy, so that the whole tensor can go.
        own = torch.empty_like(part, device=home).copy_(part)
        kept = DTensor.from_local(own, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride())
        made[tensor] = nn.Parameter(kept, tensor.requires_grad)
    _replace(model, made)
