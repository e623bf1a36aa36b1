"""Equal runs are equal bit for bit: every kind of stage, with dropout, two threads, and in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from steelyard.plugins import load_registry
from steelyard_torch.device import setup_runtime
from steelyard_torch.models import weights_sha256

SHAPES: dict[str, dict[str, Any]] = {
    "sft": {"batch_size": 6, "max_steps": 2, "adapter": {"rank": 4, "dropout": 0.2}},
    "pretrain": {"batch_size": 6, "max_steps": 2},
    "dpo": {"batch_size": 6, "max_steps": 2, "nll_coefficient": 0.1},
    "distill": {"batch_size": 6, "max_steps": 2},
    "grpo": {
        "steps": 1,
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "max_new_tokens": 4,
        "minibatches": 2,
        "kl_coefficient": 0.1,
        "monitors": {"patterns": False},
    },
}
DROPOUT = {"attention_dropout": 0.2}


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def run(bench: Any, kind: str, name: str, *, seed: int = 7) -> str:
    """A stage's run, as the hash of the weights that come out."""
    registry = load_registry()
    words = ["abc", "de", "fghi", "jk", "lmn", "op"]
    rows = [
        {
            "id": word,
            "messages": bench.chat(word, word[::-1])[: 1 if kind == "grpo" else 2],
            "text": f"{word} = {word[::-1]}",
            "prompt": bench.chat(word, "")[:1],
            "chosen": bench.chat("", word[::-1])[1:],
            "rejected": bench.chat("", "no")[1:],
            "verifier": "some",
            "reference": "a",
        }
        for word in words
    ]
    spec = registry.get("stages", kind)
    config = registry.configure(spec, {"lr": 1e-2, "micro_batch_tokens": 96, **SHAPES[kind]})
    context = bench.context(
        config,
        model=bench.model(**DROPOUT),
        data=bench.data(rows, f"data-{kind}"),
        name=name,
        seed=seed,
        reference=bench.model(seed=1),
        verifiers=bench.verifiers({"some": ("regex", {"pattern": "[a-m]"}, None)}) if kind == "grpo" else None,
    )
    return weights_sha256(registry.load(spec)(config).run(context).model)


@pytest.mark.parametrize("kind", list(SHAPES))
def test_a_stage_that_is_run_again_gives_the_very_same_weights(bench: Any, kind: str) -> None:
    torch.set_num_threads(2)
    first = run(bench, kind, "first")
    torch.rand(17)  # whatever drew from the generators before
    assert run(bench, kind, "second") == first
    torch.set_num_threads(1)
    assert run(bench, kind, "other", seed=8) != first, "the seed must matter, or this shows nothing"


CHILD = """
import json, sys
from contextlib import ExitStack
from pathlib import Path
import torch
torch.set_num_threads(2)
sys.path.insert(0, sys.argv[1])
from conftest import Bench
from test_torch_determinism import SHAPES, load_registry, run
root = Path(sys.argv[2])
with ExitStack() as closing:
    bench = Bench(root, root / "models", load_registry(), closing)
    print(json.dumps({kind: run(bench, kind, kind) for kind in SHAPES}))
"""


@pytest.mark.slow
def test_another_process_gives_the_very_same_weights(bench: Any, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    mine = {kind: run(bench, kind, kind) for kind in SHAPES}
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path / "child")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == mine


def test_the_switch_is_torchs_strict_one_and_none_leaves_it() -> None:
    """The mild one, which warns, lets attention's backward pass on CUDA be nondeterministic."""
    setup_runtime(device="cpu", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    setup_runtime(device="cpu")
    assert torch.are_deterministic_algorithms_enabled()
    setup_runtime(device="cpu", deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", list(SHAPES))
def test_one_gpu_gives_the_very_same_weights_twice(bench: Any, kind: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    assert run(bench, kind, "first") == run(bench, kind, "second")
