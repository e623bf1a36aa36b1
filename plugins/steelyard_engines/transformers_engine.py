"""The ``transformers`` engine: generation and scoring in this process, for rollouts and for evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steelyard.errors import EngineError
from steelyard.records import Completion, FinishReason, Prompt, Sampling, Scored, derive_seed
from steelyard_engines.config import TransformersEngineConfig
from steelyard_engines.generation import Request, generate_batch, plan_batches
from steelyard_engines.sampling import TokenChooser
from steelyard_engines.scoring import TokenPair, encode_pair, encode_text, score_pairs
from steelyard_engines.stopping import StopRule, end_tokens
from steelyard_engines.weights import load_folder, load_tensors, shares_storage
from steelyard_torch.device import setup_runtime
from steelyard_torch.encoding import encode_prompt
from steelyard_torch.models import load_model, load_tokenizer

__all__ = ["TransformersEngine"]


class TransformersEngine:
    """An :class:`~steelyard.protocols.Engine` over a Hugging Face causal language model.

    Args:
        config: see :class:`TransformersEngineConfig`.
        model_folder: a local model folder; its tokenizer is read even when ``module`` is given, unless ``tokenizer`` is, too.
        module: a live model to share with a trainer, without a copy: what the trainer writes is what the engine samples. Its mode
            (training or evaluation) is put back after every call.
        tokenizer: the tokenizer to use.

    Errors: :class:`~steelyard.errors.ModelError` when the folder cannot be loaded.
    """

    def __init__(
        self,
        config: TransformersEngineConfig | None,
        model_folder: Path | str | None,
        module: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
        trust_remote_code: bool = False,
    ):
        self.config = config or TransformersEngineConfig()
        self._shared = module is not None
        if (module is None or tokenizer is None) and model_folder is None:
            raise EngineError("an engine needs a model folder, or both a live module and its tokenizer")
        remote = self._remote = trust_remote_code
        self.tokenizer = tokenizer or load_tokenizer(Path(str(model_folder)), allow_remote_code=remote)
        self._module: PreTrainedModel | None = module or self._load(Path(str(model_folder)))
        self._ends = end_tokens(self._module, self.tokenizer)
        self._pad_id = int(self.tokenizer.pad_token_id)
        self._asleep_from: torch.device | None = None
        self.max_length = self._context_length(self._module)
        self.weight_version = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """``sampling.n`` completions for each prompt, in order.

        A completion ends at an end token, at a stop text, after ``max_new_tokens``, or where the model's context is full.
        Log-probabilities are those of the distribution sampled from; at temperature 0, of the untempered softmax.

        Errors: :class:`EngineError` for an empty prompt, one that leaves no room in the context, or token ids beyond the vocabulary.
        """
        with self._ready() as module:
            if sampling.n < 1 or sampling.max_new_tokens < 1:
                raise EngineError(f"sampling needs n and max_new_tokens of at least 1, got {sampling.n!r} and {sampling.max_new_tokens!r}")
            encoded = self._encode(prompts)
            requests = [self._request(p, ids, sampling, module) for p, ids in zip(prompts, encoded, strict=True)]
            parts = [part for request in requests for part in _split(request, self.config.max_batch_rows)]
            chooser = TokenChooser(temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
            stop = StopRule(self.tokenizer, self._ends, sampling.stop)
            limits = {"max_rows": self.config.max_batch_rows, "max_tokens": self.config.max_batch_tokens}
            for batch in plan_batches([part for _, part in parts], **limits):
                generate_batch(module, batch, chooser=chooser, stop=stop, pad_id=self._pad_id, logprobs=sampling.logprobs)
            for whole, part in parts:
                if part is not whole:
                    whole.samples.extend(part.samples)
        return [self._completions(request, stop) for request in requests]

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """The log-probability of each continuation after its context, under the untempered softmax; tokenised as lm-eval does."""
        return self.score_tokens([encode_pair(self.tokenizer, context, continuation) for context, continuation in pairs])

    def score_tokens(self, pairs: Sequence[TokenPair]) -> list[Scored]:
        """Like :meth:`score`, for pairs of token ids; contexts must not be empty.

        Errors: :class:`EngineError` for an empty context, or a pair longer than the model's context (its last token needs no place in it).
        """
        with self._ready() as module:
            for index, (context, continuation) in enumerate(pairs):
                if not context:
                    raise EngineError(f"pair {index} has no context token to score its continuation after")
                length = len(context) + len(continuation) - 1
                if self.max_length is not None and length > self.max_length:
                    raise EngineError(
                        f"pair {index} has {length + 1:,} tokens ({len(context):,} of context), and the context holds {self.max_length:,}"
                    )
            return score_pairs(
                module,
                [(tuple(context), tuple(continuation)) for context, continuation in pairs],
                pad_id=self._pad_id,
                max_rows=self.config.max_batch_rows,
                max_tokens=self.config.max_batch_tokens,
                max_logits=self.config.max_logits,
            )

    def load_weights(self, weights: Path | Mapping[str, Any], version: int) -> None:
        """Take new weights: a model folder, or the whole ``state_dict()``. Later completions carry ``version``.

        An engine that shares a live module has them already; it takes an empty mapping, or the module's own tensors.

        Errors: :class:`EngineError` or :class:`~steelyard.errors.ModelError`; the engine then keeps the weights it had.
        """
        module = self._open()
        if self._shared:
            if isinstance(weights, Path) or not shares_storage(module, weights):
                raise EngineError("this engine shares its weights with a live module; change the module, and pass an empty mapping here")
        elif isinstance(weights, Path):
            load_folder(module, self.tokenizer, weights, allow_remote_code=self._remote)
        else:
            load_tensors(module, weights)
        self.weight_version = version

    def sleep(self) -> None:
        """Move the weights off the accelerator. A shared module and a model on the CPU stay where they are."""
        module = self._open()
        if self._asleep_from is None and not self._shared and module.device.type != "cpu":
            self._asleep_from = module.device
            _move(module, torch.device("cpu"))
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Undo :meth:`sleep`."""
        module = self._open()
        if self._asleep_from is not None:
            _move(module, self._asleep_from)
            self._asleep_from = None

    def close(self) -> None:
        """Let go of the model; a shared module lives on with its owner."""
        self._module = None

    def _load(self, folder: Path) -> PreTrainedModel:
        device = setup_runtime(device=self.config.device).device
        names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        dtype = names.get(self.config.dtype, torch.float32 if device.type == "cpu" else torch.bfloat16)
        return load_model(folder, dtype=dtype, device=device, attention=self.config.attention, allow_remote_code=self._remote)

    def _context_length(self, module: PreTrainedModel) -> int | None:
        own = getattr(module.config.get_text_config(), "max_position_embeddings", None)
        asked = self.config.max_model_len
        if own is not None and asked is not None and asked > own:
            raise EngineError(f"max_model_len {asked!r} is longer than the model's own context of {own!r} tokens")
        return asked if asked is not None else own

    def _open(self) -> PreTrainedModel:
        if self._module is None:
            raise EngineError("the engine was closed")
        return self._module

    @contextlib.contextmanager
    def _ready(self) -> Iterator[PreTrainedModel]:
        """The module in evaluation mode and without gradients; each part's training flag is put back."""
        module = self._open()
        if self._asleep_from is not None:
            raise EngineError("the engine sleeps; call wake() first")
        training = [part for part in module.modules() if part.training]
        module.train(False)
        autocast = self._shared and self.config.dtype == "bfloat16" and module.dtype == torch.float32
        try:
            with torch.no_grad(), torch.autocast(module.device.type, dtype=torch.bfloat16, enabled=autocast):
                yield module
        finally:
            for part in training:
                part.training = True

    def _encode(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        encoded: list[tuple[int, ...]] = []
        for prompt in prompts:
            if prompt.token_ids is not None:
                encoded.append(tuple(prompt.token_ids))
            elif prompt.messages is not None:
                encoded.append(tuple(encode_prompt(self.tokenizer, prompt.messages)))
            else:
                encoded.append(tuple(encode_text(self.tokenizer, prompt.text or "")))
        return encoded

    def _request(self, prompt: Prompt, ids: tuple[int, ...], sampling: Sampling, module: PreTrainedModel) -> Request:
        if not ids:
            raise EngineError(f"prompt {prompt.id!r} has no tokens; a model continues at least one")
        vocabulary = int(module.config.get_text_config().vocab_size)
        if min(ids) < 0 or max(ids) >= vocabulary:
            bad = next(i for i in ids if not 0 <= i < vocabulary)
            raise EngineError(f"prompt {prompt.id!r} has the token id {bad!r}, and the model knows 0 to {vocabulary - 1}")
        room = sampling.max_new_tokens
        if self.max_length is not None:
            if len(ids) >= self.max_length:
                raise EngineError(
                    f"prompt {prompt.id!r} has {len(ids):,} tokens, and the context holds {self.max_length:,}; "
                    "shorten it or raise the engine's max_model_len"
                )
            room = min(room, self.max_length - len(ids))
        seeds = tuple(derive_seed(sampling.seed, prompt.id, sample) for sample in range(sampling.n))
        return Request(prompt.id, ids, seeds, room)

    def _completions(self, request: Request, stop: StopRule) -> list[Completion]:
        completions = []
        for sample, made in enumerate(request.samples):
            reason: FinishReason = "stop" if made.stopped else "length"
            completions.append(
                Completion(
                    prompt_id=request.prompt_id,
                    sample=sample,
                    token_ids=tuple(made.token_ids),
                    text=stop.text_of(made.token_ids),
                    finish_reason=reason,
                    logprobs=None if made.logprobs is None else tuple(made.logprobs),
                    weight_version=self.weight_version,
                    prompt_token_ids=request.token_ids,
                )
            )
        return completions


def _move(module: torch.nn.Module, device: torch.device) -> None:
    module.to(device)


def _split(request: Request, max_rows: int) -> list[tuple[Request, Request]]:
    """(request, part) for parts of at most ``max_rows`` samples; a request that fits is its own part."""
    if len(request.seeds) <= max_rows:
        return [(request, request)]
    chunks = [request.seeds[start : start + max_rows] for start in range(0, len(request.seeds), max_rows)]
    return [(request, Request(request.prompt_id, request.token_ids, chunk, request.room)) for chunk in chunks]
