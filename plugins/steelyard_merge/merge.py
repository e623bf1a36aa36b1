"""The stage `merge`: one model of several with a common ancestor, by the formulas of :mod:`steelyard_merge.methods`.

Merged weights mean something for models that share an ancestor; what has another shape, vocabulary or template is refused, and what comes
out is weighed by the gate like any other challenger. Llama 3 averages models of each stage that were trained with other data or settings
(arXiv 2407.21783, section 4.1.5), Kimi k1.5 a long and a short thinker (arXiv 2501.12599, section 2.4).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from steelyard.errors import Interrupted, ModelError, StorageError
from steelyard.protocols import StageContext, StepIO
from steelyard.records import StageResult, derive_seed
from steelyard.run.durable import storage_problem
from steelyard_merge.config import MergeConfig
from steelyard_merge.measures import Distances, Signs, kept_share
from steelyard_merge.methods import NEARLY_PARALLEL, PIECE, angle, drop_and_rescale, slerp, task_arithmetic, ties, weighted_sum
from steelyard_merge.models import INITIAL, Models, check_finite
from steelyard_merge.trimming import magnitude_threshold
from steelyard_merge.weights import TensorFacts, write_shards

__all__ = ["Merge"]

_REFERENCE = "the reference model"
_ROLE = "model:"


class Merge:
    """Merges tensor by tensor in float64, into the initial model's dtypes and with its tokenizer and configuration."""

    def __init__(self, config: MergeConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        remote = bool(context.options.get("trust_remote_code"))
        named = {role.removeprefix(_ROLE): folder for role, folder in sorted(context.inputs.items()) if role.startswith(_ROLE)}
        try:
            self._config.check_models(list(named))
        except ValueError as error:
            raise ModelError(f"stage 'merge': {error}") from None
        others = {_called(role): folder for role, folder in named.items()} or {_REFERENCE: _reference(context)}
        with Models(context.model, others, remote=remote) as models:
            merging = _Merging(self._config, models, _weights(self._config, list(named)), context)
            merging.prepare()
            _write(context.output, models.facts, merging.tensors())
            merging.refuse_empty()
            models.tokenizer.save_pretrained(context.output)
            facts = models.facts
        _copy_configuration(context.model, context.output, remote)
        metrics = merging.metrics()
        context.io.report(metrics)
        context.io.log(f"{len(facts):,} tensors merged by {self._config.method}; {merging.summary()}")
        parameters = sum(math.prod(fact.shape) for fact in facts.values())
        return StageResult(context.output, metrics, {**merging.facts(), "tensors": len(facts), "parameters": parameters})


class _Merging:
    """The merged tensors in order of names, and what was measured on the way."""

    def __init__(self, config: MergeConfig, models: Models, weights: Mapping[str, float], context: StageContext):
        self._config, self._models, self._weights, self._io = config, models, weights, context.io
        self._seed = context.seed
        # Without names the initial model is one of the two that are merged.
        self._takes_part = INITIAL in weights
        self._others = [name for name in weights if name != INITIAL]
        self._distances = Distances(INITIAL, self._others)
        self._signs = Signs()
        self._angles: list[float] = []
        self._thresholds: dict[str, float] = {}
        self._merged_apart = 0.0

    def prepare(self) -> None:
        """What has to be known of whole models before the first tensor is merged."""
        if self._config.method == "ties" and (self._config.trim or "model") == "model":
            names = [name for name, fact in self._models.facts.items() if fact.floating]
            for owner in self._others:
                self._thresholds[owner] = self._threshold(owner, names)
                self._io.log(f"{owner}: changes of {self._thresholds[owner]:.3g} and more are kept")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for done, name in enumerate(self._models.facts, start=1):
            _heed_stop(self._io)
            tensors = {owner: self._models.read(owner, name) for owner in (INITIAL, *self._others)}
            initial = tensors[INITIAL]
            if initial.is_floating_point():
                merged = self._merge(name, tensors)
                check_finite(name, merged, "the merged model")
            elif all(torch.equal(initial, tensor) for tensor in tensors.values()):
                merged = initial
            else:
                raise ModelError(
                    f"tensor {name!r} holds whole numbers ({initial.dtype}) that differ between the models: they have no average"
                )
            self._io.progress(done, len(self._models.facts), "tensors")
            yield name, merged.contiguous()

    def _merge(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """A tensor merged piece by piece, and measured."""
        initial = tensors[INITIAL]
        flat = {owner: tensor.reshape(-1) for owner, tensor in tensors.items()}
        theta = self._angle(flat) if self._config.method == "slerp" else 0.0
        thresholds = self._thresholds
        if self._config.method == "ties" and not thresholds:
            thresholds = {owner: self._threshold(owner, [name]) for owner in self._others}
        draws = {owner: torch.Generator().manual_seed(derive_seed(self._seed, "drop", owner, name)) for owner in self._others}
        merged = torch.empty_like(flat[INITIAL])
        for start in range(0, merged.numel(), PIECE):
            pieces = {owner: tensor[start : start + PIECE].double() for owner, tensor in flat.items()}
            made = self._formula(pieces, theta, thresholds, draws)
            self._distances.add(pieces)
            self._merged_apart += float((made - pieces[INITIAL]).square().sum())
            merged[start : start + PIECE] = made.to(merged.dtype)
        return merged.reshape(initial.shape)

    def _formula(
        self, pieces: Mapping[str, Tensor], theta: float, thresholds: Mapping[str, float], draws: Mapping[str, torch.Generator]
    ) -> Tensor:
        config, initial = self._config, pieces[INITIAL]
        taking_part, weights = [pieces[owner] for owner in self._weights], list(self._weights.values())
        scale = config.scale if config.scale is not None else 1.0
        if config.method == "average":
            return weighted_sum(taking_part, weights)
        if config.method == "slerp":
            return slerp(taking_part[0], taking_part[1], weights[1], theta)
        if config.method == "task_arithmetic":
            if config.drop is not None:
                taking_part = [drop_and_rescale(initial, pieces[owner], config.drop, draws[owner]) for owner in self._weights]
            return task_arithmetic(initial, taking_part, [scale * weight for weight in weights])
        merged, kept, conflict = ties(initial, taking_part, weights, scale, [thresholds[owner] for owner in self._weights])
        self._signs.add(kept, conflict)
        return merged

    def _angle(self, flat: Mapping[str, Tensor]) -> float:
        theta = angle(*(flat[owner] for owner in self._weights))
        self._angles.append(theta)
        return theta

    def _threshold(self, owner: str, names: list[str]) -> float:
        """The magnitude from which on a change of the tensors ``names`` is among the share to be kept."""
        count = sum(math.prod(self._models.facts[name].shape) for name in names)
        if count == 0:
            return 0.0

        def magnitudes() -> Iterator[Tensor]:
            for name in names:
                _heed_stop(self._io)
                initial, other = (self._models.read(which, name).reshape(-1) for which in (INITIAL, owner))
                for start in range(0, initial.numel(), PIECE):
                    piece = slice(start, start + PIECE)
                    yield (other[piece].double() - initial[piece].double()).abs().float()

        return magnitude_threshold(magnitudes, max(1, round(kept_share(self._config.density) * count)))

    # What was measured

    def refuse_empty(self) -> None:
        """Errors: :class:`ModelError` where models have the same weights, so that there was nothing to merge."""
        same = self._distances.same(list(self._weights))
        if self._config.method in ("task_arithmetic", "ties"):
            unchanged = [owner for owner in self._others if self._distances.same([INITIAL, owner])]
            if unchanged:
                raise ModelError(
                    f"{unchanged[0]} has the weights of {INITIAL}, so there is no change of it to add; name another as `init:`"
                )
        elif same:
            told, what = (f"{INITIAL} and {_REFERENCE}", "`reference:`") if self._takes_part else (", ".join(self._weights), "`models:`")
            raise ModelError(f"{told} have the same weights, so there is nothing to merge; name another under {what}")
        for one, two in self._distances.twins():
            self._io.log(f"{one} and {two} have the same weights")

    def metrics(self) -> dict[str, float]:
        measured = {"merge/relative_distance": self._distances.largest(), "merge/relative_change": self._relative(self._merged_apart)}
        if self._angles:
            measured["merge/mean_angle"] = math.fsum(self._angles) / len(self._angles)
        return {**measured, **self._signs.metrics()}

    def facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"method": self._config.method, "distances": self._distances.to_json()}
        if self._takes_part:
            facts["weight"] = self._weights[_REFERENCE]
        else:
            facts["weights"] = dict(self._weights)
        if self._angles:
            facts["linear_tensors"] = sum(math.sin(theta) < NEARLY_PARALLEL for theta in self._angles)
        return facts

    def summary(self) -> str:
        return ", ".join(f"{name.removeprefix('merge/').replace('_', ' ')} {value:.3g}" for name, value in self.metrics().items())

    def _relative(self, square: float) -> float:
        return math.sqrt(square) / max(self._distances.norm, 1e-30)


def _called(role: str) -> str:
    """What messages and facts call a model of the recipe's ``models``."""
    return f"model {role!r}"


def _weights(config: MergeConfig, roles: Sequence[str]) -> dict[str, float]:
    """The weight of each model that is merged, in the order of their names; without names, the initial model's comes first."""
    if not roles:
        weight = config.weight if config.weight is not None else 0.5
        return {INITIAL: 1 - weight, _REFERENCE: weight}
    weights = {_called(role): config.weights.get(role, 1.0) for role in roles}
    if config.method == "slerp" or (config.method == "average" and config.normalize is not False):
        total = math.fsum(weights.values())
        return {name: weight / total for name, weight in weights.items()}
    return weights


def _reference(context: StageContext) -> Path:
    if context.reference is None or context.reference.resolve() == context.model.resolve():
        raise ModelError(
            "stage 'merge' needs a second model: name one by `reference:` (champion, base, previous or stage:NAME), or several by `models:`"
        )
    return context.reference


def _heed_stop(io: StepIO) -> None:
    if io.should_stop():
        raise Interrupted("stopped while merging; the stage starts again when the run is resumed")


def _write(folder: Path, facts: Mapping[str, TensorFacts], tensors: Iterator[tuple[str, Tensor]]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_shards(folder, facts, tensors)
    except (OSError, SafetensorError) as error:
        raise storage_problem(error, folder) or StorageError(f"cannot write the model to {str(folder)!r}: {error}") from error


def _copy_configuration(source: Path, folder: Path, remote: bool) -> None:
    for path in [source / "config.json", source / "generation_config.json", *(sorted(source.glob("*.py")) if remote else ())]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
