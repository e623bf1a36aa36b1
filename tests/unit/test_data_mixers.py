"""Mixers keep their proportions to the row, and pairs keep better apart from worse."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import DataError
from steelyard.protocols import MixContext, OpenedSource
from steelyard.records import Completion, Prompt, Row, Sampling, Verdict
from steelyard_data.config import MixConfig, PreferencePairsConfig
from steelyard_data.mix import Mix, plan_counts
from steelyard_data.pairs import Answer, PreferencePairs, pair_up


class Rows:
    """A source that lives in memory."""

    def __init__(self, name: str, count: int):
        self._rows = [{"text": f"{name} {i}", "id": f"{name}-{i}"} for i in range(count)]

    def rows(self) -> Iterator[Row]:
        return iter([dict(row) for row in self._rows])


class Quiet:
    """Step IO that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def report(self, metrics: Mapping[str, float], *, step: int | None = None) -> None: ...

    def progress(self, done: float, total: float | None, unit: str, note: str = "") -> None: ...

    def sample(self, row: Mapping[str, Any]) -> None: ...

    def log(self, message: str) -> None:
        self.lines.append(message)

    def should_stop(self) -> bool:
        return False


class Sums:
    """A verifier of short answers: the reference is right, an answer of letters is unparseable, `?` breaks the verifier."""

    def names(self) -> Sequence[str]:
        return ("sum", "short")

    def verify(self, checks: Sequence[tuple[str, Completion, Any]]) -> list[Verdict]:
        return [self._one(name, completion.text, reference) for name, completion, reference in checks]

    def _one(self, name: str, text: str, reference: str) -> Verdict:
        if text == "?":
            return Verdict.error("broke")
        if name == "short":
            return Verdict.correct() if len(text) < 3 else Verdict.incorrect()
        return Verdict.correct() if text == reference else Verdict.incorrect()

    def close(self) -> None: ...


class Dice:
    """An engine that answers from a fixed list, drawn by the seed it is given."""

    def __init__(self, answers: Sequence[str]):
        self.answers = answers

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        return [
            [Completion(p.id, j, (1,), random.Random(f"{sampling.seed}{p.id}{j}").choice(self.answers), "stop") for j in range(sampling.n)]
            for p in prompts
        ]

    def close(self) -> None: ...


def context(tmp_path: Path, sources: Sequence[OpenedSource], seed: int = 7, answers: Sequence[str] = ()) -> MixContext:
    return MixContext(
        config=None,
        sources=sources,
        seed=seed,
        run_seed=0,
        model=tmp_path,
        cache=tmp_path / "cache",
        io=Quiet(),
        engine=lambda model=None, **_: Dice(answers),  # type: ignore[arg-type, return-value]
        verifiers=Sums(),
    )


def mixed(tmp_path: Path, sources: Sequence[OpenedSource], seed: int = 7, **config: Any) -> list[Row]:
    return list(Mix(MixConfig(**config)).mix(context(tmp_path, sources, seed)).rows)


def test_each_source_gives_exactly_what_was_asked(tmp_path: Path) -> None:
    sources = [
        OpenedSource("a", Rows("a", 100), count=30),
        OpenedSource("b", Rows("b", 50), fraction=0.5),
        OpenedSource("c", Rows("c", 10), epochs=2.5),
        OpenedSource("d", Rows("d", 7)),
    ]
    rows = mixed(tmp_path, sources)
    assert Counter(row["source"] for row in rows) == {"a": 30, "b": 25, "c": 25, "d": 7}
    passes = Counter(row["id"] for row in rows if row["source"] == "c")
    assert set(passes.values()) == {2, 3}
    assert sum(passes.values()) == 25
    assert len({row["id"] for row in rows if row["source"] == "a"}) == 30


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(tmp_path: Path) -> None:
    def sources() -> list[OpenedSource]:
        return [OpenedSource("a", Rows("a", 60), count=20), OpenedSource("b", Rows("b", 60), count=20)]

    assert mixed(tmp_path, sources(), 1) == mixed(tmp_path, sources(), 1)
    assert mixed(tmp_path, sources(), 1) != mixed(tmp_path, sources(), 2)


def test_a_sources_draw_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    alone = mixed(tmp_path, [OpenedSource("a", Rows("a", 60), count=20)])
    beside = mixed(tmp_path, [OpenedSource("b", Rows("b", 9)), OpenedSource("a", Rows("a", 60), count=20)])
    assert {r["id"] for r in alone} == {r["id"] for r in beside if r["source"] == "a"}


def test_more_rows_than_there_are_is_an_error_that_names_the_way(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'a' has 10 rows and not the 25 asked for.*`epochs: 2.5`"):
        mixed(tmp_path, [OpenedSource("a", Rows("a", 10), count=25)])


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'a' has no rows"):
        mixed(tmp_path, [OpenedSource("a", Rows("a", 0))])


def test_a_total_without_weights_must_be_met(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="total: 12"):
        mixed(tmp_path, [OpenedSource("a", Rows("a", 10))], total=12)


@given(
    weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=6),
    total=st.integers(10, 500),
)
def test_weights_share_out_the_total_to_the_row(weights: list[float], total: int) -> None:
    sources = [OpenedSource(str(i), Rows(str(i), 0), weight=w) for i, w in enumerate(weights)]
    sizes = {source.name: 10_000 for source in sources}
    try:
        counts = plan_counts(sources, sizes, total)
    except DataError:
        assert min(weights) / sum(weights) * total < 1
        return
    assert sum(counts.values()) == total
    for source in sources:
        assert abs(counts[source.name] - total * (source.weight or 0) / sum(weights)) < 1


def test_weights_without_a_total_use_up_the_scarcest_source() -> None:
    sources = [OpenedSource("a", Rows("a", 0), weight=3), OpenedSource("b", Rows("b", 0), weight=1)]
    assert plan_counts(sources, {"a": 30, "b": 100}, None) == {"a": 30, "b": 10}


def prompts(count: int) -> Rows:
    made = Rows("p", 0)
    made._rows = [
        {"id": str(i), "messages": [{"role": "user", "content": f"{i}?"}], "reference": "4", "verifier": "sum"} for i in range(count)
    ]  # type: ignore[assignment]
    return made


def pairs_of(tmp_path: Path, answers: Sequence[str], count: int = 40, seed: int = 7, **config: Any) -> list[Row]:
    mixer = PreferencePairs(PreferencePairsConfig(max_new_tokens=4, **config))
    return list(mixer.mix(context(tmp_path, [OpenedSource("p", prompts(count))], seed, answers)).rows)


def test_pairs_prefer_the_verified_answer(tmp_path: Path) -> None:
    made = pairs_of(tmp_path, ["4", "5", "6"])
    assert len(made) > 30
    for pair in made:
        assert pair["chosen"] == [{"role": "assistant", "content": "4"}]
        assert pair["rejected"][0]["content"] in ("5", "6")
        assert pair["prompt"][-1]["role"] == "user"


def test_pairs_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    assert pairs_of(tmp_path, ["4", "5"], seed=1) == pairs_of(tmp_path, ["4", "5"], seed=1)
    assert pairs_of(tmp_path, ["4", "5", "6"], seed=1) != pairs_of(tmp_path, ["4", "5", "6"], seed=2)


def test_the_number_of_pairs_is_kept_to(tmp_path: Path) -> None:
    assert len(pairs_of(tmp_path, ["4", "5"], count=100, pairs=11, batch_prompts=8)) == 11


def test_an_answer_whose_check_failed_is_in_no_pair(tmp_path: Path) -> None:
    for pair in pairs_of(tmp_path, ["4", "5", "?"]):
        assert "?" not in (pair["chosen"][0]["content"], pair["rejected"][0]["content"])


def test_without_any_difference_there_is_an_error_with_the_counts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gave 0 pairs.*'incorrect': 320"):
        pairs_of(tmp_path, ["5"])


def test_given_keeps_answers_that_fail_the_second_verifier_out(tmp_path: Path) -> None:
    made = pairs_of(tmp_path, ["4", "5", "five"], given="short")
    assert {pair["rejected"][0]["content"] for pair in made} == {"5"}


def test_a_truncated_answer_is_in_no_pair_unless_asked() -> None:
    mixer = PreferencePairs(PreferencePairsConfig(max_new_tokens=4))
    cut = Completion("p", 0, (1,), "4", "length")
    assert mixer._answer(cut, Verdict.correct(), None, Counter()) is None
    assert mixer._answer(replace(cut, finish_reason="stop"), Verdict.correct(), None, Counter()) is not None


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3)), max_size=12), st.integers(1, 4), st.booleans())
def test_a_pair_is_of_the_top_score_and_a_strictly_lower_one(found: list[tuple[str, int]], limit: int, lowest: bool) -> None:
    scores = dict(found)
    answers = [Answer(Completion("p", i, (1,), text, "stop"), scores[text]) for i, (text, _) in enumerate(found)]
    made = pair_up(answers, random.Random(0), limit=limit, lowest=lowest)
    top = max(scores.values(), default=0)
    assert len(made) <= limit
    assert all(better.score == top and worse.score < top for better, worse in made)
    texts = [answer.completion.text for pair in made for answer in pair]
    assert len(texts) == len(set(texts))
    if lowest and made:
        assert made[0][1].score == min(scores.values())
