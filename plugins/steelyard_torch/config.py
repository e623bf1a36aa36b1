"""The dials that every training stage has."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["TrainingOptions"]


class TrainingOptions(BaseModel):
    """Optimiser, schedule, batches, precision and checkpoints."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    lr: float = Field(gt=0)
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after warm-up: linearly or as a cosine to `lr_floor`, or not at all."""
    lr_floor: float = Field(default=0.0, ge=0, le=1)
    """The end of the schedule, as a share of `lr`."""
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    """Warm-up as a share of all optimiser steps."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Warm-up in optimiser steps; give this or `warmup_ratio`."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay, on matrices but not on biases, norms and embeddings."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the moments."""
    adam_eps: float = Field(default=1e-8, gt=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm; null measures without clipping."""
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Padded tokens that go through the model at once; lower it when memory runs out. The result does not depend on it."""
    max_length: int = Field(default=4096, ge=2)
    """Tokens of an example, prompt and answer together."""
    on_too_long: Literal["truncate", "drop", "refuse"] = "truncate"
    """What becomes of longer examples; whatever it is, they are counted."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: the forward pass in bfloat16 over float32 weights and optimiser state."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for about a third more work."""
    deterministic: bool = True
    """Refuse operations without a deterministic implementation where the device has a choice."""
    checkpoint_every_s: float = Field(default=60.0, gt=0)
    """Seconds between checkpoints."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Optimiser steps between checkpoints, beside the seconds."""
    max_non_finite: int = Field(default=3, ge=1)
    """Optimiser steps in a row that may be skipped for non-finite loss or gradients before the stage stops."""
    peak_flops: float | None = Field(default=None, gt=0)
    """Peak FLOP/s of the device at this precision; with it `perf/mfu` is reported."""

    @model_validator(mode="after")
    def _one_warmup(self) -> TrainingOptions:
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("give warmup_ratio or warmup_steps, not both")
        return self
