"""Checkpoints: bit-exact resume, and refusal of what is torn, foreign or not finite."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from steelyard.errors import ArtifactError, ModelError
from steelyard.run.checkpoints import FolderCheckpoints
from steelyard_torch.batching import StepSampler, count_targets, micro_batches
from steelyard_torch.checkpoint import load_checkpoint, save_checkpoint
from steelyard_torch.device import seed_everything
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.head import token_logprobs
from steelyard_torch.losses import sft_loss
from steelyard_torch.optim import NonFiniteGuard, adamw, learning_rate, optimiser_step

STEPS = 10


def make_rows() -> list[EncodedRow]:
    generator = np.random.RandomState(5)
    lengths = generator.randint(4, 24, size=26)
    return [EncodedRow(generator.randint(2, 31, size=n).astype(np.int32), np.arange(n) >= 2) for n in lengths]


class Training:
    """A small training with everything that has a state: dropout, weight decay, accumulation, Python's and NumPy's generators."""

    def __init__(self, *, tied: bool, init_seed: int = 0) -> None:
        seed_everything(init_seed)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=31,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                attention_dropout=0.3,
                tie_word_embeddings=tied,
            )
        ).train()
        self.model.set_attn_implementation("eager")  # its dropout draws from torch's generator at every forward pass
        self.rows = make_rows()
        self.sampler = StepSampler([len(row) for row in self.rows], batch_size=6, seed=9, max_steps=STEPS)
        self.optimizer = adamw(self.model, lr=1e-2, weight_decay=0.1)
        self.guard = NonFiniteGuard()
        self.draws: list[float] = []
        self.losses: list[float] = []

    def run(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            rows = [self.rows[i] for i in self.sampler.rows(step)]
            totals, total = count_targets(rows), 0.0
            for batch in micro_batches(rows, token_budget=48, pad_id=0):
                scores = token_logprobs(self.model, batch)
                loss = sft_loss(scores.logprobs, scores.rows, scores.n_rows, totals=totals)
                loss.backward()
                total += loss.item()
            rate = learning_rate(step, peak=1e-2, schedule="cosine", total_steps=STEPS, warmup_steps=2)
            optimiser_step(self.model, self.optimizer, loss=total, lr=rate, max_grad_norm=1.0, guard=self.guard, step=step)
            self.losses.append(total)
            self.draws.append(random.random() + np.random.standard_normal() + torch.rand(()).item())

    def save(self, store: FolderCheckpoints, step: int) -> Path:
        return save_checkpoint(
            store, step=step, model=self.model, optimizer=self.optimizer, data=self.sampler.state(step), extra={"guard": self.guard.state()}
        )


@pytest.fixture
def store(tmp_path: Path) -> FolderCheckpoints:
    return FolderCheckpoints(tmp_path / "checkpoints", step="r1/sft", key="k" * 32)


@pytest.mark.parametrize("tied", [False, True])
def test_ten_steps_are_five_steps_a_resume_and_five_steps_bit_for_bit(store: FolderCheckpoints, tied: bool) -> None:
    straight = Training(tied=tied)
    straight.run(0, STEPS)

    first = Training(tied=tied)
    first.run(0, 5)
    first.save(store, 5)
    second = Training(tied=tied, init_seed=77)  # other weights and other generators, as in a new process
    second.run(0, 1)
    found = store.latest()
    assert found is not None
    saved = load_checkpoint(found, model=second.model, optimizer=second.optimizer)
    second.guard.restore(saved.extra["guard"])
    second.losses, second.draws = first.losses, first.draws
    second.run(second.sampler.resume(saved.data), STEPS)

    assert second.losses == straight.losses
    assert second.draws == straight.draws
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
    mine, theirs = second.optimizer.state_dict(), straight.optimizer.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    for index, entries in theirs["state"].items():
        assert all(torch.equal(mine["state"][index][key], entries[key]) for key in entries)


def test_the_generators_matter_to_that_test(store: FolderCheckpoints) -> None:
    straight = Training(tied=False)
    straight.run(0, STEPS)
    first = Training(tied=False)
    first.run(0, 5)
    first.save(store, 5)
    found = store.latest()
    assert found is not None
    load_checkpoint(found, model=first.model, optimizer=first.optimizer)
    torch.manual_seed(123)
    first.run(5, STEPS)
    assert first.losses[:5] == straight.losses[:5]
    assert first.losses[6:] != straight.losses[6:]


def test_nothing_is_pickled(store: FolderCheckpoints) -> None:
    training = Training(tied=True)
    training.run(0, 1)
    folder = training.save(store, 1)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert json.loads((folder / "state.json").read_text())["step"] == 1


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "generators.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(store: FolderCheckpoints, name: str, damage: str) -> None:
    training = Training(tied=False)
    training.run(0, 1)
    good = training.save(store, 1)
    training.run(1, 2)
    torn = training.save(store, 2) / name
    content = bytearray(torn.read_bytes())
    if damage == "remove":
        torn.unlink()
    else:
        content[len(content) // 2] ^= 1
        torn.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    assert store.latest() == good
    assert load_checkpoint(good, model=training.model, optimizer=training.optimizer).step == 1


def test_weights_that_are_not_finite_are_not_saved_and_prune_nothing(store: FolderCheckpoints) -> None:
    training = Training(tied=False)
    training.run(0, 1)
    good = training.save(store, 1)
    with torch.no_grad():
        training.model.model.norm.weight[3] = float("nan")
    for step in (2, 3, 4):
        with pytest.raises(ModelError, match=rf"the model after step {step} has non-finite weights in 'model.norm.weight'"):
            training.save(store, step)
    assert store.latest() == good


def test_a_checkpoint_of_another_model_or_optimiser_changes_nothing(store: FolderCheckpoints) -> None:
    training = Training(tied=False)
    training.run(0, 1)
    folder = training.save(store, 1)
    other = Training(tied=True)
    before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    with pytest.raises(ArtifactError, match=r"another model: tensor 'lm_head.weight'"):
        load_checkpoint(folder, model=other.model, optimizer=other.optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.model.state_dict().items())
    sgd = torch.optim.SGD(training.model.parameters(), lr=0.1)
    with pytest.raises(ArtifactError, match="another optimiser"):
        load_checkpoint(folder, model=training.model, optimizer=sgd)
