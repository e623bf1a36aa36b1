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

__all__ = ["Checkpoint", "Companions", "load_checkpoint", "save_checkpoint"]

Companions = Mapping[str, tuple[PreTrainedModel, torch.optim.Optimizer | None]]
"""Further models of a stage that change, by name, with the optimisers of those that have one."""

_WHOLE, _SHARDED = 1, 2


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
    companions: Companions | None = None,
    world: World = ALONE,
) -> Path:
    """Write a checkpoint after ``step`` optimiser steps; every rank must take part.

    Args:
        store: the stage's, from its context.
        data: the sampler's state.
        extra: anything else of the stage, JSON-able: its guard's counts, say.
        companions: kept beside the model.

    Returns:
        The checkpoint's folder.

    Raises:
        ModelError: the weights are not finite. Nothing is written, so no good checkpoint is pruned for a bad one.
        StorageError: the disk is full or cannot be written. Older checkpoints are intact.
    """
    kept = _all_kept(model, optimizer, companions)
    for one in kept:
        one.settle()
        _require_finite(one.model, f"the {one.what} after step {step}", world)
    generators = world.gather(_generator_state(world))
    if not world.main:
        if any(one.sharded for one in kept):
            folder = Path(world.from_main(None))
            for one in kept:
                one.write_parts(folder)
        return Path(world.from_main(None))

    def fill(folder: Path) -> None:
        state = {
            "format": _SHARDED if is_sharded(model) else _WHOLE,
            "step": step,
            "data": dict(data),
            "extra": dict(extra or {}),
            "optimizer": kept[0].describe(),
            "companions": {one.name: one.describe() for one in kept[1:]},
            "ranks": world.size,
            **generators[0][1],
            "other_ranks": [facts for _, facts in generators[1:]],
        }
        if any(one.sharded for one in kept):
            world.from_main(str(folder))
        for one in kept:
            one.write_parts(folder)
            one.write_whole(folder)
        for rank, (tensors, _) in enumerate(generators):
            write_file(tensors, folder / _generators_name(rank))
        (folder / "state.json").write_text(json.dumps(state, allow_nan=False, sort_keys=True), encoding="utf-8")

    return Path(world.from_main(str(store.write(step, fill))))


def load_checkpoint(
    folder: str | Path,
    *,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    companions: Companions | None = None,
    world: World = ALONE,
) -> Checkpoint:
    """Put the weights, the optimiser and every random generator back to where they were; every rank must take part.

    The number of ranks may be another than the one it was saved with. Ranks that were not there then begin with generators of their own.

    Args:
        folder: from the store, which has verified it.
        companions: those it was saved with.

    Raises:
        ArtifactError: a file cannot be read, or the checkpoint is of another model or optimiser. Nothing has been changed then.
    """
    folder = Path(folder)
    kept = _all_kept(model, optimizer, companions)
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["format"] not in (_WHOLE, _SHARDED):
            raise ArtifactError(f"checkpoint {str(folder)!r} has format {state['format']!r}, this version reads {_WHOLE} and {_SHARDED}")
        described = {"": state["optimizer"], **state.get("companions", {})}
        if sorted(described) != sorted(one.name for one in kept):
            names = ", ".join(sorted(described)[1:]) or "none"
            raise ArtifactError(f"checkpoint {str(folder)!r} was made beside other models than this stage has now (there: {names})")
        own = _generators_name(world.rank)
        generators = load_file(folder / own) if (folder / own).is_file() else None
        for one in kept:
            one.settle()
            one.check(folder, described[one.name])
        for one in kept:
            one.read(folder, described[one.name])
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"checkpoint {str(folder)!r} cannot be read: {error}") from error
    if generators is None:
        seed_everything(int(state["step"]) * 1_000_003 + world.rank)
    else:
        _restore_generators(generators, state if world.main else state["other_ranks"][world.rank - 1])
    return Checkpoint(step=int(state["step"]), data=state["data"], extra=state["extra"])


@dataclass(frozen=True, slots=True)
class _Kept:
    """A model, and the optimiser of one that has its own, as a checkpoint keeps them."""

    name: str
    """Empty for the model in training."""
    model: PreTrainedModel
    optimizer: torch.optim.Optimizer | None

    @property
    def what(self) -> str:
        return f"{self.name} model" if self.name else "model"

    @property
    def sharded(self) -> bool:
        return is_sharded(self.model)

    def settle(self) -> None:
        """Leaves every rank with its own part."""
        if self.sharded:
            reshard(self.model)

    def tensors(self) -> dict[str, torch.Tensor]:
        return _model_tensors(self.model, frozen=bool(self.name))

    def describe(self) -> dict[str, Any] | None:
        return None if self.optimizer is None else _describe_optimizer(self.model, self.optimizer)

    def write_whole(self, folder: Path) -> None:
        """On the main rank: what is not sharded."""
        if not self.sharded:
            write_file(self.tensors(), self._file(folder, "model"))
        if self.optimizer is not None:
            moments = _moments(self.optimizer)
            write_file({name: one for name, one in moments.items() if not isinstance(one, DTensor)}, self._file(folder, "optimizer"))

    def write_parts(self, folder: Path) -> None:
        """On every rank: its part of what is sharded."""
        if not self.sharded:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.tensors().items()}
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        for parameter, moments in self.optimizer.state.items() if self.optimizer is not None else ():
            tensors |= {f"optimizer.{names[parameter]}.{key}": one for key, one in moments.items() if isinstance(one, DTensor)}
        write_shards(tensors, self._parts(folder))

    def check(self, folder: Path, described: Mapping[str, Any] | None) -> None:
        """Raises ArtifactError for what is of another model or optimiser."""
        header, _ = self._headers(folder, described)
        own = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self.tensors().items()}
        for name in sorted(header.keys() | own.keys()):
            if header.get(name) != own.get(name):
                raise ArtifactError(
                    f"checkpoint {str(folder)!r} is of another {self.what}: tensor {name!r} differs in name, shape or dtype"
                )
        mine = self.describe()
        if mine is None or described is None:
            same = mine is described
        else:
            same = mine["class"] == described["class"] and mine["parameters"] == described["parameters"]
        if not same:
            kind = "none" if described is None else described["class"]
            raise ArtifactError(f"checkpoint {str(folder)!r} is of another optimiser ({kind}, or other parameter groups)")

    def read(self, folder: Path, described: Mapping[str, Any] | None) -> None:
        _, header = self._headers(folder, described)
        weights, moments = self.tensors(), _empty_moments(self.model, described, header)
        with torch.no_grad():
            if self._parts(folder).is_dir():
                self._read_parts(folder, weights, moments, described)
            else:
                read_file(self._file(folder, "model"), weights)
                if self.optimizer is not None:
                    read_file(self._file(folder, "optimizer"), moments)
        if self.optimizer is not None and described is not None:
            _restore_optimizer(self.optimizer, moments, described)

    def _file(self, folder: Path, what: str) -> Path:
        return folder / f"{self.name}{'.' if self.name else ''}{what}.safetensors"

    def _parts(self, folder: Path) -> Path:
        return folder / f"{self.name}{'.' if self.name else ''}parts"

    def _headers(self, folder: Path, described: Mapping[str, Any] | None) -> tuple[Header, Header]:
        """What the checkpoint has of the model and of its optimiser, the latter by index and key."""
        moments = {} if described is None else dict(file_header(self._file(folder, "optimizer")))
        if not self._parts(folder).is_dir():
            return file_header(self._file(folder, "model")), moments
        found = shards_header(self._parts(folder))
        numbers = _numbers(described)
        for name, what in found.items():
            if name.startswith("optimizer."):
                parameter, _, key = name.removeprefix("optimizer.").rpartition(".")
                moments[f"{numbers[parameter]}.{key}"] = what
        return {name.removeprefix("model."): what for name, what in found.items() if name.startswith("model.")}, moments

    def _read_parts(
        self, folder: Path, weights: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor], described: Mapping[str, Any] | None
    ) -> None:
        names = {number: name for name, number in _numbers(described).items()}
        whole = {} if described is None else file_header(self._file(folder, "optimizer"))
        wanted = {f"model.{name}": tensor for name, tensor in weights.items()}
        for name, tensor in moments.items():
            number, _, key = name.partition(".")
            if name not in whole:
                wanted[f"optimizer.{names[int(number)]}.{key}"] = tensor
        read_shards(self._parts(folder), wanted)
        if whole:
            read_file(self._file(folder, "optimizer"), {name: moments[name] for name in whole})


def _all_kept(model: PreTrainedModel, optimizer: torch.optim.Optimizer, companions: Companions | None) -> list[_Kept]:
    return [_Kept("", model, optimizer), *(_Kept(name, *pair) for name, pair in sorted((companions or {}).items()))]


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


def _numbers(described: Mapping[str, Any] | None) -> dict[str, int]:
    """The number under which an optimiser keeps each parameter's state."""
    groups = () if described is None else described["parameters"]
    return {name: number for number, name in enumerate(name for group in groups for name in group)}


def _empty_moments(model: PreTrainedModel, described: Mapping[str, Any] | None, header: Header) -> dict[str, torch.Tensor]:
    """Tensors to read moments into, by index and key: sharded where their parameter is and they have its shape."""
    parameters, names = dict(model.named_parameters()), {number: name for name, number in _numbers(described).items()}
    empty = {}
    for name, (shape, dtype) in header.items():
        parameter = parameters[names[int(name.partition(".")[0])]].detach()
        like = isinstance(parameter, DTensor) and tuple(parameter.shape) == shape
        empty[name] = torch.zeros_like(parameter, dtype=dtype) if like else torch.empty(shape, dtype=dtype)
    return empty


def _model_tensors(model: PreTrainedModel, *, frozen: bool = False) -> dict[str, torch.Tensor]:
    """Trained parameters and persistent buffers, by the first of their names: tied weights are stored once, and frozen ones, as long as
    nobody else changes them, are as they were loaded."""
    persistent = model.state_dict(keep_vars=True)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters() if frozen or parameter.requires_grad}
    tensors.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    return tensors


def _parameter_names(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The tensors of the optimiser's state, by its number of the parameter and their key."""
    entries = optimizer.state_dict()["state"].items()
    return {f"{index}.{key}": value for index, found in entries for key, value in found.items() if isinstance(value, torch.Tensor)}


def _describe_optimizer(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What of the optimiser's state is no tensor, as JSON, and what number belongs where."""
    state = optimizer.state_dict()
    entries = state["state"].items()
    return {
        "class": type(optimizer).__name__,
        "parameters": _parameter_names(model, optimizer),
        "groups": state["param_groups"],
        "scalars": {
            f"{index}.{key}": value for index, found in entries for key, value in found.items() if not isinstance(value, torch.Tensor)
        },
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], described: Mapping[str, Any]) -> None:
    entries: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *described["scalars"].items()]:
        index, _, key = name.partition(".")
        # A copy: the loaded tensor may be a view of the file.
        entries.setdefault(int(index), {})[key] = value.clone() if isinstance(value, torch.Tensor) else value
    groups = [{key: tuple(value) if key == "betas" else value for key, value in group.items()} for group in described["groups"]]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


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
