"""What is found out about the prompts before training: which are guessed without thinking, and how often the others are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from steelyard.errors import ModelError
from steelyard.protocols import Engine, StageContext
from steelyard.records import Completion, Outcome, Prompt, Row, Sampling, derive_seed
from steelyard_rl.prompt_options import GuessOptions
from steelyard_rl.prompts import PromptPool
from steelyard_rl.rewards import Judged, is_scored, judge
from steelyard_rl.rollout_options import RolloutOptions
from steelyard_torch.templates import render
from steelyard_torch.trainee import Trainee

__all__ = ["guess_prompt", "prepare"]

_PROMPTS_AT_ONCE = 64


def prepare(trainee: Trainee, config: RolloutOptions, engine: Engine, pool: PromptPool, rest: Callable[[], None]) -> None:
    """Runs what pre-passes the recipe asks for and are not done, by the initial model. Every rank calls this; the main one samples.

    Args:
        rest: called between parts of a pre-pass; may write a checkpoint with the pool's state, and may raise
            :class:`~steelyard.errors.Interrupted`.

    Raises:
        DataError: no prompt is left.
    """
    context, guess, samples = trainee.context, config.guess, config.curriculum.measure
    looked = False
    if guess is not None:
        for part in _parts(context, pool.trainable()[pool.tried :], "guessed without thinking", rest):
            guessed = _guess(context, config, guess, engine, pool, part) if trainee.world.main else None
            pool.guessed += trainee.world.from_main(guessed)
            pool.tried += len(part)
            looked = True
    if samples is not None:
        known = pool.measured.keys() | set(pool.unmeasured) | set(pool.guessed)
        for part in _parts(context, [index for index in pool.trainable() if index not in known], "measured", rest):
            found = _measure(context, config, samples, engine, pool, part) if trainee.world.main else None
            found = trainee.world.from_main(found)
            pool.measured |= found
            # After a stop in training these would be measured by another model than the initial one.
            pool.unmeasured += [index for index in part if index not in found]
            looked = True
    if looked:
        pool.choose()
        context.io.log(f"after a look at the prompts: {pool}")


def _parts(context: StageContext, rows: Sequence[int], what: str, rest: Callable[[], None]) -> Iterator[Sequence[int]]:
    """``rows`` a few at a time; between two of them the step may rest."""
    for start in range(0, len(rows), _PROMPTS_AT_ONCE):
        part = rows[start : start + _PROMPTS_AT_ONCE]
        yield part
        context.io.progress(start + len(part), len(rows), "prompts", what)
        rest()


def guess_prompt(pool: PromptPool, options: GuessOptions, index: int) -> Prompt:
    """A row's question put so that the model answers without thinking.

    Raises:
        ModelError: the chat template takes no notice of ``template``.
    """
    taken = pool.at(0, index)
    messages = [dict(message) for message in taken.row["messages"]]
    if options.instruction.strip():
        messages[-1]["content"] = f"{messages[-1]['content']}\n{options.instruction}"
    text = render(pool.tokenizer, messages, add_generation_prompt=True, variables=options.template or None)
    if options.template and text == render(pool.tokenizer, messages, add_generation_prompt=True):
        raise ModelError(f"guess.template {options.template!r} changes nothing: the chat template knows no such variable")
    tokens = tuple(pool.tokenizer(text + options.prefill, add_special_tokens=False)["input_ids"])
    return Prompt(f"guess:{index}:{taken.row.get('id', '')}", token_ids=tokens)


def _guess(
    context: StageContext, config: RolloutOptions, options: GuessOptions, engine: Engine, pool: PromptPool, part: Sequence[int]
) -> list[int]:
    """The rows of which one of the tries is right."""
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        n=options.tries,
        seed=derive_seed(context.seed, "guess"),
        logprobs=False,
    )
    prompts = [guess_prompt(pool, options, index) for index in part]
    groups = [
        [replace(completion, text=options.prefill + completion.text) for completion in group]
        for group in engine.generate(prompts, sampling)
    ]
    judged = _judged(context, config, pool, part, prompts, groups)
    return [index for index, group in zip(part, judged, strict=True) if any(_is_right(one) for one in group)]


def _measure(
    context: StageContext, config: RolloutOptions, samples: int, engine: Engine, pool: PromptPool, part: Sequence[int]
) -> dict[int, tuple[float, float]]:
    """Success rate, and variance of the unshaped rewards, of the rows that got a verdict."""
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        n=samples,
        seed=derive_seed(context.seed, "measure"),
        logprobs=False,
    )
    prompts = [replace(pool.at(0, index).prompt, id=f"measure:{index}") for index in part]
    judged = _judged(context, config, pool, part, prompts, engine.generate(prompts, sampling))
    found = {}
    for index, group in zip(part, judged, strict=True):
        rewards = [one.score for one in group if is_scored(one.rollout) and one.score is not None]
        scores = [min(max(one.rollout.verdict.score or 0.0, 0.0), 1.0) for one in group if is_scored(one.rollout)]
        if rewards:
            found[index] = (float(np.mean(scores)), float(np.var(rewards)))
    return found


def _judged(
    context: StageContext,
    config: RolloutOptions,
    pool: PromptPool,
    part: Sequence[int],
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Completion]],
) -> list[list[Judged]]:
    asked: list[tuple[Prompt, Row, list[Completion]]] = []
    for index, prompt, group in zip(part, prompts, groups, strict=True):
        row = pool.at(0, index).row
        asked.append((prompt, row, [replace(completion, messages=tuple(row["messages"])) for completion in group]))
    return judge(context.verifiers, config.reward, asked)


def _is_right(judged: Judged) -> bool:
    return is_scored(judged.rollout) and judged.rollout.verdict.outcome is Outcome.CORRECT
