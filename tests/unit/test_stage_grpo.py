"""The stage `grpo`: rollouts, verdicts, groups, and the policy loss, with the real engine and verifier pool."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from steelyard.errors import DataError, EngineError, Interrupted, ModelError, PluginError, TrainingError, VerifierError
from steelyard.records import Completion, Prompt, Rollout, Sampling, Verdict, derive_seed
from steelyard_engines.config import TransformersEngineConfig
from steelyard_engines.transformers_engine import TransformersEngine
from steelyard_rl.config import GrpoConfig
from steelyard_rl.experience import Experience, minibatches
from steelyard_rl.policy import PolicyOptimisation
from steelyard_rl.rollouts import PromptPool, roll_out
from steelyard_sft.config import SftConfig
from steelyard_sft.supervised import Sft
from steelyard_torch.models import load_model
from steelyard_torch.trainee import Trainee

LETTERS = "abcdef"


def talker(bench: Any) -> Path:
    """A model that answers a letter with some letter or two, whatever the question; made once a session by real training."""
    folder = bench.models / "talker"
    if not folder.exists():
        answers = [*LETTERS, *(a + b for a, b in pairwise(LETTERS))]
        data = bench.data(({"messages": bench.chat(q, a)} for q in LETTERS for a in answers), "talk")
        options = SftConfig(lr=5e-3, batch_size=66, max_steps=40, max_length=16)
        result = Sft(options).run(bench.context(options, model=bench.model(), data=data, name="talk-step"))
        shutil.copytree(result.model, folder)
    return Path(folder)


def prompts(count: int = 12, **keys: Any) -> list[dict[str, Any]]:
    """The right answer is the question."""
    return [
        {"id": f"q{i}", "messages": [{"role": "user", "content": LETTERS[i % 6]}], "verifier": "same", "reference": LETTERS[i % 6], **keys}
        for i in range(count)
    ]


def config(**keys: Any) -> GrpoConfig:
    sizes = {"steps": 2, "prompts_per_step": 4, "samples_per_prompt": 8, "max_new_tokens": 4}
    return GrpoConfig(**{"lr": 1e-3, **sizes, **keys})


def context_of(bench: Any, options: GrpoConfig, *, rows: Any = None, name: str = "step", verifiers: Any = None, **keys: Any) -> Any:
    data = bench.root / "data"
    if not data.exists():
        bench.data(prompts() if rows is None else rows)
    verifiers = verifiers or bench.verifiers({"same": ("exact", {}, None)})
    keys.setdefault("reference", talker(bench))
    return bench.context(options, model=talker(bench), data=data, name=name, verifiers=verifiers, **keys)


def train(bench: Any, options: GrpoConfig, **keys: Any) -> Any:
    context = context_of(bench, options, **keys)
    return PolicyOptimisation(options).run(context), context


def equal(bench: Any, one: Path, other: Path) -> bool:
    mine, theirs = bench.weights(one), bench.weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# What is learnt


def test_accuracy_rises(bench: Any) -> None:
    result, context = train(bench, config(steps=40, prompts_per_step=6, lr=4e-3, loss_reduction="token_mean"))
    accuracy = context.io.series("rl/accuracy")
    before, after = sum(accuracy[:5]) / 5, sum(accuracy[-5:]) / 5
    assert before < 0.25
    assert after > before + 0.4
    answers = context.engine(result.model).generate(
        [Prompt(q, messages=({"role": "user", "content": q},)) for q in LETTERS], Sampling(max_new_tokens=4, temperature=0.0)
    )
    assert sum(answer[0].text == q for q, answer in zip(LETTERS, answers, strict=True)) >= 5


def test_it_reports_what_every_stage_reports_and_keeps_samples(bench: Any) -> None:
    result, context = train(bench, config(steps=3, peak_flops=1e12))
    assert [step for step, _ in context.io.metrics] == [1, 2, 3]
    for _, metrics in context.io.metrics:
        assert {"train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_s", "perf/mfu", "perf/rollout_s"} <= metrics.keys()
        assert {"rl/accuracy", "rl/reward", "rl/logprob_gap", "rl/clip_fraction", "rl/entropy", "rl/truncated"} <= metrics.keys()
        assert metrics["rl/ratio_mean"] == 1.0 and metrics["rl/clip_fraction"] == 0.0
    assert {sample["step"] for sample in context.io.samples} == {1, 2, 3}
    sample = context.io.samples[0]
    assert sample["messages"][0]["content"] in LETTERS and sample["outcome"] in {"correct", "incorrect", "unparseable"}
    assert result.facts["rollout_steps"] == result.facts["optimiser_steps"] == 3
    assert result.facts["prompts"] == 12


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_engine_and_trainer_agree_on_log_probabilities(bench: Any, temperature: float) -> None:
    _, context = train(bench, config(steps=4, temperature=temperature, lr=1e-2, max_logprob_gap=1e-4))
    assert max(context.io.series("rl/logprob_gap_max")) < 1e-4


# The loss


def straight_losses(bench: Any, options: GrpoConfig, context: Any, harvest: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of a rollout step's optimiser steps and the weights after them, in float64 from the published formulas.

    Shao et al. 2024 (equation 3) with k3; Yu et al. 2025 for `token_mean` and the two clips; Liu et al. 2025 for `constant`.
    """
    model, reference = (load_model(talker(bench)).double(), load_model(context.reference).double())
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, eps=options.adam_eps, weight_decay=0.0)

    def logprobs(of: Any, rollout: Rollout) -> torch.Tensor:
        prompt, answer = rollout.prompt.token_ids or (), rollout.completion.token_ids
        logits = of(input_ids=torch.tensor([[*prompt, *answer]])).logits[0] / options.temperature
        targets = torch.tensor(answer)[:, None]
        return torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1).gather(1, targets)[:, 0]

    def trained(rollout: Rollout) -> bool:
        return not (rollout.completion.finish_reason == "length" and options.truncated == "mask")

    with torch.no_grad():
        old = {id(r): logprobs(model, r) for group in harvest.groups for r in group.rollouts}
    losses = []
    seed = derive_seed(context.seed, "minibatches", 0)
    (parts,) = minibatches(len(harvest.groups), parts=options.minibatches, epochs=1, seed=seed)
    assert sorted(place for part in parts for place in part) == list(range(len(harvest.groups)))
    for part in parts:
        terms = []
        for group in (harvest.groups[place] for place in part):
            scores = [float(rollout.verdict.score or 0) for rollout in group.rollouts]
            mean = sum(scores) / len(scores)
            std = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - options.std_ddof))
            for rollout, score in zip(group.rollouts, scores, strict=True):
                advantage = (score - mean) / (std + options.std_eps) if options.scale_by_std else score - mean
                if trained(rollout):
                    new = logprobs(model, rollout)
                    ratio = (new - old[id(rollout)]).exp()
                    with torch.no_grad():
                        known = logprobs(reference, rollout)
                    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - options.clip_low, 1 + options.clip_high) * advantage)
                    kl = (known - new).exp() - (known - new) - 1
                    terms.append(surrogate - options.kl_coefficient * kl)
        if options.loss_reduction == "sequence_mean":
            loss = -sum(term.mean() for term in terms) / len(terms)
        elif options.loss_reduction == "token_mean":
            loss = -sum(term.sum() for term in terms) / sum(map(len, terms))
        else:
            loss = -sum(term.sum() for term in terms) / (len(terms) * (options.constant_length or options.max_new_tokens))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.parametrize(
    "keys",
    [
        {"loss_reduction": "sequence_mean", "kl_coefficient": 0.4},
        {"loss_reduction": "token_mean", "kl_coefficient": 0.0, "truncated": "keep"},
        {"loss_reduction": "constant", "scale_by_std": False, "constant_length": 9, "temperature": 0.7},
        {"loss_reduction": "sequence_mean", "minibatches": 2, "kl_coefficient": 0.1, "std_ddof": 0},
        {"loss_reduction": "token_mean", "minibatches": 2, "clip_low": 0.01, "clip_high": 0.02, "temperature": 1.3},
    ],
)
def test_losses_and_weights_are_those_of_a_straight_computation_in_float64(bench: Any, keys: dict[str, Any]) -> None:
    # A large epsilon keeps AdamW's step smooth in the gradient, so that float32 and float64 can be compared.
    options = config(steps=1, lr=1.0, adam_eps=1.0, max_grad_norm=None, micro_batch_tokens=64, max_refills=20, **keys)
    context = context_of(bench, options, reference=bench.model())
    trainee = Trainee(context, options, dropout=False)
    harvest = roll_out(
        context, options, context.engine(context.model, module=trainee.model), PromptPool(trainee, options), step=0, cursor=0
    )
    assert len(harvest.groups) == options.prompts_per_step
    losses, weights = straight_losses(bench, options, context, harvest)
    result, context = train(bench, options, name="trained", reference=bench.model())
    assert context.io.series("train/loss") == pytest.approx(losses, rel=1e-4, abs=1e-6)
    for name, tensor in bench.weights(result.model).items():
        torch.testing.assert_close(tensor.double(), weights[name], atol=2e-5, rtol=1e-4)
    if options.minibatches == 2:
        assert context.io.series("rl/ratio_mean")[0] == pytest.approx(1.0, abs=1e-5)
        assert context.io.series("rl/approx_kl")[1] > 1e-6, "the second optimiser step is off the policy that sampled"
    if options.clip_low < 0.1:
        assert context.io.series("rl/clip_fraction")[1] > 0
    if options.kl_coefficient:
        assert context.io.series("rl/kl")[0] > 0.01


def test_micro_batches_do_not_change_the_result(bench: Any) -> None:
    dials = {"steps": 2, "kl_coefficient": 0.1, "adam_eps": 1e-2, "lr": 1e-2}
    results = [train(bench, config(**dials, micro_batch_tokens=budget), name=f"b{budget}") for budget in (1, 100_000)]
    (one, first), (other, second) = results
    assert first.io.series("train/loss") == pytest.approx(second.io.series("train/loss"), abs=1e-6)
    for name, tensor in bench.weights(one.model).items():
        torch.testing.assert_close(bench.weights(other.model)[name], tensor, atol=2e-6, rtol=0)


def test_a_kl_term_pulls_towards_the_reference(bench: Any) -> None:
    rows = prompts(12)
    _, context = train(bench, config(steps=25, kl_coefficient=2.0, lr=4e-3), rows=rows, reference=bench.model())
    kl = context.io.series("rl/kl")
    assert kl[-1] < 0.5 * kl[0]


def test_without_a_kl_term_no_reference_is_needed(bench: Any) -> None:
    train(bench, config(steps=1), name="none", reference=None)
    with pytest.raises(ModelError, match="needs a reference model"):
        train(bench, config(steps=1, kl_coefficient=0.1), name="asked", reference=None)


def test_a_reference_with_another_template_is_refused(bench: Any) -> None:
    with pytest.raises(ModelError, match="the reference model"):
        train(bench, config(steps=1, kl_coefficient=0.1), reference=bench.model(template="plain"))


# Groups


class Spread:
    """Gives every rollout of a group another reward, whatever its verdict."""

    def shape(self, group: Sequence[Rollout], rewards: Sequence[float]) -> list[float]:
        return [reward + 0.01 * place for place, reward in enumerate(rewards)]


def test_groups_without_signal_are_dropped_although_shaped_rewards_differ(bench: Any) -> None:
    hopeless = prompts(6, reference="z")
    with pytest.raises(TrainingError, match=r"no group had both right and wrong answers in 2 rollout steps.*16 all wrong, 0 all right"):
        train(bench, config(steps=4, max_empty_steps=2), rows=hopeless, shapers=[Spread()])
    _, context = train(bench, config(steps=1, drop_without_signal=False), name="kept", shapers=[Spread()])
    assert context.io.series("rl/accuracy") == [0.0]
    assert context.io.series("rl/reward")[0] == pytest.approx(0.035)
    assert context.io.series("train/grad_norm")[0] > 0


def test_a_stage_that_stops_for_want_of_signal_shows_what_it_sampled(bench: Any) -> None:
    context = context_of(bench, config(steps=4, max_empty_steps=3), rows=prompts(6, reference="z"))
    with pytest.raises(TrainingError, match="look at the samples"):
        PolicyOptimisation(context.config).run(context)
    assert [sample["step"] for sample in context.io.samples] == [1] * 6 + [3] * 6
    # The first of ten such steps is told, and why.
    (told,) = [line for line in context.io.lines if "no group to learn from" in line]
    assert told.startswith("rollout step 1 ") and "(0 groups all right, " in told and " all wrong" in told
    assert {sample["reward"] for sample in context.io.samples} == {0.0}


def test_dropped_groups_are_replaced_up_to_the_limit(bench: Any) -> None:
    hopeless, fine = prompts(12, reference="z"), prompts(12)
    rows = [row for pair in zip(hopeless, fine, strict=True) for row in pair]
    _, context = train(bench, config(steps=4, max_refills=1.0), rows=rows)
    for _, metrics in context.io.metrics:
        assert metrics["rl/groups"] <= 4
        assert 4 < metrics["rl/prompts_sampled"] <= 8
        assert metrics["rl/groups"] == 4 or metrics["rl/prompts_sampled"] == 8
    _, context = train(bench, config(steps=4, max_refills=0.0), name="no refills")
    assert set(context.io.series("rl/prompts_sampled")) == {4.0}
    assert min(context.io.series("rl/groups")) < 4


def test_steps_without_a_group_are_counted_and_the_schedule_goes_on(bench: Any) -> None:
    """Six hopeless prompts a pass and one that can be learnt from: most rollout steps are empty."""
    rows = [*prompts(6, reference="z"), *prompts(1)]
    options = config(
        steps=10, prompts_per_step=1, samples_per_prompt=24, max_refills=0, minibatches=1, schedule="linear", max_empty_steps=10
    )
    result, context = train(bench, options, rows=rows)
    assert [step for step, _ in context.io.metrics] == list(range(1, 11))
    empty = [metrics for _, metrics in context.io.metrics if metrics["rl/groups"] == 0]
    assert len(empty) == result.facts["empty_steps"] >= 5
    assert result.facts["optimiser_steps"] == 10 - len(empty) >= 1
    for step, metrics in context.io.metrics:
        if "train/lr" in metrics:
            assert metrics["train/lr"] == pytest.approx(1e-3 * (1 - (step - 1) / 10))


def test_fewer_groups_than_minibatches_take_fewer_optimiser_steps(bench: Any) -> None:
    rows = [*prompts(6, reference="z"), *prompts(2)]
    result, context = train(bench, config(steps=4, prompts_per_step=4, samples_per_prompt=24, max_refills=0, minibatches=4), rows=rows)
    groups = [metrics["rl/groups"] for _, metrics in context.io.metrics]
    assert 0 < result.facts["optimiser_steps"] < 16
    assert all(step <= 16 for step, _ in context.io.metrics) and max(groups) < 4


class Failing:
    """The real verifiers, but some completions get no verdict: their verifier timed out."""

    def __init__(self, verifiers: Any, fails: Any):
        self._verifiers, self._fails = verifiers, fails

    def names(self) -> Sequence[str]:
        return tuple(self._verifiers.names())

    def verify(self, checks: Sequence[tuple[str, Completion, Any]]) -> list[Verdict]:
        verdicts = self._verifiers.verify(checks)
        return [Verdict.timeout("too slow") if self._fails(check[1]) else verdict for check, verdict in zip(checks, verdicts, strict=True)]

    def metrics(self) -> dict[str, float]:
        return dict(self._verifiers.metrics())

    def canary(self, name: str, reference: Any, seed: int) -> Any:
        return self._verifiers.canary(name, reference, seed)

    def sandbox_backend(self) -> None:
        return None

    def close(self) -> None:
        self._verifiers.close()


def test_failed_verdicts_leave_the_group_and_are_no_zeros(bench: Any) -> None:
    verifiers = Failing(bench.verifiers({"same": ("exact", {}, None)}), lambda completion: completion.sample < 3)
    options = config(steps=1, max_refills=20)
    context = context_of(bench, options, verifiers=verifiers)
    trainee = Trainee(context, options)
    harvest = roll_out(
        context, options, context.engine(context.model, module=trainee.model), PromptPool(trainee, options), step=0, cursor=0
    )
    assert harvest.groups
    for group in harvest.groups:
        assert [rollout.completion.sample for rollout in group.rollouts] == [3, 4, 5, 6, 7]
        assert [rollout.reward for rollout in group.rollouts] == [rollout.verdict.score for rollout in group.rollouts]
    metrics = harvest.metrics()
    assert metrics["rl/verifier_failures"] == 3 / 8
    scored = harvest.counts["scored"]
    assert scored == 5 * metrics["rl/prompts_sampled"]
    assert metrics["rl/accuracy"] == harvest.counts["score"] / scored


def test_a_group_with_one_verdict_left_teaches_nothing(bench: Any) -> None:
    verifiers = Failing(bench.verifiers({"same": ("exact", {}, None)}), lambda completion: completion.sample > 0)
    with pytest.raises(TrainingError, match="no group"):
        train(bench, config(steps=3, max_empty_steps=2, monitors={"failures": False}), verifiers=verifiers)


def test_a_verifier_that_always_fails_stops_the_stage_with_evidence(bench: Any) -> None:
    # The verifier `exact` cannot compare with a mapping, which is an error and no verdict.
    evidence = bench.root / "evidence.jsonl"
    verifiers = bench.verifiers({"same": ("exact", {}, 5.0)}, evidence=evidence)
    with pytest.raises(VerifierError, match=r"failed on 32 of 32 completions.*evidence\.jsonl"):
        train(bench, config(), rows=prompts(6, reference={"no": "text"}), verifiers=verifiers)
    assert len(evidence.read_text().splitlines()) == 32


@pytest.mark.parametrize(
    "made", [lambda rewards: rewards[1:], lambda rewards: [math.nan] * len(rewards), lambda rewards: [None] * len(rewards)]
)
def test_a_shaper_that_loses_rewards_is_named(bench: Any, made: Any) -> None:
    class Short:
        def shape(self, group: Sequence[Rollout], rewards: Sequence[float]) -> list[float]:
            return list(made(rewards))

    with pytest.raises(PluginError, match="shaper 'Short'"):
        train(bench, config(), shapers=[Short()])


def test_the_reward_of_full_marks_is_a_dial(bench: Any) -> None:
    _, context = train(bench, config(steps=1, reward_scale=10.0, scale_by_std=False))
    metrics = context.io.metrics[0][1]
    assert metrics["rl/reward"] == pytest.approx(10 * metrics["rl/accuracy"])


# Answers that are cut off


def harvest_of(bench: Any, options: GrpoConfig, **keys: Any) -> tuple[Any, Any]:
    context = context_of(bench, options, **keys)
    trainee = Trainee(context, options)
    engine = context.engine(context.model, module=trainee.model)
    return roll_out(context, options, engine, PromptPool(trainee, options), step=0, cursor=0), trainee


def test_cut_off_answers_are_masked_penalised_or_kept(bench: Any) -> None:
    # Two tokens are a letter and the end; answers of two letters are cut off.
    dials = {"max_new_tokens": 2, "steps": 1, "max_refills": 20}
    for truncated, reward in (("mask", 0.0), ("penalise", -1.0), ("keep", 0.0)):
        options = config(**dials, truncated=truncated, **({"truncation_reward": -1.0} if truncated == "penalise" else {}))
        harvest, _ = harvest_of(bench, options, name=truncated)
        experience = Experience.of(harvest.groups, version=0)
        rollouts = [rollout for group in harvest.groups for rollout in group.rollouts]
        cut = [rollout.completion.finish_reason == "length" for rollout in rollouts]
        assert any(cut) and not all(cut)
        assert 0 < harvest.metrics()["rl/truncated"] < 1
        for row, rollout, is_cut in zip(experience.rows, rollouts, cut, strict=True):
            masked = is_cut and truncated == "mask"
            assert row.targets == (0 if masked else len(rollout.completion.token_ids))
            if is_cut:
                assert rollout.reward == reward
            else:
                assert rollout.reward == rollout.verdict.score


def test_groups_of_nothing_but_masked_answers_are_not_trained_on(bench: Any) -> None:
    # One letter can be right, and there is no room for an end token behind it.
    dials = {"max_new_tokens": 1, "steps": 1, "prompts_per_step": 12, "max_refills": 0}
    harvest, _ = harvest_of(bench, config(**dials))
    assert harvest.counts["all cut off"] > 0
    for group in harvest.groups:
        assert any(rollout.completion.finish_reason == "stop" for rollout in group.rollouts)
    kept, _ = harvest_of(bench, config(**dials, truncated="keep"), name="kept")
    assert len(kept.groups) == len(harvest.groups) + harvest.counts["all cut off"]


# Engines


def test_the_engine_shares_the_live_module(bench: Any) -> None:
    options = config()
    context = context_of(bench, options)
    trainee = Trainee(context, options)
    engine = context.engine(context.model, module=trainee.model)
    prompt, sampling = [Prompt("p", text="<|user|>a<|assistant|>")], Sampling(max_new_tokens=6, temperature=0.0)
    before = engine.generate(prompt, sampling)[0][0]
    addresses = {name: tensor.data_ptr() for name, tensor in trainee.model.state_dict().items()}
    with torch.no_grad():
        for parameter in trainee.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    engine.load_weights(trainee.model.state_dict(), version=5)
    after = engine.generate(prompt, sampling)[0][0]
    assert after.token_ids != before.token_ids
    assert (before.weight_version, after.weight_version) == (0, 5)
    assert {name: tensor.data_ptr() for name, tensor in trainee.model.state_dict().items()} == addresses
    assert trainee.model.training, "the engine puts the module's mode back"
    engine.close()
    assert next(trainee.model.parameters()).requires_grad


class Apart:
    """A factory for engines with weights of their own, as an engine in another process has them."""

    def __init__(self, model: Path, *, stale: bool = False, logprobs: bool = True):
        self._model, self._stale, self._logprobs = model, stale, logprobs

    def __call__(self, model: Path | None = None, **overrides: Any) -> TransformersEngine:
        engine = TransformersEngine(TransformersEngineConfig(device="cpu"), model or self._model)
        if self._stale:
            engine.load_weights = lambda weights, version: None  # type: ignore[method-assign]
        if not self._logprobs:
            generate = engine.generate
            engine.generate = lambda prompts, sampling: generate(prompts, replace(sampling, logprobs=False))  # type: ignore[method-assign]
        return engine


def test_an_engine_with_weights_of_its_own_gets_them_and_gives_the_same_training(bench: Any) -> None:
    options = config(steps=3, lr=1e-2)
    shared, _ = train(bench, options, name="shared")
    context = replace(context_of(bench, options, name="apart"), engine=Apart(talker(bench)))
    apart = PolicyOptimisation(options).run(context)
    assert equal(bench, shared.model, apart.model)


def test_stale_weights_in_the_engine_are_noticed(bench: Any) -> None:
    options = config(steps=5, lr=1e-2, max_logprob_gap=1e-3)
    context = replace(context_of(bench, options), engine=Apart(talker(bench), stale=True))
    with pytest.raises(TrainingError, match=r"log-probabilities differ.*stale"):
        PolicyOptimisation(options).run(context)
    assert len(context.io.metrics) == 1, "after the first update the engine is behind"


def test_an_engine_without_log_probabilities_trains_but_cannot_keep_a_limit_on_the_gap(bench: Any) -> None:
    options = config(steps=1)
    context = replace(context_of(bench, options), engine=Apart(talker(bench), logprobs=False))
    PolicyOptimisation(options).run(context)
    assert "rl/logprob_gap" not in context.io.metrics[0][1]
    options = config(steps=1, max_logprob_gap=0.1)
    context = replace(context_of(bench, options, name="limit"), engine=Apart(talker(bench), logprobs=False))
    with pytest.raises(EngineError, match="gives no log-probabilities"):
        PolicyOptimisation(options).run(context)


# Resuming


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_step_resumes_to_the_very_same_weights(bench: Any, stop: int) -> None:
    options = config(steps=5, minibatches=2, kl_coefficient=0.05, lr=5e-3, schedule="linear", max_refills=20)
    whole, uninterrupted = train(bench, options, name="whole")
    with pytest.raises(Interrupted):
        train(bench, options, name="stopped", io=bench.io(stop_after=2 * stop))
    resumed, context = train(bench, options, name="stopped")
    assert context.io.series("rl/accuracy") == uninterrupted.io.series("rl/accuracy")[2 * stop :]
    assert equal(bench, whole.model, resumed.model)
    assert whole.facts == resumed.facts


def test_a_stop_in_a_rollout_step_without_groups_keeps_its_place(bench: Any) -> None:
    rows = [*prompts(6, reference="z"), *prompts(1)]
    options = config(steps=10, prompts_per_step=1, samples_per_prompt=24, max_refills=0, max_empty_steps=10)
    whole, uninterrupted = train(bench, options, name="whole", rows=rows)
    for stop in (1, 2, 5, 9):
        with pytest.raises(Interrupted):
            train(bench, options, name=f"stopped-{stop}", io=bench.io(stop_after=stop))
        resumed, context = train(bench, options, name=f"stopped-{stop}")
        assert len(context.io.metrics) == 10 - stop
        assert context.io.series("rl/accuracy") == uninterrupted.io.series("rl/accuracy")[stop:]
        assert resumed.facts == whole.facts
        assert equal(bench, whole.model, resumed.model)


# Prompts


def pool_of(bench: Any, options: GrpoConfig, **keys: Any) -> PromptPool:
    return PromptPool(Trainee(context_of(bench, options, **keys), options), options)


def test_every_prompt_comes_once_a_pass_and_passes_differ(bench: Any) -> None:
    pool = pool_of(bench, config())
    ids = [taken.prompt.id.partition(":") for taken in pool.take(0, 36)]
    assert [int(position) for position, _, _ in ids] == list(range(36))
    passes = [[name for _, _, name in ids[start : start + 12]] for start in (0, 12, 24)]
    assert all(Counter(names) == Counter(f"q{i}" for i in range(12)) for names in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_cursor_says_everything_about_the_place_in_the_prompts(bench: Any) -> None:
    one, other = pool_of(bench, config()), pool_of(bench, config(), name="other")
    whole = [taken.prompt for taken in one.take(0, 30)]
    assert [taken.prompt for start in (25, 3, 14) for taken in other.take(start, 4)] == whole[25:29] + whole[3:7] + whole[14:18]
    assert [taken.prompt for taken in other.take(0, 30)] == whole


def test_long_prompts_are_left_out_and_counted(bench: Any) -> None:
    rows = [*prompts(3), {**prompts(1)[0], "messages": [{"role": "user", "content": "a" * 50}]}]
    pool = pool_of(bench, config(max_prompt_length=20), rows=rows)
    assert (len(pool), pool.too_long) == (3, 1)
    with pytest.raises(DataError, match="no prompt is left: 4 are longer than max_prompt_length 2"):
        pool_of(bench, config(max_prompt_length=2), name="short")


def test_a_row_with_an_unknown_verifier_is_refused_with_the_nearest_name(bench: Any) -> None:
    with pytest.raises(DataError, match=r"row 'q0': verifier 'sane' is not one of the stage's \(did you mean 'same'\?\)"):
        train(bench, config(), rows=prompts(2, verifier="sane"))


def test_rows_need_no_verifier_where_there_is_but_one(bench: Any) -> None:
    rows = [{key: value for key, value in row.items() if key != "verifier"} for row in prompts()]
    train(bench, config(steps=1), rows=rows)
    two = bench.verifiers({"same": ("exact", {}, None), "number": ("number", {}, None)})
    with pytest.raises(DataError, match="verifier None"):
        train(bench, config(steps=1), name="two", verifiers=two)


def test_a_stage_without_verifiers_says_so(bench: Any) -> None:
    with pytest.raises(VerifierError, match="no verifier"):
        train(bench, config(), verifiers=bench.verifiers({}))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"id": "x", "messages": [{"role": "user", "content": "a"}], "verifier": "same"}, "needs `messages` and a `reference`"),
        ({"id": "x", "messages": [{"role": "assistant", "content": "a"}], "verifier": "same", "reference": "a"}, "ends in a user turn"),
    ],
)
def test_a_row_of_another_format_is_named(bench: Any, row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=f"row 'x': .*{complaint}"):
        train(bench, config(), rows=[row])


@pytest.mark.parametrize(
    "keys",
    [
        {"minibatches": 5, "prompts_per_step": 4},
        {"constant_length": 5},
        {"truncation_reward": -1.0},
        {"max_length": 64},
        {"temperature": 0.0},
        {"top_p": 0.9},
        {"warmup_steps": 1, "warmup_ratio": 0.1},
    ],
)
def test_dials_that_would_do_nothing_or_harm_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**keys)
