"""No process outlives the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from steelyard.errors import ExitCode

__all__ = ["die_with_parent"]

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent dies; ends it at once when ``parent`` is not its parent any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have died before the kernel was asked.
    if os.getppid() != parent:
        os._exit(int(ExitCode.INTERRUPTED))
