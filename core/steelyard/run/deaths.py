"""How the end of a worker process is told: what ended it, and what it said last."""

from __future__ import annotations

import os
import signal
from pathlib import Path

__all__ = ["cause_of_death", "log_tail"]

_TAIL_BYTES = 16384
_TAIL_LINES = 8


def cause_of_death(status: int | None, who: str = "its worker") -> str:
    """A sentence about a process that ended before its step was done; ``status`` is negative for a signal, None where nobody knows."""
    if status is None:
        return f"{who} closed the channel"
    if status >= 0:
        return f"{who} ended with exit code {status} before the step was done"
    name = signal.Signals(-status).name if -status in list(signal.Signals) else f"signal {-status}"
    hint = " (if nobody else did, the system's out-of-memory killer: use smaller batches or a smaller model)" if name == "SIGKILL" else ""
    return f"{who} was killed by {name}{hint}"


def log_tail(log: Path) -> str:
    """The last lines of a log, to be put behind an error."""
    try:
        with open(log, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return f"; it left no log at {log}"
    shown = [line for line in lines if line.strip()][-_TAIL_LINES:]
    return f"; the log {log} ends with:\n" + "\n".join(f"    {line[:300]}" for line in shown) if shown else f"; see {log}"
