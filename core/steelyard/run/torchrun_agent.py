"""``python -m steelyard.run.torchrun_agent``: becomes torch's elastic agent, tied to the conductor.

The agent starts the ranks and knows nothing of the conductor. The kernel kills it when the conductor dies (the wish outlives ``exec``);
each rank has the kernel do the same when the agent dies.
"""

from __future__ import annotations

import os
import sys

from steelyard.run.launchers import CONDUCTOR
from steelyard.run.parents import die_with_parent

__all__ = ["main"]


def main() -> None:
    die_with_parent(int(os.environ[CONDUCTOR]))
    # What a rank must see its parent to be.
    os.environ[CONDUCTOR] = str(os.getpid())
    os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *sys.argv[1:]])


if __name__ == "__main__":
    main()
