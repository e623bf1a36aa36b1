"""The noise that tokens are drawn by, and the truncation of distributions."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from steelyard_engines.sampling import NoiseTable, TokenChooser, exponential_noise, truncate


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def seeds(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int64) * 7_919


def test_noise_is_standard_exponential() -> None:
    """Kolmogorov-Smirnov against the exponential distribution; the seeds are fixed, so this cannot fail by chance later."""
    table = NoiseTable(500, torch.device("cpu"))
    noise = exponential_noise(seeds(400), 3, table).flatten().numpy()
    assert stats.kstest(noise, "expon").pvalue > 0.01


def test_noise_of_neighbouring_seeds_positions_and_tokens_is_uncorrelated() -> None:
    table = NoiseTable(2_000, torch.device("cpu"))
    noise = exponential_noise(seeds(64), 0, table)
    later = exponential_noise(seeds(64), 1, table)
    for a, b in ((noise[:-1], noise[1:]), (noise, later), (noise[:, :-1], noise[:, 1:])):
        # The standard error of a correlation of some 10^5 independent pairs is 0.003.
        assert abs(stats.pearsonr(a.flatten(), b.flatten()).statistic) < 0.015


def test_noise_depends_on_seed_position_and_token_alone() -> None:
    table = NoiseTable(70_000, torch.device("cpu"))  # more than one block of rows
    noise = exponential_noise(seeds(5), 2, table)
    alone = torch.cat([exponential_noise(seeds(5)[i : i + 1], 2, table) for i in range(5)])
    assert torch.equal(noise, alone)
    assert torch.equal(noise[:, :100], exponential_noise(seeds(5), 2, NoiseTable(100, torch.device("cpu"))))


def test_noise_is_the_declared_hash() -> None:
    """Against the two published finalisers written out in Python's integers, without overflow, sign or blocks."""
    chosen = [0, 1, 2**62 + 5]
    noise = exponential_noise(torch.tensor(chosen), 11, NoiseTable(4, torch.device("cpu")))
    expected = [[reference_noise(seed, 11, token) for token in range(4)] for seed in chosen]
    assert torch.allclose(noise, torch.tensor(expected), rtol=1e-5)


GOLDEN_RATIO = 0x9E3779B97F4A7C15


def splitmix64(x: int) -> int:
    x %= 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def murmur32(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def reference_noise(seed: int, position: int, token: int) -> float:
    key = splitmix64(splitmix64(seed) + (position + 1) * GOLDEN_RATIO)
    word = splitmix64((token + 1) * GOLDEN_RATIO) % 2**32
    word = murmur32(murmur32(word ^ (key % 2**32)) ^ (key >> 32)) % 2**31
    return -math.log1p(-(word + 0.5) / 2**31)


def test_draws_follow_the_distribution() -> None:
    """Chi-square of 40,000 draws against softmax."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -3.0, 0.5]])
    chooser = TokenChooser(temperature=0.8, top_k=0, top_p=1.0)
    tokens, _ = chooser.choose(logits.expand(40_000, -1), seeds(40_000), 0, logprobs=False)
    counts = torch.bincount(tokens, minlength=6).numpy()
    expected = (logits[0] / 0.8).softmax(-1).double().numpy()
    assert stats.chisquare(counts, expected / expected.sum() * 40_000).pvalue > 0.01


def test_top_k_keeps_k_tokens_and_their_order_of_draws() -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(1))
    kept = truncate(logits, top_k=7, top_p=1.0)
    assert (kept > -torch.inf).sum(-1).tolist() == [7] * 50
    assert torch.equal(kept.argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize("vocabulary", [40, 3_000])
@pytest.mark.parametrize("scale", [0.01, 2.0, 20.0])
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(vocabulary: int, scale: float) -> None:
    """Both the short way and the sort of the whole vocabulary (flat distributions), against the definition."""
    logits = (torch.randn(20, vocabulary, generator=torch.Generator().manual_seed(2)) * scale).double()
    kept = truncate(logits, top_k=0, top_p=0.9) > -torch.inf
    for row, mask in zip(logits.softmax(-1), kept, strict=True):
        chosen = row[mask]
        assert chosen.sum() >= 0.9 - 1e-9
        assert chosen.sum() - chosen.min() < 0.9
        assert mask.all() or row[~mask].max() <= chosen.min()


def test_greedy_ignores_truncation_and_seed() -> None:
    logits = torch.randn(10, 50, generator=torch.Generator().manual_seed(3))
    tokens, logprobs = TokenChooser(temperature=0, top_k=1, top_p=0.1).choose(logits, seeds(10), 0, logprobs=True)
    assert torch.equal(tokens, logits.argmax(-1))
    assert logprobs is not None
    assert torch.allclose(logprobs, logits.log_softmax(-1).amax(-1))
