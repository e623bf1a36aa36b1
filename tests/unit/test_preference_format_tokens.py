"""Header and termination tokens of answers, under templates in the manner of Llama 3, ChatML and others."""

from __future__ import annotations

import string
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from steelyard.errors import ModelError
from steelyard_preference.answers import Answers
from steelyard_preference.format_tokens import FormatTokens
from steelyard_torch.bases import character_tokenizer
from steelyard_torch.encoding import EncodedRow, encode_chat

MARKERS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
# The layout of RECIPES 7.4, with the generation block where it stands in each case.
LLAMA = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}ASSISTANT{% else %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
HEADER, SAID = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}", "{{ m['content'] + '<|eot_id|>' }}"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}INSIDE{% endgeneration %}OUTSIDE"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "llama 3": LLAMA.replace("ASSISTANT", HEADER + "{% generation %}" + SAID + "{% endgeneration %}"),
    "llama 3, the header generated": LLAMA.replace("ASSISTANT", "{% generation %}" + HEADER + SAID + "{% endgeneration %}"),
    "llama 3, half of the header generated": LLAMA.replace(
        "ASSISTANT", "{{ '<|start_header_id|>' }}{% generation %}{{ 'assistant<|end_header_id|>\n\n' }}" + SAID + "{% endgeneration %}"
    ),
    "llama 3, without blocks": LLAMA.replace("ASSISTANT", HEADER + SAID),
    "chatml": CHATML.replace("INSIDE", "").replace("OUTSIDE", "{{ '\n' }}"),
    "chatml, its newline generated": CHATML.replace("INSIDE", "{{ '\n' }}").replace("OUTSIDE", ""),
    "chatml, built in": "chatml",
    "tulu": "tulu",
    "plain": "plain",
    "compact": "compact",
}


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    end = "<|im_end|>" if "im_end" in template or template == "chatml" else "<|eot_id|>" if "eot_id" in template else "<eos>"
    made = character_tokenizer(string.printable, extra_tokens=["<|user|>", "<|assistant|>"], chat_template=template)
    made.add_special_tokens({"additional_special_tokens": MARKERS})
    made.eos_token = end
    return made


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """As few tokens as can be of a few words, under the ChatML layout with its header generated."""
    markers = ["<|im_start|>", "<|im_end|>", "assistant", "user"]
    vocabulary = [(token, -1.0) for token in ["<unk>", *words, *markers]]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(Unigram(vocabulary, unk_id=0)), unk_token="<unk>", eos_token="<|im_end|>", pad_token="<unk>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    made.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ '<|im_start|>assistant\n' + m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ '<|im_start|>user\n' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return made


def content(template: str, messages: list[dict[str, str]], **keys: Any) -> tuple[str, str]:
    """What is trained, and what of it is the answers' own."""
    made = tokenizer(template)
    row = encode_chat(made, messages, **keys)
    return made.decode(row.input_ids[row.trained]), made.decode(row.input_ids[FormatTokens(made).content(row)])


def chat(*turns: str) -> list[dict[str, str]]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(turns)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_headers_and_terminations_are_found_and_all_else_is_kept(name: str) -> None:
    trained, own = content(TEMPLATES[name], chat("hello", "assistant\nsays: hi"))
    assert own == "assistant\nsays: hi"
    assert len(trained) > len(own) and own in trained


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_trained_turn_is_freed_of_them(name: str) -> None:
    _, own = content(TEMPLATES[name], chat("a", "first", "b", "second"))
    assert own == "firstsecond"
    _, own = content(TEMPLATES[name], chat("a", "first", "b", "second"), trained_turns="last")
    assert own == "second"


def test_white_space_at_the_end_of_an_answer_is_the_answers_own() -> None:
    assert content(TEMPLATES["llama 3"], chat("a", "\n\nb \n"))[1] == "\n\nb \n"
    assert content(TEMPLATES["chatml, its newline generated"], chat("a", "b\n"))[1] == "b\n"


def test_an_answer_that_was_cut_off_has_no_termination() -> None:
    made = tokenizer(TEMPLATES["llama 3"])
    row = encode_chat(made, chat("a", "one two three"))
    cut = EncodedRow(row.input_ids[:-6], row.trained[:-6])
    assert made.decode(cut.input_ids[FormatTokens(made).content(cut)]) == "one two "
    assert made.decode(row.input_ids[FormatTokens(made).content(row)]) == "one two three"


def test_a_header_that_was_cut_off_is_no_answer() -> None:
    made = tokenizer(TEMPLATES["llama 3, the header generated"])
    row = encode_chat(made, chat("a", "one"))
    first = int(row.trained.argmax())
    for end in range(first + 1, len(row) - len("one<")):
        cut = EncodedRow(row.input_ids[:end], row.trained[:end])
        assert not FormatTokens(made).content(cut).any(), made.decode(cut.input_ids[cut.trained])


def test_a_header_whose_end_shares_a_token_with_the_answer_is_found_all_the_same() -> None:
    made = word_tokenizer(["\n", "\n\n", "a", "b"])
    for text, own in (("b", ["b"]), ("\nb", ["\n\n", "b"])):
        row = encode_chat(made, chat("a", text))
        kept = FormatTokens(made).content(row)
        assert made.convert_ids_to_tokens(row.input_ids[kept].tolist()) == own


def test_special_tokens_that_the_answer_itself_ends_with_are_its_own() -> None:
    made = tokenizer(TEMPLATES["llama 3"])
    made.add_special_tokens({"additional_special_tokens": [*MARKERS, "</tool_call>"]})
    row = encode_chat(made, chat("a", "call</tool_call>"))
    assert made.decode(row.input_ids[FormatTokens(made).content(row)]) == "call</tool_call>"


def test_a_template_that_ends_turns_with_plain_text_is_refused() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '###' }}"
        "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises(ModelError, match=r"closes an assistant turn with a special token; this one ends with .*###"):
        FormatTokens(tokenizer(template))


def test_the_mask_counts_what_it_leaves() -> None:
    made = tokenizer(TEMPLATES["llama 3, the header generated"])
    rows = [encode_chat(made, chat("a", text)) for text in ("abc", "de")]
    header = len("assistant\n\n") + 2
    assert Answers(rows, made, mask_format_tokens=True).counts == [3, 2]
    assert Answers(rows, made, mask_format_tokens=False).counts == [3 + header + 1, 2 + header + 1]
