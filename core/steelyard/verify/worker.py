"""``python -m steelyard.verify.worker``: holds one verifier and answers checks, one JSON object a line.

First line in: ``{"impl", "config", "options", "path", "memory_bytes", "timeout_s"}``; first line out ``{"ready": true}`` or
``{"failed": why}``. Then for each ``{"id", "completion", "reference"}`` one ``{"id", "outcome", "score", "detail", "leaving"}``.
``leaving`` says that the process ends itself after it. The id cannot be guessed, so that a stray line in the channel is not taken for
an answer. It ends at the end of its input.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import sys
from collections.abc import Mapping
from typing import Any

from steelyard.protocols import Verifier
from steelyard.records import Verdict
from steelyard.verify.checking import completion_from_json, judge, verdict_to_json

_GRACE_S = 5.0


def main() -> int:
    """Serves until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = _take_channels()
    setup = json.loads(requests.readline() or "{}")
    if not setup:
        return 0
    try:
        verifier = _load(setup)
    except BaseException as error:
        _send(answers, {"failed": f"{type(error).__name__}: {error}"})
        return 1
    _limit_memory(setup["memory_bytes"])
    _send(answers, {"ready": True})
    for line in requests:
        _arm(setup["timeout_s"] + _GRACE_S)
        number, verdict, leaving = _answer(verifier, line, setup["memory_bytes"])
        _arm(0)
        _send(answers, {"id": number, **verdict_to_json(verdict), "leaving": leaving})
        if leaving:
            return 1
    return 0


def _take_channels() -> tuple[Any, Any]:
    """Keeps stdin and stdout for the protocol; what the verifier reads is empty, what it prints goes to stderr."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8", newline="\n")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return requests, answers


def _send(answers: Any, message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _load(setup: Mapping[str, Any]) -> Verifier:
    sys.path[:] = setup["path"]
    implementation = _attribute(setup["impl"])
    config = None if setup["config"] is None else _attribute(setup["config"]).model_validate(setup["options"])
    verifier = implementation(config)
    if not isinstance(verifier, Verifier):
        raise TypeError(f"{setup['impl']!r} gave {type(verifier).__name__}, which has no verify(completion, reference)")
    return verifier


def _attribute(path: str) -> Any:
    module, _, attribute = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def _limit_memory(memory_bytes: int) -> None:
    """On top of what importing the verifier took; a system that cannot limit address space (macOS) leaves it unlimited."""
    import resource

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):
        used = 0
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, used + memory_bytes))


def _arm(seconds: float) -> None:
    """A last line of defence for when nobody is left to kill this process: the default action of SIGALRM needs no interpreter."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, 1e8))


def _answer(verifier: Verifier, line: str, memory_bytes: int) -> tuple[str | None, Verdict, bool]:
    number = None
    try:
        row = json.loads(line)
        number = row["id"]
        # The same check gives the same answer whichever worker it reaches, and however many checks came before it.
        random.seed(0)
        return number, judge(verifier, completion_from_json(row["completion"]), row["reference"]), False
    except MemoryError:
        return number, Verdict.error(f"out of memory: the limit is {memory_bytes / 2**20:.0f} MiB"), True
    except BaseException as error:
        return number, Verdict.error(f"{type(error).__name__}: {error}"), False


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Past interpreter shutdown: a verifier's leftover threads must not keep the process.
    os._exit(status)
