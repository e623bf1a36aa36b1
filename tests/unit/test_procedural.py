"""The procedural tasks: right answers, splits that never meet, the same items from the same seed."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard_data.procedural import TASKS, VERBOSE_PREFIX, Split, canonical, generate, item_id, split_of

SPLITS: tuple[Split, ...] = ("train", "dev", "tune", "unseen")
# How many items a task must be able to give: 200 for dev, so that seven tasks hold more than 1,000.
SIZES: dict[Split, int] = {"train": 500, "dev": 200, "tune": 50, "unseen": 200}


def items(split: Split, seed: int = 0, **options: Any) -> list[dict[str, Any]]:
    return list(generate(list(TASKS), split, SIZES[split] * len(TASKS), seed, **options))


def answer_by_other_means(task: str, prompt: str) -> str:
    """Work the answer out of the prompt's text, by other algorithms than the generator's."""
    numbers = [int(digits) for digits in re.findall(r"\d+", prompt)]
    words = prompt.split()
    if task in ("sum", "add"):
        # Counted, not added: the length of a row of strokes.
        return str(len("".join("|" * number for number in numbers)))
    if task == "maximum":
        return str(sorted(numbers)[-1])
    if task == "count":
        letter, word = words[-3], words[-1]
        return str(len(word) - len(word.replace(letter, "")))
    # The operand is the second word in both wordings: `reverse abc`, `write abcdef backwards`.
    word = words[1]
    if task == "reverse":
        return "".join(word[-position] for position in range(1, len(word) + 1))
    if task == "sort":
        tally = Counter(word)
        return "".join(letter * tally[letter] for letter in "abcdefghijklmnopqrstuvwxyz")
    assert task == "upper"
    return "".join(chr(ord(letter) - 32) for letter in word)


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_agrees_with_an_independent_computation(split: Split) -> None:
    for row in items(split):
        assert row["answer"] == answer_by_other_means(row["task"], row["prompt"]), row


@pytest.mark.parametrize("split", SPLITS)
def test_every_item_lies_in_the_split_it_was_asked_for_and_counts_by_task_are_exact(split: Split) -> None:
    rows = items(split)
    assert {split_of(row["prompt"]) for row in rows} == {split}
    assert Counter(row["task"] for row in rows) == dict.fromkeys(TASKS, SIZES[split])


def test_no_prompt_is_in_two_splits_in_any_form_or_seed() -> None:
    seen: dict[str, Split] = {}
    for split, seed, form in itertools.product(SPLITS, (0, 1), ("plain", "chat", "prompt")):
        long_share = 0.3 if split == "train" else 0.0
        for row in items(split, seed, form=form, long_share=long_share):
            assert seen.setdefault(canonical(row["prompt"]), split) == split


@pytest.mark.parametrize("split", ["dev", "tune", "unseen"])
def test_held_out_items_are_distinct_and_ids_name_them_in_every_seed(split: Split) -> None:
    rows = items(split)
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert len({row["id"] for row in rows}) == len(rows)
    names = {row["prompt"]: row["id"] for row in rows}
    again = {row["prompt"]: row["id"] for row in items(split, seed=1)}
    shared = names.keys() & again.keys()
    assert shared
    assert all(names[prompt] == again[prompt] for prompt in shared)


def test_the_order_of_the_operands_does_not_change_the_split() -> None:
    """So a dev sum is in train under no order of its operands: all 1,000 are looked at."""
    for triple in itertools.combinations_with_replacement(range(10), 3):
        orders = {split_of("sum {} {} {}".format(*order)) for order in itertools.permutations(triple)}
        assert len(orders) == 1
    assert canonical("Add  34 + 51") == canonical("add 51 + 34") != canonical("add 34 + 15")
    assert canonical("max 9 10 2") == "max 2 9 10"


@pytest.mark.parametrize("task", TASKS)
def test_unseen_items_are_longer_and_worded_otherwise(task: str) -> None:
    dev = [row["prompt"] for row in generate([task], "dev", 100, 0)]
    unseen = [row["prompt"] for row in generate([task], "unseen", 100, 0)]
    assert max(map(len, dev)) < min(map(len, unseen))
    assert not {prompt.split()[0] for prompt in dev} & {prompt.split()[0] for prompt in unseen}


def test_the_same_seed_gives_the_same_items_and_another_seed_others() -> None:
    first, again, other = items("train", 3), items("train", 3), items("train", 4)
    assert first == again
    assert [row["prompt"] for row in first] != [row["prompt"] for row in other]


def test_items_do_not_depend_on_the_interpreters_hash_seed() -> None:
    code = (
        "import json; from steelyard_data.procedural import TASKS, generate; "
        "print(json.dumps([r['prompt'] for r in generate(list(TASKS), 'dev', 70, 5)]))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1
    assert json.loads(texts.pop()) == [row["prompt"] for row in generate(list(TASKS), "dev", 70, 5)]


def test_item_ids_and_splits_stay_as_they_are() -> None:
    """Recorded once: changing them would silently unpair saved item scores and mix the splits of shipped weights."""
    assert item_id("add", "add 34 + 51") == "add-3b9e9eb56835"
    prompts = ("add 30 + 51", "add 33 + 51", "sum 0 0 0", "sum 0 0 3", "reverse abc", "reverse abcd")
    assert [split_of(prompt) for prompt in prompts] == ["train", "tune", "tune", "dev", "train", "dev"]


def test_a_plain_row_is_a_line_in_two_parts() -> None:
    for row in generate(["add"], "train", 20, 0, form="plain"):
        assert row["source"] == row["prompt"] + "="
        assert row["text"] == row["source"] + row["completion"] == f"{row['prompt']}={row['answer']}\n"


def test_a_chat_row_answers_in_one_of_two_styles_in_about_the_share_asked_for() -> None:
    rows = list(generate(list(TASKS), "train", 4000, 0, form="chat", verbose_share=0.4))
    for row in rows:
        user, assistant = row["messages"]
        assert user == {"role": "user", "content": row["prompt"]}
        prefix = VERBOSE_PREFIX if row["style"] == "verbose" else ""
        assert assistant == {"role": "assistant", "content": prefix + row["answer"]}
    # Four standard deviations of a binomial share of 4,000 items are 3.1 points.
    assert abs(sum(row["style"] == "verbose" for row in rows) / len(rows) - 0.4) < 0.031
    assert {row["style"] for row in generate(["add"], "train", 50, 0)} == {"concise"}


def test_a_prompt_row_ends_in_the_users_turn_and_holds_the_reference_apart() -> None:
    for row in generate(["count"], "train", 20, 0, form="prompt"):
        assert row["messages"] == [{"role": "user", "content": row["prompt"]}]
        assert row["reference"] == row["answer"]


def test_train_mixes_in_long_items_in_about_the_share_asked_for() -> None:
    rows = list(generate(["reverse"], "train", 2000, 0, form="plain", long_share=0.25))
    share = sum(row["prompt"].startswith("write") for row in rows) / len(rows)
    # Four standard deviations of a binomial share of 2,000 items are 3.9 points.
    assert abs(share - 0.25) < 0.039


@given(
    weights=st.dictionaries(st.sampled_from(sorted(TASKS)), st.floats(0.1, 10), min_size=1),
    count=st.integers(0, 200),
)
def test_weights_are_kept_to_within_one_item(weights: dict[str, float], count: int) -> None:
    tally = Counter(row["task"] for row in generate(weights, "train", count, 0))
    assert tally.total() == count
    for name, weight in weights.items():
        assert abs(tally[name] - count * weight / sum(weights.values())) < 1


def test_no_dev_prompt_stands_whole_in_a_training_row_as_consecutive_words() -> None:
    """What decontamination asks of items under eight words, with all punctuation taken as space."""

    def words(text: str) -> str:
        return " " + " ".join(re.findall(r"[a-z0-9]+", text.lower())) + " "

    documents = [row["text"] for row in items("train", form="plain", long_share=0.3)]
    documents += [" ".join(m["content"] for m in row["messages"]) for row in items("train", 1, verbose_share=0.5)]
    runs = set()
    for document in documents:
        parts = words(document).split()
        runs |= {" ".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}
    for split in ("dev", "unseen"):
        assert not [row["prompt"] for row in items(split) if words(row["prompt"]).strip() in runs]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((["adds"], "dev", 5, 0), "unknown task 'adds': one of reverse, sort, maximum, count, upper, sum, add"),
        ((["add"], "test", 5, 0), "unknown split 'test': one of train, dev, tune, unseen"),
        (([], "dev", 5, 0), "no tasks given"),
        (({"add": 0.0}, "dev", 5, 0), "weight of task 'add' is to be above 0, not 0.0"),
        ((["sum"], "dev", 500, 0), r"task 'sum' has no 500 distinct items in split 'dev' \(found 229\)"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(arguments: tuple[Any, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        list(generate(*arguments))


@pytest.mark.parametrize("options", [{"verbose_share": 1.5}, {"long_share": -0.1}, {"form": "lines"}, {"long_share": 0.1, "split": "dev"}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    split = options.pop("split", "train")
    with pytest.raises(ValueError, match=r"share|form"):
        list(generate(["add"], split, 5, 0, **options))
