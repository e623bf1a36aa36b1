"""Log-probabilities of trained tokens: the transformer's body runs once, the LM head only where a token is trained.

For a vocabulary of 128,000 and answers that are a fifth of the tokens this saves four fifths of the largest matrix product and of the
logits' memory. Each architecture is tested once against its own forward pass; where they differ the whole pass is used.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from steelyard.errors import ModelError
from steelyard_torch.batching import MicroBatch
from steelyard_torch.head_function import HeadOptions, score_tokens
from steelyard_torch.packing import adopt_packable, is_packable, layout_inputs

__all__ = [
    "TokenScores",
    "adopt_scoring",
    "find_last_states",
    "has_separate_head",
    "head_logits",
    "last_states",
    "model_inputs",
    "output_layer",
    "prepare_scoring",
    "score_targets",
    "scoring_facts",
    "split_by_row",
    "sum_by_row",
    "target_states",
    "token_logprobs",
]

_CHUNK = 2**25
"""Logits that are worked on at once."""
_SEPARABLE: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """Scores of a micro-batch's N targets, row by row."""

    logprobs: torch.Tensor
    """(N,) float32, natural logarithm."""
    rows: torch.Tensor
    """(N,) int64, the row in the micro-batch."""
    n_rows: int
    entropy: torch.Tensor | None = None
    """(N,) float32, of the next-token distribution in nats, with gradient."""


def token_logprobs(
    model: PreTrainedModel,
    batch: MicroBatch,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    fp32_head: bool = False,
    max_logits: int = 2**26,
) -> TokenScores:
    """Log-probabilities of the batch's targets under softmax(logits / temperature).

    Args:
        temperature: that of sampling, where the result is compared with an engine's log-probabilities.
        entropy: also compute the distributions' entropies.
        fp32_head: the head's product in float32 under autocast, too (MiniMax-M1, arXiv 2506.13585, section 3.2).
        max_logits: logits kept for the backward pass; where there are more, the rest is computed again.
    """
    batch = batch if batch.layout is None or is_packable(model) else batch.padded()
    # A model that shards its weights makes a forward pass of its own of this function, so that they are gathered for the head as well.
    score = getattr(model, "score_targets", None) or (lambda *args, **kwargs: score_targets(model, *args, **kwargs))
    logprobs, entropies = score(batch, temperature=temperature, entropy=entropy, fp32_head=fp32_head, max_logits=max_logits)
    return TokenScores(logprobs, batch.target_rows, len(batch), entropies)


def score_targets(
    model: PreTrainedModel,
    batch: MicroBatch,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    fp32_head: bool = False,
    max_logits: int = 2**26,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What :func:`token_logprobs` computes, as one forward pass of ``model``: log-probabilities (N,) and, where asked, entropies (N,).

    Raises:
        ModelError: ``fp32_head`` under autocast for a model whose head is not on its own.

    A model that shards its weights binds this to itself as a forward method (``register_fsdp_forward_method(model, "score_targets")``),
    after :func:`prepare_scoring`; :func:`token_logprobs` then calls that.
    """
    if not has_separate_head(model):
        if fp32_head and torch.is_autocast_enabled(batch.input_ids.device.type):
            raise ModelError(
                f"the head of this {type(model).__name__} cannot be told from the rest of it (an adapter on it, or an architecture of its "
                "own), so it cannot compute in float32 under `precision: bf16`; set `fp32_head: false`, or put the head under "
                "adapter.exclude"
            )
        logits = model(**model_inputs(batch)).logits
        chosen = logits.reshape(-1, logits.shape[-1]).index_select(0, batch.target_positions)
        return _score(chosen, batch.target_ids, temperature, entropy)
    hidden = _body_states(model, batch).index_select(0, batch.target_positions)
    return _apply_head(model, hidden, batch.target_ids, temperature, entropy, fp32_head, max_logits)


def target_states(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """(N, H) hidden states of the body's last layer that predict the targets; for a value model's head."""
    batch = batch if batch.layout is None or is_packable(model) else batch.padded()
    return _body_states(model, batch).index_select(0, batch.target_positions)


def last_states(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """(B, H) hidden states of the body's last layer at the rows' last tokens; for a reward model's head."""
    batch = batch if batch.layout is None or is_packable(model) else batch.padded()
    find = getattr(model, "find_last_states", None)
    return find_last_states(model, batch) if find is None else cast("torch.Tensor", find(batch))


def find_last_states(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """:func:`last_states` as one forward pass of ``model``, to be bound to one that shards its weights as :func:`score_targets` is."""
    return _body_states(model, batch).index_select(0, batch.last_positions)


def model_inputs(batch: MicroBatch) -> dict[str, Any]:
    """Keyword arguments of a forward pass over the batch."""
    if batch.layout is not None:
        own = layout_inputs(batch.layout, batch.input_ids.device)
        return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False, **own}
    # None without padding, so that attention may take its faster causal path.
    mask = None if batch.tokens == batch.padded_tokens else batch.attention_mask
    return {"input_ids": batch.input_ids, "attention_mask": mask, "use_cache": False}


def prepare_scoring(model: PreTrainedModel) -> bool:
    """Try what can be tried of a model, :func:`has_separate_head` and :func:`~steelyard_torch.packing.is_packable`; gives the latter."""
    has_separate_head(model)
    return is_packable(model)


def scoring_facts(model: PreTrainedModel) -> dict[str, Any]:
    """What :func:`prepare_scoring` found, for ranks whose model has no weights to try it on; see :func:`adopt_scoring`."""
    packable = prepare_scoring(model)
    return {"packable": packable, "separate_head": has_separate_head(model), "attention": model.config._attn_implementation}


def adopt_scoring(model: PreTrainedModel, facts: Mapping[str, Any]) -> None:
    """Take another rank's word for what :func:`prepare_scoring` would find of the same model."""
    _SEPARABLE[model] = facts["separate_head"]
    if model.config._attn_implementation != facts["attention"]:
        model.set_attn_implementation(facts["attention"])
    adopt_packable(model, facts["packable"])


def has_separate_head(model: PreTrainedModel) -> bool:
    """Whether the head applied to the body's output gives the model's own logits; tried once for each model on eight tokens."""
    if model not in _SEPARABLE:
        _SEPARABLE[model] = _try_separate_head(model)
    return _SEPARABLE[model]


def output_layer(model: PreTrainedModel) -> torch.nn.Linear | None:
    """The LM head, or ``None`` where it is not a linear layer."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head if isinstance(head, torch.nn.Linear) else None


def sum_by_row(values: torch.Tensor, rows: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Sums (n_rows,) of the values (N,) of each row; 0 for a row without any."""
    return values.new_zeros(n_rows).index_add(0, rows, values)


def split_by_row(values: torch.Tensor, rows: torch.Tensor, n_rows: int) -> list[torch.Tensor]:
    """The values (N,) of a micro-batch's targets as one tensor a row; :func:`steelyard_torch.batching.gather_targets` puts them back."""
    counts: list[int] = torch.bincount(rows, minlength=n_rows).tolist()
    return list(torch.split(values, counts))


def _body_states(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """(places, H)."""
    hidden: torch.Tensor = model.base_model(**model_inputs(batch))[0]
    return hidden.reshape(-1, hidden.shape[-1])


def _apply_head(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    entropy: bool,
    fp32_head: bool,
    max_logits: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    head = _head(model)
    vocabulary = head.weight.shape[0]
    if _is_plain(head):
        scale, softcap = _scaling(model)
        own = torch.float32 if fp32_head else _product_dtype(head.weight)
        options = HeadOptions(
            dtype=own,
            scale=scale,
            softcap=softcap,
            temperature=temperature,
            entropy=entropy,
            chunk=max(1, min(_CHUNK, max_logits) // vocabulary),
            kept=max_logits // vocabulary,
        )
        with torch.autocast(hidden.device.type, enabled=False):
            return score_tokens(hidden, head.weight, head.bias, targets, options)

    def score(states: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.autocast(hidden.device.type, enabled=not fp32_head and torch.is_autocast_enabled(hidden.device.type)):
            return _score(head_logits(model, states.float() if fp32_head else states), ids, temperature, entropy)

    logprobs: list[torch.Tensor] = []
    entropies: list[torch.Tensor] = []
    size = max(1, max_logits // vocabulary)
    for states, ids in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        again = torch.is_grad_enabled() and len(hidden) > size
        part = checkpoint(score, states, ids, use_reentrant=False) if again else score(states, ids)
        logprobs.append(part[0])
        if part[1] is not None:
            entropies.append(part[1])
    return torch.cat(logprobs), torch.cat(entropies) if entropy else None


def _is_plain(head: torch.nn.Linear) -> bool:
    """Whether the head is its weights and nothing else: no subclass, hook or parametrisation that a call would bring in."""
    hooks = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks
    return type(head) is torch.nn.Linear and not hooks and head.weight.is_floating_point()


def _product_dtype(weight: torch.Tensor) -> torch.dtype:
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _scaling(model: PreTrainedModel) -> tuple[float, float | None]:
    """What the architecture multiplies its logits by, and the soft cap behind that."""
    config = model.config.get_text_config()
    scale = 1.0
    if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
        scale *= factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        scale /= divisor
    return scale, getattr(config, "final_logit_softcapping", None)  # Gemma 2


def _head(model: PreTrainedModel) -> torch.nn.Linear:
    head = output_layer(model)
    assert head is not None
    return head


def head_logits(model: PreTrainedModel, hidden: torch.Tensor, head: torch.nn.Module | None = None) -> torch.Tensor:
    """Logits (n, V) of hidden states (n, H): the LM head, or ``head`` in its place, with the scaling that some architectures put behind
    it."""
    scale, cap = _scaling(model)
    logits: torch.Tensor = (head or _head(model))(hidden) * scale
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _score(logits: torch.Tensor, targets: torch.Tensor, temperature: float, entropy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    logprobs = -F.cross_entropy(logits, targets, reduction="none")
    if not entropy:
        return logprobs, None
    every = torch.log_softmax(logits, dim=-1)
    return logprobs, -(every.exp() * every).sum(dim=-1)


@torch.no_grad()
def _try_separate_head(model: PreTrainedModel) -> bool:
    head = output_layer(model)
    if model.base_model is model or head is None:
        return False
    was_training = model.training
    model.train(False)
    try:
        ids = (torch.arange(8, device=head.weight.device) % head.weight.shape[0])[None]
        with torch.autocast(head.weight.device.type, enabled=False):
            hidden = model.base_model(input_ids=ids, use_cache=False)[0]
            full = model(input_ids=ids, use_cache=False).logits.float()
            mine = head_logits(model, hidden).float()
    except (AttributeError, TypeError, RuntimeError):
        return False
    finally:
        model.train(was_training)
    scale = float(full.abs().max())
    return mine.shape == full.shape and math.isfinite(scale) and torch.allclose(mine, full, rtol=1e-5, atol=1e-5 * scale)
