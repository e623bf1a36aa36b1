"""The mixer `preference_pairs`: a model's own answers, verified, better against worse.

For each prompt `samples` answers are drawn and scored by the verifier; the chosen answer has the highest score of the group and the
rejected one a strictly lower score. Answers whose verification failed (timeout, error) are in no pair: a failure is not a low score.
An answer that was drawn twice counts once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from steelyard.errors import DataError, Interrupted
from steelyard.protocols import MixContext, MixResult
from steelyard.records import Completion, Message, Prompt, Row, Sampling, SourceShare, Verdict, derive_seed
from steelyard.rows import read_rows
from steelyard_data.config import PreferencePairsConfig

__all__ = ["PreferencePairs", "pair_up"]


@dataclass(frozen=True)
class Answer:
    """A sampled answer and its score."""

    completion: Completion
    score: float


class PreferencePairs:
    """Deterministic: the same model, prompts, configuration and seed give the same pairs."""

    def __init__(self, config: PreferencePairsConfig):
        self._config = config

    def mix(self, context: MixContext) -> MixResult:
        prompts = list(self._prompts(context))
        if not prompts:
            raise DataError(
                "mixer 'preference_pairs' has no prompts; give it `sources:` or `prompts:` with rows of messages and a reference"
            )
        tally: Counter[str] = Counter()
        pairs = list(self._pairs(context, prompts, tally))
        if len(pairs) < self._config.min_pairs:
            raise DataError(
                f"{tally['prompts']:,} prompts gave {len(pairs):,} pairs, fewer than min_pairs {self._config.min_pairs}: "
                f"{dict(tally)}; sample more (`samples`), raise `temperature`, or use prompts the model sometimes gets right"
            )
        share = SourceShare("samples of the model", len(prompts), len(pairs), requested=f"pairs {self._config.pairs or 'all'}")
        return MixResult(pairs, [share], {"sampling": dict(tally)})

    def _prompts(self, context: MixContext) -> Iterator[Row]:
        rows = [row for opened in context.sources for row in opened.source.rows()]
        if context.data is not None:
            rows.extend(read_rows(context.data))
        random.Random(derive_seed(context.seed, "order")).shuffle(rows)
        for row in rows:
            if "messages" not in row or "reference" not in row or row["messages"][-1]["role"] != "user":
                raise DataError(f"row {row.get('id', '?')!r}: a prompt needs `messages` ending in a user turn and a `reference`")
            yield row

    def _pairs(self, context: MixContext, prompts: Sequence[Row], tally: Counter[str]) -> Iterator[Row]:
        config, wanted, made = self._config, self._config.pairs, 0
        engine = context.engine(context.model)
        try:
            for start in range(0, len(prompts), config.batch_prompts):
                if context.io.should_stop():
                    raise Interrupted("stopped while sampling pairs")
                chunk = prompts[start : start + config.batch_prompts]
                for row, answers in zip(chunk, self._answers(context, engine, chunk, start, tally), strict=True):
                    rng = random.Random(derive_seed(context.seed, "pair", start, str(row.get("id", ""))))
                    found = pair_up(answers, rng, limit=config.pairs_per_prompt, lowest=config.rejected == "lowest")
                    tally["prompts"] += 1
                    tally["prompts without a pair"] += not found
                    for better, worse in found:
                        if wanted is not None and made == wanted:
                            return
                        made += 1
                        pair = _row(row, better, worse)
                        if made <= 8:
                            context.io.sample(pair | {"kind": "pair"})
                        yield pair
                context.io.progress(made if wanted else start + len(chunk), wanted or len(prompts), "pairs" if wanted else "prompts")
        finally:
            engine.close()

    def _answers(self, context: MixContext, engine: Any, rows: Sequence[Row], start: int, tally: Counter[str]) -> list[list[Answer]]:
        config = self._config
        sampling = Sampling(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            n=config.samples,
            seed=derive_seed(context.seed, "sample"),
            logprobs=False,
        )
        prompts = [Prompt(f"{start + i}:{row.get('id', '')}", messages=_messages(row)) for i, row in enumerate(rows)]
        groups = engine.generate(prompts, sampling)
        flat = [(row, completion) for row, group in zip(rows, groups, strict=True) for completion in group]
        scored = context.verifiers.verify([(self._verifier(row), completion, row["reference"]) for row, completion in flat])
        given = (
            context.verifiers.verify([(config.given, completion, row["reference"]) for row, completion in flat])
            if config.given is not None
            else [None] * len(flat)
        )
        kept = [
            self._answer(completion, verdict, condition, tally)
            for (_, completion), verdict, condition in zip(flat, scored, given, strict=True)
        ]
        return [[answer for answer in kept[i * config.samples : (i + 1) * config.samples] if answer is not None] for i in range(len(rows))]

    def _verifier(self, row: Row) -> str:
        name = self._config.verifier or row.get("verifier")
        if name is None:
            raise DataError(f"row {row.get('id', '?')!r} names no verifier; set `verifier:` of the data entry or give rows a `verifier`")
        return str(name)

    def _answer(self, completion: Completion, verdict: Verdict, condition: Verdict | None, tally: Counter[str]) -> Answer | None:
        tally[verdict.outcome.value] += 1
        if verdict.score is None or (condition is not None and condition.score is None):
            return None
        if condition is not None and condition.score != 1.0:
            tally["not given"] += 1
            return None
        if completion.finish_reason != "stop" and self._config.truncated == "drop":
            tally["truncated"] += 1
            return None
        return Answer(completion, verdict.score)


def pair_up(answers: Sequence[Answer], rng: random.Random, *, limit: int, lowest: bool) -> list[tuple[Answer, Answer]]:
    """Up to `limit` pairs (chosen, rejected) of distinct texts, every answer in at most one, the chosen of top score and the rejected of a
    strictly lower one."""
    distinct = list({answer.completion.text: answer for answer in answers}.values())
    if not distinct:
        return []
    top = max(answer.score for answer in distinct)
    better = [answer for answer in distinct if answer.score == top]
    worse = [answer for answer in distinct if answer.score < top]
    rng.shuffle(better)
    rng.shuffle(worse)
    if lowest:
        worse.sort(key=lambda answer: answer.score)
    return list(zip(better, worse, strict=False))[:limit]


def _messages(row: Row) -> tuple[Message, ...]:
    return tuple(row["messages"])


def _row(row: Row, better: Answer, worse: Answer) -> Row:
    pair: Row = {
        "prompt": list(row["messages"]),
        "chosen": [{"role": "assistant", "content": better.completion.text}],
        "rejected": [{"role": "assistant", "content": worse.completion.text}],
        "chosen_score": better.score,
        "rejected_score": worse.score,
    }
    return pair | {k: row[k] for k in ("id", "source", "task") if k in row}
