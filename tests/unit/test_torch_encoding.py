"""Token ids and the mask of trained tokens."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from steelyard.errors import DataError, ModelError
from steelyard_torch.bases import character_tokenizer
from steelyard_torch.encoding import (
    EncodedRow,
    encode_chat,
    encode_chats,
    encode_pairs,
    encode_prompt,
    encode_rollout,
    encode_texts,
)
from steelyard_torch.templates import TEMPLATES

TURNS = [
    {"role": "user", "content": "how are you?"},
    {"role": "assistant", "content": "fine\n\nthank you \n"},
    {"role": "user", "content": "good"},
    {"role": "assistant", "content": "héllo wörld 😀"},
]


def byte_level_tokenizer(*, trim_offsets: bool = True, template: str = "tulu") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that adds a BOS to plain text, as Llama 3's does."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    corpus = ["how are you? fine thank you hello world good user assistant\n\n"] * 50
    special = ["<bos>", "<eos>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(corpus, trainer)
    backend.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=trim_offsets), processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 0)])]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATES.get(template, template)
    return tokenizer


def trained_text(tokenizer: PreTrainedTokenizerFast, row: EncodedRow) -> str:
    return str(tokenizer.decode(row.input_ids[row.trained]))


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_every_answer_is_trained_with_its_white_space_and_end_token_and_nothing_else(trim_offsets: bool) -> None:
    tokenizer = byte_level_tokenizer(trim_offsets=trim_offsets)
    row = encode_chat(tokenizer, TURNS)
    assert trained_text(tokenizer, row) == "fine\n\nthank you \n<eos>héllo wörld 😀<eos>"
    assert trained_text(tokenizer, EncodedRow(row.input_ids, ~row.trained)) == (
        "<|user|>\nhow are you?\n<|assistant|>\n\n<|user|>\ngood\n<|assistant|>\n"
    )


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_a_space_of_the_header_that_is_a_token_of_its_own_is_not_trained(trim_offsets: bool) -> None:
    tokenizer = byte_level_tokenizer(trim_offsets=trim_offsets, template=TEMPLATES["tulu"].replace("<|assistant|>\n", "assistant: "))
    row = encode_chat(tokenizer, [{"role": "user", "content": "how"}, {"role": "assistant", "content": "42 "}])
    assert trained_text(tokenizer, row) == "42 <eos>"


def test_the_ids_are_those_of_the_tokenizer_itself() -> None:
    tokenizer = byte_level_tokenizer()
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert encode_chat(tokenizer, TURNS).input_ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_only_the_last_turn_is_trained_on_request() -> None:
    tokenizer = byte_level_tokenizer()
    assert trained_text(tokenizer, encode_chat(tokenizer, TURNS, trained_turns="last")) == "héllo wörld 😀<eos>"


def test_a_mask_agrees_with_that_of_transformers_on_a_template_with_generation_blocks() -> None:
    tokenizer = character_tokenizer(string.printable, chat_template="tulu")
    turns = [{**turn, "content": turn["content"].encode("ascii", "ignore").decode()} for turn in TURNS]
    theirs = tokenizer.apply_chat_template(turns, return_assistant_tokens_mask=True, return_dict=True)
    row = encode_chat(tokenizer, turns)
    assert row.trained.tolist() == [bool(x) for x in theirs["assistant_masks"]]


def test_no_sequence_begins_with_two_bos() -> None:
    with_bos = byte_level_tokenizer(template="{{ bos_token }}" + TEMPLATES["tulu"])
    assert tokenizer_begins(with_bos, encode_prompt(with_bos, TURNS[:1])) == 1
    assert tokenizer_begins(with_bos, encode_chat(with_bos, TURNS).input_ids) == 1
    twice = byte_level_tokenizer(template="{{ bos_token + bos_token }}" + TEMPLATES["tulu"])
    with pytest.raises(ModelError, match="begins with '<bos>' twice"):
        encode_prompt(twice, TURNS[:1])
    with pytest.raises(ModelError, match="begins with '<bos>' twice"):
        encode_chat(twice, TURNS)


def tokenizer_begins(tokenizer: PreTrainedTokenizerFast, ids: Any) -> int:
    return int(np.sum(np.asarray(ids)[:2] == tokenizer.bos_token_id))


def test_plain_text_gets_the_bos_that_the_tokenizer_gives_it_and_an_end_token() -> None:
    tokenizer = byte_level_tokenizer()
    row = encode_texts(tokenizer, [("how are", " you?")], max_length=64).rows[0]
    assert tokenizer.decode(row.input_ids) == "<bos>how are you?<eos>"
    assert trained_text(tokenizer, row) == " you?<eos>"


def test_a_text_may_go_without_an_end_token_and_train_its_prompt() -> None:
    tokenizer = character_tokenizer("ab=\n")
    row = encode_texts(tokenizer, [("a=", "b\n")], max_length=8, end_token=False).rows[0]
    assert trained_text(tokenizer, row) == "b\n"
    assert tokenizer.decode(row.input_ids) == "a=b\n"
    row = encode_texts(tokenizer, [("a=", "b\n")], max_length=8, train_prompt=True).rows[0]
    assert trained_text(tokenizer, row) == "=b\n<eos>", "nothing predicts the first token"


def test_the_prompt_of_a_rollout_is_the_beginning_of_its_training_sequence() -> None:
    tokenizer = byte_level_tokenizer()
    prompt = encode_prompt(tokenizer, TURNS[:3])
    row = encode_chat(tokenizer, TURNS)
    assert row.input_ids[: len(prompt)].tolist() == prompt
    rollout = encode_rollout(prompt, row.input_ids[len(prompt) :].tolist())
    assert rollout.input_ids.tolist() == row.input_ids.tolist()
    assert rollout.trained.tolist() == encode_chat(tokenizer, TURNS, trained_turns="last").trained.tolist()
    assert encode_rollout(prompt, [5, 6], trained=False).targets == 0


def test_too_long_rows_are_cut_dropped_or_refused_and_counted() -> None:
    tokenizer = character_tokenizer(string.printable, chat_template="compact")
    long = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a" * 40}]
    short = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    hopeless = [{"role": "user", "content": "q" * 60}, {"role": "assistant", "content": "a"}]
    cut = encode_chats(tokenizer, [long, short, hopeless], max_length=48)
    assert [len(row) for row in cut.rows] == [48, 24]  # <|user|> and <|assistant|> are 8 and 13 characters here
    assert [row.index for row in cut.rows] == [0, 1]
    assert (cut.stats.rows_in, cut.stats.rows, cut.stats.truncated, cut.stats.dropped_untrained) == (3, 2, 2, 1)
    dropped = encode_chats(tokenizer, [long, short, hopeless], max_length=48, on_too_long="drop")
    assert [row.index for row in dropped.rows] == [1]
    assert dropped.stats.dropped_too_long == 2
    with pytest.raises(DataError, match="row 0 has 63 tokens, over max_length 48"):
        encode_chats(tokenizer, [long], max_length=48, on_too_long="refuse")


def test_the_share_of_trained_tokens_is_told_and_zero_is_an_error() -> None:
    tokenizer = character_tokenizer(string.printable, extra_tokens=["<|user|>", "<|assistant|>"], chat_template="compact")
    stats = encode_chats(tokenizer, [[{"role": "user", "content": "qqqq"}, {"role": "assistant", "content": "a"}]] * 2, max_length=32).stats
    assert (stats.tokens, stats.trained_tokens) == (16, 4)
    assert stats.describe() == "2 of 2 rows, 16 tokens, 25.0% of them trained"
    with pytest.raises(DataError, match="0 of 1 rows have a token to train"):
        encode_chats(tokenizer, [[{"role": "user", "content": "q"}]], max_length=32)
    with pytest.raises(DataError, match="0 of 0 rows"):
        encode_chats(tokenizer, [], max_length=32)


def test_a_header_that_ends_inside_a_token_is_refused_when_it_is_the_rule() -> None:
    joined = TEMPLATES["tulu"].replace("<|assistant|>\n", "assistant:")
    tokenizer = byte_level_tokenizer(template=joined)
    tokenizer.backend_tokenizer.add_tokens([":f", ":g"])
    turns = [{"role": "user", "content": "how"}, {"role": "assistant", "content": "fine"}]
    assert encode_chats(tokenizer, [[turns[0], {"role": "assistant", "content": "you"}], turns], max_length=64).stats.straddled_spans == 1
    with pytest.raises(ModelError, match="in 1 of 1 answers the first token also covers the end of the prompt"):
        encode_chats(tokenizer, [turns], max_length=64)


def test_a_pair_trains_both_answers_on_one_prompt() -> None:
    tokenizer = byte_level_tokenizer()
    prompt = TURNS[:3]
    good, bad = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "no no"}
    encoded = encode_pairs(tokenizer, [(prompt, [good], [bad]), (prompt, [*prompt, good], [*prompt, bad])], max_length=128)
    for pair in encoded.pairs:
        assert trained_text(tokenizer, pair.chosen) == "good<eos>"
        assert trained_text(tokenizer, pair.rejected) == "no no<eos>"
        n = len(encode_prompt(tokenizer, prompt))
        assert pair.chosen.input_ids[:n].tolist() == pair.rejected.input_ids[:n].tolist() == encode_prompt(tokenizer, prompt)
    assert (encoded.stats.rows_in, encoded.stats.rows) == (2, 2)
    everything = encode_pairs(tokenizer, [(prompt, [good], [bad])], max_length=128, trained_turns="all")
    assert trained_text(tokenizer, everything.pairs[0].chosen) == "fine\n\nthank you \n<eos>good<eos>"


def test_a_pair_with_a_side_cut_away_is_left_out() -> None:
    tokenizer = character_tokenizer(string.printable, chat_template="compact")
    long_prompt = [{"role": "user", "content": "q" * 50}]
    answer = [{"role": "assistant", "content": "a"}]
    other, short_prompt = [{"role": "assistant", "content": "b"}], [{"role": "user", "content": "q"}]
    encoded = encode_pairs(tokenizer, [(long_prompt, answer, other), (short_prompt, answer, other)], max_length=40)
    assert [pair.index for pair in encoded.pairs] == [1]
    assert encoded.stats.dropped_untrained == 1


def test_pairs_that_prefer_nothing_are_left_out_and_counted_each_by_its_reason() -> None:
    tokenizer = character_tokenizer(string.printable, chat_template="compact")

    def said(text: str, role: str = "assistant") -> dict[str, str]:
        return {"role": role, "content": text}

    ask, other = said("q", "user"), said("r", "user")
    rows = [
        ([ask], [said("a")], [said("b")]),
        ([ask], [said("a")], [said(" ")]),
        ([ask], [], [said("b")]),
        ([ask], [said("a")], [said("a")]),
        ([ask], [ask, said("a")], [other, said("b")]),
        ([], [ask, said("a")], [other, said("b")]),
        ([], [ask, said("a")], [ask, said("b")]),
        ([], [said("a")], [said("b")]),
    ]
    encoded = encode_pairs(tokenizer, rows, max_length=40)
    assert [pair.index for pair in encoded.pairs] == [0, 6]
    assert encoded.pairs[0].chosen.input_ids.tolist() == encoded.pairs[1].chosen.input_ids.tolist()
    stats = encoded.stats
    assert (stats.rows_in, stats.rows, stats.dropped) == (8, 2, 6)
    assert (stats.dropped_empty, stats.dropped_identical, stats.dropped_unshared) == (2, 1, 3)
    for text in ("2 dropped with an empty answer", "3 dropped without a shared prompt", "1 dropped as chosen and rejected are the same"):
        assert text in stats.describe()
    with pytest.raises(DataError, match=r"none of the 6 pairs.*2 with an empty answer.*3 without a prompt.*1 with the same tokens"):
        encode_pairs(tokenizer, rows[1:6] + rows[7:], max_length=40)


def test_a_completion_that_is_no_answer_is_refused() -> None:
    tokenizer = byte_level_tokenizer()
    with pytest.raises(DataError, match="row 0: a chosen or rejected completion must end with an assistant message"):
        encode_pairs(tokenizer, [(TURNS[:1], TURNS[1:2], TURNS[2:3])], max_length=64)
