"""Imports lm-eval late, and keeps what it and its libraries print off stdout, which belongs to data."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

__all__ = ["quiet"]

_TALKATIVE = ("lm_eval", "datasets", "lm-eval", "httpx", "filelock")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, text for stdout goes to stderr, lm-eval's log shows errors only, and datasets draws no progress bars."""
    import datasets

    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
