"""Encoded datasets are kept by content: what would change a token changes the key, and what is damaged is made anew."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelyard.errors import StorageError
from steelyard_torch.encoding import EncodedChats, EncodedPairs, encode_chats, encode_pairs
from steelyard_torch.models import load_tokenizer
from steelyard_torch.token_cache import cache_key, cached_pairs, cached_rows, read_tensors, write_tensors

OPTIONS = {"max_length": 32, "on_too_long": "truncate"}


@pytest.fixture
def dataset(bench: Any) -> Path:
    return bench.data({"messages": bench.chat("ab", "c" * n)} for n in (3, 1, 40, 7))


def encode(bench: Any, made: list[None]) -> Any:
    def now() -> EncodedChats:
        made.append(None)
        conversations = [bench.chat("ab", "c" * n) for n in (3, 1, 40, 7)]
        return encode_chats(load_tokenizer(bench.model()), conversations, max_length=32)

    return now


def assert_same(one: Any, other: Any) -> None:
    assert one.stats == other.stats
    for mine, theirs in zip(one.rows, other.rows, strict=True):
        np.testing.assert_array_equal(mine.input_ids, theirs.input_ids)
        np.testing.assert_array_equal(mine.trained, theirs.trained)
        assert mine.index == theirs.index
        assert (mine.input_ids.dtype, mine.trained.dtype) == (theirs.input_ids.dtype, theirs.trained.dtype)


def test_rows_come_back_as_they_were_made(bench: Any, dataset: Path) -> None:
    made: list[None] = []
    tokenizer = load_tokenizer(bench.model())
    first, second = (cached_rows(bench.root / "cache", dataset, tokenizer, OPTIONS, encode(bench, made)) for _ in range(2))
    assert len(made) == 1
    assert first.stats.truncated == 1
    assert_same(first, second)


def test_pairs_come_back_as_they_were_made(bench: Any, dataset: Path) -> None:
    tokenizer, made = load_tokenizer(bench.model()), []

    def now() -> EncodedPairs:
        made.append(None)
        rows = [(bench.chat("ab", "c")[:1], bench.chat("", "c" * n)[1:], bench.chat("", "d" * (n + 1))[1:]) for n in (2, 40, 5)]
        return encode_pairs(tokenizer, rows, max_length=32, on_too_long="drop")

    first, second = (cached_pairs(bench.root / "cache", dataset, tokenizer, OPTIONS, now) for _ in range(2))
    assert len(made) == 1 and len(second.pairs) == 2 and first.stats == second.stats
    for mine, theirs in zip(first.pairs, second.pairs, strict=True):
        assert mine.index == theirs.index
        for side in ("chosen", "rejected"):
            np.testing.assert_array_equal(getattr(mine, side).input_ids, getattr(theirs, side).input_ids)
            np.testing.assert_array_equal(getattr(mine, side).trained, getattr(theirs, side).trained)
    assert [pair.index for pair in second.pairs] == [0, 2]


def test_whatever_changes_a_token_changes_the_key(bench: Any, dataset: Path) -> None:
    other_rows = bench.data([{"messages": bench.chat("ab", "x")}], "other")
    copied = bench.data(({"messages": bench.chat("ab", "c" * n)} for n in (3, 1, 40, 7)), "copied")
    tokenizer = load_tokenizer(bench.model())
    key = cache_key(dataset, tokenizer, OPTIONS)
    others = {
        "rows": cache_key(other_rows, tokenizer, OPTIONS),
        "template": cache_key(dataset, load_tokenizer(bench.model(template="plain")), OPTIONS),
        "tokenizer": cache_key(dataset, load_tokenizer(bench.model(characters=bench.characters[::-1])), OPTIONS),
        "length": cache_key(dataset, tokenizer, {**OPTIONS, "max_length": 31}),
        "limit": cache_key(dataset, tokenizer, {**OPTIONS, "on_too_long": "drop"}),
        "further option": cache_key(dataset, tokenizer, {**OPTIONS, "end_token": False}),
    }
    assert len({key, *others.values()}) == 1 + len(others)
    assert cache_key(copied, load_tokenizer(bench.model(5)), OPTIONS) == key, "other weights and another folder change no token"


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "empty", "no checksum", "a text"])
def test_a_damaged_file_is_made_anew(bench: Any, dataset: Path, damage: str) -> None:
    made: list[None] = []
    tokenizer = load_tokenizer(bench.model())
    first = cached_rows(bench.root / "cache", dataset, tokenizer, OPTIONS, encode(bench, made))
    path = next((bench.root / "cache/tokens").iterdir())
    whole = path.read_bytes()
    damaged = {
        "flipped bit": whole[:-5] + bytes([whole[-5] ^ 4]) + whole[-4:],
        "cut short": whole[:-1],
        "empty": b"",
        "no checksum": whole.replace(b"sha256", b"sha257"),
        "a text": b"not tensors at all",
    }[damage]
    path.write_bytes(damaged)
    assert_same(first, cached_rows(bench.root / "cache", dataset, tokenizer, OPTIONS, encode(bench, made)))
    assert len(made) == 2
    assert path.read_bytes() == whole


def test_tensors_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "new/tensors.safetensors"
    assert read_tensors(path) is None
    write_tensors(path, {"a": np.arange(6).reshape(2, 3)}, {"why": "because"})
    found = read_tensors(path)
    assert found is not None and found[1] == {"why": "because"}
    np.testing.assert_array_equal(found[0]["a"], np.arange(6).reshape(2, 3))
    assert [file.name for file in path.parent.iterdir()] == ["tensors.safetensors"]


def test_tensors_of_every_kind_and_shape_are_mapped_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    given = {
        **{kind: np.arange(12).reshape(3, 4).astype(kind) for kind in ("bool", "int8", "int32", "int64", "float32", "float64")},
        "empty": np.zeros((0, 2), np.int32),
        "one": np.array(7, np.int64),
    }
    write_tensors(path, given, {})
    found = read_tensors(path)
    assert found is not None and found[0].keys() == given.keys()
    for name, tensor in given.items():
        np.testing.assert_array_equal(found[0][name], tensor, strict=True)
        assert not found[0][name].flags.writeable


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StorageError, match="cannot write"):
            write_tensors(path, {"a": np.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
