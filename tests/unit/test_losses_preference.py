"""Preference losses against their formulas pair by pair in float64, against TRL's own code, and by finite differences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from steelyard.errors import UsageError
from steelyard_preference.losses import bradley_terry_loss, chosen_nll, dpo_loss, kto_baseline, kto_loss, orpo_loss, simpo_loss
from steelyard_torch.batching import StepTotals
from steelyard_torch.losses import Loss

CHOSEN, REJECTED = torch.tensor([4.0, 7.0, 1.0, 3.0]), torch.tensor([2.0, 5.0, 6.0, 1.0])
VARIANTS = [("dpo", 0.3), ("dpo_norm", 5.0), ("ipo", 0.2), ("cdpo", 0.4)]


def tokens(seed: int, lengths: torch.Tensor) -> list[torch.Tensor]:
    """Log-probabilities of each answer's tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [-3 * torch.rand(int(n), generator=generator, dtype=torch.float64) - 0.05 for n in lengths]


def sums(seed: int, lengths: torch.Tensor) -> torch.Tensor:
    return torch.stack([values.sum() for values in tokens(seed, lengths)])


def four() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Policy's chosen and rejected, reference's chosen and rejected."""
    return sums(0, CHOSEN), sums(1, REJECTED), sums(2, CHOSEN), sums(3, REJECTED)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dpo_by_hand(pc: float, pr: float, rc: float, rr: float, nc: float, nr: float, loss: str, beta: float, delta: str) -> float:
    chosen, rejected = pc - rc, pr - rr
    if loss == "dpo_norm" or (loss == "ipo" and delta == "mean"):
        chosen, rejected = chosen / nc, rejected / nr
    if loss == "ipo":
        return (chosen - rejected - 1 / (2 * beta)) ** 2
    p = sigmoid(beta * (chosen - rejected))
    return -0.8 * math.log(p) - 0.2 * math.log(1 - p) if loss == "cdpo" else -math.log(p)


@pytest.mark.parametrize("delta", ["mean", "sum"])
@pytest.mark.parametrize(("loss", "beta"), VARIANTS)
def test_dpo_and_its_kin_follow_their_formula(loss: Any, beta: float, delta: Any) -> None:
    found = dpo_loss(
        *four(), chosen_tokens=CHOSEN, rejected_tokens=REJECTED, loss=loss, beta=beta, pairs=9, label_smoothing=0.2, ipo_delta=delta
    )
    columns = [column.tolist() for column in (*four(), CHOSEN, REJECTED)]
    expected = sum(dpo_by_hand(*numbers, loss, beta, delta) for numbers in zip(*columns, strict=True)) / 9
    assert found.value.dtype == torch.float64
    assert found.value.item() == pytest.approx(expected, rel=1e-12)
    rewards = found.metrics["chosen_reward"] - found.metrics["rejected_reward"]
    assert found.metrics["margin"].item() == pytest.approx(rewards.item(), rel=1e-12)


def test_simpo_follows_its_formula_with_its_margin_outside_of_beta() -> None:
    chosen, rejected, _, _ = four()
    found = simpo_loss(chosen, rejected, chosen_tokens=CHOSEN, rejected_tokens=REJECTED, beta=2.5, gamma=1.375, pairs=4)
    expected = 0.0
    for c, r, nc, nr in zip(chosen.tolist(), rejected.tolist(), CHOSEN.tolist(), REJECTED.tolist(), strict=True):
        expected -= math.log(sigmoid(2.5 * c / nc - 2.5 * r / nr - 1.375)) / 4
    assert found.value.item() == pytest.approx(expected, rel=1e-12)


def test_orpo_follows_its_formula() -> None:
    chosen, rejected, _, _ = four()
    found = orpo_loss(chosen, rejected, chosen_tokens=CHOSEN, rejected_tokens=REJECTED, odds_weight=0.3, pairs=4)
    expected = 0.0
    for c, r, nc, nr in zip(chosen.tolist(), rejected.tolist(), CHOSEN.tolist(), REJECTED.tolist(), strict=True):
        better, worse = math.exp(c / nc), math.exp(r / nr)
        expected -= 0.3 * math.log(sigmoid(math.log(better / (1 - better)) - math.log(worse / (1 - worse)))) / 4
    assert found.value.item() == pytest.approx(expected, rel=1e-10)


LABELS = torch.tensor([True, False, False, True])


def test_kto_follows_its_formula() -> None:
    policy, _, reference, _ = four()
    found = kto_loss(
        policy, reference, LABELS, baseline=0.7, beta=0.3, desirable_weight=1.2, undesirable_weight=0.9, rows=11, desirable_rows=5
    )
    expected = 0.0
    for p, r, good in zip(policy.tolist(), reference.tolist(), LABELS.tolist(), strict=True):
        value = 1.2 * sigmoid(0.3 * (p - r - 0.7)) if good else 0.9 * sigmoid(0.3 * (0.7 - (p - r)))
        expected += ((1.2 if good else 0.9) - value) / 11
    assert found.value.item() == pytest.approx(expected, rel=1e-12)
    assert found.metrics["desirable_reward"].item() == pytest.approx(0.3 * float((policy - reference)[LABELS].sum()) / 5)
    assert found.metrics["undesirable_reward"].item() == pytest.approx(0.3 * float((policy - reference)[~LABELS].sum()) / 6)


def test_ktos_baseline_is_a_mean_that_is_never_negative() -> None:
    assert kto_baseline(6.0, 4) == 1.5
    assert kto_baseline(-6.0, 4) == 0.0
    assert kto_baseline(0.0, 0) == 0.0


def test_the_nll_of_the_chosen_follows_its_three_reductions() -> None:
    chosen, totals = sums(0, CHOSEN), StepTotals(tokens=40, sequences=9)
    expected = {
        "token_mean": -float(chosen.sum()) / 40,
        "sum": -float(chosen.sum()),
        "sequence_mean": -sum(c / n for c, n in zip(chosen.tolist(), CHOSEN.tolist(), strict=True)) / 9,
    }
    for reduction, value in expected.items():
        assert chosen_nll(chosen, CHOSEN, reduction=reduction, totals=totals).item() == pytest.approx(value, rel=1e-12)  # type: ignore[arg-type]


def bradley_terry(better: torch.Tensor, worse: torch.Tensor, **keys: Any) -> Loss:
    size = len(better)
    given = {"margins": torch.zeros(size), "weights": torch.ones(size), "total_weight": float(size)}
    return bradley_terry_loss(better, worse, **{**given, **keys})  # type: ignore[arg-type]


def test_the_reward_models_loss_follows_its_formula() -> None:
    better, worse = torch.tensor([1.5, -0.3, 2.0], dtype=torch.float64), torch.tensor([0.5, 0.9, 2.0], dtype=torch.float64)
    margins, weights = [0.0, 1.0, 0.5], [1.0, 0.25, 0.5]
    found = bradley_terry(better, worse, margins=torch.tensor(margins), weights=torch.tensor(weights), total_weight=4.0, centering=0.01)
    expected = sum(
        w * (-math.log(sigmoid(b - r - m)) + 0.01 * (b + r) ** 2)
        for b, r, m, w in zip(better.tolist(), worse.tolist(), margins, weights, strict=True)
    )
    assert found.value.item() == pytest.approx(expected / 4, rel=1e-12)
    assert found.metrics["accuracy"].item() == pytest.approx((1.0 * 1 + 0.25 * 0 + 0.5 * 0.5) / 4)


def everything() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Each loss as a function of eight numbers that are log-probabilities (or scores) with gradient."""
    _, _, rc, rr = four()
    counts = {"chosen_tokens": CHOSEN, "rejected_tokens": REJECTED}
    made: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        loss: lambda x, loss=loss, beta=beta: dpo_loss(x[:4], x[4:], rc, rr, **counts, loss=loss, beta=beta, pairs=4).value  # type: ignore[misc]
        for loss, beta in VARIANTS
    }
    made["ipo of sums"] = lambda x: dpo_loss(x[:4], x[4:], rc, rr, **counts, loss="ipo", ipo_delta="sum", beta=0.5, pairs=4).value
    made["simpo"] = lambda x: simpo_loss(x[:4], x[4:], **counts, beta=2.5, gamma=0.5, pairs=4).value
    made["orpo"] = lambda x: orpo_loss(x[:4], x[4:], **counts, odds_weight=0.2, pairs=4).value
    made["kto"] = lambda x: kto_loss(x[:4], rc, LABELS, baseline=0.4, beta=0.3, desirable_weight=1.3, rows=4, desirable_rows=2).value
    for reduction in ("token_mean", "sequence_mean", "sum"):
        made[reduction] = lambda x, r=reduction: chosen_nll(x[:4], CHOSEN, reduction=r, totals=StepTotals(15, 4))  # type: ignore[misc]
    made["bradley-terry"] = lambda x: bradley_terry(x[:4], x[4:], margins=torch.full((4,), 0.3), centering=0.1).value
    return made


@pytest.mark.parametrize("name", everything())
def test_gradients_agree_with_finite_differences(name: str) -> None:
    policy_chosen, policy_rejected, _, _ = four()
    at = torch.cat([policy_chosen, policy_rejected]).requires_grad_()
    assert torch.autograd.gradcheck(everything()[name], (at,))


@pytest.mark.parametrize("name", everything())
def test_huge_ratios_have_finite_losses_and_gradients(name: str) -> None:
    for chosen, rejected in ((-1e4, -1e-3), (-1e-3, -1e4), (-1e-9, -1e-9), (0.0, 0.0), (-1e5, -1e5)):
        at = torch.tensor([chosen] * 4 + [rejected] * 4).requires_grad_()
        value = everything()[name](at)
        value.backward()  # type: ignore[no-untyped-call]
        assert math.isfinite(value.item()), (chosen, rejected)
        assert at.grad is not None and bool(torch.isfinite(at.grad).all()), (chosen, rejected)


@pytest.mark.parametrize("name", ["dpo", "kto", "bradley-terry"])
def test_the_shares_of_micro_batches_add_up_and_one_without_rows_adds_nothing(name: str) -> None:
    empty = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    values = {
        "dpo": lambda s: dpo_loss(*(x[s] for x in four()), chosen_tokens=CHOSEN[s], rejected_tokens=REJECTED[s], beta=0.3, pairs=4),
        "kto": lambda s: kto_loss(four()[0][s], four()[2][s], LABELS[s], baseline=0.4, beta=0.3, rows=4, desirable_rows=2),
        "bradley-terry": lambda s: bradley_terry(four()[0][s], four()[1][s], total_weight=4.0),
    }
    whole, parts = values[name](slice(None)), [values[name](s) for s in (slice(0, 1), slice(1, 4), slice(0, 0))]
    assert sum(part.value.item() for part in parts) == pytest.approx(whole.value.item(), rel=1e-12)
    assert [set(part.metrics) for part in parts] == [set(whole.metrics)] * 3, "every rank names the same metrics"
    for metric, value in whole.metrics.items():
        assert sum(part.metrics[metric].item() for part in parts) == pytest.approx(value.item(), rel=1e-12)
    simpo_loss(empty, empty, chosen_tokens=empty, rejected_tokens=empty, beta=1.0, gamma=0.0, pairs=4).value.backward()  # type: ignore[no-untyped-call]
    orpo_loss(empty, empty, chosen_tokens=empty, rejected_tokens=empty, odds_weight=1.0, pairs=4).value.backward()  # type: ignore[no-untyped-call]
    assert empty.grad is not None


@pytest.mark.parametrize(("loss", "expected"), [("dpo", math.log(2)), ("dpo_norm", math.log(2)), ("cdpo", math.log(2)), ("ipo", 25.0)])
def test_a_policy_equal_to_its_reference_knows_nothing(loss: Any, expected: float) -> None:
    same = sums(0, CHOSEN)
    found = dpo_loss(same, same, same, same, chosen_tokens=CHOSEN, rejected_tokens=CHOSEN, loss=loss, beta=0.1, pairs=4)
    assert found.value.item() == pytest.approx(expected, rel=1e-12)
    assert found.metrics["accuracy"].item() == 0.5


def test_a_reference_gets_no_gradient() -> None:
    pc, pr, rc, rr = (x.clone().requires_grad_() for x in four())
    dpo_loss(pc, pr, rc, rr, chosen_tokens=CHOSEN, rejected_tokens=REJECTED, beta=0.1, pairs=4).value.backward()  # type: ignore[no-untyped-call]
    kto_loss(pc, rc, LABELS, baseline=0.0, beta=0.1, rows=4, desirable_rows=2).value.backward()  # type: ignore[no-untyped-call]
    assert rc.grad is None and rr.grad is None and pc.grad is not None


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown preference loss 'dop'"):
        dpo_loss(*four(), chosen_tokens=CHOSEN, rejected_tokens=REJECTED, loss="dop", beta=0.1, pairs=4)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown loss reduction 'mean'"):
        chosen_nll(sums(0, CHOSEN), CHOSEN, reduction="mean", totals=StepTotals(15, 4))  # type: ignore[arg-type]


# Against TRL's own code, on the same tensors.


class Accelerator:
    device = torch.device("cpu")

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    gather_for_metrics = gather


def trainer(**attributes: Any) -> Any:
    """What the trainers' loss functions read of themselves, without the loading of models and data that surrounds them."""
    given = {
        "model": SimpleNamespace(training=False),
        "accelerator": Accelerator(),
        "aux_loss_enabled": False,
        "_total_train_tokens": 0,
        "_metrics": defaultdict(lambda: defaultdict(list)),
    }
    return SimpleNamespace(**{**given, **attributes})


def padded(answers: list[torch.Tensor], width: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, width − 1) log-probabilities behind one prompt token, 0 in the padding, and their (B, width) mask."""
    logprobs = torch.stack([torch.cat([values, values.new_zeros(width - 1 - len(values))]) for values in answers])
    mask = torch.tensor([[0] + [1] * len(values) + [0] * (width - 1 - len(values)) for values in answers])
    return logprobs, mask


class Model:
    """Gives these log-probabilities."""

    training = False

    def __init__(self, logprobs: torch.Tensor):
        self.logprobs = logprobs

    def __call__(self, **_: Any) -> Any:
        other = torch.zeros_like(self.logprobs)
        return SimpleNamespace(log_probs=self.logprobs, entropy=other, mean_logits=other, is_top1=other.bool())


def batch(mask: torch.Tensor, **more: Any) -> dict[str, Any]:
    return {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask, **more}


def trl_dpo(logprobs: torch.Tensor, mask: torch.Tensor, losses: dict[str, float], beta: float) -> torch.Tensor:
    trl = pytest.importorskip("trl")
    given = trainer(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=list(losses),
        loss_weights=list(losses.values()),
        beta=beta,
        label_smoothing=0.2,
        use_weighting=False,
    )
    known = batch(mask, ref_chosen_logps=sums(2, CHOSEN), ref_rejected_logps=sums(3, REJECTED))
    value: torch.Tensor = trl.DPOTrainer._compute_loss(given, Model(logprobs), known, False)
    return value


@pytest.mark.parametrize(
    ("loss", "theirs", "beta"), [("dpo", "sigmoid", 0.3), ("dpo_norm", "sigmoid_norm", 5.0), ("ipo", "ipo", 0.2), ("cdpo", "robust", 0.4)]
)
def test_pair_losses_and_their_gradients_are_trls(loss: Any, theirs: str, beta: float) -> None:
    """TRL's ``robust`` (Chowdhury et al., arXiv 2403.00409) is unbiased under flipped labels, where cDPO is conservative: with ℓ(m) the
    loss of the label and ℓ(−m) of its flip, robust = ((1 − ε) ℓ(m) − ε ℓ(−m)) / (1 − 2ε) and cDPO = (1 − ε) ℓ(m) + ε ℓ(−m), so that
    (1 − 2ε) robust + cDPO = 2 (1 − ε) ℓ(m), and ℓ is ``dpo``. Its IPO averages over tokens."""
    logprobs, mask = padded([*tokens(0, CHOSEN), *tokens(1, REJECTED)])
    logprobs.requires_grad_()
    expected = trl_dpo(logprobs, mask, {theirs: 1.0}, beta)
    counts = {"chosen_tokens": CHOSEN, "rejected_tokens": REJECTED, "beta": beta, "pairs": 4}
    own = logprobs.detach().clone().requires_grad_()
    rows = own.sum(dim=1)

    def ours(name: Any) -> torch.Tensor:
        return dpo_loss(rows[:4], rows[4:], sums(2, CHOSEN), sums(3, REJECTED), **counts, loss=name, label_smoothing=0.2).value  # type: ignore[arg-type]

    found = (1.6 * ours("dpo") - ours("cdpo")) / 0.6 if loss == "cdpo" else ours(loss)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    expected.backward()  # type: ignore[no-untyped-call]
    found.backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None and logprobs.grad is not None
    torch.testing.assert_close(own.grad, logprobs.grad, rtol=1e-10, atol=1e-14)


def test_dpo_with_an_nll_term_is_trls_sigmoid_with_sft() -> None:
    """TRL's ``sft`` is a mean over tokens."""
    logprobs, mask = padded([*tokens(0, CHOSEN), *tokens(1, REJECTED)])
    expected = trl_dpo(logprobs, mask, {"sigmoid": 1.0, "sft": 0.2}, 0.1)
    preference = dpo_loss(*four(), chosen_tokens=CHOSEN, rejected_tokens=REJECTED, beta=0.1, pairs=4).value
    nll = chosen_nll(sums(0, CHOSEN), CHOSEN, reduction="token_mean", totals=StepTotals(int(CHOSEN.sum()), 4))
    torch.testing.assert_close(preference + 0.2 * nll, expected, rtol=1e-12, atol=0)


def test_simpo_and_cdpo_are_those_of_trls_cpo_trainer() -> None:
    """Its gamma is the paper's, divided by β before and multiplied after. It smooths labels as cDPO does; of policy and
    reference it is given the difference, which it takes for log-probabilities."""
    cpo = pytest.importorskip("trl.experimental.cpo")
    pc, pr, rc, rr = four()
    simpo = trainer(alpha=0.0, loss_type="simpo", beta=2.5, simpo_gamma=1.375, label_smoothing=0.0)
    expected = cpo.CPOTrainer.cpo_loss(simpo, pc / CHOSEN, pr / REJECTED)[0].mean()
    found = simpo_loss(pc, pr, chosen_tokens=CHOSEN, rejected_tokens=REJECTED, beta=2.5, gamma=1.375, pairs=4).value
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    smoothed = trainer(alpha=0.0, loss_type="sigmoid", beta=0.4, label_smoothing=0.2)
    expected = cpo.CPOTrainer.cpo_loss(smoothed, pc - rc, pr - rr)[0].mean()
    counts = {"chosen_tokens": CHOSEN, "rejected_tokens": REJECTED}
    found = dpo_loss(pc, pr, rc, rr, **counts, loss="cdpo", beta=0.4, pairs=4, label_smoothing=0.2).value
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_orpo_is_trls() -> None:
    """Up to float32, to which TRL casts. Its whole loss adds the cross-entropy of prompt and answer, ours of the answer alone, as the paper
    has it (arXiv 2403.07691, equation 2)."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    chosen, rejected, _, _ = four()
    expected = -orpo.ORPOTrainer.odds_ratio_loss(trainer(beta=0.3), chosen / CHOSEN, rejected / REJECTED)[0].mean()
    found = orpo_loss(chosen, rejected, chosen_tokens=CHOSEN, rejected_tokens=REJECTED, odds_weight=0.3, pairs=4).value
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("higher", [True, False])
def test_kto_and_its_baseline_are_trls(higher: bool) -> None:
    """With the mismatched answers' baseline above 0, and clamped to it."""
    trl = pytest.importorskip("trl")
    logprobs, mask = padded(tokens(0, CHOSEN))
    crossed, crossed_mask = padded(tokens(5, REJECTED))
    reference, crossed_reference = sums(2, CHOSEN), sums(5, REJECTED) - (1.0 if higher else -1.0)
    given = trainer(
        calculate_KL=True,
        precompute_ref_logps=True,
        loss_type="kto",
        beta=0.3,
        desirable_weight=1.2,
        undesirable_weight=0.9,
    )
    both = [logprobs.requires_grad_(), crossed]

    class Two:
        training = False

        def __call__(self, *, input_ids: torch.Tensor, **_: Any) -> Any:
            return Model(both[int(input_ids[0, 0])])()

    known = batch(
        mask,
        label=LABELS,
        ref_logps=reference,
        ref_KL_logps=crossed_reference,
        KL_input_ids=torch.ones_like(crossed_mask),
        KL_attention_mask=torch.ones_like(crossed_mask),
        KL_completion_mask=crossed_mask,
    )
    given._compute_kl_logps = lambda model, inputs: trl.KTOTrainer._compute_kl_logps(given, model, inputs)
    expected = trl.KTOTrainer._compute_loss(given, Two(), known, False)
    baseline = kto_baseline(float((sums(5, REJECTED) - crossed_reference).sum()), 4)
    assert baseline == pytest.approx(1.0 if higher else 0.0)
    own = sums(0, CHOSEN).requires_grad_()
    found = kto_loss(
        own, reference, LABELS, baseline=baseline, beta=0.3, desirable_weight=1.2, undesirable_weight=0.9, rows=4, desirable_rows=2
    ).value
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    expected.backward()
    found.backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None and logprobs.grad is not None
    torch.testing.assert_close(own.grad, logprobs.grad[:, 0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("margin", [False, True])
def test_the_reward_models_loss_is_trls(margin: bool) -> None:
    trl = pytest.importorskip("trl")
    scores = torch.tensor([1.5, -0.3, 2.0, 0.5, 0.9, 2.0], dtype=torch.float64).requires_grad_()
    margins = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64) if margin else torch.zeros(3, dtype=torch.float64)
    given = trainer(args=SimpleNamespace(center_rewards_coefficient=0.01), model=Model(scores))

    def model(**_: Any) -> Any:
        return SimpleNamespace(logits=scores[:, None])

    inputs = {"attention_mask": torch.ones(6, 2), **({"margin": margins} if margin else {})}
    expected = trl.RewardTrainer.compute_loss(given, model, inputs)
    own = scores.detach().clone().requires_grad_()
    found = bradley_terry(own[:3], own[3:], margins=margins, centering=0.01).value
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    expected.backward()
    found.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(own.grad, scores.grad)
