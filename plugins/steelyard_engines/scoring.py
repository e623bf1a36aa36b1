"""Log-probabilities of given continuations, the head applied to their positions only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steelyard.records import Scored
from steelyard_engines.generation import forward_options, left_pad

__all__ = ["TokenPair", "encode_pair", "encode_text", "score_pairs"]

TokenPair = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a context, never empty, and of its continuation."""


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The ids of a text as it stands, with the special tokens its tokenizer puts in front, unless it already begins with them."""
    begin = tokenizer.bos_token
    ids: list[int] = tokenizer(text, add_special_tokens=not (begin and text.startswith(begin)))["input_ids"]
    return ids


def encode_pair(tokenizer: PreTrainedTokenizerFast, context: str, continuation: str) -> TokenPair:
    """Token ids by lm-eval's convention: both parts encoded together and cut at the length of the context alone, white space at the
    context's end given to the continuation. An empty context becomes the begin token, or the end token where there is none."""
    if context == "":
        prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        ids: list[int] = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        return ((ids[0],), tuple(ids[1:])) if ids and ids[0] == prefix else ((prefix,), tuple(ids))
    stripped = context.rstrip()
    whole = encode_text(tokenizer, context + continuation)
    length = len(encode_text(tokenizer, stripped)) if stripped else 0
    return tuple(whole[:length]), tuple(whole[length:])


@torch.no_grad()
def score_pairs(
    module: PreTrainedModel, pairs: Sequence[TokenPair], *, pad_id: int, max_rows: int, max_tokens: int, max_logits: int
) -> list[Scored]:
    """One score a pair, in order. Pairs that share all input tokens (the choices of a question, one token each) share a forward pass."""
    groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
    scored = [Scored(0.0, True)] * len(pairs)
    for index, (context, continuation) in enumerate(pairs):
        if continuation:
            groups.setdefault(((context + continuation)[:-1], len(continuation)), []).append(index)
    keep_known = "logits_to_keep" in forward_options(module)
    vocabulary = int(module.config.get_text_config().vocab_size)
    limit = max(1, max_logits // vocabulary)
    for batch in _batches(sorted(groups, key=lambda g: len(g[0]), reverse=True), max_rows, max_tokens, limit, keep_known):
        logits = _continuation_logits(module, batch, pad_id, keep_known)
        log_norm, best = logits.logsumexp(dim=-1), logits.argmax(dim=-1)
        for row, key in enumerate(batch):
            members = groups[key]
            count = key[1]
            targets = torch.tensor([pairs[i][1] for i in members], device=logits.device)
            chosen = logits[row, -count:].gather(1, targets.T).T - log_norm[row, -count:]
            greedy = (targets == best[row, -count:]).all(dim=1).tolist()
            for index, values, is_greedy in zip(members, chosen.tolist(), greedy, strict=True):
                scored[index] = Scored(float(sum(values)), is_greedy, tuple(values))
    return scored


def _batches(
    keys: Sequence[tuple[tuple[int, ...], int]], max_rows: int, max_tokens: int, max_positions: int, keep_known: bool
) -> Iterator[list[tuple[tuple[int, ...], int]]]:
    """Keys, longest first, in batches within every limit; one key may exceed them alone."""
    batch: list[tuple[tuple[int, ...], int]] = []
    longest = 0
    for key in keys:
        width = len(batch[0][0]) if batch else len(key[0])
        kept = max(longest, key[1]) if keep_known else width
        rows = len(batch) + 1
        if batch and (rows > max_rows or rows * width > max_tokens or rows * kept > max_positions):
            yield batch
            batch, longest = [], 0
        batch.append(key)
        longest = max(longest, key[1])
    if batch:
        yield batch


def _continuation_logits(module: PreTrainedModel, batch: Sequence[tuple[tuple[int, ...], int]], pad_id: int, keep_known: bool) -> Tensor:
    """Float32 logits (rows, longest continuation, vocabulary), aligned at the end of each row."""
    ids, mask = left_pad([key[0] for key in batch], pad_id, module.device)
    longest = max(key[1] for key in batch)
    options: dict[str, object] = {"logits_to_keep": longest} if keep_known else {}
    if "position_ids" in forward_options(module):
        options["position_ids"] = (
            torch.arange(ids.shape[1], device=ids.device).expand_as(ids) if mask is None else (mask.cumsum(-1) - 1).clamp_(min=0)
        )
    output = module(input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True, **options)
    logits: Tensor = output.logits[:, -longest:].float()
    return logits
