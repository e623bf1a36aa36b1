"""The stage `kto`: Kahneman–Tversky optimisation on answers that are labelled, not paired.

The baseline z needs the policy's log-probabilities of answers to other prompts before any gradient is taken, so a step goes over its
mismatched answers first, without gradients, and then over its own. Each answer's mismatched partner is chosen once for the dataset, so
that the reference's log-probabilities of it can be kept, and a step's baseline does not depend on how the step is cut.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from steelyard.errors import DataError
from steelyard.protocols import StageContext
from steelyard.records import Row, StageResult
from steelyard.rows import read_rows
from steelyard_preference.answers import Answers, Tally, answer_messages
from steelyard_preference.config import KtoConfig
from steelyard_preference.losses import chosen_nll, kto_baseline, kto_loss
from steelyard_preference.reference import Reference, open_reference
from steelyard_torch.batching import MicroBatch, StepSampler, StepTotals, count_targets
from steelyard_torch.encoding import EncodedChats, EncodedRow, OnTooLong, TrainedTurns, encode_chats
from steelyard_torch.templates import as_dicts
from steelyard_torch.token_cache import cached_rows
from steelyard_torch.trainee import Trainee, memory_errors

__all__ = ["Kto"]


@dataclass(frozen=True, slots=True)
class _Labelled:
    """An answer as it stands in the data."""

    prompt: list[dict[str, Any]]
    completion: list[dict[str, Any]]
    desirable: bool
    source: str | None
    pair: int | None = None
    """The number of the row whose two sides this and another one are."""


@dataclass(frozen=True, slots=True, eq=False)
class _Examples:
    """Encoded: places of ``answers`` by what stands there. The E examples come first, then their mismatched answers."""

    answers: Answers
    desirable: list[bool]
    """(E,)"""
    mismatched: list[int | None]
    """(E,) the place of the example's mismatched answer; None where that is too long, or has nothing to score."""
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.desirable)


class Kto:
    """Trains on rows with ``prompt``, ``completion`` and ``label``, or on pairs, whose sides are then two answers."""

    def __init__(self, config: KtoConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        config = self._config
        trainee = Trainee(context, config, dropout=False)
        examples = _encode(trainee, config)
        answers = examples.answers
        reference = open_reference(trainee, config, answers, range(len(answers.rows)), rows="kto")
        sampler = StepSampler(
            [len(row) for row in answers.rows[: len(examples)]],
            batch_size=config.batch_size,
            seed=context.seed,
            epochs=config.epochs,
            max_steps=config.max_steps,
        )
        trainee.schedule(sampler.total_steps)
        position = trainee.resume()
        if position is not None:
            sampler.resume(position)
        while trainee.step < sampler.total_steps:
            places = sampler.rows(trainee.step)
            baseline = _baseline(trainee, config, answers, reference, [examples.mismatched[place] for place in places])
            rows = answers.of(places)
            totals = count_targets(row for row, place in zip(rows, places, strict=True) if examples.desirable[place])
            tally = Tally()
            for batch in trainee.micro_batches(rows):
                with memory_errors(batch, config):
                    _backward(trainee, config, reference, examples, batch, places, totals, baseline, tally)
            metrics = tally.values()
            trainee.update(
                metrics.pop("loss"),
                tokens=sum(map(len, rows)),
                trained_tokens=sum(row.targets for row in rows),
                sequences=len(rows),
                metrics={f"kto/{name}": value for name, value in metrics.items()},
                shared={"kto/baseline": baseline, "train/epoch": sampler.epoch(trainee.step + 1)},
            )
            trainee.rest(sampler.state(trainee.step))
        result = trainee.finish({**examples.facts, "reference": reference.facts})
        if trainee.world.main:
            reference.leave(context.output)
        return result


def _baseline(trainee: Trainee, config: KtoConfig, answers: Answers, reference: Reference, mismatched: Sequence[int | None]) -> float:
    """z of the step."""
    places = [place for place in mismatched if place is not None]
    total = 0.0
    with torch.no_grad():
        for batch in trainee.micro_batches(answers.of(places)):
            with memory_errors(batch, config), trainee.runtime.autocast():
                policy = answers.sums(trainee.model, batch, places).scored
            total += float((policy - reference.sums(batch, places)).double().sum())
    return kto_baseline(trainee.world.sum({"log_ratios": total})["log_ratios"], len(places))


def _backward(
    trainee: Trainee,
    config: KtoConfig,
    reference: Reference,
    examples: _Examples,
    batch: MicroBatch,
    places: Sequence[int],
    totals: StepTotals,
    baseline: float,
    tally: Tally,
) -> None:
    """Loss and gradients of one micro-batch; of one without rows, zeros."""
    with trainee.runtime.autocast():
        sums = examples.answers.sums(trainee.model, batch, places)
    mine = [places[position] for position in batch.order]
    desirable = torch.tensor([examples.desirable[place] for place in mine], dtype=torch.bool).to(sums.scored.device)
    share = kto_loss(
        sums.scored,
        reference.sums(batch, places),
        desirable,
        baseline=baseline,
        beta=config.beta,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
        rows=len(places),
        desirable_rows=sum(examples.desirable[place] for place in places),
    )
    value = share.value
    if config.nll_coefficient:
        trained = examples.answers.tokens(mine, trained=True).to(sums.trained.device)
        nll = chosen_nll(sums.trained * desirable, trained, reduction=config.nll_reduction, totals=totals)
        value = value + config.nll_coefficient * nll
        tally.add("nll", nll)
    value.backward()  # type: ignore[no-untyped-call]
    tally.add("loss", value)
    for name, amount in share.metrics.items():
        tally.add(name, amount)


def _encode(trainee: Trainee, config: KtoConfig) -> _Examples:
    labelled: list[_Labelled] = []
    identical = 0
    for number, row in enumerate(read_rows(trainee.dataset())):
        found = list(_read(row, number))
        if len(found) == 2 and found[0].completion == found[1].completion:
            identical += 1
        else:
            labelled += found
    kept = [one for one in labelled if one.completion and (one.completion[-1]["content"].strip() or one.completion[-1].get("tool_calls"))]
    empty = len(labelled) - len(kept)
    if not kept:
        raise DataError(f"there is nothing to train on: {empty:,} empty answers, {identical:,} pairs with the same answer on both sides")
    partners = _partners(kept)
    sources = [one.source for one in kept]
    own = _cached(trainee, config, "kto", lambda: (one.prompt + one.completion for one in kept), config.on_too_long, sources)
    # A mismatched answer may be too long where no example is: that costs the baseline one of its terms, and is no reason to refuse.
    too_long: OnTooLong = "truncate" if config.on_too_long == "truncate" else "drop"
    crossed = _cached(
        trainee,
        config,
        "kto mismatched",
        lambda: (a.prompt + kept[b].completion for a, b in zip(kept, partners, strict=True)),
        too_long,
        (),
    )
    distinct = _distinct(own.rows, kept)
    identical += (len(own.rows) - len(distinct)) // 2
    rows = _with_content(trainee, config, _answered(trainee, config, kept, own, distinct))
    others = _with_content(trainee, config, crossed.rows)
    if not rows:
        raise DataError(f"none of the {len(own.rows):,} answers has a token to score that is its own; check max_length and the answers")
    places = {row.index: len(rows) + place for place, row in enumerate(others)}
    answers = Answers([*rows, *others], trainee.tokenizer, mask_format_tokens=config.mask_format_tokens)
    desirable = [kept[row.index].desirable for row in rows]
    left_out = {
        "left out with an empty answer": empty,
        "pairs left out with the same tokens on both sides": identical,
        "left out without a token to score": len(distinct) - len(rows),
    }
    trainee.context.io.log(
        f"{own.stats.describe()}; {sum(desirable):,} desirable"
        + "".join(f"; {count:,} {what}" for what, count in left_out.items() if count)
    )
    facts = {
        "data": own.stats.to_json(),
        "empty_answers": empty,
        "identical_pairs": identical,
        "nothing_to_score": len(distinct) - len(rows),
        "desirable": sum(desirable),
        "undesirable": len(desirable) - sum(desirable),
        "mismatched": sum(row.index in places for row in rows),
    }
    return _Examples(answers, desirable, [places.get(row.index) for row in rows], facts)


def _distinct(rows: Sequence[EncodedRow], kept: Sequence[_Labelled]) -> list[EncodedRow]:
    """The rows without those of pairs whose sides are the same tokens, as they stand or once truncated."""
    sides: dict[int, list[EncodedRow]] = {}
    for row in rows:
        if (pair := kept[row.index].pair) is not None:
            sides.setdefault(pair, []).append(row)
    equal = {pair for pair, two in sides.items() if len(two) == 2 and np.array_equal(two[0].input_ids, two[1].input_ids)}
    return [row for row in rows if kept[row.index].pair not in equal]


def _answered(
    trainee: Trainee, config: KtoConfig, kept: Sequence[_Labelled], own: EncodedChats, rows: list[EncodedRow]
) -> list[EncodedRow]:
    """The rows whose answer was not cut away whole; where turns of the prompt are trained, that does not show in what is trained."""
    if config.trained_turns == "last" or not own.stats.truncated:
        return rows
    conversations = (one.prompt + one.completion for one in kept)
    last = _cached(trainee, config, "kto answered", lambda: conversations, config.on_too_long, (), trained_turns="last")
    answered = {row.index for row in last.rows}
    return [row for row in rows if row.index in answered]


def _with_content(trainee: Trainee, config: KtoConfig, rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """The rows with a token to score."""
    counts = Answers(rows, trainee.tokenizer, mask_format_tokens=config.mask_format_tokens).counts
    return [row for row, count in zip(rows, counts, strict=True) if count]


def _cached(
    trainee: Trainee,
    config: KtoConfig,
    kind: str,
    conversations: Callable[[], Iterator[list[dict[str, Any]]]],
    on_too_long: OnTooLong,
    sources: Sequence[str | None],
    *,
    trained_turns: TrainedTurns | None = None,
) -> EncodedChats:
    turns = trained_turns or config.trained_turns

    def encode() -> EncodedChats:
        return encode_chats(
            trainee.tokenizer,
            conversations(),
            max_length=config.max_length,
            on_too_long=on_too_long,
            trained_turns=turns,
            sources=sources,
        )

    options = {"max_length": config.max_length, "on_too_long": on_too_long, "trained_turns": turns, "rows": kind}
    return cached_rows(trainee.context.cache, trainee.dataset(), trainee.tokenizer, options, encode)


def _partners(labelled: Sequence[_Labelled]) -> list[int]:
    """For each answer the place of one that was given to another prompt: the same for the same data, whatever the run's seed.

    Raises:
        DataError: all have the same prompt.
    """
    prompts = [json.dumps(one.prompt, sort_keys=True) for one in labelled]
    if len(set(prompts)) < 2:
        raise DataError("all answers are to the same prompt; `kto` estimates its baseline from answers to other prompts")
    draw = random.Random("mismatched answers")
    others: dict[str, list[int]] = {}

    def partner(place: int) -> int:
        for _ in range(16):
            other = draw.randrange(len(prompts))
            if prompts[other] != prompts[place]:
                return other
        # One prompt has nearly all answers.
        if prompts[place] not in others:
            others[prompts[place]] = [other for other, prompt in enumerate(prompts) if prompt != prompts[place]]
        return draw.choice(others[prompts[place]])

    return [partner(place) for place in range(len(prompts))]


def _read(row: Row, number: int) -> Iterator[_Labelled]:
    """The labelled answers of a row: its own, or those of a pair, which is known by its number."""
    where = f"row {row.get('id', '?')!r}"
    if not isinstance(row.get("prompt"), list) or not row["prompt"]:
        raise DataError(f"{where} has no messages under 'prompt'; a row has prompt, completion and label, or prompt, chosen and rejected")
    prompt = as_dicts(row["prompt"])
    if "label" in row:
        if not isinstance(row["label"], bool):
            raise DataError(f"{where} has the label {row['label']!r}, which is not true or false")
        if "completion" not in row:
            raise DataError(f"{where} has a label but no 'completion'; it has {', '.join(sorted(row))}")
        yield _Labelled(prompt, _answer(prompt, row["completion"], where), row["label"], row.get("source"))
        return
    for name, desirable in (("chosen", True), ("rejected", False)):
        if not isinstance(row.get(name), list):
            raise DataError(f"{where} has neither 'label' nor messages under {name!r}; it has {', '.join(sorted(row))}")
        yield _Labelled(prompt, _answer(prompt, row[name], where), desirable, row.get("source"), number)


def _answer(prompt: list[dict[str, Any]], completion: Any, where: str) -> list[dict[str, Any]]:
    """What follows the prompt; nothing where the answer is empty."""
    messages = answer_messages(completion, where)
    if messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if messages and (messages[0]["role"] != "assistant" or messages[-1]["role"] != "assistant"):
        raise DataError(f"{where}: an answer begins and ends with an assistant message, got {messages!r}"[:400])
    return messages
