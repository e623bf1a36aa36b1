"""The LM head on trained positions against the models' own forward passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from steelyard.errors import ModelError
from steelyard_torch.batching import MicroBatch, collate, gather_targets, micro_batches
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.head import has_separate_head, score_targets, split_by_row, sum_by_row, target_states, token_logprobs
from steelyard_torch.head_function import HeadOptions, score_tokens

VOCABULARY = 37
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
ARCHITECTURES = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "gemma2-softcap": ("gemma2", {"final_logit_softcapping": 0.05}),
    "cohere-scale": ("cohere", {"logit_scale": 0.25}),
    "granite-scaling": ("granite", {"logits_scaling": 4.0}),
}


def model_of(name: str) -> PreTrainedModel:
    model_type, changes = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SHAPE, "initializer_range": 0.3, **changes})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def rows(seed: int = 0) -> list[EncodedRow]:
    random = np.random.RandomState(seed)
    made = []
    for length in (9, 4, 14, 7):
        trained = random.rand(length) < 0.5
        trained[0], trained[-1] = False, True
        made.append(EncodedRow(random.randint(2, VOCABULARY, size=length).astype(np.int32), trained))
    return made


def reference_logprobs(model: PreTrainedModel, row: EncodedRow, temperature: float = 1.0) -> torch.Tensor:
    """Straight from the model's own logits, one row at a time and without padding."""
    ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
    logprobs = torch.log_softmax(model(input_ids=ids).logits[0].double() / temperature, dim=-1)
    places = torch.from_numpy(np.flatnonzero(row.trained))
    return logprobs[places - 1, ids[0, places]]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_trained_tokens_are_those_of_the_full_forward_pass(name: str, temperature: float) -> None:
    model = model_of(name)
    assert has_separate_head(model)
    data = rows()
    batch = collate(data, pad_id=0)
    with torch.no_grad():
        scores = token_logprobs(model, batch, temperature=temperature)
        expected = torch.cat([reference_logprobs(model, row, temperature) for row in data])
    torch.testing.assert_close(scores.logprobs.double(), expected, atol=3e-6, rtol=1e-6)


def test_the_logits_behind_it_are_the_models_own_to_a_millionth() -> None:
    model = model_of("llama")
    batch = collate(rows()[:1], pad_id=0)
    with torch.no_grad():
        own = torch.log_softmax(model(input_ids=batch.input_ids).logits, dim=-1).reshape(-1, VOCABULARY)
        expected = own[batch.target_positions, batch.target_ids]
        assert (token_logprobs(model, batch).logprobs - expected).abs().max() < 1e-6


def test_a_head_that_cannot_be_taken_apart_falls_back_to_the_whole_pass() -> None:
    model = model_of("llama")
    # An architecture with a scaling of its own that no field of its config names.
    model.register_forward_hook(lambda _module, _args, output: setattr(output, "logits", output.logits * 3.0))
    assert not has_separate_head(model)
    data = rows()
    with torch.no_grad():
        scores = token_logprobs(model, collate(data, pad_id=0))
        expected = torch.cat([reference_logprobs(model, row) for row in data])
    torch.testing.assert_close(scores.logprobs.double(), expected, atol=3e-6, rtol=1e-6)


def test_a_float32_head_is_refused_where_the_head_cannot_be_taken_apart() -> None:
    model = model_of("llama")
    model.register_forward_hook(lambda _module, _args, output: setattr(output, "logits", output.logits * 3.0))
    batch = collate(rows(), pad_id=0)
    with torch.no_grad():
        in_fp32 = token_logprobs(model, batch, fp32_head=True).logprobs  # There is nothing else to compute in.
        torch.testing.assert_close(in_fp32, token_logprobs(model, batch).logprobs)
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ModelError, match=r"set `fp32_head: false`"):
            token_logprobs(model, batch, fp32_head=True)


def test_trying_the_head_leaves_the_model_in_training_mode() -> None:
    model = model_of("llama").train()
    assert has_separate_head(model)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_chunks_change_neither_values_nor_gradients() -> None:
    model = model_of("llama-tied")
    batch = collate(rows(), pad_id=0)

    def gradients(max_logits: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        scores = token_logprobs(model, batch, max_logits=max_logits, entropy=True)
        scores.logprobs.square().sum().backward()
        return scores.logprobs.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, chunked = gradients(2**25), gradients(3 * VOCABULARY)
    torch.testing.assert_close(chunked[0], whole[0], atol=1e-6, rtol=1e-6)
    for mine, theirs in zip(chunked[1], whole[1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_entropy_is_that_of_the_next_token_at_the_temperature() -> None:
    model = model_of("qwen3")
    data = rows()[:1]
    with torch.no_grad():
        scores = token_logprobs(model, collate(data, pad_id=0), temperature=0.5, entropy=True)
        logits = model(input_ids=torch.from_numpy(data[0].input_ids.astype(np.int64))[None]).logits[0] / 0.5
    expected = torch.distributions.Categorical(logits=logits).entropy()[torch.from_numpy(np.flatnonzero(data[0].trained)) - 1]
    assert scores.entropy is not None
    torch.testing.assert_close(scores.entropy, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("max_logits", [2**26, 2 * VOCABULARY])
def test_gradients_of_logprobs_and_entropies_are_those_of_the_full_forward_pass(name: str, max_logits: int) -> None:
    model, data = model_of(name), rows()
    batch = collate(data, pad_id=0)
    torch.manual_seed(1)
    weights = torch.randn(2, len(batch.target_ids))

    def gradients(logprobs: torch.Tensor, entropies: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (weights[0] * logprobs + weights[1] * entropies).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    scores = token_logprobs(model, batch, temperature=0.7, entropy=True, max_logits=max_logits)
    assert scores.entropy is not None
    mine = gradients(scores.logprobs, scores.entropy)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.flatten(0, 1)[batch.target_positions] / 0.7
    full = torch.distributions.Categorical(logits=logits)
    theirs = gradients(full.log_prob(batch.target_ids), full.entropy())
    assert mine.keys() == theirs.keys()
    for parameter, gradient in mine.items():
        scale = float(theirs[parameter].abs().max())
        torch.testing.assert_close(gradient, theirs[parameter], atol=1e-5 * max(1.0, scale), rtol=1e-4)


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("kept", [0, 3, 100])
def test_the_heads_own_derivative_passes_finite_differences(softcap: float | None, kept: int) -> None:
    torch.manual_seed(0)
    # The function works in float32, so the steps are large and the check is as loose as that.
    hidden, weight, bias = torch.randn(5, 4), torch.randn(7, 4), torch.randn(7)
    inputs = [states.requires_grad_() for states in (hidden, weight, bias)]
    targets = torch.tensor([0, 3, 6, 2, 2])
    options = HeadOptions(torch.float32, scale=0.5, softcap=softcap, temperature=1.3, entropy=True, chunk=2, kept=kept)

    def value(*states: torch.Tensor) -> torch.Tensor:
        logprobs, entropies = score_tokens(states[0], states[1], states[2], targets, options)
        assert entropies is not None
        return torch.stack([logprobs, entropies])

    assert torch.autograd.gradcheck(value, inputs, eps=1e-2, atol=2e-3, rtol=2e-2)


def test_a_head_without_gradient_for_its_weights_gives_that_of_the_states() -> None:
    model = model_of("qwen3")
    batch = collate(rows(), pad_id=0)
    token_logprobs(model, batch).logprobs.sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.lm_head.requires_grad_(False)
    token_logprobs(model, batch).logprobs.sum().backward()
    assert model.lm_head.weight.grad is None
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight.grad, expected["model.layers.0.mlp.up_proj.weight"])


def test_under_autocast_the_head_computes_in_half_precision_unless_asked_otherwise() -> None:
    model = model_of("qwen3")
    batch = collate(rows(), pad_id=0)
    with torch.no_grad():
        exact = token_logprobs(model, batch).logprobs
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half, full = (token_logprobs(model, batch, fp32_head=wide).logprobs for wide in (False, True))
            states = target_states(model, batch)
        expected = torch.log_softmax(model.lm_head(states.float()), dim=-1).gather(1, batch.target_ids[:, None])[:, 0]
    assert half.dtype == full.dtype == torch.float32
    torch.testing.assert_close(full, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(half, expected, atol=1e-4)
    torch.testing.assert_close(half, exact, atol=0.3, rtol=0.1)


def test_a_bound_scoring_method_of_the_model_is_what_scores() -> None:
    """Sharding binds one, so that its hooks run around body and head together."""
    model = model_of("llama")
    batch = collate(rows(), pad_id=0)
    expected = token_logprobs(model, batch, temperature=0.5).logprobs
    calls = []

    def bound(*args: object, **kwargs: object) -> object:
        calls.append(kwargs)
        return score_targets(model, *args, **kwargs)  # type: ignore[arg-type]

    model.score_targets = bound
    assert torch.equal(token_logprobs(model, batch, temperature=0.5).logprobs, expected)
    assert calls[0]["temperature"] == 0.5


def test_a_batch_without_targets_gives_nothing_and_a_zero_gradient() -> None:
    model = model_of("llama")
    untrained = EncodedRow(np.arange(2, 6, dtype=np.int32), np.zeros(4, dtype=np.bool_))
    scores = token_logprobs(model, collate([untrained], pad_id=0))
    assert scores.logprobs.shape == (0,)
    scores.logprobs.sum().backward()


def test_sums_and_splits_by_row_keep_rows_without_targets() -> None:
    values, of_row = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2])
    assert sum_by_row(values, of_row, 4).tolist() == [3.0, 0.0, 4.0, 0.0]
    assert [part.tolist() for part in split_by_row(values, of_row, 4)] == [[1.0, 2.0], [], [4.0], []]


def test_splitting_and_gathering_are_inverse_over_other_micro_batches() -> None:
    model, data = model_of("llama"), rows()

    def score(batch: MicroBatch) -> torch.Tensor:
        with torch.no_grad():
            return token_logprobs(model, batch).logprobs

    kept: list[torch.Tensor] = [torch.empty(0)] * len(data)
    for batch in micro_batches(data, token_budget=16, pad_id=0):
        for place, values in zip(batch.order, split_by_row(score(batch), batch.target_rows, len(batch)), strict=True):
            kept[place] = values
    whole = collate(data, pad_id=0)
    torch.testing.assert_close(gather_targets(whole, kept), score(whole), atol=1e-5, rtol=1e-5)
