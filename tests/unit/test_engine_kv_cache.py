"""The cache with room ahead: the same keys and values as the library's own, without a copy of all of them for every token."""

from __future__ import annotations

import torch
from transformers import DynamicCache, Gemma2Config, LlamaConfig
from transformers.cache_utils import DynamicLayer

from steelyard_engines.kv_cache import RoomyLayer, roomy_cache


def states(seed: int, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, length, 4, generator=random), torch.randn(rows, 2, length, 4, generator=random)


def test_it_holds_what_the_plain_layer_holds_through_growth_repeats_and_dropped_rows() -> None:
    roomy, plain = RoomyLayer(), DynamicLayer()
    for layer in (roomy, plain):
        layer.update(*states(0, 2, 7))
        layer.batch_select_indices(torch.tensor([0, 0, 1, 1]))
    for step in range(1, 200):
        rows = 4 if step <= 150 else 3
        if step == 151:
            roomy.batch_select_indices(torch.tensor([0, 2, 3]))
            plain.batch_select_indices(torch.tensor([0, 2, 3]))
        for mine, theirs in zip(roomy.update(*states(step, rows, 1)), plain.update(*states(step, rows, 1)), strict=True):
            assert torch.equal(mine, theirs)
        assert roomy.get_seq_length() == plain.get_seq_length() == 7 + step


def test_rows_that_the_library_repeats_or_reorders_later_are_what_it_goes_on_from() -> None:
    changes = (
        lambda layer: layer.batch_repeat_interleave(2),
        lambda layer: layer.reorder_cache(torch.tensor([3, 2, 1, 0])),
        lambda layer: layer.crop(-2),
    )
    roomy, plain = RoomyLayer(), DynamicLayer()
    rows = 2
    for step in range(12):
        for mine, theirs in zip(roomy.update(*states(step, rows, 1)), plain.update(*states(step, rows, 1)), strict=True):
            assert torch.equal(mine, theirs)
        if step % 4 == 3:
            for layer in (roomy, plain):
                changes[step // 4](layer)
            rows = 4


def test_a_token_is_written_in_place_and_nothing_else_is_touched() -> None:
    layer = RoomyLayer()
    layer.update(*states(0, 2, 5))
    keys, _ = layer.update(*states(1, 2, 1))
    later, _ = layer.update(*states(2, 2, 1))
    assert later.data_ptr() == keys.data_ptr()
    assert torch.equal(later[:, :, :6], keys)


def test_layers_of_other_kinds_stay_the_librarys_own() -> None:
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "head_dim": 4, "vocab_size": 16}
    assert all(type(layer) is RoomyLayer for layer in roomy_cache(LlamaConfig(**shape)).layers)
    config = Gemma2Config(**shape, num_key_value_heads=1)
    theirs = [type(layer) for layer in DynamicCache(config=config).layers]
    assert [type(layer) for layer in roomy_cache(config).layers] == [RoomyLayer if kind is DynamicLayer else kind for kind in theirs]
    assert len(set(theirs)) == 2
