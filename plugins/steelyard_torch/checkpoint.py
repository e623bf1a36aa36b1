"""Training checkpoints that resume bit for bit: weights, optimiser, data position and every random generator.

The step's :class:`~steelyard.protocols.CheckpointStore` makes a checkpoint durable and refuses a torn one; this module says what is in it:
safetensors and JSON, nothing pickled. Learning rates are a function of the step and have no state of their own.

A model that is whole is written whole, by the main rank (format 1). Of one that is sharded every rank writes its part (format 2). Either is
read on any number of ranks, sharded or not.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from steelyard.errors import ArtifactError, ModelError
from steelyard.protocols import CheckpointStore
from steelyard_torch.checkpoint_tensors import Header, file_header, read_file, read_shards, shards_header, write_file, write_shards
from steelyard_torch.device import seed_everything
from steelyard_torch.models import check_finite
from steelyard_torch.parallel import ALONE, World
from steelyard_torch.sharding import is_sharded, local_part, reshard

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

_WHOLE, _SHARDED = 1, 2
_PARTS = "parts"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds beside tensors and generators."""

    step: int
    """Optimiser steps done."""
    data: dict[str, Any]
    """The sampler's state."""
    extra: dict[str, Any]
    """The stage's own."""


def save_checkpoint(
    store: CheckpointStore,
    *,
    step: int,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    data: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    world: World = ALONE,
) -> Path:
    """Write a checkpoint after ``step`` optimiser steps; every rank must take part.

    Args:
        store: the stage's, from its context.
        data: the sampler's state.
        extra: anything else of the stage, JSON-able: its guard's counts, say.

    Returns:
        The checkpoint's folder.

    Raises:
        ModelError: the weights are not finite. Nothing is written, so no good checkpoint is pruned for a bad one.
        StorageError: the disk is full or cannot be written. Older checkpoints are intact.
    """
    sharded = is_sharded(model)
    if sharded:
        reshard(model)
    _require_finite(model, f"the model after step {step}", world)
    generators = world.gather(_generator_state(world))
    if not world.main:
        if sharded:
            _write_parts(Path(world.from_main(None)), model, optimizer)
        return Path(world.from_main(None))

    def fill(folder: Path) -> None:
        moments, optimizer_facts = _optimizer_state(model, optimizer)
        state = {
            "format": _SHARDED if sharded else _WHOLE,
            "step": step,
            "data": dict(data),
            "extra": dict(extra or {}),
            "optimizer": optimizer_facts,
            "ranks": world.size,
            **generators[0][1],
            "other_ranks": [facts for _, facts in generators[1:]],
        }
        if sharded:
            world.from_main(str(folder))
            _write_parts(folder, model, optimizer)
            moments = {name: tensor for name, tensor in moments.items() if not isinstance(tensor, DTensor)}
        else:
            write_file(_model_tensors(model), folder / "model.safetensors")
        write_file(moments, folder / "optimizer.safetensors")
        for rank, (tensors, _) in enumerate(generators):
            write_file(tensors, folder / _generators_name(rank))
        (folder / "state.json").write_text(json.dumps(state, allow_nan=False, sort_keys=True), encoding="utf-8")

    return Path(world.from_main(str(store.write(step, fill))))


def load_checkpoint(folder: str | Path, *, model: PreTrainedModel, optimizer: torch.optim.Optimizer, world: World = ALONE) -> Checkpoint:
    """Put the weights, the optimiser and every random generator back to where they were; every rank must take part.

    The number of ranks may be another than the one it was saved with. Ranks that were not there then begin with generators of their own.

    Args:
        folder: from the store, which has verified it.

    Raises:
        ArtifactError: a file cannot be read, or the checkpoint is of another model or optimiser. Nothing has been changed then.
    """
    folder = Path(folder)
    if is_sharded(model):
        reshard(model)
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["format"] not in (_WHOLE, _SHARDED):
            raise ArtifactError(f"checkpoint {str(folder)!r} has format {state['format']!r}, this version reads {_WHOLE} and {_SHARDED}")
        described = state["optimizer"]
        header, moments = _headers(folder, state)
        _check_same_model(folder, header, model, described, optimizer)
        own = _generators_name(world.rank)
        generators = load_file(folder / own) if (folder / own).is_file() else None
        entries = _empty_moments(model, described, moments)
        weights = _model_tensors(model)
        with torch.no_grad():
            if state["format"] == _WHOLE:
                read_file(folder / "model.safetensors", weights)
                read_file(folder / "optimizer.safetensors", entries)
            else:
                _read_parts(folder, weights, entries, described)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"checkpoint {str(folder)!r} cannot be read: {error}") from error
    _restore_optimizer(optimizer, entries, described)
    if generators is None:
        seed_everything(int(state["step"]) * 1_000_003 + world.rank)
    else:
        _restore_generators(generators, state if world.main else state["other_ranks"][world.rank - 1])
    return Checkpoint(step=int(state["step"]), data=state["data"], extra=state["extra"])


def _generators_name(rank: int) -> str:
    return f"generators.rank{rank}.safetensors" if rank else "generators.safetensors"


def _require_finite(model: PreTrainedModel, where: str, world: World) -> None:
    """As :func:`check_finite`, each rank looking at what it has."""
    if not is_sharded(model):
        return check_finite(model, where)
    bad = [name for name, parameter in model.named_parameters() if not bool(torch.isfinite(local_part(parameter.detach())).all())]
    first = next((found[0] for found in world.gather(bad) if found), None)
    if first is not None:
        raise ModelError(f"{where} has non-finite weights in {first!r}")


def _write_parts(folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """This rank's part of weights and moments."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": tensor for name, tensor in _model_tensors(model).items()}
    for parameter, moments in optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": value for key, value in moments.items() if isinstance(value, DTensor)}
    write_shards(tensors, folder / _PARTS)


def _headers(folder: Path, state: Mapping[str, Any]) -> tuple[Header, Header]:
    """What the checkpoint has of the model and of its optimiser, the latter by index and key."""
    if state["format"] == _WHOLE:
        return file_header(folder / "model.safetensors"), file_header(folder / "optimizer.safetensors")
    found = shards_header(folder / _PARTS)
    weights = {name.removeprefix("model."): what for name, what in found.items() if name.startswith("model.")}
    numbers = _numbers(state["optimizer"])
    moments = dict(file_header(folder / "optimizer.safetensors"))
    for name, what in found.items():
        if name.startswith("optimizer."):
            parameter, _, key = name.removeprefix("optimizer.").rpartition(".")
            moments[f"{numbers[parameter]}.{key}"] = what
    return weights, moments


def _numbers(described: Mapping[str, Any]) -> dict[str, int]:
    """The number under which an optimiser keeps each parameter's state."""
    return {name: number for number, name in enumerate(name for group in described["parameters"] for name in group)}


def _empty_moments(model: PreTrainedModel, described: Mapping[str, Any], header: Header) -> dict[str, torch.Tensor]:
    """Tensors to read moments into, by index and key: sharded where their parameter is and they have its shape."""
    parameters, names = dict(model.named_parameters()), {number: name for name, number in _numbers(described).items()}
    empty = {}
    for name, (shape, dtype) in header.items():
        parameter = parameters[names[int(name.partition(".")[0])]].detach()
        like = isinstance(parameter, DTensor) and tuple(parameter.shape) == shape
        empty[name] = torch.zeros_like(parameter, dtype=dtype) if like else torch.empty(shape, dtype=dtype)
    return empty


def _read_parts(folder: Path, weights: dict[str, torch.Tensor], entries: dict[str, torch.Tensor], described: Mapping[str, Any]) -> None:
    names = {number: name for name, number in _numbers(described).items()}
    whole = file_header(folder / "optimizer.safetensors")
    wanted = {f"model.{name}": tensor for name, tensor in weights.items()}
    for name, tensor in entries.items():
        number, _, key = name.partition(".")
        if name not in whole:
            wanted[f"optimizer.{names[int(number)]}.{key}"] = tensor
    read_shards(folder / _PARTS, wanted)
    read_file(folder / "optimizer.safetensors", {name: entries[name] for name in whole})


def _model_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Trained parameters and persistent buffers, by the first of their names: tied weights are stored once, and frozen ones are as they
    were loaded."""
    persistent = model.state_dict(keep_vars=True)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    return tensors


def _parameter_names(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def _optimizer_state(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimiser's state as tensors, and as JSON that says which number belongs where."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                scalars[f"{index}.{key}"] = value
    described = {
        "class": type(optimizer).__name__,
        "parameters": _parameter_names(model, optimizer),
        "groups": state["param_groups"],
        "scalars": scalars,
    }
    return tensors, described


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], described: Mapping[str, Any]) -> None:
    entries: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *described["scalars"].items()]:
        index, _, key = name.partition(".")
        # A copy: the loaded tensor may be a view of the file.
        entries.setdefault(int(index), {})[key] = value.clone() if isinstance(value, torch.Tensor) else value
    groups = [{key: tuple(value) if key == "betas" else value for key, value in group.items()} for group in described["groups"]]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _check_same_model(
    folder: Path, header: Header, model: PreTrainedModel, described: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> None:
    own = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _model_tensors(model).items()}
    for name in sorted(header.keys() | own.keys()):
        if header.get(name) != own.get(name):
            raise ArtifactError(f"checkpoint {str(folder)!r} is of another model: tensor {name!r} differs in name, shape or dtype")
    if described["class"] != type(optimizer).__name__ or described["parameters"] != _parameter_names(model, optimizer):
        raise ArtifactError(f"checkpoint {str(folder)!r} is of another optimiser ({described['class']}, or other parameter groups)")


def _generator_state(world: World) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = {"torch_cpu": torch.get_rng_state()}
    if world.size > 1 and torch.cuda.is_available():
        tensors["torch_cuda"] = torch.cuda.get_rng_state()
    elif torch.cuda.is_available():
        tensors.update({f"torch_cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())})
    algorithm, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    facts = {
        "numpy_random": [algorithm, [int(key) for key in keys], position, has_gauss, gauss],
        "python_random": random.getstate(),
    }
    return tensors, facts


def _restore_generators(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    torch.set_rng_state(tensors["torch_cpu"].clone())
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"torch_cuda.{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"torch_cuda.{i}"], i)
    if "torch_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["torch_cuda"])
    algorithm, keys, position, has_gauss, gauss = state["numpy_random"]
    np.random.set_state((algorithm, np.asarray(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python_random"]
    random.setstate((version, tuple(internal), gauss_next))
