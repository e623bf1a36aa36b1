"""The documents that are scanned: which texts a row holds, and the files that rows are read from."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from steelyard.errors import DataError, UsageError

__all__ = ["DocumentFile", "read_documents", "row_source", "row_texts"]

_LABELS = frozenset(
    {"id", "uuid", "prompt_id", "source", "dataset", "verifier", "language", "license", "model", "split", "created_at", "timestamp"}
)
"""Top-level columns that say something about a row; no text of it unless they are longer than a label would be."""
_LABEL_LENGTH = 64
_MESSAGE_LABELS = frozenset({"role", "from", "type", "id", "tool_call_id"})
"""Keys inside messages and other nested values that are no text."""
_BATCH = 4096


def row_texts(row: Mapping[str, Any]) -> list[str]:
    """Every text of a row, each once: the contents of ``messages``, ``prompt``, ``chosen``, ``rejected``, ``text``,
    ``completion``, ``reference`` and of any other column, at any depth, but for those that only describe the row
    (``id``, ``source``, roles …).

    A column nobody thought of is scanned rather than passed over, since a leak hides best where nobody looks.
    """
    found: dict[str, None] = {}
    for name, value in row.items():
        if not (name in _LABELS and _is_label(value)):
            _collect(value, found)
    return list(found)


def _is_label(value: Any) -> bool:
    return not isinstance(value, (str, Mapping, list, tuple)) or (isinstance(value, str) and 0 < len(value) <= _LABEL_LENGTH)


def _collect(value: Any, found: dict[str, None]) -> None:
    if isinstance(value, str):
        if value:
            found[value] = None
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _MESSAGE_LABELS:
                _collect(inner, found)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _collect(inner, found)


def row_source(row: Mapping[str, Any], default: str) -> str:
    """The dataset a row comes from: its ``source``, else its ``dataset`` (Tülu's column), else ``default``."""
    for name in ("source", "dataset"):
        value = row.get(name)
        if isinstance(value, str) and _is_label(value):
            return value
    return default


class DocumentFile:
    """The rows of a ``.jsonl`` or ``.parquet`` file, read anew at each iteration; memory is that of a batch of rows.

    Iterating gives (row number, row), where the number counts from 0: lines of a ``.jsonl`` file, rows of a
    ``.parquet`` file. Broken lines are passed over and listed in ``broken``. Errors, once the file has been read:
    :class:`DataError` naming the lines when their share is above ``max_broken``, or when there are no rows.
    """

    def __init__(self, path: Path, max_broken: float):
        self.path = path
        self.format = "parquet" if path.suffix == ".parquet" else "jsonl"
        self.max_broken = max_broken
        self.broken: list[tuple[int, str]] = []
        """(line number from 1, what is wrong with it); the first thousand of them."""
        self.broken_count = 0

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        self.broken, self.broken_count = [], 0
        read = 0
        for number, row in self._parquet_rows() if self.format == "parquet" else self._jsonl_rows():
            read += 1
            yield number, row
        if self.broken_count > self.max_broken * (read + self.broken_count):
            shown = "; ".join(f"line {line}: {what}" for line, what in self.broken[:5])
            raise DataError(
                f"{str(self.path)!r}: {self.broken_count} of {read + self.broken_count} lines are broken, above the limit of "
                f"{self.max_broken:.2%} ({shown}{'; …' if self.broken_count > 5 else ''}); mend or remove them"
            )
        if not read:
            raise DataError(f"{str(self.path)!r} holds no rows")

    def _jsonl_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in self._lines():
            row, problem = _parse(line)
            if row is not None:
                yield number, row
                continue
            self.broken_count += 1
            if len(self.broken) < 1000:
                self.broken.append((number + 1, problem))

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if line.strip():
                    yield number, line

    def _parquet_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        for batch in self._open_parquet().iter_batches(batch_size=_BATCH):
            for row in batch.to_pylist():
                yield number, row
                number += 1

    def _open_parquet(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self.path)
        except pa.ArrowException as error:
            raise DataError(f"{str(self.path)!r} is not a parquet file that can be read: {error}") from None

    def copy_without(self, rows: Container[int], target: Path) -> int:
        """Writes every row whose number is not in ``rows`` to ``target`` as it stands (the same bytes, the same
        schema), without broken lines; returns how many."""
        return self._copy_parquet(rows, target) if self.format == "parquet" else self._copy_jsonl(rows, target)

    def _copy_jsonl(self, rows: Container[int], target: Path) -> int:
        kept = 0
        with target.open("wb") as out:
            for number, line in self._lines():
                if number not in rows and _parse(line)[0] is not None:
                    out.write(line if line.endswith(b"\n") else line + b"\n")
                    kept += 1
        return kept

    def _copy_parquet(self, rows: Container[int], target: Path) -> int:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = self._open_parquet()
        number = kept = 0
        with pq.ParquetWriter(target, file.schema_arrow, compression="zstd") as writer:
            for batch in file.iter_batches(batch_size=_BATCH):
                mask = [number + k not in rows for k in range(batch.num_rows)]
                number += batch.num_rows
                kept += sum(mask)
                writer.write_batch(batch.filter(pa.array(mask)))
        return kept


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return None, f"not JSON ({error})"
    if not isinstance(value, dict):
        return None, f"{type(value).__name__} where an object belongs"
    return value, ""


def read_documents(path: Path | str, max_broken: float = 0.01) -> DocumentFile:
    """The rows of a ``.jsonl`` or ``.parquet`` file, for :func:`~steelyard.decontaminate.scan`.

    ``max_broken`` is the share of broken lines above which the file is refused. Errors: :class:`UsageError` when there
    is no such file or its ending is another; those of :class:`DocumentFile` while it is read.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no file of documents at {str(path)!r}; give a .jsonl or .parquet file")
    if path.suffix not in (".jsonl", ".parquet"):
        raise UsageError(f"cannot tell the format of {str(path)!r}; give a .jsonl or .parquet file")
    return DocumentFile(path, max_broken)


def numbered(rows: DocumentFile | Iterable[Mapping[str, Any]]) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """(row number, row) for rows of a file or of anything else."""
    return rows if isinstance(rows, DocumentFile) else enumerate(rows)
