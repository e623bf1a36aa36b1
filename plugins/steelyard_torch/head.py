"""Log-probabilities of trained tokens: the transformer's body runs once, the LM head only where a token is trained.

For a vocabulary of 128,000 and answers that are a fifth of the tokens this saves four fifths of the largest matrix product and of the
logits' memory. Each architecture is tested once against its own forward pass; where they differ the whole pass is used.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from steelyard_torch.batching import MicroBatch

__all__ = ["TokenScores", "has_separate_head", "output_layer", "split_by_row", "sum_by_row", "token_logprobs"]

_SEPARABLE: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """Scores of a micro-batch's N targets, in row-major order."""

    logprobs: torch.Tensor
    """(N,) float32, natural logarithm."""
    rows: torch.Tensor
    """(N,) int64, the row in the micro-batch."""
    n_rows: int
    entropy: torch.Tensor | None = None
    """(N,) float32, of the next-token distribution in nats; without gradient."""


def token_logprobs(
    model: PreTrainedModel, batch: MicroBatch, *, temperature: float = 1.0, entropy: bool = False, max_logits: int = 2**25
) -> TokenScores:
    """Log-probabilities of the batch's targets under softmax(logits / temperature).

    Args:
        temperature: that of sampling, where the result is compared with an engine's log-probabilities.
        entropy: also compute the distributions' entropies.
        max_logits: logits kept at once; more are computed in chunks, which the backward pass computes again.
    """
    if not has_separate_head(model):
        logits = model(input_ids=batch.input_ids, attention_mask=_attention_mask(batch), use_cache=False).logits
        chosen = logits.reshape(-1, logits.shape[-1]).index_select(0, batch.target_positions)
        logprobs, entropies = _score(chosen, batch.target_ids, temperature, entropy)
    else:
        hidden = model.base_model(input_ids=batch.input_ids, attention_mask=_attention_mask(batch), use_cache=False)[0]
        hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.target_positions)
        logprobs, entropies = _apply_head(model, hidden, batch.target_ids, temperature, entropy, max_logits)
    return TokenScores(logprobs, batch.target_rows, len(batch), entropies)


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


def _apply_head(
    model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, entropy: bool, max_logits: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    def score(states: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return _score(_logits(model, states), ids, temperature, entropy)

    size = max(1, max_logits // _head(model).weight.shape[0])
    if len(hidden) <= size:
        return score(hidden, targets)
    logprobs: list[torch.Tensor] = []
    entropies: list[torch.Tensor] = []
    for states, ids in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        part = checkpoint(score, states, ids, use_reentrant=False) if torch.is_grad_enabled() else score(states, ids)
        logprobs.append(part[0])
        if part[1] is not None:
            entropies.append(part[1])
    return torch.cat(logprobs), torch.cat(entropies) if entropy else None


def _head(model: PreTrainedModel) -> torch.nn.Linear:
    head = output_layer(model)
    assert head is not None
    return head


def _logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """The LM head, with the scaling that some architectures put behind it."""
    logits: torch.Tensor = _head(model)(hidden)
    config = model.config.get_text_config()
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
        logits = torch.tanh(logits / cap) * cap
    return logits


def _score(logits: torch.Tensor, targets: torch.Tensor, temperature: float, entropy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    logprobs = -F.cross_entropy(logits, targets, reduction="none")
    if not entropy:
        return logprobs, None
    with torch.no_grad():
        every = torch.log_softmax(logits, dim=-1)
        return logprobs, -(every.exp() * every).sum(dim=-1)


def _attention_mask(batch: MicroBatch) -> torch.Tensor | None:
    """``None`` without padding, so that attention may take its faster causal path."""
    return None if batch.tokens == batch.padded_tokens else batch.attention_mask


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
            mine = _logits(model, hidden).float()
    except (AttributeError, TypeError, RuntimeError):
        return False
    finally:
        model.train(was_training)
    return mine.shape == full.shape and torch.allclose(mine, full, rtol=1e-5, atol=1e-5 * float(full.abs().max()))
