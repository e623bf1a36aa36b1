"""Trackers: a run's metrics and verdicts, mirrored to TensorBoard, Weights & Biases, MLflow or Trackio."""

from steelyard.events import MetricsReported, RoundDecided, RunFinished, RunStarted
from steelyard.hookspecs import hookimpl
from steelyard_trackers.mirrors import Mirrors

_mirrors = Mirrors()


@hookimpl
def steelyard_run_started(event: RunStarted) -> None:
    _mirrors.run_started(event)


@hookimpl
def steelyard_metrics(event: MetricsReported) -> None:
    _mirrors.metrics(event)


@hookimpl
def steelyard_round_decided(event: RoundDecided) -> None:
    _mirrors.round_decided(event)


@hookimpl
def steelyard_run_finished(event: RunFinished) -> None:
    _mirrors.run_finished(event)
