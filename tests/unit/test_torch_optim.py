"""Decay groups, schedules, clipping, and the guard against non-finite numbers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from steelyard.errors import TrainingError, UsageError
from steelyard_torch.optim import NonFiniteGuard, adamw, learning_rate, optimiser_step, warmup_steps


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=19, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, attention_bias=True
    )
    return LlamaForCausalLM(config)


def backward(model: LlamaForCausalLM, scale: float = 1.0) -> float:
    ids = torch.arange(8)[None] % 19
    loss = model(input_ids=ids, labels=ids).loss * scale
    loss.backward()
    return float(loss.item())


@pytest.mark.parametrize("decay_embeddings", [False, True])
def test_only_matrices_are_decayed_and_embeddings_on_request(model: LlamaForCausalLM, decay_embeddings: bool) -> None:
    optimizer = adamw(model, lr=1e-3, weight_decay=0.1, decay_embeddings=decay_embeddings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == set(names.values())
    expected = {
        name: 0.0 if "norm" in name or "bias" in name or ("embed" in name and not decay_embeddings) else 0.1 for name in names.values()
    }
    assert decay == expected


def test_a_head_tied_to_the_embeddings_counts_as_embedding() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=19, hidden_size=16, num_hidden_layers=0, num_attention_heads=2, tie_word_embeddings=True)
    )
    assert [group["weight_decay"] for group in adamw(model, lr=1e-3, weight_decay=0.1).param_groups] == [0.0]


def test_a_frozen_model_has_nothing_to_optimise(model: LlamaForCausalLM) -> None:
    model.requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter that requires a gradient"):
        adamw(model, lr=1e-3)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_after_the_warm_up_the_schedule_is_that_of_transformers(schedule: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    make = get_linear_schedule_with_warmup if schedule == "linear" else get_cosine_schedule_with_warmup
    theirs = make(optimizer, num_warmup_steps=10, num_training_steps=50)
    for step in range(50):
        if step >= 10:
            mine = learning_rate(step, peak=2.0, schedule=schedule, total_steps=50, warmup_steps=10)  # type: ignore[arg-type]
            assert mine == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_the_warm_up_rises_in_equal_parts_to_the_peak_without_a_wasted_step() -> None:
    rates = [learning_rate(step, peak=1.0, schedule="constant", total_steps=10, warmup_steps=4) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_the_rate_never_falls_below_the_floor_nor_below_zero_after_the_end() -> None:
    assert learning_rate(99, peak=1.0, schedule="linear", total_steps=100, floor=0.1) == 0.1
    assert learning_rate(500, peak=1.0, schedule="cosine", total_steps=100) == 0.0


def test_warm_up_is_a_ratio_or_a_number_of_steps() -> None:
    assert warmup_steps(100, ratio=0.03) == 3
    assert warmup_steps(10, ratio=0.03) == 1
    assert warmup_steps(10, steps=50) == 10
    assert warmup_steps(10) == 0
    with pytest.raises(UsageError, match="not both"):
        warmup_steps(10, ratio=0.1, steps=1)
    with pytest.raises(UsageError, match="between 0 and 1, got 3"):
        warmup_steps(10, ratio=3)


def test_a_step_equals_torchs_own_clipping_and_adamw(model: LlamaForCausalLM) -> None:
    twin = copy.deepcopy(model)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.0)
    mine, guard = adamw(model, lr=1.0), NonFiniteGuard()
    for step in range(3):
        loss = backward(model, scale=5.0)
        outcome = optimiser_step(model, mine, loss=loss, lr=0.01, max_grad_norm=0.5, guard=guard, step=step)
        backward(twin, scale=5.0)
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        theirs.step()
        theirs.zero_grad()
        assert outcome.grad_norm == pytest.approx(norm.item(), rel=1e-6)
        assert outcome.grad_norm > 0.5, "the example must be clipped"
        assert not outcome.skipped
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing_and_is_named(model: LlamaForCausalLM, value: float) -> None:
    optimizer, guard = adamw(model, lr=0.01, weight_decay=0.1), NonFiniteGuard()
    loss = backward(model)
    optimiser_step(model, optimizer, loss=loss, lr=0.01, max_grad_norm=1.0, guard=guard, step=0)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    loss = backward(model)
    model.model.layers[0].mlp.up_proj.weight.grad[0, 0] = value
    outcome = optimiser_step(model, optimizer, loss=loss, lr=0.01, max_grad_norm=1.0, guard=guard, step=1)
    assert outcome.skipped
    assert outcome.reason == "the gradient of 'model.layers.0.mlp.up_proj.weight' is not finite"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[0][name])
    for index, entries in optimizer.state_dict()["state"].items():
        assert all(torch.equal(entries[key], before[1][index][key]) for key in entries)
    assert guard.state() == {"in_a_row": 1, "skipped": 1}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_steps_in_a_row_end_the_training_and_good_ones_reset_the_count(model: LlamaForCausalLM) -> None:
    optimizer, guard = adamw(model, lr=0.01), NonFiniteGuard(limit=2)

    def step(loss: float) -> None:
        backward(model)
        optimiser_step(model, optimizer, loss=loss, lr=0.01, max_grad_norm=None, guard=guard, step=7)

    step(math.nan)
    step(1.0)
    step(math.nan)
    restored = NonFiniteGuard(limit=2)
    restored.restore(guard.state())
    assert restored == guard
    with pytest.raises(TrainingError, match="the loss is nan at step 7, 2 steps in a row"):
        step(math.nan)
    assert guard.skipped == 3
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_weights_that_an_update_left_not_finite_end_the_training_at_once(model: LlamaForCausalLM) -> None:
    """An epsilon below float32's smallest number is 0 there, and a weight without a gradient becomes 0 / 0."""
    optimizer, guard = adamw(model, lr=0.01, eps=1e-50), NonFiniteGuard(limit=5)
    backward(model)
    model.model.norm.weight.grad[3] = 0.0
    optimiser_step(model, optimizer, loss=1.0, lr=0.01, max_grad_norm=None, guard=guard, step=0)
    assert math.isnan(model.model.norm.weight[3].item()), "the example must break the weights"
    told = r"the loss is nan at step 1 since the weights of 'model.embed_tokens.weight' and 1 more are not finite"
    with pytest.raises(TrainingError, match=told):
        optimiser_step(model, optimizer, loss=backward(model), lr=0.01, max_grad_norm=None, guard=guard, step=1)
    assert guard.skipped == 0


def test_a_norm_that_overflows_over_finite_gradients_is_said_to_be_that(model: LlamaForCausalLM) -> None:
    optimizer, guard = adamw(model, lr=0.01), NonFiniteGuard()
    before = copy.deepcopy(model.state_dict())
    loss = backward(model)
    model.model.norm.weight.grad.fill_(2e19)  # its square is over float32's largest number, 3.4e38
    outcome = optimiser_step(model, optimizer, loss=loss, lr=0.01, max_grad_norm=1.0, guard=guard, step=1)
    assert outcome.skipped and outcome.reason == "the gradient norm is inf, though every gradient is finite (it overflows)"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
