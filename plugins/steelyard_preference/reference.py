"""The reference model's log-probabilities of answers: kept, or computed beside the policy's."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from steelyard.errors import Interrupted, ModelError
from steelyard_preference.answers import Answers
from steelyard_preference.config import AnswerOptions, DpoConfig, KtoConfig
from steelyard_torch.batching import MicroBatch
from steelyard_torch.models import weights_sha256
from steelyard_torch.token_cache import cache_key, file_sha256, read_tensors, write_tensors
from steelyard_torch.trainee import Trainee, memory_errors

__all__ = ["Reference", "open_reference"]

_AT_ONCE = 2048
"""Answers between two looks at whether to stop."""


class Reference(Protocol):
    facts: dict[str, Any]

    def sums(self, batch: MicroBatch, places: Sequence[int]) -> torch.Tensor:
        """(B,) summed log-probabilities of the scored tokens, for a micro-batch made of the answers at ``places``; without gradient."""
        ...

    def leave(self, output: Path) -> None:
        """Put what is kept of it into the stage's output."""
        ...


def open_reference(trainee: Trainee, config: DpoConfig | KtoConfig, answers: Answers, groups: Sequence[int], *, rows: str) -> Reference:
    """The reference, as the configuration wants it.

    Args:
        answers: all that will be asked for.
        groups: which of them share a prompt.
        rows: what they are, for the key under which kept ones are found.

    Raises:
        ModelError: there is none, it has another tokenizer or template, or what is to be kept of it is not finite.
        Interrupted: the run was asked to stop while the reference scored.
    """
    folder = trainee.reference_folder()
    facts = {"weights_sha256": trainee.world.from_main(weights_sha256(folder) if trainee.world.main else None)}
    if config.reference_logprobs == "beside":
        return _Beside(trainee, answers, facts)
    return _kept(trainee, config, answers, groups, folder, facts, rows)


class _Beside:
    def __init__(self, trainee: Trainee, answers: Answers, facts: dict[str, Any]):
        self._trainee, self._answers = trainee, answers
        self._model: PreTrainedModel = trainee.load_reference()
        self.facts = {**facts, "logprobs": "beside"}

    @torch.no_grad()
    def sums(self, batch: MicroBatch, places: Sequence[int]) -> torch.Tensor:
        with self._trainee.runtime.autocast():
            return self._answers.sums(self._model, batch, places).scored

    def leave(self, output: Path) -> None:
        pass


class _Kept:
    def __init__(self, values: npt.NDArray[np.float32], file: Path, facts: dict[str, Any]):
        self._values, self._file = values, file
        self.facts = {**facts, "logprobs": file.stem}

    def sums(self, batch: MicroBatch, places: Sequence[int]) -> torch.Tensor:
        picked = self._values[[places[position] for position in batch.order]]
        return torch.from_numpy(picked).to(batch.input_ids.device)

    def leave(self, output: Path) -> None:
        # Into the artifact as well: the cache may be emptied, and what the answers were held against belongs to the record.
        kept = output / "reference"
        kept.mkdir()
        shutil.copyfile(self._file, kept / "logprobs.safetensors")


def _kept(
    trainee: Trainee,
    config: AnswerOptions,
    answers: Answers,
    groups: Sequence[int],
    folder: Path,
    facts: dict[str, Any],
    rows: str,
) -> _Kept:
    options = ("max_length", "on_too_long", "trained_turns", "mask_format_tokens")
    told = {
        **facts,
        "config_sha256": file_sha256(folder / "config.json"),
        "rows": rows,
        **trainee.reference_facts(),
        **{name: getattr(config, name) for name in options},
    }
    path = trainee.context.cache / "reference-logprobs" / f"{cache_key(trainee.dataset(), trainee.tokenizer, told)}.safetensors"
    found = read_tensors(path) if trainee.world.main else None
    known = found is not None and found[0]["logprobs"].shape == (len(answers.rows),)
    if trainee.world.from_main(known):
        values = trainee.world.from_main(found[0]["logprobs"] if found is not None else None)
        trainee.context.io.log("reference log-probabilities: kept from before")
    else:
        values = _score(trainee, config, answers, groups)
        if trainee.world.main:
            write_tensors(path, {"logprobs": values}, told)
    return _Kept(values, path, facts)


def _score(trainee: Trainee, config: AnswerOptions, answers: Answers, groups: Sequence[int]) -> npt.NDArray[np.float32]:
    """(answers,) summed log-probabilities under the reference; the ranks share the work."""
    model = trainee.load_reference()
    own: dict[int, float] = {}
    done = 0
    with torch.no_grad():
        for places in _chunks(answers, groups):
            if trainee.world.from_main(trainee.context.io.should_stop()):
                raise Interrupted("stopped while scoring the reference model; a resumed run scores it anew")
            for batch in trainee.micro_batches(answers.of(places), groups=[groups[place] for place in places]):
                with memory_errors(batch, config), trainee.runtime.autocast():
                    found = answers.sums(model, batch, places).scored.tolist()
                own |= {places[position]: value for position, value in zip(batch.order, found, strict=True)}
            done += len(places)
            trainee.context.io.progress(done, len(answers.rows), "answers", "reference log-probabilities")
    every = trainee.world.merged(own)
    values = np.array([every[place] for place in range(len(answers.rows))], np.float32)
    if broken := np.count_nonzero(~np.isfinite(values)):
        raise ModelError(
            f"the reference model gives log-probabilities that are not finite, of {broken:,} of {len(values):,} answers; see whether its "
            "weights or `precision` make it overflow, or name another one by `reference:`"
        )
    return values


def _chunks(answers: Answers, groups: Sequence[int]) -> list[list[int]]:
    """Places of the answers by length, groups whole, about as many as make several micro-batches."""
    members: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    by_length = sorted(members.values(), key=lambda unit: max(len(answers.rows[place]) for place in unit))
    chunks: list[list[int]] = [[]]
    for unit in by_length:
        if len(chunks[-1]) >= _AT_ONCE:
            chunks.append([])
        chunks[-1].extend(unit)
    return chunks
