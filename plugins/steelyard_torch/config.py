"""The dials that every training stage has, and the base model's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ImportConfig", "NewModel", "NewTokenizer", "OptimiserOptions", "TrainingOptions"]

_READ_WHOLE = 1 << 26


class OptimiserOptions(BaseModel):
    """Optimiser, schedule, micro-batches, precision and checkpoints."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    lr: float = Field(gt=0)
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after warm-up: linearly or as a cosine towards 0, or not at all."""
    lr_floor: float = Field(default=0.0, ge=0, le=1)
    """The share of `lr` below which the schedule does not fall."""
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    """Warm-up as a share of all optimiser steps."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Warm-up in optimiser steps; give this or `warmup_ratio`."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay, on matrices but not on biases, norms and embeddings."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the moments."""
    adam_eps: float = Field(default=1e-8, gt=0)
    """Added to the root of AdamW's second moment."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm; null measures without clipping."""
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Padded tokens that go through the model at once; lower it when memory runs out. The result does not depend on it."""
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
    def _one_warmup(self) -> OptimiserOptions:
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("give warmup_ratio or warmup_steps, not both")
        return self


class TrainingOptions(OptimiserOptions):
    """The dials of a stage that trains on given examples: the optimiser's, and how long an example may be."""

    max_length: int = Field(default=4096, ge=2)
    """Tokens of an example, prompt and answer together."""
    on_too_long: Literal["truncate", "drop", "refuse"] = "truncate"
    """What becomes of longer examples; whatever it is, they are counted."""


class NewTokenizer(BaseModel):
    """A tokenizer with one token a character."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    characters: str = Field(min_length=1)
    """The alphabet, in the order of the token ids; whatever is not in it becomes `<unk>`."""
    extra_tokens: list[str] = []
    """Texts that are one token, such as the role markers of the chat template."""


class NewModel(BaseModel):
    """A model with random weights, to be trained from nothing."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    architecture: dict[str, Any]
    """`model_type` and the fields of that transformers configuration; the vocabulary size and the special tokens' ids are filled in."""
    tokenizer: NewTokenizer


class ImportConfig(BaseModel):
    """The base model: one that exists (`model`), or one with random weights (`new`)."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str | None = None
    """A hub id, a local folder or a `.gguf` file; relative paths start at the recipe's folder."""
    new: NewModel | None = None
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    chat_template: str | None = None
    """A built-in template's name, the path of a `.jinja` file, or Jinja source; null keeps the model's own."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights on disk; `auto` keeps the source's, and makes float32 of a GGUF file."""
    trust_remote_code: str | None = None
    """The value of `model`, if that model may run Python code of its own; anything else leaves that off."""

    @model_validator(mode="after")
    def _one_source(self) -> ImportConfig:
        if (self.model is None) == (self.new is None):
            raise ValueError("give model or new, and not both")
        return self

    def fingerprint(self, base: Path) -> str:
        """Names, sizes and contents of a local model's files, so that a changed model is imported again; empty for a hub model.

        Of a file above 64 MiB the time of its last change stands for the content: planning should not read gigabytes.
        """
        local = base / Path(self.model).expanduser() if self.model is not None else None
        if local is None or not local.exists():
            return ""
        digest = hashlib.sha256()
        for file in sorted(local.iterdir()) if local.is_dir() else [local]:
            if file.is_file():
                facts = file.stat()
                small = facts.st_size <= _READ_WHOLE
                content = hashlib.sha256(file.read_bytes()).hexdigest() if small else str(facts.st_mtime_ns)
                digest.update(f"{file.name} {facts.st_size} {content}\n".encode())
        return digest.hexdigest()
