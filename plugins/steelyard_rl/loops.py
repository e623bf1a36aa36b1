"""Answers that go round in circles: where they were caught."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from steelyard.errors import EngineError
from steelyard_rl.rollout_options import RepetitionOptions

__all__ = ["loop_end", "periodic_end", "run_end"]


def loop_end(options: RepetitionOptions, token_ids: Sequence[int], logprobs: Sequence[float] | None) -> int | None:
    """The number of tokens after which an answer is known to be a loop, or None where it is none.

    Raises:
        EngineError: probabilities are asked about, and the engine gives none.
    """
    ends = []
    if options.loop_tokens is not None:
        ends.append(periodic_end(token_ids, run=options.loop_tokens, max_period=options.max_period))
    if options.confident_tokens is not None:
        if logprobs is None:
            raise EngineError("repetition.confident_tokens needs log-probabilities, and the engine gives none; leave it out")
        sure = np.asarray(logprobs, dtype=np.float64) > math.log(options.confidence)
        ends.append(run_end(sure, options.confident_tokens))
    return min((end for end in ends if end is not None), default=None)


def periodic_end(token_ids: Sequence[int], *, run: int, max_period: int) -> int | None:
    """Where ``run`` tokens in a row are each the one that stands p places before, for one p of at most ``max_period``; the least such
    number of tokens. It takes len(token_ids) · max_period comparisons."""
    ids = np.asarray(token_ids)
    found = None
    for period in range(1, min(max_period, len(ids) - run) + 1):
        # What lies behind an earlier catch cannot be an earlier one.
        part = ids if found is None else ids[: found - 1]
        end = run_end(part[period:] == part[:-period], run)
        if end is not None:
            found = end + period
    return found


def run_end(flags: npt.NDArray[np.bool_], length: int) -> int | None:
    """The place behind the first ``length`` true flags in a row (M1, arXiv 2506.13585, section 4: 3,000 tokens of probability above
    0.99), or None."""
    if length > len(flags):
        return None
    breaks = np.flatnonzero(~flags)
    starts = np.concatenate([[0], breaks + 1])
    ends = np.concatenate([breaks, [len(flags)]])
    long = np.flatnonzero(ends - starts >= length)
    return int(starts[long[0]]) + length if len(long) else None
