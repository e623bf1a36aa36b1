"""Training checkpoints that resume bit for bit: weights, optimiser, data position and every random generator.

The step's :class:`~steelyard.protocols.CheckpointStore` makes a checkpoint durable and refuses a torn one; this module says what is in it:
safetensors and JSON, nothing pickled. Learning rates are a function of the step and have no state of their own.
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
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from steelyard.errors import ArtifactError, StorageError
from steelyard.protocols import CheckpointStore
from steelyard.run.durable import storage_problem
from steelyard_torch.models import check_finite

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

_FORMAT = 1


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
) -> Path:
    """Write a checkpoint after ``step`` optimiser steps.

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
    check_finite(model, f"the model after step {step}")

    def fill(folder: Path) -> None:
        moments, optimizer_facts = _optimizer_state(model, optimizer)
        generators, generator_facts = _generator_state()
        state = {
            "format": _FORMAT,
            "step": step,
            "data": dict(data),
            "extra": dict(extra or {}),
            "optimizer": optimizer_facts,
            **generator_facts,
        }
        _save_tensors(_model_tensors(model), folder / "model.safetensors")
        _save_tensors(moments, folder / "optimizer.safetensors")
        _save_tensors(generators, folder / "generators.safetensors")
        (folder / "state.json").write_text(json.dumps(state, allow_nan=False, sort_keys=True), encoding="utf-8")

    return store.write(step, fill)


def load_checkpoint(folder: str | Path, *, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> Checkpoint:
    """Put the weights, the optimiser and every random generator back to where they were.

    Args:
        folder: from the store, which has verified it.

    Raises:
        ArtifactError: a file cannot be read, or the checkpoint is of another model or optimiser. Nothing has been changed then.
    """
    folder = Path(folder)
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        generators = load_file(folder / "generators.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"checkpoint {str(folder)!r} cannot be read: {error}") from error
    if state["format"] != _FORMAT:
        raise ArtifactError(f"checkpoint {str(folder)!r} has format {state['format']!r}, this version reads {_FORMAT!r}")
    _check_same_model(folder, weights, model, state["optimizer"], optimizer)
    with torch.no_grad():
        for name, tensor in _model_tensors(model).items():
            tensor.copy_(weights[name])
    _restore_optimizer(optimizer, moments, state["optimizer"])
    _restore_generators(generators, state)
    return Checkpoint(step=int(state["step"]), data=state["data"], extra=state["extra"])


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise storage_problem(error, path) or StorageError(f"cannot write {str(path)!r}: {error}") from error


def _model_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers, by the first of their names: tied weights are stored once."""
    persistent = model.state_dict(keep_vars=True)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
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
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    model: PreTrainedModel,
    described: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
) -> None:
    own = _model_tensors(model)
    for name in sorted(weights.keys() | own.keys()):
        if name not in weights or name not in own or weights[name].shape != own[name].shape or weights[name].dtype != own[name].dtype:
            raise ArtifactError(f"checkpoint {str(folder)!r} is of another model: tensor {name!r} differs in name, shape or dtype")
    if described["class"] != type(optimizer).__name__ or described["parameters"] != _parameter_names(model, optimizer):
        raise ArtifactError(f"checkpoint {str(folder)!r} is of another optimiser ({described['class']}, or other parameter groups)")


def _generator_state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = {"torch_cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
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
    algorithm, keys, position, has_gauss, gauss = state["numpy_random"]
    np.random.set_state((algorithm, np.asarray(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python_random"]
    random.setstate((version, tuple(internal), gauss_next))
