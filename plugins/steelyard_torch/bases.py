"""Bases: bringing a model in from outside, once, as a plain Hugging Face folder; and making a new tiny one.

The folder that is written is normalised: safetensors only, a fast tokenizer whose padding token is not its end token, a chat template.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from steelyard.errors import ModelError, nearest
from steelyard_torch.models import (
    PICKLE_SUFFIXES,
    check_finite,
    check_model_folder,
    load_model,
    refuse_remote_code,
    remote_code_allowed,
    save_model,
)
from steelyard_torch.templates import resolve_template

__all__ = ["character_tokenizer", "choose_pad_token", "import_base", "new_model"]

_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")

_LONGEST_CLAUSE = 160

# Tokens that public models keep for padding or for nothing, best first.
_PAD_CANDIDATES = (
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<unk>",
    "<|reserved_special_token_0|>",
)


def import_base(
    source: str,
    folder: str | Path,
    *,
    chat_template: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    allow_remote_code: bool | Collection[str] = False,
) -> None:
    """Write the model ``source`` as a plain folder that stages and engines can use.

    Args:
        source: the absolute path of a Hugging Face folder, a ``.gguf`` file, or a hub id (any relative name is one). A GGUF model is
            dequantised once; of a hub model no pickle file is ever fetched.
        folder: absent or empty.
        chat_template: the name of a built-in template or Jinja source; ``None`` keeps the model's own (it may have none).
        revision: of a hub model.
        dtype: of the weights on disk; ``None`` keeps the source's (float32 for GGUF).
        allow_remote_code: ``True``, or the names of the models that may bring their own code.

    Raises:
        ModelError: the source does not exist, is refused, or cannot be used for training.
    """
    place = Path(source).expanduser()
    tokenizer: Any
    if place.suffix == ".gguf":
        model, tokenizer = _load_gguf(place)
    elif place.suffix in PICKLE_SUFFIXES and place.is_file():
        raise ModelError(f"{source!r} is a pickle file, and unpickling runs code from it; give a folder with safetensors or a .gguf file")
    else:
        # A relative name is a hub id: whatever happens to have that name in the current folder is not what the recipe means.
        local = place if place.is_absolute() and place.is_dir() else _download(source, revision)
        check_model_folder(local, allow_remote_code=allow_remote_code, name=source)
        allowed = remote_code_allowed(source, allow_remote_code)
        model = load_model(local, dtype=_stored_dtype(local, allowed), allow_remote_code=allowed)
        try:
            tokenizer = AutoTokenizer.from_pretrained(local, local_files_only=True, trust_remote_code=allowed)
        except (ValueError, OSError, ImportError, KeyError) as error:
            refuse_remote_code(error, source)
            raise ModelError(f"base model {source!r} has no tokenizer that can be loaded: {error}") from error
        if not tokenizer.is_fast:
            raise ModelError(f"the tokenizer of {source!r} is not a fast one, and masks need character offsets; add a tokenizer.json")
        if not allowed:
            # The code that these point to stays behind.
            vars(model.config).pop("auto_map", None)
            tokenizer.init_kwargs.pop("auto_map", None)
    if chat_template is not None:
        tokenizer.chat_template = resolve_template(chat_template)
    choose_pad_token(tokenizer, where=f"base {source!r}", also_ends=_generation_ends(model))
    save_model(model, tokenizer, folder, dtype=dtype)


def choose_pad_token(tokenizer: PreTrainedTokenizerFast, *, where: str, also_ends: Collection[int] = ()) -> None:
    """Give a tokenizer that has no padding token, or pads with its end token, another token that it already has.

    The vocabulary does not grow, so no embedding is resized. A token is not taken if it ends a generation or stands in the chat template.

    Raises:
        ModelError: no end token, or no token to pad with.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{where} has no end token (eos_token), so a model cannot learn to stop; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    vocabulary = tokenizer.get_vocab()
    template = str(tokenizer.chat_template or "")
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id, *also_ends}
    candidates = [*_PAD_CANDIDATES, *([tokenizer.unk_token] if tokenizer.unk_token else [])]
    for token in candidates:
        if token in vocabulary and vocabulary[token] not in taken and token not in template:
            tokenizer.pad_token = token
            return
    raise ModelError(
        f"{where} pads with {tokenizer.pad_token!r} and ends with {tokenizer.eos_token!r}, and has no spare token to pad with (looked for "
        f"{', '.join(_PAD_CANDIDATES)}); set pad_token in tokenizer_config.json to a token that the model does not use"
    )


def new_model(
    folder: str | Path,
    *,
    architecture: Mapping[str, Any],
    characters: str,
    extra_tokens: Sequence[str] = (),
    chat_template: str | None = None,
    seed: int,
) -> PreTrainedModel:
    """Make and save a randomly initialised model with a character tokenizer, for training from nothing.

    Args:
        folder: absent or empty.
        architecture: ``model_type`` and the fields of that transformers config, such as ``hidden_size``. The vocabulary size and the ids of
            the special tokens are filled in.
        characters, extra_tokens, chat_template: see :func:`character_tokenizer`.
        seed: of the initial weights.

    Raises:
        ModelError: an unknown model type or field.
    """
    fields = dict(architecture)
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ModelError(f"unknown model_type {model_type!r}{nearest(str(model_type), CONFIG_MAPPING)}")
    tokenizer = character_tokenizer(characters, extra_tokens=extra_tokens, chat_template=chat_template)
    known = AutoConfig.for_model(model_type)
    for field in fields:
        if not hasattr(known, field):
            raise ModelError(f"{model_type!r} has no field {field!r}{nearest(field, known.to_dict())}")
    config = AutoConfig.for_model(
        model_type,
        **{"bos_token_id": None, **fields},
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise ModelError(f"cannot make a {model_type!r} model from {dict(architecture)!r}: {error}") from error
    save_model(model, tokenizer, folder)
    model.train(False)
    return model


def character_tokenizer(characters: str, *, extra_tokens: Sequence[str] = (), chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a character: ``<pad>``, ``<eos>``, ``<unk>``, then the extra tokens, then the characters in their order.

    Args:
        characters: the alphabet; repeated characters count once. Anything else becomes ``<unk>``.
        extra_tokens: texts that are one token, such as the role markers of a chat template.
        chat_template: a built-in template's name or Jinja source.
    """
    special = ["<pad>", "<eos>", "<unk>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*special, *extra_tokens, *characters]))}
    # Byte-pair encoding without merges: a token a character, at a third of the cost of a split by a pattern.
    backend = Tokenizer(BPE(vocabulary, [], unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in extra_tokens])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )
    if chat_template is not None:
        tokenizer.chat_template = resolve_template(chat_template)
    return tokenizer


def _load_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    if not file.is_file():
        raise ModelError(f"GGUF file {str(file)!r} does not exist")
    try:
        # Without dequantize the model keeps its quantised blocks: transformers then neither trains nor saves it.
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except (ValueError, OSError, RuntimeError, NotImplementedError, ImportError, KeyError) as error:
        raise ModelError(f"GGUF file {str(file)!r} cannot be converted: {error}") from error
    _take_token_ids(model, tokenizer)
    check_finite(model, f"GGUF file {str(file)!r}")
    return model, tokenizer


def _take_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Where GGUF metadata names no token for a role, transformers leaves the architecture's default id, which is some other token here."""
    for config in (model.config, model.generation_config):
        if config is not None:
            config.bos_token_id = tokenizer.bos_token_id
            config.eos_token_id = tokenizer.eos_token_id
            config.pad_token_id = tokenizer.pad_token_id


def _download(source: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(_HUB_FILES)))
    except HFValidationError:
        raise ModelError(f"base model {source!r} is neither a folder, a .gguf file nor a hub id") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ModelError(
            f"base model {source!r}{at} is no local folder and could not be fetched from the hub ({_one_clause(error)}); "
            "give a local folder or a .gguf file to work offline"
        ) from error


def _one_clause(error: Exception) -> str:
    """The first sentence of what the hub's client says; the rest is advice for its own callers."""
    text = " ".join(str(error).split()) or type(error).__name__
    sentence = re.split(r"(?<=[^.])\.(?: |$)", text, maxsplit=1)[0]
    return sentence if len(sentence) <= _LONGEST_CLAUSE else sentence[: _LONGEST_CLAUSE - 1] + "…"


def _stored_dtype(folder: Path, trust_remote_code: bool) -> torch.dtype:
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _generation_ends(model: PreTrainedModel) -> list[int]:
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    return [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]
