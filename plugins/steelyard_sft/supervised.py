"""The stages `sft` and `pretrain`: cross-entropy on the tokens that are to be learnt."""

from __future__ import annotations

import torch

from steelyard.errors import DataError
from steelyard.protocols import StageContext
from steelyard.records import Row, StageResult
from steelyard.rows import read_rows, row_sources
from steelyard_sft.config import PretrainConfig, SftConfig, SupervisedOptions
from steelyard_torch.batching import StepSampler, count_targets
from steelyard_torch.encoding import EncodedChats, encode_texts
from steelyard_torch.head import token_logprobs
from steelyard_torch.losses import sft_loss
from steelyard_torch.token_cache import cached_rows
from steelyard_torch.trainee import Trainee, memory_errors

__all__ = ["Pretrain", "Sft"]


class Sft:
    """Trains on the assistant's turns of conversations (rows with ``messages``)."""

    def __init__(self, config: SftConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        config = self._config
        trainee = Trainee(context, config)
        encoded = trainee.conversations(max_length=config.max_length, on_too_long=config.on_too_long, trained_turns=config.trained_turns)
        return _train(trainee, config, encoded)


class Pretrain:
    """Trains on plain text (rows with ``text``), or on the ``completion`` after a masked ``prompt``."""

    def __init__(self, config: PretrainConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        config = self._config
        trainee = Trainee(context, config)
        folder = trainee.dataset()

        def encode() -> EncodedChats:
            return encode_texts(
                trainee.tokenizer,
                (_text(row) for row in read_rows(folder)),
                max_length=config.max_length,
                on_too_long=config.on_too_long,
                train_prompt=config.train_prompt,
                end_token=config.end_token,
                sources=row_sources(folder),
            )

        options = {
            "max_length": config.max_length,
            "on_too_long": config.on_too_long,
            "train_prompt": config.train_prompt,
            "end_token": config.end_token,
        }
        encoded = cached_rows(context.cache, folder, trainee.tokenizer, options, encode)
        return _train(trainee, config, encoded)


def _train(trainee: Trainee, config: SupervisedOptions, encoded: EncodedChats) -> StageResult:
    context, data = trainee.context, encoded.rows
    context.io.log(encoded.stats.describe())
    sampler = StepSampler(
        [len(row) for row in data], batch_size=config.batch_size, seed=context.seed, epochs=config.epochs, max_steps=config.max_steps
    )
    trainee.schedule(sampler.total_steps)
    position = trainee.resume()
    if position is not None:
        sampler.resume(position)
    while trainee.step < sampler.total_steps:
        rows = [data[i] for i in sampler.rows(trainee.step)]
        totals = count_targets(rows)
        loss_value = torch.zeros((), device=trainee.runtime.device)
        for batch in trainee.micro_batches(rows):
            with memory_errors(batch, config):
                with trainee.runtime.autocast():
                    scores = token_logprobs(trainee.model, batch)
                loss = sft_loss(scores.logprobs, scores.rows, scores.n_rows, reduction=config.loss_reduction, totals=totals)
                loss.backward()  # type: ignore[no-untyped-call]
            # Added up on the device: asking for the number here would make the host wait for each micro-batch.
            loss_value += loss.detach()
        trainee.update(
            loss_value.item(),
            tokens=sum(len(row) for row in rows),
            trained_tokens=totals.tokens,
            sequences=len(rows),
            metrics={},
            shared={"train/epoch": sampler.epoch(trainee.step + 1)},
        )
        trainee.rest(sampler.state(trainee.step))
    return trainee.finish({"data": encoded.stats.to_json()})


def _text(row: Row) -> tuple[str, str]:
    if "text" in row:
        return "", row["text"]
    if not (isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)):
        raise DataError(f"row {row.get('id', '?')!r} needs `text`, or `prompt` and `completion` as texts; it has {', '.join(sorted(row))}")
    return row["prompt"], row["completion"]
