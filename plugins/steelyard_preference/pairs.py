"""What the stages on pairs have in common: reading the pairs, and an optimiser step over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steelyard.errors import DataError
from steelyard.protocols import StageContext
from steelyard.records import StageResult
from steelyard.rows import read_rows, row_sources
from steelyard_preference.answers import Answers, Tally
from steelyard_preference.config import DpoConfig, OrpoConfig, SimpoConfig
from steelyard_preference.losses import chosen_nll
from steelyard_preference.reference import Reference, open_reference
from steelyard_torch.batching import MicroBatch, StepSampler, StepTotals, count_targets
from steelyard_torch.encoding import EncodedPair, EncodedPairs, encode_pairs
from steelyard_torch.losses import Loss
from steelyard_torch.token_cache import cached_pairs
from steelyard_torch.trainee import Trainee, memory_errors

__all__ = ["PairScores", "train_on_pairs"]


@dataclass(frozen=True, slots=True, eq=False)
class PairScores:
    """Of a micro-batch's B pairs: log-probabilities summed over the scored tokens, and how many those are."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    reference_chosen: torch.Tensor
    """Zeros where there is no reference."""
    reference_rejected: torch.Tensor


def train_on_pairs(
    context: StageContext,
    config: DpoConfig | SimpoConfig | OrpoConfig,
    loss: Callable[[PairScores, int], Loss],
    *,
    kind: str,
) -> StageResult:
    """Train the policy on pairs.

    Args:
        loss: a micro-batch's share of the loss, of its scores and the number of pairs in the step.
        kind: the stage's, in front of its metrics' names.
    """
    trainee = Trainee(context, config, dropout=False)
    encoded = _encode(trainee, config)
    context.io.log(encoded.stats.describe())
    pairs, answers = _with_content(trainee, config, encoded.pairs)
    groups = [place // 2 for place in range(len(answers.rows))]
    reference = open_reference(trainee, config, answers, groups, rows="pairs") if isinstance(config, DpoConfig) else None
    sampler = StepSampler(
        [len(pair) for pair in pairs], batch_size=config.batch_size, seed=context.seed, epochs=config.epochs, max_steps=config.max_steps
    )
    trainee.schedule(sampler.total_steps)
    position = trainee.resume()
    if position is not None:
        sampler.resume(position)
    while trainee.step < sampler.total_steps:
        step_pairs = sampler.rows(trainee.step)
        places = [place for pair in step_pairs for place in (2 * pair, 2 * pair + 1)]
        rows = answers.of(places)
        totals = count_targets(rows[::2])
        tally = Tally()
        for batch in trainee.micro_batches(rows, groups=[place // 2 for place in places]):
            with memory_errors(batch, config):
                _backward(trainee, config, loss, reference, answers, batch, places, totals, tally)
        metrics = tally.values()
        trainee.update(
            metrics.pop("loss"),
            tokens=sum(map(len, rows)),
            trained_tokens=sum(row.targets for row in rows),
            sequences=len(rows),
            metrics={f"{kind}/{name}": value for name, value in metrics.items()},
            shared={"train/epoch": sampler.epoch(trainee.step + 1)},
        )
        trainee.rest(sampler.state(trainee.step))
    facts = {
        "data": encoded.stats.to_json(),
        "pairs": len(pairs),
        "nothing_to_score": len(encoded.pairs) - len(pairs),
        **({"reference": reference.facts} if reference else {}),
    }
    result = trainee.finish(facts)
    if reference is not None and trainee.world.main:
        reference.leave(context.output)
    return result


def _backward(
    trainee: Trainee,
    config: DpoConfig | SimpoConfig | OrpoConfig,
    loss: Callable[[PairScores, int], Loss],
    reference: Reference | None,
    answers: Answers,
    batch: MicroBatch,
    places: Sequence[int],
    totals: StepTotals,
    tally: Tally,
) -> None:
    """Loss and gradients of one micro-batch; of one without rows, zeros."""
    with trainee.runtime.autocast():
        sums = answers.sums(trainee.model, batch, places)
    known = reference.sums(batch, places) if reference is not None else torch.zeros_like(sums.scored)
    mine = [places[position] for position in batch.order]
    tokens = answers.tokens(mine).to(known.device)
    # A group's rows stand side by side, the chosen answer first.
    share = loss(PairScores(sums.scored[::2], sums.scored[1::2], tokens[::2], tokens[1::2], known[::2], known[1::2]), len(places) // 2)
    value = share.value
    if config.nll_coefficient:
        trained = answers.tokens(mine[::2], trained=True).to(known.device)
        nll = chosen_nll(sums.trained[::2], trained, reduction=config.nll_reduction, totals=totals)
        value = value + config.nll_coefficient * nll
        tally.add("nll", nll)
    value.backward()  # type: ignore[no-untyped-call]
    tally.add("loss", value)
    for name, amount in share.metrics.items():
        tally.add(name, amount)


def _with_content(
    trainee: Trainee, config: DpoConfig | SimpoConfig | OrpoConfig, pairs: Sequence[EncodedPair]
) -> tuple[Sequence[EncodedPair], Answers]:
    """The pairs with something to score on both sides, and their answers, chosen and rejected in turn: pair p at 2p and 2p + 1."""

    def answers_of(pairs: Sequence[EncodedPair]) -> Answers:
        rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
        return Answers(rows, trainee.tokenizer, mask_format_tokens=config.mask_format_tokens)

    answers = answers_of(pairs)
    kept = [pair for place, pair in enumerate(pairs) if answers.counts[2 * place] and answers.counts[2 * place + 1]]
    if len(kept) == len(pairs):
        return pairs, answers
    trainee.context.io.log(f"{len(pairs) - len(kept):,} pairs left out: beside the template's own tokens an answer has none")
    if not kept:
        raise DataError(f"in all {len(pairs):,} pairs an answer has no token beside the template's own")
    return kept, answers_of(kept)


def _encode(trainee: Trainee, config: DpoConfig | SimpoConfig | OrpoConfig) -> EncodedPairs:
    folder = trainee.dataset()

    def encode() -> EncodedPairs:
        return encode_pairs(
            trainee.tokenizer,
            _read(folder),
            max_length=config.max_length,
            on_too_long=config.on_too_long,
            trained_turns=config.trained_turns,
            sources=row_sources(folder),
        )

    options = {"max_length": config.max_length, "on_too_long": config.on_too_long, "trained_turns": config.trained_turns}
    return cached_pairs(trainee.context.cache, folder, trainee.tokenizer, options, encode)


def _read(folder: Path) -> Iterator[tuple[Any, Any, Any]]:
    for row in read_rows(folder):
        for name in ("prompt", "chosen", "rejected"):
            if not isinstance(row.get(name), list):
                raise DataError(
                    f"row {row.get('id', '?')!r} has no messages under {name!r}; a preference row has prompt, chosen and rejected, "
                    "each a list of messages"
                )
        yield row["prompt"], row["chosen"], row["rejected"]
