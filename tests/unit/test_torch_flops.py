"""The count of FLOPs against what torch's own counter sees a forward and a backward pass do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from steelyard_torch.batching import MicroBatch, micro_batches
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.flops import batch_flops, mfu, training_flops
from steelyard_torch.head import prepare_scoring, token_logprobs

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
MODELS = {
    "llama-tied": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-grouped-queries": ("llama", {"num_key_value_heads": 1}),
    "qwen2-biases": ("qwen2", {"num_key_value_heads": 2}),
    "qwen3-wide-heads": ("qwen3", {"num_key_value_heads": 2, "head_dim": 32}),
}
# torch's counter knows the CPU's fused attention only when it is told of it.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda d, q, k, v, *_, **__: sdpa_backward_flop_count(d, q, k, v),
}


def model_of(name: str) -> PreTrainedModel:
    kind, changes = MODELS[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE, **changes), dtype=torch.float32)


def batch_of(lengths: Sequence[int], prefix: int = 0) -> MicroBatch:
    random = np.random.RandomState(0)
    shared = random.randint(2, 96, size=prefix)
    rows = []
    for length in lengths:
        ids = np.concatenate([shared, random.randint(2, 96, size=length)]).astype(np.int32)
        rows.append(EncodedRow(ids, np.arange(len(ids)) >= len(ids) // 2))
    (batch,) = micro_batches(rows, token_budget=10**6, pad_id=0, groups=[0] * len(rows), packed=True)
    return batch


def counted(model: PreTrainedModel, batch: MicroBatch, *, backward: bool) -> dict[str, int]:
    """FLOPs by the counter: those of matrix products and those of attention."""
    assert prepare_scoring(model)  # Tries the model once; that is not counted.
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    with counter:
        loss = token_logprobs(model, batch).logprobs.sum()
        if backward:
            loss.backward()
    by_kind = {"products": 0, "attention": 0}
    for operation, flops in counter.get_flop_counts()["Global"].items():
        by_kind["attention" if "attention" in str(operation) else "products"] += flops
    return by_kind


def attention_flops(model: PreTrainedModel, pairs: int, products: int) -> int:
    config: Any = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * products * config.num_hidden_layers * config.num_attention_heads * head_dim * pairs


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize(("lengths", "prefix"), [([70, 41, 12], 0), ([30, 25, 8], 50)])
def test_the_count_is_what_a_profiler_counts(name: str, lengths: list[int], prefix: int) -> None:
    """The counter takes attention's masked half for work, and five products in its backward pass, where weights are computed again and
    so one more than the gradient needs: both are taken off by hand. The rest has to agree as it is."""
    model, batch = model_of(name), batch_of(lengths, prefix)
    assert batch.layout is not None
    shapes = [(segment.length, segment.prefix_length + segment.length) for segment in batch.layout.segments]
    square = sum(length * span for length, span in shapes)
    seen = sum(length * (span - length) + length * (length + 1) // 2 for length, span in shapes)
    for backward, attention_products in ((False, 2), (True, 2 + 5)):
        found = counted(model, batch, backward=backward)
        assert found["attention"] == attention_flops(model, square, attention_products)
        needed = found["products"] + attention_flops(model, seen, 6 if backward else 2)
        assert batch_flops(model, batch, backward=backward) == pytest.approx(needed, rel=0.01)


def test_weights_that_are_frozen_get_no_gradient_to_compute() -> None:
    model, batch = model_of("llama-grouped-queries"), batch_of([40, 20])
    for parameter in model.model.layers[1:].parameters():
        parameter.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    found = counted(model, batch, backward=True)
    assert batch.layout is not None
    seen = sum(segment.length * (segment.length + 1) // 2 for segment in batch.layout.segments)
    assert batch_flops(model, batch) == pytest.approx(found["products"] + attention_flops(model, seen, 6), rel=0.01)


@pytest.mark.parametrize("trained", ["model.layers.2.", "lm_head."])
def test_layers_below_the_first_trained_one_have_no_backward_pass(trained: str) -> None:
    """To a layer: what goes into the first trained one needs no gradient either, which the count leaves in."""
    model, batch = model_of("llama-grouped-queries"), batch_of([40, 20])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    found = counted(model, batch, backward=True)
    assert batch.layout is not None
    seen = sum(segment.length * (segment.length + 1) // 2 for segment in batch.layout.segments)
    passed = 1 if trained.startswith("model") else 0
    needed = found["products"] + attention_flops(model, seen, 2) + passed * attention_flops(model, seen, 4) // 3
    assert batch_flops(model, batch) == pytest.approx(needed, rel=0.03)


def test_a_shared_prefix_and_an_idle_rank_are_no_work() -> None:
    model = model_of("qwen3-wide-heads")
    shared, apart = batch_of([30, 25, 8], 50), batch_of([80, 75, 58])
    assert batch_flops(model, shared) < 0.65 * batch_flops(model, apart)  # type: ignore[operator]
    rows = [EncodedRow(np.arange(2, 12, dtype=np.int32), np.ones(10, dtype=np.bool_))]
    (idle,) = micro_batches(rows, token_budget=99, pad_id=0, rank=1, size=2, packed=True)
    assert batch_flops(model, idle) == 0


def test_a_sliding_window_hides_pairs() -> None:
    changes = {**SHAPE, "num_key_value_heads": 2, "sliding_window": 16}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mistral", **changes))
    whole = AutoModelForCausalLM.from_config(AutoConfig.for_model("mistral", **{**changes, "sliding_window": None}))
    batch = batch_of([60])
    hidden = attention_flops(model, sum(max(0, i + 1 - 16) for i in range(60)), 6)
    assert batch_flops(whole, batch) - batch_flops(model, batch) == hidden  # type: ignore[operator]


def test_an_estimate_from_totals_is_near_the_count() -> None:
    model, batch = model_of("llama-tied"), batch_of([64] * 4)
    estimate = training_flops(model, tokens=256, trained_tokens=len(batch.target_ids), mean_length=64)
    apart = batch_of([64])
    exact = 4 * (batch_flops(model, apart) or 0)
    assert estimate == pytest.approx(exact, rel=0.01)


def test_utilisation_is_unknown_without_a_count_or_a_peak() -> None:
    assert mfu(2e12, 4.0, peak_flops=1e12) == 0.5
    assert mfu(None, 1.0, peak_flops=1e12) is None
    assert mfu(1e12, 1.0, peak_flops=None) is None
    experts = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mixtral", **{**SHAPE, "num_key_value_heads": 2, "num_local_experts": 2})
    )
    assert batch_flops(experts, batch_of([20])) is None
