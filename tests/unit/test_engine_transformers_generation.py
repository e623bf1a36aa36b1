"""Generation by the transformers engine: what it generates, with which log-probabilities, and that batches do not matter."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from steelyard.errors import EngineError
from steelyard.protocols import Engine
from steelyard.records import Completion, Prompt, Sampling
from steelyard_engines.config import TransformersEngineConfig
from steelyard_engines.transformers_engine import TransformersEngine
from steelyard_torch.bases import new_model
from steelyard_torch.models import load_model, load_tokenizer

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 =:+,\n"
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    # Large enough for a random model to be opinionated, so that a wrong cache or position shows in what it says.
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "model"
    new_model(path, architecture=ARCHITECTURE, characters=CHARACTERS, chat_template="plain", seed=5)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    return TransformersEngine(TransformersEngineConfig(device="cpu"), folder)


def make(folder: Path, **keys: Any) -> TransformersEngine:
    return TransformersEngine(TransformersEngineConfig(device="cpu", **keys), folder)


def prompts(count: int, seed: int = 0) -> list[Prompt]:
    rng = random.Random(seed)
    texts = ["".join(rng.choice(CHARACTERS[:-1]) for _ in range(rng.randrange(1, 30))) for _ in range(count)]
    return [Prompt(f"p{i}", text=text) for i, text in enumerate(texts)]


def by_key(completions: Sequence[Sequence[Completion]]) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(c.prompt_id, c.sample): c.token_ids for group in completions for c in group}


def full_logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)])).logits[0].double()


def test_it_is_an_engine(engine: TransformersEngine) -> None:
    assert isinstance(engine, Engine)


def test_greedy_equals_transformers_own_generate_token_for_token(folder: Path, engine: TransformersEngine) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    asked = prompts(24)
    ours = engine.generate(asked, Sampling(24, temperature=0))
    for prompt, (completion,) in zip(asked, ours, strict=True):
        ids = tokenizer(prompt.text, return_tensors="pt")["input_ids"]
        config = GenerationConfig(
            max_new_tokens=24, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, ids.shape[1] :].tolist()
        assert list(completion.token_ids) == theirs
        assert completion.finish_reason == ("stop" if theirs[-1] == tokenizer.eos_token_id else "length")
    assert {c.finish_reason for (c,) in ours} == {"stop", "length"}, "both ways to end must occur for this test to mean something"


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.8), (0.9, 12, 0.6), (0.0, 0, 1.0)]
)
def test_logprobs_are_those_of_the_distribution_sampled_from(
    folder: Path, engine: TransformersEngine, temperature: float, top_k: int, top_p: float
) -> None:
    """Against teacher forcing in float64, with truncation written out from its definition: sort, cut, renormalise."""
    model = load_model(folder)
    sampling = Sampling(12, temperature=temperature, top_k=top_k, top_p=top_p, n=3, seed=4)
    for group in engine.generate(prompts(8, seed=3), sampling):
        for completion in group:
            logits = full_logits(model, (*completion.prompt_token_ids, *completion.token_ids))
            assert completion.logprobs is not None and len(completion.logprobs) == len(completion.token_ids)
            for t, (token, logprob) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
                row = logits[len(completion.prompt_token_ids) - 1 + t]
                expected = distribution(row, temperature, top_k, top_p)
                assert logprob == pytest.approx(float(expected[token].log()), abs=1e-4)


def distribution(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    if temperature == 0:
        return logits.softmax(-1)
    probabilities = (logits / temperature).softmax(-1)
    order = probabilities.argsort(descending=True)
    kept = order[:top_k] if top_k else order
    renormalised = probabilities[kept] / probabilities[kept].sum()
    before = renormalised.cumsum(0) - renormalised
    kept = kept[before < top_p - 1e-9]
    out = torch.zeros_like(probabilities)
    out[kept] = probabilities[kept] / probabilities[kept].sum()
    return out


def test_an_answer_does_not_depend_on_its_batch(folder: Path, engine: TransformersEngine) -> None:
    asked = prompts(20, seed=1)
    sampling = Sampling(16, n=3, seed=9, temperature=1.1)
    together = by_key(engine.generate(asked, sampling))
    alone = by_key([engine.generate([p], sampling)[0] for p in asked])
    shuffled = asked[::-1]
    random.Random(2).shuffle(shuffled)
    assert alone == together
    assert by_key(engine.generate(shuffled, sampling)) == together
    assert by_key(make(folder, max_batch_rows=4).generate(asked, sampling)) == together
    assert by_key(make(folder, max_batch_rows=2).generate(asked, sampling)) == together, "a prompt's samples may be split, too"
    assert by_key(make(folder, max_batch_tokens=100).generate(asked, sampling)) == together


def test_the_first_samples_are_the_same_however_many_are_asked_for(engine: TransformersEngine) -> None:
    asked = prompts(5)
    few = by_key(engine.generate(asked, Sampling(8, n=2, seed=1)))
    many = by_key(engine.generate(asked, Sampling(8, n=5, seed=1)))
    assert all(many[key] == tokens for key, tokens in few.items())


def test_seed_prompt_id_and_sample_each_give_other_draws(engine: TransformersEngine) -> None:
    prompt = prompts(1)[0]
    renamed = Prompt("another", text=prompt.text)
    first, second = engine.generate([prompt], Sampling(20, n=2, seed=1))[0]
    other_seed = engine.generate([prompt], Sampling(20, seed=2))[0][0]
    other_id = engine.generate([renamed], Sampling(20, seed=1))[0][0]
    assert len({first.token_ids, second.token_ids, other_seed.token_ids, other_id.token_ids}) == 4


def test_completions_come_in_the_order_of_prompts_and_samples(engine: TransformersEngine) -> None:
    asked = prompts(7)
    made = engine.generate(asked, Sampling(3, n=2))
    assert [[(c.prompt_id, c.sample) for c in group] for group in made] == [[(p.id, 0), (p.id, 1)] for p in asked]
    assert [group[0].prompt_token_ids for group in made] == [tuple(engine.tokenizer(p.text)["input_ids"]) for p in asked]


def test_text_leaves_out_the_end_token_and_tokens_keep_it(engine: TransformersEngine) -> None:
    ended = [c for (c,) in engine.generate(prompts(40), Sampling(40, temperature=0)) if c.finish_reason == "stop"]
    assert ended
    for completion in ended:
        assert completion.token_ids[-1] == engine.tokenizer.eos_token_id
        assert completion.text == engine.tokenizer.decode(completion.token_ids[:-1], skip_special_tokens=True)
        assert engine.tokenizer.eos_token not in completion.text


def test_a_stop_text_ends_a_completion_and_is_cut_off(engine: TransformersEngine) -> None:
    asked = prompts(30, seed=6)
    free = engine.generate(asked, Sampling(30, temperature=0))
    text = next(c.text for (c,) in free if len(c.text) >= 12)
    stop = text[5:8]
    stopped = engine.generate(asked, Sampling(30, temperature=0, stop=(stop, "never@")))
    hits = 0
    for (before,), (after,) in zip(free, stopped, strict=True):
        assert stop not in after.text
        at = before.text.find(stop)
        if at < 0:
            assert after.token_ids == before.token_ids and after.finish_reason == before.finish_reason
            continue
        hits += 1
        assert after.text == before.text[:at] and after.finish_reason == "stop"
        assert after.token_ids == before.token_ids[: at + len(stop)], "one token a character: nothing is generated after the stop text"
    assert hits


def test_a_stop_text_that_is_a_special_token_ends_at_that_token(folder: Path) -> None:
    engine = make(folder)
    end = engine.tokenizer.eos_token
    assert by_key(engine.generate(prompts(5), Sampling(20, stop=(end,)))) == by_key(engine.generate(prompts(5), Sampling(20)))


def test_a_prompt_that_fills_the_context_is_refused_by_name(engine: TransformersEngine) -> None:
    with pytest.raises(EngineError, match=r"prompt 'long' has 96 tokens, and the context holds 96"):
        engine.generate([Prompt("fine", text="a"), Prompt("long", text="a" * 96)], Sampling(4))


def test_generation_stops_where_the_context_is_full(engine: TransformersEngine) -> None:
    (completion,) = engine.generate([Prompt("p", text="b" * 90)], Sampling(50, seed=3))[0]
    assert len(completion.token_ids) <= 6
    short = make_shorter(engine)
    (completion,) = short.generate([Prompt("p", text="b" * 6)], Sampling(50, temperature=0))[0]
    assert len(completion.token_ids) <= 4


def make_shorter(engine: TransformersEngine) -> TransformersEngine:
    config = TransformersEngineConfig(device="cpu", max_model_len=10)
    return TransformersEngine(config, None, module=engine._open(), tokenizer=engine.tokenizer)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Prompt("empty", text=""), "'empty' has no tokens"),
        (Prompt("strange", token_ids=(3, 4_000)), "'strange' has the token id 4000"),
    ],
)
def test_prompts_no_model_can_continue_are_refused(engine: TransformersEngine, prompt: Prompt, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        engine.generate([prompt], Sampling(4))


def test_messages_go_through_the_template_with_its_generation_prompt(engine: TransformersEngine) -> None:
    messages = ({"role": "user", "content": "sum 1 2"},)
    (made,) = engine.generate([Prompt("m", messages=messages)], Sampling(2))[0]
    # The `plain` template capitalises its roles, which this tokenizer does not know: they stand as unknown tokens.
    ids = engine.tokenizer("User:\nsum 1 2\n\nAssistant:\n", add_special_tokens=False)["input_ids"]
    assert made.prompt_token_ids == tuple(ids)


def test_a_broken_model_is_an_error_and_not_a_text(folder: Path) -> None:
    model = load_model(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    engine = TransformersEngine(None, folder, module=model)
    with pytest.raises(EngineError, match="not finite for prompt 'p0' at new token 1"):
        engine.generate(prompts(1), Sampling(4))
