"""Where and how a process computes: device, precision, threads, determinism, gradient checkpointing."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from steelyard.errors import ModelError, UsageError

__all__ = ["Precision", "Runtime", "compile_layers", "keep_freed_memory", "seed_everything", "set_gradient_checkpointing", "setup_runtime"]

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """The device and precision of this process.

    ``bf16`` means autocast over float32 master weights: AdamW's small updates would be lost in bfloat16 weights (8 bits of mantissa).
    """

    device: torch.device
    precision: Precision = "fp32"

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """The context for forward passes; does nothing in fp32."""
        if self.precision == "fp32":
            yield
            return
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            yield


def setup_runtime(
    *, device: str = "auto", precision: Precision = "fp32", threads: int | None = None, deterministic: bool | None = None
) -> Runtime:
    """Configure torch for this process and say where to compute.

    Args:
        device: ``auto`` (the first CUDA device if there is one, else the CPU) or a torch device string.
        precision: ``fp32`` or ``bf16``, see :class:`Runtime`.
        threads: CPU threads; ``None`` leaves torch's own choice. Say a number where other processes are busy: two threads on one free
            core were measured many times slower than one.
        deterministic: whether torch, from now on and in the whole process, takes deterministic kernels and refuses operations that have
            none; ``None`` leaves it as it is. On one device and with the same number of threads equal runs are then equal bit for bit.
            torch's milder form, which only warns, keeps the backward pass of attention nondeterministic on CUDA.

    Raises:
        UsageError: the device does not exist here, or cannot do bfloat16.
    """
    chosen = torch.device(device) if device != "auto" else torch.device("cpu")
    if device == "auto" and torch.cuda.is_available():
        # Of several processes each has chosen its own by now.
        chosen = torch.device("cuda", torch.cuda.current_device())
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but torch sees no CUDA device; use device 'cpu' or 'auto'")
    if precision == "bf16" and chosen.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError(f"device {str(chosen)!r} has no bfloat16; use precision 'fp32'")
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads!r}")
        torch.set_num_threads(threads)
    if deterministic is not None:
        if deterministic:
            # cuBLAS reads this when its first handle is made; without it deterministic matmuls raise.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic)
        # Every new tensor would be filled with NaN first, to find operations that read what nobody wrote: dear, and none here does.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return Runtime(device=chosen, precision=precision)


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of mapping each anew: a training step frees and takes gigabytes, and the kernel clears every
    page that it hands out (a tenth of a step's time, more on a busy machine). It holds until the process ends. Elsewhere this does
    nothing."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 64 << 20)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_gradient_checkpointing(model: PreTrainedModel, enabled: bool) -> None:
    """Recompute activations in the backward pass (less memory, about a third more compute), or stop doing so.

    Raises:
        ModelError: the architecture has no support for it.
    """
    if not enabled:
        if model.is_gradient_checkpointing:
            model.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]
        return
    if not model.supports_gradient_checkpointing:
        raise ModelError(f"{type(model).__name__} does not support gradient checkpointing; turn it off in the recipe")
    # The re-entrant form ignores the RNG of autocast regions and needs inputs that require gradients.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[no-untyped-call]


def compile_layers(model: PreTrainedModel) -> None:
    """Let torch.compile fuse what stands between the layers' matrix products, for lines of any length; attention stays as it is.

    Raises:
        ModelError: the model's layers cannot be found, or there is no compiler for its device.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(f"the layers of {type(model).__name__} cannot be told apart to be compiled; turn `compile` off in the recipe")
    if model.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise ModelError("`compile` needs a C++ compiler, and there is neither g++ nor clang++; install one, or turn it off in the recipe")
    for layer in layers:
        layer.compile(dynamic=True)
