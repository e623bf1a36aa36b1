"""One uninterrupted run of a small recipe on a real model, which the tests of this folder compare with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures" / "small_lab"))
from small_lab import RUN, Reference, digests_of, durations, make_small_project, steelyard


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    project = make_small_project(tmp_path_factory.mktemp("reference"))
    done = steelyard("run", "recipe.yaml", cwd=project)
    assert done.returncode in (0, 1), done.stderr
    run_dir = project / RUN
    return Reference(project, run_dir, done, digests_of(run_dir), durations(run_dir))


@pytest.fixture
def small_project(tmp_path: Path) -> Path:
    """A project whose run has not begun."""
    return make_small_project(tmp_path / "project")


@pytest.fixture
def finished_project(reference: Reference, tmp_path: Path) -> Path:
    """A copy of the reference, moved with its run to another folder."""
    return Path(shutil.copytree(reference.project, tmp_path / "moved", symlinks=True))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB of its own; skips where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {tried.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
