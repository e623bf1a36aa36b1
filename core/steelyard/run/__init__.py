"""Runs: the plan, the conductor, the ledger, artifacts, lineage, locks, launchers. README.md is the manual.

``import steelyard.run`` loads nothing heavy: each public name is imported from its file when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steelyard.run.conductor import Conductor, RunOutcome, conduct
    from steelyard.run.folder import RunFolder, choose_folder
    from steelyard.run.lineage import branches, find_lineage, read_lineage
    from steelyard.run.outlook import Outlook, look_ahead
    from steelyard.run.plan import Plan, Step, make_plan
    from steelyard.run.view import RunView, open_run
    from steelyard.run.weights import WeightsFacts, inspect_weights

__all__ = [
    "Conductor",
    "Outlook",
    "Plan",
    "RunFolder",
    "RunOutcome",
    "RunView",
    "Step",
    "WeightsFacts",
    "branches",
    "choose_folder",
    "conduct",
    "find_lineage",
    "inspect_weights",
    "look_ahead",
    "make_plan",
    "open_run",
    "read_lineage",
]

_FILES = {
    "conductor": ("Conductor", "RunOutcome", "conduct"),
    "folder": ("RunFolder", "choose_folder"),
    "lineage": ("branches", "find_lineage", "read_lineage"),
    "outlook": ("Outlook", "look_ahead"),
    "plan": ("Plan", "Step", "make_plan"),
    "view": ("RunView", "open_run"),
    "weights": ("WeightsFacts", "inspect_weights"),
}
_HOME = {name: file for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
