"""The stage `reward_model`: its loss over pairs and ranked lists, what it holds out, and that the verifier reads what it wrote."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification

from steelyard.errors import DataError, Interrupted, ModelError, TrainingError
from steelyard.records import derive_seed
from steelyard_preference.calibration import calibration
from steelyard_preference.config import RewardModelConfig
from steelyard_preference.rankings import encode_rankings, read_ranking, split_by_prompt
from steelyard_preference.reward_model import RewardModel, load_scorer
from steelyard_torch.models import load_tokenizer
from steelyard_verifiers.judge.config import RewardModelConfig as ScorerConfig
from steelyard_verifiers.judge.scorer import Scorer

WORDS = ["ab", "cde", "f", "ghij", "kl", "mno"]


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def pairs(count: int = 24) -> list[dict[str, Any]]:
    """The better answer has a plus in it."""
    rows = []
    for i in range(count):
        word = WORDS[i % 6] + str(i)
        rows.append({"prompt": ask(word), "chosen": said(f"{word}+{i % 7}"), "rejected": said(f"{word}-{i % 5}")})
    return rows


def config(**keys: Any) -> RewardModelConfig:
    return RewardModelConfig(**{"lr": 2e-3, "batch_size": 6, "max_length": 64, "heldout": 0.25, **keys})


def train(
    bench: Any, options: RewardModelConfig, *, rows: list[dict[str, Any]] | None = None, name: str = "step", io: Any = None, **model: Any
) -> Any:
    data = bench.root / "data"
    if not data.exists():
        bench.data(pairs() if rows is None else rows)
    context = bench.context(options, model=bench.model(**model), data=data, name=name, io=io)
    return RewardModel(options).run(context), context


def scores_of(folder: Path, tokenizer: Any, conversations: list[list[dict[str, str]]]) -> list[float]:
    """By transformers' own classifier, one conversation at a time, in float64."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    with torch.no_grad():
        return [float(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0]) for text in texts]


def initial(bench: Any, tokenizer: Any, conversations: list[list[dict[str, str]]], folder: Path, seed: int = 7) -> list[float]:
    """Scores of the model that a stage with this seed starts from."""
    torch.manual_seed(seed)
    model = load_scorer(bench.model())
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    return scores_of(folder, tokenizer, conversations)


def test_a_trained_reward_model_orders_pairs_it_has_not_seen_and_the_verifier_scores_alike(bench: Any) -> None:
    """End to end: tiny pairs, the stage, the folder, the verifier's own reader."""
    # ChatML puts a newline behind the end token; the score is read there.
    options = config(epochs=12, max_length=128)
    result, context = train(bench, options, template="chatml", characters=bench.characters + "<|>_-", max_position_embeddings=256)
    assert context.io.series("reward_model/accuracy")[-1] == 1.0
    assert context.io.series("reward_model/margin")[-1] > 0.5
    heldout = result.facts["heldout"]
    assert (heldout["prompts"], heldout["pairs"]) == (6, 6) and result.facts["lists"] == 18
    scorer = Scorer(ScorerConfig(model=str(result.model), batch_size=5, device="cpu"), bench.root)
    rows = pairs()
    found = [scorer.logits([scorer.encode(row["prompt"], row[side][0]["content"]) for row in rows]) for side in ("chosen", "rejected")]
    better, worse = (np.array([logits[0] for logits in side]) for side in found)
    assert all(len(logits) == 1 for logits in found[0]), "one label"
    tokenizer = load_tokenizer(result.model)
    assert better.tolist() == pytest.approx(scores_of(result.model, tokenizer, [row["prompt"] + row["chosen"] for row in rows]), abs=1e-4)
    # What the stage measured on the prompts it held out is what the verifier's scores say of them.
    rankings, _ = encode_rankings(tokenizer, map(read_ranking, rows), max_length=128, refuse_too_long=False)
    _, out = split_by_prompt(rankings, heldout=0.25, seed=derive_seed(7, "held out"))
    places = [rankings.index(ranking) for ranking in out]
    again = calibration(better[places], worse[places])
    for name in ("pairs", "accuracy", "log_loss", "brier", "ece"):
        assert heldout[name] == pytest.approx(getattr(again, name), abs=1e-5), name
    assert again.accuracy > 0.8


@pytest.mark.parametrize("budget", [1, 100_000])
def test_a_steps_loss_is_its_formula_at_the_last_token(bench: Any, budget: int) -> None:
    options = config(batch_size=24, max_steps=1, heldout=0.0, margin=0.3, centering=0.05, micro_batch_tokens=budget)
    _, context = train(bench, options)
    tokenizer, rows = load_tokenizer(bench.model()), pairs()
    better = initial(bench, tokenizer, [row["prompt"] + row["chosen"] for row in rows], bench.root / "better")
    worse = initial(bench, tokenizer, [row["prompt"] + row["rejected"] for row in rows], bench.root / "worse")
    losses = [math.log1p(math.exp(-(b - w - 0.3))) + 0.05 * (b + w) ** 2 for b, w in zip(better, worse, strict=True)]
    found = context.io.metrics[0][1]
    assert found["train/loss"] == pytest.approx(sum(losses) / 24, rel=1e-5)
    assert found["reward_model/accuracy"] == pytest.approx(sum(b > w for b, w in zip(better, worse, strict=True)) / 24)
    assert found["reward_model/better_score"] == pytest.approx(sum(better) / 24, rel=1e-4)


@pytest.mark.parametrize("weight", ["list", "pair"])
def test_a_ranked_list_is_all_its_pairs(bench: Any, weight: str) -> None:
    """Edited before chosen before rejected; a list of four; and a plain pair. Equal answers of a list make no pair."""
    rows = [
        {"prompt": ask("a"), "edited": said("a1"), "chosen": said("a2"), "rejected": said("a3")},
        {"prompt": ask("b"), "ranked": ["b1", "b2", said("b2"), "b3"]},
        {"prompt": ask("c"), "chosen": said("c1"), "rejected": said("c2")},
    ]
    result, context = train(bench, config(batch_size=3, max_steps=1, heldout=0.0, ranked_weight=weight), rows=rows)
    lists = [("a", ["a1", "a2", "a3"]), ("b", ["b1", "b2", "b2", "b3"]), ("c", ["c1", "c2"])]
    tokenizer = load_tokenizer(bench.model())
    total, weights = 0.0, 0.0
    for prompt, answers in lists:
        scores = initial(bench, tokenizer, [ask(prompt) + said(text) for text in answers], bench.root / prompt)
        places = [(i, j) for i, j in itertools.combinations(range(len(answers)), 2) if answers[i] != answers[j]]
        for i, j in places:
            own = 1 / len(places) if weight == "list" else 1.0
            total += own * math.log1p(math.exp(-(scores[i] - scores[j])))
            weights += own
    assert result.facts["data"]["pairs"] == 3 + 5 + 1
    assert weights == pytest.approx(3 if weight == "list" else 9)
    assert context.io.series("train/loss")[0] == pytest.approx(total / weights, rel=1e-5)


def test_a_margin_may_stand_in_the_data(bench: Any) -> None:
    rows = [{**row, "margin": i % 4} for i, row in enumerate(pairs(8))]
    _, context = train(bench, config(batch_size=8, max_steps=1, heldout=0.0, margin="column"), rows=rows)
    tokenizer = load_tokenizer(bench.model())
    better = initial(bench, tokenizer, [row["prompt"] + row["chosen"] for row in rows], bench.root / "better")
    worse = initial(bench, tokenizer, [row["prompt"] + row["rejected"] for row in rows], bench.root / "worse")
    expected = sum(math.log1p(math.exp(-(b - w - i % 4))) for i, (b, w) in enumerate(zip(better, worse, strict=True))) / 8
    assert context.io.series("train/loss")[0] == pytest.approx(expected, rel=1e-5)


def test_the_new_head_is_small_for_its_width_and_follows_the_seed(bench: Any) -> None:
    wide = bench.model(hidden_size=256, intermediate_size=64)
    torch.manual_seed(1)
    weight = load_scorer(wide).score.weight
    assert weight.shape == (1, 256) and load_scorer(wide).score.bias is None
    assert float(weight.detach().std()) == pytest.approx(1 / math.sqrt(257), rel=0.15)
    torch.manual_seed(1)
    assert torch.equal(load_scorer(wide).score.weight, weight)


def test_micro_batches_do_not_change_the_result(bench: Any) -> None:
    options = {"max_steps": 3, "lr": 1e-3}
    whole, context = train(bench, config(**options, micro_batch_tokens=100_000), name="whole")
    split, other = train(bench, config(**options, micro_batch_tokens=1), name="split")
    assert context.io.series("train/loss") == pytest.approx(other.io.series("train/loss"), rel=1e-5)
    for name, tensor in bench.weights(whole.model).items():
        torch.testing.assert_close(bench.weights(split.model)[name], tensor, atol=2e-6, rtol=0)


def test_a_stopped_step_resumes_to_the_very_same_weights(bench: Any) -> None:
    options = config(epochs=2, warmup_ratio=0.2)
    whole, uninterrupted = train(bench, options, name="whole")
    with pytest.raises(Interrupted):
        train(bench, options, name="stopped", io=bench.io(stop_after=2))
    resumed, context = train(bench, options, name="stopped")
    assert context.io.series("train/loss") == uninterrupted.io.series("train/loss")[2:]
    assert all(torch.equal(bench.weights(whole.model)[n], t) for n, t in bench.weights(resumed.model).items())
    assert whole.facts["heldout"] == resumed.facts["heldout"]


def test_with_adapters_the_head_is_trained_too_and_a_plain_classifier_comes_out(bench: Any) -> None:
    result, context = train(bench, config(epochs=10, lr=1e-2, adapter={"rank": 4}))
    assert context.io.series("reward_model/accuracy")[-1] > 0.9
    before, after = bench.weights(bench.model()), bench.weights(result.model)
    assert set(after) - set(before) == {"score.weight"}
    tokenizer = load_tokenizer(result.model)
    row = pairs()[0]
    better, worse = scores_of(result.model, tokenizer, [row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]])
    assert better > worse


def test_lists_of_one_prompt_are_held_out_together(bench: Any) -> None:
    rows = [{"prompt": ask(WORDS[i % 4]), "chosen": said(f"a{i}"), "rejected": said(f"b{i}")} for i in range(12)]
    result, context = train(bench, config(max_steps=1, heldout=0.3), rows=rows)
    assert (result.facts["heldout"]["prompts"], result.facts["heldout"]["lists"], result.facts["lists"]) == (1, 3, 9)
    assert any(line.startswith("held out: ") for line in context.io.lines)
    json.dumps(result.facts, allow_nan=False)


def test_calibration_follows_its_definitions() -> None:
    margins = np.array([0.0, 2.0, -2.0, 3.0, 0.1])
    found = calibration(margins, np.zeros(5))
    p = 1 / (1 + np.exp(-margins))
    assert found.accuracy == pytest.approx(3.5 / 5)
    assert found.log_loss == pytest.approx(float(np.mean(-np.log(p))))
    assert found.brier == pytest.approx(float(np.mean((1 - p) ** 2)))
    # Confidences 0.5 and 0.525 share the lowest bin, 0.881 twice is in (0.85, 0.9], 0.953 in (0.95, 1].
    assert [(bin_.pairs, round(bin_.low, 2), bin_.accuracy) for bin_ in found.bins] == [(2, 0.5, 0.75), (2, 0.85, 0.5), (1, 0.95, 1.0)]
    expected = (2 * abs(0.75 - (0.5 + p[4]) / 2) + 2 * abs(0.5 - p[1]) + abs(1 - p[3])) / 5
    assert found.ece == pytest.approx(float(expected))
    huge = calibration(np.array([1e6, -1e6]), np.zeros(2))
    assert huge.accuracy == 0.5 and math.isfinite(huge.log_loss) and math.isfinite(huge.brier)


def test_scores_that_mean_what_they_say_have_next_to_no_calibration_error() -> None:
    """Labels drawn with the probability that the scores claim; scores twice as far apart are overconfident."""
    draw = np.random.RandomState(0)
    margins = draw.normal(0, 2, 20_000)
    right = draw.random_sample(20_000) < 1 / (1 + np.exp(-margins))
    honest = np.where(right, margins, -margins)
    assert calibration(honest, np.zeros(20_000)).ece < 0.02
    assert calibration(2 * honest, np.zeros(20_000)).ece > 0.06


@pytest.mark.parametrize(
    ("rows", "keys", "complaint"),
    [
        ([{"id": "r", **pairs(1)[0]}], {"margin": "column"}, "row 'r' has the margin None"),
        ([{"id": "r", **pairs(1)[0], "margin": float("nan")}], {"margin": "column"}, "row 'r' has the margin nan"),
        ([{"id": "r", **pairs(1)[0], "margin": -1}], {"margin": "column"}, "row 'r' has the margin -1"),
        ([{"id": "r", **pairs(1)[0], "margin": True}], {"margin": "column"}, "row 'r' has the margin True"),
        ([{"prompt": ask("a"), "ranked": ["b", "c"], "margin": 1}], {"margin": "column"}, "belongs to pairs of chosen and rejected"),
        ([{"id": "r", "prompt": ask("a"), "ranked": ["b"]}], {}, "row 'r': 'ranked' is a list of at least two answers"),
        ([{"id": "r", "prompt": ask("a"), "chosen": said("b")}], {}, "row 'r' has neither 'ranked' nor 'chosen' and 'rejected'"),
        ([{"id": "r", "chosen": said("b"), "rejected": said("c")}], {}, "row 'r' has no messages under 'prompt'"),
        ([{"id": "r", "prompt": ask("a"), "ranked": ["b", ["c"]]}], {}, r"row 'r': an answer is a text or a list of messages, not \['c'\]"),
        ([{"prompt": ask("a"), "chosen": said("b"), "rejected": said("b")}], {}, "nothing to learn a reward from.*answers are the same"),
        ([{"id": "r", "prompt": ask("a"), "ranked": ["b", ask("c")]}], {}, "nothing to learn a reward from.*without a shared prompt"),
        ([{"id": "r", "prompt": ask("a"), "ranked": ["b" * 70, "c"]}], {"on_too_long": "refuse"}, "row 'r' has an answer that ends after"),
    ],
)
def test_rows_that_rank_nothing_are_named(bench: Any, rows: list[dict[str, Any]], keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        train(bench, config(**keys), rows=rows)


def test_a_list_that_contradicts_itself_is_left_out_and_counted(bench: Any) -> None:
    rows = [*pairs(4), {"prompt": ask("a"), "ranked": ["b", "c", "b"]}, {"prompt": ask("a"), "ranked": ["b", "b", "c"]}]
    result, context = train(bench, config(max_steps=1, heldout=0), rows=rows)
    data = result.facts["data"]
    assert (data["lists"], data["dropped_contradictory"], data["pairs"]) == (5, 1, 6)
    assert any("1 dropped as they rank an answer above and below another" in line for line in context.io.lines)


def test_lists_that_teach_nothing_are_left_out_and_counted(bench: Any) -> None:
    other = [{"role": "user", "content": "z"}, *said("b")]
    rows = [
        *pairs(6),
        {"prompt": ask("a"), "ranked": ["b", " ", "c"]},
        {"prompt": ask("a"), "chosen": ask("a") + said("b"), "rejected": other},
        {"prompt": [], "chosen": ask("a") + said("b"), "rejected": other},
        {"prompt": [], "chosen": ask("a") + said("b"), "rejected": ask("a") + said("c")},
        {"prompt": ask("a"), "ranked": ["b", "b"]},
        {"prompt": ask("a"), "ranked": ["b", "c" * 80], "source": "forum"},
        {"prompt": ask("z"), "ranked": ["b", "c"], "source": "forum"},
    ]
    result, context = train(bench, config(max_steps=1, heldout=0.0), rows=rows)
    data = result.facts["data"]
    assert (data["lists_in"], data["lists"]) == (13, 8)
    assert data["by_source"] == {"forum": {"lists_in": 2, "lists": 1, "dropped_too_long": 1}}
    assert (data["dropped_empty"], data["dropped_unshared"], data["dropped_identical"], data["dropped_too_long"]) == (1, 2, 1, 1)
    assert any("1 dropped as too long" in line for line in context.io.lines)
    assert result.facts["heldout"] == {"lists": 0}


@pytest.mark.parametrize("name", ["margin", "centering", "lr"])
def test_an_infinite_dial_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="finite"):
        config(**{name: float("inf")})


def test_cutting_answers_is_not_offered() -> None:
    with pytest.raises(ValidationError, match="'drop' or 'refuse'"):
        config(on_too_long="truncate")


def test_a_prompt_alone_cannot_be_held_out(bench: Any) -> None:
    rows = [{"prompt": ask("a"), "chosen": said("b"), "rejected": said("c")}]
    result, _ = train(bench, config(max_steps=1, heldout=0.5), rows=rows)
    assert result.facts["heldout"] == {"lists": 0} and result.facts["lists"] == 1


def test_a_reward_model_is_no_base_of_another(bench: Any) -> None:
    result, _ = train(bench, config(max_steps=1))
    context = bench.context(config(), model=result.model, data=bench.root / "data", name="again")
    with pytest.raises(ModelError, match="no language model"):
        RewardModel(config()).run(context)


def test_non_finite_scores_stop_the_stage(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.functional.logsigmoid", lambda x: x * float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan"):
        train(bench, config(epochs=4))
