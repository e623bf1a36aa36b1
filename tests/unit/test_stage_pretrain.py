"""The stage `pretrain`: plain text, or answers behind masked prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from steelyard.errors import DataError
from steelyard.records import Prompt, Sampling
from steelyard_sft.config import PretrainConfig
from steelyard_sft.supervised import Pretrain
from steelyard_torch.models import load_model, load_tokenizer

LINES = [{"prompt": f"{word}=", "completion": f"{word[::-1]}\n"} for word in ("abc", "de", "fgh", "ij", "klm", "no")]


def config(**keys: Any) -> PretrainConfig:
    return PretrainConfig(**{"lr": 5e-3, "batch_size": 6, "max_length": 32, **keys})


def train(bench: Any, options: PretrainConfig, rows: list[dict[str, Any]], name: str = "step") -> Any:
    data = bench.data(rows, f"{name}-data")
    context = bench.context(options, model=bench.model(), data=data, name=name)
    return Pretrain(options).run(context), context


def loss_of(bench: Any, text: str, first: int) -> float:
    """Mean cross-entropy of the tokens from ``first`` on, straight from the model's logits."""
    model, tokenizer = load_model(bench.model()).double(), load_tokenizer(bench.model())
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
    values = [-float(logprobs[i - 1, ids[0, i]]) for i in range(first, ids.shape[1])]
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("row", "keys", "text", "first", "trained"),
    [
        ({"text": "abc=cba"}, {}, "abc=cba<eos>", 1, 7),
        ({"text": "abc=cba"}, {"end_token": False}, "abc=cba", 1, 6),
        ({"prompt": "abc=", "completion": "cba"}, {}, "abc=cba<eos>", 4, 4),
        ({"prompt": "abc=", "completion": "cba"}, {"end_token": False}, "abc=cba", 4, 3),
        ({"prompt": "abc=", "completion": "cba"}, {"train_prompt": True}, "abc=cba<eos>", 1, 7),
    ],
)
def test_the_trained_tokens_are_those_asked_for(
    bench: Any, row: dict[str, Any], keys: dict[str, Any], text: str, first: int, trained: int
) -> None:
    result, context = train(bench, config(max_steps=1, **keys), [row])
    assert result.facts["data"]["trained_tokens"] == trained
    assert context.io.series("train/loss")[0] == pytest.approx(loss_of(bench, text, first), rel=1e-5)


def test_a_model_learns_its_lines_and_continues_a_prompt_in_plain_text(bench: Any) -> None:
    result, context = train(bench, config(max_steps=150), LINES)
    losses = context.io.series("train/loss")
    assert losses[-1] < 0.1 < losses[0]
    engine = context.engine(result.model)
    prompts = [Prompt(row["prompt"], text=row["prompt"]) for row in LINES]
    answers = engine.generate(prompts, Sampling(max_new_tokens=8, temperature=0.0))
    assert [answer[0].text for answer in answers] == [row["completion"] for row in LINES]
    assert {answer[0].finish_reason for answer in answers} == {"stop"}


def test_without_an_end_token_the_model_never_learns_to_stop(bench: Any) -> None:
    result, context = train(bench, config(max_steps=150, end_token=False), LINES)
    answers = context.engine(result.model).generate([Prompt("p", text="abc=")], Sampling(max_new_tokens=8, temperature=0.0))
    assert answers[0][0].text.startswith("cba\n")
    assert answers[0][0].finish_reason == "length"


def test_the_cache_tells_rows_with_and_without_an_end_token_apart(bench: Any) -> None:
    data = bench.data(LINES)
    trained = []
    for end_token in (True, False, True):
        options = config(max_steps=1, end_token=end_token)
        context = bench.context(options, model=bench.model(), data=data, name=f"step-{len(trained)}")
        trained.append(Pretrain(options).run(context).facts["data"]["trained_tokens"])
    assert trained[0] == trained[2] == trained[1] + len(LINES)


def test_a_row_of_another_format_is_named(bench: Any) -> None:
    with pytest.raises(DataError, match="row 'r7' needs `text`, or `prompt` and `completion`"):
        train(bench, config(max_steps=1), [{"id": "r7", "messages": bench.chat("a", "b")}])
