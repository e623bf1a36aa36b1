"""Causal language models as plain Hugging Face folders: what may be loaded, loading, saving, and the hash of the weights."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from steelyard.errors import ModelError, StorageError
from steelyard.run.durable import storage_problem
from steelyard.run.weights import inspect_weights

__all__ = [
    "PICKLE_SUFFIXES",
    "check_finite",
    "check_model_folder",
    "check_pad_token",
    "load_model",
    "load_tokenizer",
    "refuse_remote_code",
    "remote_code_allowed",
    "save_model",
    "weights_sha256",
]

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

# A run draws its own progress; bars for each loaded folder would tear it.
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def remote_code_allowed(name: str, allow_remote_code: bool | Collection[str]) -> bool:
    """Whether the model called ``name`` may bring its own Python: ``True``, or a collection of names that has it."""
    return allow_remote_code if isinstance(allow_remote_code, bool) else name in allow_remote_code


def check_model_folder(folder: str | Path, *, allow_remote_code: bool | Collection[str] = False, name: str | None = None) -> None:
    """Refuse a folder whose loading would run someone's code: pickled weights, or Python that comes with the model.

    Args:
        folder: a local Hugging Face model folder.
        allow_remote_code: ``True``, or the names of the models that may bring their own code.
        name: what the recipe calls the model; the folder's path when left out.

    Raises:
        ModelError: no such folder, no config, weights only as pickle, or remote code that was not allowed by name.
    """
    folder = Path(folder)
    name = name or str(folder)
    if not folder.is_dir():
        raise ModelError(f"model folder {str(folder)!r} does not exist")
    config = _read_config(folder)
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise ModelError(
                f"model folder {str(folder)!r} holds its weights only as pickle ({', '.join(pickles[:3])}), and unpickling runs code "
                "from the file; convert it to safetensors in a place you can throw away, for example "
                '`python -c "from transformers import AutoModelForCausalLM as M; '
                f"M.from_pretrained('{folder}').save_pretrained('OUT')\"`, "
                "or use a revision that has model.safetensors"
            )
        raise ModelError(f"model folder {str(folder)!r} has no *.safetensors file")
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING and not remote_code_allowed(name, allow_remote_code):
        raise ModelError(_own_code(name, f"model_type {config.get('model_type')!r}"))


def refuse_remote_code(error: Exception, name: str) -> None:
    """Turn transformers' own refusal to run a folder's code into ours, which says what a recipe can do; other errors pass.

    Raises:
        ModelError: ``error`` is such a refusal.
    """
    if "trust_remote_code" in str(error):
        raise ModelError(_own_code(name, "its configuration or tokenizer")) from error


def _own_code(name: str, what: str) -> str:
    return (
        f"model {name!r} ({what}) brings its own Python code, which is off by default; read it, "
        "then allow it by name: in a recipe, write what `base.model` says once more as `base.trust_remote_code`"
    )


def load_model(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attention: str | None = None,
    allow_remote_code: bool | Collection[str] = False,
) -> PreTrainedModel:
    """Load a causal language model from a local folder, in evaluation mode, with every weight present and finite.

    Args:
        folder: a Hugging Face folder with safetensors weights.
        dtype: of the weights in memory; training keeps float32 master weights, see :mod:`steelyard_torch.device`.
        device: where to put it.
        attention: transformers' attention implementation (``sdpa``, ``eager``, ``flash_attention_2`` …); ``None`` takes its default.
        allow_remote_code: see :func:`check_model_folder`.

    Raises:
        ModelError: the folder is refused, weights are missing, left over, torn or non-finite.
    """
    folder = Path(folder)
    check_model_folder(folder, allow_remote_code=allow_remote_code)
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=_needs_remote_code(folder),
            output_loading_info=True,
            **options,
        )
    except SafetensorError as error:
        raise ModelError(f"model folder {str(folder)!r} has a torn or invalid safetensors file: {error}") from error
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise ModelError(f"model folder {str(folder)!r} cannot be loaded: {error}") from error
    model: PreTrainedModel
    model, loading = loaded
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if loading[problem]:
            shown = ", ".join(str(key) for key in sorted(loading[problem], key=str)[:4])
            raise ModelError(f"model folder {str(folder)!r} does not fit {type(model).__name__}: {problem.replace('_', ' ')} {shown}")
    check_finite(model, f"model folder {str(folder)!r}")
    model.train(False)
    cast("torch.nn.Module", model).to(device)
    return model


def load_tokenizer(folder: str | Path, *, allow_remote_code: bool | Collection[str] = False) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a local model folder.

    Raises:
        ModelError: there is none, it is not a fast one (masks need character offsets), or its padding token is missing or is the end token.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"model folder {str(folder)!r} does not exist")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=remote_code_allowed(str(folder), allow_remote_code)
        )
    except (ValueError, OSError, ImportError, KeyError) as error:
        refuse_remote_code(error, str(folder))
        raise ModelError(f"model folder {str(folder)!r} has no tokenizer that can be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {str(folder)!r} ({type(tokenizer).__name__}) is not a fast one, and masks need character offsets; "
            "save a tokenizer.json beside it"
        )
    check_pad_token(tokenizer, where=f"the tokenizer of {str(folder)!r}")
    return tokenizer  # type: ignore[no-any-return]


def check_pad_token(tokenizer: PreTrainedTokenizerFast, *, where: str) -> None:
    """Refuse a tokenizer without an end token, or whose padding token is missing or equals it.

    Trainers that mask by padding id never train the end token when both are one, and the model never learns to stop.

    Raises:
        ModelError: with the way out.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{where} has no end token (eos_token), so a model cannot learn to stop; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError(
            f"{where} pads with {tokenizer.pad_token!r}, and its end token is {tokenizer.eos_token!r}; they must differ: give the model as "
            "`base: {model: …}`, whose import chooses another padding token, or set pad_token in tokenizer_config.json"
        )


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a plain Hugging Face folder: safetensors, config, generation config, tokenizer, chat template.

    Args:
        model: nothing of it is resized; its embeddings must have a row for every token.
        tokenizer: saved beside it.
        folder: must be absent or empty.
        dtype: of the floating-point weights on disk; ``None`` keeps the model's own.

    Raises:
        ModelError: non-finite weights, or a tokenizer with more tokens than the model has embeddings.
        StorageError: the folder is not empty or cannot be written.
    """
    folder = Path(folder)
    check_finite(model, "the model to be saved")
    check_vocabulary(model, tokenizer)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{str(folder)!r} is not an empty folder; a model is never written over another")
    state = None
    saved_dtype = model.config.dtype
    if dtype is not None:
        state = _cast(model.state_dict(), dtype)
    _set_token_ids(model, tokenizer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, state_dict=state)
        if dtype is not None:
            _say_dtype(folder / "config.json", dtype)
        tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:  # the latter is how safetensors reports a full disk
        raise storage_problem(error, folder) or StorageError(f"cannot write the model to {str(folder)!r}: {error}") from error
    finally:
        model.config.dtype = saved_dtype


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer that has ids beyond the model's embeddings; more rows than tokens (padding) are fine.

    Raises:
        ModelError: with both sizes.
    """
    rows = cast("torch.nn.Embedding", model.get_input_embeddings()).weight.shape[0]
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError(
            f"the tokenizer's highest token id is {highest}, but the model has {rows} embeddings; use the model's own tokenizer "
            "(nothing is resized silently)"
        )


def check_finite(model: PreTrainedModel, where: str) -> None:
    """Refuse a model with a NaN or an infinity in its weights.

    Raises:
        ModelError: naming the first such tensor.
    """
    for name, parameter in model.named_parameters():
        # The norm of a finite tensor may overflow, so a bad norm is only a reason to look closer; it is much the cheapest test.
        size = torch.linalg.vector_norm(parameter.detach()) if parameter.is_floating_point() else torch.zeros(())
        if not torch.isfinite(size) and not bool(torch.isfinite(parameter.detach()).all()):
            raise ModelError(f"{where} has non-finite weights in {name!r}")


def weights_sha256(folder: str | Path) -> str:
    """SHA-256 of a model folder's weights: names, dtypes, shapes and contents, in name order.

    Independent of how the tensors are spread over files and of metadata, so that two folders with equal weights hash alike.

    Raises:
        ModelError: there are no safetensors files, or one is torn.
    """
    facts = inspect_weights(Path(folder))
    if facts is None:
        raise ModelError(f"model folder {str(folder)!r} has no *.safetensors file")
    return facts.sha256


def _say_dtype(path: Path, dtype: torch.dtype) -> None:
    """transformers writes the dtype that the model has in memory; a reader with ``dtype="auto"`` goes by what is written."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _cast(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state in another floating-point type; tensors that share memory (tied weights) share it afterwards, so they are saved once."""
    casts: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}
    for tensor in state.values():
        if tensor.is_floating_point():
            casts.setdefault((tensor.data_ptr(), tuple(tensor.shape)), tensor.to(dtype))
    return {name: casts.get((tensor.data_ptr(), tuple(tensor.shape)), tensor) for name, tensor in state.items()}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{str(folder)!r} is not a model folder: it has no config.json") from None
    except ValueError as error:
        raise ModelError(f"{str(path)!r} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{str(path)!r} must hold a JSON object")
    return config


def _needs_remote_code(folder: Path) -> bool:
    """Whether the folder's own class is the only one; :func:`check_model_folder` has already asked whether it may run."""
    config = _read_config(folder)
    return "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING


def _set_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Make the configs name the tokenizer's padding token, and let generation stop at its end token as well as at its own."""
    model.config.pad_token_id = tokenizer.pad_token_id
    # A model that scores in place of writing has none.
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    generation.pad_token_id = tokenizer.pad_token_id
    ends = generation.eos_token_id
    known = [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]
    if tokenizer.eos_token_id not in known:
        known.append(tokenizer.eos_token_id)
    generation.eos_token_id = known[0] if len(known) == 1 else known
