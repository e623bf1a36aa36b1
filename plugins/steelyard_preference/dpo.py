"""The stage `dpo`: direct preference optimisation.

Loss (Rafailov et al. 2023): ``-log σ(β [Δ_chosen - Δ_rejected])`` with ``Δ = Σ_t (log π - log π_ref)`` over an answer's trained tokens;
`dpo_norm` divides each Δ by its number of tokens (Lambert et al. 2024, §5.1.2). The reference's log-probabilities are computed once
and kept.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steelyard.errors import DataError, Interrupted
from steelyard.protocols import StageContext
from steelyard.records import StageResult
from steelyard.rows import read_rows
from steelyard_preference.config import DpoConfig
from steelyard_torch.batching import MicroBatch, StepSampler, StepTotals, collate, count_targets
from steelyard_torch.encoding import EncodedPair, EncodedPairs, encode_pairs
from steelyard_torch.head import TokenScores, sum_by_row, token_logprobs
from steelyard_torch.losses import dpo_loss, sft_loss
from steelyard_torch.models import weights_sha256
from steelyard_torch.token_cache import cache_key, cached_pairs, file_sha256, read_tensors, write_tensors
from steelyard_torch.trainee import Trainee, memory_errors

__all__ = ["Dpo", "pair_batches"]


class Dpo:
    """Trains on rows with ``prompt``, ``chosen`` and ``rejected``."""

    def __init__(self, config: DpoConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        config = self._config
        trainee = Trainee(context, config, dropout=False)
        encoded = _encode(trainee, config)
        context.io.log(encoded.stats.describe())
        pairs = [pair for pair in encoded.pairs if not np.array_equal(pair.chosen.input_ids, pair.rejected.input_ids)]
        if same := len(encoded.pairs) - len(pairs):
            context.io.log(f"{same:,} pairs left out: chosen and rejected are the same")
        if not pairs:
            raise DataError(f"chosen and rejected are the same in all {same:,} pairs; there is nothing to prefer")
        reference, reference_file, reference_facts = _reference_logprobs(trainee, config, pairs)
        sampler = StepSampler(
            [len(pair) for pair in pairs],
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
            chosen = sampler.rows(trainee.step)
            step_pairs = [pairs[i] for i in chosen]
            chosen_totals = count_targets([pair.chosen for pair in step_pairs])
            loss_value, metrics = 0.0, defaultdict[str, float](float)
            for places in pair_batches(step_pairs, token_budget=config.micro_batch_tokens):
                batch = _collate([step_pairs[p] for p in places], trainee)
                known = torch.from_numpy(reference[[chosen[p] for p in places]]).to(trainee.runtime.device)
                with memory_errors(padded_tokens=batch.padded_tokens, options=config):
                    loss_value += _backward(
                        trainee, config, batch, known, pairs=len(step_pairs), chosen_totals=chosen_totals, metrics=metrics
                    )
            trainee.update(
                loss_value,
                tokens=sum(len(pair) for pair in step_pairs),
                trained_tokens=sum(pair.chosen.targets + pair.rejected.targets for pair in step_pairs),
                sequences=2 * len(step_pairs),
                metrics={**{f"dpo/{name}": value for name, value in metrics.items()}, "train/epoch": sampler.epoch(trainee.step + 1)},
            )
            trainee.rest(sampler.state(trainee.step))
        result = trainee.finish({"data": encoded.stats.to_json(), "identical_pairs": same, "reference": reference_facts})
        # Into the artifact as well: the cache may be emptied, and what the pairs were held against belongs to the record.
        kept = context.output / "reference"
        kept.mkdir()
        shutil.copyfile(reference_file, kept / "logprobs.safetensors")
        return result


def _backward(
    trainee: Trainee,
    config: DpoConfig,
    batch: MicroBatch,
    reference: torch.Tensor,
    *,
    pairs: int,
    chosen_totals: StepTotals,
    metrics: defaultdict[str, float],
) -> float:
    """Loss and gradients of one micro-batch, chosen rows first; ``reference`` is (B, 2): summed log-probabilities, chosen and rejected."""
    with trainee.runtime.autocast():
        scores = token_logprobs(trainee.model, batch)
    half = scores.n_rows // 2
    sums = sum_by_row(scores.logprobs, scores.rows, scores.n_rows)
    tokens = batch.trained.sum(dim=1)
    loss = dpo_loss(
        sums[:half],
        sums[half:],
        reference[:, 0],
        reference[:, 1],
        chosen_tokens=tokens[:half],
        rejected_tokens=tokens[half:],
        loss=config.loss,
        beta=config.beta,
        pairs=pairs,
    )
    value = loss.value
    if config.nll_coefficient:
        mine = scores.rows < half
        nll = sft_loss(scores.logprobs[mine], scores.rows[mine], half, reduction=config.nll_reduction, totals=chosen_totals)
        value = value + config.nll_coefficient * nll
        metrics["nll"] += nll.item()
    value.backward()  # type: ignore[no-untyped-call]
    for name, amount in loss.metrics.items():
        metrics[name] += float(amount)
    return float(value.item())


def pair_batches(pairs: Sequence[EncodedPair], *, token_budget: int) -> Iterator[list[int]]:
    """Positions of pairs that go through the model together: both answers of a pair in one micro-batch, pairs of like length together,
    padded tokens within the budget (a single pair may exceed it)."""
    by_length = sorted(range(len(pairs)), key=lambda i: (_width(pairs[i]), i))
    batch: list[int] = []
    for place in by_length:
        if batch and 2 * (len(batch) + 1) * _width(pairs[place]) > token_budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _width(pair: EncodedPair) -> int:
    return max(len(pair.chosen), len(pair.rejected))


def _collate(pairs: Sequence[EncodedPair], trainee: Trainee) -> MicroBatch:
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    return collate(rows, pad_id=trainee.tokenizer.pad_token_id, device=trainee.runtime.device)


def _encode(trainee: Trainee, config: DpoConfig) -> EncodedPairs:
    folder = trainee.dataset()

    def rows() -> Iterator[tuple[Any, Any, Any]]:
        for row in read_rows(folder):
            for name in ("prompt", "chosen", "rejected"):
                if not row.get(name) or isinstance(row[name], str):
                    raise DataError(
                        f"row {row.get('id', '?')!r} has no messages under {name!r}; a preference row has prompt, chosen and rejected, "
                        "each a list of messages"
                    )
            yield row["prompt"], row["chosen"], row["rejected"]

    def encode() -> EncodedPairs:
        return encode_pairs(
            trainee.tokenizer, rows(), max_length=config.max_length, on_too_long=config.on_too_long, trained_turns=config.trained_turns
        )

    options = {"max_length": config.max_length, "on_too_long": config.on_too_long, "trained_turns": config.trained_turns}
    return cached_pairs(trainee.context.cache, folder, trainee.tokenizer, options, encode)


def _reference_logprobs(
    trainee: Trainee, config: DpoConfig, pairs: Sequence[EncodedPair]
) -> tuple[np.ndarray[Any, Any], Path, dict[str, Any]]:
    """(pairs, 2) float32: summed log-probabilities of chosen and rejected under the reference, from their file when it is there; that
    file; and what the stage's record says of them."""
    context = trainee.context
    folder = trainee.reference_folder()
    facts = {
        "weights_sha256": weights_sha256(folder),
        "config_sha256": file_sha256(folder / "config.json"),
        "max_length": config.max_length,
        "on_too_long": config.on_too_long,
        "trained_turns": config.trained_turns,
        "precision": config.precision,
    }
    path = context.cache / "reference-logprobs" / f"{cache_key(trainee.dataset(), trainee.tokenizer, facts)}.safetensors"
    found = read_tensors(path)
    if found is not None and found[0]["logprobs"].shape == (len(pairs), 2):
        context.io.log("reference log-probabilities: kept from before")
        logprobs = found[0]["logprobs"]
    else:
        logprobs = _score_reference(trainee, config, pairs)
        write_tensors(path, {"logprobs": logprobs}, facts)
    return logprobs, path, {"weights_sha256": facts["weights_sha256"], "logprobs": path.stem}


def _score_reference(trainee: Trainee, config: DpoConfig, pairs: Sequence[EncodedPair]) -> np.ndarray[Any, Any]:
    model = trainee.load_reference()
    out = np.zeros((len(pairs), 2), np.float32)
    done = 0
    with torch.no_grad():
        for places in pair_batches(pairs, token_budget=config.micro_batch_tokens):
            if trainee.context.io.should_stop():
                raise Interrupted("stopped while scoring the reference model; a resumed run scores it anew")
            batch = _collate([pairs[p] for p in places], trainee)
            with memory_errors(padded_tokens=batch.padded_tokens, options=config), trainee.runtime.autocast():
                scores: TokenScores = token_logprobs(model, batch)
            sums = sum_by_row(scores.logprobs, scores.rows, scores.n_rows).float().cpu().numpy()
            out[places, 0], out[places, 1] = sums[: len(places)], sums[len(places) :]
            done += len(places)
            trainee.context.io.progress(done, len(pairs), "pairs", "reference log-probabilities")
    return out
