"""The built-in verifiers keep the contract of the conformance kit; and the kit finds verifiers that do not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from steelyard.records import Completion, Verdict
from steelyard.testing import VerifierContract
from steelyard_verifiers.config import ExactConfig, NumberConfig
from steelyard_verifiers.exact import Exact
from steelyard_verifiers.number import Number


class TestExactKeepsTheContract(VerifierContract):
    gold = [("85", "85"), ("abc", ["x", "abc"]), (" 12 ", 12)]
    wrong = [("ans: 85", "85"), ("ABC", "abc"), ("85 85", "85")]

    def make(self) -> Exact:
        return Exact(ExactConfig())


class TestExactWithEveryOptionKeepsTheContract(VerifierContract):
    gold = [("reasons\n\nAns: 8  5.\n", "8 5"), ("The answer is: B.", "b")]
    wrong = [("ans: ans: b", "b"), ("b\nc", "b")]

    def make(self) -> Exact:
        return Exact(
            ExactConfig(
                extract="last_line",
                ignore_case=True,
                collapse_spaces=True,
                remove_prefix="(?i:the answer is|ans): *",
                remove_suffix=".",
            )
        )


class TestNumberKeepsTheContract(VerifierContract):
    gold = [
        ("so it is 42", 42),
        ("… #### -1,234", "because\n#### -1234"),
        ("\\frac{3}{4}", 0.75),
        ("$18.50", "18.5"),
        ("I counted 4 or so. No: 7", "7"),
    ]
    wrong = [("42", -42), ("5 or 6", 6), ("5 or 6", 5), ("3 + 4", 4), ("1/2", "1/3"), ("not 5", 5), ("#### 5 and 6", 5)]

    def make(self) -> Number:
        return Number(NumberConfig())


class TestNumberWithTolerancesKeepsTheContract(VerifierContract):
    gold = [("#### 3.1416", 3.14159), ("#### 99", 100)]
    wrong = [("3.14159", 3.14159), ("#### 98", 100)]

    def damaged(self, text: str) -> Iterator[str]:
        """One more decimal is still within the tolerance."""
        return (bad for bad in super().damaged(text) if bad != text + "8" or "." not in text)

    def make(self) -> Number:
        return Number(NumberConfig(relative_tolerance=0.01, require_marker=True, percent="divide"))


class _Always:
    def verify(self, completion: Completion, reference: Any) -> Verdict:
        return Verdict.correct()


class _Raises:
    def verify(self, completion: Completion, reference: Any) -> Verdict:
        return Verdict.correct() if completion.text == "1" else Verdict.incorrect(str(int(completion.text)))


class _Truthy:
    def verify(self, completion: Completion, reference: Any) -> Any:
        return (False, "a tuple is always true")


class _Backtracks:
    def verify(self, completion: Completion, reference: Any) -> Verdict:
        right = completion.text == "1" or re.match(r"\s*\s*x$", completion.text[:20_000] + "y")
        return Verdict.correct() if right else Verdict.incorrect()


@pytest.mark.parametrize(
    ("bad", "test"),
    [
        (_Always(), "test_damaged_and_wrong_answers_score_less"),
        (_Always(), "test_hostile_texts_neither_raise_nor_score"),
        (_Raises(), "test_hostile_texts_neither_raise_nor_score"),
        (_Truthy(), "test_gold_answers_score_full_marks"),
        (_Backtracks(), "test_every_check_ends_in_time"),
    ],
)
def test_the_kit_finds_a_verifier_that_breaks_the_contract(bad: Any, test: str) -> None:
    class Case(VerifierContract):
        gold = [("1", "1")]
        seconds = 0.05

        def make(self) -> Any:
            return bad

    with pytest.raises((AssertionError, ValueError)):
        getattr(Case(), test)()


def test_the_kit_refuses_to_pass_without_gold_answers() -> None:
    class Case(VerifierContract):
        def make(self) -> Any:
            return _Always()

    with pytest.raises(AssertionError, match="nothing would be tested"):
        Case().test_the_contract_is_given_gold_answers()
