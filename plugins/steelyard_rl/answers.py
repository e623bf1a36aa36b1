"""Answers in the making: written in one go, or over several rollout steps, each token with the log-probability and the version of the
weights that it was sampled with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steelyard.errors import EngineError
from steelyard.protocols import Engine
from steelyard.records import Completion, FinishReason, Prompt, Row, Sampling
from steelyard_rl.loops import loop_end
from steelyard_rl.rollout_options import RolloutOptions

__all__ = ["Answer", "Draft", "Taken", "write_on"]


@dataclass(frozen=True, slots=True)
class Taken:
    """A prompt, and where it came from."""

    prompt: Prompt
    row: Row
    position: int
    """In the pool's endless order; part of the prompt's id, so that a prompt that comes again draws anew."""
    index: int
    """Of the row."""


@dataclass(slots=True)
class Answer:
    """One answer as far as it is written."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = ()
    segments: tuple[tuple[int, int], ...] = ()
    """(version of the weights, how many tokens they sampled), in the order of the tokens."""
    ending: FinishReason | None = None
    """Why it ended; None while it goes on."""
    looped: bool = False
    """It was cut where it went round in circles."""
    text: str | None = None
    """What the engine made of the tokens, where it made all of them at once."""


@dataclass(slots=True)
class Draft:
    """A prompt's answers, ended or not."""

    taken: Taken
    answers: list[Answer] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return bool(self.answers) and all(answer.ending is not None for answer in self.answers)

    def completions(self, tokenizer: Any) -> list[Completion]:
        """The answers of a draft that is done."""
        return [self._completion(sample, answer, tokenizer) for sample, answer in enumerate(self.answers)]

    def _completion(self, sample: int, answer: Answer, tokenizer: Any) -> Completion:
        assert answer.ending is not None
        prompt, text = self.taken.prompt, answer.text
        return Completion(
            prompt_id=prompt.id,
            sample=sample,
            token_ids=answer.token_ids,
            text=str(tokenizer.decode(list(answer.token_ids), skip_special_tokens=True)) if text is None else text,
            finish_reason=answer.ending,
            logprobs=answer.logprobs,
            weight_version=answer.segments[-1][0],
            prompt_token_ids=prompt.token_ids or (),
            messages=tuple(self.taken.row["messages"]),
        )


@dataclass(slots=True)
class _Turn:
    """An answer that may still get ``left`` tokens in this rollout step."""

    draft: Draft
    sample: int
    left: int

    @property
    def answer(self) -> Answer:
        return self.draft.answers[self.sample]

    def prompt(self) -> Prompt:
        """What the engine is to continue. Its id tells this stretch from the one before, whose noise must not come again."""
        taken, written = self.draft.taken.prompt, self.answer.token_ids
        return Prompt(f"{taken.id}/{self.sample}+{len(written)}", token_ids=(*(taken.token_ids or ()), *written))


def write_on(engine: Engine, drafts: Sequence[Draft], config: RolloutOptions, *, seed: int) -> None:
    """Lets the answers of ``drafts`` go on for a rollout step; those of a draft without any begin.

    Raises:
        EngineError: log-probabilities are needed, and the engine gives none.
    """
    budget = config.max_new_tokens if config.partial is None else config.partial.budget
    pause = config.repetition.check_every if config.repetition is not None else None
    sampling = Sampling(max_new_tokens=min(budget, pause or budget), temperature=config.temperature, seed=seed)
    begun = [draft for draft in drafts if draft.answers]
    fresh = [draft for draft in drafts if not draft.answers]
    if fresh:
        _begin(engine, fresh, config, sampling)
    turns = [_Turn(draft, sample, budget) for draft in begun for sample in range(len(draft.answers))]
    # An answer that has just begun has had its first stretch.
    turns += [_Turn(draft, sample, budget - sampling.max_new_tokens) for draft in fresh for sample in range(len(draft.answers))]
    while turns := [turn for turn in turns if turn.answer.ending is None and turn.left > 0]:
        _continue(engine, turns, config, sampling)


def _begin(engine: Engine, fresh: Sequence[Draft], config: RolloutOptions, sampling: Sampling) -> None:
    asked = replace(sampling, n=config.samples_per_prompt)
    for draft, completions in zip(fresh, engine.generate([draft.taken.prompt for draft in fresh], asked), strict=True):
        draft.answers = [Answer() for _ in completions]
        for answer, completion in zip(draft.answers, completions, strict=True):
            _append(answer, completion, draft.taken, config, engine, asked.max_new_tokens)
            if not answer.looped:
                answer.text = completion.text


def _continue(engine: Engine, turns: Sequence[_Turn], config: RolloutOptions, sampling: Sampling) -> None:
    """One more stretch for each; those that may get as much are asked for together."""
    rooms: dict[int, list[_Turn]] = {}
    for turn in turns:
        room = min(sampling.max_new_tokens, turn.left, config.max_new_tokens - len(turn.answer.token_ids))
        rooms.setdefault(room, []).append(turn)
    for room, asked in rooms.items():
        completions = engine.generate([turn.prompt() for turn in asked], replace(sampling, max_new_tokens=room))
        for turn, (completion,) in zip(asked, completions, strict=True):
            _append(turn.answer, completion, turn.draft.taken, config, engine, room)
            turn.answer.text = None
            turn.left -= room


def _append(answer: Answer, completion: Completion, taken: Taken, config: RolloutOptions, engine: Engine, room: int) -> None:
    """Adds what the engine made of ``room`` tokens, and tells whether the answer has ended."""
    known = answer.logprobs
    answer.logprobs = None if known is None or completion.logprobs is None else (*known, *completion.logprobs)
    if answer.logprobs is None and config.partial is not None and config.partial.stale == "keep":
        raise EngineError("partial.stale 'keep' needs the log-probabilities that tokens were sampled with, and the engine gives none")
    answer.token_ids = (*answer.token_ids, *completion.token_ids)
    answer.segments = _joined((*answer.segments, (completion.weight_version, len(completion.token_ids))))
    if completion.finish_reason != "length":
        answer.ending = completion.finish_reason
    elif len(answer.token_ids) >= config.max_new_tokens or len(completion.token_ids) < room or _is_full(engine, taken, answer):
        answer.ending = "length"
    end = None if config.repetition is None or answer.ending == "abort" else loop_end(config.repetition, answer.token_ids, answer.logprobs)
    if end is not None:
        _cut(answer, end)


def _is_full(engine: Engine, taken: Taken, answer: Answer) -> bool:
    """Whether the model's context has no room for another token."""
    most = getattr(engine, "max_length", None)
    return most is not None and len(taken.prompt.token_ids or ()) + len(answer.token_ids) >= most


def _cut(answer: Answer, end: int) -> None:
    answer.token_ids, answer.ending, answer.looped = answer.token_ids[:end], "length", True
    answer.logprobs = None if answer.logprobs is None else answer.logprobs[:end]
    left, kept = end, []
    for version, count in answer.segments:
        kept.append((version, min(count, left)))
        left -= min(count, left)
    answer.segments = tuple((version, count) for version, count in kept if count)


def _joined(segments: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The segments, with neighbours of one version as one."""
    joined: list[tuple[int, int]] = []
    for version, count in segments:
        if joined and joined[-1][0] == version:
            joined[-1] = (version, joined[-1][1] + count)
        else:
            joined.append((version, count))
    return tuple(joined)
