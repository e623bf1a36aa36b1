"""The stage `sft`: what it trains, that its result does not depend on memory, stops or kills, and what it refuses."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from steelyard.errors import DataError, Interrupted, ModelError, TrainingError
from steelyard_sft.config import SftConfig
from steelyard_sft.supervised import Sft
from steelyard_torch.models import load_model, load_tokenizer


def chats(bench: Any, count: int = 24) -> list[dict[str, Any]]:
    words = ["abc", "de", "fghi", "jklmn", "op"]
    return [{"id": f"c{i}", "messages": bench.chat(words[i % 5] * (1 + i % 3), words[i % 5][::-1])} for i in range(count)]


def config(**keys: Any) -> SftConfig:
    return SftConfig(**{"lr": 3e-3, "batch_size": 8, "max_length": 64, **keys})


def train(bench: Any, options: SftConfig, *, name: str = "step", rows: list[dict[str, Any]] | None = None, io: Any = None) -> Any:
    data = bench.root / "data"
    if not data.exists():
        bench.data(chats(bench) if rows is None else rows)
    context = bench.context(options, model=bench.model(), data=data, name=name, io=io)
    return Sft(options).run(context), context


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_loss_falls_and_the_model_that_comes_out_can_be_loaded(bench: Any) -> None:
    result, context = train(bench, config(epochs=8))
    losses = context.io.series("train/loss")
    assert losses[-1] < 0.5 * losses[0]
    assert load_tokenizer(result.model).chat_template == load_tokenizer(context.model).chat_template
    assert not load_model(result.model).training


def test_it_reports_what_every_stage_reports(bench: Any) -> None:
    result, context = train(bench, config(max_steps=3, schedule="linear", warmup_steps=1, peak_flops=1e12))
    steps = [step for step, _ in context.io.metrics]
    assert steps == [1, 2, 3]
    for _, metrics in context.io.metrics:
        assert {"train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_s", "perf/mfu", "train/epoch"} <= metrics.keys()
        assert 0 < metrics["perf/mfu"] < 1
        assert metrics["perf/tokens_per_s"] > 0
    assert context.io.series("train/lr") == pytest.approx([3e-3, 3e-3, 1.5e-3])
    assert context.io.series("train/epoch") == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert context.io.done[-1][:2] == (3, 3)
    assert result.metrics["train/loss"] == context.io.series("train/loss")[-1]
    assert result.facts["optimiser_steps"] == 3 and result.facts["data"]["rows"] == 24
    assert any("trained" in line for line in context.io.lines)


def test_without_a_peak_no_utilisation_is_reported(bench: Any) -> None:
    _, context = train(bench, config(max_steps=1))
    assert "perf/mfu" not in context.io.metrics[0][1]


def own_loss(bench: Any, reduction: str) -> float:
    """The reduction straight from its definition, from full logits in float64; the assistant's text and its end token are the targets."""
    model, tokenizer = load_model(bench.model()).double(), load_tokenizer(bench.model())
    sums, counts = [], []
    for row in chats(bench):
        messages = row["messages"]
        prompt = len(tokenizer(f"<|user|>{messages[0]['content']}<|assistant|>", add_special_tokens=False)["input_ids"])
        text = f"<|user|>{messages[0]['content']}<|assistant|>{messages[1]['content']}<eos>"
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
        mine = [-float(logprobs[i - 1, ids[0, i]]) for i in range(prompt, ids.shape[1])]
        sums.append(sum(mine))
        counts.append(len(mine))
    if reduction == "sum":
        return sum(sums)
    if reduction == "token_mean":
        return sum(sums) / sum(counts)
    return sum(s / n for s, n in zip(sums, counts, strict=True)) / len(sums)


@pytest.mark.parametrize("reduction", ["token_mean", "sum", "sequence_mean"])
def test_the_first_loss_is_the_reduction_over_answers_and_their_end_tokens(bench: Any, reduction: str) -> None:
    _, context = train(bench, config(batch_size=24, max_steps=1, loss_reduction=reduction, micro_batch_tokens=48))
    assert context.io.series("train/loss")[0] == pytest.approx(own_loss(bench, reduction), rel=1e-5)


def test_only_the_answer_and_its_end_token_move_the_weights(bench: Any) -> None:
    """One step against transformers' own loss on labels that are written down here by hand, and torch's own AdamW."""
    data = bench.data([{"messages": bench.chat("xyz", "ab")}])
    # A large epsilon makes AdamW's first step nearly proportional to the gradient: otherwise it would be its sign.
    options = config(lr=1e-2, batch_size=1, max_steps=1, adam_eps=1.0, max_grad_norm=None)
    result = Sft(options).run(bench.context(options, model=bench.model(), data=data))
    model, tokenizer = load_model(bench.model()), load_tokenizer(bench.model())
    tokens = ["<|user|>", "x", "y", "z", "<|assistant|>", "a", "b", "<eos>"]
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
    labels = torch.where(torch.arange(8) >= 5, ids[0], -100)[None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1.0, weight_decay=0.0)
    model(input_ids=ids, labels=labels).loss.backward()
    optimizer.step()
    mine, untrained = bench.weights(result.model), bench.weights(bench.model())
    theirs = model.state_dict()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=0)
    assert max(float((tensor - untrained[name]).abs().max()) for name, tensor in mine.items()) > 1e-4


def test_micro_batches_do_not_change_the_result(bench: Any) -> None:
    steps = {"max_steps": 3, "lr": 1e-3}
    whole, context = train(bench, config(**steps, micro_batch_tokens=10_000), name="whole")
    split, other = train(bench, config(**steps, micro_batch_tokens=1), name="split")
    for name, tensor in bench.weights(whole.model).items():
        torch.testing.assert_close(bench.weights(split.model)[name], tensor, atol=1e-6, rtol=0)
    assert context.io.series("train/loss") == pytest.approx(other.io.series("train/loss"), rel=1e-5)
    assert context.io.series("train/grad_norm") == pytest.approx(other.io.series("train/grad_norm"), rel=1e-4)


def test_gradient_checkpointing_does_not_change_the_result(bench: Any) -> None:
    plain, _ = train(bench, config(max_steps=2), name="plain")
    recomputed, _ = train(bench, config(max_steps=2, gradient_checkpointing=True), name="recomputed")
    for name, tensor in bench.weights(plain.model).items():
        torch.testing.assert_close(bench.weights(recomputed.model)[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_a_stopped_step_resumes_to_the_very_same_weights(bench: Any, stop: int) -> None:
    options = config(epochs=3, schedule="cosine", warmup_steps=2, weight_decay=0.1)
    whole, uninterrupted = train(bench, options, name="whole")
    with pytest.raises(Interrupted, match=f"stopped after optimiser step {stop} of 9"):
        train(bench, options, name="stopped", io=bench.io(stop_after=stop))
    resumed, context = train(bench, options, name="stopped")
    assert equal(bench.weights(whole.model), bench.weights(resumed.model))
    assert [step for step, _ in context.io.metrics] == list(range(stop + 1, 10))
    assert context.io.series("train/loss") == uninterrupted.io.series("train/loss")[stop:]
    assert resumed.facts == whole.facts


def test_a_stop_after_the_last_step_is_too_late_to_interrupt(bench: Any) -> None:
    options = config(max_steps=3)
    result, context = train(bench, options, io=bench.io(stop_after=3))
    assert result.facts["optimiser_steps"] == 3
    assert context.checkpoints.latest() is None


def test_a_kill_at_any_checkpoint_loses_nothing(bench: Any) -> None:
    options = config(epochs=2, checkpoint_every=1)
    whole, _ = train(bench, config(epochs=2), name="whole")
    killed, _ = train(bench, options, name="killed")
    assert equal(bench.weights(whole.model), bench.weights(killed.model)), "writing checkpoints must not change the training"
    kept = sorted((bench.root / "killed/checkpoints").glob("step-*"))
    assert [folder.name for folder in kept] == ["step-000000004", "step-000000005"]
    for folder in kept:
        again = bench.root / f"from-{folder.name}/checkpoints"
        shutil.copytree(folder, again / folder.name)
        # The manifest names the step it belongs to, but its key is what counts.
        resumed, _ = train(bench, options, name=f"from-{folder.name}")
        assert equal(bench.weights(whole.model), bench.weights(resumed.model))


def test_checkpoints_are_due_by_time(bench: Any) -> None:
    train(bench, config(max_steps=3, checkpoint_every_s=1e-9), name="often")
    train(bench, config(max_steps=3, checkpoint_every_s=1e9), name="never")
    assert len(list((bench.root / "often/checkpoints").glob("step-*"))) == 2
    assert not (bench.root / "never/checkpoints").exists()


def test_a_checkpoint_of_other_data_is_refused(bench: Any) -> None:
    options = config(epochs=2)
    with pytest.raises(Interrupted):
        train(bench, options, io=bench.io(stop_after=2))
    shutil.rmtree(bench.root / "data")
    bench.data(chats(bench, 16))
    with pytest.raises(DataError, match="skip or replay rows"):
        train(bench, options)


def test_rows_without_an_answer_are_an_error(bench: Any) -> None:
    rows = [{"messages": [{"role": "user", "content": "hello"}]} for _ in range(3)]
    with pytest.raises(DataError, match="assistant"):
        train(bench, config(max_steps=1), rows=rows)


def test_rows_of_another_format_are_named(bench: Any) -> None:
    with pytest.raises(DataError, match="row 'x1' has no 'messages'; it has id, text"):
        train(bench, config(max_steps=1), rows=[{"id": "x1", "text": "hello"}])


def test_a_stage_without_data_says_so(bench: Any) -> None:
    with pytest.raises(DataError, match="no dataset"):
        Sft(config()).run(bench.context(config(), model=bench.model(), data=None))


def too_long(bench: Any) -> list[dict[str, Any]]:
    return [{"messages": bench.chat("ab", "c" * 30)}, *({"messages": bench.chat("ab", "cd")} for _ in range(3))]


def test_long_rows_are_truncated_and_counted(bench: Any) -> None:
    result, _ = train(bench, config(max_length=16, max_steps=1), rows=too_long(bench))
    assert result.facts["data"]["truncated"] == 1 and result.facts["data"]["rows"] == 4


def test_long_rows_are_dropped_and_counted(bench: Any) -> None:
    result, _ = train(bench, config(max_length=16, max_steps=1, on_too_long="drop"), rows=too_long(bench))
    assert result.facts["data"]["dropped_too_long"] == 1 and result.facts["data"]["rows"] == 3


def test_long_rows_are_refused_on_demand(bench: Any) -> None:
    with pytest.raises(DataError, match="over max_length 16"):
        train(bench, config(max_length=16, max_steps=1, on_too_long="refuse"), rows=too_long(bench))


def test_a_learning_rate_that_blows_up_ends_the_stage_and_saves_nothing(bench: Any) -> None:
    options = config(lr=1e30, max_steps=12, schedule="constant", max_grad_norm=None)
    with pytest.raises((TrainingError, ModelError)) as caught:
        _, _ = train(bench, options)
    assert isinstance(caught.value, TrainingError), caught.value
    assert "3 steps in a row" in str(caught.value)
    output = next((bench.root / "step").glob("output-*"))
    assert not any(output.iterdir())
    assert not (bench.root / "step/checkpoints").exists()


def test_a_step_that_is_not_finite_is_skipped_counted_and_survived(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import steelyard_sft.supervised as stage

    real, calls = stage.sft_loss, []

    def now_and_then_infinite(*args: Any, **keys: Any) -> torch.Tensor:
        calls.append(None)
        return real(*args, **keys) * (math.inf if len(calls) in (2, 4, 5) else 1.0)

    monkeypatch.setattr(stage, "sft_loss", now_and_then_infinite)
    result, context = train(bench, config(max_steps=7, micro_batch_tokens=10_000))
    assert context.io.series("train/skipped_steps") == [0, 1, 1, 2, 3, 3, 3]
    assert result.facts["skipped_steps"] == 3
    assert sum("skipped: the loss is inf" in line for line in context.io.lines) == 3
    assert all(bool(torch.isfinite(tensor).all()) for tensor in bench.weights(result.model).values())
    assert all(math.isfinite(value) for value in result.metrics.values())


def test_skipped_steps_are_still_known_after_a_stop(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import steelyard_sft.supervised as stage

    real = stage.sft_loss
    monkeypatch.setattr(stage, "sft_loss", lambda *args, **keys: real(*args, **keys) * math.nan)
    with pytest.raises(Interrupted):
        train(bench, config(max_steps=6), io=bench.io(stop_after=2))
    with pytest.raises(TrainingError, match="3 steps in a row"):
        train(bench, config(max_steps=6))
    monkeypatch.setattr(stage, "sft_loss", real)
    result, _ = train(bench, config(max_steps=6))
    assert result.facts["skipped_steps"] == 2


def test_infinite_weights_are_refused_before_the_first_step(bench: Any) -> None:
    broken = bench.root / "broken"
    shutil.copytree(bench.model(), broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = math.inf
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    data = bench.data(chats(bench))
    with pytest.raises(ModelError, match=r"non-finite weights in 'model\.norm\.weight'"):
        Sft(config()).run(bench.context(config(), model=broken, data=data))


def test_only_the_last_turn_is_trained_on_demand(bench: Any) -> None:
    rows = [{"messages": [*bench.chat("a", "bbbb"), *bench.chat("c", "dd")]}]
    every, _ = train(bench, config(max_steps=1), rows=rows, name="all")
    last, _ = train(bench, config(max_steps=1, trained_turns="last"), rows=rows, name="last")
    assert every.facts["data"]["trained_tokens"] == 5 + 3
    assert last.facts["data"]["trained_tokens"] == 3


def test_encoded_rows_are_kept_for_the_next_step(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = train(bench, config(max_steps=2), name="first")

    def fail(*args: Any, **keys: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr("steelyard_torch.trainee.encode_chats", fail)
    second, _ = train(bench, config(max_steps=2), name="second")
    assert equal(bench.weights(first.model), bench.weights(second.model))
    assert first.facts == second.facts
    with pytest.raises(AssertionError, match="encoded again"):
        train(bench, config(max_steps=2, max_length=63), name="third")


def test_a_template_that_leaves_the_end_token_untrained_is_warned_of(bench: Any) -> None:
    def warned(folder: Path, name: str) -> bool:
        options = config(max_steps=1)
        context = bench.context(options, model=folder, data=data, name=name)
        Sft(options).run(context)
        return any("does not learn to stop" in line for line in context.io.lines)

    data = bench.data(chats(bench))
    assert not warned(bench.model(), "whole")
    short = bench.root / "short"
    shutil.copytree(bench.model(), short)
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{% generation %}{{ m['content'] }}{% endgeneration %}<eos>"
        "{% else %}<|user|>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    (short / "chat_template.jinja").write_text(template)
    assert warned(short, "short")


def test_the_seed_decides_the_order_of_rows_and_nothing_else_is_random(bench: Any) -> None:
    data = bench.data(chats(bench))
    options = config(max_steps=2)
    results = []
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        context = replace(bench.context(options, model=bench.model(), data=data, name=name), seed=seed)
        results.append(bench.weights(Sft(options).run(context).model))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


def test_bf16_keeps_float32_weights(bench: Any) -> None:
    result, context = train(bench, config(precision="bf16", max_steps=4))
    assert {tensor.dtype for tensor in bench.weights(result.model).values()} == {torch.float32}
    assert math.isfinite(context.io.series("train/loss")[-1])
    assert Path(result.model, "model.safetensors").is_file()


def test_a_warm_up_that_outlasts_the_training_is_told(bench: Any) -> None:
    _, context = train(bench, config(max_steps=2, warmup_steps=5))
    assert any("warmup_steps is 5, but there are 2 optimiser steps" in line for line in context.io.lines)
    assert context.io.series("train/lr") == pytest.approx([1.5e-3, 3e-3])
