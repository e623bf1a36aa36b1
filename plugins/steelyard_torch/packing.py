"""Attention over packed rows: a micro-batch is one line of real tokens, without padding, and a prefix that rows share stands there once.

The line is cut into segments. A segment attends to its prefix, if it has one, and causally to itself, and to nothing else; positions go
on behind the prefix. So a row's hidden states are those that it would have alone. On a GPU in half precision this is one call of
FlashAttention's variable-length kernel through torch, elsewhere one call for neighbouring segments of one length;
nothing is padded in either.

transformers looks its attention functions up by name. Ours do what the model's own did before whenever they are not given a layout, so a
model that is switched to them generates, and scores padded batches, as ever.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["Layout", "Segment", "adopt_packable", "is_packable", "layout_inputs", "packed_attention"]

_SWITCHED = {"sdpa": "steelyard_packed", "eager": "steelyard_packed_eager"}
_SHORT = 256
"""Up to so many tokens the CPU's fused backward pass takes longer in bfloat16 than in float32, by more than its forward pass gains."""
_PACKABLE: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


class Segment(NamedTuple):
    """Tokens that attend to a prefix and causally to themselves; all in places of the line."""

    start: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0


@dataclass(eq=False)
class Layout:
    """How a packed line is cut. Segments follow each other without a gap; a prefix is itself a segment, and stands before its users."""

    segments: tuple[Segment, ...]
    windows: list[int | None] | None = None
    """Where given, each attention layer notes its sliding window here."""
    _kernel_inputs: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, int, int]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(segment.length for segment in self.segments)

    @functools.cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Neighbouring segments of one length behind one prefix, as (first, how many): attention takes them in one call."""
        alike = [list(run) for _, run in itertools.groupby(range(len(self.segments)), key=lambda i: self.segments[i][1:])]
        return tuple((run[0], len(run)) for run in alike)

    def place_of_prefix(self, segment: Segment) -> tuple[int, int]:
        """The run in which a segment's prefix stands, and where in it, in tokens."""
        starts = [self.segments[first].start for first, _ in self.runs]
        run = bisect.bisect_right(starts, segment.prefix_start) - 1
        return run, segment.prefix_start - starts[run]

    def kernel_inputs(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, int, int]:
        """For the variable-length kernel: starts of the segments' queries and of their keys (S + 1, int32), the places of all keys (None
        where they are the queries'), and the longest of each."""
        if device not in self._kernel_inputs:
            lengths = torch.tensor([segment.length for segment in self.segments])
            spans = torch.tensor([segment.prefix_length + segment.length for segment in self.segments])
            places = None
            if any(segment.prefix_length for segment in self.segments):
                places = torch.cat([part for segment in self.segments for part in _key_places(segment)]).to(device)
            starts = [F.pad(counts.cumsum(0), (1, 0)).to(device, torch.int32) for counts in (lengths, spans)]
            self._kernel_inputs[device] = (starts[0], starts[1], places, int(lengths.max()), int(spans.max()))
        return self._kernel_inputs[device]


def layout_inputs(layout: Layout, device: torch.device) -> dict[str, Any]:
    """What a model's forward pass is given beside token and position ids."""
    # transformers hands a mask of four dimensions on as it is, and so builds none of T × T.
    return {"packed_layout": layout, "attention_mask": torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=device)}


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention of a packed line.

    Args:
        query: (1, H, T, D); ``key`` and ``value`` (1, G, T, D), G a divisor of H.
        scale: of the products; 1/√D unless given.
        window: a token sees itself and the ``window`` - 1 before it.
        softcap: products x become softcap · tanh(x / softcap) before the softmax (Gemma 2).
        dropout: of the attention's weights.

    Returns:
        (1, T, H, D).
    """
    if softcap is None and not dropout and _kernel_fits(query):
        return _by_kernel(query, key, value, layout, scale, window)
    given = query.dtype
    if query.device.type == "cpu" and given == torch.bfloat16 and max(segment.length for segment in layout.segments) <= _SHORT:
        query, key, value = query.float(), key.float(), value.float()
    # Split once: each slice of its own would make the backward pass add up tensors as long as the whole line.
    sizes = [count * layout.segments[first].length for first, count in layout.runs]
    parts = [torch.split(states, sizes, dim=2) for states in (query, key, value)]
    out = []
    for run, (first, count) in enumerate(layout.runs):
        segment = layout.segments[first]
        q, k, v = (_stacked(states[run], count) for states in parts)
        if segment.prefix_length:
            before, offset = layout.place_of_prefix(segment)
            k, v = (_with_prefix(own, states[before], offset, segment) for own, states in zip((k, v), parts[1:], strict=True))
        found = _attend(q, k, v, scale, window, softcap, dropout)
        out.append(found.transpose(1, 2).reshape(1, sizes[run], *found.shape[1::2]))
    return torch.cat(out, dim=1).to(given)


def is_packable(model: PreTrainedModel) -> bool:
    """Whether the model computes packed rows as it computes each alone. Tried once for each model, on three short rows of which two
    share a prefix; a model that does is switched to this module's attention function for good, any other is left as it is.

    A model that shards its weights has to be asked before it does.
    """
    if model not in _PACKABLE:
        _PACKABLE[model] = _try(model)
    return _PACKABLE[model]


def adopt_packable(model: PreTrainedModel, packable: bool) -> None:
    """Take another rank's word for :func:`is_packable`; the attention function is set by then."""
    _PACKABLE[model] = packable


def _key_places(segment: Segment) -> list[torch.Tensor]:
    return [
        torch.arange(segment.prefix_start, segment.prefix_start + segment.prefix_length),
        torch.arange(segment.start, segment.start + segment.length),
    ]


def _stacked(states: torch.Tensor, count: int) -> torch.Tensor:
    """(count, H, L, D): the states of ``count`` segments of one length that follow each other, of (1, H, count · L, D)."""
    if count == 1:
        return states
    heads, size = states.shape[1], states.shape[3]
    return states[0].reshape(heads, count, -1, size).transpose(0, 1)


def _with_prefix(own: torch.Tensor, states: torch.Tensor, offset: int, segment: Segment) -> torch.Tensor:
    """(count, G, P + L, D): the prefix's states in front of each segment's own; ``states`` are of the run it stands in."""
    prefix = states if states.shape[2] == segment.prefix_length else states.narrow(2, offset, segment.prefix_length)
    return torch.cat([prefix.expand(len(own), -1, -1, -1), own], dim=2)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> torch.Tensor:
    """Causal attention of the last of the keys' tokens: (n, H, L, D) over (n, G, P + L, D), n segments at once."""
    length, span = query.shape[2], key.shape[2]
    mask = None
    if length != span or (window is not None and window < span) or softcap is not None:
        mask = _causal_mask(length, span, window, query.device)
    if softcap is not None:
        return _attend_capped(query, key, value, mask, scale, softcap, dropout)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _causal_mask(length: int, span: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(L, P + L) bool, True where a query may look."""
    mask = torch.ones((length, span), dtype=torch.bool, device=device).tril(span - length)
    return mask if window is None else mask.triu(span - length - window + 1)


def _attend_capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    softcap: float,
    dropout: float,
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    products = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    products = torch.tanh(products / softcap) * softcap
    if mask is not None:
        products = products.masked_fill(~mask, -torch.inf)
    exact = torch.promote_types(query.dtype, torch.float32)
    weights = F.dropout(torch.softmax(products, dim=-1, dtype=exact).to(query.dtype), dropout)
    return weights @ value


def _by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float | None, window: int | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    starts, key_starts, places, longest, longest_span = layout.kernel_inputs(query.device)
    flat_query, flat_key, flat_value = (states[0].transpose(0, 1) for states in (query, key, value))
    if places is not None:
        flat_key, flat_value = flat_key.index_select(0, places), flat_value.index_select(0, places)
    # A segment's queries are its last tokens; the kernel aligns them with the last of its keys.
    out = varlen_attn(
        flat_query.contiguous(),
        flat_key.contiguous(),
        flat_value.contiguous(),
        starts,
        key_starts,
        longest,
        longest_span,
        scale=scale,
        window_size=(-1 if window is None or window >= longest_span else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast("torch.Tensor", out)[None]


def _kernel_fits(query: torch.Tensor) -> bool:
    return query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and _kernel_works(query.device, query.dtype, query.shape[-1])


@functools.cache
def _kernel_works(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the variable-length kernel is there for this device and means by causal what is meant here; tried on random numbers."""
    layout = Layout((Segment(0, 5), Segment(5, 3, 0, 5), Segment(8, 4, 0, 5), Segment(12, 9)))
    generator = torch.Generator(device=device).manual_seed(0)
    query, key, value = (torch.randn((1, n, 21, head_dim), generator=generator, device=device, dtype=dtype) for n in (4, 2, 2))
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for window in (None, 4):
                mine = _by_kernel(query, key, value, layout, None, window).float()
                parts = []
                for segment in layout.segments:
                    places = torch.cat(_key_places(segment)).to(device)
                    k, v = key.float().index_select(2, places), value.float().index_select(2, places)
                    own = query.float()[:, :, segment.start : segment.start + segment.length]
                    parts.append(_attend(own, k, v, None, window, None, 0.0))
                if not torch.allclose(mine, torch.cat(parts, dim=2).transpose(1, 2), atol=3e-2, rtol=3e-2):
                    return False
    except (ImportError, AttributeError, RuntimeError, ValueError, TypeError):
        return False
    return True


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _forward_packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    unknown = [name for name in ("position_bias", "s_aux", "cache") if kwargs.get(name) is not None]
    if unknown:
        raise NotImplementedError(f"attention over packed rows knows no {', '.join(unknown)}")
    if layout.windows is not None:
        layout.windows.append(sliding_window)
    out = packed_attention(query, key, value, layout, scale=scaling, window=sliding_window, softcap=softcap, dropout=dropout)
    return out.contiguous(), None


def _packed_or_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if packed_layout is not None:
        return _forward_packed(query, key, value, packed_layout, **kwargs)  # type: ignore[no-any-return]
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _packed_or_eager(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if packed_layout is not None:
        return _forward_packed(query, key, value, packed_layout, **kwargs)  # type: ignore[no-any-return]
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return eager(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]


ALL_ATTENTION_FUNCTIONS.register(_SWITCHED["sdpa"], _packed_or_sdpa)
ALL_ATTENTION_FUNCTIONS.register(_SWITCHED["eager"], _packed_or_eager)
for _known, _ours in _SWITCHED.items():
    ALL_MASK_ATTENTION_FUNCTIONS.register(_ours, ALL_MASK_ATTENTION_FUNCTIONS[_known])

_TRIED_ROWS = ((0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 7, 8), (9, 3, 10, 11))
_TRIED_LAYOUT = (Segment(0, 3), Segment(3, 4, 0, 3), Segment(7, 2, 0, 3), Segment(9, 4))
_TRIED_POSITIONS = (0, 1, 2, 3, 4, 5, 6, 3, 4, 0, 1, 2, 3)


@torch.no_grad()
def _try(model: PreTrainedModel) -> bool:
    own = model.config._attn_implementation
    body = model.base_model
    if own not in _SWITCHED or not model._can_set_attn_implementation():
        return False
    was_training, equal = model.training, False
    model.train(False)
    try:
        model.set_attn_implementation(_SWITCHED[own])
        equal = _rows_are_equal(model, body)
    except (AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError, KeyError, IndexError):
        equal = False
    finally:
        if not equal:
            model.set_attn_implementation(own)
        model.train(was_training)
    return equal


def _rows_are_equal(model: PreTrainedModel, body: torch.nn.Module) -> bool:
    embeddings = cast("torch.nn.Embedding", model.get_input_embeddings()).weight
    device, vocabulary = embeddings.device, embeddings.shape[0]
    line = [token for row, start in zip(_TRIED_ROWS, (0, 3, 0), strict=True) for token in row[start:]]

    def run(ids: Sequence[int], **kwargs: Any) -> torch.Tensor:
        tokens = torch.tensor([ids], device=device) % vocabulary
        return cast("torch.Tensor", body(input_ids=tokens, use_cache=False, **kwargs)[0])[0].float()

    layout = Layout(_TRIED_LAYOUT, windows=[])
    with torch.autocast(device.type, enabled=False):
        packed = run(line, position_ids=torch.tensor([_TRIED_POSITIONS], device=device), **layout_inputs(layout, device))
        alone = [run(row) for row in _TRIED_ROWS]
    expected = torch.cat([alone[0], alone[1][3:], alone[2]])
    if packed.shape != expected.shape or layout.windows != _windows(model, len(layout.windows or [])):
        return False
    exact = embeddings.dtype == torch.float32
    return torch.allclose(packed, expected, rtol=0, atol=(1e-4 if exact else 5e-2) * float(expected.abs().max()))


def _windows(model: PreTrainedModel, layers: int) -> list[int | None] | None:
    """Each layer's sliding window by the configuration; the rows of a trial are too short to show one that attention is not told of."""
    config = model.config.get_text_config()
    window: int | None = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * layers
    if any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        return None
    return [window if kind == "sliding_attention" else None for kind in kinds]
