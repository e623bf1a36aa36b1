"""What models do at random in training is off for stages that compare log-probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from steelyard_torch.batching import collate
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.head import token_logprobs
from steelyard_torch.trainee import _switch_dropout_off

SHAPE: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"attention_dropout": 0.5, "intermediate_size": 48},
    "mixtral": {"router_jitter_noise": 0.5, "intermediate_size": 48, "num_local_experts": 4, "num_key_value_heads": 2},
    "opt": {"layerdrop": 0.5, "dropout": 0.5, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "gpt_bigcode": {"attn_pdrop": 0.5, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_two_passes_in_training_mode_agree(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SHAPE, **MODELS[name]), dtype=torch.float32).train()
    batch = collate([EncodedRow(np.arange(2, 32, dtype=np.int32), np.ones(30, dtype=np.bool_))], pad_id=0)

    def passes() -> list[torch.Tensor]:
        with torch.no_grad():
            return [token_logprobs(model, batch).logprobs for _ in range(6)]

    assert any(not torch.equal(one, other) for one, other in zip(*[iter(passes())] * 2, strict=True)), "the model does nothing at random"
    _switch_dropout_off(model)
    first, *others = passes()
    assert all(torch.equal(first, other) for other in others)
