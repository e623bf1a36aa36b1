"""What does not fit in memory: said with the lengths, the tokens and the dial to lower, wherever torch notices it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steelyard.errors import TrainingError
from steelyard_rl.config import RlConfig
from steelyard_sft.config import SftConfig
from steelyard_torch.batching import MicroBatch, micro_batches
from steelyard_torch.config import OptimiserOptions
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.memory import memory_errors

SFT = SftConfig(lr=1e-3)


def batch(*lengths: int, packed: bool = False) -> MicroBatch:
    rows = [EncodedRow(np.ones(n, np.int32), np.arange(n) > 0) for n in lengths]
    (made,) = micro_batches(rows, token_budget=10**6, pad_id=0, packed=packed)
    return made


@pytest.mark.parametrize(("packed", "tokens"), [(False, 120), (True, 90)])
def test_the_message_names_rows_lengths_tokens_and_dials(packed: bool, tokens: int) -> None:
    said = (
        rf"out of memory with {tokens} tokens in a micro-batch of 3 rows, the longest of 40; lower `micro_batch_tokens` \(now 16,384\) "
        r"or `max_length` \(now 4,096\), or set `gradient_checkpointing: true`"
    )
    with pytest.raises(TrainingError, match=said), memory_errors(batch(40, 30, 20, packed=packed), SFT):
        torch.empty(2**50)


def test_a_row_alone_is_too_long_whatever_the_budget() -> None:
    frugal = SFT.model_copy(update={"gradient_checkpointing": True})
    with pytest.raises(TrainingError, match=r"lower `max_length` \(now 4,096\)$"), memory_errors(batch(40), frugal):
        raise MemoryError
    without_length = OptimiserOptions(lr=1)
    with pytest.raises(TrainingError, match=r"lower `micro_batch_tokens` .now 16,384., or set"), memory_errors(batch(40), without_length):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_stage_that_samples_names_its_own_lengths() -> None:
    options = RlConfig(lr=1e-3, steps=1)
    with pytest.raises(TrainingError, match=r"`max_prompt_length` .* or `max_new_tokens`"), memory_errors(batch(40, 30), options):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="size"), memory_errors(batch(4), SFT):
        torch.ones(2) + torch.ones(3)


def test_an_operation_without_a_deterministic_form_names_the_dial() -> None:
    refused = "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'."
    told = r"^cumsum_cuda_kernel does not have a deterministic implementation; set `deterministic: false`"
    with pytest.raises(TrainingError, match=told), memory_errors(batch(4), SFT):
        raise RuntimeError(refused)


CHILD = """
import json, resource, sys
from contextlib import ExitStack
from pathlib import Path
import torch
torch.set_num_threads(1)
from steelyard.errors import TrainingError
from steelyard.plugins import load_registry
from steelyard_sft.config import SftConfig
from steelyard_sft import supervised
from steelyard_torch.trainee import Trainee
sys.path.insert(0, sys.argv[1])
from conftest import Bench

def room(mebibytes):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + mebibytes * 2**20, resource.RLIM_INFINITY))

def message(action):
    try:
        action()
    except TrainingError as error:
        return str(error)

root = Path(sys.argv[2])
with ExitStack() as closing:
    bench = Bench(root, root / "models", load_registry(), closing)
    model = bench.model(hidden_size=256, intermediate_size=2048, num_hidden_layers=3, max_position_embeddings=1024)
    data = bench.data([{"messages": bench.chat("ab" * 220, "cd" * 30)}] * 8)
    options = SftConfig(lr=1e-3, batch_size=8, max_steps=1, max_length=1024)
    said = {}
    wide = bench.model(hidden_size=512, intermediate_size=8192)  # 218 MB of moments
    trainee = Trainee(bench.context(options, model=wide, data=data, name="step"), options)
    trainee.schedule(1)
    for parameter in trainee.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    room(4)
    said["step"] = message(lambda: trainee.update(1.0, tokens=1, trained_tokens=1, sequences=1, metrics={}))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    for name, owner, what in (("forward", supervised, "token_logprobs"), ("backward", torch.Tensor, "backward")):
        plain = getattr(owner, what)
        def limited(*args, plain=plain, **keys):
            room(4)
            return plain(*args, **keys)
        setattr(owner, what, limited)
        context = bench.context(options, model=model, data=data, name=name)
        said[name] = message(lambda: supervised.Sft(options).run(context))
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        setattr(owner, what, plain)
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits a process by what Linux knows of it")
def test_a_process_that_runs_out_of_memory_says_so_in_forward_backward_and_step(tmp_path: Path) -> None:
    """For real: a child whose address space is limited once its model is there."""
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path)]
    # So that what is freed goes back to the system, and serves no allocation beyond the limit.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run: Any = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    said = json.loads(run.stdout.splitlines()[-1])
    for where in ("forward", "backward"):
        assert "8 rows, the longest of 503" in said[where], said
        assert "lower `micro_batch_tokens` (now 16,384) or `max_length` (now 1,024)" in said[where]
    assert said["step"].startswith("out of memory in the optimiser's step: AdamW keeps two numbers beside each of "), said
