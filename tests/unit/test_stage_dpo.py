"""The stage `dpo`: its losses, its kept reference log-probabilities, and that neither memory nor a stop changes the result."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from steelyard.errors import DataError, Interrupted, ModelError
from steelyard_preference.config import DpoConfig
from steelyard_preference.dpo import Dpo
from steelyard_torch.models import load_model, load_tokenizer


def pairs(bench: Any, count: int = 18) -> list[dict[str, Any]]:
    words = ["ab", "cde", "f", "ghij"]
    rows = []
    for i in range(count):
        word = words[i % 4] * (1 + i % 3)
        prompt, chosen, rejected = bench.chat(word, word[::-1])[:1], word[::-1], f"ans: {word}"
        rows.append({"prompt": prompt, "chosen": [_said(chosen)], "rejected": [_said(rejected)]})
    return rows


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def config(**keys: Any) -> DpoConfig:
    return DpoConfig(**{"lr": 2e-3, "batch_size": 6, "max_length": 64, **keys})


def train(
    bench: Any,
    options: DpoConfig,
    *,
    name: str = "step",
    rows: list[dict[str, Any]] | None = None,
    io: Any = None,
    reference: Path | None = None,
) -> Any:
    data = bench.root / "data"
    if not data.exists():
        bench.data(pairs(bench) if rows is None else rows)
    context = bench.context(options, model=bench.model(), data=data, name=name, io=io, reference=reference or bench.model())
    return Dpo(options).run(context), context


def answer_logprobs(model: Any, tokenizer: Any, row: dict[str, Any], side: str) -> list[float]:
    """Log-probabilities of an answer's tokens and its end token, straight from logits in float64."""
    head = f"<|user|>{row['prompt'][0]['content']}<|assistant|>"
    start = len(tokenizer(head, add_special_tokens=False)["input_ids"])
    ids = torch.tensor([tokenizer(f"{head}{row[side][0]['content']}<eos>", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
    return [float(logprobs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])]


@pytest.mark.parametrize("loss", ["dpo", "dpo_norm"])
@pytest.mark.parametrize("budget", [1, 100_000])
def test_the_first_loss_is_log_2_when_the_policy_is_the_reference(bench: Any, loss: str, budget: int) -> None:
    _, context = train(bench, config(loss=loss, beta=5.0, max_steps=1, micro_batch_tokens=budget))
    first = context.io.metrics[0][1]
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["dpo/margin"] == pytest.approx(0, abs=1e-4)
    assert first["train/grad_norm"] > 0


@pytest.mark.parametrize(("loss", "beta"), [("dpo", 0.3), ("dpo_norm", 4.0)])
@pytest.mark.parametrize("nll_reduction", ["token_mean", "sequence_mean"])
def test_the_loss_is_its_formula(bench: Any, loss: str, beta: float, nll_reduction: str) -> None:
    """Against the definition, computed here pair by pair in float64, with another model as reference."""
    options = config(
        loss=loss, beta=beta, batch_size=18, max_steps=1, nll_coefficient=0.7, nll_reduction=nll_reduction, micro_batch_tokens=60
    )
    _, context = train(bench, options, reference=bench.model(1))
    tokenizer = load_tokenizer(bench.model())
    policy, reference = load_model(bench.model()).double(), load_model(bench.model(1)).double()
    losses, margins, nll = [], [], []
    for row in pairs(bench):
        rewards = {}
        for side in ("chosen", "rejected"):
            mine, theirs = answer_logprobs(policy, tokenizer, row, side), answer_logprobs(reference, tokenizer, row, side)
            rewards[side] = (sum(mine) - sum(theirs)) / (len(mine) if loss == "dpo_norm" else 1)
            if side == "chosen":
                nll.append([-value for value in mine])
        margins.append(beta * (rewards["chosen"] - rewards["rejected"]))
        losses.append(math.log1p(math.exp(-margins[-1])))
    tokens = sum(map(sum, nll)) / sum(map(len, nll))
    sequences = sum(sum(values) / len(values) for values in nll) / len(nll)
    term = tokens if nll_reduction == "token_mean" else sequences
    found = context.io.metrics[0][1]
    assert found["train/loss"] == pytest.approx(sum(losses) / len(losses) + 0.7 * term, rel=1e-5)
    assert found["dpo/nll"] == pytest.approx(term, rel=1e-5)
    assert found["dpo/margin"] == pytest.approx(sum(margins) / len(margins), rel=1e-4)
    assert found["dpo/accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / len(margins))


def test_training_prefers_the_chosen_answers(bench: Any) -> None:
    result, context = train(bench, config(epochs=8))
    assert context.io.series("dpo/accuracy")[-1] == 1.0
    assert context.io.series("dpo/margin")[-1] > 0.5
    assert context.io.series("train/loss")[-1] < 0.3
    tokenizer, before, after = load_tokenizer(result.model), load_model(bench.model()).double(), load_model(result.model).double()
    for row in pairs(bench)[:4]:
        gained = {
            s: sum(answer_logprobs(after, tokenizer, row, s)) - sum(answer_logprobs(before, tokenizer, row, s))
            for s in ("chosen", "rejected")
        }
        assert gained["chosen"] > gained["rejected"]


def test_the_nll_term_keeps_the_chosen_answers_likely(bench: Any) -> None:
    tokenizer = load_tokenizer(bench.model())
    likelihood = {}
    for coefficient in (0.0, 1.0):
        result, _ = train(bench, config(epochs=4, nll_coefficient=coefficient), name=f"nll-{coefficient}")
        model = load_model(result.model).double()
        likelihood[coefficient] = sum(sum(answer_logprobs(model, tokenizer, row, "chosen")) for row in pairs(bench))
    assert likelihood[1.0] > likelihood[0.0] + 1


def test_micro_batches_do_not_change_the_result(bench: Any) -> None:
    options = {"max_steps": 3, "nll_coefficient": 0.5, "lr": 1e-3}
    whole, context = train(bench, config(**options, micro_batch_tokens=100_000), name="whole")
    split, other = train(bench, config(**options, micro_batch_tokens=1), name="split")
    assert context.io.series("train/loss") == pytest.approx(other.io.series("train/loss"), rel=1e-5)
    for name, tensor in bench.weights(whole.model).items():
        torch.testing.assert_close(bench.weights(split.model)[name], tensor, atol=2e-6, rtol=0)


def test_the_reference_is_scored_once(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, context = train(bench, config(max_steps=3), name="first", reference=bench.model(1))
    kept = list((bench.root / "cache/reference-logprobs").glob("*.safetensors"))
    assert [path.stem for path in kept] == [first.facts["reference"]["logprobs"]]
    assert not any("kept from before" in line for line in context.io.lines)
    # And they stay with the model, whatever becomes of the cache.
    assert (first.model / "reference" / "logprobs.safetensors").read_bytes() == kept[0].read_bytes()

    def fail(*args: Any, **keys: Any) -> None:
        raise AssertionError("the reference was loaded again")

    monkeypatch.setattr("steelyard_torch.trainee.Trainee.load_reference", fail)
    second, context = train(bench, config(max_steps=3), name="second", reference=bench.model(1))
    assert any("kept from before" in line for line in context.io.lines)
    assert all(torch.equal(bench.weights(first.model)[n], t) for n, t in bench.weights(second.model).items())
    assert first.facts == second.facts
    for others in ({"options": config(max_steps=3, max_length=63)}, {"options": config(max_steps=3), "reference": bench.model(2)}):
        with pytest.raises(AssertionError, match="loaded again"):
            train(bench, others["options"], name=f"other-{len(others)}", reference=others.get("reference", bench.model(1)))


def test_damaged_reference_log_probabilities_are_made_anew(bench: Any) -> None:
    first, _ = train(bench, config(max_steps=2), name="first", reference=bench.model(1))
    kept = next((bench.root / "cache/reference-logprobs").glob("*.safetensors"))
    whole = kept.read_bytes()
    for number, damaged in enumerate((whole[:-3], whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], b"")):
        kept.write_bytes(damaged)
        again, context = train(bench, config(max_steps=2), name=f"again-{number}", reference=bench.model(1))
        assert not any("kept from before" in line for line in context.io.lines)
        assert kept.read_bytes() == whole
        assert all(torch.equal(bench.weights(first.model)[n], t) for n, t in bench.weights(again.model).items())


def test_kept_log_probabilities_belong_to_the_rows_they_were_made_of(bench: Any) -> None:
    """With batches drawn at random, a mix-up of pairs would not give log 2 at the first step, whose policy is the reference."""
    train(bench, config(max_steps=1, batch_size=5), name="first")
    for seed in (1, 2, 3):
        options = config(max_steps=1, batch_size=5, beta=1.0)
        context = bench.context(options, model=bench.model(), data=bench.root / "data", name=f"s{seed}", reference=bench.model(), seed=seed)
        Dpo(options).run(context)
        assert any("kept from before" in line for line in context.io.lines)
        assert context.io.series("train/loss")[0] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("stop", [1, 5])
def test_a_stopped_step_resumes_to_the_very_same_weights(bench: Any, stop: int) -> None:
    options = config(epochs=2, nll_coefficient=0.3, warmup_ratio=0.2)
    whole, uninterrupted = train(bench, options, name="whole")
    with pytest.raises(Interrupted):
        train(bench, options, name="stopped", io=bench.io(stop_after=stop))
    resumed, context = train(bench, options, name="stopped")
    assert context.io.series("train/loss") == uninterrupted.io.series("train/loss")[stop:]
    assert all(torch.equal(bench.weights(whole.model)[n], t) for n, t in bench.weights(resumed.model).items())


def test_a_stop_while_the_reference_is_scored_writes_nothing(bench: Any) -> None:
    with pytest.raises(Interrupted, match="scoring the reference"):
        train(bench, config(), io=bench.io(stop_after=0))
    assert not list(bench.root.glob("cache/reference-logprobs/*"))
    train(bench, config())


def test_pairs_that_teach_nothing_are_left_out_and_counted(bench: Any) -> None:
    same = [{"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["chosen"]} for row in pairs(bench, 3)]
    # These two differ behind the twelfth token only, where they are cut.
    cut = [{**same[0], "chosen": [_said("c" * 20 + "d")], "rejected": [_said("c" * 20 + "e")]}]
    empty = [{**same[0], "rejected": [_said(" ")]}, {**same[0], "chosen": []}]
    other = {"role": "user", "content": "z"}
    unshared = [{**same[0], "chosen": [*same[0]["prompt"], _said("a")], "rejected": [other, _said("b")]}]
    rows = [*pairs(bench, 6), *same, *cut, *empty, *unshared]
    for name in ("first", "from the cache"):
        result, context = train(bench, config(max_length=14, max_steps=1, batch_size=6), rows=rows, name=name)
        data = result.facts["data"]
        assert (data["rows_in"], result.facts["pairs"]) == (13, 6)
        assert (data["dropped_identical"], data["dropped_empty"], data["dropped_unshared"]) == (4, 2, 1)
        assert any("4 dropped as chosen and rejected are the same" in line for line in context.io.lines)
        assert context.io.series("train/epoch") == [1.0]


def test_nothing_but_identical_pairs_is_an_error(bench: Any) -> None:
    rows = [{"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["chosen"]} for row in pairs(bench, 3)]
    with pytest.raises(DataError, match="none of the 3 pairs has anything to prefer: 3 with the same tokens on both sides"):
        train(bench, config(), rows=rows)


def test_a_row_without_messages_is_named(bench: Any) -> None:
    with pytest.raises(DataError, match="row 'p1' has no messages under 'rejected'"):
        train(bench, config(), rows=[{"id": "p1", **{k: v for k, v in pairs(bench, 1)[0].items() if k != "rejected"}}])


def test_a_reference_with_another_template_is_refused(bench: Any) -> None:
    with pytest.raises(ModelError, match="template"):
        train(bench, config(), reference=bench.model(template="plain"))


def test_a_reference_with_another_tokenizer_is_refused(bench: Any) -> None:
    with pytest.raises(ModelError, match="the reference model"):
        train(bench, config(), reference=bench.model(characters=bench.characters[::-1]))


def test_a_missing_reference_says_what_to_write(bench: Any) -> None:
    data = bench.data(pairs(bench))
    with pytest.raises(ModelError, match="reference: init"):
        Dpo(config()).run(bench.context(config(), model=bench.model(), data=data, reference=None))


def test_dropout_is_off_so_that_policy_and_reference_agree(bench: Any) -> None:
    model = bench.model(4, attention_dropout=0.5)
    data = bench.data(pairs(bench))
    options = config(max_steps=1, beta=5.0)
    context = bench.context(options, model=model, data=data, reference=model)
    result = Dpo(options).run(context)
    assert context.io.series("train/loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    assert load_model(result.model).config.attention_dropout == 0.5, "the model keeps its configuration"


def test_a_copied_model_folder_is_the_same_reference(bench: Any) -> None:
    first, _ = train(bench, config(max_steps=1), name="first", reference=bench.model(1))
    copy = bench.root / "copy"
    shutil.copytree(bench.model(1), copy)
    second, context = train(bench, config(max_steps=1), name="second", reference=copy)
    assert first.facts["reference"] == second.facts["reference"]
    assert any("kept from before" in line for line in context.io.lines)
