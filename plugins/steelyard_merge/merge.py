"""The stage `merge`: the weighted average of two models' weights (Wortsman et al., arXiv 2203.05482; Kimi k1.5 calls it long2short
merging, arXiv 2501.12599, section 2.4).

Averages of weights mean something for models that share an ancestor; what has another shape, vocabulary or template is refused.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from steelyard.errors import Interrupted, ModelError, StorageError
from steelyard.protocols import StageContext
from steelyard.records import StageResult
from steelyard.run.durable import storage_problem
from steelyard_merge.config import MergeConfig
from steelyard_merge.weights import FolderWeights, TensorFacts, write_shards
from steelyard_torch.models import check_model_folder, load_tokenizer
from steelyard_torch.templates import check_template, template_hash

__all__ = ["Merge", "average", "check_same_architecture"]

_INITIAL, _REFERENCE = "the initial model", "the reference model"

# What may differ between two saves of one architecture. Special tokens are the tokenizer's affair, which is compared whole.
_INCIDENTAL = frozenset(
    ["_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id"]
)


class Merge:
    """Averages the initial and the reference model, tensor by tensor in float32, in the initial model's dtypes and with its tokenizer."""

    def __init__(self, config: MergeConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        weight = self._config.weight
        remote = bool(context.options.get("trust_remote_code"))
        reference = _reference(context)
        for folder in (context.model, reference):
            check_model_folder(folder, allow_remote_code=remote)
        tokenizer = load_tokenizer(context.model, allow_remote_code=remote)
        other = load_tokenizer(reference, allow_remote_code=remote)
        if tokenizer.get_vocab() != other.get_vocab():
            raise ModelError(f"{_INITIAL} and {_REFERENCE} have different vocabularies ({len(tokenizer):,} and {len(other):,} tokens)")
        check_template(template_hash(tokenizer), other, where=_REFERENCE)
        config = _config(context.model, remote)
        check_same_architecture(config, _config(reference, remote))
        tied = _tied_names(config, remote)
        with FolderWeights(context.model, tied=tied) as initial, FolderWeights(reference, tied=tied) as second:
            facts = _common_tensors(initial, second)
            merging = _Merging(context, initial, second, facts, weight)
            _write(context.output, facts, merging.tensors())
        if merging.distance == 0:
            raise ModelError(f"{_INITIAL} and {_REFERENCE} have the same weights, so there is nothing to merge; name another `reference:`")
        _copy_configuration(context.model, context.output, remote)
        tokenizer.save_pretrained(context.output)
        parameters = sum(math.prod(fact.shape) for fact in facts.values())
        metrics = {"merge/relative_distance": merging.distance}
        context.io.report(metrics)
        context.io.log(f"{len(facts):,} tensors averaged, {weight:g} of the reference; relative distance {merging.distance:.3g}")
        return StageResult(context.output, metrics, {"weight": weight, "tensors": len(facts), "parameters": parameters})


def average(initial: torch.Tensor, reference: torch.Tensor, weight: float) -> torch.Tensor:
    """``(1 - weight)·initial + weight·reference``, computed in float32, in the dtype of ``initial``.

    Exact where the two agree and at weights 0 and 1.
    """
    return torch.lerp(initial.float(), reference.float(), weight).to(initial.dtype)


def check_same_architecture(initial: PreTrainedConfig, reference: PreTrainedConfig) -> None:
    """Refuse two configurations that differ in more than what a save leaves behind.

    Raises:
        ModelError: the first fields that differ, with both values.
    """
    mine, theirs = _architecture(initial.to_dict()), _architecture(reference.to_dict())
    different = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if different:
        told = ", ".join(f"{name} {mine.get(name)!r} and {theirs.get(name)!r}" for name in different[:3])
        raise ModelError(f"{_INITIAL} and {_REFERENCE} have different architectures: {told}")


class _Merging:
    """The averaged tensors in order of names; afterwards ``distance`` is ‖reference − initial‖ / ‖initial‖ over all weights."""

    def __init__(
        self, context: StageContext, initial: FolderWeights, second: FolderWeights, facts: Mapping[str, TensorFacts], weight: float
    ):
        self._context, self._initial, self._second, self._facts, self._weight = context, initial, second, facts, weight
        self.distance = 0.0

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        apart = norm = 0.0
        for done, name in enumerate(self._facts, start=1):
            if self._context.io.should_stop():
                raise Interrupted("stopped while merging; the stage starts again when the run is resumed")
            mine, theirs = self._initial.read(name), self._second.read(name)
            _check_finite(name, mine, _INITIAL)
            _check_finite(name, theirs, _REFERENCE)
            if mine.is_floating_point():
                apart += float((theirs.double() - mine.double()).square().sum())
                norm += float(mine.double().square().sum())
                merged = average(mine, theirs, self._weight)
                _check_finite(name, merged, "the merged model")
            elif torch.equal(mine, theirs):
                merged = mine
            else:
                raise ModelError(f"tensor {name!r} holds whole numbers ({mine.dtype}) that differ between the models and have no average")
            self._context.io.progress(done, len(self._facts), "tensors")
            self.distance = math.sqrt(apart) / max(math.sqrt(norm), 1e-30)
            yield name, merged.contiguous()


def _reference(context: StageContext) -> Path:
    if context.reference is None or context.reference.resolve() == context.model.resolve():
        raise ModelError("stage 'merge' needs a second model: name one by `reference:` (champion, base, previous or stage:NAME)")
    return context.reference


def _config(folder: Path, remote: bool) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=remote)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"model folder {str(folder)!r} has no usable config.json: {error}") from error
    return config


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _architecture(value) if isinstance(value, Mapping) else value for name, value in config.items() if name not in _INCIDENTAL
    }


def _tied_names(config: PreTrainedConfig, remote: bool) -> dict[str, str]:
    """Names of the architecture's tensors that are another's, such as the LM head that is the embedding; no weights are made."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=remote)  # type: ignore[no-untyped-call]
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _common_tensors(initial: FolderWeights, second: FolderWeights) -> dict[str, TensorFacts]:
    names = initial.names()
    for name in sorted(set(names) ^ set(second.names())):
        owner, without = (_INITIAL, _REFERENCE) if name in names else (_REFERENCE, _INITIAL)
        raise ModelError(f"{owner} has tensor {name!r}, and {without} has none of that name")
    facts = {name: initial.facts(name) for name in names}
    for name, fact in facts.items():
        shape = second.facts(name).shape
        if shape != fact.shape:
            raise ModelError(f"tensor {name!r} has shape {list(fact.shape)} in {_INITIAL} and {list(shape)} in {_REFERENCE}")
    return facts


def _check_finite(name: str, tensor: torch.Tensor, where: str) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{where} has non-finite weights in {name!r}")


def _write(folder: Path, facts: Mapping[str, TensorFacts], tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_shards(folder, facts, tensors)
    except (OSError, SafetensorError) as error:
        raise storage_problem(error, folder) or StorageError(f"cannot write the model to {str(folder)!r}: {error}") from error


def _copy_configuration(source: Path, folder: Path, remote: bool) -> None:
    for path in [source / "config.json", source / "generation_config.json", *(sorted(source.glob("*.py")) if remote else ())]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
