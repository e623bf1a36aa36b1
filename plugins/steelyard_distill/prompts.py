"""What the student is asked, and its own answers: conversations cut at their last user turn, sampled from the model in training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steelyard.errors import DataError, EngineError
from steelyard.protocols import Engine
from steelyard.records import Completion, Prompt, Row, Sampling, derive_seed
from steelyard.rows import read_rows
from steelyard_distill.config import DistillConfig
from steelyard_torch.encoding import EncodedRow, encode_prompt, encode_rollout
from steelyard_torch.trainee import Trainee

__all__ = ["Answers", "PromptPool", "cut_at_last_user"]


@dataclass(frozen=True)
class Answers:
    """What the student wrote in a step, as rows to train on."""

    rows: list[EncodedRow]
    groups: list[int]
    """For each row the number of its prompt."""
    length: float
    """Tokens of an answer, on average."""
    truncated: float
    """Share of the answers that were cut off at ``max_new_tokens``."""
    seconds: float


class PromptPool:
    """The prompts of a stage's dataset, encoded; those that leave no room for an answer are left out and counted.

    Raises:
        DataError: a row without a user turn, or no prompt that fits.
    """

    def __init__(self, trainee: Trainee, config: DistillConfig):
        assert config.max_new_tokens is not None
        self._config, self._seed = config, trainee.context.seed
        self.too_long = 0
        self._prompts: list[tuple[Row, tuple[int, ...]]] = []
        room = config.max_length - config.max_new_tokens
        for row in read_rows(trainee.dataset()):
            messages = cut_at_last_user(row)
            ids = tuple(encode_prompt(trainee.tokenizer, messages))
            if len(ids) <= room:
                self._prompts.append(({**row, "messages": messages}, ids))
                continue
            if config.on_too_long == "refuse":
                raise DataError(
                    f"row {row.get('id', '?')!r}: its prompt has {len(ids):,} tokens, and max_length {config.max_length:,} less "
                    f"max_new_tokens {config.max_new_tokens:,} leaves {room:,}; raise max_length, or set on_too_long to 'drop'"
                )
            self.too_long += 1
        if not self._prompts:
            raise DataError(
                f"no prompt fits: all {self.too_long:,} leave less than max_new_tokens {config.max_new_tokens:,} of max_length "
                f"{config.max_length:,}; raise the latter, or lower the former"
            )

    def __len__(self) -> int:
        return len(self._prompts)

    def __str__(self) -> str:
        return f"{len(self):,} prompts" + (f"; {self.too_long:,} too long and left out" if self.too_long else "")

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [len(ids) for _, ids in self._prompts]

    def answer(self, engine: Engine, chosen: Sequence[int], step: int) -> tuple[Answers, list[dict[str, Any]]]:
        """The student's answers to the prompts ``chosen`` in a step, and two examples of them. The seed and the step say all, so that a
        resumed run samples the same.

        Raises:
            EngineError: an answer without tokens.
        """
        config = self._config
        started = time.monotonic()
        sampling = Sampling(
            max_new_tokens=config.max_new_tokens or 1,
            temperature=config.sampling_temperature or 1.0,
            n=config.samples_per_prompt,
            seed=derive_seed(self._seed, "rollout", step),
            logprobs=False,
        )
        prompts = [Prompt(f"{step}:{number}", token_ids=self._prompts[i][1]) for number, i in enumerate(chosen)]
        rows: list[EncodedRow] = []
        groups: list[int] = []
        completions: list[Completion] = []
        examples: list[dict[str, Any]] = []
        for number, (prompt, answers) in enumerate(zip(prompts, engine.generate(prompts, sampling), strict=True)):
            for answer in answers:
                if not answer.token_ids:
                    raise EngineError(f"the engine gave no token ids for prompt {prompt.id!r}; the student cannot be trained on a text")
                rows.append(encode_rollout(prompt.token_ids or (), answer.token_ids, index=len(rows)))
                groups.append(number)
                completions.append(answer)
            if number < 2:
                examples.append(_example(self._prompts[chosen[number]][0], answers[0], step))
        length = sum(len(one.token_ids) for one in completions) / len(completions)
        cut = sum(one.finish_reason == "length" for one in completions) / len(completions)
        return Answers(rows, groups, length, cut, time.monotonic() - started), examples


def cut_at_last_user(row: Row) -> list[Any]:
    """The row's messages up to its last user turn, which an answer follows.

    Raises:
        DataError: it has no messages, or none of the user.
    """
    messages = row.get("messages")
    if messages is None:
        raise DataError(f"row {row.get('id', '?')!r} has no 'messages'; it has {', '.join(sorted(row))}")
    ends = [number for number, message in enumerate(messages) if message["role"] == "user"]
    if not ends:
        raise DataError(f"row {row.get('id', '?')!r} has no user turn that the student could answer")
    return list(messages[: ends[-1] + 1])


def _example(row: Row, answer: Completion, step: int) -> dict[str, Any]:
    return {
        "kind": "rollout",
        "step": step + 1,
        "messages": row["messages"],
        "completion": answer.text,
        "finish_reason": answer.finish_reason,
    }
