"""Configuration of the shapers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["SoftOverlongConfig"]


class SoftOverlongConfig(BaseModel):
    """Where the penalty begins, where it is whole, and how large it then is."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    max_len: int = Field(gt=0)
    """Tokens at which the penalty is whole; usually the stage's limit on new tokens."""
    cache: int = Field(gt=0)
    """Tokens over which it grows: completions of up to `max_len - cache` tokens are not penalised."""
    scale: float = Field(default=1.0, ge=0)
    """The whole penalty. DAPO's is 1, beside rewards of -1 and 1."""

    @model_validator(mode="after")
    def _cache_fits(self) -> SoftOverlongConfig:
        if self.cache > self.max_len:
            raise ValueError(f"cache must be at most max_len, got cache {self.cache!r} and max_len {self.max_len!r}")
        return self
