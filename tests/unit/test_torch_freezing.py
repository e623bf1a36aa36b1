"""Freezing by name: what is trained, tied weights, and patterns that match nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from steelyard.errors import Interrupted, UsageError
from steelyard_sft.config import SftConfig
from steelyard_sft.supervised import Sft
from steelyard_torch.freezing import freeze_weights, trainable_facts
from steelyard_torch.models import load_model

TIED = "model.embed_tokens.weight"


def config(**keys: Any) -> SftConfig:
    return SftConfig(**{"lr": 3e-3, "batch_size": 6, "max_length": 64, "max_steps": 4, **keys})


def train(bench: Any, options: SftConfig, *, name: str = "step", io: Any = None, model: Any = None) -> Any:
    data = bench.root / "data"
    if not data.exists():
        bench.data({"messages": bench.chat(word, word[::-1])} for word in ["abc", "de", "fghi", "jk", "lmn", "op"])
    context = bench.context(options, model=model or bench.model(), data=data, name=name, io=io)
    return Sft(options).run(context), context


def changed(bench: Any, result: Any) -> set[str]:
    before, after = bench.weights(bench.model()), bench.weights(result.model)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_frozen_weights_come_out_bit_for_bit_and_all_others_are_trained(bench: Any) -> None:
    result, context = train(bench, config(freeze=["model.layers.0.*", TIED]))
    names = set(bench.weights(bench.model()))
    assert changed(bench, result) == {name for name in names if not name.startswith("model.layers.0.") and name != TIED}
    assert context.io.series("train/loss")[-1] < context.io.series("train/loss")[0]


def test_train_only_trains_those_alone(bench: Any) -> None:
    result, context = train(bench, config(train_only=["*.mlp.down_proj.weight"]))
    assert changed(bench, result) == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
    # 2 layers of 32 x 64 numbers.
    every = sum(tensor.numel() for tensor in bench.weights(bench.model()).values())
    assert result.facts["trained_parameters"] == 2 * 32 * 64
    assert result.facts["parameters"] == every
    assert result.facts["trained_share"] == pytest.approx(4096 / every)
    assert any(f"4,096 of {every:,} parameters are trained" in line for line in context.io.lines)


@pytest.mark.parametrize("pattern", ["lm_head.*", "model.embed_tokens.*"])
def test_tied_weights_are_frozen_under_either_name(bench: Any, pattern: str) -> None:
    result, _ = train(bench, config(freeze=[pattern]))
    assert TIED not in changed(bench, result)
    assert changed(bench, result), "the others are trained"


def test_tied_weights_are_trained_under_either_name(bench: Any) -> None:
    result, _ = train(bench, config(train_only=["lm_head.*"]))
    assert changed(bench, result) == {TIED}


def test_untied_heads_are_frozen_apart_from_the_embeddings(bench: Any) -> None:
    model = load_model(bench.model(tie_word_embeddings=False))
    freeze_weights(model, freeze=["lm_head.*"])
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"lm_head.weight"}


def test_a_pattern_that_matches_nothing_names_what_is_near(bench: Any) -> None:
    near = r"freeze 'model.layer.\*.mlp.up_proj.weight' matches no weight .*'model.layers.\*.mlp.up_proj.weight'"
    with pytest.raises(UsageError, match=near):
        train(bench, config(freeze=["model.layer.*.mlp.up_proj.weight"]))
    with pytest.raises(UsageError, match="train_only 'wte' matches no weight"):
        train(bench, config(train_only=["wte"]), name="other")


def test_freezing_everything_is_refused(bench: Any) -> None:
    with pytest.raises(UsageError, match="nothing left to train"):
        train(bench, config(freeze=["*"]))


def test_dials_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="not both"):
        config(freeze=["a"], train_only=["b"])
    with pytest.raises(ValidationError, match="an adapter freezes the model's own weights, so freeze does nothing"):
        config(freeze=["a"], adapter={})


def test_a_stopped_step_resumes_to_the_very_same_weights_from_a_checkpoint_without_the_frozen_ones(bench: Any) -> None:
    from safetensors.torch import load_file

    options = config(freeze=["model.layers.0.*"], weight_decay=0.1)
    whole, _ = train(bench, options, name="whole")
    with pytest.raises(Interrupted):
        train(bench, options, name="stopped", io=bench.io(stop_after=2))
    (kept,) = (bench.root / "stopped" / "checkpoints").rglob("model.safetensors")
    assert not [name for name in load_file(kept) if name.startswith("model.layers.0.")]
    resumed, context = train(bench, options, name="stopped")
    assert any("resumed" in line for line in context.io.lines)
    mine, theirs = bench.weights(resumed.model), bench.weights(whole.model)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_the_facts_count_tied_weights_once(bench: Any) -> None:
    model = load_model(bench.model())
    assert trainable_facts(model)["parameters"] == sum(p.numel() for p in model.parameters())
    assert trainable_facts(model)["trained_share"] == 1.0
