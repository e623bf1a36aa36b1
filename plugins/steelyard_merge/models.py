"""The models of a merge: opened side by side, refused where they do not go together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from steelyard.errors import ModelError
from steelyard_merge.weights import FolderWeights, TensorFacts
from steelyard_torch.models import check_model_folder, load_tokenizer
from steelyard_torch.templates import check_template, template_hash

__all__ = ["INITIAL", "Models", "check_same_architecture"]

INITIAL = "the initial model"

# What may differ between two saves of one architecture. Special tokens are the tokenizer's affair, which is compared whole.
_INCIDENTAL = frozenset(
    ["_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id"]
)
_NO_POLICY = ("ForSequenceClassification", "ForTokenClassification")


class Models:
    """The initial model and others like it, tensor by tensor; a context manager that keeps their files open.

    Args:
        initial: folder of the model whose tokenizer, configuration and dtypes the merged one gets.
        others: folder by what messages call the model.
        remote: whether the recipe trusts the models' own code.

    Raises:
        ModelError: a folder that is no model, or an adapter's; other architectures, vocabularies, templates, tensors.
    """

    def __init__(self, initial: Path, others: Mapping[str, Path], *, remote: bool):
        self.tokenizer: PreTrainedTokenizerFast
        folders = {INITIAL: initial, **others}
        for name, folder in folders.items():
            _refuse_adapter(name, folder)
            check_model_folder(folder, allow_remote_code=remote)
        self.tokenizer = load_tokenizer(initial, allow_remote_code=remote)
        config = _config(initial, remote)
        for name, folder in others.items():
            _check_tokenizer(self.tokenizer, load_tokenizer(folder, allow_remote_code=remote), name)
            check_same_architecture(config, _config(folder, remote), name)
        _refuse_unmergeable(config)
        tied = _tied_names(config, remote)
        self._closing = ExitStack()
        try:
            self._weights = {name: self._closing.enter_context(FolderWeights(folder, tied=tied)) for name, folder in folders.items()}
            self.facts: dict[str, TensorFacts] = _common_tensors(self._weights)
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> Models:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def read(self, owner: str, name: str) -> Tensor:
        """A tensor of one of the models. Errors: :class:`ModelError` where it is not finite."""
        tensor = self._weights[owner].read(name)
        check_finite(name, tensor, owner)
        return tensor


def check_same_architecture(initial: PreTrainedConfig, other: PreTrainedConfig, name: str = "the reference model") -> None:
    """Refuse two configurations that differ in more than what a save leaves behind.

    Raises:
        ModelError: the first fields that differ, with both values.
    """
    mine, theirs = _architecture(initial.to_dict()), _architecture(other.to_dict())
    different = sorted(field for field in mine.keys() | theirs.keys() if mine.get(field) != theirs.get(field))
    if different:
        told = ", ".join(f"{field} {mine.get(field)!r} and {theirs.get(field)!r}" for field in different[:3])
        raise ModelError(f"{INITIAL} and {name} have different architectures: {told}")


def check_finite(name: str, tensor: Tensor, where: str) -> None:
    """Errors: :class:`ModelError` for a NaN or an infinity in the tensor ``name``."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{where} has non-finite weights in {name!r}")


def _refuse_adapter(name: str, folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{name} ({str(folder)!r}) is an adapter, and holds no weights of a model: merge it into its base first "
            "(peft: `PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(…)`), or name the stage that trained it, "
            "which leaves a whole model"
        )


def _refuse_unmergeable(config: PreTrainedConfig) -> None:
    """What all models have in common and cannot be merged."""
    found = [name for name in config.architectures or () if name.endswith(_NO_POLICY)]
    if found:
        raise ModelError(f"the models are {found[0]}, which score text and write none: merge models that make text")
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError("the models are quantised, and sums of packed weights mean nothing: merge the models before they are quantised")


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast, name: str) -> None:
    if tokenizer.get_vocab() != other.get_vocab():
        raise ModelError(f"{INITIAL} and {name} have different vocabularies ({len(tokenizer):,} and {len(other):,} tokens)")
    check_template(template_hash(tokenizer), other, where=name)


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


def _common_tensors(weights: Mapping[str, FolderWeights]) -> dict[str, TensorFacts]:
    initial = weights[INITIAL]
    facts = {name: initial.facts(name) for name in initial.names()}
    for owner, second in weights.items():
        for name in sorted(set(facts) ^ set(second.names())):
            has, without = (INITIAL, owner) if name in facts else (owner, INITIAL)
            raise ModelError(f"{has} has tensor {name!r}, and {without} has none of that name")
        for name, fact in facts.items():
            shape = second.facts(name).shape
            if shape != fact.shape:
                raise ModelError(f"tensor {name!r} has shape {list(fact.shape)} in {INITIAL} and {list(shape)} in {owner}")
    return facts
