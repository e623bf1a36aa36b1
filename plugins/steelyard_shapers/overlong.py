"""The shaper `soft_overlong`: a penalty that grows as a completion nears the length limit."""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.records import Rollout
from steelyard_shapers.config import SoftOverlongConfig

__all__ = ["SoftOverlong", "overlong_penalty"]


class SoftOverlong:
    """Adds :func:`overlong_penalty`, times ``scale``, to each reward. Right and wrong completions of one length lose the same."""

    def __init__(self, config: SoftOverlongConfig):
        self._config = config

    def shape(self, group: Sequence[Rollout], rewards: Sequence[float]) -> list[float]:
        """``rewards`` with the penalty of each completion's ``token_ids`` added, in order."""
        config = self._config
        return [
            reward + config.scale * overlong_penalty(len(rollout.completion.token_ids), max_len=config.max_len, cache=config.cache)
            for rollout, reward in zip(group, rewards, strict=True)
        ]


def overlong_penalty(length: int, *, max_len: int, cache: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), from 0 down to -1.

    0 up to ``max_len - cache`` tokens, then ``((max_len - cache) - length) / cache``, and -1 beyond ``max_len``.
    """
    begins = max_len - cache
    if length <= begins:
        return 0.0
    return max((begins - length) / cache, -1.0)
