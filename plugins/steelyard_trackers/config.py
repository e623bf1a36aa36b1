"""Which trackers there are, and which of them the environment asks for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from steelyard.specs import LazyRef

__all__ = ["TRACKERS", "VARIABLE", "chosen_trackers"]

VARIABLE = "STEELYARD_TRACKERS"
"""The environment variable: names of trackers, separated by commas."""

TRACKERS: Mapping[str, LazyRef] = MappingProxyType(
    {
        "mlflow": LazyRef("steelyard_trackers.mlflow_tracker:MlflowTracker"),
        "tensorboard": LazyRef("steelyard_trackers.tensorboard_tracker:TensorBoardTracker"),
        "trackio": LazyRef("steelyard_trackers.trackio_tracker:TrackioTracker"),
        "wandb": LazyRef("steelyard_trackers.wandb_tracker:WandbTracker"),
    }
)
"""Tracker → its class. A tracker's name is also that of its package and of its extra."""


def chosen_trackers(environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The trackers that :data:`VARIABLE` names, in its order, each once; and the names in it that are none."""
    names = dict.fromkeys(name.strip() for name in environ.get(VARIABLE, "").split(",") if name.strip())
    return [name for name in names if name in TRACKERS], [name for name in names if name not in TRACKERS]
