"""Decontamination: finds evaluation items in training data, removes or refuses them, and certifies what was done.

Importing this package is cheap; numpy is loaded when an index is built or read.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steelyard.decontaminate.certificate import Certificate
    from steelyard.decontaminate.cleaning import Cleaning, ContaminatedError, FileCleaning, RowsHash, clean, clean_file
    from steelyard.decontaminate.documents import DocumentFile, read_documents, row_texts
    from steelyard.decontaminate.findings import Match, Overlap, Review, ScanReport, TaskOverlap
    from steelyard.decontaminate.index import ItemIndex
    from steelyard.decontaminate.items import Item, read_items
    from steelyard.decontaminate.rule import Rule, words
    from steelyard.decontaminate.scanner import Scanner, scan

__all__ = [
    "Certificate",
    "Cleaning",
    "ContaminatedError",
    "DocumentFile",
    "FileCleaning",
    "Item",
    "ItemIndex",
    "Match",
    "Overlap",
    "Review",
    "RowsHash",
    "Rule",
    "ScanReport",
    "Scanner",
    "TaskOverlap",
    "clean",
    "clean_file",
    "read_documents",
    "read_items",
    "row_texts",
    "scan",
    "words",
]

_ROOMS = {
    "certificate": ("Certificate",),
    "cleaning": ("Cleaning", "ContaminatedError", "FileCleaning", "RowsHash", "clean", "clean_file"),
    "documents": ("DocumentFile", "read_documents", "row_texts"),
    "findings": ("Match", "Overlap", "Review", "ScanReport", "TaskOverlap"),
    "index": ("ItemIndex",),
    "items": ("Item", "read_items"),
    "rule": ("Rule", "words"),
    "scanner": ("Scanner", "scan"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
