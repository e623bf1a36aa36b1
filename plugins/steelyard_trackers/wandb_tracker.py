"""Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import wandb

from steelyard.events import RunStarted
from steelyard_trackers.kept_id import keep_id, kept_id

__all__ = ["WandbTracker"]

_STEP = "optimiser_step"


class WandbTracker:
    """One W&B run for each run folder; a resumed run goes on with it. ``WANDB_PROJECT``, ``WANDB_MODE`` and the rest mean what they
    always do."""

    def __init__(self, run: RunStarted, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "steelyard",
            name=run.run_dir.name,
            id=kept_id(folder),
            dir=str(folder),
            config=dict(run.resolved),
            resume="allow",
            reinit="create_new",
            # The terminal is the run's own.
            settings=wandb.Settings(console="off"),
        )
        keep_id(folder, self._run.id)
        # W&B's own step may only grow, and every step of a run counts from 1.
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric("*", step_metric=_STEP)
        self._exit_code = 1

    def log(self, metrics: Mapping[str, float], step: int | None) -> None:
        self._run.log({**metrics, _STEP: step or 0})

    def note(self, name: str, text: str) -> None:
        self._run.summary[name] = text

    def finish(self, exit_code: int) -> None:
        self._exit_code = exit_code

    def close(self) -> None:
        self._run.finish(exit_code=self._exit_code)
