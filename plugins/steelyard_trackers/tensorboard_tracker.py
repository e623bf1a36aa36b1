"""TensorBoard event files, written without torch: the conductor does not import it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from steelyard.events import RunStarted

__all__ = ["TensorBoardTracker"]

_FLUSH_S = 10


class TensorBoardTracker:
    """Scalars and texts in ``folder``; look at it with ``tensorboard --logdir``. A resumed run adds a file."""

    def __init__(self, run: RunStarted, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder), flush_secs=_FLUSH_S)
        self.note("recipe", f"```json\n{json.dumps(run.resolved, indent=2, default=str)}\n```")

    def log(self, metrics: Mapping[str, float], step: int | None) -> None:
        self._write([Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()], step)

    def note(self, name: str, text: str) -> None:
        content = TensorProto(
            dtype="DT_STRING", string_val=[text.encode()], tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        )
        self._write([Summary.Value(tag=name, metadata=create_summary_metadata(name, ""), tensor=content)], None)
        self._writer.flush()

    def finish(self, exit_code: int) -> None:
        self.note("exit code", str(exit_code))

    def close(self) -> None:
        self._writer.close()

    def _write(self, values: list[Any], step: int | None) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step or 0, summary=Summary(value=values)))
