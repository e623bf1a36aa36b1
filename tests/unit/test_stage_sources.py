"""What a stage leaves out or cuts is counted for each source of its dataset, whatever the recipe says should become of it."""

from __future__ import annotations

from typing import Any

import pytest

from steelyard.errors import ArtifactError, DataError, Interrupted
from steelyard.rows import row_sources
from steelyard_preference.config import DpoConfig, KtoConfig
from steelyard_preference.dpo import Dpo
from steelyard_preference.kto import Kto
from steelyard_sft.config import PretrainConfig, SftConfig
from steelyard_sft.supervised import Pretrain, Sft

# Under the template "compact" a conversation has 3 tokens more than characters: two roles and the end.
SHORT, LONG = "ab", "abcdefgh"


def chats(bench: Any) -> Any:
    """Of `a` 3 rows of 7 tokens; of `b` one of those and two of 13, one of which has its whole answer behind the 10th."""
    rows = [("a", SHORT, SHORT)] * 3 + [("b", SHORT, SHORT), ("b", SHORT, LONG), ("b", LONG, SHORT)]
    return bench.data({"messages": bench.chat(question, answer), "source": source} for source, question, answer in rows)


def sft(bench: Any, **keys: Any) -> Any:
    options = SftConfig(**{"lr": 1e-3, "batch_size": 4, "max_length": 10, "max_steps": 1, **keys})
    context = bench.context(options, model=bench.model(), data=chats(bench), name=keys.get("on_too_long", "truncate"))
    return Sft(options).run(context), context


def test_rows_that_are_cut_are_counted_for_their_source(bench: Any) -> None:
    result, context = sft(bench)
    assert result.facts["data"]["by_source"] == {
        "a": {"rows_in": 3, "rows": 3, "tokens": 21, "trained_tokens": 9},
        "b": {"rows_in": 3, "rows": 2, "truncated": 2, "dropped_untrained": 1, "tokens": 17, "trained_tokens": 3 + 6},
    }
    assert any(line.endswith("; of 'b': 2 truncated, 1 dropped without an answer left") for line in context.io.lines)
    # From the cache it is told again.
    again, _ = sft(bench)
    assert again.facts["data"] == result.facts["data"]


def test_rows_that_are_dropped_are_counted_for_their_source(bench: Any) -> None:
    result, context = sft(bench, on_too_long="drop")
    assert result.facts["data"]["by_source"]["b"] == {"rows_in": 3, "rows": 1, "dropped_too_long": 2, "tokens": 7, "trained_tokens": 3}
    assert any("; of 'b': 2 dropped as too long" in line for line in context.io.lines)


def test_a_refused_row_is_named_with_its_source(bench: Any) -> None:
    with pytest.raises(DataError, match=r"row 4 of source 'b' has 13 tokens, over max_length 10"):
        sft(bench, on_too_long="refuse")


def test_rows_without_a_source_are_counted_in_all_alone(bench: Any) -> None:
    data = bench.data([{"messages": bench.chat(SHORT, LONG)}] * 4)
    assert row_sources(data) == [None] * 4
    options = SftConfig(lr=1e-3, batch_size=4, max_length=10, max_steps=1)
    facts = Sft(options).run(bench.context(options, model=bench.model(), data=data)).facts["data"]
    assert facts["truncated"] == 4 and facts["by_source"] == {}


def test_plain_texts_and_pairs_and_labelled_answers_are_counted_for_their_source_as_well(bench: Any) -> None:
    texts = bench.data([{"text": SHORT, "source": "a"}, {"text": LONG * 2, "source": "b"}] * 2, "texts")
    options = PretrainConfig(lr=1e-3, batch_size=4, max_length=10, max_steps=1)
    result = Pretrain(options).run(bench.context(options, model=bench.model(), data=texts, name="pretrain"))
    assert {source: counts.get("truncated", 0) for source, counts in result.facts["data"]["by_source"].items()} == {"a": 0, "b": 2}

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    def asked(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    pairs = [
        {"prompt": asked("a"), "chosen": said(SHORT), "rejected": said("c"), "source": "a"},
        {"prompt": asked("b"), "chosen": said(SHORT), "rejected": said(SHORT), "source": "b"},
        {"prompt": asked("c"), "chosen": said(SHORT), "rejected": said(" "), "source": "b"},
        {"prompt": asked("d"), "chosen": said(LONG), "rejected": said("c"), "source": "b"},
    ]
    data = bench.data(pairs, "pairs")
    dpo = DpoConfig(lr=1e-3, batch_size=2, max_length=10, max_steps=1)
    result = Dpo(dpo).run(bench.context(dpo, model=bench.model(), data=data, name="dpo", reference=bench.model()))
    counts = result.facts["data"]["by_source"]
    assert counts["b"]["rows_in"] == 3 and counts["b"]["rows"] == 1
    assert [counts["b"][name] for name in ("dropped_identical", "dropped_empty", "truncated")] == [1, 1, 1]
    kto = KtoConfig(lr=1e-3, batch_size=4, max_length=10, max_steps=1)
    result = Kto(kto).run(bench.context(kto, model=bench.model(), data=data, name="kto", reference=bench.model()))
    assert result.facts["data"]["by_source"]["b"]["truncated"] == 1


def test_a_checkpoint_of_another_model_or_another_choice_of_weights_is_refused(bench: Any) -> None:
    data = chats(bench)
    options = SftConfig(lr=1e-3, batch_size=2, max_length=16, epochs=2)
    with pytest.raises(Interrupted):
        Sft(options).run(bench.context(options, model=bench.model(), data=data, io=bench.io(stop_after=1)))
    for other in ({"hidden_size": 16}, {"tie_word_embeddings": False}):
        with pytest.raises(ArtifactError, match="of another model"):
            Sft(options).run(bench.context(options, model=bench.model(**other), data=data))
    for keys in ({"freeze": ["model.norm.weight"]}, {"adapter": {"rank": 2}}):
        changed = SftConfig(**{**options.model_dump(exclude_unset=True), **keys})
        with pytest.raises(ArtifactError, match="of another"):
            Sft(changed).run(bench.context(changed, model=bench.model(), data=data))
