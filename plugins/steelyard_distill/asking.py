"""Which teacher a recipe means, checked and made ready, and what the stage's record says of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steelyard.errors import UsageError
from steelyard_distill.config import DistillConfig
from steelyard_distill.divergences import TopK
from steelyard_distill.server import ServerTeacher
from steelyard_distill.states import vocabulary, vocabulary_of
from steelyard_distill.stored import StoredTeacher
from steelyard_distill.teachers import EngineTeacher, ModelTeacher, Teacher, load_teacher, score_top_k, teacher_folder
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.models import weights_sha256
from steelyard_torch.token_cache import file_sha256
from steelyard_torch.trainee import Trainee

__all__ = ["open_teacher"]


def open_teacher(trainee: Trainee, config: DistillConfig, rows: Sequence[EncodedRow]) -> tuple[Teacher, dict[str, Any]]:
    """The teacher of the stage, and the facts of it. ``rows`` are the given conversations, asked about at once under ``stored``.

    Raises:
        ModelError: there is no teacher, or it does not go with the student (see :func:`steelyard_distill.teachers.teacher_folder`).
        EngineError: the engine or server cannot say what is needed.
        UsageError: ``top_k`` is more than the vocabulary.
    """
    width = vocabulary(trainee.model)
    if config.server is not None:
        _check_top_k(config, width)
        server = ServerTeacher(config, trainee)
        facts: dict[str, Any] = {"server": config.server.url, "model": config.server.model}
        return _stored(trainee, config, rows, facts, server.score_top_k, width) if config.stored else (server, facts)
    folder = teacher_folder(trainee, config)
    theirs = vocabulary_of(folder, allow_remote_code=bool(trainee.context.options.get("trust_remote_code")))
    facts = {"weights_sha256": weights_sha256(folder)}
    if config.teacher == "engine":
        engine = trainee.context.engine(folder) if trainee.world.main else None
        return EngineTeacher(engine, trainee.world, theirs), {**facts, "engine": type(engine).__name__}
    if config.stored:
        width = min(width, theirs)
        _check_top_k(config, width)
        facts |= {"config_sha256": file_sha256(folder / "config.json"), "precision": config.precision}
        return _stored(trainee, config, rows, facts, _ModelScorer(trainee, config, folder, width), width)
    return ModelTeacher(load_teacher(trainee, folder), trainee.runtime.device), facts


def _check_top_k(config: DistillConfig, width: int) -> None:
    if config.top_k is not None and config.top_k > width:
        raise UsageError(f"top_k {config.top_k:,} is more than the vocabulary's {width:,} tokens")


def _stored(
    trainee: Trainee, config: DistillConfig, rows: Sequence[EncodedRow], facts: dict[str, Any], score: Any, width: int
) -> tuple[Teacher, dict[str, Any]]:
    assert config.top_k is not None
    facts = {**facts, "top_k": config.top_k, "temperature": config.temperature}
    asked = {
        **facts,
        "max_length": config.max_length,
        "on_too_long": config.on_too_long,
        "trained_turns": config.trained_turns,
        "vocabulary": width,
    }
    stored = StoredTeacher(trainee, rows, top_k=config.top_k, facts=asked, score=score, width=width)
    trainee.context.io.log(
        f"teacher log-probabilities: {stored.scored_tokens:,} tokens asked about"
        if stored.scored_tokens
        else "teacher log-probabilities: kept from before"
    )
    return stored, {**facts, "logprobs": stored.key}


class _ModelScorer:
    """Loads the teacher when it is first asked, and is let go with it."""

    def __init__(self, trainee: Trainee, config: DistillConfig, folder: Path, width: int):
        self._trainee, self._config, self._folder, self._width = trainee, config, folder, width
        self._model: Any = None

    def __call__(self, rows: Sequence[EncodedRow]) -> list[TopK]:
        if self._model is None:
            self._model = load_teacher(self._trainee, self._folder)
        return score_top_k(self._trainee, self._model, rows, self._config, self._width)
