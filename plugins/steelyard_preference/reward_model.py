"""The stage `reward_model`: a model that scores a conversation with its answer, learned from which answers are better.

The score is a linear map of the last hidden state at the last token of the rendered conversation (the end token, or what the template
puts behind it): where transformers' own sequence classifiers, and with them the verifier `reward_model`, read it.
"""

from __future__ import annotations

import functools
import logging
import math
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from steelyard.errors import ModelError
from steelyard.protocols import StageContext
from steelyard.records import StageResult, derive_seed
from steelyard.rows import read_rows
from steelyard_preference.answers import Tally
from steelyard_preference.calibration import calibration
from steelyard_preference.config import RewardModelConfig
from steelyard_preference.losses import bradley_terry_loss
from steelyard_preference.rankings import EncodedRanking, RankingStats, encode_rankings, read_ranking, split_by_prompt
from steelyard_torch.batching import MicroBatch, StepSampler
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.head import last_states
from steelyard_torch.models import check_finite, check_model_folder
from steelyard_torch.sharding import is_sharded
from steelyard_torch.trainee import Trainee, memory_errors

__all__ = ["RewardModel", "load_scorer"]

_HEAD = "score"
_AT_ONCE = 2048
"""Answers that become micro-batches together when they are only scored."""


class RewardModel:
    """Trains on rows with ``prompt``, ``chosen`` and ``rejected`` (perhaps ``edited``), or with ``prompt`` and ``ranked``."""

    def __init__(self, config: RewardModelConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        config = self._config
        trainee = Trainee(context, config, dropout=False, load=load_scorer)
        scoring = _Scoring(trainee)
        rankings, stats = _encode(trainee, config)
        context.io.log(stats.describe())
        training, heldout = split_by_prompt(rankings, heldout=config.heldout, seed=derive_seed(context.seed, "held out"))
        sampler = StepSampler(
            [len(ranking) for ranking in training],
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
            step = [training[place] for place in sampler.rows(trainee.step)]
            rows, groups = _answers(step)
            pairs = _pairs(step, config)
            tally = Tally()
            for batch in trainee.micro_batches(rows, groups=groups):
                with memory_errors(batch, config):
                    _backward(scoring, config, batch, pairs, tally)
            metrics = tally.values()
            trainee.update(
                metrics.pop("loss"),
                tokens=sum(map(len, rows)),
                trained_tokens=len(rows),
                sequences=len(rows),
                metrics={f"reward_model/{name}": value for name, value in metrics.items()},
                shared={"train/epoch": sampler.epoch(trainee.step + 1)},
            )
            trainee.rest(sampler.state(trainee.step))
        return trainee.finish({"data": stats.to_json(), "lists": len(training), "heldout": _measure(trainee, scoring, config, heldout)})


def load_scorer(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", allow_remote_code: bool = False
) -> PreTrainedModel:
    """A language model's body with a new linear head of one output, without bias.

    The head's weights are drawn from N(0, 1/√(d+1)), d the hidden size (Stiennon et al., arXiv 2009.01325, appendix B.1; Tülu 3), with
    torch's seed.

    Raises:
        ModelError: the folder is refused, is no language model of an architecture that transformers has a classifier for, or has
            non-finite weights.
    """
    check_model_folder(folder, allow_remote_code=allow_remote_code)
    verbosity = transformers_logging.get_verbosity()
    # That the head is missing is the point, and no warning is due; what else is amiss is told below.
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=1,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=allow_remote_code,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ModelError(f"model folder {str(folder)!r} has a torn or invalid safetensors file: {error}") from error
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise ModelError(f"model folder {str(folder)!r} cannot become a reward model: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    model: PreTrainedModel
    model, loading = loaded
    head = getattr(model, _HEAD, None)
    expected = {"missing_keys": {f"{_HEAD}.weight"}, "unexpected_keys": {"lm_head.weight"}, "mismatched_keys": set()}
    for problem, keys in expected.items():
        if found := sorted(map(str, set(loading[problem]) - keys)):
            raise ModelError(
                f"model folder {str(folder)!r} cannot become a reward model of class {type(model).__name__}: {problem.replace('_', ' ')} "
                f"{', '.join(found[:4])}"
            )
    if not isinstance(head, torch.nn.Linear) or head.bias is not None or f"{_HEAD}.weight" not in loading["missing_keys"]:
        raise ModelError(f"model folder {str(folder)!r} is no language model without a score of its own; a reward model starts from one")
    torch.nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))
    check_finite(model, f"model folder {str(folder)!r}")
    model.train(False)
    cast("torch.nn.Module", model).to(device)
    return model


@dataclass(frozen=True, slots=True)
class _Pair:
    """Places among a step's answers."""

    better: int
    worse: int
    weight: float
    margin: float


def _pairs(rankings: Sequence[EncodedRanking], config: RewardModelConfig) -> list[_Pair]:
    pairs: list[_Pair] = []
    start = 0
    for ranking in rankings:
        weight = 1 / len(ranking.pairs) if config.ranked_weight == "list" else 1.0
        margin = ranking.margin if config.margin == "column" else config.margin
        pairs += [_Pair(start + better, start + worse, weight, margin) for better, worse in ranking.pairs]
        start += len(ranking.answers)
    return pairs


def _answers(rankings: Sequence[EncodedRanking]) -> tuple[list[EncodedRow], list[int]]:
    """The answers of all lists, and the number of each one's list."""
    rows = [row for ranking in rankings for row in ranking.answers]
    return rows, [number for number, ranking in enumerate(rankings) for _ in ranking.answers]


def _row_scores(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """(B,) float32, as one forward pass of the model."""
    head = cast("torch.nn.Linear", model.get_submodule(_HEAD))
    states = last_states(model, batch).float()
    with torch.autocast(states.device.type, enabled=False):
        return torch.nn.functional.linear(states, head.weight.float()).squeeze(-1)


class _Scoring:
    """The trainee's scores of the rows of micro-batches."""

    def __init__(self, trainee: Trainee):
        self._trainee = trainee
        self._forward: Callable[[MicroBatch], torch.Tensor] = functools.partial(_row_scores, trainee.model)
        if is_sharded(trainee.model):
            # A forward pass of the sharded model itself, so that the weights are gathered for it.
            model = cast("Any", trainee.model)
            model.row_scores = types.MethodType(_row_scores, model)
            register_fsdp_forward_method(model, "row_scores")
            self._forward = model.row_scores

    def __call__(self, batch: MicroBatch) -> torch.Tensor:
        with memory_errors(batch, self._trainee.options), self._trainee.runtime.autocast():
            return self._forward(batch)


def _backward(scoring: _Scoring, config: RewardModelConfig, batch: MicroBatch, pairs: Sequence[_Pair], tally: Tally) -> None:
    """Loss and gradients of one micro-batch of a step with these pairs; of one without rows, zeros."""
    scores = scoring(batch)
    row = {position: number for number, position in enumerate(batch.order)}
    mine = [pair for pair in pairs if pair.better in row]
    better, worse = (
        torch.tensor([row[position] for position in positions], dtype=torch.long).to(scores.device)
        for positions in ([pair.better for pair in mine], [pair.worse for pair in mine])
    )
    share = bradley_terry_loss(
        scores.index_select(0, better),
        scores.index_select(0, worse),
        margins=torch.tensor([pair.margin for pair in mine]).to(scores),
        weights=torch.tensor([pair.weight for pair in mine]).to(scores),
        total_weight=sum(pair.weight for pair in pairs),
        centering=config.centering,
    )
    share.value.backward()  # type: ignore[no-untyped-call]
    tally.add("loss", share.value)
    for name, amount in share.metrics.items():
        tally.add(name, amount)


def _measure(trainee: Trainee, scoring: _Scoring, config: RewardModelConfig, rankings: Sequence[EncodedRanking]) -> dict[str, Any]:
    """What the record says of the lists that were held out; the ranks share the work."""
    if not rankings:
        return {"lists": 0}
    rows, groups = _answers(rankings)
    own: dict[int, float] = {}
    trainee.model.train(False)
    for start, stop in _spans(groups):
        with torch.no_grad():
            for batch in trainee.micro_batches(rows[start:stop], groups=groups[start:stop]):
                scores = scoring(batch).tolist()
                own |= {start + position: score for position, score in zip(batch.order, scores, strict=True)}
        trainee.context.io.progress(stop, len(rows), "answers", "held-out accuracy")
    every = trainee.world.merged(own)
    pairs = _pairs(rankings, config)
    found = calibration(np.array([every[pair.better] for pair in pairs]), np.array([every[pair.worse] for pair in pairs]))
    trainee.context.io.log(
        f"held out: {found.accuracy:.1%} of {found.pairs:,} pairs right, log loss {found.log_loss:.3f}, calibration error {found.ece:.3f}"
    )
    return {
        "lists": len(rankings),
        "prompts": len({ranking.prompt for ranking in rankings}),
        "score_mean": float(np.mean(list(every.values()))),
        "score_std": float(np.std(list(every.values()))),
        **found.to_json(),
    }


def _spans(groups: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Stretches of whole groups, of about as many answers as make several micro-batches."""
    start = 0
    for place in range(1, len(groups) + 1):
        if place == len(groups) or (place - start >= _AT_ONCE and groups[place] != groups[place - 1]):
            yield start, place
            start = place


def _encode(trainee: Trainee, config: RewardModelConfig) -> tuple[list[EncodedRanking], RankingStats]:
    rankings = (read_ranking(row, margin=config.margin == "column") for row in read_rows(trainee.dataset()))
    return encode_rankings(trainee.tokenizer, rankings, max_length=config.max_length, refuse_too_long=config.on_too_long == "refuse")
