"""Configuration of the stage `merge`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from steelyard.errors import nearest

__all__ = ["MergeConfig", "Method"]

Method = Literal["average", "slerp", "task_arithmetic", "ties"]

_DIALS: dict[str, tuple[Method, ...]] = {
    "weight": ("average", "slerp"),
    "normalize": ("average",),
    "scale": ("task_arithmetic", "ties"),
    "drop": ("task_arithmetic",),
    "density": ("ties",),
    "trim": ("ties",),
}
"""The methods that a dial does something in."""


class MergeConfig(BaseModel):
    """How models become one. Either `models` (by name) are merged, or, without them, the initial model and `reference`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    method: Method = "average"
    """`average`: of the weights. `slerp`: of two models, along the arc between them, tensor by tensor. `task_arithmetic`: what each model
    changed of the initial one, added to it. `ties`: the same, after small changes were trimmed and conflicting signs resolved."""
    weight: float | None = Field(default=None, ge=0, le=1)
    """Without `models`: the reference's share; the initial model has the rest. Default 0.5."""
    weights: dict[str, float] = Field(default_factory=dict)
    """With `models`: the weight of each by name; default: all alike, which in `task_arithmetic` means 1."""
    normalize: bool | None = None
    """`average`: whether weights are divided by their sum (the default) or taken as they are."""
    scale: float | None = Field(default=None, gt=0)
    """`task_arithmetic`, `ties`: by what the merged change is multiplied (λ). Default 1."""
    drop: float | None = Field(default=None, gt=0, lt=1)
    """`task_arithmetic`: share of each model's changes that is dropped at random, the rest scaled up to make up for it (DARE)."""
    density: float | None = Field(default=None, gt=0, le=1)
    """`ties`: share of each model's changes that is kept, the largest ones. Default 0.2."""
    trim: Literal["model", "tensor"] | None = None
    """`ties`: whether the largest changes are sought in the whole model, as in the paper (the default), or in each tensor."""

    def check_models(self, roles: Collection[str]) -> None:
        """Whether the options go with each other and with the models named. Errors: ``ValueError``.

        It is here and not in a validator that it is decided, because both say what a weight is of."""
        for name, methods in _DIALS.items():
            if getattr(self, name) is not None and self.method not in methods:
                raise ValueError(f"{name!r} does nothing under method {self.method!r}, only under {' and '.join(methods)}")
        if not roles:
            self._check_pair()
            return
        if self.weight is not None:
            raise ValueError("'weight' is the reference's share, and the models have names: give 'weights' by name")
        least = {"average": 2, "slerp": 2}.get(self.method, 1)
        if len(roles) < least or (self.method == "slerp" and len(roles) > 2):
            wanted = "two models" if self.method == "slerp" else "two models or more"
            raise ValueError(f"method {self.method!r} merges {wanted}, and 'models' has {len(roles)} ({', '.join(sorted(roles))})")
        self._check_weights(roles)

    def _check_pair(self) -> None:
        if self.method in ("task_arithmetic", "ties"):
            raise ValueError(f"method {self.method!r} adds up what models changed of the initial one: name them under 'models'")
        if self.weights:
            raise ValueError("'weights' are of 'models', and there are none: name the models, or give 'weight', the reference's share")
        if self.normalize is not None:
            raise ValueError("'normalize' is about 'weights', and without 'models' there are none: take it out")

    def _check_weights(self, roles: Collection[str]) -> None:
        for name in self.weights:
            if name not in roles:
                raise ValueError(f"'weights' names {name!r}, and 'models' does not{nearest(name, roles)}")
        missing = sorted(set(roles) - set(self.weights))
        if self.weights and missing:
            raise ValueError(f"'weights' leaves out {', '.join(map(repr, missing))}: give every model one")
        for name, weight in self.weights.items():
            if weight < 0 and self.method != "task_arithmetic":
                raise ValueError(f"the weight of {name!r} is {weight}: only task_arithmetic can take a model's changes away")
        if self.weights and not any(self.weights.values()):
            raise ValueError("every weight is 0, so nothing would be merged")
