"""Positions that change with the longest row of a pass: rows keep the scores that they have alone, or are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from steelyard.errors import DataError
from steelyard_torch.batching import collate, micro_batches
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.head import prepare_scoring, split_by_row, token_logprobs
from steelyard_torch.rotary import check_lengths, rotary_boundary

SHAPE: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
LONGROPE = {
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 16,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
    },
}
DYNAMIC = {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}
LENGTHS = (6, 30, 16, 17, 9, 25)


def model_of(kind: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **changes}), dtype=torch.float32)
    model.train(False)
    return model


def rows_of(lengths: tuple[int, ...]) -> list[EncodedRow]:
    random = np.random.RandomState(0)
    return [EncodedRow(random.randint(2, 41, size=n).astype(np.int32), np.arange(n) > 0, i) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("size", [1, 2])
def test_rows_beside_longer_ones_score_as_they_do_alone(packed: bool, size: int) -> None:
    model, rows = model_of("phi3", **LONGROPE), rows_of(LENGTHS)
    assert prepare_scoring(model)
    boundary = rotary_boundary(model)
    assert boundary == 16
    options: dict[str, Any] = {"token_budget": 10**6, "pad_id": 0, "packed": packed, "boundary": boundary, "size": size}
    shares = [micro_batches(rows, rank=rank, **options) for rank in range(size)]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    assert sorted(place for batch in batches for place in batch.order) == list(range(len(rows)))
    with torch.no_grad():
        for batch in batches:
            scores = token_logprobs(model, batch)
            for place, part in zip(batch.order, split_by_row(scores.logprobs, scores.rows, scores.n_rows), strict=bool(batch.order)):
                alone = token_logprobs(model, collate([rows[place]], pad_id=0)).logprobs
                torch.testing.assert_close(part, alone, atol=1e-5, rtol=1e-5)


def test_rows_that_belong_together_on_both_sides_are_refused_and_parted_where_they_may_be() -> None:
    rows, groups = rows_of((20, 12, 5, 6)), [0, 0, 1, 1]
    with pytest.raises(DataError, match=r"rows of 12 and 20 tokens belong together.*longer than 16; keep rows to 16"):
        micro_batches(rows, token_budget=100, pad_id=0, groups=groups, packed=True, boundary=16)
    parted = micro_batches(rows, token_budget=100, pad_id=0, groups=groups, whole=False, packed=True, boundary=16)
    assert [sorted(batch.order) for batch in parted] == [[0], [1, 2, 3]]


def test_positions_that_hang_on_earlier_rows_are_refused_by_length() -> None:
    model = model_of("llama", **DYNAMIC)
    check_lengths(model, [16, 3])
    with pytest.raises(DataError, match=r"a row has 17 tokens.*rope_type 'dynamic'.*keep rows to 16 tokens"):
        check_lengths(model, [3, 17])


def test_fixed_positions_have_no_boundary() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    for kind, changes in (
        ("llama", {}),
        ("llama", {"rope_parameters": yarn, "max_position_embeddings": 64}),
        ("gpt2", {}),
        ("gemma3_text", {}),
    ):
        model = model_of(kind, **changes)
        assert rotary_boundary(model) is None
        check_lengths(model, [10**6])
