"""Partial rollouts: answers written over several rollout steps, with the real engine, real weights that change, and stops in between."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from steelyard.errors import EngineError, Interrupted
from steelyard.records import Completion
from steelyard_engines.transformers_engine import TransformersEngine
from steelyard_rl.buffer import Group
from steelyard_rl.config import GrpoConfig
from steelyard_rl.policy import PolicyOptimisation
from steelyard_rl.rollouts import Harvest, PromptPool, roll_out
from steelyard_torch.trainee import Trainee

LETTERS = "abcdef"
QUIET = {"patterns": False, "canary": 0}
"""A random model writes role markers, which look like an attack."""


def rows(number: int = 12) -> list[dict[str, Any]]:
    """An answer is right that has the question's letter."""
    letters = [LETTERS[i % 6] for i in range(number)]
    return [{"id": f"q{i}", "messages": [{"role": "user", "content": letter}], "reference": letter} for i, letter in enumerate(letters)]


def config(budget: int | None = 5, stale: str = "mask", **keys: Any) -> GrpoConfig:
    sizes = {"steps": 6, "prompts_per_step": 3, "samples_per_prompt": 4, "max_new_tokens": 18, "lr": 1e-3, "truncated": "keep"}
    partial = {"partial": {"budget": budget, "stale": stale}} if budget is not None else {}
    return GrpoConfig(**{**sizes, **partial, **keys})


class Run:
    """Rollout steps with weights that change from one to the next as training would change them, but without it."""

    def __init__(self, bench: Any, options: GrpoConfig, name: str = "run", moving: bool = True, **engine: Any):
        folder = bench.root / "data"
        if not folder.exists():
            bench.data(rows())
        if not hasattr(bench, "has"):
            bench.has = bench.verifiers({"has": ("regex", {"pattern_from": "reference"}, None)})
        self.options, self.moving = options, moving
        self.context = bench.context(options, model=bench.model(), data=folder, name=name, verifiers=bench.has, engine=engine)
        self.trainee = Trainee(self.context, options)
        self.engine = self.context.engine(self.context.model, module=self.trainee.model)
        self.pool = PromptPool(self.trainee, options)
        self.first = {name: tensor.clone() for name, tensor in self.trainee.model.state_dict().items()}

    def weights(self, step: int) -> None:
        """Those of a rollout step, from its number alone."""
        draw = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for name, tensor in self.trainee.model.state_dict().items():
                noise = torch.randn(tensor.shape, generator=draw)
                tensor.copy_(self.first[name] + (0.05 * step**0.5 * noise if self.moving and step else 0.0))

    def step(self, number: int, cursor: int) -> Harvest:
        self.weights(number)
        self.engine.load_weights({}, version=number)
        return roll_out(self.context, self.options, self.engine, self.pool, step=number, cursor=cursor)


def answers_of(harvest: Harvest) -> dict[tuple[str, int], Completion]:
    return {(r.prompt.id, r.completion.sample): r.completion for group in harvest.groups for r in group.rollouts}


def walk(run: Run, steps: int) -> list[Harvest]:
    harvests: list[Harvest] = []
    for number in range(steps):
        harvests.append(run.step(number, harvests[-1].cursor if harvests else 0))
    return harvests


# What is sampled


def test_an_answer_in_pieces_is_the_answer_in_one_go(bench: Any) -> None:
    """At a temperature near 0 noise has no say, so that pieces and whole must be the same, token by token."""
    keys = {"temperature": 1e-3, "samples_per_prompt": 2, "drop_without_signal": False, "prompts_per_step": 12, "max_refills": 0}
    whole = answers_of(Run(bench, config(None, **keys), moving=False).step(0, 0))
    pieces: dict[tuple[str, int], Completion] = {}
    for harvest in walk(Run(bench, config(5, **keys), "pieces", moving=False), 5):
        pieces |= {key: made for key, made in answers_of(harvest).items() if int(key[0].partition(":")[0]) < 12}
    assert pieces.keys() == whole.keys()
    assert any(len(made.token_ids) > 10 for made in whole.values())
    for key, made in whole.items():
        assert (pieces[key].token_ids, pieces[key].finish_reason, pieces[key].text) == (made.token_ids, made.finish_reason, made.text)
        assert pieces[key].logprobs == pytest.approx(made.logprobs, abs=2e-3)


def test_pieces_are_drawn_as_a_whole_is(bench: Any) -> None:
    """Pairs of first tokens, one go against two pieces of one token: the same distribution, and no noise that comes again."""
    keys = {"samples_per_prompt": 600, "max_new_tokens": 2, "drop_without_signal": False, "prompts_per_step": 1, "temperature": 0.5}
    run = Run(bench, config(None, **keys), moving=False)
    whole = [made.token_ids for made in answers_of(run.step(0, 0)).values()]
    pieces = [
        made.token_ids
        for harvest in walk(Run(bench, config(1, **keys), "pieces", moving=False), 2)
        for made in answers_of(harvest).values()
    ]
    assert len(whole) == 600 and len(pieces) >= 600
    second = [Counter(made[1] for made in group[:600] if len(made) > 1) for group in (whole, pieces)]
    tokens = set(second[0]) | set(second[1])
    difference = sum(abs(second[0][token] - second[1][token]) for token in tokens) / 1200
    # Two samples of 600 from one distribution over some 30 tokens differ by about 0.1; a first token's noise that came again, by far more.
    assert difference < 0.16
    again = sum(made[0] == made[1] for made in pieces if len(made) > 1) / len(pieces)
    assert again == pytest.approx(sum(made[0] == made[1] for made in whole if len(made) > 1) / 600, abs=0.05)


def test_no_stretch_draws_from_another_s_seed(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, str, int]] = []
    generate = TransformersEngine.generate

    def noting(self: Any, prompts: Any, sampling: Any) -> Any:
        asked.extend((sampling.seed, prompt.id, sample) for prompt in prompts for sample in range(sampling.n))
        return generate(self, prompts, sampling)

    monkeypatch.setattr(TransformersEngine, "generate", noting)
    walk(Run(bench, config(4)), 4)
    assert len(asked) == len(set(asked)) > 40


def test_every_token_keeps_the_log_probability_and_version_it_was_sampled_with(bench: Any) -> None:
    """Recomputed one answer at a time, under the weights of each of its segments."""
    run = Run(bench, config(4, stale="keep", drop_without_signal=False, temperature=0.8))
    several = 0
    for group in [group for harvest in walk(run, 5) for group in harvest.groups]:
        for place, rollout in enumerate(group.rollouts):
            made = rollout.completion
            segments = (group.segments[place] if group.segments else ()) or ((made.weight_version, len(made.token_ids)),)
            assert sum(count for _, count in segments) == len(made.token_ids) == len(made.logprobs or ())
            assert made.weight_version == segments[-1][0] and [version for version, _ in segments] == sorted({v for v, _ in segments})
            several += len(segments) > 1
            start = 0
            for version, length in segments:
                run.weights(version)
                ids = [*(rollout.prompt.token_ids or ()), *made.token_ids]
                with torch.no_grad():
                    logits = run.trainee.model(input_ids=torch.tensor([ids])).logits[0].double() / 0.8
                first = len(rollout.prompt.token_ids or ()) + start
                expected = torch.log_softmax(logits[first - 1 : first - 1 + length], -1).gather(
                    1, torch.tensor(ids[first : first + length])[:, None]
                )
                torch.testing.assert_close(
                    torch.tensor((made.logprobs or ())[start : start + length]).double(), expected[:, 0], atol=1e-4, rtol=0
                )
                start += length
    assert several > 10


# What is trained


@pytest.mark.parametrize("stale", ["mask", "keep"])
def test_tokens_of_earlier_steps_are_masked_or_kept(bench: Any, stale: str) -> None:
    harvests = walk(Run(bench, config(4, stale=stale, drop_without_signal=False)), 6)
    assert sum(len(harvest.groups) for harvest in harvests) >= 5
    masked = waited = 0
    for step, harvest in enumerate(harvests):
        trained = old_trained = 0
        assert harvest.version == step
        for group in harvest.groups:
            olds = group.stale(harvest.version)
            for place, rollout in enumerate(group.rollouts):
                length, mask, old = len(rollout.completion.token_ids), group.masks[place], olds[place]
                segments = group.segments[place] if group.segments else ()
                if stale == "mask" and segments:
                    last = segments[-1][1]
                    assert mask == [False] * (length - last) + [True] * last
                    masked += length - last
                else:
                    assert mask is None
                if not segments and rollout.completion.weight_version < step:
                    assert old == [True] * length, "it ended, and waited for its group"
                    waited += 1
                flags = mask or [True] * length
                trained += sum(flags)
                old_trained += sum(use and was for use, was in zip(flags, old or [False] * length, strict=True))
        metrics = harvest.metrics()
        assert metrics["rl/stale_tokens"] == pytest.approx(old_trained / max(trained, 1))
        assert harvest.off_policy == (old_trained > 0)
        assert metrics["rl/groups_waiting"] == harvest.waiting
    assert waited > 0 and (masked > 0) == (stale == "mask")


def test_an_answer_gets_its_budget_a_step_and_its_limit_in_all(bench: Any) -> None:
    harvests = walk(Run(bench, config(5, drop_without_signal=False, truncated="mask")), 7)
    ended = set()
    for harvest in harvests:
        for group in harvest.groups:
            for place, rollout in enumerate(group.rollouts):
                made, segments = rollout.completion, group.segments[place] if group.segments else ()
                assert all(count == 5 for _, count in segments[:-1]) and all(count <= 5 for _, count in segments)
                assert len(made.token_ids) <= 18
                assert (made.finish_reason == "length") == (len(made.token_ids) == 18 and made.token_ids[-1] != 2)
                ended.add(made.finish_reason)
                if made.finish_reason == "length":
                    assert group.masks[place] == [False] * 18
    assert ended == {"stop", "length"}
    # Prompts are begun at the same pace in every step, one more for each group that is dropped; so in the mean groups come at that pace.
    assert all(harvest.counts["prompts"] == 3 + harvest.counts["dropped"] for harvest in harvests)
    assert sum(len(harvest.groups) for harvest in harvests[4:]) >= 6


def test_an_answer_that_fills_the_context_ends_there(bench: Any) -> None:
    run = Run(bench, config(5, drop_without_signal=False), max_model_len=13)
    cut = [
        rollout.completion
        for harvest in walk(run, 4)
        for group in harvest.groups
        for rollout in group.rollouts
        if rollout.completion.finish_reason == "length"
    ]
    assert cut and {len(made.token_ids) + len(made.prompt_token_ids) for made in cut} == {13}


def test_looping_answers_go_on_no_further(bench: Any) -> None:
    looks = {"loop_tokens": 8, "max_period": 2, "reward": -1.0}
    run = Run(bench, config(12, max_new_tokens=48, temperature=0.2, repetition=looks, drop_without_signal=False), moving=False)
    harvests = walk(run, 4)
    looped = [r for h in harvests for g in h.groups for r in g.rollouts if r.reward == -1.0]
    assert looped and all(len(r.completion.token_ids) < 48 and r.completion.finish_reason == "length" for r in looped)
    assert max(harvest.metrics().get("rl/looped", 0.0) for harvest in harvests) > 0


def test_kept_stale_tokens_need_log_probabilities(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = TransformersEngine.generate
    monkeypatch.setattr(
        TransformersEngine, "generate", lambda self, prompts, sampling: generate(self, prompts, replace(sampling, logprobs=False))
    )
    with pytest.raises(EngineError, match=r"partial\.stale 'keep' needs the log-probabilities"):
        Run(bench, config(4, stale="keep")).step(0, 0)
    assert Run(bench, config(4), "masked").step(0, 0).waiting > 0


# Nothing lost, nothing twice


def test_every_prompt_that_was_begun_is_settled_once_or_waits(bench: Any) -> None:
    run = Run(bench, config(5, drop_without_signal=True))
    harvests = walk(run, 6)
    trained = [group.origin for harvest in harvests for group in harvest.groups]
    dropped = sum(int(harvest.counts["dropped"]) for harvest in harvests)
    waiting = [(draft.taken.position, draft.taken.index) for draft in run.pool.buffer.drafts]
    assert len(trained) == len(set(trained)) and not set(trained) & set(waiting)
    assert dropped > 0 and waiting
    assert sum(int(harvest.counts["prompts"]) for harvest in harvests) == len(trained) + dropped + len(waiting)
    assert run.pool.facts()["unfinished_answers"] == run.pool.buffer.unfinished > 0


def same(one: Group, other: Group) -> bool:
    def plain(group: Group) -> Any:
        masks = [None if mask is None else list(mask) for mask in group.masks]
        return list(group.rollouts), masks, [list(of_answer) for of_answer in group.segments], group.origin

    return plain(one) == plain(other)


def test_a_stop_after_any_step_loses_and_repeats_nothing(bench: Any) -> None:
    """A fresh process after every step, with what a checkpoint's JSON holds, against one that never stopped: the very same rollouts."""
    curriculum = {"order": "priority", "prior_weight": 2.0}
    options = config(5, curriculum=curriculum)
    whole = walk(Run(bench, options), 5)
    saved: dict[str, Any] = {}
    cursor = 0
    for number, expected in enumerate(whole):
        run = Run(bench, options, f"stop-{number}")
        run.pool.restore(saved)
        harvest = run.step(number, cursor)
        assert len(harvest.groups) == len(expected.groups) and all(map(same, harvest.groups, expected.groups))
        assert harvest.counts == expected.counts and harvest.state == expected.state
        saved, cursor = json.loads(json.dumps(harvest.state)), harvest.cursor
    assert any(harvest.groups for harvest in whole) and whole[-1].waiting > 0


def test_a_harvest_goes_to_other_ranks_as_it_is(bench: Any) -> None:
    harvest = walk(Run(bench, config(5, stale="keep", drop_without_signal=False)), 4)[-1]
    sent = pickle.loads(pickle.dumps(harvest))  # noqa: S301
    assert sent == harvest and harvest.groups
    assert all(map(same, sent.groups, harvest.groups))


# The whole stage


def train(bench: Any, options: GrpoConfig, name: str, io: Any = None) -> tuple[Any, Any]:
    if not (bench.root / "data").exists():
        bench.data(rows())
    if not hasattr(bench, "has"):
        bench.has = bench.verifiers({"has": ("regex", {"pattern_from": "reference"}, None)})
    context = bench.context(options, model=bench.model(), data=bench.root / "data", name=name, verifiers=bench.has, io=io)
    return PolicyOptimisation(options).run(context), context


@pytest.mark.parametrize("stale", ["mask", "keep"])
def test_a_stopped_stage_goes_on_to_the_very_same_weights(bench: Any, stale: str) -> None:
    options = config(5, stale=stale, lr=2e-2, steps=5, minibatches=1, curriculum={"order": "easy_first"}, max_refills=1.0, monitors=QUIET)
    whole, uninterrupted = train(bench, options, "whole")
    with pytest.raises(Interrupted):
        train(bench, options, "stopped", bench.io(stop_after=2))
    resumed, context = train(bench, options, "stopped")
    for series in ("rl/accuracy", "rl/stale_tokens", "train/loss", "rl/groups_waiting"):
        assert context.io.series(series) == uninterrupted.io.series(series)[-len(context.io.series(series)) :] != []
    mine, theirs = bench.weights(whole.model), bench.weights(resumed.model)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not torch.equal(mine["model.norm.weight"], bench.weights(bench.model())["model.norm.weight"])
    assert whole.facts == resumed.facts
    assert max(uninterrupted.io.series("rl/stale_tokens")) > 0


def test_a_stage_of_nothing_but_waiting_answers_is_not_out_of_signal(bench: Any) -> None:
    """With two tokens a step answers of twelve take six rollout steps, more than `max_empty_steps`."""
    options = config(
        2,
        max_new_tokens=12,
        steps=8,
        max_empty_steps=2,
        drop_without_signal=False,
        samples_per_prompt=8,
        prompts_per_step=1,
        monitors=QUIET,
    )
    result, context = train(bench, options, "slow")
    groups = context.io.series("rl/groups")
    assert groups[:3] == [0.0] * 3 and max(groups) > 0
    assert "rl/accuracy" not in context.io.metrics[0][1], "nothing was verified yet, which is no accuracy of 0"
    assert result.facts["empty_steps"] == 0
