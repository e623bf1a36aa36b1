"""Configuration of the stage `merge`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["MergeConfig"]


class MergeConfig(BaseModel):
    """How much of each model."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    weight: float = Field(default=0.5, ge=0, le=1)
    """The reference model's share; the initial model has the rest."""
