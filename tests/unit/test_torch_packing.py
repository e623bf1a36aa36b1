"""Packed micro-batches against the same rows padded: values and gradients, over architectures, prefixes and windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from steelyard_torch.batching import MicroBatch, collate, micro_batches, pack
from steelyard_torch.device import set_gradient_checkpointing
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.head import last_states, split_by_row, target_states, token_logprobs
from steelyard_torch.packing import Layout, Segment, is_packable, packed_attention

VOCABULARY = 41
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
    "initializer_range": 0.2,
}
ARCHITECTURES = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen2-window-in-one-layer": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "gemma2-softcap-window": ("gemma2", {"sliding_window": 6, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "mistral-window": ("mistral", {"sliding_window": 6}),
}


def model_of(name: str) -> PreTrainedModel:
    model_type, changes = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SHAPE, **changes}), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # Weights of 1 would hide a norm applied to the wrong place.
                parameter.add_(torch.rand_like(parameter) * 0.3)
    return model


def grouped_rows(lengths: Sequence[tuple[int, Sequence[int]]], seed: int = 0) -> tuple[list[EncodedRow], list[int]]:
    """Rows of groups, each a common prefix and continuations, and their groups' numbers; some tokens of the prefixes are trained too."""
    random = np.random.RandomState(seed)
    rows, groups = [], []
    for group, (prefix, continuations) in enumerate(lengths):
        shared = random.randint(2, VOCABULARY, size=prefix)
        for length in continuations:
            ids = np.concatenate([shared, random.randint(2, VOCABULARY, size=length)]).astype(np.int32)
            trained = random.rand(len(ids)) < 0.6
            trained[prefix : prefix + 1] = trained[-1] = True
            rows.append(EncodedRow(ids, trained, len(rows)))
            groups.append(group)
    return rows, groups


GROUPS = [(12, (7, 1, 4)), (0, (9,)), (9, (3, 8)), (2, (5, 6))]


def scored(model: PreTrainedModel, batches: Sequence[MicroBatch], count: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Each row's log-probabilities, and the gradients of a function of them that weighs every token differently."""
    model.zero_grad()
    values: list[torch.Tensor] = [torch.empty(0)] * count
    for batch in batches:
        scores = token_logprobs(model, batch, temperature=0.8)
        for place, part in zip(batch.order, split_by_row(scores.logprobs, scores.rows, scores.n_rows), strict=True):
            values[place] = part.detach()
            (part * torch.linspace(0.2 + place, 1.5, len(part))).sum().backward(retain_graph=True)
    return values, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("training", [False, True])
def test_packed_rows_have_the_values_and_gradients_of_padded_ones(name: str, training: bool) -> None:
    model = model_of(name).train(training)
    rows, groups = grouped_rows(GROUPS)
    padded = scored(model, [collate(rows, pad_id=0)], len(rows))
    assert is_packable(model)
    for budget, whole, expected_batches in ((10**6, True, 1), (30, True, 3), (20, False, 5)):
        batches = micro_batches(rows, token_budget=budget, pad_id=0, groups=groups, whole=whole, packed=True)
        assert len(batches) == expected_batches
        values, gradients = scored(model, batches, len(rows))
        for mine, theirs in zip(values, padded[0], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        assert gradients.keys() == padded[1].keys()
        for parameter, gradient in gradients.items():
            scale = max(1.0, float(padded[1][parameter].abs().max()))
            torch.testing.assert_close(gradient, padded[1][parameter], atol=1e-5 * scale, rtol=1e-5, msg=lambda m, p=parameter: f"{p}: {m}")


def test_a_common_prefix_goes_through_the_model_once() -> None:
    rows, groups = grouped_rows([(12, (7, 1, 4)), (2, (5, 6))])
    (batch,) = micro_batches(rows, token_budget=10**6, pad_id=0, groups=groups, packed=True)
    assert batch.padded_tokens == (12 + 7 + 1 + 4) + (2 + 5 + 2 + 6)  # Two tokens are too few to share.
    assert batch.tokens == sum(map(len, rows))
    assert batch.layout is not None and batch.layout.tokens == batch.padded_tokens
    (apart,) = micro_batches(rows, token_budget=10**6, pad_id=0, packed=True)
    assert apart.padded_tokens == apart.tokens


def test_equal_rows_share_all_but_their_last_token() -> None:
    row = EncodedRow(np.arange(2, 22, dtype=np.int32), np.ones(20, dtype=np.bool_))
    batch = pack([row, row], groups=[2])
    assert batch.padded_tokens == 21
    assert batch.target_counts.tolist() == [19, 19]
    model = model_of("llama")
    mine, theirs = (scored(model, [b], 2)[0] for b in (batch, collate([row, row], pad_id=0)))
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_values_and_reward_heads_read_the_same_states_packed_and_padded() -> None:
    model = model_of("qwen3").eval()
    rows, groups = grouped_rows(GROUPS)
    packed = pack(rows, groups=[groups.count(g) for g in sorted(set(groups))])
    padded = collate(rows, pad_id=0)
    assert is_packable(model)
    with torch.no_grad():
        for states in (target_states, last_states):
            torch.testing.assert_close(states(model, packed), states(model, padded), atol=1e-5, rtol=1e-5)
        assert last_states(model, packed).shape == (len(rows), 32)


def test_checkpointed_layers_compute_packed_rows_again() -> None:
    model = model_of("llama").train()
    rows, groups = grouped_rows(GROUPS)
    batches = micro_batches(rows, token_budget=10**6, pad_id=0, groups=groups, packed=True)
    assert is_packable(model)
    plain = scored(model, batches, len(rows))
    calls: list[int] = []
    for layer in model.model.layers:
        layer.input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    set_gradient_checkpointing(model, True)
    (batch,) = batches
    model.zero_grad()
    token_logprobs(model, batch, temperature=0.8).logprobs.sum().backward()
    assert len(calls) == 4  # Each of the two layers again in the backward pass: the memory is a layer's, not the model's.
    again = scored(model, batches, len(rows))
    for name, gradient in again[1].items():
        torch.testing.assert_close(gradient, plain[1][name], atol=1e-5, rtol=1e-5)


def test_a_switched_model_generates_and_scores_padded_rows_as_before() -> None:
    rows, _ = grouped_rows(GROUPS)
    prompt = torch.tensor([[0, 0, 5, 6, 7], [4, 5, 6, 7, 8]])
    for name in ("mistral-window", "gemma2-softcap-window"):
        model = model_of(name).eval()
        asked = {"attention_mask": (prompt != 0).long(), "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
        before = model.generate(prompt, **asked), scored(model, [collate(rows, pad_id=0)], len(rows))[0]
        assert is_packable(model)
        assert model.config._attn_implementation.startswith("steelyard")
        after = model.generate(prompt, **asked), scored(model, [collate(rows, pad_id=0)], len(rows))[0]
        assert torch.equal(before[0], after[0])
        for mine, theirs in zip(after[1], before[1], strict=True):
            assert torch.equal(mine, theirs)


def test_what_the_switch_sets_is_not_saved(tmp_path: object) -> None:
    model = model_of("llama")
    assert is_packable(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"


def _bleeding(model: PreTrainedModel) -> None:
    """Adds to each token's embedding that of its neighbour on the line, as a convolution over the line would."""
    model.get_input_embeddings().register_forward_hook(lambda _module, _args, out: out + 0.1 * out.roll(1, dims=1))


def _unannounced_window(model: PreTrainedModel) -> None:
    """A window that attention is not told of: longer than the rows of the trial, so only the configuration shows it."""
    model.config.sliding_window = 32


@pytest.mark.parametrize("spoil", [_bleeding, _unannounced_window])
def test_a_model_that_computes_packed_rows_otherwise_is_scored_padded(spoil: Callable[[PreTrainedModel], None]) -> None:
    model = model_of("llama").eval()
    spoil(model)
    rows, groups = grouped_rows(GROUPS)
    assert not is_packable(model)
    assert model.config._attn_implementation == "sdpa"
    (batch,) = micro_batches(rows, token_budget=10**6, pad_id=0, groups=groups, packed=True)
    with torch.no_grad():
        mine = token_logprobs(model, batch)
        for row, part in zip(batch.order, split_by_row(mine.logprobs, mine.rows, mine.n_rows), strict=True):
            alone = token_logprobs(model, collate([rows[row]], pad_id=0)).logprobs
            if spoil is not _bleeding:  # There a row's first token reads the last place of the line, which padding changes.
                torch.testing.assert_close(part, alone, atol=1e-5, rtol=1e-5)


def test_a_recurrent_model_is_not_packable() -> None:
    config = AutoConfig.for_model("mamba", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    assert not is_packable(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_attention_of_a_line_is_the_formula(window: int | None, softcap: float | None) -> None:
    """softmax(q kᵀ / √d) v in float64, one token at a time over the tokens it may see."""
    layout = Layout((Segment(0, 4), Segment(4, 3, 0, 4), Segment(7, 2, 0, 4), Segment(9, 5)))
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 14, 8, dtype=torch.float64) for heads in (4, 2, 2))
    out = packed_attention(query, key, value, layout, window=window, softcap=softcap)
    for segment in layout.segments:
        for i in range(segment.length):
            seen = [*range(segment.prefix_start, segment.prefix_start + segment.prefix_length)]
            seen += range(segment.start, segment.start + i + 1)
            seen = seen[-window:] if window else seen
            for head in range(4):
                products = key[0, head // 2, seen] @ query[0, head, segment.start + i] / 8**0.5
                products = products if softcap is None else softcap * torch.tanh(products / softcap)
                expected = torch.softmax(products, dim=0) @ value[0, head // 2, seen]
                torch.testing.assert_close(out[0, segment.start + i, head], expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shape", [(2, 2), (4, 2)])
def test_gradients_of_attention_pass_finite_differences(shape: tuple[int, int]) -> None:
    layout = Layout((Segment(0, 3), Segment(3, 2, 0, 3), Segment(5, 1, 0, 3), Segment(6, 3)))
    torch.manual_seed(0)
    states = [torch.randn(1, heads, 9, 4, dtype=torch.float64, requires_grad=True) for heads in (shape[0], shape[1], shape[1])]
    for window in (None, 2):
        assert torch.autograd.gradcheck(lambda q, k, v, w=window: packed_attention(q, k, v, layout, window=w), states)


def test_attention_in_bfloat16_gives_bfloat16_close_to_the_exact() -> None:
    torch.manual_seed(0)
    for length in (40, 600):  # Short segments are computed in float32.
        layout = Layout((Segment(0, length), Segment(length, 30, 0, length), Segment(length + 30, 20)))
        exact = [torch.randn(1, heads, length + 50, 16).bfloat16().float().requires_grad_() for heads in (4, 2, 2)]
        half = [states.detach().bfloat16().requires_grad_() for states in exact]
        mine, right = (packed_attention(*states, layout) for states in (half, exact))
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.float(), right, atol=2e-2, rtol=2e-2)
        weights = torch.randn_like(right)
        for of_half, of_exact in zip(
            torch.autograd.grad((mine * weights).sum(), half), torch.autograd.grad((right * weights).sum(), exact), strict=True
        ):
            assert (of_half.float() - of_exact).norm() < 0.02 * of_exact.norm()


@pytest.mark.gpu
def test_the_variable_length_kernel_gives_what_the_formula_does() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from steelyard_torch.packing import _kernel_works

    layout = Layout((Segment(0, 40), Segment(40, 30, 0, 40), Segment(70, 1, 0, 40), Segment(71, 50)))
    torch.manual_seed(0)
    half = [torch.randn(1, heads, 121, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2)]
    full = [states.detach().float().requires_grad_() for states in half]
    assert _kernel_works(half[0].device, torch.bfloat16, 64)
    for window in (None, 7):
        mine, theirs = (packed_attention(*states, layout, window=window) for states in (half, full))
        torch.testing.assert_close(mine.float(), theirs, atol=3e-2, rtol=3e-2)
        weights = torch.randn_like(theirs)
        gradients = [torch.autograd.grad((out * weights).sum(), states) for out, states in ((mine, half), (theirs, full))]
        for of_half, of_full in zip(*gradients, strict=True):
            assert F.cosine_similarity(of_half.float().flatten(), of_full.flatten(), dim=0) > 0.999


@pytest.mark.gpu
def test_packed_rows_on_a_gpu_are_those_of_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rows, groups = grouped_rows(GROUPS)
    for name in sorted(ARCHITECTURES):
        model = model_of(name).eval()
        expected = scored(model, [collate(rows, pad_id=0)], len(rows))[0]
        on_gpu = model.to("cuda")
        batches = micro_batches(rows, token_budget=10**6, pad_id=0, groups=groups, packed=True, device="cuda")
        assert is_packable(on_gpu)
        with torch.no_grad():
            exact = token_logprobs(on_gpu, batches[0], temperature=0.8)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                half = token_logprobs(on_gpu, batches[0], temperature=0.8)
        in_order = torch.cat([expected[place] for place in batches[0].order])
        torch.testing.assert_close(exact.logprobs.cpu(), in_order, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(half.logprobs.cpu(), in_order, atol=0.15, rtol=0.05)
