"""What is asked about a step's tokens: a model beside the student, what one said before, an engine, or a server.

A teacher is first told the rows of an optimiser step (:meth:`prepare`, on every rank), then asked about each micro-batch of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from steelyard.errors import EngineError, ModelError
from steelyard.protocols import Engine
from steelyard_distill.comparing import Signal
from steelyard_distill.config import DistillConfig
from steelyard_distill.divergences import TopK, top_k_of
from steelyard_distill.states import frozen_states, vocabulary
from steelyard_torch.batching import MicroBatch, gather_targets, micro_batches
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.head import prepare_scoring
from steelyard_torch.models import check_vocabulary, load_tokenizer, weights_sha256
from steelyard_torch.parallel import World
from steelyard_torch.rotary import check_lengths, rotary_boundary
from steelyard_torch.templates import check_template, template_hash
from steelyard_torch.trainee import Trainee, memory_errors

__all__ = ["EngineTeacher", "KnownRows", "ModelTeacher", "Teacher", "gather_top_k", "load_teacher", "score_top_k", "teacher_folder"]

_MOST_LOGITS = 2**25


class Teacher(Protocol):
    def prepare(self, rows: Sequence[EncodedRow], indices: Sequence[int]) -> None:
        """The rows of the optimiser step that comes; ``indices`` are their numbers in the data, where they come from there."""

    def signal(self, batch: MicroBatch) -> Signal:
        """What the teacher says of the batch's targets; without gradient, and no host need wait for the device."""


class ModelTeacher:
    """A model in memory beside the student: whole distributions."""

    def __init__(self, model: PreTrainedModel, device: torch.device):
        self._ask, self._width = frozen_states(model, device), vocabulary(model)

    def prepare(self, rows: Sequence[EncodedRow], indices: Sequence[int]) -> None:
        """No more than a look at the tokens: it is asked as batches come."""
        _check_known(rows, self._width)

    def signal(self, batch: MicroBatch) -> Signal:
        return self._ask(batch)


class KnownRows:
    """What was said of a step's rows, row by row: of each its most probable tokens, or its tokens' log-probabilities."""

    def __init__(self, said: Sequence[TopK] | Sequence[torch.Tensor]):
        self._said = said

    def signal(self, batch: MicroBatch) -> Signal:
        if self._said and isinstance(self._said[0], TopK):
            return gather_top_k(batch, self._said)  # type: ignore[arg-type]
        return gather_targets(batch, self._said)  # type: ignore[arg-type]


class EngineTeacher:
    """The teacher in an engine of the recipe's kind, opened on the main rank: log-probabilities of the targets themselves.

    Args:
        width: how many tokens the teacher knows.

    Raises:
        EngineError: the engine does not score token ids.
    """

    def __init__(self, engine: Engine | None, world: World, width: int):
        if world.main and not callable(getattr(engine, "score_tokens", None)):
            raise EngineError(
                f"the engine {type(engine).__name__!r} does not score token ids, which teacher 'engine' needs; use the engine 'vllm' or "
                "'transformers'"
            )
        self._engine, self._world, self._width = engine, world, width
        self._known = KnownRows([])

    def prepare(self, rows: Sequence[EncodedRow], indices: Sequence[int]) -> None:
        _check_known(rows, self._width)
        self._known = KnownRows(self._world.from_main(self._score(rows) if self._world.main else None))

    def signal(self, batch: MicroBatch) -> Signal:
        return self._known.signal(batch)

    def _score(self, rows: Sequence[EncodedRow]) -> list[torch.Tensor]:
        engine: Any = self._engine
        engine.wake()
        starts = [int(np.argmax(row.trained)) for row in rows]
        pairs = [(tuple(row.input_ids[:s].tolist()), tuple(row.input_ids[s:].tolist())) for row, s in zip(rows, starts, strict=True)]
        scored = engine.score_tokens(pairs)
        engine.sleep()
        return [
            torch.tensor(one.token_logprobs, dtype=torch.float32)[torch.from_numpy(row.trained[s:])]
            for one, row, s in zip(scored, rows, starts, strict=True)
        ]


def _check_known(rows: Sequence[EncodedRow], width: int) -> None:
    highest = max((int(row.input_ids.max()) for row in rows), default=0)
    if highest >= width:
        raise ModelError(
            f"the student sampled token {highest}, and the teacher knows {width:,} tokens: the student's vocabulary is padded further, "
            "with tokens that no text has; train it on given conversations first, or lower sampling_temperature"
        )


def gather_top_k(batch: MicroBatch, said: Sequence[TopK]) -> TopK:
    """Of each row's targets, in the order of the batch's."""
    width = said[0].width
    if not batch.order:  # nothing to gather, though in k columns
        return TopK(*(column[:0].to(batch.input_ids.device) for column in said[0].columns), width=width)
    return TopK(*(gather_targets(batch, column) for column in zip(*(row.columns for row in said), strict=True)), width=width)


@torch.no_grad()
def score_top_k(trainee: Trainee, model: PreTrainedModel, rows: Sequence[EncodedRow], config: DistillConfig, width: int) -> list[TopK]:
    """The model's ``top_k`` tokens at each row's targets, over its first ``width`` tokens, on the CPU; every rank scores a share of the
    rows and gets all.

    Raises:
        ModelError: they are not finite.
    """
    assert config.top_k is not None
    ask, found = frozen_states(model, trainee.runtime.device), dict[int, TopK]()
    for batch in _batches(trainee, model, rows, config):
        with memory_errors(batch, config), trainee.runtime.autocast():
            states = ask(batch)
            size = max(1, _MOST_LOGITS // states.width)
            parts = [
                top_k_of(states.logits(some)[:, :width], ids, config.top_k, temperature=config.temperature)
                for some, ids in zip(torch.split(states.states, size), torch.split(batch.target_ids, size), strict=True)
            ]
        counts = torch.bincount(batch.target_rows, minlength=len(batch)).tolist()
        joined = (torch.cat(column).cpu() for column in zip(*(part.columns for part in parts), strict=True))
        for place, *row in zip(batch.order, *(torch.split(column, counts) for column in joined), strict=True):
            found[place] = TopK(*row, width=width)
    every = trainee.world.merged(found)
    if broken := sum(not bool(said.logprobs.isfinite().all()) for said in every.values()):
        raise ModelError(
            f"the teacher gives log-probabilities that are not finite, in {broken:,} of {len(rows):,} conversations; see whether its "
            "weights or `precision` make it overflow, or name another one"
        )
    return [every[place] for place in range(len(rows))]


def _batches(trainee: Trainee, model: PreTrainedModel, rows: Sequence[EncodedRow], config: DistillConfig) -> list[MicroBatch]:
    """This rank's share of the rows, packed where the teacher takes that."""
    check_lengths(model, [len(row) for row in rows])
    return micro_batches(
        rows,
        token_budget=config.micro_batch_tokens,
        pad_id=trainee.tokenizer.pad_token_id,
        device=trainee.runtime.device,
        packed=prepare_scoring(model),
        rank=trainee.world.rank,
        size=trainee.world.size,
        boundary=rotary_boundary(model),
    )


def load_teacher(trainee: Trainee, folder: Path) -> PreTrainedModel:
    """The teacher in evaluation mode and without gradients, spread over the ranks as the student is."""
    model = trainee.load_frozen(folder)
    check_vocabulary(model, trainee.tokenizer)
    return model


def teacher_folder(trainee: Trainee, config: DistillConfig) -> Path:
    """The teacher's folder: the recipe's ``models: {teacher: …}``, or its ``reference``.

    Raises:
        ModelError: there is none; it has the student's own weights; or it reads other tokens, or under another template.
    """
    context = trainee.context
    folder = context.inputs.get("model:teacher", context.reference)
    if folder is None:
        raise ModelError("stage 'distill' needs a teacher: name it by `reference:` (champion, base, previous or stage:NAME)")
    if config.ce_coefficient == 0 and weights_sha256(folder) == weights_sha256(context.model):
        raise ModelError("the teacher has the student's own weights, so there is nothing to learn; name another model by `reference:`")
    tokenizer = load_tokenizer(folder, allow_remote_code=bool(context.options.get("trust_remote_code")))
    if tokenizer.get_vocab() != trainee.tokenizer.get_vocab():
        raise ModelError(
            f"the teacher has another vocabulary than the student ({len(tokenizer):,} and {len(trainee.tokenizer):,} tokens), so their "
            "distributions cannot be compared; take a teacher with the student's tokenizer, or train on its texts by `sft`"
        )
    check_template(template_hash(trainee.tokenizer), tokenizer, where="the teacher")
    return folder
