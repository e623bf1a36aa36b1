"""The stage `rl`: its presets, and the dials that work over several optimiser steps, with the real engine and verifier pool."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from ruamel.yaml import YAML
from transformers import AutoModelForSequenceClassification

import steelyard_rl.experience
import steelyard_rl.updates
from steelyard.errors import EngineError, Interrupted, ModelError
from steelyard.plugins import load_registry
from steelyard.records import Rollout
from steelyard_rl.config import GrpoConfig, RlConfig
from steelyard_rl.losses import correction_weights
from steelyard_rl.policy import PolicyOptimisation
from steelyard_rl.policy_options import PolicyOptions
from steelyard_rl.presets import PRESETS
from steelyard_rl.rollouts import PromptPool, roll_out
from steelyard_sft.config import SftConfig
from steelyard_sft.supervised import Sft
from steelyard_torch.models import load_model, load_tokenizer
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


def critic(bench: Any, seed: int = 0) -> Path:
    """A reward model as a stage leaves it, with a head of random weights on the talker's body."""
    folder = Path(bench.models / f"critic-{seed}")
    if not folder.exists():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(talker(bench), num_labels=1)
        torch.nn.init.normal_(model.score.weight, std=0.3)
        model.save_pretrained(folder)
        load_tokenizer(talker(bench)).save_pretrained(folder)
    return folder


def prompts(count: int = 12) -> list[dict[str, Any]]:
    """The right answer is the question."""
    return [
        {"id": f"q{i}", "messages": [{"role": "user", "content": LETTERS[i % 6]}], "verifier": "same", "reference": LETTERS[i % 6]}
        for i in range(count)
    ]


def config(**keys: Any) -> RlConfig:
    sizes = {"steps": 2, "prompts_per_step": 4, "samples_per_prompt": 8, "max_new_tokens": 4}
    return RlConfig(**{"lr": 1e-3, **sizes, **keys})


def context_of(bench: Any, options: RlConfig, *, name: str = "step", value: Path | None = None, **keys: Any) -> Any:
    data = bench.root / "data"
    if not data.exists():
        bench.data(prompts())
    keys.setdefault("reference", talker(bench))
    verifiers = bench.verifiers({"same": ("exact", {}, None)})
    context = bench.context(options, model=talker(bench), data=data, name=name, verifiers=verifiers, **keys)
    return context if value is None else replace(context, inputs={"model:value": value})


def train(bench: Any, options: RlConfig, **keys: Any) -> Any:
    context = context_of(bench, options, **keys)
    return PolicyOptimisation(options).run(context), context


def equal(bench: Any, one: Path, other: Path) -> bool:
    mine, theirs = bench.weights(one), bench.weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# Presets

LEARNING: dict[str, dict[str, Any]] = {
    "grpo": {"lr": 4e-3},
    "dr_grpo": {"lr": 4e-3},
    "dapo": {"lr": 4e-3},
    "gspo": {"lr": 2e-3, "minibatches": 2},
    "cispo": {"lr": 4e-3},
    "rloo": {"lr": 4e-3},
    "reinforce_pp": {"lr": 4e-3},
    "ppo": {"lr": 1e-3, "steps": 14, "samples_per_prompt": 12, "kl_coefficient": 0.01},
    "mirror_descent": {"lr": 4e-3, "tau": 0.1, "minibatches": 3, "samples_per_prompt": 16, "drop_without_signal": True},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns(bench: Any, preset: str) -> None:
    options = config(**{"preset": preset, "steps": 20, "prompts_per_step": 6, **LEARNING[preset]})
    result, context = train(bench, options, value=critic(bench) if preset == "ppo" else None)
    accuracy = context.io.series("rl/accuracy")
    updates = options.updates_per_step
    first, last = accuracy[: 3 * updates], accuracy[-3 * updates :]
    assert sum(last) / len(last) > sum(first) / len(first) + 0.25, accuracy[::updates]
    assert result.facts["rollout_steps"] == options.steps


def test_presets_have_the_numbers_of_their_recipes() -> None:
    """RECIPES 1.2–1.8, 2.7, 12, 13."""
    expected: dict[str, dict[str, Any]] = {
        "grpo": {"clip_low": 0.2, "clip_high": 0.2, "scale_by_std": True, "loss_reduction": "sequence_mean", "kl_coefficient": 0.0},
        "dr_grpo": {"scale_by_std": False, "loss_reduction": "constant", "clip_low": 0.2, "clip_high": 0.2, "kl_coefficient": 0.0},
        "dapo": {"clip_low": 0.2, "clip_high": 0.28, "loss_reduction": "token_mean", "kl_coefficient": 0.0, "drop_without_signal": True},
        "gspo": {"clip_low": 3e-4, "clip_high": 4e-4, "importance": "sequence", "minibatches": 4, "kl_coefficient": 0.0},
        "cispo": {"clip_low": None, "ratio_cap": 5.0, "loss_reduction": "token_mean", "kl_coefficient": 0.0, "fp32_head": True},
        "rloo": {"advantage": "leave_one_out", "importance": "trajectory", "kl_in": "reward", "scale_by_std": False},
        "reinforce_pp": {"advantage": "none", "whiten": True, "kl_in": "reward", "kl_estimator": "k1"},
        "ppo": {
            "advantage": "gae",
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "clip_low": 0.2,
            "clip_high": 0.2,
            "value_clip": 0.2,
            "value_coefficient": 0.1,
            "kl_in": "reward",
            "kl_estimator": "k1",
            "kl_coefficient": 0.05,
            "whiten": True,
            "epochs": 4,
            "minibatches": 1,
            "reward_scale": 10.0,
            "truncated": "penalise",
            "truncation_reward": -10.0,
            "temperature": 1.0,
            "max_grad_norm": 1.0,
        },
        "mirror_descent": {"objective": "mirror_descent", "advantage": "group_mean", "scale_by_std": False, "reset_optimiser": True},
    }
    assert expected.keys() == PRESETS.keys()
    for preset, dials in expected.items():
        options = RlConfig(preset=preset, lr=1e-6, steps=1, **({"tau": 1.0} if preset == "mirror_descent" else {}))
        assert {name: getattr(options, name) for name in dials} == dials, preset
    assert GrpoConfig(lr=1e-6, steps=1).model_dump() == RlConfig(lr=1e-6, steps=1, preset="grpo").model_dump()


def test_a_dial_goes_before_its_preset_and_a_dump_means_the_same() -> None:
    given = config(preset="ppo", epochs=2, kl_coefficient=0.0, truncated="keep")
    assert (given.epochs, given.kl_coefficient, given.truncated, given.truncation_reward) == (2, 0.0, "keep", 0.0)
    assert given.reward_scale == 10.0
    assert config(preset="cispo", clip_high=0.2).ratio_cap is None
    for preset in PRESETS:
        whole = config(preset=preset, **({"tau": 0.5} if preset == "mirror_descent" else {}))
        assert RlConfig(**whole.model_dump()) == whole == RlConfig(**json.loads(whole.model_dump_json()))


def test_the_manual_shows_every_dial_and_every_preset_as_it_is() -> None:
    manual = (Path(steelyard_rl.experience.__file__).parent / "README.md").read_text(encoding="utf-8")
    for name in PolicyOptions.model_fields:
        assert f"`{name}`" in manual, f"README.md does not mention {name}"
    yaml = YAML(typ="safe")
    for preset, dials in PRESETS.items():
        (line,) = [line for line in manual.splitlines() if line.startswith(f"| `{preset}` |")]
        shown = dict(re.findall(r"`(\w+): ([^`]+)`", line))
        assert {name: yaml.load(text) for name, text in shown.items()} == dict(dials), preset


def test_both_kinds_are_there_and_take_a_value_model() -> None:
    registry = load_registry()
    for name in ("rl", "grpo"):
        spec = registry.get("stages", name)
        assert spec.models == ("value",) and spec.needs_verifiers and spec.distributed
    with pytest.raises(ValidationError, match="Input should be 'grpo'"):
        GrpoConfig(lr=1e-3, steps=1, preset="dapo")
    config().check_models(())
    config(preset="ppo").check_models(("value",))
    with pytest.raises(ValueError, match="needs a value model"):
        config(preset="ppo").check_models(())
    with pytest.raises(ValueError, match=r"models\.value is for advantage 'gae'"):
        config().check_models(("value",))


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"samples_per_prompt": 1}, "makes every advantage 0"),
        ({"preset": "rloo", "samples_per_prompt": 1}, "makes every advantage 0"),
        ({"advantage": "none", "scale_by_std": False, "samples_per_prompt": 1}, "drop_without_signal leaves out every group"),
        ({"preset": "ppo", "samples_per_prompt": 1, "drop_without_signal": True}, "drop_without_signal leaves out every group"),
        ({"preset": ["grpo"]}, "preset"),
        ({"truncated": "penalise", "truncation_reward": math.nan}, "finite number"),
        ({"reward_scale": math.inf}, "finite number"),
        ({"kl_coefficient": math.inf}, "finite number"),
        ({"heldout_every": 3}, "heldout_every 3 does nothing without heldout_prompts"),
        (
            {"preset": "cispo", "objective": "mirror_descent", "tau": 0.1, "loss_scope": "micro_batch"},
            "loss_scope 'micro_batch' does nothing",
        ),
        ({"minibatches": 5}, "more than prompts_per_step 4"),
        ({"kl_coefficient": 0.1, "reference_refresh": 2, "adapter": {}}, "renews whole weights"),
    ],
)
def test_settings_that_cannot_train_are_refused(keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        config(**keys)


def test_a_correction_may_be_bounded_on_one_side_only() -> None:
    assert config(correction="mask", correction_bounds=(0.5, None)).bounds == (0.5, math.inf)
    log_ratio = torch.tensor([-3.0, 0.0, 3.0])
    weights, limited = correction_weights(
        log_ratio, torch.zeros(3), torch.zeros(3, dtype=torch.int64), 1, mode="mask", level="token", bounds=(0.5, math.inf)
    )
    assert weights.tolist() == pytest.approx([0.0, 1.0, math.exp(3)]) and limited.tolist() == [True, False, False]
    assert config(correction="truncate").bounds == (0.0, 2.0)


# PPO and others with advantages for each token, in float64


def straight(bench: Any, options: RlConfig, harvest: Any, critic_folder: Path | None) -> tuple[list[float], list[float]]:
    """Policy and value losses of a rollout step's optimiser steps from the formulas (RECIPES 1.2, 2.7), in float64, answer by
    answer."""
    model, reference = load_model(talker(bench)).double(), load_model(bench.model()).double()
    nets = [model]
    value_model: Any = None
    if critic_folder is not None:
        value_model = AutoModelForSequenceClassification.from_pretrained(critic_folder, num_labels=1).double()
        nets.append(value_model)
    optimizers = [torch.optim.AdamW(net.parameters(), lr=options.lr, eps=options.adam_eps, weight_decay=0.0) for net in nets]
    rollouts = [rollout for group in harvest.groups for rollout in group.rollouts]

    def logprobs(of: Any, rollout: Rollout) -> torch.Tensor:
        prompt, answer = rollout.prompt.token_ids or (), rollout.completion.token_ids
        logits = of(input_ids=torch.tensor([[*prompt, *answer]])).logits[0] / options.temperature
        return torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1).gather(1, torch.tensor(answer)[:, None])[:, 0]

    def values(rollout: Rollout) -> torch.Tensor:
        prompt, answer = rollout.prompt.token_ids or (), rollout.completion.token_ids
        hidden = value_model.model(input_ids=torch.tensor([[*prompt, *answer]]))[0][0]
        return value_model.score(hidden)[len(prompt) - 1 : -1, 0]

    with torch.no_grad():
        old = [logprobs(model, rollout) for rollout in rollouts]
        known = [logprobs(reference, rollout) for rollout in rollouts]
        foreseen = [torch.zeros(len(o)).double() if value_model is None else values(r) for o, r in zip(old, rollouts, strict=True)]
    lam = 1.0 if value_model is None else options.gae_lambda
    advantages, returns = [], []
    for rollout, o, k, v in zip(rollouts, old, known, foreseen, strict=True):
        reward = -options.kl_coefficient * (o - k)
        reward[-1] += float(rollout.reward or 0)
        ahead, own = 0.0, []
        for t in reversed(range(len(o))):
            following = v[t + 1].item() if t + 1 < len(o) else 0.0
            ahead = reward[t].item() + options.gamma * following - v[t].item() + options.gamma * lam * ahead
            own.append(ahead)
        advantages.append(torch.tensor(own[::-1], dtype=torch.float64))
        returns.append(advantages[-1] + v)
    every = torch.cat(advantages)
    advantages = [(own - every.mean()) / (every.var() + 1e-8).sqrt() for own in advantages]
    count = len(every)
    policy_losses, value_losses = [], []
    for _ in range(options.epochs):
        policy = value = torch.zeros((), dtype=torch.float64)
        for place, rollout in enumerate(rollouts):
            ratio = (logprobs(model, rollout) - old[place]).exp()
            clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
            policy = policy - torch.minimum(ratio * advantages[place], clipped * advantages[place]).sum() / count
            if value_model is not None:
                new = values(rollout)
                near = foreseen[place] + (new - foreseen[place]).clamp(-options.value_clip, options.value_clip)
                worst = torch.maximum((new - returns[place]) ** 2, (near - returns[place]) ** 2)
                value = value + options.value_coefficient * 0.5 * worst.sum() / count
        for loss, optimizer in zip((policy, value), optimizers, strict=False):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        policy_losses.append(policy.item())
        value_losses.append(value.item())
    return policy_losses, value_losses


@pytest.mark.parametrize("preset", ["ppo", "reinforce_pp"])
def test_losses_over_epochs_are_those_of_a_straight_computation_in_float64(bench: Any, preset: str) -> None:
    # A large epsilon keeps AdamW's step smooth in the gradient, so that float32 and float64 can be compared.
    options = config(
        preset=preset, steps=1, epochs=3, lr=0.3, adam_eps=1.0, max_grad_norm=None, micro_batch_tokens=64, kl_coefficient=0.2,
        reward_scale=2.0, truncated="keep", samples_per_prompt=4,
    )  # fmt: skip
    folder = critic(bench) if preset == "ppo" else None
    context = context_of(bench, options, reference=bench.model())
    trainee = Trainee(context, options, dropout=False)
    harvest = roll_out(
        context, options, context.engine(context.model, module=trainee.model), PromptPool(trainee, options), step=0, cursor=0
    )
    policy, value = straight(bench, options, harvest, folder)
    _, context = train(bench, options, name="trained", reference=bench.model(), value=folder)
    assert context.io.series("train/loss") == pytest.approx(policy, rel=1e-4, abs=1e-6)
    assert policy[2] < policy[0]
    if preset == "ppo":
        assert context.io.series("rl/value_loss") == pytest.approx(value, rel=1e-4)
        assert len(set(context.io.series("rl/explained_variance"))) == 1, "before the rollout step's training, so once for all its updates"


class FirstHalf:
    """Rewards answers that begin in the first half of the letters, so that a state with an answer's first letter says what will come."""

    def shape(self, group: Sequence[Rollout], rewards: Sequence[float]) -> list[float]:
        return [float(rollout.completion.text[:1] in set("abc")) for rollout in group]


def test_the_value_model_learns_to_foresee(bench: Any) -> None:
    options = config(
        preset="ppo", steps=8, samples_per_prompt=8, prompts_per_step=6, lr=1e-6, value_lr=5e-3, value_clip=None, kl_coefficient=0.0,
        truncated="keep",
    )  # fmt: skip
    _, context = train(bench, options, value=talker(bench), shapers=[FirstHalf()])
    explained = context.io.series("rl/explained_variance")[::4]
    assert explained[0] == pytest.approx(0.0, abs=1e-6), "a language model begins with a head of zeros"
    assert explained[-1] > 0.3, explained


def test_a_value_model_of_another_vocabulary_or_none_is_refused(bench: Any) -> None:
    options = config(preset="ppo")
    with pytest.raises(ModelError, match="needs a value model: name a reward model's stage"):
        train(bench, options)
    with pytest.raises(ModelError, match="another vocabulary"):
        train(bench, options, name="other", value=bench.model(characters=bench.characters + "!"))


# Resuming


@pytest.mark.parametrize("stop", [1, 2])
def test_policy_value_model_moving_reference_and_entropy_resume_to_the_very_same_numbers(bench: Any, stop: int) -> None:
    options = config(
        preset="ppo", steps=3, epochs=2, minibatches=2, lr=5e-3, kl_coefficient=0.1, reference_refresh=4, reference_mix=0.5,
        entropy_coefficient=0.01, entropy_target=1.0, samples_per_prompt=4,
    )  # fmt: skip
    whole, uninterrupted = train(bench, options, name="whole", value=critic(bench))
    with pytest.raises(Interrupted):
        train(bench, options, name="stopped", io=bench.io(stop_after=4 * stop), value=critic(bench))
    resumed, context = train(bench, options, name="stopped", value=critic(bench))
    for name in ("train/loss", "rl/value_loss", "rl/kl", "rl/entropy_coefficient", "rl/accuracy"):
        assert context.io.series(name) == uninterrupted.io.series(name)[4 * stop :], name
    assert equal(bench, whole.model, resumed.model)


# The reference


def test_a_reference_that_is_renewed_is_the_policy(bench: Any) -> None:
    _, context = train(bench, config(steps=4, kl_coefficient=0.1, lr=1e-2, reference_refresh=2, minibatches=1))
    kl = context.io.series("rl/kl")
    assert kl[1] > 1e-4 and kl[3] > 1e-4
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[2] == pytest.approx(0, abs=1e-6), "renewed before the third step"
    _, context = train(bench, config(steps=4, kl_coefficient=0.1, lr=1e-2, reference_refresh=2, reference_mix=0.5), name="half")
    assert 0 < context.io.series("rl/kl")[2] < context.io.series("rl/kl")[1] * 2


def test_mirror_descent_forgets_the_moments_before_every_rollout_step(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    learn = steelyard_rl.updates.Learner._update

    def noting(self: Any, *args: Any, **keys: Any) -> None:
        steps.append(max((int(state["step"]) for state in self._trainee.optimizer.state.values()), default=0))
        learn(self, *args, **keys)

    monkeypatch.setattr(steelyard_rl.updates.Learner, "_update", noting)
    train(bench, config(preset="mirror_descent", tau=0.5, steps=3, minibatches=2))
    assert steps == [0, 1, 0, 1, 0, 1]
    steps.clear()
    train(bench, config(preset="mirror_descent", tau=0.5, steps=2, minibatches=2, reset_optimiser=False), name="kept")
    assert steps == [0, 1, 2, 3]


# What is computed


@pytest.mark.parametrize(
    ("keys", "scored"),
    [
        ({}, []),
        ({"epochs": 3}, []),
        ({"minibatches": 2}, [2]),
        ({"old_logprobs": "engine", "minibatches": 2}, []),
        ({"kl_coefficient": 0.1}, [4]),
        ({"preset": "rloo", "kl_coefficient": 0.1}, [4, 4]),
    ],
)
def test_nothing_is_scored_that_is_not_needed(bench: Any, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], scored: list[int]) -> None:
    asked: list[int] = []
    score = steelyard_rl.experience.score

    def noting(trainee: Any, model: Any, experience: Any, places: Sequence[int], options: Any) -> Any:
        asked.append(len({experience.prompts[place] for place in places}))
        return score(trainee, model, experience, places, options)

    monkeypatch.setattr(steelyard_rl.updates, "score", noting)
    train(bench, config(steps=1, max_refills=20, **keys))
    assert asked == scored


def test_later_epochs_are_off_the_policy_that_sampled(bench: Any) -> None:
    _, context = train(bench, config(steps=1, epochs=3, minibatches=2, lr=1e-2, max_refills=20))
    drift = context.io.series("rl/approx_kl")
    assert len(drift) == 6 and drift[0] == pytest.approx(0, abs=1e-9) and min(drift[1:]) > 1e-6
    assert [step for step, _ in context.io.metrics] == [1, 2, 3, 4, 5, 6]


def test_minibatches_are_drawn_by_the_seed_and_hold_every_group_once_an_epoch() -> None:
    draw = steelyard_rl.experience.minibatches
    epochs = draw(10, parts=4, epochs=3, seed=1)
    assert epochs == draw(10, parts=4, epochs=3, seed=1) != draw(10, parts=4, epochs=3, seed=2)
    assert all(sorted(place for part in parts for place in part) == list(range(10)) for parts in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert {len(part) for parts in epochs for part in parts} == {2, 3}
    assert draw(2, parts=4, epochs=1, seed=1) in ([[[0], [1]]], [[[1], [0]]])
    assert draw(3, parts=1, epochs=2, seed=1) == [[[0, 1, 2]], [[0, 1, 2]]]


def test_a_mean_per_micro_batch_depends_on_their_cut_and_one_over_the_step_does_not(bench: Any) -> None:
    def losses(**keys: Any) -> list[float]:
        options = config(steps=1, loss_reduction="token_mean", max_refills=20, kl_coefficient=0.3, **keys)
        name = "-".join(map(str, keys.values()))
        found: list[float] = train(bench, options, name=name, reference=bench.model())[1].io.series("train/loss")
        return found

    assert losses(micro_batch_tokens=40) == pytest.approx(losses(micro_batch_tokens=10_000), rel=1e-5)
    one, other = (losses(micro_batch_tokens=budget, loss_scope="micro_batch") for budget in (40, 10_000))
    assert other == pytest.approx(losses(micro_batch_tokens=9_000), rel=1e-5), "one micro-batch is the whole step"
    assert one != pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_cut_into_micro_batches_changes_nothing(bench: Any, preset: str) -> None:
    def losses(budget: int) -> dict[str, list[float]]:
        own = {"tau": 0.3} if preset == "mirror_descent" else {}
        options = config(preset=preset, steps=1, lr=1e-2, adam_eps=1e-2, minibatches=2, micro_batch_tokens=budget, **own)
        value = critic(bench) if preset == "ppo" else None
        _, context = train(bench, options, name=f"b{budget}", reference=bench.model(), value=value)
        names = ("train/loss", "train/grad_norm", "rl/ratio_mean", "rl/value_grad_norm")
        return {name: context.io.series(name) for name in names if name != "rl/value_grad_norm" or value is not None}

    one_row, all_rows = losses(1), losses(100_000)
    for name, values in all_rows.items():
        assert one_row[name] == pytest.approx(values, rel=1e-3, abs=1e-5), name
    assert len(all_rows["train/loss"]) >= 2


def test_tokens_that_older_weights_sampled_have_their_ratio_against_those(bench: Any) -> None:
    dials = {"steps": 6, "lr": 2e-2, "samples_per_prompt": 8, "max_new_tokens": 4, "drop_without_signal": False, "truncated": "keep"}
    _, context = train(bench, config(**dials, partial={"budget": 1, "stale": "keep"}, max_logprob_gap=1e-3))
    trained = [metrics for _, metrics in context.io.metrics if "train/loss" in metrics]
    stale = [metrics["rl/stale_tokens"] for metrics in trained]
    assert max(stale) > 0.3
    assert trained[0]["rl/ratio_mean"] == pytest.approx(1.0, abs=1e-4), "no optimiser step before it"
    for metrics in trained[1:]:
        moved = abs(metrics["rl/ratio_mean"] - 1) > 1e-4
        assert moved == (metrics["rl/stale_tokens"] > 0), "one optimiser step a rollout step, so only they are off the policy"
    assert max(metrics["rl/logprob_gap"] for metrics in trained) < 1e-3, "and they are left out of the comparison with the engine"


# Train and inference


def test_a_correction_needs_the_engines_log_probabilities(bench: Any) -> None:
    class Silent:
        def __init__(self, engine: Any):
            self._engine = engine

        def __getattr__(self, name: str) -> Any:
            return getattr(self._engine, name)

        def generate(self, prompts: Any, sampling: Any) -> Any:
            return self._engine.generate(prompts, replace(sampling, logprobs=False))

    for keys in ({"correction": "truncate"}, {"old_logprobs": "engine"}):
        options = config(steps=1, **keys)
        context = context_of(bench, options, name=str(keys))
        factory = context.engine
        context = replace(context, engine=lambda *args, factory=factory, **given: Silent(factory(*args, **given)))
        with pytest.raises(EngineError, match="the engine gives no log-probabilities, so"):
            PolicyOptimisation(options).run(context)


def test_the_correction_is_one_where_engine_and_trainer_agree(bench: Any) -> None:
    plain, _ = train(bench, config(steps=2), name="plain")
    for mode in ("truncate", "mask"):
        corrected, context = train(bench, config(steps=2, correction=mode, off_policy_mask=1.0), name=mode)
        assert context.io.series("rl/correction_mean") == pytest.approx([1.0] * 2, abs=1e-4)
        assert context.io.series("rl/correction_limited") == [0.0] * 2 == context.io.series("rl/off_policy_dropped")
        for name, tensor in bench.weights(corrected.model).items():
            torch.testing.assert_close(tensor, bench.weights(plain.model)[name], atol=2e-4, rtol=0)


def test_the_ratio_may_be_against_the_engine(bench: Any) -> None:
    one, context = train(bench, config(steps=2, old_logprobs="engine", max_logprob_gap=1e-3), name="engine")
    other, _ = train(bench, config(steps=2), name="trainer")
    assert context.io.series("rl/ratio_mean") == pytest.approx([1.0] * 2, abs=1e-4)
    for name, tensor in bench.weights(one.model).items():
        torch.testing.assert_close(tensor, bench.weights(other.model)[name], atol=2e-4, rtol=0)


# Entropy


def test_an_entropy_bonus_keeps_the_entropy_up_and_a_target_steers_its_weight(bench: Any) -> None:
    dials = {"steps": 10, "prompts_per_step": 6, "lr": 4e-3}
    _, plain = train(bench, config(**dials), name="plain")
    _, bonus = train(bench, config(**dials, entropy_coefficient=0.5), name="bonus")
    assert bonus.io.series("rl/policy_entropy")[-1] > plain.io.series("rl/entropy")[-1] + 0.2
    _, steered = train(bench, config(**dials, entropy_coefficient=0.1, entropy_target=100.0, entropy_change=0.05), name="low")
    assert steered.io.series("rl/entropy_coefficient") == pytest.approx([0.1 + 0.05 * i for i in range(10)])
    _, steered = train(bench, config(**dials, entropy_coefficient=0.1, entropy_target=1e-6, entropy_change=0.05), name="high")
    assert steered.io.series("rl/entropy_coefficient") == [pytest.approx(0.1), *[0.0] * 9], "it counts only below the target"


def test_an_entropy_that_is_not_a_number_steers_nothing() -> None:
    """Its optimiser step is skipped, and says nothing of where the entropy is."""
    control = steelyard_rl.updates._EntropyControl(config(entropy_coefficient=0.01, entropy_target=1.0))
    control.observe(0.5)
    before = control.state()
    control.observe(math.nan)
    assert control.state() == before and control.coefficient == pytest.approx(0.015)


def test_metrics_are_finite(bench: Any) -> None:
    _, context = train(bench, config(preset="ppo", steps=2, samples_per_prompt=1), value=critic(bench))
    assert {"rl/value_loss", "rl/value_grad_norm", "rl/explained_variance", "rl/kl", "rl/clip_fraction"} <= context.io.metrics[0][1].keys()
    assert all(math.isfinite(value) for _, metrics in context.io.metrics for value in metrics.values())
