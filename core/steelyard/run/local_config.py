"""What a recipe may say about the launcher ``local``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LocalConfig"]


class LocalConfig(BaseModel):
    """Keys of ``launcher: {kind: local}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a step; default: OMP_NUM_THREADS, else the physical cores. The environment's STEELYARD_THREADS goes before it.
    Small models are fastest on one, and sums come out the same to the last bit only on the same number."""
