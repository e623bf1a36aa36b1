"""MLflow, by its client: the fluent functions keep their run in a global of the process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric

from steelyard.events import RunStarted
from steelyard_trackers.kept_id import keep_id, kept_id

__all__ = ["MlflowTracker"]

_STATUS = {0: "FINISHED", 1: "FINISHED", 75: "KILLED"}
"""By exit code: done, not promoted, interrupted; any other is a failure."""
_TAG_LIMIT = 5000


class MlflowTracker:
    """One MLflow run for each run folder; a resumed run goes on with it. ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` say where;
    without a URI MLflow's own default applies."""

    def __init__(self, run: RunStarted, folder: Path):
        self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or None)
        self._id = kept_id(folder) or self._create(run)
        self._client.update_run(self._id, status="RUNNING")
        keep_id(folder, self._id)
        self._exit_code = 3

    def _create(self, run: RunStarted) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "steelyard"
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found is not None else self._client.create_experiment(experiment)
        created = self._client.create_run(number, run_name=run.run_dir.name, tags={"run_dir": str(run.run_dir)})
        self._client.log_dict(created.info.run_id, dict(run.resolved), "resolved.json")
        return str(created.info.run_id)

    def log(self, metrics: Mapping[str, float], step: int | None) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(name, value, now, step or 0) for name, value in metrics.items()])

    def note(self, name: str, text: str) -> None:
        self._client.set_tag(self._id, name, text[:_TAG_LIMIT])

    def finish(self, exit_code: int) -> None:
        self._exit_code = exit_code

    def close(self) -> None:
        self._client.set_terminated(self._id, _STATUS.get(self._exit_code, "FAILED"))
