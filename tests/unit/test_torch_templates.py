"""Rendering with the spans that the assistant generates, and the template contract."""

from __future__ import annotations

import re
import string

import pytest
from transformers import PreTrainedTokenizerFast

from steelyard.errors import DataError, ModelError
from steelyard_torch.bases import character_tokenizer
from steelyard_torch.templates import (
    TEMPLATES,
    check_template,
    generation_prompt,
    render,
    render_with_spans,
    resolve_template,
    template_hash,
)

TWO_TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": " 2\n"},
]

THINKING_TURNS = [
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfirst"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "<think>\nha\n</think>\n\nsecond"},
]

# In the manner of Qwen3: reasoning is cut out of every assistant turn but the last, so that adding a turn rewrites the ones before it.
STRIPS_THINKING = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{%- if loop.last -%}{{ message['content'] }}{%- else -%}{{ message['content'].split('</think>')[-1].lstrip('\n') }}{%- endif -%}"
    "{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{%- else -%}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)

# In the manner of Llama 3: messages are trimmed, and there is a BOS.
TRIMS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<eos>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    markers = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<bos>"]
    tokenizer = character_tokenizer(string.printable, extra_tokens=markers)
    tokenizer.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = resolve_template(template)
    return tokenizer


def spans_of(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> list[str]:
    chat = render_with_spans(tokenizer, messages)
    assert chat.text == render(tokenizer, messages)
    return [chat.text[start:end] for start, end in chat.spans]


def without_generation(template: str) -> str:
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)


def test_the_tulu_template_is_the_published_text() -> None:
    # Layout as recorded for open-instruct's CHAT_TEMPLATES["tulu"]: an end token and a newline after every assistant turn but the last.
    expected = "<|system|>\nbe brief\n<|user|>\none?\n<|assistant|>\n1<eos>\n<|user|>\ntwo?\n<|assistant|>\n 2\n<eos>"
    tokenizer = tokenizer_with("tulu")
    assert render(tokenizer, TWO_TURNS) == expected
    assert render(tokenizer, TWO_TURNS[:2], add_generation_prompt=True) == "<|system|>\nbe brief\n<|user|>\none?\n<|assistant|>\n"


@pytest.mark.parametrize(("name", "end"), [("tulu", "<eos>"), ("chatml", "<|im_end|>"), ("plain", "<eos>"), ("compact", "<eos>")])
def test_a_built_in_template_spans_every_answer_with_its_end_token(name: str, end: str) -> None:
    assert spans_of(tokenizer_with(name), TWO_TURNS) == [f"1{end}", f" 2\n{end}"]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_built_in_template_opens_every_answer_with_its_generation_prompt(name: str) -> None:
    tokenizer = tokenizer_with(name)
    chat = render_with_spans(tokenizer, TWO_TURNS)
    assert all(chat.text[:start].endswith(generation_prompt(tokenizer)) for start, _ in chat.spans)


def test_spans_are_right_where_a_later_turn_rewrites_an_earlier_one() -> None:
    tokenizer = tokenizer_with(STRIPS_THINKING)
    first_alone = render(tokenizer, THINKING_TURNS[:2])
    assert not render(tokenizer, THINKING_TURNS).startswith(first_alone), "the template must not preserve prefixes"
    assert spans_of(tokenizer, THINKING_TURNS) == ["first<|im_end|>", "<think>\nha\n</think>\n\nsecond<|im_end|>"]


def test_a_template_without_generation_blocks_that_rewrites_turns_is_refused() -> None:
    tokenizer = tokenizer_with(without_generation(STRIPS_THINKING))
    with pytest.raises(ModelError, match=r"cannot be told without them: it leaves out, repeats or escapes messages"):
        render_with_spans(tokenizer, THINKING_TURNS)


@pytest.mark.parametrize("name", ["tulu", "chatml", "compact"])
def test_spans_derived_without_generation_blocks_are_those_of_the_blocks(name: str) -> None:
    marked, unmarked = tokenizer_with(name), tokenizer_with(without_generation(TEMPLATES[name]))
    assert render_with_spans(unmarked, TWO_TURNS) == render_with_spans(marked, TWO_TURNS)


def test_spans_are_derived_for_a_template_that_trims() -> None:
    assert spans_of(tokenizer_with(TRIMS), TWO_TURNS) == ["1<eos>", "2<eos>"]


def test_a_derived_span_begins_where_generation_does_even_if_the_template_inserts_text() -> None:
    # Qwen3 puts an empty reasoning block before an answer that has none; the model must produce that block, so it is trained.
    inserts = without_generation(TEMPLATES["chatml"]).replace(
        "{{ message['content'] + '<|im_end|>' }}", "{{ '<think>\n\n</think>\n\n' + message['content'] + '<|im_end|>' }}", 1
    )
    turns = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "1"}]
    assert spans_of(tokenizer_with(inserts), turns) == ["<think>\n\n</think>\n\n1<|im_end|>"]


def test_a_generation_prompt_quoted_by_the_user_does_not_start_a_span() -> None:
    turns = [{"role": "user", "content": "say <|im_start|>assistant\nno"}, {"role": "assistant", "content": "yes"}]
    assert spans_of(tokenizer_with(without_generation(TEMPLATES["chatml"])), turns) == ["yes<|im_end|>"]


def test_a_template_whose_answers_end_without_a_special_token_is_refused() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(ModelError, match="no special token closes an assistant turn"):
        render_with_spans(tokenizer_with(template), TWO_TURNS[1:])


def test_a_generation_block_whose_place_is_unknown_is_refused() -> None:
    block = "{% generation %}{{ m['content'] }}{% endgeneration %}"
    captured = "{% set all %}{% for m in messages %}" + block + "{% endfor %}{% endset %}>>{{ all }}"
    with pytest.raises(ModelError, match="inside a macro, set, filter or call block"):
        render_with_spans(tokenizer_with(captured), TWO_TURNS[1:])


def test_generation_blocks_around_user_turns_are_refused() -> None:
    template = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    with pytest.raises(ModelError, match="5 generation spans for 2 assistant turns"):
        render_with_spans(tokenizer_with(template), TWO_TURNS)


def test_a_tokenizer_without_a_template_names_the_built_in_ones() -> None:
    with pytest.raises(ModelError, match=r"chatml \| compact \| plain \| tulu"):
        render(character_tokenizer("ab"), TWO_TURNS)


def test_an_unknown_role_and_missing_text_are_data_errors() -> None:
    tokenizer = tokenizer_with("tulu")
    with pytest.raises(DataError, match="roles 'narrator'"):
        render(tokenizer, [{"role": "narrator", "content": "x"}])
    with pytest.raises(DataError, match="message 0 needs a role and text content"):
        render(tokenizer, [{"role": "user", "content": None}])
    with pytest.raises(DataError, match="without messages"):
        render(tokenizer, [])


def test_an_unknown_template_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean 'chatml'"):
        resolve_template("chatlm")


def test_the_contract_depends_on_template_tokenizer_and_special_tokens_and_on_nothing_else() -> None:
    base = tokenizer_with("tulu")
    same = tokenizer_with("tulu")
    same("some text", padding="max_length", max_length=32, truncation=True)
    assert template_hash(same) == template_hash(base)
    other_template, other_vocabulary, other_special = (tokenizer_with("tulu") for _ in range(3))
    other_template.chat_template = TEMPLATES["plain"]
    other_vocabulary.add_tokens(["<new>"])
    other_special.pad_token = "<unk>"
    hashes = {template_hash(t) for t in (base, other_template, other_vocabulary, other_special)}
    assert len(hashes) == 4


def test_another_contract_than_the_models_stops_a_stage() -> None:
    tokenizer = tokenizer_with("tulu")
    expected = template_hash(tokenizer)
    check_template(expected, tokenizer, where="stage 'sft'")
    tokenizer.chat_template = TEMPLATES["plain"]
    with pytest.raises(ModelError, match="stage 'sft' would use another chat template"):
        check_template(expected, tokenizer, where="stage 'sft'")
