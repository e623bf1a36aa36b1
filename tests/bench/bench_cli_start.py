"""How long commands take that train nothing: ``python tests/bench/bench_cli_start.py``."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = (["--help"], ["recipes", "list"], ["recipes", "schema"], ["doctor", "--no-torch"])
TIMES = 10


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "steelyard", *arguments], capture_output=True, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    for arguments in COMMANDS:
        seconds(arguments)
        taken = [seconds(arguments) for _ in range(TIMES)]
        print(f"steelyard {' '.join(arguments):20} median {statistics.median(taken):.3f} s, worst {max(taken):.3f} s of {TIMES}")
