"""The stage `distill` with answers that the student samples, and with teachers that are kept, in an engine, or behind a server."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

import steelyard_distill.asking
from steelyard.errors import DataError, EngineError, Interrupted, ModelError, RecipeError, UsageError
from steelyard.plugins import load_registry
from steelyard.protocols import Engine, StageContext
from steelyard.recipe import load_recipe
from steelyard.records import Prompt, Sampling, StageResult
from steelyard.rows import write_rows
from steelyard.run.checkpoints import FolderCheckpoints
from steelyard.run.contexts import open_step_verifiers
from steelyard.testing import RecordedIO
from steelyard_distill.comparing import compare
from steelyard_distill.config import DistillConfig
from steelyard_distill.distill import Distill, is_on_policy
from steelyard_distill.prompts import cut_at_last_user
from steelyard_distill.stored import StoredTeacher
from steelyard_distill.teachers import KnownRows
from steelyard_engines.transformers_engine import TransformersEngine
from steelyard_torch.bases import new_model
from steelyard_torch.batching import micro_batches
from steelyard_torch.encoding import encode_prompt
from steelyard_torch.models import load_model, load_tokenizer, weights_sha256

MARKERS = ("<|user|>", "<|assistant|>")
CHARACTERS = "0123456789+= "
VOCABULARY = len(CHARACTERS) + len(MARKERS) + 3


def make(folder: Path, seed: int, *, hidden: int = 32, layers: int = 1, characters: str = CHARACTERS) -> Path:
    architecture = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    new_model(folder, architecture=architecture, characters=characters, extra_tokens=MARKERS, chat_template="compact", seed=seed)
    return folder


def conversations(count: int, seed: int = 0) -> list[list[dict[str, str]]]:
    random = np.random.RandomState(seed)
    pairs = [(int(a), int(b)) for a, b in random.randint(0, 60, size=(count, 2))]
    return [[{"role": "user", "content": f"{a}+{b}="}, {"role": "assistant", "content": str(a + b)}] for a, b in pairs]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    make(folder / "student", 1)
    make(folder / "teacher", 2, hidden=48, layers=2)
    return folder


@pytest.fixture
def world(tmp_path: Path, models: Path) -> Path:
    torch.set_num_threads(1)
    for name in ("student", "teacher"):
        (tmp_path / name).symlink_to(models / name)
    write_rows(tmp_path / "data", [{"messages": messages} for messages in conversations(32)])
    return tmp_path


def context(world: Path, name: str, config: DistillConfig, io: RecordedIO | None, **keys: Any) -> StageContext:
    def engine(model: Path | None = None, **overrides: Any) -> Engine:
        return TransformersEngine(None, model, module=overrides.get("module"))

    given: dict[str, Any] = {
        "config": config,
        "model": world / "student",
        "reference": world / "teacher",
        "data": world / "data",
        "output": world / f"out-{name}",
        "cache": world / "cache",
        "seed": 7,
        "run_seed": 7,
        "checkpoints": FolderCheckpoints(world / f"checkpoints-{name}", "r/distill", "key"),
        "io": io or RecordedIO(),
        "engine": engine,
        "verifiers": open_step_verifiers(None, {}, world / "evidence", ExitStack()),  # type: ignore[arg-type]
    }
    return StageContext(**{**given, **keys})


def distill(world: Path, name: str, *, io: RecordedIO | None = None, keys: dict[str, Any] | None = None, **options: Any) -> StageResult:
    config = DistillConfig(**{"lr": 3e-3, "batch_size": 8, "schedule": "constant", "max_length": 40, **options})
    return Distill(config).run(context(world, name, config, io, **(keys or {})))


def metric(io: RecordedIO, name: str) -> list[float]:
    return [values[name] for _, values in io.metrics if name in values]


ON_POLICY: dict[str, Any] = {"on_policy_share": 1, "max_new_tokens": 6}


def held_out_reverse_kl(world: Path, model: Path) -> float:
    """Mean over the tokens that the model itself samples for prompts it was not trained on, straight from both models' logits."""
    tokenizer = load_tokenizer(model)
    prompts = [tuple(encode_prompt(tokenizer, messages[:1])) for messages in conversations(40, seed=9)]
    engine = TransformersEngine(None, model)
    sampled = engine.generate([Prompt(str(i), token_ids=ids) for i, ids in enumerate(prompts)], Sampling(max_new_tokens=6, n=4, seed=1))
    student, teacher = load_model(model), load_model(world / "teacher")
    total, tokens = 0.0, 0
    for ids, answers in zip(prompts, sampled, strict=True):
        for answer in answers:
            line = torch.tensor([[*ids, *answer.token_ids]])
            with torch.no_grad():
                q, p = (one(line).logits[0, len(ids) - 1 : -1].double().log_softmax(-1) for one in (student, teacher))
            total += float((q.exp() * (q - p)).sum())
            tokens += len(answer.token_ids)
    return total / tokens


# On policy


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"divergence": "reverse_kl"}, 0.6),
        ({"divergence": "jsd", "beta": 0.7, "samples_per_prompt": 2}, 0.6),
        ({"divergence": "sampled_reverse_kl", "teacher": "engine", "samples_per_prompt": 2}, 0.7),
    ],
    ids=lambda o: o["divergence"] if isinstance(o, dict) else "",
)
def test_on_its_own_answers_the_student_comes_nearer_to_the_teacher_on_prompts_it_has_not_seen(
    world: Path, options: dict[str, Any], share: float
) -> None:
    before = held_out_reverse_kl(world, world / "student")
    io = RecordedIO()
    result = distill(world, "on", io=io, epochs=15, **ON_POLICY, **options)
    assert held_out_reverse_kl(world, result.model) < share * before
    assert result.facts["on_policy_steps"] == 60 and result.facts["prompts"] == {"rows": 32, "too_long": 0}
    assert all(1 <= length <= 6 for length in metric(io, "distill/student_length"))
    assert {sample["kind"] for sample in io.samples} == {"rollout"} and len(io.samples) == 6


def test_the_estimate_and_the_whole_reverse_kl_agree_on_average(world: Path) -> None:
    # The same answers, sampled by the same seed: an average over their tokens against the expectation at each of them.
    found = []
    for options in (
        {"divergence": "reverse_kl"},
        {"divergence": "sampled_reverse_kl"},
        {"divergence": "sampled_reverse_kl", "teacher": "engine"},
    ):
        io = RecordedIO()
        distill(world, f"est{len(found)}", io=io, max_steps=1, batch_size=32, samples_per_prompt=16, **ON_POLICY, **options)
        found.append(metric(io, "distill/divergence")[0])
    assert found[1] == pytest.approx(found[2], rel=1e-4)
    assert found[1] == pytest.approx(found[0], rel=0.1)


def test_a_share_of_the_steps_is_on_policy_and_an_interruption_changes_no_bit(world: Path) -> None:
    class StopsAfter(RecordedIO):
        def should_stop(self) -> bool:
            return len(self.metrics) >= 3

    options: dict[str, Any] = {**ON_POLICY, "on_policy_share": 0.5, "epochs": 3, "divergence": "jsd", "ce_coefficient": 0.2}
    io = RecordedIO()
    whole = distill(world, "whole", io=io, **options)
    expected = [float(is_on_policy(7, step, 0.5)) for step in range(12)]
    assert metric(io, "distill/on_policy") == expected and 0 < sum(expected) < 12
    assert whole.facts["on_policy_steps"] == sum(expected)
    # The loss holds the conversations' cross-entropy, and never that of the student's own words.
    for _, values in io.metrics:
        given = 0.0 if values["distill/on_policy"] else 0.2
        assert values["train/loss"] == pytest.approx(values["distill/divergence"] + given * values["distill/cross_entropy"], rel=1e-5)
    with pytest.raises(Interrupted):
        distill(world, "cut", io=StopsAfter(), **options)
    again = RecordedIO()
    resumed = distill(world, "cut", io=again, **options)
    assert [step for step, _ in again.metrics] == list(range(4, 13))
    assert weights_sha256(resumed.model) == weights_sha256(whole.model)


def test_an_adapter_is_taught_on_its_own_answers_too(world: Path) -> None:
    io = RecordedIO()
    adapter = {"rank": 8, "alpha": 16}
    result = distill(world, "lora", io=io, epochs=10, divergence="reverse_kl", adapter=adapter, lr=1e-2, **ON_POLICY)
    assert held_out_reverse_kl(world, result.model) < 0.8 * held_out_reverse_kl(world, world / "student")


def test_the_drawn_share_is_the_one_asked_for() -> None:
    for share in (0.0, 0.3, 1.0):
        found = np.mean([is_on_policy(3, step, share) for step in range(4000)])
        assert found == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("divergence", ["reverse_kl", "sampled_reverse_kl"])
def test_the_cut_into_micro_batches_changes_nothing_on_policy(world: Path, divergence: str) -> None:
    losses = []
    for budget in (16384, 24):
        io = RecordedIO()
        distill(
            world, f"acc{budget}", io=io, max_steps=2, micro_batch_tokens=budget, samples_per_prompt=2, divergence=divergence, **ON_POLICY
        )
        losses.append(metric(io, "train/loss") + metric(io, "train/grad_norm") + metric(io, "distill/student_length"))
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)


def test_prompts_alone_are_enough_and_long_ones_are_counted(world: Path) -> None:
    rows = [{"messages": messages[:1]} for messages in conversations(8)]
    rows.append({"messages": [{"role": "user", "content": "1" * 50}]})
    write_rows(world / "prompts", rows)
    data = {"data": world / "prompts"}
    result = distill(world, "prompts", keys=data, max_steps=1, divergence="reverse_kl", **ON_POLICY)
    assert result.facts["prompts"] == {"rows": 8, "too_long": 1} and "data" not in result.facts
    with pytest.raises(DataError, match=r"its prompt has 52 tokens, and max_length 40 less max_new_tokens 6 leaves 34"):
        distill(world, "refused", keys=data, max_steps=1, on_too_long="refuse", **ON_POLICY)


def test_a_conversation_is_cut_at_its_last_user_turn() -> None:
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant")]
    assert cut_at_last_user({"messages": turns}) == turns[:4]
    assert cut_at_last_user({"messages": turns[:2]}) == turns[:2]
    with pytest.raises(DataError, match="row 'r1' has no user turn"):
        cut_at_last_user({"id": "r1", "messages": turns[:1]})
    with pytest.raises(DataError, match="has no 'messages'; it has text"):
        cut_at_last_user({"text": "1"})


def test_an_engine_that_does_not_score_tokens_is_refused(world: Path) -> None:
    class Mute:
        def close(self) -> None: ...

    with pytest.raises(EngineError, match="'Mute' does not score token ids"):
        distill(
            world, "mute", keys={"engine": lambda model=None, **_: Mute()}, teacher="engine", divergence="sampled_reverse_kl", **ON_POLICY
        )


# Kept from before


KEPT: dict[str, Any] = {"stored": True, "top_k": VOCABULARY}


@pytest.mark.parametrize(
    "options",
    [
        {"divergence": "forward_kl", "temperature": 1.5},
        {"divergence": "reverse_kl"},
        {"divergence": "jsd", "beta": 0.3, "tail": "renormalise"},
    ],
    ids=lambda o: o["divergence"],
)
def test_what_was_kept_of_the_whole_vocabulary_is_the_live_teacher(world: Path, options: dict[str, Any]) -> None:
    live, kept = RecordedIO(), RecordedIO()
    whole = {name: value for name, value in options.items() if name != "tail"}
    first = distill(world, "live", io=live, epochs=2, ce_coefficient=0.1, **whole)
    second = distill(world, "kept", io=kept, epochs=2, ce_coefficient=0.1, **options, **KEPT)
    for name in ("train/loss", "train/grad_norm", "distill/divergence", "distill/agreement"):
        assert metric(kept, name) == pytest.approx(metric(live, name), rel=1e-4), name
    if "temperature" not in options:
        assert metric(kept, "distill/teacher_cross_entropy") == pytest.approx(metric(live, "distill/teacher_cross_entropy"), rel=1e-4)
    one, other = load_model(first.model).state_dict(), load_model(second.model).state_dict()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


def test_a_rank_without_rows_of_its_own_is_told_of_no_token(world: Path) -> None:
    config = DistillConfig(lr=1e-3, stored=True, top_k=3)
    trainee = steelyard_distill.distill.Trainee(context(world, "idle", config, None), config)
    rows = trainee.conversations(max_length=40, on_too_long="truncate", trained_turns="all").rows[:1]
    said = steelyard_distill.asking.score_top_k(trainee, load_model(world / "teacher"), rows, config, VOCABULARY)
    for packed in (True, False):
        idle = next(iter(micro_batches(rows, token_budget=100, pad_id=0, packed=packed, rank=1, size=2)))
        known = KnownRows(said).signal(idle)
        found = compare(trainee.model, idle, known, config, weights=torch.zeros(0), ce_coefficient=0.0)
        found.loss.backward()
        assert found.loss.item() == 0 and found.divergence.shape == (0,)


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "ignore"])
def test_a_few_tokens_of_the_teacher_teach_too(world: Path, tail: str) -> None:
    io = RecordedIO()
    result = distill(world, "few", io=io, epochs=15, stored=True, top_k=4, tail=tail)
    divergence = metric(io, "distill/divergence")
    # The bucket counts all of it, the others only what is within the tokens that are known.
    assert divergence[-1] < 0.5 * divergence[0]
    assert metric(io, "distill/agreement")[-1] > metric(io, "distill/agreement")[0]
    assert result.facts["teacher"]["top_k"] == 4


def test_the_teacher_is_asked_once_for_its_weights_the_data_and_the_dials(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    load = steelyard_distill.asking.load_teacher

    def counted(trainee: Any, folder: Path) -> Any:
        asked.append(folder)
        return load(trainee, folder)

    monkeypatch.setattr(steelyard_distill.asking, "load_teacher", counted)
    options: dict[str, Any] = {"max_steps": 1, "stored": True, "top_k": 3}
    keys = [
        distill(world, "a", **options).facts["teacher"]["logprobs"],
        distill(world, "b", lr=1e-4, **options).facts["teacher"]["logprobs"],
    ]
    assert len(asked) == 1 and keys[0] == keys[1]
    make(world / "other", 3, hidden=48, layers=2)
    changes: list[dict[str, Any]] = [
        {"top_k": 4},
        {"temperature": 2.0},
        {"max_length": 12},
        {"keys": {"reference": world / "other"}},
        {"keys": {"reference": None, "inputs": {"model:teacher": world / "other"}}},
    ]
    for number, change in enumerate(changes):
        keys.append(distill(world, f"c{number}", **{**options, **change}).facts["teacher"]["logprobs"])
    assert len(asked) == 5 and len(set(keys)) == 5 and keys[-1] == keys[-2]


def widened(folder: Path, target: Path) -> Path:
    """The model with 24 more embeddings than its tokenizer has tokens, which it deems likely."""
    shutil.copytree(folder, target)
    model: Any = load_model(folder)
    torch.manual_seed(0)
    model.resize_token_embeddings(VOCABULARY + 24, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[VOCABULARY:].normal_(std=0.3)
    model.save_pretrained(target)
    return target


@pytest.mark.parametrize("wide", ["student", "teacher"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_what_was_kept_of_a_narrower_or_wider_teacher_is_the_live_one(world: Path, wide: str, divergence: str) -> None:
    live, kept = RecordedIO(), RecordedIO()
    keys = {"model" if wide == "student" else "reference": widened(world / wide, world / "wide")}
    distill(world, "live", io=live, max_steps=3, divergence=divergence, keys=keys)
    distill(world, "kept", io=kept, max_steps=3, divergence=divergence, keys=keys, **KEPT)
    for name in ("train/loss", "train/grad_norm"):
        assert metric(kept, name) == pytest.approx(metric(live, name), rel=1e-4), name


def test_more_tokens_than_a_narrower_teacher_has_are_refused(world: Path) -> None:
    keys = {"model": widened(world / "student", world / "wide")}
    with pytest.raises(UsageError, match=f"top_k {VOCABULARY + 1} is more than the vocabulary's {VOCABULARY} tokens"):
        distill(world, "refused", keys=keys, stored=True, top_k=VOCABULARY + 1)


@pytest.mark.parametrize("teacher", ["model", "engine"])
def test_a_sampled_token_that_the_teacher_does_not_know_is_named(world: Path, teacher: str) -> None:
    keys = {"model": widened(world / "student", world / "wide")}
    with pytest.raises(ModelError, match=rf"the student sampled token \d+, and the teacher knows {VOCABULARY} tokens"):
        distill(world, "foreign", keys=keys, divergence="sampled_reverse_kl", teacher=teacher, **ON_POLICY)


def test_a_teacher_that_computes_no_numbers_is_named_and_nothing_is_kept(world: Path) -> None:
    broken = world / "broken"
    shutil.copytree(world / "teacher", broken)
    weights = load_file(broken / "model.safetensors")
    # Finite weights whose products are not.
    large = {name: torch.full_like(tensor, 3e38) if "down_proj" in name else tensor for name, tensor in weights.items()}
    save_file(large, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="the teacher gives log-probabilities that are not finite"):
        distill(world, "nan", keys={"reference": broken}, stored=True, top_k=3)
    assert not list(world.glob("cache/teacher-logprobs/*/*.safetensors"))


def stored(world: Path, io: RecordedIO, asked: list[int]) -> StoredTeacher:
    config = DistillConfig(lr=1e-3, stored=True, top_k=3)
    trainee = steelyard_distill.distill.Trainee(context(world, "parts", config, io), config)
    rows = trainee.conversations(max_length=40, on_too_long="truncate", trained_turns="all").rows
    model = load_model(world / "teacher")

    def score(some: Any) -> Any:
        asked.append(len(some))
        return steelyard_distill.asking.score_top_k(trainee, model, some, config, VOCABULARY)

    made = StoredTeacher(trainee, rows, top_k=3, facts={"of": "test"}, score=score, part_values=60)
    made.prepare([rows[20], rows[3]], [20, 3])
    return made


def test_scoring_goes_on_where_it_was_stopped_and_mends_what_is_damaged(world: Path) -> None:
    class Stops(RecordedIO):
        def should_stop(self) -> bool:
            return len(asked) >= 2

    asked: list[int] = []
    with pytest.raises(Interrupted, match="while asking the teacher"):
        stored(world, Stops(), asked)
    first = stored(world, RecordedIO(), asked)
    assert sum(asked) == 32 and len(asked) > 4
    parts = sorted((world / "cache" / "teacher-logprobs" / first.key).iterdir())
    assert len(parts) == len(asked)
    content = parts[1].read_bytes()
    parts[1].write_bytes(content[:-4] + b"\xff\xff\xff\xff")
    again = stored(world, RecordedIO(), asked)
    assert len(asked) == len(parts) + 1 and parts[1].read_bytes() == content and 0 < again.scored_tokens < first.scored_tokens


def test_more_tokens_than_the_vocabulary_has_are_refused(world: Path) -> None:
    with pytest.raises(UsageError, match=f"top_k 500 is more than the vocabulary's {VOCABULARY} tokens"):
        distill(world, "refused", stored=True, top_k=500)


# Behind a server


class TeacherServer(ThreadingHTTPServer):
    """Answers as vLLM's completions do to token ids with `prompt_logprobs`, from a model of its own."""

    request_queue_size = 64

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer = load_model(folder), load_tokenizer(folder)
        self.most, self.requests = 100, 0
        # What may be wrong with it.
        self.shift, self.foreign_after, self.pause = 0.0, 1 << 30, 0.0


class Handler(BaseHTTPRequestHandler):
    server: TeacherServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests += 1
        time.sleep(self.server.pause)
        k = body["prompt_logprobs"]
        if k > self.server.most:
            self._send(400, {"error": {"message": f"Requested prompt logprobs of {k}, which is greater than max allowed"}})
            return
        assert self.path == "/v1/completions" and body["model"] == "big" and body["max_tokens"] == 1
        ids = body["prompt"]
        with torch.no_grad():
            logprobs = self.server.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        places: list[Any] = [None]
        for at, token in enumerate(ids[1:]):
            order = logprobs[at].argsort(descending=True).tolist()
            # The token that stands there, and beside it the most probable ones.
            wanted = [token, *(one for one in order[:k] if one != token)]
            places.append({str(one): self._said(logprobs[at], order, one) for one in wanted})
            if self.server.requests > self.server.foreign_after:
                places[-1]["999"] = {"logprob": -0.01, "rank": 0, "decoded_token": None}
        self._send(200, {"choices": [{"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": places}]})

    def _said(self, logprobs: torch.Tensor, order: list[int], token: int) -> dict[str, Any]:
        text = self.server.tokenizer.decode([token])
        return {"logprob": float(logprobs[token]) + self.server.shift, "rank": order.index(token) + 1, "decoded_token": text}

    def _send(self, status: int, reply: dict[str, Any]) -> None:
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(BrokenPipeError):  # a client that gave up
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(models: Path) -> Iterator[TeacherServer]:
    running = TeacherServer(models / "teacher")
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def at(server: TeacherServer) -> dict[str, Any]:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return {"teacher": "server", "server": {"url": url, "model": "big", "retries": 0}}


@pytest.mark.parametrize(
    "options",
    [
        {"divergence": "forward_kl", "top_k": VOCABULARY, "ce_coefficient": 0.1},
        {"divergence": "reverse_kl", "top_k": VOCABULARY, **ON_POLICY},
        {"divergence": "sampled_reverse_kl", **ON_POLICY},
    ],
    ids=lambda o: f"{o['divergence']}{'-on-policy' if 'on_policy_share' in o else ''}",
)
def test_a_served_teacher_teaches_what_it_would_in_memory(world: Path, server: TeacherServer, options: dict[str, Any]) -> None:
    near, far = RecordedIO(), RecordedIO()
    live = {name: value for name, value in options.items() if name != "top_k"}
    distill(world, "near", io=near, max_steps=4, **live)
    result = distill(world, "far", io=far, max_steps=4, keys={"reference": None}, **at(server), **options)
    for name in ("train/loss", "train/grad_norm", "distill/divergence", "distill/teacher_cross_entropy"):
        assert metric(far, name) == pytest.approx(metric(near, name), rel=2e-4), name
    assert server.requests == 32
    assert result.facts["teacher"] == {"server": at(server)["server"]["url"], "model": "big"}


def test_a_served_teachers_few_tokens_and_their_rest_are_what_the_model_says(world: Path, server: TeacherServer) -> None:
    near, far = RecordedIO(), RecordedIO()
    distill(world, "near", io=near, epochs=1, stored=True, top_k=3)
    distill(world, "far", io=far, epochs=2, stored=True, top_k=3, **at(server))
    assert metric(far, "train/loss")[:4] == pytest.approx(metric(near, "train/loss"), rel=1e-4)
    assert server.requests == 32  # asked once, for two epochs


def test_a_server_of_another_vocabulary_or_with_fewer_tokens_than_asked_for_is_refused(world: Path, server: TeacherServer) -> None:
    server.most = 2
    with pytest.raises(EngineError, match=r"greater than max allowed.*--max-logprobs. of 3 at least"):
        distill(world, "few", top_k=3, **at(server))
    server.most = 100
    server.tokenizer = load_tokenizer(make(world / "other", 3, characters="9876543210= +"))
    with pytest.raises(ModelError, match=r"another vocabulary than the student: token .* serve a teacher with the student's tokenizer"):
        distill(world, "other", top_k=3, **at(server))


def test_a_server_whose_answers_are_no_log_probabilities_is_refused(world: Path, server: TeacherServer) -> None:
    server.shift = 5.0
    with pytest.raises(EngineError, match=r"no completion with prompt_logprobs.*--max-logprobs"):
        distill(world, "shifted", top_k=3, **at(server))


def test_a_token_beyond_the_students_is_found_whenever_it_comes(world: Path, server: TeacherServer) -> None:
    server.foreign_after = 8  # the first step's requests
    with pytest.raises(ModelError, match=f"knows a token 999, the student {VOCABULARY} tokens"):
        distill(world, "later", top_k=3, **at(server))


def test_a_server_that_is_too_slow_is_not_told_to_be_another_one(world: Path, server: TeacherServer) -> None:
    server.pause = 0.5
    options = at(server)
    options["server"] |= {"timeout_s": 0.1}
    with pytest.raises(EngineError, match=r"no answer from .* within 0.1 s; see that it runs, or raise server.timeout_s"):
        distill(world, "slow", top_k=3, **options)


# Dials that do nothing


SERVER = {"url": "http://127.0.0.1:1/v1", "model": "m"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 5}, "max_new_tokens belongs to sampling"),
        ({"temperature": math.inf}, "finite"),
        ({"ce_coefficient": math.inf}, "finite"),
        ({"samples_per_prompt": 2}, "samples_per_prompt belongs to sampling"),
        ({"sampling_temperature": 0.5}, "sampling_temperature belongs to sampling"),
        ({"on_policy_share": 0.5}, "needs max_new_tokens"),
        ({**ON_POLICY, "max_length": 6}, "no room for a prompt"),
        ({**ON_POLICY, "ce_coefficient": 0.1}, "ce_coefficient is for given conversations"),
        ({**ON_POLICY, "trained_turns": "last"}, "trained_turns is for given conversations"),
        ({"divergence": "sampled_reverse_kl"}, "set on_policy_share to 1"),
        ({"divergence": "sampled_reverse_kl", **ON_POLICY, "temperature": 2}, "to be the same"),
        ({"teacher": "engine", **ON_POLICY}, "take 'sampled_reverse_kl'"),
        ({"stored": True}, "needs top_k"),
        ({"stored": True, "top_k": 4, **ON_POLICY}, "not known beforehand"),
        ({"top_k": 4}, "top_k belongs to"),
        ({"tail": "bucket"}, "tail belongs to top_k"),
        ({"teacher": "server"}, "belong together"),
        ({"server": SERVER}, "belong together"),
        ({"teacher": "server", "server": SERVER}, "needs top_k"),
        ({"teacher": "server", "server": SERVER, "top_k": 5, "temperature": 2}, "answers at temperature 1"),
    ],
)
def test_dials_that_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DistillConfig(**{"lr": 1e-3, **options})


def test_what_a_recipe_says_can_be_written_out_and_read_again() -> None:
    for options in ({}, ON_POLICY, {"stored": True, "top_k": 2}, {"teacher": "server", "server": SERVER, "top_k": 5}):
        config = DistillConfig(**{"lr": 1e-3, **options})
        assert DistillConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


RECIPE = """\
steelyard: 1
name: taught
base: {new: {architecture: {model_type: llama}, tokenizer: {characters: ab}}}
suites: {}
data:
  chats: {kind: mix, sources: [{kind: jsonl, path: rows.jsonl}]}
rounds:
  - name: first
    stages:
      - {kind: distill, data: chats, lr: 1.0e-3, MORE}
"""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("models: {teacher: TEACHER}", None),
        ("teacher: server, top_k: 5, server: {url: 'http://127.0.0.1:1/v1', model: m}", None),
        ("lr_floor: 0.1", "needs a reference other than the model it starts from"),
        ("models: {teacher: TEACHER}, reference: base", "either 'reference' or 'models'"),
        ("models: {judge: TEACHER}", "judge"),
        ("models: {teacher: TEACHER}, teacher: server, top_k: 5, server: {url: 'http://127.0.0.1:1/v1', model: m}", "is on a server"),
    ],
)
def test_a_recipe_names_its_teacher_once(tmp_path: Path, models: Path, more: str, message: str | None) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": conversations(1)[0]}) + "\n")
    path = tmp_path / "taught.yaml"
    path.write_text(RECIPE.replace("MORE", more.replace("TEACHER", str(models / "teacher"))))
    if message is None:
        load_recipe(path, [], load_registry())
        return
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, [], load_registry())
