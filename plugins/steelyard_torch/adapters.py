"""Low-rank adapters (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353; QLoRA, arXiv 2305.14314), trained in place of a model's weights.

peft puts its layers into the model, which keeps its own transformers class, so that whatever scores with it or samples from it goes on as
before. Outside of training adapters do not exist: what is saved, or handed to an engine of its own, is W + s·B·A under the plain names.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from steelyard.errors import ModelError, UsageError
from steelyard_torch.config import AdapterOptions, OptimiserOptions
from steelyard_torch.freezing import freeze_weights, matching

__all__ = [
    "MergedWeights",
    "adapter_facts",
    "has_adapters",
    "make_trainable",
    "merged_state_dict",
    "plain_model",
    "save_adapter",
    "weights_dtype",
]

_NAME = "default"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def weights_dtype(folder: Path, options: OptimiserOptions) -> torch.dtype:
    """Of the model's own weights in memory: float32 where they are trained, and as ``adapter.base_dtype`` says beside adapters."""
    if options.adapter is None:
        return torch.float32
    if options.adapter.base_dtype != "auto":
        return _DTYPES[options.adapter.base_dtype]
    if options.precision != "bf16":
        return torch.float32
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return torch.bfloat16 if config.get("dtype", config.get("torch_dtype")) == "bfloat16" else torch.float32


def make_trainable(model: PreTrainedModel, options: OptimiserOptions, *, device: torch.device) -> PreTrainedModel | None:
    """Freeze what the options freeze, or put adapters into the model, in place; it is on ``device`` afterwards.

    Returns:
        With adapters, the model as it was: modules of their own over the very same weights, which are frozen, so that a reference costs
        no memory. None without.

    Raises:
        UsageError: a name matches nothing, or nothing is left to train. ModelError: a tied head, or bitsandbytes is missing.
    """
    if options.adapter is None:
        freeze_weights(model, freeze=options.freeze, train_only=options.train_only)
        cast("nn.Module", model).to(device)
        return None
    if options.adapter.quantise is not None:
        _quantise(model, torch.bfloat16 if options.precision == "bf16" else torch.float32)
    cast("nn.Module", model).to(device)
    model.requires_grad_(False)
    initial = _same_weights(model)
    _inject(model, options.adapter)
    return initial


def has_adapters(model: nn.Module) -> bool:
    """Whether :func:`make_trainable` has put adapters into the model."""
    return any(True for _ in _adapted(model))


def adapter_facts(model: nn.Module, options: AdapterOptions) -> dict[str, Any]:
    """For the stage's record: the options, and how many layers have an adapter."""
    return {**options.model_dump(), "layers": sum(1 for _ in _adapted(model))}


@dataclass(frozen=True, slots=True)
class _Layer:
    """How an adapted layer's tensors become one weight."""

    scaling: float
    transposed: bool
    """The weight is (in, out), as GPT-2's."""
    dora: bool


class MergedWeights(Mapping[str, torch.Tensor]):
    """A model's weights under their plain names, adapters merged; each is computed when it is asked for, and kept by nobody.

    Attributes:
        module: the live model they are of, if they are.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], model: nn.Module, *, live: bool):
        self.module = model if live else None
        self._state = state
        self._layers = {
            name: _Layer(layer.scaling[_NAME], bool(getattr(layer, "fan_in_fan_out", False)), bool(layer.use_dora[_NAME]))
            for name, layer in _adapted(model)
        }
        self._names = {_plain(name, self._layers): name for name in state if not _is_adapter(name, self._layers)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @torch.no_grad()
    def __getitem__(self, name: str) -> torch.Tensor:
        weight = _dense(self._state[self._names[name]])
        module, _, what = name.rpartition(".")
        layer = self._layers.get(module)
        if layer is None or what != "weight":
            return weight
        down, up = (self._state[f"{module}.lora_{part}.{_NAME}.weight"].float() for part in "AB")
        delta = up @ down * layer.scaling
        merged = weight.float() + (delta.T if layer.transposed else delta)
        if layer.dora:
            magnitude = self._state[f"{module}.lora_magnitude_vector.{_NAME}.weight"].float()
            rows = merged.T if layer.transposed else merged
            rows = (magnitude / torch.linalg.norm(rows, dim=1))[:, None] * rows
            merged = rows.T if layer.transposed else rows
        return merged.to(weight.dtype)


def merged_state_dict(model: PreTrainedModel, state: Mapping[str, torch.Tensor] | None = None) -> Mapping[str, torch.Tensor]:
    """The model's weights under the names it has without adapters: what an engine's ``load_weights`` takes, and what is saved.

    The sum is taken in float32 and rounded once to the base's dtype; 4-bit weights are the numbers that they stand for. Without adapters
    it is the state itself.

    Args:
        state: the model's ``state_dict()`` where it is already at hand, gathered from several ranks, say.
    """
    if not has_adapters(model):
        return model.state_dict() if state is None else state
    return MergedWeights(_state(model) if state is None else state, model, live=state is None)


def plain_model(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """A model of the same class and configuration over ``weights`` (all of them, plain names); ``model`` is left alone."""
    with torch.device("meta"):
        plain = type(model)(copy.deepcopy(model.config))
    plain.load_state_dict(dict(weights), assign=True)
    plain.tie_weights()
    for name, buffer in model.named_buffers():
        owner, _, last = name.rpartition(".")
        if plain.get_submodule(owner)._buffers[last].is_meta:  # type: ignore[union-attr]
            plain.get_submodule(owner)._buffers[last] = buffer  # what is not in the state: the rotary frequencies
    if model.can_generate():
        plain.generation_config = copy.deepcopy(model.generation_config)
    return plain


def save_adapter(model: PreTrainedModel, folder: Path, *, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the adapters as peft does: ``PeftModel.from_pretrained(base, folder)`` puts them onto the model that was trained from.

    Args:
        folder: is made.
        state: as in :func:`merged_state_dict`.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    every = dict(model.state_dict() if state is None else state)
    tensors = get_peft_model_state_dict(model, state_dict=every, adapter_name=_NAME, save_embedding_layers=False)
    tensors.update({name: tensor for name, tensor in every.items() if name.startswith("score.") and _new_head(model) is not None})
    named = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.deepcopy(cast("Any", model).peft_config[_NAME])
    config.inference_mode = True
    config.modules_to_save = None if _new_head(model) is None else ["score"]
    config.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    # peft keeps layer names as sets, whose order differs from process to process.
    tidy = {name: sorted(value) if name in ("target_modules", "exclude_modules") and value else value for name, value in written.items()}
    path.write_text(json.dumps(tidy, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _inject(model: PreTrainedModel, options: AdapterOptions) -> None:
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    targets = _targets(model, options)
    modules = dict(model.named_modules())
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if _new_head(model) is None else TaskType.SEQ_CLS,
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(modules[name], Conv1D) for name in targets),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model, adapter_name=_NAME)
    if (new := _new_head(model)) is not None:
        new.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # peft makes them of the base's dtype; in bfloat16 most of an optimiser's updates would be rounded away.
            parameter.data = parameter.data.float()


def _targets(model: PreTrainedModel, options: AdapterOptions) -> list[str]:
    """Full names of the layers that get an adapter."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    head = _head_name(model)
    if options.targets == "all-linear":
        chosen = [name for name in layers if name != head]
    else:
        chosen = matching(layers, options.targets, option="adapter.targets", what="linear layer", by_ending=True)
    if options.exclude:
        left_out = set(matching(layers, options.exclude, option="adapter.exclude", what="linear layer", by_ending=True))
        chosen = [name for name in chosen if name not in left_out]
    if not chosen:
        raise UsageError(f"no layer is left for an adapter: adapter.exclude {options.exclude!r} takes away every one of the targets")
    if head in chosen and _is_tied(model):
        raise ModelError(
            f"adapter.targets takes in {head!r}, which is tied to the embeddings: merged, its adapter would change them as well; "
            f"put {head!r} under adapter.exclude"
        )
    return chosen


def _head_name(model: PreTrainedModel) -> str | None:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head = _new_head(model) if head is None else head
    return next((name for name, module in model.named_modules() if module is head), None)


def _new_head(model: PreTrainedModel) -> nn.Module | None:
    """The head of a model that gives scores in place of tokens: it was made for this training, so no adapter could do its work."""
    head = getattr(model, "score", None)
    return head if isinstance(head, nn.Module) else None


def _is_tied(model: PreTrainedModel) -> bool:
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[no-untyped-call]
    return head is not None and getattr(head, "weight", None) is getattr(embeddings, "weight", False)


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    if not hasattr(model, "peft_config"):  # what peft leaves on a model; asked first, since peft takes seconds to import
        return
    from peft.tuners.lora.layer import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _is_adapter(name: str, layers: Mapping[str, _Layer]) -> bool:
    module, _, rest = name.partition(".lora_")
    return bool(rest) and module in layers


def _plain(name: str, layers: Mapping[str, _Layer]) -> str:
    module, found, rest = name.partition(".base_layer.")
    return f"{module}.{rest}" if found and module in layers else name


def _same_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own in evaluation mode whose tensors are those of ``model``."""
    shared = [*model.parameters(), *model.buffers()]
    other = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    other.train(False)
    return other


def _quantise(model: PreTrainedModel, compute: torch.dtype) -> None:
    """Replace linear layers, the output head apart, by 4-bit ones: NormalFloat with doubly quantised scales (QLoRA, section 3)."""
    try:
        import bitsandbytes  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ModelError("adapter.quantise 'nf4' needs bitsandbytes, which is not installed; pip install 'steelyard[qlora]'") from error
    head = _head_name(model)
    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or name == head:
            continue
        packed = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=compute, compress_statistics=True, quant_type="nf4"
        )
        packed.weight = bitsandbytes.nn.Params4bit(
            layer.weight.detach(), requires_grad=False, compress_statistics=True, quant_type="nf4", module=packed
        )
        packed.bias = layer.bias
        # Its kernel for evaluation on a CPU computes in bfloat16 and repacks the weights so that no gradient passes through them again.
        packed.support_avx512bf16_for_cpu = False
        model.set_submodule(name, packed)


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """``state_dict()`` with 4-bit weights as the parameters that know how to unpack themselves, and without what packing adds to it."""
    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    packed = tuple(f"{name}." for name, tensor in state.items() if _is_packed(tensor))
    return {name: tensor for name, tensor in state.items() if not (packed and name.startswith(packed))}


def _is_packed(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "quant_state", None) is not None


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    if not _is_packed(tensor):
        return tensor.detach()
    from bitsandbytes.functional import dequantize_4bit

    dense: torch.Tensor = dequantize_4bit(tensor.data, cast("Any", tensor).quant_state)
    return dense
