"""Precision, seeds, gradient checkpointing, and the count of floating-point operations."""

from __future__ import annotations

import os
import platform
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from steelyard.errors import ModelError, UsageError
from steelyard_torch.batching import collate, pack
from steelyard_torch.device import Runtime, compile_layers, seed_everything, set_gradient_checkpointing, setup_runtime
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.flops import mfu, training_flops
from steelyard_torch.head import prepare_scoring, token_logprobs


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
    )


def row(length: int, targets: int) -> EncodedRow:
    return EncodedRow(np.arange(length, dtype=np.int32) % 61, np.arange(length) >= length - targets)


def gradients(model: LlamaForCausalLM) -> list[torch.Tensor]:
    model.zero_grad()
    token_logprobs(model, collate([row(12, 5), row(7, 3)], pad_id=0)).logprobs.sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_seeding_repeats_every_generator() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    seed_everything(2**62 + 1)
    first = draw()
    seed_everything(2**62 + 1)
    assert draw() == first


def test_gradient_checkpointing_changes_no_gradient(model: LlamaForCausalLM) -> None:
    model.train()
    plain = gradients(model)
    set_gradient_checkpointing(model, True)
    assert model.is_gradient_checkpointing
    for mine, theirs in zip(gradients(model), plain, strict=True):
        assert torch.equal(mine, theirs)
    set_gradient_checkpointing(model, False)
    assert not model.is_gradient_checkpointing


def test_bf16_computes_in_bfloat16_over_float32_weights(model: LlamaForCausalLM) -> None:
    batch = collate([row(12, 5)], pad_id=0)
    exact = token_logprobs(model, batch).logprobs
    runtime = setup_runtime(device="cpu", precision="bf16")
    with runtime.autocast():
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
        scores = token_logprobs(model, batch)
    scores.logprobs.sum().backward()
    assert scores.logprobs.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert 0 < (scores.logprobs - exact).abs().max() < 0.1
    with Runtime(torch.device("cpu")).autocast():
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="torch sees no CUDA device"):
        setup_runtime(device="cuda")
    assert setup_runtime().device.type == "cpu"


def test_threads_are_set_as_asked() -> None:
    before = torch.get_num_threads()
    try:
        setup_runtime(device="cpu", threads=1)
        assert torch.get_num_threads() == 1
        with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
            setup_runtime(threads=0)
    finally:
        torch.set_num_threads(before)


def test_the_flop_count_is_that_of_torchs_counter_but_for_the_half_of_attention_that_is_masked(model: LlamaForCausalLM) -> None:
    length, targets = 48, 11
    model.set_attn_implementation("eager")
    batch = collate([row(length, targets)], pad_id=0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        token_logprobs(model, batch)  # the first call also tries the head
        counted_with_trial = counter.get_total_flops()
        token_logprobs(model, batch)
        counted = counter.get_total_flops() - counted_with_trial
    mine = training_flops(model, tokens=length, trained_tokens=targets, mean_length=length, backward=False)
    assert mine is not None
    masked_half = 2 * 3 * 32 * length * length  # layers · heads · head_dim · length², the products with later positions
    rotary = 3 * 2 * 4 * length  # the small product that makes the rotary angles
    assert counted == pytest.approx(mine + masked_half, abs=rotary)
    assert training_flops(model, tokens=length, trained_tokens=targets, mean_length=length) == 3 * mine


_FAULTS = """
import resource, sys, torch
from steelyard_torch.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range(24):
    if step == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = torch.zeros(10 << 20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such dials")
def test_kept_memory_is_not_handed_out_page_by_page_again() -> None:
    """Blocks of 40 MiB, above what glibc would come to keep by itself."""
    faults = {}
    for how in ("keep", "free"):
        command = [sys.executable, "-c", _FAULTS, how]
        faults[how] = int(subprocess.run(command, check=True, capture_output=True, text=True, env=_environment()).stdout)
    assert faults["keep"] < 0.2 * faults["free"]


def test_training_keeps_freed_memory(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from steelyard_torch import trainee
    from steelyard_torch.config import OptimiserOptions

    asked: list[bool] = []
    monkeypatch.setattr(trainee, "keep_freed_memory", lambda: asked.append(True))
    options = OptimiserOptions(lr=1e-3)
    made = trainee.Trainee(bench.context(options, model=bench.model(), data=None), options)
    assert asked == ([True] if made.runtime.device.type == "cpu" else [])


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def test_utilisation_is_not_reported_where_a_number_is_unknown() -> None:
    assert mfu(1e12, 2.0, peak_flops=1e12) == 0.5
    assert mfu(1e12, 2.0, peak_flops=None) is None
    assert mfu(None, 2.0, peak_flops=1e12) is None


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_give_the_same_gradients_for_lines_of_any_length(checkpointing: bool, model: LlamaForCausalLM) -> None:
    model.train()
    assert prepare_scoring(model)
    batches = [pack([row(length, 4) for length in lengths]) for lengths in ((12, 9), (20, 7, 5))]

    def of_packed() -> list[torch.Tensor]:
        model.zero_grad()
        for batch in batches:
            token_logprobs(model, batch).logprobs.sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = of_packed()
    set_gradient_checkpointing(model, checkpointing)
    compile_layers(model)
    for mine, theirs in zip(of_packed(), plain, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_compiling_without_a_compiler_is_refused(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ModelError, match=r"needs a C\+\+ compiler"):
        compile_layers(model)
