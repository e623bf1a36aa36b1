"""What a run keeps on disk: durable writes, artifacts, checkpoints, the ledger, the lock, the keys, weights."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import sqlite3
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import ArtifactError, ModelError, RunLockedError, StorageError, UsageError
from steelyard.run.artifacts import ArtifactStore, read_manifest, verify_folder
from steelyard.run.checkpoints import FolderCheckpoints
from steelyard.run.durable import link_atomically, storage_errors, storage_problem, write_bytes, write_json
from steelyard.run.keys import Serving, canonical_json, fingerprint_path, step_key
from steelyard.run.ledger import Ledger
from steelyard.run.lock import RunLock, read_holder
from steelyard.run.metrics_file import MetricsFile
from steelyard.run.step_io import SampleLog
from steelyard.run.weights import inspect_weights

# Durable writes


def test_a_write_that_cannot_be_finished_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(TypeError):
        write_bytes(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_file_above_the_limit_of_the_process_is_a_storage_error_that_names_it(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot write '.*file': the file is larger than this process may write .* free\)"):
            write_bytes(tmp_path / "file", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), "cannot write '/x/y'"),
        (sqlite3.OperationalError("database or disk is full"), "the disk is full"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "make the folder writable"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(errno.EIO, "Input/output error"), "input/output error"),
    ],
)
def test_whatever_library_meets_a_full_or_read_only_disk_it_is_told_as_that(error: Exception, told: str, tmp_path: Path) -> None:
    problem = storage_problem(error, tmp_path)
    assert problem is not None and told in str(problem)


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        (tmp_path / "absent").read_text()
    assert storage_problem(ValueError("no"), tmp_path) is None


def test_a_link_moves_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        link_atomically(tmp_path / "champion", name)
        assert (tmp_path / "champion").resolve().name == name
    assert sorted(os.listdir(tmp_path)) == ["champion", "one", "two"]


# Artifacts


def made(store: ArtifactStore, key: str = "k1", text: str = "weights") -> Path:
    folder = store.temporary(key)
    (folder / "sub").mkdir()
    (folder / "model.bin").write_text(text)
    (folder / "sub" / "more.json").write_text("{}")
    return store.commit(folder, key, step="r/a", kind="stage", inputs={"model": "k0"}, summary={"rows": 3}, seconds=1.5)


def test_a_committed_artifact_has_a_manifest_of_all_its_files(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    folder = made(store)
    manifest = read_manifest(folder)
    assert set(manifest.files) == {"model.bin", "sub/more.json"}
    # printf weights | sha256sum
    assert manifest.files["model.bin"] == (
        7,
        subprocess.run(["sha256sum"], input=b"weights", capture_output=True).stdout.decode().split()[0],
    )
    assert (manifest.step, manifest.inputs, manifest.summary) == ("r/a", {"model": "k0"}, {"rows": 3})
    assert os.listdir(tmp_path) == ["k1"]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "model.bin").write_text("weightz"), r"model.bin' does not have the sha256"),
        (lambda f: (f / "model.bin").write_text("weight"), r"model.bin' has 6 bytes where its manifest says 7"),
        (lambda f: (f / "sub" / "more.json").unlink(), r"more.json' is missing"),
        (lambda f: (f / "manifest.json").unlink(), r"manifest.json' is missing"),
        (lambda f: (f / "manifest.json").write_text('{"format": 1'), r"manifest.json' is torn"),
        (lambda f: (f / "manifest.json").write_text("[]"), r"manifest.json' is torn"),
    ],
)
def test_a_damaged_artifact_is_an_error_that_names_the_file_and_what_to_do(damage, told: str, tmp_path: Path) -> None:
    damage(made(ArtifactStore(tmp_path)))
    with pytest.raises(ArtifactError, match=told) as caught:
        ArtifactStore(tmp_path).open("k1")
    assert "steelyard resume" in str(caught.value)


def test_contents_are_hashed_once_a_process_and_sizes_every_time(tmp_path: Path) -> None:
    made(ArtifactStore(tmp_path))
    store = ArtifactStore(tmp_path)
    folder = store.open("k1")
    (folder / "model.bin").write_text("weightz")
    store.open("k1")
    (folder / "model.bin").write_text("w")
    with pytest.raises(ArtifactError):
        store.open("k1")


def test_an_artifact_under_another_key_is_refused(tmp_path: Path) -> None:
    made(ArtifactStore(tmp_path)).rename(tmp_path / "k2")
    with pytest.raises(ArtifactError, match="is of another artifact, 'k1'"):
        ArtifactStore(tmp_path).open("k2")


def test_damaged_artifacts_are_set_aside_one_beside_the_other(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    for name in ("k1.damaged", "k1.damaged-2"):
        made(store)
        assert store.set_aside("k1").name == name
        assert not store.has("k1")


def test_a_sweep_takes_half_made_folders_only(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    made(store)
    store.temporary("k2")
    store.sweep()
    assert os.listdir(tmp_path) == ["k1"]


# Checkpoints


def fill_with(text: str):
    return lambda folder: (folder / "state").write_text(text)


def test_the_newest_two_checkpoints_are_kept_and_the_newest_is_given(tmp_path: Path) -> None:
    store = FolderCheckpoints(tmp_path / "c", "r/a", "k")
    assert store.latest() is None
    for step in (5, 10, 15):
        store.write(step, fill_with(str(step)))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["step-000000010", "step-000000015"]
    found = store.latest()
    assert found is not None and (found / "state").read_text() == "15"


def test_a_torn_checkpoint_is_passed_over_and_can_be_written_again(tmp_path: Path) -> None:
    store = FolderCheckpoints(tmp_path, "r/a", "k")
    store.write(5, fill_with("5"))
    torn = store.write(10, fill_with("10"))
    (torn / "state").write_text("1")
    found = store.latest()
    assert found is not None and found.name == "step-000000005"
    store.write(10, fill_with("ten"))
    found = store.latest()
    assert found is not None and (found / "state").read_text() == "ten"


def test_a_checkpoint_that_could_not_be_filled_leaves_the_older_ones(tmp_path: Path) -> None:
    store = FolderCheckpoints(tmp_path, "r/a", "k")
    store.write(5, fill_with("5"))

    def fails(folder: Path) -> None:
        (folder / "state").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="the disk is full"):
        store.write(10, fails)
    found = store.latest()
    assert found is not None and found.name == "step-000000005"
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000005"]


def test_a_checkpoint_of_another_key_is_not_taken(tmp_path: Path) -> None:
    FolderCheckpoints(tmp_path, "r/a", "k").write(5, fill_with("5"))
    assert FolderCheckpoints(tmp_path, "r/a", "other").latest() is None


def test_samples_go_back_to_what_they_were_at_the_checkpoint(tmp_path: Path) -> None:
    samples = SampleLog(tmp_path / "samples.jsonl")
    store = FolderCheckpoints(tmp_path / "c", "r/a", "k", samples)
    samples.add({"n": 1})
    store.write(5, fill_with("5"))
    samples.add({"n": 2})
    samples.close()
    again = SampleLog(tmp_path / "samples.jsonl")
    FolderCheckpoints(tmp_path / "c", "r/a", "k", again).latest()
    again.add({"n": 3})
    again.close()
    assert [json.loads(line)["n"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()] == [1, 3]


# The ledger


def decision(ledger: Ledger, key: str, outcome: str, round_name: str = "r1") -> None:
    ledger.add_decision(
        round_name=round_name,
        step=f"gate/{round_name}",
        key=key,
        champion="old",
        challenger="new",
        challenger_step=f"{round_name}/b",
        verdict={"decision": outcome, "sentence": f"{outcome}: because"},
        seconds=0.1,
    )


def test_a_promotion_stands_in_the_ledger_with_its_verdict_and_its_step(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    decision(ledger, "g1", "promote")
    decision(ledger, "g2", "reject", "r2")
    assert [(row.round, row.decision) for row in ledger.verdicts()] == [("r1", "promote"), ("r2", "reject")]
    assert [(row.step, row.key, row.previous, row.gate) for row in ledger.promotions()] == [("r1/b", "new", "old", "g1")]
    assert ledger.committed("gate/r1", "g1") and ledger.committed("gate/r2", "g2")
    found = ledger.verdict_of("g2")
    assert found is not None and found.verdict["sentence"] == "reject: because"


def test_a_decision_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    with pytest.raises(TypeError):
        ledger.add_decision(
            round_name="r1", step="gate/r1", key="g", champion="old", challenger="new", challenger_step="r1/b",
            verdict={"decision": "promote", "sentence": "x", "bad": {1, 2}}, seconds=0,
        )  # fmt: skip
    with pytest.raises(sqlite3.IntegrityError):
        ledger.add_decision(
            round_name="r1", step="gate/r1", key="g", champion="old", challenger=None, challenger_step="r1/b",  # type: ignore[arg-type]
            verdict={"decision": "promote", "sentence": "x"}, seconds=0,
        )  # fmt: skip
    assert ledger.verdicts() == [] and ledger.promotions() == [] and ledger.steps() == []
    decision(ledger, "g1", "promote")
    assert len(ledger.promotions()) == 1


def test_commits_are_fully_synchronous_and_metrics_are_not(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    full, normal = 2, 1
    assert ledger._commits.execute("PRAGMA synchronous").fetchone()[0] == full
    assert ledger._metrics.execute("PRAGMA synchronous").fetchone()[0] == normal
    assert ledger._commits.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_metrics_reported_again_after_a_resume_count_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for step, loss in ((1, 3.0), (2, 2.0), (3, 1.5), (2, 2.25), (3, 1.75)):
        ledger.add_metrics("r/a", "k", step, {"train/loss": loss})
    ledger.add_metrics("r/a", "k", 3, {"eval/loss": 9.0})
    ledger.add_metrics("r/b", "k", 1, {"train/loss": 7.0})
    rows = ledger.metrics("r/a")
    assert [(row.optimiser_step, row.metrics) for row in rows] == [
        (1, {"train/loss": 3.0}), (2, {"train/loss": 2.25}), (3, {"train/loss": 1.75}), (3, {"eval/loss": 9.0}),
    ]  # fmt: skip


def test_a_ledger_is_read_beside_its_writer(tmp_path: Path) -> None:
    writer = Ledger(tmp_path / "ledger.db")
    writer.add_step("base", "import", "k", "done", seconds=1.0, summary={"rows": 1})
    reader = Ledger(tmp_path / "ledger.db", readonly=True)
    assert [row.step for row in reader.steps()] == ["base"]
    writer.add_step("r/a", "stage", "k2", "started")
    assert [row.status for row in reader.steps()] == ["done", "started"]
    with pytest.raises(StorageError):
        reader.add_step("r/a", "stage", "k2", "done")


def test_a_ledger_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(UsageError, match="newer Steelyard"):
        Ledger(tmp_path / "ledger.db")


def test_half_a_line_of_metrics_is_closed_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": "a"}\n{"step": ')
    with MetricsFile(path) as metrics:
        metrics.add("b", 3, {"loss": float("nan"), "lr": 0.5})
    last = json.loads(path.read_text().splitlines()[-1])
    assert (last["step"], last["optimiser_step"], last["loss"], last["lr"]) == ("b", 3, None, 0.5)


# The lock


def test_the_holder_is_named_to_whoever_comes_second(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from steelyard.run.lock import RunLock; lock = RunLock(pathlib.Path(sys.argv[1])); "
        "lock.__enter__(); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    with pytest.raises(RunLockedError, match=rf"is held by process {process.pid} on .* since 20.*\(-c"), RunLock(tmp_path):
        pass
    holder = read_holder(tmp_path)
    assert holder is not None and holder.pid == process.pid
    process.kill()
    process.wait()
    assert read_holder(tmp_path) is None
    with RunLock(tmp_path) as lock:
        assert lock.previous is not None and lock.previous.pid == process.pid


def test_a_lock_let_go_leaves_no_holder(tmp_path: Path) -> None:
    for _ in range(2):
        with RunLock(tmp_path) as lock:
            assert lock.previous is None
            holder = read_holder(tmp_path)
            assert holder is not None and holder.pid == os.getpid()
    assert read_holder(tmp_path) is None


def test_somebody_who_only_looks_does_not_keep_a_run_from_beginning(tmp_path: Path) -> None:
    (tmp_path / "run.lock").touch()
    looking = os.open(tmp_path / "run.lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    timer = threading.Timer(0.05, os.close, [looking])
    timer.start()
    with RunLock(tmp_path):
        pass
    timer.join()


# Keys

KEYED = {
    "kind": "stage",
    "config": {"lr": 0.1, "name": "a"},
    "inputs": {"model": "k0"},
    "seed": 7,
    "serving": (Serving("sft", "1.0", "aa"), Serving("engines", "1.0", "bb")),
    "fingerprints": {"data": "ff"},
}


def key_of(**changes: object) -> str:
    values = {**KEYED, **changes}
    return step_key(values.pop("kind"), values.pop("config"), values.pop("inputs"), **values)  # type: ignore[arg-type]


def test_a_key_is_32_hexadecimal_digits_and_always_the_same() -> None:
    assert len(key_of()) == 32 and set(key_of()) <= set("0123456789abcdef")
    reordered = {"config": {"name": "a", "lr": 0.1}, "serving": tuple(reversed(KEYED["serving"])) + KEYED["serving"]}  # type: ignore[operator]
    assert key_of(**reordered) == key_of()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "data"},
        {"config": {"lr": 0.2, "name": "a"}},
        {"config": {"lr": 0.1}},
        {"inputs": {"model": "k1"}},
        {"inputs": {"reference": "k0"}},
        {"seed": 8},
        {"seed": None},
        {"serving": (Serving("sft", "1.1", "aa"), Serving("engines", "1.0", "bb"))},
        {"serving": (Serving("sft", "1.0", "ab"), Serving("engines", "1.0", "bb"))},
        {"serving": (Serving("sft", "1.0", "aa"),)},
        {"fingerprints": {"data": "f0"}},
        {"fingerprints": {}},
    ],
)
def test_a_key_changes_with_each_thing_it_stands_for(change: dict[str, object]) -> None:
    assert key_of(**change) != key_of()


@given(
    st.dictionaries(
        st.text(), st.one_of(st.integers(), st.text(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False))
    )
)
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))
    assert json.loads(canonical_json(value)) == value


def test_a_key_cannot_be_made_of_a_number_that_equals_nothing() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        key_of(config={"lr": float("nan")})


def test_a_fingerprint_follows_names_and_contents_and_not_times(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.json").write_text("1")
    first = fingerprint_path(folder)
    os.utime(folder / "a.json", (1, 1))
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("not of the model")
    assert fingerprint_path(folder) == first
    (folder / "a.json").write_text("2")
    second = fingerprint_path(folder)
    (folder / "a.json").rename(folder / "b.json")
    assert len({first, second, fingerprint_path(folder)}) == 3
    with pytest.raises(FileNotFoundError):
        fingerprint_path(tmp_path / "absent")


# Weights


def save_safetensors(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    header, data = {}, b""
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_weights_are_counted_and_what_is_not_finite_is_named(tmp_path: Path) -> None:
    good = np.ones((3, 4), np.float32)
    bad = np.array([1.0, np.inf], np.float32)
    bf16_nan = np.array([0x3F80, 0x7FC0], np.uint16)
    save_safetensors(tmp_path / "model.safetensors", {"a": ("F32", good), "b": ("F32", bad), "c": ("BF16", bf16_nan)})
    facts = inspect_weights(tmp_path)
    assert facts is not None and facts.parameters == 16 and facts.non_finite == ("b", "c")


def test_the_digest_does_not_depend_on_how_tensors_are_spread_over_files(tmp_path: Path) -> None:
    a, b = ("F32", np.arange(4, dtype=np.float32)), ("F16", np.arange(3, dtype=np.float16))
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    save_safetensors(tmp_path / "one" / "model.safetensors", {"a": a, "b": b})
    save_safetensors(tmp_path / "two" / "model-1.safetensors", {"b": b})
    save_safetensors(tmp_path / "two" / "model-2.safetensors", {"a": a})
    save_safetensors(tmp_path / "three" / "model.safetensors", {"a": b, "b": a})
    one, two, three = (inspect_weights(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two and one is not None and three is not None and one.sha256 != three.sha256


def test_a_torn_weights_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_safetensors(path, {"a": ("F32", np.ones(100, np.float32))})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match="tensor 'a' ends behind the file"):
        inspect_weights(tmp_path)
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        inspect_weights(tmp_path)


def test_a_folder_without_safetensors_has_no_weights(tmp_path: Path) -> None:
    assert inspect_weights(tmp_path) is None


def test_a_verified_checkpoint_folder_is_what_was_sealed(tmp_path: Path) -> None:
    folder = FolderCheckpoints(tmp_path, "r/a", "k").write(3, fill_with("3"))
    assert verify_folder(folder).summary == {"step": 3}
    write_json(folder / "extra.json", {})
    assert verify_folder(folder).kind == "checkpoint"
