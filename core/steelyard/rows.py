"""Datasets on disk: ``rows.parquet`` and ``dataset.json`` in a folder.

Conversations are stored as lists of ``{role, content}`` structs, so that any Arrow reader understands them; a verifier's reference and
every column this module does not know travel as JSON text and come back as they were.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from steelyard.errors import DataError
from steelyard.records import Row

__all__ = ["CONVERSATIONS", "count_rows", "read_facts", "read_rows", "row_sources", "texts_of", "write_rows"]

CONVERSATIONS = ("messages", "prompt", "chosen", "rejected")
"""Columns that may hold a list of messages; ``prompt`` may be a plain string instead."""
_STRINGS = ("id", "source", "text", "completion", "verifier", "prompt_text")
_BATCH = 4096


def write_rows(folder: Path, rows: Iterable[Row], facts: Mapping[str, Any] | None = None) -> int:
    """Write ``rows`` into ``folder`` and return how many; memory is bounded by one batch. ``facts`` goes into ``dataset.json``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())])
    schema = pa.schema(
        [(name, pa.string()) for name in _STRINGS]
        + [(name, pa.list_(message)) for name in CONVERSATIONS]
        + [("reference", pa.string()), ("extra", pa.string())]
    )
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    batch: list[dict[str, Any]] = []
    with pq.ParquetWriter(folder / "rows.parquet", schema, compression="zstd") as writer:
        for row in rows:
            batch.append(_encode(row))
            count += 1
            if len(batch) == _BATCH:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    (folder / "dataset.json").write_text(json.dumps({"rows": count, **(facts or {})}, indent=2, ensure_ascii=False) + "\n")
    return count


def read_rows(folder: Path) -> Iterator[Row]:
    """Every row of a dataset folder, in order, with the columns it was written with."""
    import pyarrow.parquet as pq

    for batch in _open(folder, pq).iter_batches(batch_size=_BATCH):
        for row in batch.to_pylist():
            yield _decode(row)


def count_rows(folder: Path) -> int:
    """How many rows, from the file's footer alone."""
    import pyarrow.parquet as pq

    return int(_open(folder, pq).metadata.num_rows)


def row_sources(folder: Path) -> list[str | None]:
    """The source of every row, in order, from that column alone; None for a row that names none."""
    import pyarrow.parquet as pq

    file = _open(folder, pq)
    if "source" not in file.schema_arrow.names:
        return [None] * int(file.metadata.num_rows)
    names: list[str | None] = file.read(columns=["source"]).column(0).dictionary_encode().to_pylist()
    return names


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``dataset.json`` says: the number of rows, the sources, whatever the mixer reported."""
    facts: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
    return facts


def texts_of(row: Row) -> list[str]:
    """Every text of a row, prompts and responses alike, one string a message."""
    texts: list[str] = []
    for name in CONVERSATIONS:
        value = row.get(name)
        if isinstance(value, str):
            texts.append(value)
        elif value:
            texts.extend(m["content"] for m in value if isinstance(m.get("content"), str))
    for name in ("text", "completion", "edited", "ranked"):
        texts.extend(_texts_in(row.get(name)))
    return texts


def _texts_in(value: Any) -> Iterator[str]:
    """The texts of an answer, or of several, as text or as messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts_in(value.get("content"))
    elif isinstance(value, list):
        for part in value:
            yield from _texts_in(part)


def _open(folder: Path, pq: Any) -> Any:
    path = folder / "rows.parquet"
    if not path.is_file():
        raise DataError(f"{str(folder)!r} is not a dataset folder: it has no rows.parquet")
    return pq.ParquetFile(path)


def _encode(row: Row) -> dict[str, Any]:
    out: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in row.items():
        if value is None:
            continue
        if name == "prompt" and isinstance(value, str):
            out["prompt_text"] = value
        elif name in CONVERSATIONS:
            out[name] = [_encode_message(m) for m in value]
        elif name == "reference":
            out["reference"] = json.dumps(value, ensure_ascii=False)
        elif name in _STRINGS and isinstance(value, str):
            out[name] = value
        else:
            extra[name] = value
    if extra:
        out["extra"] = json.dumps(extra, ensure_ascii=False)
    return out


def _encode_message(message: Mapping[str, Any]) -> dict[str, Any]:
    rest = {k: v for k, v in message.items() if k not in ("role", "content")}
    return {
        "role": message["role"],
        "content": message["content"],
        "extra": json.dumps(rest, ensure_ascii=False) if rest else None,
    }


def _decode(row: dict[str, Any]) -> Row:
    out: Row = {}
    for name, value in row.items():
        if value is None:
            continue
        if name == "prompt_text":
            out["prompt"] = value
        elif name in CONVERSATIONS:
            out[name] = [_decode_message(m) for m in value]
        elif name == "reference":
            out["reference"] = json.loads(value)
        elif name == "extra":
            out.update(json.loads(value))
        else:
            out[name] = value
    return out


def _decode_message(message: dict[str, Any]) -> dict[str, Any]:
    extra = message.get("extra")
    return {"role": message["role"], "content": message["content"], **(json.loads(extra) if extra else {})}
