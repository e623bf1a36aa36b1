"""A KV cache with room ahead: a new token is written into it, where the library's own would copy the whole cache for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

__all__ = ["RoomyLayer", "roomy_cache"]

_GROWTH = 1.5
_LEAST_ROOM = 64


class RoomyLayer(DynamicLayer):
    """Keys and values (rows, heads, length, head size) as views of buffers that are half as long again whenever they have to grow."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        length = self.get_seq_length()
        if length == 0 or self.keys is None or self.values is None:
            # The prompts: kept as they are, since their rows are about to be repeated for each sample.
            return super().update(key_states, value_states, *args, **kwargs)
        end = length + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < end or not _is_view(self.keys, self._buffers[0]):
            self._buffers = (_with_room(self.keys, end), _with_room(self.values, end))
        keys, values = self._buffers
        keys[..., length:end, :] = key_states
        values[..., length:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._buffers = None


def roomy_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache that the architecture needs, its plain layers with room ahead; sliding windows and others stay the library's own."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _is_view(states: Tensor, buffer: Tensor) -> bool:
    """Whether the states still lie in the buffer; the library's own ways to repeat, reorder or move them put others in their place."""
    return states.data_ptr() == buffer.data_ptr() and states.shape[0] == buffer.shape[0]


def _with_room(states: Tensor, end: int) -> Tensor:
    rows, heads, length, size = states.shape
    room = torch.empty(rows, heads, max(int(end * _GROWTH), end + _LEAST_ROOM), size, dtype=states.dtype, device=states.device)
    room[:, :, :length] = states
    return room
