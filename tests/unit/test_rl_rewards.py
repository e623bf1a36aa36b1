"""Rewards of the stage `rl`: several verifiers of one row, cut-off and looping answers, shapers in order; with real verifiers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import DataError, VerifierError
from steelyard.records import Completion, Prompt, Rollout
from steelyard_rl.config import GrpoConfig
from steelyard_rl.prompts import PromptPool
from steelyard_rl.rewards import combined_score, judge, shaped
from steelyard_rl.rollout_options import RepetitionOptions, RewardOptions
from steelyard_rl.rollouts import Harvest, has_signal, roll_out
from steelyard_shapers.config import NoEosConfig, SoftOverlongConfig
from steelyard_shapers.no_eos import NoEos
from steelyard_shapers.overlong import SoftOverlong
from steelyard_torch.trainee import Trainee

LETTERS = "abcdef"
VERIFIERS = {
    "has": ("regex", {"pattern_from": "reference"}, None),
    "digit": ("regex", {"pattern": "[0-9]", "compare": "match"}, None),
    "short": ("regex", {"pattern": "(?s).{0,6}", "mode": "fullmatch", "compare": "match"}, None),
    "number": ("number", {}, None),
}


def rows(count: int = 8, **keys: Any) -> list[dict[str, Any]]:
    """An answer is right that has the question's letter."""
    letters = [LETTERS[i % 6] for i in range(count)]
    return [
        {"id": f"q{i}", "messages": [{"role": "user", "content": letter}], "reference": letter, "verifiers": ["has"], **keys}
        for i, letter in enumerate(letters)
    ]


def config(**keys: Any) -> GrpoConfig:
    sizes = {"steps": 3, "prompts_per_step": 4, "samples_per_prompt": 8, "max_new_tokens": 12, "lr": 1e-3, "truncated": "keep"}
    return GrpoConfig(**{**sizes, **keys})


def opened(bench: Any) -> Any:
    if not hasattr(bench, "opened"):
        bench.opened = bench.verifiers(VERIFIERS)
    return bench.opened


def context_of(bench: Any, options: GrpoConfig, data: Any, name: str = "step", **keys: Any) -> Any:
    keys.setdefault("verifiers", opened(bench))
    return bench.context(options, model=bench.model(), data=bench.data(data, f"data-{name}"), name=name, **keys)


def harvest_of(bench: Any, options: GrpoConfig, data: Any, **keys: Any) -> tuple[Harvest, PromptPool]:
    context = context_of(bench, options, data, **keys)
    trainee = Trainee(context, options)
    pool = PromptPool(trainee, options)
    return roll_out(context, options, context.engine(context.model, module=trainee.model), pool, step=0, cursor=0), pool


def completion(text: str, tokens: int = 3, reason: Any = "stop", sample: int = 0) -> Completion:
    return Completion("p", sample, tuple(range(tokens)), text, reason)


# Several verifiers


def test_weights_make_a_sum_and_an_order_compares_one_after_the_other() -> None:
    scores = {"a": 1.0, "b": 0.5, "c": 0.0}
    assert combined_score(None, {"a": 0.3}) == 0.3
    assert combined_score(RewardOptions(weights={"a": 2.0, "b": 1.0, "c": -4.0}), scores) == 2.5
    # Digits 1, 1, 0 to the base 2 (0.5 is rounded up), over 7.
    assert combined_score(RewardOptions(order=("a", "b", "c")), scores) == pytest.approx(6 / 7)
    # Digits 0, 1, 2 to the base 3 in the recipe's order, whatever the row's, over 26.
    assert combined_score(RewardOptions(order=("c", "b", "a"), levels=3), scores) == pytest.approx((0 * 9 + 1 * 3 + 2) / 26)
    assert combined_score(RewardOptions(order=("a", "b")), {"b": 0.4}) == 0.4, "one verifier is not compared with another"
    with pytest.raises(VerifierError, match=r"scores from 0 to 1, and 'b' gave 1\.5"):
        combined_score(RewardOptions(order=("a", "b")), {"a": 1.0, "b": 1.5})


@given(st.lists(st.tuples(*[st.integers(0, 10)] * 3), min_size=2, max_size=6))
def test_an_order_sorts_answers_as_their_scores_do_one_after_the_other(answers: list[tuple[int, int, int]]) -> None:
    options = RewardOptions(order=("a", "b", "c"), levels=11)
    made = [combined_score(options, dict(zip("abc", (score / 10 for score in answer), strict=True))) for answer in answers]
    for (one, first), (other, second) in itertools.combinations(zip(answers, made, strict=True), 2):
        assert (one < other) == (first < second) and (one == other) == (first == second)
    assert all(0 <= value <= 1 for value in made)


def test_accuracy_and_signal_go_by_one_verifier_and_the_reward_by_all(bench: Any) -> None:
    options = config(reward={"weights": {"has": 1.0, "digit": 0.5, "short": 0.25}}, reward_scale=10.0, prompts_per_step=8)
    data = rows(8, verifiers=["has", "digit", "short"])
    harvest, pool = harvest_of(bench, options, data)
    assert harvest.groups
    for group in harvest.groups:
        letter = pool.at(*group.origin).row["reference"]
        assert has_signal(group.rollouts)
        for rollout in group.rollouts:
            text = rollout.completion.text
            has, digit, short = letter in text, any(c.isdigit() for c in text), 0 < len(text.strip()) <= 6
            assert rollout.verdict.score == float(has)
            assert rollout.reward == pytest.approx(10 * (has + 0.5 * digit + 0.25 * short))
    metrics = harvest.metrics()
    assert metrics["rl/accuracy"] == metrics["rl/score/has"]
    assert metrics["rl/reward"] == pytest.approx(
        10 * sum(metrics[f"rl/score/{n}"] * w for n, w in (("has", 1), ("digit", 0.5), ("short", 0.25)))
    )
    # Another verifier may be what accuracy goes by.
    other, _ = harvest_of(
        bench, config(reward={"weights": {"has": 1, "digit": 1}, "accuracy": "digit"}), rows(8, verifiers=["has", "digit"]), name="o"
    )
    assert other.metrics()["rl/accuracy"] == other.metrics()["rl/score/digit"] != other.metrics()["rl/score/has"]


def test_groups_that_differ_only_by_another_verifier_have_no_signal(bench: Any) -> None:
    """DAPO's dynamic sampling keeps 0 < correct < G: a format's or length's reward makes no signal."""
    data = rows(8, verifiers=["has", "digit"], references={"has": "!"}, reference="")
    harvest, _ = harvest_of(bench, config(reward={"weights": {"has": 1, "digit": 1}}, max_refills=0), data)
    assert not harvest.groups and harvest.counts["all wrong"] == 4
    assert 0 < harvest.metrics()["rl/reward"] == harvest.metrics()["rl/score/digit"]


def test_each_verifier_gets_its_own_reference(bench: Any) -> None:
    data = rows(1, verifiers=["has", "number"], references={"number": 12}, reference="c")
    harvest, pool = harvest_of(bench, config(reward={"order": ["has", "number"]}, prompts_per_step=1), data)
    row = pool.at(0, 0).row
    assert row["references"] == {"has": "c", "number": 12} and (row["verifier"], row["reference"]) == ("has", "c")
    texts = ["c 12", "c 13", "12", "x 13"]
    (group,) = judge(opened(bench), RewardOptions(order=("has", "number")), [(Prompt("p", text="x"), row, list(map(completion, texts)))])
    assert [one.score for one in group] == [1.0, 2 / 3, 1 / 3, 0.0]
    assert [one.rollout.verdict.score for one in group] == [1.0, 1.0, 0.0, 0.0]
    assert harvest.counts["rollouts"] > 0


def test_a_failure_of_any_verifier_takes_the_answer_out_of_its_group(bench: Any) -> None:
    """The verifier `number` cannot compare with a list of lists, which is an error; `has` alone would give a score."""
    row = {**rows(1)[0], "verifiers": ["has", "number"], "verifier": "has", "references": {"has": "c", "number": [[1]]}}
    (group,) = judge(opened(bench), RewardOptions(weights={"has": 1, "number": 1}), [(Prompt("p", text="x"), row, [completion("c 1")])])
    assert group[0].score is None and group[0].rollout.verdict.score is None
    assert group[0].rollout.verdict.detail.startswith("number: ")


@pytest.mark.parametrize(
    ("row", "reward", "complaint"),
    [
        ({"verifiers": ["has", "digit"]}, None, r"names 2 verifiers; say how they make a reward"),
        ({"verifiers": ["has", "dgit"]}, {"weights": {"has": 1}}, r"verifier 'dgit' is not one of the stage's \(did you mean 'digit'\?\)"),
        ({"verifiers": ["has", "digit"]}, {"weights": {"has": 1}}, r"verifier 'digit' is not in the stage's reward\.weights"),
        ({"verifiers": ["has", "digit"]}, {"order": ["has", "short"]}, r"verifier 'digit' is not in the stage's reward\.order"),
        ({"verifiers": []}, None, r"verifiers is \[\], not a list of different names"),
        ({"verifiers": ["has", "has"]}, None, r"not a list of different names"),
        ({"verifiers": ["has"], "verifier": "has"}, None, r"has `verifier` and `verifiers`"),
        ({"verifiers": ["has"], "references": {"digit": 1}}, None, r"references has 'digit', which is no verifier of the row"),
        ({"verifiers": ["has"], "references": ["c"]}, None, r"references is \['c'\], not an object"),
        ({"verifiers": ["has"]}, {"order": ["has", "digit"]}, r"reward\.order has nothing to order"),
        ({"verifiers": ["has"]}, {"weights": {"has": 1, "digit": 1}}, r"reward names 'digit', and no row does"),
    ],
)
def test_rows_and_rewards_that_do_not_fit_are_refused(bench: Any, row: dict[str, Any], reward: Any, complaint: str) -> None:
    options = config(reward=reward)
    context = context_of(bench, options, [{**rows(1)[0], **row}])
    with pytest.raises(DataError, match=complaint):
        PromptPool(Trainee(context, options), options)


def test_a_reward_by_an_unknown_verifier_and_a_row_without_a_reference_are_refused(bench: Any) -> None:
    options = config(reward={"weights": {"hs": 1}})
    with pytest.raises(VerifierError, match=r"reward names 'hs', which is no verifier of the stage \(did you mean 'has'\?\)"):
        PromptPool(Trainee(context_of(bench, options, rows(1)), options), options)
    row = {"id": "x", "messages": rows(1)[0]["messages"], "verifiers": ["has", "digit"], "references": {"has": "c"}}
    options = config(reward={"weights": {"has": 1, "digit": 1}})
    with pytest.raises(DataError, match=r"row 'x': there is no reference for the verifier 'digit'"):
        PromptPool(Trainee(context_of(bench, options, [row], name="other"), options), options)


# Shapers and cut-off answers


class Doubled:
    def shape(self, group: Sequence[Rollout], rewards: Sequence[float]) -> list[float]:
        return [2 * reward for reward in rewards]


def judged(texts: Sequence[tuple[str, int, str]], bench: Any) -> Any:
    row = {**rows(1)[0], "verifier": "has", "references": {"has": "c"}}
    answers = [completion(text, tokens, reason, sample) for sample, (text, tokens, reason) in enumerate(texts)]
    (group,) = judge(opened(bench), None, [(Prompt("p", text="x"), row, answers)])
    return group


def test_shapers_come_in_the_recipe_s_order(bench: Any) -> None:
    """DAPO's soft overlong punishment with its own numbers: limit 20,480 and cache 4,096, so −1/2 at 18,432 tokens."""
    group = judged([("c", 100, "stop"), ("c", 18_432, "stop"), ("x", 20_480, "length")], bench)
    overlong = SoftOverlong(SoftOverlongConfig(max_len=20_480, cache=4_096))
    options = config(truncated="keep")
    assert [r.reward for r in shaped([overlong, Doubled()], options, group)] == [2.0, 1.0, -2.0]
    assert [r.reward for r in shaped([Doubled(), overlong], options, group)] == [2.0, 1.5, -1.0]


def test_no_end_token_costs_what_tulu_3_takes(bench: Any) -> None:
    """Tülu 3's PPO gives 10 or 0 and −10 without an end token; 3.1's GRPO 0. As a dial, and as a shaper."""
    group = judged([("c", 5, "stop"), ("c", 12, "length"), ("x", 5, "stop")], bench)
    assert [r.reward for r in shaped([], config(reward_scale=10, truncated="penalise", truncation_reward=-10), group)] == [10, -10, 0]
    assert [r.reward for r in shaped([], config(reward_scale=10, truncated="penalise"), group)] == [10, 0, 0]
    assert [r.reward for r in shaped([], config(reward_scale=10, truncated="keep"), group)] == [10, 10, 0]
    assert [r.reward for r in shaped([NoEos(NoEosConfig(value=-10))], config(reward_scale=10), group)] == [10, -10, 0]


# Answers that go round in circles


def test_looping_answers_are_cut_penalised_and_trained(bench: Any) -> None:
    """At a low temperature a small random model soon says the same again and again."""
    looks = {"loop_tokens": 12, "max_period": 4, "reward": -1.0}
    dials = {
        "max_new_tokens": 48,
        "temperature": 0.25,
        "truncated": "mask",
        "drop_without_signal": False,
        "max_refills": 0,
        "prompts_per_step": 3,
    }
    plain, _ = harvest_of(bench, config(**dials), rows(), name="plain")
    found, _ = harvest_of(bench, config(**dials, repetition=looks), rows(), name="found")
    options = RepetitionOptions(**looks)
    before = {r.prompt.id + str(r.completion.sample): r.completion for g in plain.groups for r in g.rollouts}
    from steelyard_rl.loops import periodic_end

    looped = 0
    for group in found.groups:
        for rollout, mask in zip(group.rollouts, group.masks, strict=True):
            made, whole = rollout.completion, before.get(rollout.prompt.id + str(rollout.completion.sample))
            end = periodic_end(made.token_ids, run=12, max_period=4)
            if end is None:
                continue
            looped += 1
            assert end == len(made.token_ids) and made.finish_reason == "length" and rollout.reward == options.reward
            assert mask is None, "what is to be unlearnt is trained, though answers cut off at the limit are not"
            assert len(made.logprobs or ()) == end
            if whole is not None:
                assert whole.token_ids[:end] == made.token_ids and whole.text.startswith(made.text)
    assert looped >= 3
    assert found.metrics()["rl/looped"] * found.counts["rollouts"] >= looped
    assert found.metrics()["rl/truncated"] + found.metrics()["rl/looped"] <= 1


def test_looking_every_few_tokens_samples_fewer_of_them(bench: Any) -> None:
    looks = {"loop_tokens": 12, "max_period": 4}
    dials = {"max_new_tokens": 64, "temperature": 0.25, "drop_without_signal": False, "max_refills": 0, "prompts_per_step": 3}
    written = {}
    for name, every in (("late", None), ("early", 16)):
        options = config(**dials, repetition={**looks, "check_every": every})
        context = context_of(bench, options, rows(), name=name)
        trainee = Trainee(context, options)
        engine = context.engine(context.model, module=trainee.model)
        counted, generate = [0], engine.generate

        def counting(prompts: Any, sampling: Any, counted: Any = counted, generate: Any = generate) -> Any:
            made = generate(prompts, sampling)
            counted[0] += sum(len(one.token_ids) for group in made for one in group)
            return made

        engine.generate = counting
        harvest = roll_out(context, options, engine, PromptPool(trainee, options), step=0, cursor=0)
        assert harvest.metrics()["rl/looped"] > 0.1
        assert all(len(r.completion.token_ids) <= 64 for g in harvest.groups for r in g.rollouts)
        written[name] = counted[0]
    assert written["early"] < 0.8 * written["late"]
