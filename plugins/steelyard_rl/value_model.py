"""PPO's value model: what reward is still to come, foreseen at every token of an answer."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from steelyard.errors import ModelError
from steelyard_rl.config import RlConfig
from steelyard_rl.experience import Experience
from steelyard_torch.batching import MicroBatch
from steelyard_torch.head import split_by_row, target_states
from steelyard_torch.models import check_finite, check_model_folder, load_tokenizer
from steelyard_torch.optim import NonFiniteGuard, StepOutcome, adamw, optimiser_step
from steelyard_torch.sharding import is_sharded
from steelyard_torch.trainee import Trainee, memory_errors

__all__ = ["ValueModel", "load_value_model"]


class ValueModel:
    """A model with one number a token, and an optimiser of its own; it starts from the recipe's ``models: {value: …}``.

    The number at a token foresees what follows it, so the value of the state before an answer's token t is read at the token before."""

    def __init__(self, trainee: Trainee, config: RlConfig):
        folder = trainee.context.inputs.get("model:value")
        if folder is None:
            raise ModelError("advantage 'gae' needs a value model: name a reward model's stage, as in `models: {value: stage:rm}`")
        self._config, self._trainee = config, trainee
        _check_vocabulary(folder, trainee)
        self.model = trainee.load_companion(load_value_model, folder)
        self._forward: Callable[[MicroBatch], torch.Tensor] = functools.partial(_values, self.model)
        if is_sharded(self.model):
            # A forward pass of the sharded model itself, so that the weights are gathered for it.
            self.model.foresee = types.MethodType(_values, self.model)  # type: ignore[assignment]
            register_fsdp_forward_method(self.model, "foresee")
            self._forward = getattr(self.model, "foresee")  # noqa: B009 - bound just now
        self._peak = config.value_lr or config.lr
        self.optimizer = adamw(self.model, lr=self._peak, weight_decay=config.weight_decay, betas=config.betas, eps=config.adam_eps)
        self._guard = NonFiniteGuard(config.max_non_finite)
        trainee.accompany("value", self.model, self.optimizer)

    def values(self, batch: MicroBatch) -> torch.Tensor:
        """(N,) float32, with gradient, of the states before the batch's targets."""
        with self._trainee.runtime.autocast():
            return self._forward(batch)

    def foresee(self, experience: Experience) -> Mapping[int, torch.Tensor]:
        """By row, the values before each of its trained tokens, without gradient; every rank gets those of all rows."""
        found: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            for batch in self._trainee.micro_batches(experience.rows, groups=experience.prompts, whole=False):
                with memory_errors(batch, self._config):
                    values = self.values(batch)
                for place, own in zip(batch.order, split_by_row(values.cpu(), batch.target_rows.cpu(), len(batch)), strict=True):
                    found[place] = own
        return self._trainee.world.merged(found)

    def update(self, loss: float) -> StepOutcome:
        """An optimiser step at the policy's place in the schedule; ``loss`` is the whole step's, over all ranks."""
        trainee = self._trainee
        trainee.sum_gradients(self.model)
        return optimiser_step(
            self.model,
            self.optimizer,
            loss=loss,
            lr=self._peak * trainee.next_lr() / self._config.lr,
            max_grad_norm=self._config.max_grad_norm,
            guard=self._guard,
            step=trainee.step,
        )

    def state(self) -> dict[str, int]:
        """The guard's counts, for a checkpoint."""
        return self._guard.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._guard.restore(state)


def load_value_model(folder: Path, *, dtype: torch.dtype = torch.float32, allow_remote_code: bool = False) -> PreTrainedModel:
    """A model with one output from a folder of a reward model, or of a language model: that one gets a head of zeros, so that it begins by
    foreseeing nothing.

    Raises:
        ModelError: it cannot be loaded, misses weights, or has another kind of head.
    """
    check_model_folder(folder, allow_remote_code=allow_remote_code)
    # It would tell of the head that a language model has not, and of the one it has.
    loud = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise ModelError(f"the value model {str(folder)!r} cannot be loaded: {error}") from error
    finally:
        transformers_logging.set_verbosity(loud)
    model: PreTrainedModel
    model, loading = loaded
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise ModelError(f"the value model {str(folder)!r} ({type(model).__name__}) has no plain head called 'score'")
    missing = set(loading["missing_keys"]) - {"score.weight"}
    if bad := sorted(map(str, missing | set(loading["mismatched_keys"]))):
        raise ModelError(f"the value model {str(folder)!r} does not fit {type(model).__name__}: {', '.join(bad[:4])}")
    if "score.weight" in loading["missing_keys"]:
        torch.nn.init.zeros_(head.weight)
    check_finite(model, f"the value model {str(folder)!r}")
    return model


def _check_vocabulary(folder: Path, trainee: Trainee) -> None:
    if load_tokenizer(folder).get_vocab() != trainee.tokenizer.get_vocab():
        raise ModelError(
            f"the value model {str(folder)!r} has another vocabulary than the policy; start it from a model of the same family"
        )


def _values(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """(N,) float32; one forward pass of ``model``."""
    states = target_states(model, batch)
    head: torch.nn.Linear = model.score  # type: ignore[assignment]
    with torch.autocast(states.device.type, enabled=False):
        return torch.nn.functional.linear(states.float(), head.weight.float()).squeeze(-1)
