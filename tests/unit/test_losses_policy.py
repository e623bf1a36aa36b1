"""Policy and value losses against loops over single tokens in float64, against TRL's own code, and at their edges."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from steelyard.errors import UsageError
from steelyard_rl.losses import PolicyTokens, correction_weights, divergence, importance_log_ratio, policy_loss, row_weights, value_loss
from steelyard_rl.policy_options import PolicyOptions

LENGTHS = [3, 1, 5, 0, 2]
"""Trained tokens of the rows; the fourth is masked whole."""
PROMPTS = [0, 0, 1, 1, 1]
ROWS = torch.repeat_interleave(torch.arange(5), torch.tensor(LENGTHS))
ADVANTAGES = torch.tensor([1.5, -0.5, -2.0, 1.0, 0.7], dtype=torch.float64)
TOKENS = sum(LENGTHS)


def random_tokens(seed: int = 4, spread: float = 0.5) -> PolicyTokens:
    """Log-probabilities near each other, so that some ratios are clipped and others are not."""
    draw = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(TOKENS, generator=draw, dtype=torch.float64) - 0.01

    def near() -> torch.Tensor:
        return old + spread * torch.randn(TOKENS, generator=draw, dtype=torch.float64)

    new, sampled, reference = near(), near(), near()
    entropy = 2 * torch.rand(TOKENS, generator=draw, dtype=torch.float64)
    return PolicyTokens(new.requires_grad_(), old, ADVANTAGES[ROWS], ROWS, 5, sampled, reference, entropy.requires_grad_())


def measure(tokens: PolicyTokens, dials: PolicyOptions, *, length: int = 16) -> Any:
    reduction = "sequence_sum" if dials.objective == "mirror_descent" else dials.loss_reduction
    weights = row_weights(LENGTHS, reduction=reduction, prompts=PROMPTS, constant_length=length)
    return policy_loss(tokens, dials, weights=weights, step_tokens=TOKENS)


# The same numbers, token by token.


def straight(tokens: PolicyTokens, dials: PolicyOptions, *, length: int = 16) -> torch.Tensor:
    """The step's loss from the published formulas, one scalar after another; sg[x] is ``x.detach()``."""
    rows, at = [], 0
    for count in LENGTHS:
        rows.append(range(at, at + count))
        at += count
    losses = []
    for places in rows:
        answer = []
        d = {t: tokens.logprobs[t] - tokens.old[t] for t in places}
        mean = sum(d.values()) / max(len(places), 1)
        for t in places:
            advantage = tokens.advantages[t]
            if dials.objective == "mirror_descent":
                # RECIPES 1.8 as a loss for the whole answer, told off token by token.
                whole = sum(d.values())
                term = (-advantage * whole + dials.tau / 2 * whole**2) / len(places)
            else:
                r = {
                    "token": lambda: torch.exp(d[t]),  # noqa: B023 - called at once
                    "sequence": lambda: torch.exp(mean),  # noqa: B023
                    "sequence_token": lambda: torch.exp(mean).detach() * torch.exp(tokens.logprobs[t] - tokens.logprobs[t].detach()),  # noqa: B023
                    "trajectory": lambda: torch.exp(sum(d.values())),  # noqa: B023
                }[dials.importance]()
                low = -math.inf if dials.clip_low is None else 1 - dials.clip_low
                high = math.inf if dials.clip_high is None else 1 + dials.clip_high
                bounded = min(max(r, torch.tensor(low, dtype=torch.float64)), torch.tensor(high, dtype=torch.float64))
                if dials.objective == "cispo":
                    if dials.ratio_cap is not None:
                        bounded = min(bounded, torch.tensor(dials.ratio_cap, dtype=torch.float64))
                    term = -bounded.detach() * advantage * tokens.logprobs[t]
                else:
                    surrogate = min(r * advantage, bounded * advantage)
                    if dials.dual_clip is not None and advantage < 0:
                        surrogate = max(surrogate, dials.dual_clip * advantage)
                    term = -surrogate
            if dials.correction != "none":
                gap = {u: tokens.old[u] - tokens.sampled[u] for u in places}
                w = {"token": gap[t], "sequence": sum(gap.values()), "geometric": sum(gap.values()) / len(places)}[
                    dials.correction_level
                ].exp()
                inside = dials.bounds[0] <= w <= dials.bounds[1]
                term = term * (w.clamp(*dials.bounds) if dials.correction == "truncate" else w if inside else 0.0)
            if dials.off_policy_mask is not None and advantage < 0:
                drift = sum(float(tokens.sampled[u] - tokens.logprobs[u].detach()) for u in places) / len(places)
                term = term * (0.0 if drift > dials.off_policy_mask else 1.0)
            if dials.kl_coefficient and dials.kl_in == "loss":
                k = tokens.logprobs[t] - tokens.reference[t]
                kl = {"k1": k, "k2": k**2 / 2, "k3": torch.exp(-k) - 1 + k}[dials.kl_estimator]
                if dials.kl_importance:
                    kl = kl * r
                term = term + dials.kl_coefficient * kl
            answer.append(term)
        losses.append(answer)
    full = [answer for answer in losses if answer]
    if dials.objective == "mirror_descent" or dials.loss_reduction == "sequence_mean":
        scale = 1 if dials.objective != "mirror_descent" else None
        loss = sum(sum(answer) / (len(answer) if scale else 1) for answer in full) / len(full)
    elif dials.loss_reduction == "token_mean":
        loss = sum(sum(answer) for answer in full) / sum(len(answer) for answer in full)
    elif dials.loss_reduction == "constant":
        loss = sum(sum(answer) for answer in full) / (length * len(full))
    else:
        by_prompt = defaultdict(list)
        for prompt, answer in zip(PROMPTS, losses, strict=True):
            by_prompt[prompt].extend(answer)
        loss = sum(sum(answer) / len(answer) for answer in by_prompt.values()) / len(by_prompt)
    if dials.entropy_coefficient:
        loss = loss - dials.entropy_coefficient * tokens.entropy.mean()
    return loss


FORMULAS: list[dict[str, Any]] = [
    {"preset": "grpo"},
    {"preset": "grpo", "kl_coefficient": 0.04},
    {"preset": "grpo", "kl_coefficient": 0.3, "kl_estimator": "k2"},
    {"preset": "grpo", "kl_coefficient": 0.3, "kl_estimator": "k1", "kl_importance": True},
    {"preset": "grpo", "kl_coefficient": 0.3, "kl_importance": True},
    {"preset": "grpo", "loss_reduction": "prompt_mean"},
    {"preset": "grpo", "dual_clip": 1.3},
    {"preset": "grpo", "entropy_coefficient": 0.7},
    {"preset": "grpo", "correction": "truncate", "correction_bounds": (0.0, 1.2)},
    {"preset": "grpo", "correction": "mask", "correction_level": "sequence", "correction_bounds": (0.4, 1.5)},
    {"preset": "grpo", "correction": "truncate", "correction_level": "geometric", "correction_bounds": (0.9, 1.1), "kl_coefficient": 0.1},
    {"preset": "grpo", "off_policy_mask": 0.05},
    {"preset": "dr_grpo"},
    {"preset": "dapo"},
    {"preset": "gspo"},
    {"preset": "gspo", "importance": "sequence_token", "clip_low": 0.1, "clip_high": 0.1},
    {"preset": "gspo", "kl_coefficient": 0.3, "kl_importance": True},
    {"preset": "cispo"},
    {"preset": "cispo", "ratio_cap": 1.1},
    {"preset": "cispo", "clip_high": 0.2},
    {"preset": "cispo", "clip_low": 0.3, "clip_high": 0.1, "importance": "sequence"},
    {"preset": "rloo"},
    {"preset": "rloo", "clip_low": None, "clip_high": None},
    {"preset": "reinforce_pp"},
    {"preset": "ppo"},
    {"preset": "mirror_descent", "tau": 0.3},
    {"preset": "mirror_descent", "tau": 2.0, "correction": "mask", "correction_level": "sequence", "off_policy_mask": 0.05},
]


@pytest.mark.parametrize("keys", FORMULAS, ids=lambda keys: "-".join(f"{value}" for value in keys.values()))
def test_values_and_gradients_are_those_of_the_formula_token_by_token(keys: dict[str, Any]) -> None:
    dials = PolicyOptions(**keys)
    tokens, again = random_tokens(), random_tokens()
    mine, theirs = measure(tokens, dials).value, straight(again, dials)
    mine.backward()
    theirs.backward()
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-12)
    assert tokens.logprobs.grad is not None and again.logprobs.grad is not None
    torch.testing.assert_close(tokens.logprobs.grad, again.logprobs.grad, rtol=1e-12, atol=1e-14)
    assert again.logprobs.grad.abs().max() > 0
    if dials.entropy_coefficient:
        torch.testing.assert_close(tokens.entropy.grad, again.entropy.grad)  # type: ignore[union-attr]


def test_the_examples_exercise_every_bound() -> None:
    clipped = {
        str(keys): measure(random_tokens(), PolicyOptions(**keys)).metrics["clip_fraction"].item()
        for keys in FORMULAS
        if keys["preset"] not in {"mirror_descent"} and keys.get("ratio_cap") != 5.0 and keys != {"preset": "cispo"}
    }
    unbounded = str({"preset": "rloo", "clip_low": None, "clip_high": None})
    assert clipped.pop(unbounded) == 0
    assert all(0 < share <= 1 for share in clipped.values()), clipped
    limited = measure(random_tokens(), PolicyOptions(correction="truncate", correction_bounds=(0.0, 1.2))).metrics
    assert 0 < limited["correction_limited"] < 1 and limited["correction_mean"] > 0
    assert 0 < measure(random_tokens(), PolicyOptions(off_policy_mask=0.05)).metrics["off_policy_dropped"] < 1


@pytest.mark.parametrize(
    "keys",
    [
        {"kl_coefficient": 0.2, "entropy_coefficient": 0.1},
        {"preset": "gspo", "clip_low": 0.5, "clip_high": 0.5},
        {"preset": "rloo"},
        {"preset": "mirror_descent", "tau": 0.7},
        {"kl_coefficient": 0.2, "kl_importance": True, "correction": "truncate", "correction_level": "sequence"},
    ],
)
def test_gradients_agree_with_finite_differences(keys: dict[str, Any]) -> None:
    base, dials = random_tokens(3), PolicyOptions(**keys)

    def loss(logprobs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        tokens = PolicyTokens(logprobs, base.old, base.advantages, ROWS, 5, base.sampled, base.reference, entropy)
        return measure(tokens, dials).value  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(loss, (base.logprobs, base.entropy))


def test_mirror_descent_has_the_gradient_that_kimi_uses() -> None:
    """RECIPES 1.8: (1/k) Σ_j [∇log π(y_j) (r_j − r̄) − (τ/2) ∇(log π(y_j)/π_i(y_j))²], to be climbed."""
    tau, tokens = 0.4, random_tokens(5)
    measure(tokens, PolicyOptions(preset="mirror_descent", tau=tau)).value.backward()
    again = random_tokens(5).logprobs
    climbed = torch.zeros((), dtype=torch.float64)
    for row in (0, 1, 2, 4):
        logprob, old = again[row == ROWS].sum(), tokens.old[row == ROWS].sum()
        climbed = climbed + (logprob * ADVANTAGES[row] - tau / 2 * (logprob - old) ** 2) / 4
    climbed.backward()
    torch.testing.assert_close(tokens.logprobs.grad, -again.grad)


def test_the_squared_surrogate_is_the_gap_to_the_optimum_up_to_a_constant() -> None:
    """(r − b − τ l)²/(2τ), whose minimum is the closed form π ∝ π_i e^(r/τ), less its value where nothing has moved."""
    tau, dials = 0.4, PolicyOptions(preset="mirror_descent", tau=0.4)
    tokens = random_tokens(6)
    value = measure(tokens, dials).value.item()
    expected = 0.0
    for row in (0, 1, 2, 4):
        whole = (tokens.logprobs - tokens.old)[row == ROWS].sum().item()
        expected += ((ADVANTAGES[row].item() - tau * whole) ** 2 - ADVANTAGES[row].item() ** 2) / (2 * tau) / 4
    assert value == pytest.approx(expected, rel=1e-12)


def test_on_policy_every_objective_has_the_plain_policy_gradient() -> None:
    for preset in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "ppo", "mirror_descent"):
        dials = PolicyOptions(preset=preset, **({"tau": 1.0} if preset == "mirror_descent" else {}))
        base = random_tokens()
        tokens = PolicyTokens(base.logprobs, base.logprobs.detach().clone(), base.advantages, ROWS, 5)
        measure(tokens, dials).value.backward()
        weight = {"sequence_mean": 1 / torch.tensor(LENGTHS).clamp(min=1) / 4, "token_mean": torch.full((5,), 1 / 11)}
        weight["constant"] = torch.full((5,), 1 / 16 / 4)
        share = torch.full((5,), 0.25) if preset in {"mirror_descent", "rloo"} else weight[dials.loss_reduction]
        if preset == "rloo":
            share = torch.full((5,), 0.25)
        torch.testing.assert_close(tokens.logprobs.grad, -(ADVANTAGES * share.double())[ROWS], rtol=1e-6, atol=1e-9, msg=preset)


# TRL


def trl_loss(tokens: PolicyTokens, loss_type: str, *, length: int = 16, **keys: Any) -> torch.Tensor:
    """The loss of TRL's own GRPOTrainer on these tokens, in one micro-batch. Its rows are padded; a row without any trained token is left
    out here, since TRL counts it in its means over rows, which ours are not (nothing was learnt from it)."""
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    kept = [row for row, count in enumerate(LENGTHS) if count]
    width = max(LENGTHS)

    def padded(values: torch.Tensor | None) -> torch.Tensor | None:
        if values is None:
            return None
        return torch.stack([torch.nn.functional.pad(values[row == ROWS], (0, width - LENGTHS[row])) for row in kept])

    mask = torch.stack([(torch.arange(width) < LENGTHS[row]).double() for row in kept])
    trainer: Any = object.__new__(grpo_trainer.GRPOTrainer)
    dials = {
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "max_completion_length": length,
        "entropy_coef": 0.0,
        "use_adaptive_entropy": False,
        "current_gradient_accumulation_steps": 1,
    }
    args = {"use_bias_correction_kl": False, "delta": None, "steps_per_generation": 1}
    for name, value in {**dials, **{k: v for k, v in keys.items() if k not in args and k != "ratio"}}.items():
        setattr(trainer, name, value)
    trainer._entropy_bonus_enabled = bool(trainer.entropy_coef)
    trainer.args = SimpleNamespace(**{**args, **{k: v for k, v in keys.items() if k in args}})
    trainer.loss_type = loss_type
    trainer.model = SimpleNamespace(training=True)
    trainer.accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True, gather_for_metrics=lambda x: x
    )
    trainer._metrics = {"train": defaultdict(list)}
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (padded(tokens.logprobs), padded(tokens.entropy), None)
    ids = torch.zeros(len(kept), width, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": ADVANTAGES[kept],
        "old_per_token_logps": padded(tokens.old),
        "sampling_per_token_logps": padded(tokens.sampled),
        "ref_per_token_logps": padded(tokens.reference),
        "num_items_in_batch": mask.sum(),
    }
    if "ratio" in keys:
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
        inputs["importance_sampling_ratio"] = padded(keys["ratio"])
    loss: torch.Tensor = trainer._compute_loss(None, inputs)
    return loss


TRL: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("grpo", {}, {"preset": "grpo"}),
    ("grpo", {"beta": 0.04}, {"kl_coefficient": 0.04}),
    ("grpo", {"beta": 0.3, "use_bias_correction_kl": True}, {"kl_coefficient": 0.3, "kl_importance": True}),
    ("grpo", {"delta": 1.3}, {"dual_clip": 1.3}),
    ("grpo", {"off_policy_mask_threshold": 0.05}, {"off_policy_mask": 0.05}),
    ("grpo", {"entropy_coef": 0.2}, {"entropy_coefficient": 0.2}),
    # RECIPES 1.6: GSPO's loss is a sequence's; TRL's `grpo` means of one number a row are the same.
    ("grpo", {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4}, {"preset": "gspo"}),
    ("bnpo", {"epsilon_high": 0.28}, {"preset": "dapo"}),
    ("dapo", {"epsilon_high": 0.28}, {"preset": "dapo"}),
    ("dr_grpo", {}, {"preset": "dr_grpo"}),
    # RECIPES 13: TRL reads ε_high as a cap on the ratio itself.
    ("cispo", {"epsilon_high": 5.0}, {"preset": "cispo"}),
    ("cispo", {"epsilon_high": 1.1}, {"preset": "cispo", "ratio_cap": 1.1}),
]


@pytest.mark.parametrize(("loss_type", "theirs", "mine"), TRL, ids=lambda value: str(value))
def test_the_loss_is_that_of_trl(loss_type: str, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    tokens, again = random_tokens(), random_tokens()
    value, expected = measure(tokens, PolicyOptions(**mine)).value, trl_loss(again, loss_type, **theirs)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(tokens.logprobs.grad, again.logprobs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("mode", "level"), [("truncate", "token"), ("mask", "token"), ("truncate", "sequence"), ("mask", "sequence")])
def test_the_corrected_loss_is_that_of_trl(mode: str, level: str) -> None:
    """TRL multiplies each token's loss, but not its KL, by π_trainer/π_engine held within bounds, or 0 outside of them (`*_mask`)."""
    tokens, again = random_tokens(8), random_tokens(8)
    gap = again.old - again.sampled  # type: ignore[operator]
    if level == "sequence":
        gap = torch.zeros(5, dtype=torch.float64).index_add(0, ROWS, gap)[ROWS]
    ratio = gap.exp()
    held = ratio.clamp(0.5, 1.5) if mode == "truncate" else ratio.masked_fill((ratio < 0.5) | (ratio > 1.5), 0.0)
    expected = trl_loss(again, "grpo", beta=0.1, ratio=held)
    dials = PolicyOptions(correction=mode, correction_level=level, correction_bounds=(0.5, 1.5), kl_coefficient=0.1)
    value = measure(tokens, dials).value
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(tokens.logprobs.grad, again.logprobs.grad, rtol=1e-9, atol=1e-12)


def test_the_loss_of_whole_answers_is_that_of_trls_rloo() -> None:
    rloo_trainer = pytest.importorskip("trl.trainer.rloo_trainer")
    tokens, again = random_tokens(9), random_tokens(9)
    trainer: Any = object.__new__(rloo_trainer.RLOOTrainer)
    trainer.aux_loss_enabled, trainer.epsilon_low, trainer.epsilon_high = False, 0.2, 0.2
    trainer.model = SimpleNamespace(training=True)
    trainer.accelerator = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x)
    trainer._metrics = {"train": defaultdict(list)}
    kept = [0, 1, 2, 4]
    mask = torch.stack([(torch.arange(5) < LENGTHS[row]).double() for row in kept])
    padded = torch.stack([torch.nn.functional.pad(again.logprobs[row == ROWS], (0, 5 - LENGTHS[row])) for row in kept])
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (padded, torch.zeros(4, 5), None)
    ids = torch.zeros(4, 5, dtype=torch.long)
    old = torch.stack([again.old[row == ROWS].sum() for row in kept])
    prompts = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": mask}
    expected = trainer._compute_loss(None, {**prompts, "old_logps": old, "advantages": ADVANTAGES[kept]})
    value = measure(tokens, PolicyOptions(preset="rloo")).value
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(tokens.logprobs.grad, again.logprobs.grad, rtol=1e-9, atol=1e-12)


# Divergence


def test_estimators_of_the_divergence_have_its_value_and_gradient_on_a_small_vocabulary() -> None:
    """Exact sums over five tokens: E[k1] = E[k3] = KL; ∇E is had by k2 without, and by k1 and k3 with the importance ratio (RECIPES 1.3,
    1.10); k3 without it has another gradient, that of KL the other way round at first order."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=draw, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(5, generator=draw, dtype=torch.float64), 0)

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    logprobs = torch.log_softmax(logits, 0)
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    p = logprobs.exp().detach()
    estimates = {name: divergence(torch.log_softmax(logits, 0), reference, estimator=name) for name in ("k1", "k2", "k3")}  # type: ignore[arg-type]
    for name in ("k1", "k3"):
        assert (p * estimates[name]).sum().item() == pytest.approx(exact.item(), rel=1e-12)
    assert bool((estimates["k3"] >= 0).all())
    wanted = gradient(exact)
    torch.testing.assert_close(gradient((p * estimates["k2"]).sum()), wanted)
    for name in ("k1", "k3"):
        log = torch.log_softmax(logits, 0)
        corrected = divergence(log, reference, estimator=name) * (log - log.detach()).exp()  # type: ignore[arg-type]
        torch.testing.assert_close(gradient((p * corrected).sum()), wanted)
    assert not torch.allclose(gradient((p * estimates["k3"]).sum()), wanted)
    assert torch.allclose(gradient((p * estimates["k1"]).sum()), torch.zeros(5, dtype=torch.float64))


def test_the_divergence_is_clamped() -> None:
    far = torch.tensor([-200.0, 200.0])
    for estimator in ("k1", "k2", "k3"):
        found = divergence(far, torch.zeros(2), estimator=estimator)  # type: ignore[arg-type]
        near = divergence(far.clamp(-40, 40), torch.zeros(2), estimator=estimator)  # type: ignore[arg-type]
        assert bool(torch.isfinite(found).all()) and torch.equal(found, near)
    assert divergence(far, torch.zeros(2), estimator="k1", clamp=3.0).tolist() == [-3.0, 3.0]


# Edges


def one_row(new: list[float], old: list[float], advantage: float) -> PolicyTokens:
    logprobs = torch.tensor(new, requires_grad=True)
    return PolicyTokens(logprobs, torch.tensor(old), torch.full((len(new),), advantage), torch.zeros(len(new), dtype=torch.long), 1)


@pytest.mark.parametrize(
    "keys", [*FORMULAS[:1], {"preset": "gspo"}, {"preset": "cispo"}, {"preset": "rloo"}, {"preset": "grpo", "dual_clip": 3.0}]
)
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("distance", [40.0, 90.0, 1000.0])
def test_huge_ratios_stay_finite(keys: dict[str, Any], advantage: float, distance: float) -> None:
    dials = PolicyOptions(**{**keys, "kl_coefficient": 0.1, "kl_in": "loss", "kl_estimator": "k3"})
    for new, old in (([-distance], [0.0]), ([0.0], [-distance])):
        tokens = one_row(new, old, advantage)
        tokens = PolicyTokens(**{**{name: getattr(tokens, name) for name in PolicyTokens.__slots__}, "reference": tokens.old})
        weights = row_weights([1], reduction="sequence_mean")
        value = policy_loss(tokens, dials, weights=weights, step_tokens=1).value
        value.backward()
        assert math.isfinite(value.item()) and tokens.logprobs.grad is not None
        assert bool(torch.isfinite(tokens.logprobs.grad).all())
    correction, outside = correction_weights(
        torch.tensor([distance]), torch.zeros(1), torch.zeros(1, dtype=torch.long), 1, mode="truncate", level="token", bounds=(0, 2)
    )
    assert correction.tolist() == [2.0] and outside.tolist() == [True]


def test_a_clipped_token_has_no_gradient_and_dual_clip_ends_it_on_the_other_side() -> None:
    for new, advantage, keys, still in (
        (0.5, 1.0, {}, False),
        (-0.5, -1.0, {}, False),
        (0.5, -1.0, {}, True),
        (-0.5, 1.0, {}, True),
        (1.5, -1.0, {"dual_clip": 3.0}, False),
        (1.0, -1.0, {"dual_clip": 3.0}, True),
        (0.5, 1.0, {"clip_high": None}, True),
        (-0.5, -1.0, {"clip_low": None}, True),
    ):
        tokens = one_row([new], [0.0], advantage)
        policy_loss(tokens, PolicyOptions(**keys), weights=torch.ones(1), step_tokens=1).value.backward()
        assert bool((tokens.logprobs.grad != 0).item()) is still, (new, advantage, keys)


def test_zero_advantages_give_no_loss_and_no_gradient() -> None:
    for keys in FORMULAS:
        dials = PolicyOptions(**{k: v for k, v in keys.items() if not k.startswith(("kl", "entropy"))}, kl_coefficient=0.0)
        base = random_tokens()
        old = base.logprobs.detach() if dials.objective == "mirror_descent" else base.old
        tokens = PolicyTokens(base.logprobs, old, torch.zeros(TOKENS), ROWS, 5, base.sampled)
        value = measure(tokens, dials).value
        value.backward()
        assert value.item() == 0 and tokens.logprobs.grad.abs().max() == 0  # type: ignore[union-attr]


def test_nothing_trained_is_a_loss_of_zero_that_can_be_differentiated() -> None:
    nothing = torch.empty(0, requires_grad=True)
    rows = torch.empty(0, dtype=torch.long)
    for preset in ("grpo", "gspo", "rloo", "cispo", "mirror_descent"):
        dials = PolicyOptions(preset=preset, **({"tau": 1.0} if preset == "mirror_descent" else {}))
        for n_rows in (0, 2):
            loss = policy_loss(
                PolicyTokens(nothing, nothing.detach(), torch.empty(0), rows, n_rows), dials, weights=torch.ones(n_rows), step_tokens=0
            )
            loss.value.backward()
            assert loss.value.item() == 0 and all(value.item() == 0 for value in loss.metrics.values())
    assert row_weights([0, 0], reduction="sequence_mean").isfinite().all()


def test_one_token_has_the_same_ratio_at_every_level() -> None:
    log_ratio, rows = torch.tensor([0.3, -0.2]), torch.tensor([0, 1])
    for level in ("token", "sequence", "sequence_token", "trajectory"):
        torch.testing.assert_close(importance_log_ratio(log_ratio, rows, 2, level), log_ratio)  # type: ignore[arg-type]


# Weights


def test_weights_are_those_of_the_reductions() -> None:
    """By hand: four answers with 3, 1, 5 and 2 tokens (and one with none), the first two to one prompt, the others to another."""
    assert row_weights(LENGTHS, reduction="sequence_mean").tolist() == pytest.approx([1 / 12, 1 / 4, 1 / 20, 1 / 4, 1 / 8])
    assert row_weights(LENGTHS, reduction="token_mean").tolist() == pytest.approx([1 / 11] * 5)
    assert row_weights(LENGTHS, reduction="constant", constant_length=10).tolist() == pytest.approx([1 / 40] * 5)
    assert row_weights(LENGTHS, reduction="prompt_mean", prompts=PROMPTS).tolist() == pytest.approx([1 / 8, 1 / 8, *[1 / 14] * 3])
    assert row_weights(LENGTHS, reduction="sequence_sum").tolist() == [0.25] * 5


@pytest.mark.parametrize("reduction", ["sequence_mean", "sequence_sum", "token_mean", "constant", "prompt_mean"])
def test_micro_batches_and_ranks_add_up(reduction: str) -> None:
    dials = PolicyOptions(kl_coefficient=0.1, importance="sequence", clip_low=0.1, clip_high=0.1, entropy_coefficient=0.3)
    base = random_tokens(11)
    weights = row_weights(LENGTHS, reduction=reduction, prompts=PROMPTS, constant_length=7)  # type: ignore[arg-type]
    whole = policy_loss(base, dials, weights=weights, step_tokens=TOKENS)
    parts = []
    for rows in ([2, 0], [1, 3, 4]):
        keep = torch.cat([torch.nonzero(row == ROWS)[:, 0] for row in rows])
        pick = {name: getattr(base, name)[keep] for name in ("logprobs", "old", "advantages", "sampled", "reference", "entropy")}
        own = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([LENGTHS[row] for row in rows]))
        parts.append(policy_loss(PolicyTokens(**pick, rows=own, n_rows=len(rows)), dials, weights=weights[rows], step_tokens=TOKENS))
    assert sum(part.value.item() for part in parts) == pytest.approx(whole.value.item(), rel=1e-12)
    for name, value in whole.metrics.items():
        assert sum(part.metrics[name].item() for part in parts) == pytest.approx(value.item(), rel=1e-12)
    (wanted,) = torch.autograd.grad(whole.value, base.logprobs, retain_graph=True)
    (found,) = torch.autograd.grad(parts[0].value + parts[1].value, base.logprobs)
    torch.testing.assert_close(found, wanted)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="needs constant_length"):
        row_weights(LENGTHS, reduction="constant")
    with pytest.raises(UsageError, match="needs the prompt of every row"):
        row_weights(LENGTHS, reduction="prompt_mean")
    with pytest.raises(UsageError, match="unknown loss reduction 'mean'"):
        row_weights(LENGTHS, reduction="mean")  # type: ignore[arg-type]
    base = random_tokens()
    with pytest.raises(UsageError, match="needs the log-probabilities of the engine"):
        measure(PolicyTokens(base.logprobs, base.old, base.advantages, ROWS, 5), PolicyOptions(correction="mask"))


# Values


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_value_loss_follows_its_formula(clip: float | None) -> None:
    draw = torch.Generator().manual_seed(0)
    values, old, returns = (torch.randn(9, generator=draw, dtype=torch.float64) for _ in range(3))
    values.requires_grad_()
    loss = value_loss(values, old, returns, clip=clip, coefficient=0.1, step_tokens=12)
    total = squared = clipped = 0.0
    for value, before, target in zip(values.tolist(), old.tolist(), returns.tolist(), strict=True):
        error = (value - target) ** 2
        near = min(max(value, before - (clip or 0)), before + (clip or 0))
        worst = error if clip is None else max(error, (near - target) ** 2)
        total, squared, clipped = total + worst, squared + error, clipped + (worst > error)
    assert loss.value.item() == pytest.approx(0.1 * 0.5 * total / 12, rel=1e-12)
    assert loss.metrics["value_error"].item() == pytest.approx(squared / 12)
    assert loss.metrics["value_clip_fraction"].item() == pytest.approx(clipped / 12)
    assert clip is None or 0 < clipped < 9
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, returns, clip=clip, coefficient=0.1, step_tokens=12).value, (values,))


# Dials


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"preset": "mirror_descent"}, "need a tau"),
        ({"tau": 1.0}, "tau 1.0 does nothing here"),
        ({"preset": "cispo", "clip_high": 0.2, "ratio_cap": 5.0}, "not both"),
        ({"preset": "cispo", "clip_high": None, "ratio_cap": None}, "needs an upper bound"),
        ({"ratio_cap": 5.0}, "ratio_cap 5.0 does nothing here: it belongs to objective 'cispo'"),
        ({"clip_low": 1.5}, "clip_low 1.5 is more than 1"),
        ({"dual_clip": 1.1}, "must be above 1"),
        ({"kl_estimator": "k1"}, "kl_estimator 'k1' does nothing here: it belongs to a kl_coefficient above 0"),
        ({"kl_importance": True}, "kl_importance True does nothing"),
        ({"reference_refresh": 5}, "reference_refresh 5 does nothing"),
        ({"kl_coefficient": 0.1, "reference_mix": 0.5}, "belongs to reference_refresh"),
        ({"advantage": "gae"}, "say scale_by_std: false"),
        ({"whiten": True, "preset": "mirror_descent", "tau": 1.0}, "no whitening"),
        ({"gamma": 0.9}, "gamma 0.9 does nothing"),
        ({"value_clip": None}, "value_clip None does nothing"),
        ({"correction_bounds": (0.5, 2.0)}, "correction_bounds .* does nothing"),
        ({"correction": "mask", "correction_bounds": (2.0, 0.5)}, "a lower and a higher number"),
        ({"correction": "mask", "old_logprobs": "engine"}, "the engine's need no correction"),
        ({"loss_scope": "micro_batch"}, "belongs to loss_reduction 'token_mean'"),
        ({"constant_length": 7}, "belongs to loss_reduction 'constant'"),
        ({"scale_by_std": False, "std_ddof": 0}, "std_ddof 0 does nothing"),
        ({"entropy_target": 0.5}, "entropy_target 0.5 does nothing"),
        ({"preset": "mirror_descent", "tau": 1.0, "clip_high": 0.3}, "clip_high 0.3 does nothing"),
        ({"preset": "mirror_descent", "tau": 1.0, "kl_coefficient": 0.1}, "kl_coefficient 0.1 does nothing here"),
        ({"preset": "mirror_descent", "tau": 1.0, "correction": "mask"}, "correction_level 'sequence' or 'geometric'"),
        ({"preset": "cispo", "importance": "trajectory"}, "'token' or 'sequence'"),
        ({"preset": "grop"}, "Input should be"),
    ],
)
def test_dials_that_contradict_or_do_nothing_are_refused(keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        PolicyOptions(**keys)
