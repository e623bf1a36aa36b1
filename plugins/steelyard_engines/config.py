"""Configuration of the engines."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["TransformersEngineConfig"]


class TransformersEngineConfig(BaseModel):
    """Keys of ``engine: {kind: transformers, …}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    device: str = "auto"
    """Where the model runs: `auto` (an accelerator if there is one), `cpu`, `cuda`, `cuda:1` …; a shared model stays where it is."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Type of the weights; `auto` is bfloat16 on an accelerator and float32 on a CPU. Same answers in every batch need float32."""
    attention: str | None = None
    """Attention implementation of transformers (`sdpa`, `eager`, `flash_attention_2` …); default: its own choice."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Longest prompt and completion together, in tokens; default: the model's own context."""
    max_batch_rows: int = Field(default=256, ge=1)
    """Most sequences in one batch."""
    max_batch_tokens: int = Field(default=65_536, ge=1)
    """Most tokens in one batch, padding and the room for new tokens included; one sequence may exceed it."""
    max_logits: int = Field(default=2**25, ge=1)
    """Most logits held at once when scoring (positions times vocabulary); 2^25 are 128 MiB in float32."""
