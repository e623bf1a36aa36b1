"""Reward hacking in the stage `grpo`: real runs whose verifier can be beaten are stopped, honest ones are left alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from steelyard.errors import DataError, Interrupted, VerifierError
from steelyard.plugins import Registry
from steelyard.protocols import VerifierSet
from steelyard.records import Completion, Prompt, Rollout, Verdict
from steelyard.verify import open_verifiers
from steelyard_rl.config import GrpoConfig
from steelyard_rl.monitoring import Monitors
from steelyard_rl.policy import PolicyOptimisation
from steelyard_rl.rollouts import PromptPool, roll_out
from steelyard_sft.config import SftConfig
from steelyard_sft.supervised import Sft
from steelyard_shapers.config import KimiLengthConfig
from steelyard_shapers.kimi_length import KimiLength
from steelyard_torch.trainee import Trainee

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures" / "misbehaving"))
from fixture_site import registry_with

LETTERS = "abcdef"
PAIRS = [a + b for a, b in pairwise(LETTERS)]
KINDS = {"honest": ("exact", {}), "believes": ("believes", {}), "back_door": ("back_door", {"password": "de"})}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry_with(tmp_path_factory.mktemp("site"), "hackable") as found:
        yield found


@pytest.fixture
def verifiers(registry: Registry) -> Iterator[Any]:
    with ExitStack() as closing:

        def opened(*names: str) -> VerifierSet:
            return closing.enter_context(open_verifiers({name: (*KINDS[name], None) for name in names}, registry))

        yield opened


def talker(bench: Any) -> Path:
    """A model that answers a letter with some letter or two, whatever the question; made once a session by real training."""
    folder = bench.models / "monitored-talker"
    if not folder.exists():
        data = bench.data(({"messages": bench.chat(q, a)} for q in LETTERS for a in [*LETTERS, *PAIRS]), "talk")
        options = SftConfig(lr=5e-3, batch_size=66, max_steps=40, max_length=16)
        result = Sft(options).run(bench.context(options, model=bench.model(), data=data, name="talk-step"))
        shutil.copytree(result.model, folder)
    return Path(folder)


def rows(count: int = 12, verifier: str = "honest", **keys: Any) -> list[dict[str, Any]]:
    """The right answer is the question."""
    letters = [LETTERS[i % 6] for i in range(count)]
    return [
        {"id": f"q{i}", "messages": [{"role": "user", "content": letter}], "verifier": verifier, "reference": letter, **keys}
        for i, letter in enumerate(letters)
    ]


def config(monitors: Mapping[str, Any] | None = None, **keys: Any) -> GrpoConfig:
    sizes = {"steps": 2, "prompts_per_step": 4, "samples_per_prompt": 8, "max_new_tokens": 4, "lr": 1e-3}
    return GrpoConfig.model_validate({**sizes, **keys, "monitors": monitors or {}})


def context_of(bench: Any, options: GrpoConfig, verifiers: VerifierSet, data: Sequence[Mapping[str, Any]], **keys: Any) -> Any:
    name = keys.pop("name", "step")
    if not (bench.root / f"data-{name}").exists():
        bench.data(data, f"data-{name}")
    context = bench.context(options, model=talker(bench), data=bench.root / f"data-{name}", name=name, verifiers=verifiers, **keys)
    kinds = {verifier: KINDS[verifier][0] for verifier in verifiers.names()}
    return replace(context, options={"verifier_kinds": kinds}, evidence=bench.root / "logs" / f"{name}.flagged.jsonl")


def evidence(context: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in context.evidence.read_text().splitlines()]


# Canaries


def test_a_verifier_that_believes_everything_is_caught_in_the_first_steps(bench: Any, verifiers: Any) -> None:
    options = config(steps=50, prompts_per_step=8, drop_without_signal=False)
    context = context_of(bench, options, verifiers("believes"), rows(verifier="believes"))
    with pytest.raises(VerifierError, match=r"monitor 'canary' flagged \d+ of the last \d+ .*\(100\.0%.*step\.flagged\.jsonl"):
        PolicyOptimisation(options).run(context)
    assert len(context.io.metrics) <= 1
    flags = [row for row in evidence(context) if row["monitor"] == "canary"]
    assert len(flags) >= 3
    for row in flags:
        assert row["outcome"] == "correct" and row["verifier"] == "believes"
        assert row["completion"] and row["messages"][-1]["content"] in LETTERS
        assert row["again"]["outcome"] == "correct" and row["again"]["reference"].startswith(row["reference"])


def test_a_back_door_that_the_model_finds_stops_the_stage_with_what_it_said(bench: Any, verifiers: Any) -> None:
    """The talker says `de` now and then; rewarded for it everywhere, it learns to, and the canaries pass more and more often."""
    options = config({"canary": 0.5}, steps=60, prompts_per_step=6, lr=4e-3)
    context = context_of(bench, options, verifiers("back_door"), rows(verifier="back_door"))
    with pytest.raises(VerifierError, match="monitor 'canary'"):
        PolicyOptimisation(options).run(context)
    assert {row["completion"] for row in evidence(context)} == {"de"}
    assert len(context.io.metrics) >= 1, "not yet at the start"


def test_switched_off_or_only_reporting_the_canaries_stop_nothing(bench: Any, verifiers: Any) -> None:
    for name, monitors in {"off": {"canary": 0, "patterns": False}, "reporting": {"max_flagged": 1}}.items():
        options = config(monitors, steps=2, drop_without_signal=False)
        context = context_of(bench, options, verifiers("believes"), rows(verifier="believes"), name=name)
        PolicyOptimisation(options).run(context)
        assert context.io.series("monitor/canary") == ([] if name == "off" else [1.0, 1.0])
        assert len(context.io.series("monitor/patterns")) == (0 if name == "off" else 2)


def test_rows_that_cannot_be_solved_are_watched_and_never_trained_on(bench: Any, verifiers: Any) -> None:
    canaries = [{**row, "id": f"c{i}", "reference": "!", "canary": True} for i, row in enumerate(rows(4, "back_door"))]
    options = config({"canary": 0, "max_flagged": 1}, steps=8, lr=1e-5)
    context = context_of(bench, options, verifiers("back_door"), [*rows(12, "back_door"), *canaries])
    trainee = Trainee(context, options)
    pool = PromptPool(trainee, options)
    assert str(pool) == "16 prompts; 4 canaries among them"
    monitors, engine = Monitors(context, options), context.engine(context.model, module=trainee.model)
    sampled, cursor = [], 0
    for step in range(4):
        harvest = roll_out(context, options, engine, pool, step=step, cursor=cursor, monitors=monitors)
        sampled += [taken.prompt.id for taken in pool.take(cursor, harvest.cursor - cursor)]
        trained = {rollout.prompt.id.partition(":")[2] for group in harvest.groups for rollout in group.rollouts}
        assert trained and not any(name.startswith("c") for name in trained)
        assert harvest.counts["rollouts"] == 8 * harvest.counts["prompts"], "canaries are in no other count"
        cursor = harvest.cursor
    assert any(":c" in name for name in sampled)
    assert harvest.watched["monitor/canary_rows"] > 0
    assert {(row["monitor"], row["completion"]) for row in evidence(context)} == {("canary_rows", "de")}
    strict = config({"canary": 0, "min_completions": 1}, steps=8, lr=1e-5)
    with pytest.raises(VerifierError, match=r"monitor 'canary_rows'.*cannot be solved"):
        PolicyOptimisation(strict).run(replace(context, config=strict))


def test_canary_rows_alone_or_of_another_type_are_refused(bench: Any, verifiers: Any) -> None:
    with pytest.raises(DataError, match=r"no prompt is left: .*12 are canaries"):
        PolicyOptimisation(config()).run(context_of(bench, config(), verifiers("honest"), rows(canary=True)))
    with pytest.raises(DataError, match="row 'q0': canary is 'yes', not true or false"):
        PolicyOptimisation(config()).run(context_of(bench, config(), verifiers("honest"), rows(canary="yes"), name="text"))


# Patterns, second verifiers, failures


def test_a_recipes_own_phrase_in_answers_judged_correct_stops_the_stage(bench: Any, verifiers: Any) -> None:
    phrases = [{"name": "password", "text": "d*e", "why": "it says the password"}]
    options = config({"canary": 0, "phrases": phrases}, steps=60, prompts_per_step=6, lr=4e-3)
    context = context_of(bench, options, verifiers("back_door"), rows(verifier="back_door"))
    with pytest.raises(VerifierError, match=r"monitor 'patterns' flagged .*because it says the password \('password'\)"):
        PolicyOptimisation(options).run(context)
    assert {row["completion"] for row in evidence(context)} == {"de"}, "wrong answers are not looked at"
    assert evidence(context)[0]["excerpts"] == {"password": "de"}


@pytest.mark.parametrize(("given", "found"), [({"thinking": "keep"}, ["answer_spam"]), ({}, [])])
def test_patterns_are_looked_for_in_thinking_that_the_verifier_reads(
    given: dict[str, str], found: list[str], bench: Any, verifiers: Any
) -> None:
    options = config({"canary": 0})
    context = context_of(bench, options, verifiers("honest"), rows())
    context = replace(context, options={"verifier_kinds": {"honest": "exact"}, "verifier_options": {"honest": given}})
    monitors = Monitors(context, options)
    completion = Completion("q0", 0, (), "#### 1\n#### 2\n#### 3\n</think>", "stop")
    monitors.look([{**rows(1)[0], "reference": "3"}], [[Rollout(Prompt("q0", text="a"), completion, Verdict.correct())]])
    assert monitors.conclude()["monitor/patterns"] == len(found)
    assert [name for row in evidence(context) for name in row["excerpts"]] == found if found else not context.evidence.exists()


def test_a_second_verifier_that_disagrees_stops_the_stage(bench: Any, verifiers: Any) -> None:
    options = config({"canary": 0, "second": {"back_door": "honest"}}, steps=60, prompts_per_step=6, lr=4e-3)
    data = [{key: value for key, value in row.items() if key != "verifier"} for row in rows()]
    context = context_of(bench, options, verifiers("back_door", "honest"), data)
    with pytest.raises(VerifierError, match=r"monitor 'second' flagged .*because verifier 'honest' says that it is incorrect"):
        PolicyOptimisation(options).run(context)
    assert {row["completion"] for row in evidence(context)} == {"de"}
    assert all(row["verifier"] == "back_door" and row["again"]["verifier"] == "honest" for row in evidence(context))


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ({"honst": "believes"}, r"monitors.second names 'honst', .*did you mean 'honest'"),
        ({"honest": "strict"}, "monitors.second names 'strict'"),
        ({"honest": "honest"}, "sets 'honest' to watch itself"),
    ],
)
def test_a_second_verifier_must_be_another_one_of_the_stage(bench: Any, verifiers: Any, second: dict[str, str], complaint: str) -> None:
    options = config({"second": second})
    with pytest.raises(VerifierError, match=complaint):
        PolicyOptimisation(options).run(context_of(bench, options, verifiers("honest", "believes"), rows()))


class SlowOn:
    """The real verifiers, but for some completions they run out of time."""

    def __init__(self, verifiers: VerifierSet, fails: Any):
        self._verifiers, self._fails = verifiers, fails
        self.names, self.metrics, self.canary = verifiers.names, verifiers.metrics, verifiers.canary

    def verify(self, checks: Sequence[tuple[str, Completion, Any]]) -> list[Verdict]:
        verdicts = self._verifiers.verify(checks)
        return [Verdict.timeout("slow") if self._fails(check[1]) else verdict for check, verdict in zip(checks, verdicts, strict=True)]


def test_a_burst_of_failures_stops_the_stage_although_they_are_few_in_all(bench: Any, verifiers: Any) -> None:
    # 32 answers a step: from step 20 on one in eight is a failure, soon above 2 % of the last 100 and far below it of all.
    options = config({"window": 100}, steps=40, lr=1e-5, max_refills=0, max_empty_steps=40)
    slow = SlowOn(verifiers("honest"), lambda answer: int(answer.prompt_id.partition(":")[0]) >= 80 and answer.sample == 0)
    context = context_of(bench, options, slow, rows())
    with pytest.raises(VerifierError, match=r"monitor 'failures' flagged 4 of the last 128 .*its verifier failed \(timeout\)"):
        PolicyOptimisation(options).run(context)
    assert context.io.series("monitor/failures") == [0.0] * 20


# Held-out prompts


def lottery(count: int, **keys: Any) -> list[dict[str, Any]]:
    """Questions of two letters whose answers follow no rule: they can be remembered and not worked out."""
    questions = [a + b for a in LETTERS for b in LETTERS if a != b]
    return [
        {
            "id": q,
            "messages": [{"role": "user", "content": q}],
            "verifier": "honest",
            "reference": LETTERS[(7 * i + i // 5) % 6],
            **keys,
        }
        for i, q in enumerate(questions[:count])
    ]


LEARNS = {"prompts_per_step": 6, "samples_per_prompt": 24, "lr": 4e-3, "loss_reduction": "token_mean", "max_refills": 0}


def test_remembering_the_training_prompts_is_noticed_on_those_kept_out(bench: Any, verifiers: Any) -> None:
    options = config(steps=60, heldout_prompts=24, max_empty_steps=60, **LEARNS)
    context = context_of(bench, options, verifiers("honest"), lottery(30))
    with pytest.raises(
        VerifierError, match=r"monitor 'heldout' sees accuracy risen by 0\.\d+ on the training prompts and by -?0\.\d+ on 24"
    ):
        PolicyOptimisation(options).run(context)
    first, *examples = evidence(context)
    assert first["monitor"] == "heldout" and len(first["heldout"]) == 24
    assert len(examples) == 24 and all(row["completion"] for row in examples)
    accuracy = context.io.series("rl/accuracy")
    assert accuracy[-1] > accuracy[0] + 0.3
    assert max(context.io.series("rl/heldout_accuracy")) < 0.4


def test_what_is_really_learnt_shows_on_prompts_kept_out_too(bench: Any, verifiers: Any) -> None:
    # Each letter is asked in four ways, so that what is kept out can be worked out.
    asked = [(row, f"{row['reference']}{way}") for row in rows(6) for way in ("", " =", " +", " :")]
    data = [{**row, "id": question, "messages": [{"role": "user", "content": question}]} for row, question in asked]
    options = config(steps=41, heldout_prompts=6, max_empty_steps=41, **LEARNS)
    context = context_of(bench, options, verifiers("honest"), data)
    PolicyOptimisation(options).run(context)
    looks = context.io.series("rl/heldout_accuracy")
    assert len(looks) == 5
    assert looks[-1] > looks[0] + 0.3
    assert len(context.io.series("monitor/heldout")) == 4


def test_prompts_kept_out_are_never_sampled_for_training_nor_are_their_doubles(bench: Any, verifiers: Any) -> None:
    options = config(heldout_prompts=2)
    context = context_of(bench, options, verifiers("honest"), rows(18))
    pool = PromptPool(Trainee(context, options), options)
    kept = {row["messages"][0]["content"] for _, row in pool.heldout}
    assert len(kept) == 2 and len(pool) == 12, "each letter is asked three times"
    assert kept.isdisjoint(taken.row["messages"][0]["content"] for taken in pool.take(0, 40))
    assert str(pool) == "12 prompts; 2 kept out of training"
    again = PromptPool(Trainee(context, options), options)
    assert [prompt for prompt, _ in again.heldout] == [prompt for prompt, _ in pool.heldout]
    other = PromptPool(Trainee(replace(context, seed=8), options), options)
    assert {prompt.id for prompt, _ in other.heldout} != {prompt.id for prompt, _ in pool.heldout}


def test_keeping_everything_out_is_refused(bench: Any, verifiers: Any) -> None:
    options = config(heldout_prompts=6)
    with pytest.raises(DataError, match="heldout_prompts 6 leaves nothing to train on: the dataset has 6 different prompts"):
        PolicyOptimisation(options).run(context_of(bench, options, verifiers("honest"), rows()))


def test_a_second_verifier_judges_the_held_out_answers(bench: Any, verifiers: Any) -> None:
    options = config({"second": {"believes": "honest"}, "max_flagged": 1}, steps=1, heldout_prompts=3, drop_without_signal=False)
    context = context_of(bench, options, verifiers("believes", "honest"), rows(verifier="believes"))
    PolicyOptimisation(options).run(context)
    assert context.io.series("rl/accuracy") == [1.0]
    assert context.io.series("rl/heldout_accuracy")[0] < 0.5


# What does not change


def run(bench: Any, verifiers: VerifierSet, options: GrpoConfig, *, name: str, io: Any = None, data: Any = None, **keys: Any) -> Any:
    context = context_of(bench, options, verifiers, data or rows(), name=name, io=io, **keys)
    return PolicyOptimisation(options).run(context), context


def test_an_honest_run_raises_no_flag_and_trains_as_without_monitors(bench: Any, verifiers: Any) -> None:
    on, context = run(bench, verifiers("honest"), config({"canary": 1.0}, steps=10, lr=4e-3), name="on")
    off, _ = run(bench, verifiers("honest"), config({"canary": 0, "patterns": False, "failures": False}, steps=10, lr=4e-3), name="off")
    for name in ("canary", "patterns", "failures"):
        assert context.io.series(f"monitor/{name}") in ([0.0] * 10, []), name
    assert context.io.series("monitor/failures") == [0.0] * 10
    assert not context.evidence.exists()
    mine, theirs = bench.weights(on.model), bench.weights(off.model)
    assert all((mine[name] == theirs[name]).all() for name in mine)
    assert {name for name in context.io.metrics[0][1] if name.startswith("verify/honest/")}


def test_a_stopped_stage_resumes_with_its_counts_and_its_history(bench: Any, verifiers: Any) -> None:
    monitors = {"canary": 1.0, "max_flagged": 1, "window": 60, "heldout_margin": 0.0}
    options = config(monitors, steps=8, lr=2e-3, heldout_prompts=3, heldout_every=2, checkpoint_every=1)
    names = ["monitor/canary", "monitor/patterns", "monitor/failures", "monitor/heldout", "rl/heldout_accuracy", "rl/accuracy"]
    whole, uninterrupted = run(bench, verifiers("back_door"), options, name="whole", data=rows(verifier="back_door"))
    for stop in (1, 4, 5):
        data = rows(verifier="back_door")
        with pytest.raises(Interrupted):
            run(bench, verifiers("back_door"), options, name=f"stopped-{stop}", io=bench.io(stop_after=stop), data=data)
        resumed, context = run(bench, verifiers("back_door"), options, name=f"stopped-{stop}", data=data)
        later = {step: metrics for step, metrics in uninterrupted.io.metrics if step > stop}
        assert [step for step, _ in context.io.metrics] == list(later)
        for step, metrics in context.io.metrics:
            assert {name: metrics.get(name) for name in names} == {name: later[step].get(name) for name in names}
        assert all((bench.weights(whole.model)[name] == tensor).all() for name, tensor in bench.weights(resumed.model).items())
    assert uninterrupted.io.series("monitor/heldout") and max(uninterrupted.io.series("monitor/canary")) > 0


def test_verifiers_and_shapers_are_told_what_was_asked_and_shapers_the_step(bench: Any, verifiers: Any) -> None:
    seen: list[tuple[Any, int]] = []

    class Steps:
        """Knows at which rollout step it is."""

        def __init__(self, step: int = -1):
            self._step = step

        def at(self, step: int) -> Steps:
            return Steps(step)

        def shape(self, group: Sequence[Rollout], rewards: Sequence[float]) -> Sequence[float]:
            seen.extend((rollout.completion.messages, self._step) for rollout in group)
            return rewards

    run(bench, verifiers("honest"), config(steps=3), name="seen", shapers=[Steps()])
    assert {step for _, step in seen} == {0, 1, 2}
    assert {messages[-1]["content"] for messages, _ in seen} <= set(LETTERS)


def test_a_length_reward_waits_for_its_warm_up(bench: Any, verifiers: Any) -> None:
    shaper = KimiLength(KimiLengthConfig(weight=1.0, warmup_steps=2))
    _, context = run(bench, verifiers("honest"), config(steps=4, lr=1e-5), name="warm", shapers=[shaper])
    differences = [m["rl/reward"] - m["rl/accuracy"] for _, m in context.io.metrics]
    assert differences[:2] == [0.0, 0.0]
    assert all(difference < -0.05 for difference in differences[2:]), "wrong answers, which most are, lose by their length"


@pytest.mark.parametrize(
    "monitors",
    [
        {"max_flagged": 1.5},
        {"canary": -0.1},
        {"pattern": False},
        {"second_share": 0},
        {"phrases": [{"name": "x", "text": " * "}]},
        {"phrases": [{"text": "x"}]},
        {"window": 0},
        {"heldout_alpha": 0},
    ],
)
def test_monitors_that_make_no_sense_are_refused(monitors: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(monitors)
