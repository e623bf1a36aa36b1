"""Trackio."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import trackio

from steelyard.events import RunStarted

__all__ = ["TrackioTracker"]


class TrackioTracker:
    """One Trackio run for each run folder, named after it; a resumed run goes on with it. ``TRACKIO_PROJECT`` names the project,
    ``TRACKIO_DIR`` and ``TRACKIO_SPACE_ID`` mean what they always do."""

    def __init__(self, run: RunStarted, folder: Path):
        # Trackio talks on stdout, which is the command's data here.
        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT") or "steelyard",
                name=run.run_dir.name,
                config=dict(run.resolved),
                resume="allow" if run.resumed else "never",
            )

    def log(self, metrics: Mapping[str, float], step: int | None) -> None:
        with redirect_stdout(sys.stderr):
            self._run.log(dict(metrics), step=step)

    def note(self, name: str, text: str) -> None:
        with redirect_stdout(sys.stderr):
            self._run.log({name: text})

    def finish(self, exit_code: int) -> None:
        self.note("exit code", str(exit_code))

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            trackio.finish()
