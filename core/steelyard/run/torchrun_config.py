"""What a recipe may say about the launcher ``torchrun``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["TorchrunConfig"]


class TorchrunConfig(BaseModel):
    """Keys of ``launcher: {kind: torchrun}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    processes: int = Field(ge=1)
    """Processes on this machine that train together, as a rule one an accelerator. Stages that cannot be shared, and all other steps, run
    on the first of them while the others wait."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of each process; default: OMP_NUM_THREADS or the physical cores, divided by `processes`. The environment's
    STEELYARD_THREADS, also of each process, goes before it."""
