"""What torch cannot do in a step for want of memory, told with the dials that would help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from steelyard.errors import TrainingError
from steelyard_torch.batching import MicroBatch
from steelyard_torch.config import OptimiserOptions
from steelyard_torch.freezing import trainable_facts

__all__ = ["is_out_of_memory", "memory_errors", "optimiser_memory_errors"]

# The CPU's allocator has no exception of its own.
_WORDS = ("not enough memory", "can't allocate memory", "bad_alloc")
_LENGTHS = ("max_length", "max_prompt_length", "max_new_tokens")


@contextmanager
def memory_errors(batch: MicroBatch, options: OptimiserOptions) -> Iterator[None]:
    """Around the forward and the backward pass of a micro-batch: what torch raises when it does not fit in memory, or when an operation has
    no deterministic form, becomes a TrainingError that names the dials; all else passes."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise TrainingError(_too_large(batch, options)) from error
        if "does not have a deterministic implementation" in str(error):
            raise TrainingError(f"{str(error).partition(',')[0]}; set `deterministic: false`, or compute on the CPU") from error
        raise


@contextmanager
def optimiser_memory_errors(model: PreTrainedModel) -> Iterator[None]:
    """The same around an optimiser step, whose memory no batch size changes."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        trained = trainable_facts(model)["trained_parameters"]
        raise TrainingError(
            f"out of memory in the optimiser's step: AdamW keeps two numbers beside each of {trained:,} trained weights, "
            f"{8 * trained / 2**30:.1f} GiB; train fewer (`adapter`, `freeze`), spread them (`sharding`), or take a smaller model"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an exception of torch means."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in _WORDS)


def _too_large(batch: MicroBatch, options: OptimiserOptions) -> str:
    longest = max((len(row) for row in batch.rows), default=max(batch.lengths, default=0))
    lengths = [f"`{name}` (now {getattr(options, name):,})" for name in _LENGTHS if hasattr(options, name)]
    budget = f"`micro_batch_tokens` (now {options.micro_batch_tokens:,})"
    # A row, or a pair, is never cut: with one alone the budget has nothing left to take away.
    dials = lengths if len(batch) == 1 and lengths else [budget, *lengths]
    more = "" if options.gradient_checkpointing else ", or set `gradient_checkpointing: true`"
    return (
        f"out of memory with {batch.padded_tokens:,} tokens in a micro-batch of {len(batch)} rows, the longest of {longest:,}; "
        f"lower {' or '.join(dials)}{more}"
    )
