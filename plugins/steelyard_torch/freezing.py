"""Which weights are trained: freezing by name, and how many are left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from transformers import PreTrainedModel

from steelyard.errors import UsageError, nearest

__all__ = ["describe_trainable", "freeze_weights", "matching", "parameter_names", "stored_numel", "trainable_facts"]


def freeze_weights(model: PreTrainedModel, *, freeze: Sequence[str] = (), train_only: Sequence[str] = ()) -> None:
    """Freeze the weights whose names match a pattern of ``freeze``, or those that match none of ``train_only``.

    A weight with several names (tied ones) counts under each of them, so that it is frozen, or trained, under all.

    Args:
        freeze, train_only: ``fnmatch`` patterns over parameter names; one of the two.

    Raises:
        UsageError: a pattern matches no weight, or nothing is left to train.
    """
    patterns, option = (train_only, "train_only") if train_only else (freeze, "freeze")
    if not patterns:
        return
    named = parameter_names(model)
    found = set(matching([name for names in named.values() for name in names], patterns, option=option, what="weight"))
    for parameter, names in named.items():
        parameter.requires_grad_((not found.isdisjoint(names)) == bool(train_only))
    if not any(parameter.requires_grad for parameter in named):
        raise UsageError(f"{option} {list(patterns)!r} freezes every weight of the model; there is nothing left to train")


def parameter_names(model: torch.nn.Module) -> dict[torch.nn.Parameter, list[str]]:
    """Every parameter with all of its names; tied ones have several."""
    names: dict[torch.nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def matching(names: Sequence[str], patterns: Iterable[str], *, option: str, what: str, by_ending: bool = False) -> list[str]:
    """The names that match a pattern, in their order.

    Args:
        by_ending: a pattern without its beginning, ``q_proj`` or ``self_attn.*``, matches every name that ends so.

    Raises:
        UsageError: a pattern matches nothing; it says which names are near.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatchcase(name, pattern) or (by_ending and fnmatchcase(name, f"*.{pattern}"))}
        if not hits:
            raise UsageError(f"{option} {pattern!r} matches no {what} of the model{_near(pattern, names, by_ending)}")
        found |= hits
    return [name for name in names if name in found]


def trainable_facts(model: PreTrainedModel) -> Mapping[str, Any]:
    """``parameters``, ``trained_parameters`` and ``trained_share`` (0 to 1) of a model."""
    every = [(stored_numel(parameter), parameter.requires_grad) for parameter in parameter_names(model)]
    total, trained = sum(count for count, _ in every), sum(count for count, is_trained in every if is_trained)
    return {"parameters": total, "trained_parameters": trained, "trained_share": trained / max(total, 1)}


def describe_trainable(model: PreTrainedModel) -> str:
    """One line for people."""
    facts = trainable_facts(model)
    return f"{facts['trained_parameters']:,} of {facts['parameters']:,} parameters are trained ({facts['trained_share']:.2%})"


def stored_numel(parameter: torch.nn.Parameter) -> int:
    """Numbers that a parameter stands for; a packed 4-bit one stands for more than it has elements."""
    quantised = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if quantised is None else torch.Size(quantised.shape).numel())


def _near(pattern: str, names: Sequence[str], by_ending: bool) -> str:
    """What the model has instead, with layer numbers as ``*``: a list of every layer's names helps nobody."""
    short = sorted({".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names})
    if by_ending:
        short = sorted({name.rpartition(".")[2] for name in names})
    return nearest(pattern, short)
