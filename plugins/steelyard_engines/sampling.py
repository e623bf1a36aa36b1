"""Choosing the next tokens: temperature, top-k, top-p, and noise that belongs to a sequence and not to its batch.

A token is drawn by the exponential race: with E_i independent standard exponentials, ``argmax_i p_i / E_i`` is distributed as p (the
Gumbel-max trick without its second logarithm; Maddison, Tarlow & Minka, 2014). E_i is a hash of (seed of the sequence, position of the
token, token id), so that a sequence draws the same numbers alone, in a batch and in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NoiseTable", "TokenChooser", "exponential_noise"]

_GOLDEN = 0x9E3779B97F4A7C15
_BLOCK = 2**16
_TOP_P_CANDIDATES = 256


def _signed(value: int, bits: int) -> int:
    """``value`` as the two's complement integer of that width, which is what torch's integer types hold."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _shift_right(x: Tensor, count: int, bits: int) -> Tensor:
    """A logical shift; torch's own keeps the sign."""
    return (x >> count).bitwise_and_((1 << (bits - count)) - 1)


def _mix64(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, 2014) on int64, modulo 2^64."""
    x = (x ^ _shift_right(x, 30, 64)) * _signed(0xBF58476D1CE4E5B9, 64)
    x = (x ^ _shift_right(x, 27, 64)) * _signed(0x94D049BB133111EB, 64)
    return x ^ _shift_right(x, 31, 64)


def _mix32_(x: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 (Appleby) on int32, modulo 2^32, in place."""
    x.bitwise_xor_(_shift_right(x, 16, 32)).mul_(_signed(0x85EBCA6B, 32))
    x.bitwise_xor_(_shift_right(x, 13, 32)).mul_(_signed(0xC2B2AE35, 32))
    return x.bitwise_xor_(_shift_right(x, 16, 32))


class NoiseTable:
    """One well-mixed 32-bit word a token id, made once a vocabulary and device."""

    def __init__(self, vocabulary: int, device: torch.device):
        words = _mix64(torch.arange(1, vocabulary + 1, dtype=torch.int64, device=device) * _signed(_GOLDEN, 64))
        self.words = words.to(torch.int32)  # keeps the low 32 bits


def exponential_noise(seeds: Tensor, position: int, table: NoiseTable) -> Tensor:
    """Standard exponential variates (rows, vocabulary) in float32, a function of (seed, position, token id) alone.

    ``seeds``: int64 (rows,). Two 32-bit halves of a 64-bit key of (seed, position) enter one after the other, so that keys as
    well as tokens are told apart by all their bits.
    """
    key = _mix64(_mix64(seeds) + _signed((position + 1) * _GOLDEN, 64))
    low, high = key.to(torch.int32).unsqueeze(1), (key >> 32).to(torch.int32).unsqueeze(1)
    noise = torch.empty(len(seeds), len(table.words), device=seeds.device)
    # In blocks that stay in a CPU's cache: a hash of this many passes over the whole array would wait for memory in each.
    rows = max(1, (_BLOCK if seeds.device.type == "cpu" else noise.numel()) // len(table.words))
    for start in range(0, len(seeds), rows):
        block = slice(start, start + rows)
        words = _mix32_(table.words ^ low[block])
        words = _mix32_(words.bitwise_xor_(high[block])).bitwise_and_(0x7FFFFFFF)
        # u in (0, 1]; -log1p(-u) has full relative precision where it matters, at small u. The clamp keeps u = 1 (by rounding) finite.
        uniform = noise[block].copy_(words).add_(0.5).mul_(2.0**-31)
        uniform.neg_().log1p_().neg_().clamp_(max=40.0)
    return noise


class TokenChooser:
    """Draws a token for each row of logits, and says how probable it was.

    The distribution is softmax(logits / temperature), cut to the ``top_k`` most probable tokens, then to the smallest set of
    the most probable ones whose mass reaches ``top_p``, and renormalised. Temperature 0 takes the most probable token (the first of
    equals); its log-probability is then the untempered, untruncated model's.
    """

    def __init__(self, *, temperature: float, top_k: int, top_p: float):
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._table: NoiseTable | None = None

    def choose(self, logits: Tensor, seeds: Tensor, position: int, *, logprobs: bool) -> tuple[Tensor, Tensor | None]:
        """Tokens (rows,) int64 and, if asked for, their log-probabilities (rows,) float32.

        ``logits``: (rows, vocabulary); ``seeds``: int64 (rows,); ``position``: index of the token in its completion.
        """
        logits = logits.float()
        if self.temperature == 0:
            tokens = logits.argmax(dim=-1)
            return tokens, self._logprob(logits, tokens) if logprobs else None
        scaled = truncate(logits / self.temperature, top_k=self.top_k, top_p=self.top_p)
        if self._table is None or self._table.words.shape[0] != logits.shape[1]:
            self._table = NoiseTable(logits.shape[1], logits.device)
        noise = exponential_noise(seeds, position, self._table)
        weights = (scaled - scaled.amax(dim=-1, keepdim=True)).exp_()
        tokens = weights.div_(noise).argmax(dim=-1)
        return tokens, self._logprob(scaled, tokens) if logprobs else None

    @staticmethod
    def _logprob(scaled: Tensor, tokens: Tensor) -> Tensor:
        chosen = scaled.gather(1, tokens.unsqueeze(1)).squeeze(1)
        return chosen - scaled.logsumexp(dim=-1)


def truncate(logits: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Logits (rows, vocabulary) with all but the kept tokens at minus infinity; top-k first, then top-p on what it left.

    Tokens equal to the k-th stay. Top-p keeps every token before which the mass of more probable ones is below ``top_p``.
    """
    if 0 < top_k < logits.shape[1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1:
        logits = logits.masked_fill(~_nucleus(logits, top_p), -torch.inf)
    return logits


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Mask of the tokens that top-p keeps. The few hundred most probable ones nearly always suffice, and spare sorting the vocabulary."""
    total = logits.logsumexp(dim=-1, keepdim=True)
    count = min(_TOP_P_CANDIDATES, logits.shape[1])
    values, order = logits.topk(count, dim=-1)
    mass = (values - total).exp().cumsum(dim=-1)
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, order, _before(mass, top_p))
    if count < logits.shape[1]:
        wide = (mass[:, -1] < top_p).nonzero().squeeze(1)
        if len(wide):
            values, order = logits[wide].sort(dim=-1, descending=True, stable=True)
            mass = (values - total[wide]).exp().cumsum(dim=-1)
            kept[wide] = torch.zeros_like(kept[wide]).scatter_(1, order, _before(mass, top_p))
    return kept


def _before(mass: Tensor, top_p: float) -> Tensor:
    """Which tokens, in order of falling probability, have less than ``top_p`` in front of them; the first always."""
    kept = torch.ones_like(mass, dtype=torch.bool)
    kept[:, 1:] = mass[:, :-1] < top_p
    return kept
