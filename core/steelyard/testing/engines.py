"""What every engine keeps: completions in order, log-probabilities that belong to the tokens, answers that batching does not change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from steelyard.protocols import Engine
from steelyard.records import Completion, Prompt, Sampling

__all__ = ["EngineContract"]


class EngineContract:
    """Subclass and implement :meth:`make`; see README.md. The engine is opened once for a class and closed behind its last test."""

    prompts: Sequence[Prompt] = (
        Prompt("first", text="1+1="),
        Prompt("second", text="a longer prompt than the first: "),
        Prompt("third", text="x"),
    )
    """Prompts of different lengths that the model's tokenizer can encode."""
    continuations: Sequence[tuple[str, str]] = (("1+1=", "2"), ("a longer prompt: ", "yes"))
    sampling: Sampling = Sampling(max_new_tokens=8, temperature=1.0, n=2, seed=7)
    tolerance: float = 1e-3
    """The largest difference between two log-probabilities that ought to be equal."""
    _opened: Engine | None = None

    def make(self) -> Engine:
        """The engine under test."""
        raise NotImplementedError

    @classmethod
    def teardown_class(cls) -> None:
        if cls._opened is not None:
            cls._opened.close()
            cls._opened = None

    @property
    def engine(self) -> Engine:
        cls = type(self)
        if cls._opened is None:
            cls._opened = self.make()
        return cls._opened

    def _generate(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> list[list[Completion]]:
        return self.engine.generate(prompts, sampling or self.sampling)

    def test_it_satisfies_the_protocol(self) -> None:
        assert isinstance(self.engine, Engine)

    def test_it_gives_n_completions_for_each_prompt_in_order(self) -> None:
        answers = self._generate(self.prompts)
        assert [[(c.prompt_id, c.sample) for c in group] for group in answers] == [
            [(prompt.id, j) for j in range(self.sampling.n)] for prompt in self.prompts
        ]

    def test_no_prompts_give_no_completions(self) -> None:
        assert self._generate([]) == []
        assert self.engine.score([]) == []

    def test_completions_respect_the_limit_and_say_why_they_ended(self) -> None:
        for completion in chain.from_iterable(self._generate(self.prompts)):
            assert 0 < len(completion.token_ids) <= self.sampling.max_new_tokens
            if completion.finish_reason == "length":
                assert len(completion.token_ids) == self.sampling.max_new_tokens

    def test_log_probabilities_belong_to_the_tokens(self) -> None:
        for completion in chain.from_iterable(self._generate(self.prompts)):
            assert completion.logprobs is not None
            assert len(completion.logprobs) == len(completion.token_ids)
            assert all(math.isfinite(p) and p <= self.tolerance for p in completion.logprobs), completion.logprobs

    def test_the_same_seed_gives_the_same_samples(self) -> None:
        assert _texts(self._generate(self.prompts)) == _texts(self._generate(self.prompts))

    def test_another_seed_gives_other_samples(self) -> None:
        sampling = replace(self.sampling, n=8)
        answers = [_texts(self._generate(self.prompts, replace(sampling, seed=seed))) for seed in (1, 2)]
        assert answers[0] != answers[1]

    def test_batching_does_not_change_an_answer(self) -> None:
        together = self._generate(self.prompts)
        alone = [self._generate([prompt])[0] for prompt in self.prompts]
        backwards = self._generate(list(reversed(self.prompts)))[::-1]
        assert _texts(together) == _texts(alone) == _texts(backwards)

    def test_samples_of_one_prompt_do_not_depend_on_how_many_are_asked_for(self) -> None:
        few, many = (self._generate(self.prompts[:1], replace(self.sampling, n=n))[0] for n in (1, 4))
        assert few[0].token_ids == many[0].token_ids

    def test_greedy_decoding_ignores_the_seed(self) -> None:
        greedy = replace(self.sampling, temperature=0.0, n=1)
        assert _texts(self._generate(self.prompts, greedy)) == _texts(self._generate(self.prompts, replace(greedy, seed=99)))

    def test_scores_are_finite_log_probabilities_in_order(self) -> None:
        scored = self.engine.score(self.continuations)
        assert len(scored) == len(self.continuations)
        for one, pair in zip(scored, self.continuations, strict=True):
            assert math.isfinite(one.logprob) and one.logprob <= self.tolerance, pair
            if one.token_logprobs:
                assert abs(sum(one.token_logprobs) - one.logprob) <= self.tolerance * len(one.token_logprobs)
        alone = [self.engine.score([pair])[0] for pair in self.continuations]
        for one, other in zip(scored, alone, strict=True):
            assert abs(one.logprob - other.logprob) <= self.tolerance * 10

    def test_it_goes_on_after_sleep(self) -> None:
        before = _texts(self._generate(self.prompts))
        self.engine.sleep()
        self.engine.wake()
        assert _texts(self._generate(self.prompts)) == before


def _texts(answers: Sequence[Sequence[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in answers]
