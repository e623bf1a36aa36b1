"""The stage `kto`: its loss with a baseline over the whole step, labelled rows and pairs, and that neither memory nor a stop changes it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from steelyard.errors import DataError, Interrupted, ModelError
from steelyard_preference.config import KtoConfig
from steelyard_preference.kto import Kto
from steelyard_torch.models import load_model, load_tokenizer

WORDS = ["ab", "cde", "f", "ghij", "kl"]


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def labelled(count: int = 12) -> list[dict[str, Any]]:
    """A third of them desirable."""
    rows = []
    for i in range(count):
        word, good = WORDS[i % 5] * (1 + i % 2), i % 3 == 0
        rows.append({"prompt": ask(word), "completion": word[::-1] if good else f"no: {word}", "label": good})
    return rows


def config(**keys: Any) -> KtoConfig:
    return KtoConfig(**{"lr": 2e-3, "batch_size": 6, "max_length": 64, "beta": 0.5, **keys})


def train(
    bench: Any, options: KtoConfig, *, rows: list[dict[str, Any]] | None = None, name: str = "step", io: Any = None, reference: Any = None
) -> Any:
    data = bench.root / "data"
    if not data.exists():
        bench.data(labelled() if rows is None else rows)
    context = bench.context(options, model=bench.model(), data=data, name=name, io=io, reference=reference or bench.model())
    return Kto(options).run(context), context


def logprobs(folder: Path, tokenizer: Any, prompt: str, answer: str) -> list[float]:
    """Of an answer and its end token, straight from logits in float64."""
    head = f"<|user|>{prompt}<|assistant|>"
    start = len(tokenizer(head, add_special_tokens=False)["input_ids"])
    ids = torch.tensor([tokenizer(f"{head}{answer}<eos>", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        every = torch.log_softmax(load_model(folder).double()(input_ids=ids).logits[0], dim=-1)
    return [float(every[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])]


@pytest.mark.parametrize("masked", [False, True])
def test_a_steps_loss_is_its_formula_with_a_baseline_from_answers_to_other_prompts(
    bench: Any, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = labelled()
    # Each row's answer is that of the next row but one, which has another prompt.
    partners = [(i + 2) % len(rows) for i in range(len(rows))]
    monkeypatch.setattr("steelyard_preference.kto._partners", lambda kept: partners)
    options = config(
        batch_size=12,
        max_steps=1,
        desirable_weight=1.5,
        undesirable_weight=0.8,
        nll_coefficient=0.3,
        nll_reduction="sequence_mean",
        mask_format_tokens=masked,
        micro_batch_tokens=40,
    )
    _, context = train(bench, options, reference=bench.model(1))
    tokenizer = load_tokenizer(bench.model())

    def ratio(prompt: str, answer: str) -> float:
        mine, theirs = (logprobs(bench.model(seed), tokenizer, prompt, answer) for seed in (0, 1))
        return sum(mine[:-1]) - sum(theirs[:-1]) if masked else sum(mine) - sum(theirs)

    prompts, answers = [row["prompt"][0]["content"] for row in rows], [row["completion"] for row in rows]
    crossed = [ratio(prompts[i], answers[partners[i]]) for i in range(12)]
    z = max(0.0, sum(crossed) / 12)
    losses, nll = [], []
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        r = ratio(prompt, answer)
        losses.append(1.5 / (1 + math.exp(0.5 * (r - z))) if row["label"] else 0.8 / (1 + math.exp(0.5 * (z - r))))
        if row["label"]:
            values = logprobs(bench.model(), tokenizer, prompt, answer)
            nll.append(-sum(values) / len(values))
    found = context.io.metrics[0][1]
    assert found["kto/baseline"] == pytest.approx(z, rel=1e-4)
    assert found["kto/nll"] == pytest.approx(sum(nll) / len(nll), rel=1e-5)
    assert found["train/loss"] == pytest.approx(sum(losses) / 12 + 0.3 * sum(nll) / len(nll), rel=1e-5)


def test_a_policy_that_is_its_reference_starts_in_the_middle(bench: Any) -> None:
    _, context = train(bench, config(max_steps=1))
    first = context.io.metrics[0][1]
    assert first["kto/baseline"] == pytest.approx(0, abs=1e-5)
    assert first["train/loss"] == pytest.approx(0.5, abs=1e-5)
    assert first["train/grad_norm"] > 0


def test_training_raises_the_desirable_answers_above_the_others(bench: Any) -> None:
    result, context = train(bench, config(epochs=8))
    assert context.io.series("kto/desirable_reward")[-1] > context.io.series("kto/undesirable_reward")[-1] + 0.5
    assert context.io.series("kto/accuracy")[-1] > 0.8
    facts = {name: result.facts[name] for name in ("desirable", "undesirable", "mismatched", "empty_answers")}
    assert facts == {"desirable": 4, "undesirable": 8, "mismatched": 12, "empty_answers": 0}


def test_a_pair_is_two_labelled_answers(bench: Any) -> None:
    pairs = [
        {"prompt": ask(w), "chosen": [{"role": "assistant", "content": w}], "rejected": [{"role": "assistant", "content": w[::-1] + "x"}]}
        for w in WORDS
    ]
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"} for row in pairs for side in ("chosen", "rejected")
    ]
    one, context = train(bench, config(max_steps=2), rows=pairs)
    options = config(max_steps=2)
    other = bench.context(options, model=bench.model(), data=bench.data(rows, "rows"), name="rows", reference=bench.model())
    two = Kto(options).run(other)
    assert context.io.series("train/loss") == other.io.series("train/loss")
    assert all(torch.equal(bench.weights(one.model)[name], tensor) for name, tensor in bench.weights(two.model).items())


def test_micro_batches_do_not_change_the_result(bench: Any) -> None:
    options = {"max_steps": 3, "nll_coefficient": 0.5, "lr": 1e-3}
    whole, context = train(bench, config(**options, micro_batch_tokens=100_000), name="whole", reference=bench.model(1))
    split, other = train(bench, config(**options, micro_batch_tokens=1), name="split", reference=bench.model(1))
    beside, third = train(bench, config(**options, reference_logprobs="beside"), name="beside", reference=bench.model(1))
    assert context.io.series("kto/baseline") == pytest.approx(other.io.series("kto/baseline"), rel=1e-4, abs=1e-5)
    for found in (other, third):
        assert context.io.series("train/loss") == pytest.approx(found.io.series("train/loss"), rel=1e-5)
    for name, tensor in bench.weights(whole.model).items():
        torch.testing.assert_close(bench.weights(split.model)[name], tensor, atol=2e-6, rtol=0)
        torch.testing.assert_close(bench.weights(beside.model)[name], tensor, atol=2e-6, rtol=0)


def test_a_stopped_step_resumes_to_the_very_same_weights(bench: Any) -> None:
    options = config(epochs=2, warmup_ratio=0.2)
    whole, uninterrupted = train(bench, options, name="whole")
    with pytest.raises(Interrupted):
        train(bench, options, name="stopped", io=bench.io(stop_after=1))
    resumed, context = train(bench, options, name="stopped")
    assert any("kept from before" in line for line in context.io.lines)
    assert context.io.series("train/loss") == uninterrupted.io.series("train/loss")[1:]
    assert all(torch.equal(bench.weights(whole.model)[n], t) for n, t in bench.weights(resumed.model).items())


def test_a_mismatched_answer_that_is_too_long_costs_the_baseline_a_term_and_nothing_else(bench: Any) -> None:
    # Each of these fits alone; the long answer to the long prompt would not.
    rows = [
        *labelled(6),
        {"prompt": ask("a" * 40), "completion": "b", "label": True},
        {"prompt": ask("c"), "completion": "d" * 40, "label": True},
    ]
    result, _ = train(bench, config(max_steps=4, max_length=60, on_too_long="refuse", batch_size=3), rows=rows)
    assert result.facts["data"]["rows"] == 8
    assert 6 <= result.facts["mismatched"] <= 8


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"completion": "a", "label": 1}, "row 'r' has the label 1, which is not true or false"),
        ({"completion": "a", "label": "yes"}, "row 'r' has the label 'yes'"),
        ({"label": True}, "row 'r' has a label but no 'completion'"),
        ({"completion": "a"}, "row 'r' has neither 'label' nor messages under 'chosen'"),
        ({"completion": [{"role": "user", "content": "a"}], "label": True}, "an answer begins and ends with an assistant message"),
        ({"completion": 3, "label": True}, "row 'r': an answer is a text or a list of messages, not 3"),
        ({"completion": ["a"], "label": True}, r"row 'r': an answer is a text or a list of messages, not \['a'\]"),
    ],
)
def test_rows_without_a_plain_label_are_named(bench: Any, row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        train(bench, config(), rows=[*labelled(3), {"id": "r", "prompt": ask("q"), **row}])


def test_empty_answers_and_equal_sides_are_left_out_and_counted(bench: Any) -> None:
    said = [{"role": "assistant", "content": "ab"}]
    rows = [*labelled(5), {"prompt": ask("q"), "completion": " ", "label": True}, {"prompt": ask("q"), "chosen": said, "rejected": said}]
    result, context = train(bench, config(max_steps=1), rows=rows)
    assert (result.facts["empty_answers"], result.facts["identical_pairs"], result.facts["data"]["rows"]) == (1, 1, 5)
    assert any("1 left out with an empty answer" in line for line in context.io.lines)


def test_pairs_that_are_equal_once_cut_are_left_out_and_counted(bench: Any) -> None:
    said = [[{"role": "assistant", "content": "a" * 30 + end}] for end in "bc"]
    rows = [*labelled(6), {"prompt": ask("q"), "chosen": said[0], "rejected": said[1], "source": "s"}]
    result, context = train(bench, config(max_length=20, max_steps=1), rows=rows)
    assert (result.facts["identical_pairs"], result.facts["data"]["rows"]) == (1, 8)
    assert (result.facts["desirable"], result.facts["undesirable"]) == (2, 4)
    assert any("1 pairs left out with the same tokens on both sides" in line for line in context.io.lines)


def test_answers_without_a_token_of_their_own_are_left_out_and_counted(bench: Any) -> None:
    rows = [*labelled(6), {"prompt": ask("q"), "completion": "<eos>", "label": True}]
    result, context = train(bench, config(mask_format_tokens=True, max_steps=1), rows=rows)
    assert (result.facts["nothing_to_score"], result.facts["desirable"]) == (1, 2)
    assert any("1 left out without a token to score" in line for line in context.io.lines)


def test_an_answer_that_is_cut_away_has_no_label_left_though_its_prompt_has_trained_turns(bench: Any) -> None:
    conversation = [*ask("x"), {"role": "assistant", "content": "y"}, *ask("z" * 30)]
    rows = [*labelled(6), {"prompt": conversation, "completion": "good", "label": True}]
    for turns in ("all", "last"):
        options = config(max_length=20, max_steps=1, trained_turns=turns)
        result, _ = train(bench, options, rows=rows, name=turns)
        assert (result.facts["desirable"], result.facts["undesirable"]) == (2, 4), turns
        assert result.facts["nothing_to_score"] + result.facts["data"]["dropped_untrained"] == 1, turns


def test_answers_that_leave_nothing_to_score_are_an_error(bench: Any) -> None:
    rows = [{"prompt": ask(f"q{i}"), "completion": "<eos>", "label": True} for i in range(3)]
    with pytest.raises(DataError, match="none of the 3 answers has a token to score"):
        train(bench, config(mask_format_tokens=True), rows=rows)


def test_data_that_holds_nothing_to_learn_from_is_an_error(bench: Any) -> None:
    with pytest.raises(DataError, match="nothing to train"):
        train(bench, config(), rows=[{"prompt": ask("q"), "completion": "", "label": True}])


def test_one_prompt_alone_has_no_baseline(bench: Any) -> None:
    with pytest.raises(DataError, match="all answers are to the same prompt"):
        train(bench, config(), rows=[{"prompt": ask("q"), "completion": text, "label": True} for text in ("a", "b")])


def test_a_reference_of_another_vocabulary_is_refused(bench: Any) -> None:
    with pytest.raises(ModelError, match="the reference model"):
        train(bench, config(), reference=bench.model(characters=bench.characters[::-1]))


def test_a_batch_of_one_has_nothing_to_compare(bench: Any) -> None:
    with pytest.raises(ValidationError, match="batch_size"):
        config(batch_size=1)
