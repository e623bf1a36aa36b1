"""The launcher `torchrun` at close hand: whose word counts when several ranks speak, and what the others may not do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steelyard.errors import VerifierError
from steelyard.plugins import load_registry
from steelyard.protocols import Rank
from steelyard.records import Completion
from steelyard.run.checkpoints import FolderCheckpoints
from steelyard.run.ranks import NamedVerifiers, RankCheckpoints, RankIO, take_rank
from steelyard.run.tasks import Task
from steelyard.run.torchrun import TorchrunLauncher, TorchrunWorker, _private_folder
from steelyard.run.torchrun_config import TorchrunConfig


class Agent:
    """Stands for torch's agent: the process whose end the launcher watches."""

    pid = 2**22 + 1  # beyond every real process id

    def __init__(self) -> None:
        self.status: int | None = None

    def poll(self) -> int | None:
        return self.status

    def wait(self) -> int:
        return 0


class Ranks:
    """Two ranks' ends of the conversation, real sockets, without processes behind them."""

    def __init__(self, folder: Path, size: int = 2):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(folder / "ranks"))
        listener.listen(size)
        self.agent, self.log = Agent(), folder / "worker.log"
        self.log.write_text("")
        self.worker = TorchrunWorker(self.agent, listener, folder / "private", size, self.log)  # type: ignore[arg-type]
        self.ends = []
        for number in range(size):
            end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            end.connect(str(folder / "ranks"))
            self.ends.append(end)
            self.say(number, type="hello", rank=number, pid=2**22 + 2 + number)
        self.task = Task("r/s", "stage", "k" * 32, {}, {}, folder, folder, 0, 0)
        self.task.log.parent.mkdir(parents=True)
        for number in range(size):
            self.task.log_of(number).parent.mkdir(exist_ok=True)
            self.task.log_of(number).write_text(f"the log of rank {number}\n")
        self.worker.send({"type": "run", "task": self.task.to_json()})

    def say(self, number: int, **message: Any) -> None:
        self.ends[number].sendall(json.dumps(message).encode() + b"\n")

    def fail(self, number: int, message: str, *, code: int = 3) -> None:
        self.say(number, type="failed", error={"type": "RuntimeError", "message": message, "exit_code": code}, seconds=1.0)

    def heard(self, timeout: float = 5.0) -> list[dict[str, Any]]:
        """Everything up to the answer for all ranks."""
        found: list[dict[str, Any]] = []
        for _ in range(round(timeout / 0.1)):
            found += [dict(message) for message in self.worker.messages(0.1)]
            if found and found[-1]["type"] in ("done", "failed", "interrupted"):
                break
        return found


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    made = Ranks(tmp_path)
    yield made
    for end in made.ends:
        end.close()
    made.worker.kill()


def test_both_get_every_message_and_rank_0_alone_is_heard(ranks: Ranks) -> None:
    ranks.worker.send({"type": "stop"})
    ranks.say(0, type="log", message="mine")
    ranks.say(1, type="log", message="not mine")
    assert [message["message"] for message in ranks.worker.messages(0.3)] == ["mine"]
    for end in ranks.ends:
        lines = end.recv(65536).decode().splitlines()
        assert [json.loads(line)["type"] for line in lines] == ["run", "stop"]


def test_a_step_is_done_when_all_are(ranks: Ranks) -> None:
    ranks.say(0, type="done", key="k", summary={"n": 1}, seconds=2.0)
    assert list(ranks.worker.messages(0.3)) == []
    ranks.say(1, type="done", key="k", summary={}, seconds=2.0)
    assert ranks.heard() == [{"type": "done", "key": "k", "summary": {"n": 1}, "seconds": 2.0}]


def test_a_listener_that_leaves_between_two_messages_misses_neither(ranks: Ranks) -> None:
    ranks.say(0, type="log", message="one")
    ranks.say(0, type="log", message="two")
    assert next(iter(ranks.worker.messages(1)))["message"] == "one"
    assert next(iter(ranks.worker.messages(1)))["message"] == "two"


def test_the_rank_that_broke_is_blamed_and_not_the_one_it_left_alone(ranks: Ranks) -> None:
    ranks.fail(0, "RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3")
    ranks.fail(1, "the loss is nan", code=5)
    [answer] = ranks.heard()
    assert answer["error"]["message"] == "rank 1 of 2: the loss is nan"
    assert answer["error"]["exit_code"] == 5
    assert answer["error"]["log"].endswith("s.rank1.log")


def test_a_rank_that_vanished_is_blamed_though_another_complains_first(ranks: Ranks) -> None:
    ranks.fail(0, "DistBackendError: NCCL communicator was aborted")
    ranks.ends[1].close()
    [answer] = ranks.heard()
    assert answer["error"]["message"].startswith("rank 1 of 2 closed the channel")
    assert "the log of rank 1" in answer["error"]["message"]


def test_the_agents_word_for_how_a_rank_ended_is_taken(ranks: Ranks) -> None:
    ranks.log.write_text(f"  rank : 1\n  exitcode  : -9 (pid: {2**22 + 3})  (SIGKILL)\n  rank: 0\n  exitcode : -15 (pid: {2**22 + 2})\n")
    ranks.ends[1].close()
    [answer] = ranks.heard()
    assert answer["error"]["message"].startswith("rank 1 of 2 was killed by SIGKILL")


def test_a_rank_that_dies_with_its_part_done_fails_the_step_that_the_first_is_still_at(ranks: Ranks) -> None:
    """As of a step that only rank 0 runs. The agent then asks rank 0 to end, whose word for it would be a stop that nobody asked for."""
    ranks.say(1, type="done", key="k", summary={}, seconds=0.0)
    assert list(ranks.worker.messages(0.3)) == []
    ranks.log.write_text(f"  exitcode  : -9 (pid: {2**22 + 3})\n")
    ranks.ends[1].close()
    ranks.say(0, type="interrupted", message="stopped by a signal to the worker", seconds=1.0)
    [answer] = ranks.heard()
    assert answer["type"] == "failed"
    assert answer["error"]["message"].startswith("rank 1 of 2 was killed by SIGKILL")


def test_the_end_of_the_agent_is_not_blamed_on_a_rank_that_went_with_it(ranks: Ranks) -> None:
    ranks.agent.status = -9
    for end in ranks.ends:
        end.close()
    [answer] = ranks.heard()
    assert answer["error"]["message"].startswith("torchrun's agent was killed by SIGKILL")


def test_what_all_ranks_find_wrong_is_told_as_in_one_process(ranks: Ranks) -> None:
    for number in (1, 0):
        ranks.fail(number, "row 3 has no text", code=5)
    [answer] = ranks.heard()
    assert answer["error"]["message"] == "row 3 has no text"


def test_a_stop_that_one_rank_does_not_hear_of_is_a_stop_all_the_same(ranks: Ranks) -> None:
    ranks.say(0, type="interrupted", message="stopped", seconds=1.0)
    assert ranks.heard()[-1]["type"] == "interrupted"


def test_an_agent_that_ends_before_any_rank_came_is_told_with_its_log(ranks: Ranks) -> None:
    ranks.log.write_text("no module named torch\n")
    ranks.agent.status = 1
    [answer] = ranks.heard()
    assert "torchrun's agent ended with exit code 1" in answer["error"]["message"]
    assert "no module named torch" in answer["error"]["message"]


def test_torchruns_variables_are_read_once_and_taken_away() -> None:
    environ = {
        "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400", "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "x", "HOME": "/h",
    }  # fmt: skip
    assert take_rank(environ) == Rank(rank=1, size=4, local=1, meeting="127.0.0.1:29400")
    assert environ == {"HOME": "/h"}
    assert take_rank(environ) == Rank()


def test_other_ranks_leave_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    io = RankIO()
    io.report({"train/loss": 1.0}, step=1)
    io.sample({"a": 1})
    io.log("for my own log")
    assert io.should_stop() is False and capsys.readouterr().out == "for my own log\n"
    verifiers = NamedVerifiers(("exact",), 1)
    assert verifiers.names() == ("exact",) and verifiers.verify([]) == []
    with pytest.raises(VerifierError, match="rank 1 has no verifiers"):
        verifiers.verify([("exact", Completion("p", 0, (), "4", "stop"), "4")])
    store = RankCheckpoints(FolderCheckpoints(tmp_path, step="s", key="k"), 1)
    assert store.latest() is None
    with pytest.raises(RuntimeError, match="rank 1 makes no checkpoints"):
        store.write(1, lambda folder: None)


@pytest.mark.parametrize(
    ("environ", "config", "threads"),
    [
        ({"OMP_NUM_THREADS": "6"}, {}, "3"),
        ({"OMP_NUM_THREADS": "1"}, {}, "1"),
        ({"OMP_NUM_THREADS": "6"}, {"threads": 4}, "4"),
        ({"STEELYARD_THREADS": "5"}, {"threads": 4}, "5"),
    ],
)
def test_each_rank_has_its_share_of_the_threads(tmp_path: Path, environ: dict[str, str], config: dict[str, int], threads: str) -> None:
    launcher = TorchrunLauncher(TorchrunConfig(processes=2, **config))
    assert launcher._environment(environ, tmp_path)["OMP_NUM_THREADS"] == threads


def test_threads_that_are_no_number_are_no_threads_for_anybody(tmp_path: Path) -> None:
    launcher = TorchrunLauncher(TorchrunConfig(processes=2))
    environ = {"STEELYARD_THREADS": "many", "OMP_NUM_THREADS": "6"}
    assert launcher._environment(environ, tmp_path)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("deep", [False, True])
def test_what_a_killed_conductor_left_behind_is_removed_and_nothing_that_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deep: bool
) -> None:
    place = tmp_path / ("long " * 30 if deep else "temporary files")
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    (used, lock), (left, dead) = _private_folder(), _private_folder()
    os.close(dead)
    for folder in (used, left):
        assert len(str(folder / "ranks")) <= 107 and folder.stat().st_mode & 0o77 == 0
        os.utime(folder / "held", (1, 1))
    fresh, own = _private_folder()
    assert (used.is_dir(), left.exists(), fresh.is_dir()) == (True, False, True)
    for folder, descriptor in ((used, lock), (fresh, own)):
        os.close(descriptor)
        shutil.rmtree(folder)


def test_a_recipe_names_it_like_any_launcher() -> None:
    registry = load_registry()
    spec = registry.get("launchers", "torchrun")
    assert registry.configure(spec, {"processes": 8}) == TorchrunConfig(processes=8)
    assert os.path.basename(registry.load(spec).__name__) == "TorchrunLauncher"
