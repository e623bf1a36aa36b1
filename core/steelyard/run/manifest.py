"""``manifest.json``: what ran a run. Versions, plugins with their hashes, hardware, git, and every session (a run and its resumes)."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steelyard.plugins import Registry

__all__ = ["MANIFEST_NAME", "describe_session"]

MANIFEST_NAME = "manifest.json"

_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "safetensors", "lm-eval", "vllm", "numpy", "scipy", "pyarrow", "pydantic")


def describe_session(registry: Registry, recipe_dir: Path, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """This session: when, where, by what. Imports none of the libraries it names, and asks no network."""
    from steelyard import __version__
    from steelyard.run.launchers import worker_threads

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "pid": os.getpid(),
        "steelyard": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name))},
        "plugins": [_plugin(info) for info in registry.plugins if info.status in ("active", "conflict")],
        "hardware": _hardware(worker_threads(environ)),
        "git": _git(recipe_dir),
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _plugin(info: Any) -> dict[str, str]:
    return {"name": info.name, "distribution": info.distribution, "version": info.version, "hash": info.hash}


def _hardware(threads: int) -> dict[str, Any]:
    import psutil

    return {
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "worker_threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "accelerators": _accelerators(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _accelerators() -> list[str]:
    """Names of NVIDIA devices as their driver lists them; asking torch would import it here."""
    found = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = file.read_text(encoding="utf-8").splitlines()
        found.append(next((line.partition(":")[2].strip() for line in lines if line.startswith("Model")), file.parent.name))
    return found


def _git(folder: Path) -> dict[str, Any] | None:
    """The commit that ``folder`` is at and whether its work tree differs; None outside a repository."""
    commit = _git_says(folder, "rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "dirty": bool(_git_says(folder, "status", "--porcelain"))}


def _git_says(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
