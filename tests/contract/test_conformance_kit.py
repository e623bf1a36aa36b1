"""Built-in sources, mixers, shapers and engines keep the contracts of the conformance kit; and the kit finds those that do not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from steelyard.protocols import MixContext, MixResult, OpenedSource
from steelyard.records import Prompt, Rollout, SourceShare
from steelyard.testing import EngineContract, MixerContract, RecordedIO, ShaperContract, SourceContract
from steelyard_data.config import MixConfig, TasksConfig
from steelyard_data.mix import Mix
from steelyard_data.sources import TasksSource

TINY_BASE = Path(__file__).parent.parent.parent / "recipes" / "models" / "tiny-base"


class TestTheTasksSourceKeepsTheContract(SourceContract):
    def make(self) -> TasksSource:
        return TasksSource(TasksConfig(form="chat", rows=50, seed=3), Path())


class TestTheMixMixerKeepsTheContract(MixerContract):
    row_format = "messages"

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make(self) -> Mix:
        return Mix(MixConfig())

    def context(self) -> MixContext:
        sources = [
            OpenedSource("one", TasksSource(TasksConfig(form="chat", rows=40, seed=1), Path()), count=10),
            OpenedSource("two", TasksSource(TasksConfig(form="chat", rows=40, seed=2), Path()), fraction=0.5),
        ]
        nothing: Any = None
        return MixContext(MixConfig(), sources, 5, 5, self.folder, self.folder, RecordedIO(), nothing, nothing)


class TestTheTransformersEngineKeepsTheContract(EngineContract):
    prompts = (Prompt("first", text="sort cab="), Prompt("second", text="reverse abcde="), Prompt("third", text="u"))
    continuations = (("sort cab=", "abc"), ("upper ab=", "AB"))

    def make(self) -> Any:
        from steelyard_engines.config import TransformersEngineConfig
        from steelyard_engines.transformers_engine import TransformersEngine

        return TransformersEngine(TransformersEngineConfig(), TINY_BASE)


class _Reversed:
    def shape(self, group: Sequence[Rollout], rewards: Sequence[float]) -> Sequence[float]:
        return [reward - 0.01 * len(rollout.completion.token_ids) for rollout, reward in zip(group, rewards, strict=True)]


class TestAShaperOfLengthKeepsTheContract(ShaperContract):
    def make(self) -> _Reversed:
        return _Reversed()


class _InPlace(_Reversed):
    def shape(self, group: Sequence[Rollout], rewards: Any) -> Sequence[float]:
        rewards[:] = super().shape(group, rewards)
        return rewards


class _OneMissing(_Reversed):
    def shape(self, group: Sequence[Rollout], rewards: Sequence[float]) -> Sequence[float]:
        return list(rewards)[1:]


class _DividesByZero(_Reversed):
    def shape(self, group: Sequence[Rollout], rewards: Sequence[float]) -> Sequence[float]:
        spread = max(rewards) - min(rewards)
        return [reward / spread if spread else float("nan") for reward in rewards]


class _ByPosition(_Reversed):
    def shape(self, group: Sequence[Rollout], rewards: Sequence[float]) -> Sequence[float]:
        return [reward + position for position, reward in enumerate(rewards)]


class _ByLuck(_Reversed):
    def shape(self, group: Sequence[Rollout], rewards: Sequence[float]) -> Sequence[float]:
        return [reward + random.random() for reward in rewards]


@pytest.mark.parametrize(
    ("shaper", "test"),
    [
        (_InPlace, "test_it_changes_neither_the_rewards_it_was_given_nor_the_verdicts"),
        (_OneMissing, "test_it_gives_one_finite_reward_for_each_rollout"),
        (_DividesByZero, "test_it_gives_one_finite_reward_for_each_rollout"),
        (_ByPosition, "test_rewards_do_not_depend_on_the_order_within_the_group"),
        (_ByLuck, "test_the_same_group_gets_the_same_rewards"),
    ],
)
def test_the_kit_finds_a_shaper_that_breaks_the_contract(shaper: Callable[[], _Reversed], test: str) -> None:
    class Case(ShaperContract):
        def make(self) -> _Reversed:
            return shaper()

    with pytest.raises(AssertionError):
        getattr(Case(), test)()


class _Rows:
    def __init__(self, rows: Callable[[], list[Any]]):
        self._rows = rows

    def rows(self) -> Iterator[Any]:
        return iter(self._rows())


@pytest.mark.parametrize(
    ("rows", "test"),
    [
        (list, "test_it_has_rows_with_text_for_keys_that_are_json"),
        (lambda: [{"a": {1}}], "test_it_has_rows_with_text_for_keys_that_are_json"),
        (lambda: [{"a": random.random()}], "test_it_gives_the_same_rows_in_the_same_order_every_time"),
    ],
)
def test_the_kit_finds_a_source_that_breaks_the_contract(rows: Callable[[], list[Any]], test: str) -> None:
    class Case(SourceContract):
        def make(self) -> _Rows:
            return _Rows(rows)

    with pytest.raises((AssertionError, TypeError)):
        getattr(Case(), test)()


@pytest.mark.parametrize(
    ("row", "taken", "test"),
    [
        (lambda: {"messages": random.random()}, 1, "test_the_same_context_gives_the_same_rows_in_the_same_order"),
        (lambda: {"text": "a"}, 1, "test_it_makes_rows_that_are_json"),
        (lambda: {"messages": []}, 2, "test_it_says_what_it_took_from_where"),
    ],
)
def test_the_kit_finds_a_mixer_that_breaks_the_contract(row: Callable[[], dict[str, Any]], taken: int, test: str) -> None:
    class Broken:
        def mix(self, context: MixContext) -> MixResult:
            return MixResult([row()], [SourceShare("s", 1, taken)])

    class Case(MixerContract):
        row_format = "messages"

        def make(self) -> Broken:
            return Broken()

        def context(self) -> MixContext:
            nothing: Any = None
            return MixContext(None, [], 0, 0, Path(), Path(), RecordedIO(), nothing, nothing)

    with pytest.raises(AssertionError):
        getattr(Case(), test)()
