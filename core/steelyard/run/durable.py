"""Writing that survives a kill and a power cut: a file or folder is there whole, under its name, or not at all.

Everything is written under a temporary name, fsynced, renamed, and the folder that holds the name is fsynced too. What the disk refuses
comes out as a :class:`~steelyard.errors.StorageError` that names the path and the free space.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steelyard.errors import StorageError

__all__ = [
    "free_space",
    "fsync_folder",
    "fsync_tree",
    "link_atomically",
    "publish_folder",
    "remove_tree",
    "storage_errors",
    "storage_problem",
    "write_bytes",
    "write_json",
    "write_text",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL_TEXTS = ("No space left on device", "StorageFull", "database or disk is full", "Disk quota exceeded", "File too large")
_UNWRITABLE_TEXTS = ("Read-only file system", "readonly database", "unable to open database file")


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns a full or unwritable disk under ``path`` into a :class:`StorageError`; other errors pass."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        problem = storage_problem(error, path)
        if problem is None:
            raise
        raise problem from error


def storage_problem(error: BaseException, path: Path) -> StorageError | None:
    """The :class:`StorageError` that ``error`` amounts to, or None when it is about something else.

    Libraries wrap the system's error in their own, so its number is looked for first and then its words.
    """
    number = error.errno if isinstance(error, OSError) else None
    place = Path(error.filename) if isinstance(error, OSError) and isinstance(error.filename, str) else path
    text = str(error)
    if number in _FULL or any(words in text for words in _FULL_TEXTS):
        what = "the file is larger than this process may write" if number == errno.EFBIG else "the disk is full"
        return StorageError(f"cannot write {str(place)!r}: {what} ({free_space(place)}); make room and resume the run")
    if number in _UNWRITABLE or any(words in text for words in _UNWRITABLE_TEXTS):
        return StorageError(f"cannot write {str(place)!r}: {text or 'read-only'}; make the folder writable and resume the run")
    if "malformed" in text or "not a database" in text:
        return StorageError(f"{str(path)!r} is damaged ({text}): move it away and resume; the artifacts that are whole are taken up again")
    if number == errno.EIO or "disk I/O error" in text:
        return StorageError(f"cannot write {str(place)!r}: the disk reports an input/output error ({free_space(place)})")
    return None


def free_space(path: Path) -> str:
    """``"1.2 GiB free"`` for the file system that holds ``path`` or the nearest folder above it that exists."""
    for folder in (path, *path.parents):
        if folder.exists():
            free = float(shutil.disk_usage(folder).free)
            for unit in ("bytes", "KiB", "MiB", "GiB"):
                if free < 1024:
                    return f"{free:.0f} {unit} free" if unit == "bytes" else f"{free:.1f} {unit} free"
                free /= 1024
            return f"{free:.1f} TiB free"
    return "free space unknown"


def fsync_folder(folder: Path) -> None:
    """Makes the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Makes every file under ``folder``, and every name, durable."""
    for root, _, files in os.walk(folder):
        for name in files:
            descriptor = os.open(Path(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_folder(Path(root))


def write_bytes(path: Path, data: bytes) -> None:
    """Puts a whole file in place, durably. Errors: :class:`StorageError`."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with storage_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` of UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """:func:`write_text` of indented JSON. Keys keep their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def publish_folder(temporary: Path, final: Path) -> None:
    """Gives a finished folder its name, durably. ``final`` must not exist. Errors: :class:`StorageError`."""
    with storage_errors(final):
        fsync_tree(temporary)
        os.rename(temporary, final)
        fsync_folder(final.parent)


def link_atomically(link: Path, target: str) -> None:
    """Points the symbolic link ``link`` at ``target`` (relative to the link's folder) in one step, durably."""
    temporary = link.with_name(f".{link.name}.tmp-{os.getpid()}")
    with storage_errors(link):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, link)
        fsync_folder(link.parent)


def remove_tree(folder: Path) -> None:
    """Removes a folder whose content is no longer needed; what cannot be removed stays and does no harm."""
    shutil.rmtree(folder, ignore_errors=True)
