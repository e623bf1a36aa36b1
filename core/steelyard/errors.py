"""Errors and exit codes.

Every error a user can cause or meet is a :class:`SteelyardError`; the command line prints its message without a traceback and exits
with its ``exit_code``::

    SteelyardError                       3  internal
    ├── UsageError                       2  a wrong argument, a wrong path
    │   ├── RecipeError                  2  the recipe is wrong; carries file and line
    │   └── RunLockedError               2  another process works on the run; carries the holder
    ├── PluginError                      4  a plugin is missing, broken, in conflict or too old
    ├── DataError                        5  data that cannot be used: no rows, torn file, wrong columns, contamination
    │   └── ArtifactError                5  an artifact does not match its manifest
    ├── ModelError                       5  a model that cannot be used: pickle, remote code, non-finite weights, wrong template
    ├── VerifierError                    5  a verifier failed above its limit
    ├── GateRefusal                      5  the gate cannot weigh what it was given; carries every reason
    ├── TrainingError                    5  non-finite loss or gradients, nothing to train on
    ├── StepFailedError                  5  a step failed in its worker; carries the step and the cause
    ├── EngineError                      5  an engine died, or cannot do what was asked
    ├── StorageError                     5  disk full, read-only folder
    └── Interrupted                     75  asked to stop; the run can be resumed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

__all__ = [
    "ArtifactError",
    "DataError",
    "EngineError",
    "ExitCode",
    "GateRefusal",
    "Interrupted",
    "ModelError",
    "PluginError",
    "RecipeError",
    "RunLockedError",
    "SteelyardError",
    "StepFailedError",
    "StorageError",
    "TrainingError",
    "UsageError",
    "VerifierError",
    "nearest",
]


class ExitCode(IntEnum):
    """What the ``steelyard`` command returns; public and tested."""

    DONE = 0
    NOT_PROMOTED = 1
    USAGE = 2
    INTERNAL = 3
    PLUGIN = 4
    DATA = 5
    INTERRUPTED = 75


class SteelyardError(Exception):
    """Base of every error that Steelyard raises on purpose; the message is written for the user."""

    exit_code: ExitCode = ExitCode.INTERNAL

    def to_json(self) -> dict[str, Any]:
        """The error as it crosses a process border."""
        return {"type": type(self).__name__, "message": str(self), "exit_code": int(self.exit_code)}


class UsageError(SteelyardError):
    """A wrong argument or path on the command line or in a call."""

    exit_code = ExitCode.USAGE


class RecipeError(UsageError):
    """The recipe cannot be used. ``file``, ``line`` and ``column`` (1-based) say where, when known."""

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None, column: int | None = None):
        self.message, self.file, self.line, self.column = message, file, line, column
        place = "" if file is None else file if line is None else f"{file}:{line}"
        super().__init__(f"{place}: {message}" if place else message)


class RunLockedError(UsageError):
    """Another process holds the run folder."""


class PluginError(SteelyardError):
    """A plugin is missing, broken, in conflict, or needs another Steelyard."""

    exit_code = ExitCode.PLUGIN


class DataError(SteelyardError):
    """Data that cannot be used as asked."""

    exit_code = ExitCode.DATA


class ArtifactError(DataError):
    """An artifact on disk differs from its manifest."""


class ModelError(SteelyardError):
    """A model that cannot be loaded, or must not be."""

    exit_code = ExitCode.DATA


class EngineError(SteelyardError):
    """An engine died, or cannot do what was asked."""

    exit_code = ExitCode.DATA


class VerifierError(SteelyardError):
    """Verifier failures above their limit, or a verifier that cannot run here."""

    exit_code = ExitCode.DATA


class TrainingError(SteelyardError):
    """Training cannot go on: non-finite numbers, nothing to train on, no memory."""

    exit_code = ExitCode.DATA


class GateRefusal(SteelyardError):
    """The gate cannot weigh what it was given. ``reasons`` holds every reason, each saying what to do."""

    exit_code = ExitCode.DATA

    def __init__(self, reasons: Iterable[str]):
        self.reasons = tuple(reasons)
        super().__init__("; ".join(self.reasons))


class StepFailedError(SteelyardError):
    """A step failed; what was committed before it is kept."""

    def __init__(self, step: str, message: str, *, exit_code: ExitCode = ExitCode.DATA):
        self.step = step
        self.exit_code = exit_code
        super().__init__(f"step {step!r} failed: {message}")


class StorageError(SteelyardError):
    """The disk is full or cannot be written."""

    exit_code = ExitCode.DATA


class Interrupted(SteelyardError):
    """The run was asked to stop and did so at a safe point."""

    exit_code = ExitCode.INTERRUPTED


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest of ``known``, or the whole list when none is near; to be put behind an error."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" (did you mean {close[0]!r}?)"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f" (known: {shown})"
