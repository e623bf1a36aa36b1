"""Two ranks do what one process does: the same losses, the same weights, whatever is sharded and however a step is cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore
from transformers import AutoModelForSequenceClassification

from steelyard.errors import Interrupted, UsageError
from steelyard.specs import LazyRef
from steelyard_torch.config import OptimiserOptions
from steelyard_torch.models import load_tokenizer

SERVE = Path(__file__).parents[1] / "fixtures" / "ranks" / "serve.py"
STAGES = {
    "sft": ("steelyard_sft.supervised:Sft", "steelyard_sft.config:SftConfig"),
    "dpo": ("steelyard_preference.dpo:Dpo", "steelyard_preference.config:DpoConfig"),
    "kto": ("steelyard_preference.kto:Kto", "steelyard_preference.config:KtoConfig"),
    "reward_model": ("steelyard_preference.reward_model:RewardModel", "steelyard_preference.config:RewardModelConfig"),
    "distill": ("steelyard_distill.distill:Distill", "steelyard_distill.config:DistillConfig"),
    "grpo": ("steelyard_rl.policy:PolicyOptimisation", "steelyard_rl.config:GrpoConfig"),
    "rl": ("steelyard_rl.policy:PolicyOptimisation", "steelyard_rl.config:RlConfig"),
}
SFT = {"lr": 3e-3, "batch_size": 8, "max_length": 64, "max_steps": 6, "weight_decay": 0.1}


class Ranks:
    """Two processes that wait for stages to run; kept for all tests of this file, as importing torch takes the longest."""

    def __init__(self) -> None:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        self._processes = [
            subprocess.Popen(
                [sys.executable, str(SERVE), str(rank), "2", str(self._store.port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            for rank in range(2)
        ]

    def run(self, **job: Any) -> list[dict[str, Any]]:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(job, default=str) + "\n")
            process.stdin.flush()
        return [json.loads(process.stdout.readline()) for process in self._processes if process.stdout is not None]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.close()


class Pair:
    """A stage in one process and on two ranks, each in a folder of its own."""

    def __init__(self, bench: Any, ranks: Ranks):
        self.bench, self._ranks = bench, ranks

    def one(self, stage: str, data: Path, *, name: str = "one", stop: int | None = None, **keys: Any) -> dict[str, Any]:
        options = LazyRef(STAGES[stage][1]).load()(**keys.pop("options"))
        context = self.bench.context(options, model=self.bench.model(), data=data, name=name, io=self.bench.io(stop), **keys)
        try:
            result = LazyRef(STAGES[stage][0]).load()(options).run(context)
        except Interrupted as error:
            return {"error": type(error).__name__, "metrics": context.io.metrics}
        return {"metrics": context.io.metrics, "facts": dict(result.facts), "model": str(result.model)}

    def two(self, stage: str, data: Path, *, name: str = "two", stop: int | None = None, **keys: Any) -> dict[str, Any]:
        folder = self.bench.root / name
        folder.mkdir(exist_ok=True)
        kind, config = STAGES[stage]
        keys = {"model": self.bench.model(), **keys}
        answers = self._ranks.run(stage=kind, config=config, data=data, folder=folder, stop_after=stop, **keys)
        assert [answer.get("error") for answer in answers] == [answers[0].get("error")] * 2, answers
        return answers[0]

    def weights(self, result: dict[str, Any]) -> dict[str, torch.Tensor]:
        return self.bench.weights(Path(result["model"]))


@pytest.fixture
def pair(bench: Any, ranks: Ranks) -> Pair:
    return Pair(bench, ranks)


def chats(bench: Any, count: int = 25) -> Path:
    words = ["abc", "de", "fghi", "jklmn", "op"]
    rows = [{"id": f"c{i}", "messages": bench.chat(words[i % 5] * (1 + i % 3), words[i % 5][::-1])} for i in range(count)]
    return bench.data(rows, "chats")


def series(result: dict[str, Any], name: str) -> list[float]:
    return [metrics[name] for _, metrics in result["metrics"] if name in metrics]


def assert_same(bench: Any, one: dict[str, Any], two: dict[str, Any], *, weights: float = 1e-5) -> None:
    """The loss curve to 1e-5, and everything else that is reported of a step, times apart."""
    assert "error" not in one and "error" not in two, (one, two)
    assert series(two, "train/loss") == pytest.approx(series(one, "train/loss"), rel=1e-5, abs=1e-5)
    assert series(two, "train/grad_norm") == pytest.approx(series(one, "train/grad_norm"), rel=1e-4)
    for (_, mine), (_, theirs) in zip(one["metrics"], two["metrics"], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if not name.startswith(("perf/", "verify/")):
                assert theirs[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-5), name
    mine, theirs = bench.weights(Path(one["model"])), bench.weights(Path(two["model"]))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, atol=weights, rtol=0)


@pytest.mark.parametrize("micro_batch_tokens", [10_000, 40])
@pytest.mark.parametrize("shard", [True, False])
def test_two_ranks_train_as_one_process_does(pair: Pair, shard: bool, micro_batch_tokens: int) -> None:
    data, options = chats(pair.bench), {**SFT, "micro_batch_tokens": micro_batch_tokens}
    one = pair.one("sft", data, options=options)
    two = pair.two("sft", data, options={**options, "sharding": {"shard": shard}})
    assert_same(pair.bench, one, two)
    assert {**one["facts"], **two["facts"]} == one["facts"]


MEMORY: dict[str, dict[str, Any]] = {
    "recomputing": {"gradient_checkpointing": True},
    "offloading": {"sharding": {"cpu_offload": True}},
    "keeping gathered weights": {"sharding": {"reshard_after_forward": False}},
    "freezing": {"freeze": ["model.embed_tokens.*"]},
    "adapters": {"adapter": {"rank": 4}},
}


@pytest.mark.parametrize("dials", MEMORY.values(), ids=MEMORY.keys())
def test_every_way_to_save_memory_trains_the_same(pair: Pair, dials: dict[str, Any]) -> None:
    data, options = chats(pair.bench), {**SFT, "max_steps": 3}
    one = pair.one("sft", data, options={**options, **{name: value for name, value in dials.items() if name != "sharding"}})
    assert_same(pair.bench, one, pair.two("sft", data, options={**options, **dials}))


def test_bfloat16_is_the_same_but_for_its_rounding(pair: Pair) -> None:
    data, options = chats(pair.bench), {**SFT, "precision": "bf16"}
    one, two = pair.one("sft", data, options=options), pair.two("sft", data, options=options)
    exact = pair.one("sft", data, options=SFT, name="exact")
    rounding = max(abs(a - b) for a, b in zip(series(one, "train/loss"), series(exact, "train/loss"), strict=True))
    assert 0 < rounding < 0.05
    assert series(two, "train/loss") == pytest.approx(series(one, "train/loss"), abs=4 * rounding)
    assert {tensor.dtype for tensor in pair.weights(two).values()} == {torch.float32}


def test_a_rank_without_rows_takes_part_all_the_same(pair: Pair) -> None:
    data, options = chats(pair.bench, 3), {**SFT, "batch_size": 1, "max_steps": 3}
    assert_same(pair.bench, pair.one("sft", data, options=options), pair.two("sft", data, options=options))


def test_untied_heads_and_uneven_cuts_are_put_together_again(pair: Pair) -> None:
    """A vocabulary and a width that two ranks cannot halve, and a head of its own."""
    model = pair.bench.model(tie_word_embeddings=False, intermediate_size=33)
    data, options = chats(pair.bench), {**SFT, "max_steps": 2}
    config = LazyRef(STAGES["sft"][1]).load()(**options)
    context = pair.bench.context(config, model=model, data=data, name="one")
    result = LazyRef(STAGES["sft"][0]).load()(config).run(context)
    two = pair.two("sft", data, options=options, model=model)
    one = {"metrics": context.io.metrics, "model": str(result.model)}
    assert_same(pair.bench, one, two)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert Path(two["model"], name).read_bytes() == Path(one["model"], name).read_bytes(), name


@pytest.mark.parametrize("shard", [True, False])
@pytest.mark.parametrize(("first", "then"), [("two", "two"), ("two", "one"), ("one", "two")])
def test_a_checkpoint_goes_on_in_another_number_of_ranks(pair: Pair, first: str, then: str, shard: bool) -> None:
    data, options = chats(pair.bench), {**SFT, "sharding": {"shard": shard}}
    whole = getattr(pair, then)("sft", data, options=options, name="whole")
    stopped = getattr(pair, first)("sft", data, options=options, name="stopped", stop=3)
    assert stopped["error"] == "Interrupted"
    resumed = getattr(pair, then)("sft", data, options=options, name="stopped")
    assert [step for step, _ in resumed["metrics"]] == [4, 5, 6]
    assert series(resumed, "train/loss") == pytest.approx(series(whole, "train/loss")[3:], rel=1e-5)
    for name, tensor in pair.weights(whole).items():
        torch.testing.assert_close(pair.weights(resumed)[name], tensor, atol=1e-5, rtol=0)
        if first == then:
            assert torch.equal(pair.weights(resumed)[name], tensor), name
    kept = {path.suffix for path in (pair.bench.root / "stopped/checkpoints").rglob("*") if path.is_file()}
    assert kept == {".json", ".safetensors"}, "nothing is pickled"


def test_a_sharded_checkpoint_of_another_model_is_refused_by_name(pair: Pair) -> None:
    data = chats(pair.bench)
    assert pair.two("sft", data, options=SFT, name="stopped", stop=2)["error"] == "Interrupted"
    other = pair.two("sft", data, options=SFT, name="stopped", model=pair.bench.model(hidden_size=48))
    assert other["error"] == "ArtifactError"
    assert "of another model: tensor" in other["message"]


def test_a_torn_part_is_passed_over_for_the_checkpoint_before(pair: Pair) -> None:
    data, options = chats(pair.bench), {**SFT, "checkpoint_every": 1}
    whole = pair.two("sft", data, options=options, name="whole")
    assert pair.two("sft", data, options=options, name="torn", stop=4)["error"] == "Interrupted"
    part = sorted((pair.bench.root / "torn/checkpoints").glob("step-*/parts/*.safetensors"))[-1]
    part.write_bytes(part.read_bytes()[:-8])
    resumed = pair.two("sft", data, options=options, name="torn")
    assert [step for step, _ in resumed["metrics"]] == [4, 5, 6]
    assert all(torch.equal(tensor, pair.weights(whole)[name]) for name, tensor in pair.weights(resumed).items())


def test_two_runs_on_two_ranks_are_equal_bit_for_bit(pair: Pair) -> None:
    data, options = chats(pair.bench), {**SFT, "deterministic": True}
    one, again = (pair.two("sft", data, options=options, name=name) for name in ("first", "again"))
    assert series(one, "train/loss") == series(again, "train/loss")
    assert all(torch.equal(tensor, pair.weights(again)[name]) for name, tensor in pair.weights(one).items())


def test_a_step_that_is_not_finite_is_skipped_by_all_ranks(pair: Pair) -> None:
    """The learning rate makes the weights overflow after the first steps."""
    data, options = chats(pair.bench), {**SFT, "lr": 1e30, "weight_decay": 0.0, "max_grad_norm": None, "max_non_finite": 2}
    answer = pair.two("sft", data, options=options)
    assert answer["error"] == "TrainingError"
    assert "2 steps in a row" in answer["message"]
    again = pair.two("sft", data, options=SFT, name="after")
    assert "error" not in again, "the ranks are still in step with each other"


PREFERENCE = {"lr": 2e-3, "batch_size": 6, "max_length": 64, "max_steps": 4}


def preferences(bench: Any, count: int = 18) -> Path:
    words = ["ab", "cde", "f", "ghij"]

    def row(i: int) -> dict[str, Any]:
        word = words[i % 4] * (1 + i % 3)
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (word[::-1], f"ans: {word}"))
        return {"id": f"p{i}", "prompt": bench.chat(word, "")[:1], "chosen": chosen, "rejected": rejected}

    return bench.data((row(i) for i in range(count)), "preferences")


def in_both(pair: Pair, stage: str, data: Path, options: dict[str, Any], *, shard: bool = True, **keys: Any) -> None:
    """The stage in one process and on two ranks, with the same folders given to both."""
    mine = {**keys, "reference": keys.get("reference")}
    one = pair.one(stage, data, options=options, **mine)
    two = pair.two(stage, data, options={**options, "sharding": {"shard": shard}}, **mine)
    assert_same(pair.bench, one, two)


@pytest.mark.parametrize("micro_batch_tokens", [10_000, 60])
@pytest.mark.parametrize("shard", [True, False])
def test_pairs_are_preferred_alike_on_two_ranks(pair: Pair, shard: bool, micro_batch_tokens: int) -> None:
    options = {**PREFERENCE, "nll_coefficient": 0.1, "micro_batch_tokens": micro_batch_tokens}
    in_both(pair, "dpo", preferences(pair.bench), options, shard=shard, reference=pair.bench.model(1))


@pytest.mark.parametrize("stage", ["kto", "reward_model"])
def test_other_preference_stages_learn_alike_on_two_ranks(pair: Pair, stage: str) -> None:
    reference = {"reference": pair.bench.model(1)} if stage == "kto" else {}
    in_both(pair, stage, preferences(pair.bench), {**PREFERENCE, "micro_batch_tokens": 100}, **reference)


@pytest.mark.parametrize(
    "options",
    [
        {"ce_coefficient": 0.1},
        {"stored": True, "top_k": 5, "divergence": "jsd"},
        {"on_policy_share": 1.0, "max_new_tokens": 6, "divergence": "reverse_kl"},
        {"on_policy_share": 1.0, "max_new_tokens": 6, "divergence": "sampled_reverse_kl", "teacher": "engine"},
    ],
    ids=["live", "stored", "on policy", "engine"],
)
def test_a_student_learns_alike_on_two_ranks(pair: Pair, options: dict[str, Any]) -> None:
    common = {"lr": 1e-3, "batch_size": 5, "max_steps": 3, "max_length": 64}
    in_both(pair, "distill", chats(pair.bench), {**common, **options}, reference=pair.bench.model(1))


LETTERS = "abcdef"


def questions(bench: Any) -> Path:
    """What a random model says is right when some characters are not in it, so that groups have both kinds."""
    rows = [
        {"id": f"q{i}", "messages": [{"role": "user", "content": LETTERS[i % 6]}], "verifier": "short", "reference": "[a-m0-4 ]*"}
        for i in range(12)
    ]
    return bench.data(rows, "questions")


def learn_from_answers(pair: Pair, stage: str, options: dict[str, Any], *, shard: bool = True, **keys: Any) -> dict[str, Any]:
    """Both, with verifiers; what they sample must be the same to the token, or the curves could not be."""
    entries = {"short": ("regex", {"pattern_from": "reference", "mode": "fullmatch"}, None)}
    sizes = {"lr": 1e-3, "steps": 3, "prompts_per_step": 4, "samples_per_prompt": 6, "max_new_tokens": 6, "truncated": "keep"}
    options, data = {**sizes, "drop_without_signal": False, **options}, questions(pair.bench)
    one = pair.one(stage, data, options=options, verifiers=pair.bench.verifiers(entries), reference=pair.bench.model(), **keys)
    two = pair.two(stage, data, options={**options, "sharding": {"shard": shard}}, verifiers=entries, reference=pair.bench.model(), **keys)
    assert_same(pair.bench, one, two)
    return two


@pytest.mark.parametrize("micro_batch_tokens", [10_000, 60])
@pytest.mark.parametrize("shard", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_answers_are_learnt_from_alike_on_two_ranks(pair: Pair, shard: bool, micro_batch_tokens: int) -> None:
    """Several optimiser steps a rollout step and a divergence in the loss: old and reference log-probabilities are scored as well."""
    options = {"minibatches": 2, "kl_coefficient": 0.05, "micro_batch_tokens": micro_batch_tokens}
    learn_from_answers(pair, "grpo", options, shard=shard)


def critic(bench: Any) -> Path:
    """A reward model, as a stage of that kind leaves it."""
    folder = Path(bench.root / "critic")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(bench.model(), num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(folder)
    load_tokenizer(bench.model()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("shard", [True, False])
def test_a_value_model_and_a_reference_that_moves_learn_alike_on_two_ranks(pair: Pair, shard: bool) -> None:
    dials = {"preset": "ppo", "epochs": 2, "minibatches": 2, "kl_coefficient": 0.1, "reference_refresh": 4, "reference_mix": 0.5}
    options = {**dials, "entropy_coefficient": 0.01, "reward_scale": 1.0}
    learn_from_answers(pair, "rl", options, shard=shard, inputs={"model:value": critic(pair.bench)})


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "rloo", "kl_coefficient": 0.1, "epochs": 3},
        # Each rollout step begins with fresh moments, whose first step would be the bare sign of a gradient.
        {"preset": "mirror_descent", "tau": 0.3, "minibatches": 2, "adam_eps": 1e-2},
    ],
)
def test_other_objectives_learn_alike_on_two_ranks(pair: Pair, options: dict[str, Any]) -> None:
    learn_from_answers(pair, "rl", options)


@pytest.mark.slow
@pytest.mark.parametrize("then", ["two", "one"])
def test_models_beside_the_policy_go_on_from_sharded_checkpoints_too(pair: Pair, then: str) -> None:
    """The value model with its optimiser, and a reference that has moved."""
    entries = {"short": ("regex", {"pattern_from": "reference", "mode": "fullmatch"}, None)}
    options = {
        "preset": "ppo", "kl_coefficient": 0.1, "reference_refresh": 2, "reference_mix": 0.5, "reward_scale": 1.0, "lr": 1e-3, "steps": 5,
        "prompts_per_step": 3, "samples_per_prompt": 4, "max_new_tokens": 6, "truncated": "keep", "drop_without_signal": False,
    }  # fmt: skip
    bench, data = pair.bench, questions(pair.bench)
    keys = {"reference": bench.model(), "inputs": {"model:value": critic(bench)}}
    whole = pair.two("rl", data, options=options, verifiers=entries, name="whole", **keys)
    assert pair.two("rl", data, options=options, verifiers=entries, name="stopped", stop=3, **keys)["error"] == "Interrupted"
    [parts] = {path.parent.name for path in (bench.root / "stopped/checkpoints").glob("step-*/value.parts/*.safetensors")}
    assert parts == "value.parts"
    if then == "two":
        resumed = pair.two("rl", data, options=options, verifiers=entries, name="stopped", **keys)
        assert all(torch.equal(tensor, pair.weights(whole)[name]) for name, tensor in pair.weights(resumed).items())
    else:
        resumed = pair.one("rl", data, options=options, verifiers=bench.verifiers(entries), name="stopped", **keys)
    left = len(resumed["metrics"])
    assert 0 < left < len(whole["metrics"])
    for name, relative in (("rl/value_loss", 1e-3), ("train/loss", 1e-4)):
        assert series(resumed, name) == pytest.approx(series(whole, name)[-left:], rel=relative, abs=1e-5)


def test_dials_that_do_nothing_are_refused() -> None:
    for sharding in ({"shard": False, "cpu_offload": True}, {"shard": False, "reshard_after_forward": False}, {"context": 2}):
        with pytest.raises(ValueError, match=r"shard: true|context 2 is not built"):
            OptimiserOptions(lr=1e-3, sharding=sharding)  # type: ignore[arg-type]


def test_packed_4_bit_weights_are_not_sharded(pair: Pair) -> None:
    answer = pair.two("sft", chats(pair.bench), options={**SFT, "adapter": {"quantise": "nf4"}})
    assert answer["error"] == UsageError.__name__
    assert "shard: false" in answer["message"]
