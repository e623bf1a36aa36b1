"""The dials that every training stage has, and the base model's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["AdapterOptions", "ImportConfig", "NewModel", "NewTokenizer", "OptimiserOptions", "ShardingOptions", "TrainingOptions"]

_READ_WHOLE = 1 << 26


class AdapterOptions(BaseModel):
    """Low-rank adapters: the model's own weights stay as they are, and two small matrices are trained beside each layer that is named."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["lora"] = "lora"
    """`lora`: W + s·B·A, where A begins at random and B at 0."""
    rank: int = Field(default=16, ge=1)
    """Rows of A, columns of B."""
    alpha: int = Field(default=32, ge=1)
    """The scale s is `alpha / rank`."""
    use_rslora: bool = False
    """The scale s is `alpha / √rank` instead, so that higher ranks do not learn more slowly."""
    use_dora: bool = False
    """Train each row's length apart from its direction (DoRA); slower."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of a layer's inputs that its adapter does not see in training. Stages that compare log-probabilities refuse it."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the layers, `*` standing for anything; a name without its beginning (`q_proj`, `self_attn.*`) means every layer that ends
    so. `all-linear`: every linear layer but the output head."""
    exclude: list[str] = []
    """Names of layers that get none after all, given in the same way."""
    quantise: Literal["nf4"] | None = None
    """Keep the linear layers' own weights in 4 bits while training (QLoRA; needs the extra `qlora`). The model that comes out, and the
    reference of a stage that starts from its reference, have these weights as they are rounded by it."""
    base_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the model's own weights in memory and in the model that comes out. `auto`: bfloat16 where they are bfloat16 on disk and
    `precision` is `bf16`, else float32. The adapters are always trained in float32."""
    keep: Literal["merged", "both"] = "merged"
    """What the stage puts out: a plain model folder into which the adapters are merged; `both`: there, in `adapter/`, also the adapters
    themselves, for peft. The adapters alone would be no model that an evaluation or the next stage can load."""

    @field_validator("keep", mode="before")
    @classmethod
    def _a_whole_model(cls, keep: Any) -> Any:
        if keep == "adapter":
            raise ValueError("keep 'adapter' would put out no model that an evaluation or the next stage can load; say 'both'")
        return keep

    @field_validator("targets")
    @classmethod
    def _some_target(cls, targets: str | list[str]) -> str | list[str]:
        if not targets:
            raise ValueError("targets names no layer; say 'all-linear', or names")
        return targets


class ShardingOptions(BaseModel):
    """How a model is spread over the processes of a launcher that starts several (`torchrun`); with one process there is nothing to spread,
    and all but `cpu_offload` does nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    shard: bool = True
    """Each process keeps its part of weights, gradients and optimiser state, and layers are gathered as they are needed (FSDP2). `false`:
    each keeps all of it, and only gradients are exchanged; faster where the model is small."""
    cpu_offload: bool = False
    """Keep weights and optimiser state in the host's memory, where the optimiser step is then taken; for models that fit no other way."""
    reshard_after_forward: bool = True
    """Let go of a layer's gathered weights after the forward pass and gather them again for the backward: less memory, half as much traffic
    again."""
    context: int = Field(default=1, ge=1)
    """Processes that share one sequence."""

    @model_validator(mode="after")
    def _what_sharding_does(self) -> ShardingOptions:
        if not self.shard and self.cpu_offload:
            raise ValueError("cpu_offload belongs to shard: true")
        if not self.shard and not self.reshard_after_forward:
            raise ValueError("reshard_after_forward belongs to shard: true")
        if self.context > 1:
            raise ValueError(
                f"context {self.context} is not built: a sequence is computed by one process; for longer ones set gradient_checkpointing: "
                "true, take more processes (less memory for weights on each), or set sharding.cpu_offload: true"
            )
        return self


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
    """Tokens that go through the model at once; lower it when memory runs out. The result does not depend on it. Rows are packed without
    padding, and what the rows of a pair or a prompt begin with in common counts once; for a model that cannot be packed, padding counts."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: the forward pass in bfloat16 over float32 weights and optimiser state."""
    gradient_checkpointing: bool = False
    """Keep a layer's input only and recompute the rest in the backward pass: less memory for about a third more work."""
    compile: bool = False
    """Compile the layers with torch.compile: a minute or more before the first steps, then steps of 5–10 % less time on a CPU. The first
    steps are compiled anew where shapes differ. Needs a C++ compiler on a CPU."""
    deterministic: bool = True
    """Two runs with the same number of threads or on one GPU are equal bit for bit, and operations that cannot be are refused."""
    checkpoint_every_s: float = Field(default=60.0, gt=0)
    """Seconds between checkpoints."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Optimiser steps between checkpoints, beside the seconds."""
    max_non_finite: int = Field(default=3, ge=1)
    """Optimiser steps in a row that may be skipped for non-finite loss or gradients before the stage stops."""
    peak_flops: float | None = Field(default=None, gt=0)
    """Peak FLOP/s of the device at this precision; with it `perf/mfu` is reported."""
    sharding: ShardingOptions = ShardingOptions()
    """How the model is spread over several processes."""
    adapter: AdapterOptions | None = None
    """Train low-rank adapters in place of the model's own weights."""
    freeze: list[str] = []
    """Names of weights that are not trained, `*` standing for anything: `["model.embed_tokens.*", "model.layers.[0-3].*"]`. A weight that
    has two names (an output head tied to the embeddings) is frozen by either."""
    train_only: list[str] = []
    """Names of the only weights that are trained, in place of `freeze`."""

    @model_validator(mode="after")
    def _one_way_to_freeze(self) -> OptimiserOptions:
        if self.freeze and self.train_only:
            raise ValueError("give freeze or train_only, not both")
        if self.adapter is not None and (self.freeze or self.train_only):
            name = "freeze" if self.freeze else "train_only"
            raise ValueError(f"an adapter freezes the model's own weights, so {name} does nothing; use adapter.targets, adapter.exclude")
        return self

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
