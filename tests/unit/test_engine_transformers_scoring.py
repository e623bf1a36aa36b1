"""Scoring of continuations, new weights, and engines that share a live model with a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from steelyard.errors import EngineError, ModelError
from steelyard.records import Prompt, Sampling
from steelyard_engines.config import TransformersEngineConfig
from steelyard_engines.scoring import encode_pair
from steelyard_engines.transformers_engine import TransformersEngine
from steelyard_torch.bases import new_model
from steelyard_torch.models import load_model, load_tokenizer

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 =:"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of one architecture and tokenizer, with different weights."""
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 1), ("two", 2)):
        new_model(root / name, architecture=ARCHITECTURE, characters=CHARACTERS, chat_template="plain", seed=seed)
    return root / "one", root / "two"


def make(folder: Path, **keys: Any) -> TransformersEngine:
    return TransformersEngine(TransformersEngineConfig(device="cpu", **keys), folder)


PAIRS = [("ab", " cd"), ("abc ", "d"), ("", "xyz"), ("sum 1 2", "3"), ("sum 1 2", "4"), ("sum 1 2", "45"), ("q" * 30, "r" * 20)]


@pytest.mark.parametrize("limits", [{}, {"max_batch_rows": 1}, {"max_batch_tokens": 40}, {"max_logits": 100}])
def test_scores_equal_a_full_forward_pass(folders: tuple[Path, Path], limits: dict[str, int]) -> None:
    engine, model = make(folders[0], **limits), load_model(folders[0])
    tokenizer = load_tokenizer(folders[0])
    for pair, scored in zip(PAIRS, engine.score(PAIRS), strict=True):
        context, continuation = encode_pair(tokenizer, *pair)
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([[*context, *continuation]])).logits[0].double().log_softmax(-1)
        rows = logprobs[len(context) - 1 : -1]
        expected = [float(row[token]) for row, token in zip(rows, continuation, strict=True)]
        assert scored.token_logprobs == pytest.approx(expected, abs=1e-4)
        assert scored.logprob == pytest.approx(sum(expected), abs=1e-3)
        assert scored.is_greedy == (rows.argmax(-1).tolist() == list(continuation))


def test_a_greedy_completion_scores_as_greedy_with_its_own_logprobs(folders: tuple[Path, Path]) -> None:
    engine = make(folders[0])
    (completion,) = engine.generate([Prompt("p", text="max 3 4")], Sampling(10, temperature=0))[0]
    (scored,) = engine.score_tokens([(completion.prompt_token_ids, completion.token_ids)])
    assert scored.is_greedy
    assert completion.logprobs is not None
    assert scored.token_logprobs == pytest.approx(completion.logprobs, abs=1e-4)


def test_white_space_at_the_end_of_a_context_belongs_to_the_continuation(folders: tuple[Path, Path]) -> None:
    tokenizer = load_tokenizer(folders[0])
    context, continuation = encode_pair(tokenizer, "ab  ", "c")
    assert tokenizer.decode(context) == "ab" and tokenizer.decode(continuation) == "  c"
    prefix, whole = encode_pair(tokenizer, "", "c")
    assert prefix == (tokenizer.eos_token_id,) and tokenizer.decode(whole) == "c"


def test_a_pair_longer_than_the_context_is_refused(folders: tuple[Path, Path]) -> None:
    engine = make(folders[0])
    assert len(engine.score([("a" * 60, "b" * 5)])) == 1, "the last token needs no place"
    with pytest.raises(EngineError, match=r"pair 1 has 66 tokens \(60 of context\), and the context holds 64"):
        engine.score([("a", "b"), ("a" * 60, "b" * 6)])


@pytest.mark.parametrize("how", ["folder", "tensors"])
def test_new_weights_change_the_answers_and_the_version(folders: tuple[Path, Path], how: str) -> None:
    engine, other = make(folders[0]), make(folders[1])
    prompt, sampling = [Prompt("p", text="reverse abc")], Sampling(12, seed=1)
    before = engine.generate(prompt, sampling)[0][0]
    engine.load_weights(folders[1] if how == "folder" else load_model(folders[1]).state_dict(), 7)
    after, expected = engine.generate(prompt, sampling)[0][0], other.generate(prompt, sampling)[0][0]
    assert (before.weight_version, after.weight_version) == (0, 7)
    assert after.token_ids == expected.token_ids and after.logprobs == expected.logprobs
    assert before.token_ids != after.token_ids


def broken(state: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    name = "model.layers.1.mlp.up_proj.weight"
    match how:
        case "unknown":
            return {**state, "model.layers.1.mlp.up_proj.weigth": state[name]}
        case "missing":
            return {k: v for k, v in state.items() if k != name}
        case "shape":
            return {**state, name: state[name][:-1]}
        case _:
            return {**state, name: state[name] * float("nan")}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("unknown", r"did you mean 'model\.layers\.1\.mlp\.up_proj\.weight'"),
        ("missing", r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"),
        ("shape", r"has shape \(63, 32\), the model's has \(64, 32\)"),
        ("nan", "is not finite"),
    ],
)
def test_bad_weights_are_refused_whole(folders: tuple[Path, Path], how: str, words: str) -> None:
    engine = make(folders[0])
    before = engine.score(PAIRS)
    with pytest.raises(EngineError, match=words):
        engine.load_weights(broken(load_model(folders[1]).state_dict(), how), 1)
    assert engine.score(PAIRS) == before
    assert engine.weight_version == 0


def test_weights_of_a_folder_with_another_template_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    new_model(tmp_path / "other", architecture=ARCHITECTURE, characters=CHARACTERS, chat_template="tulu", seed=1)
    with pytest.raises(ModelError, match="another chat template"):
        make(folders[0]).load_weights(tmp_path / "other", 1)


def test_a_shared_module_is_not_copied_and_keeps_its_mode(folders: tuple[Path, Path]) -> None:
    model = load_model(folders[0])
    model.train()
    model.model.layers[0].eval()  # a part that its trainer has frozen
    engine = TransformersEngine(TransformersEngineConfig(), folders[0], module=model)
    before = engine.score(PAIRS)
    assert model.training and model.model.layers[1].training and not model.model.layers[0].training
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    assert engine.score(PAIRS) != before, "what the trainer writes is what the engine scores"
    engine.load_weights(model.state_dict(), 3)
    assert engine.generate([Prompt("p", text="a")], Sampling(1))[0][0].weight_version == 3
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with pytest.raises(EngineError, match="shares its weights"):
        engine.load_weights(folders[1], 4)


def test_training_goes_on_after_the_engine_used_the_module(folders: tuple[Path, Path]) -> None:
    model = load_model(folders[0])
    engine = TransformersEngine(TransformersEngineConfig(), folders[0], module=model)
    engine.generate([Prompt("p", text="ab")], Sampling(4))
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_dropout_is_off_while_the_engine_answers(tmp_path: Path) -> None:
    new_model(tmp_path / "m", architecture={**ARCHITECTURE, "attention_dropout": 0.5}, characters=CHARACTERS, chat_template=None, seed=1)
    model = load_model(tmp_path / "m")
    model.train()
    engine = TransformersEngine(TransformersEngineConfig(), tmp_path / "m", module=model)
    assert engine.score(PAIRS) == engine.score(PAIRS)


def test_a_closed_engine_says_so(folders: tuple[Path, Path]) -> None:
    engine = make(folders[0])
    engine.sleep()
    engine.wake()
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.score(PAIRS)


def test_a_context_longer_than_the_models_own_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(EngineError, match=r"max_model_len 65 is longer than the model's own context of 64"):
        make(folders[0], max_model_len=65)
