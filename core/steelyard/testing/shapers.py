"""What every shaper keeps: one finite reward for each rollout, the same for the same group, the rollouts untouched."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steelyard.protocols import Shaper
from steelyard.records import Completion, Prompt, Rollout, Verdict

__all__ = ["ShaperContract"]


class ShaperContract:
    """Subclass and implement :meth:`make`; see README.md."""

    def make(self) -> Shaper:
        """The shaper under test."""
        raise NotImplementedError

    def groups(self) -> Sequence[Sequence[Rollout]]:
        """Groups to shape: mixed, all right, all wrong, a single one, empty texts, cut off at the limit."""
        prompt = Prompt("p", messages=({"role": "user", "content": "2+2"},))

        def rollout(sample: int, text: str, right: bool, cut: bool = False) -> Rollout:
            tokens = tuple(range(len(text)))
            completion = Completion("p", sample, tokens, text, "length" if cut else "stop", tuple(-0.5 for _ in tokens))
            return Rollout(prompt, completion, Verdict.correct() if right else Verdict.incorrect())

        mixed = [rollout(0, "4", True), rollout(1, "four " * 50, True), rollout(2, "5", False), rollout(3, "44444" * 99, False, cut=True)]
        return [
            mixed,
            [rollout(i, "4" * (i + 1), True) for i in range(4)],
            [rollout(i, "5", False) for i in range(4)],
            [rollout(0, "4", True)],
            [rollout(0, "", False), rollout(1, "", False, cut=True)],
        ]

    def _shaped(self, group: Sequence[Rollout]) -> list[float]:
        return [float(r) for r in self.make().shape(group, [r.verdict.score or 0.0 for r in group])]

    def test_it_satisfies_the_protocol(self) -> None:
        assert isinstance(self.make(), Shaper)

    def test_it_gives_one_finite_reward_for_each_rollout(self) -> None:
        for group in self.groups():
            rewards = self._shaped(group)
            assert len(rewards) == len(group)
            assert all(math.isfinite(r) for r in rewards), rewards

    def test_the_same_group_gets_the_same_rewards(self) -> None:
        for group in self.groups():
            assert self._shaped(group) == self._shaped(group)

    def test_it_changes_neither_the_rewards_it_was_given_nor_the_verdicts(self) -> None:
        for group in self.groups():
            rewards = [r.verdict.score or 0.0 for r in group]
            given, verdicts = list(rewards), [r.verdict for r in group]
            self.make().shape(group, rewards)
            assert rewards == given
            assert [r.verdict for r in group] == verdicts

    def test_rewards_do_not_depend_on_the_order_within_the_group(self) -> None:
        for group in self.groups():
            assert self._shaped(list(reversed(group))) == list(reversed(self._shaped(group)))
