"""Divergences against their formulas written out in Python, their relations, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import UsageError
from steelyard_distill.comparing import compare_states
from steelyard_distill.config import DistillConfig
from steelyard_distill.divergences import Divergence, divergence_between, forward_kl, generalised_jsd, reverse_kl
from steelyard_distill.states import TargetStates

EVERY: list[tuple[Divergence, float]] = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]


def logits(seed: int, tokens: int = 6, vocabulary: int = 7) -> torch.Tensor:
    return 3 * torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def token_divergences(
    student: torch.Tensor, teacher: torch.Tensor, *, divergence: Divergence, beta: float = 0.5, temperature: float = 1.0
) -> torch.Tensor:
    """The stage's own loss of each token alone, with its gradient; states are the logits themselves."""
    config = DistillConfig(lr=1.0, divergence=divergence, beta=beta, temperature=temperature)

    def whole(logits: torch.Tensor) -> TargetStates:
        return TargetStates(logits, lambda some: some, logits.shape[-1])

    one = torch.ones(1, dtype=torch.float64 if student.dtype == torch.float64 else torch.float32)
    tokens = zip(torch.split(student, 1), torch.split(teacher, 1), strict=True)
    target = torch.zeros(1, dtype=torch.int64)
    return torch.stack([compare_states(whole(mine), target, whole(theirs), config, weights=one).loss for mine, theirs in tokens])


def softmax(row: list[float], temperature: float) -> list[float]:
    weights = [math.exp(x / temperature) for x in row]
    return [w / sum(weights) for w in weights]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def written_out(student: list[float], teacher: list[float], divergence: str, beta: float, temperature: float) -> float:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    if divergence == "forward_kl":
        return kl(p, q)
    if divergence == "reverse_kl":
        return kl(q, p)
    mixture = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(("divergence", "beta"), EVERY)
def test_divergences_follow_their_formula(divergence: Divergence, beta: float, temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    found = token_divergences(student, teacher, divergence=divergence, beta=beta, temperature=temperature)
    expected = [written_out(s, t, divergence, beta, temperature) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize(("divergence", "beta"), [*EVERY, ("jsd", 0.0), ("jsd", 1.0)])
def test_gradients_agree_with_finite_differences(divergence: Divergence, beta: float, temperature: float) -> None:
    teacher = logits(1, 3, 5)

    def loss(student: torch.Tensor) -> torch.Tensor:
        return token_divergences(student, teacher, divergence=divergence, beta=beta, temperature=temperature).sum()

    student, width = logits(0, 3, 5), 1e-6
    (gradient,) = torch.autograd.grad(loss(student.requires_grad_()), student)
    steps = width * torch.eye(15, dtype=torch.float64).reshape(15, 3, 5)
    with torch.no_grad():
        expected = torch.stack([(loss(student + step) - loss(student - step)) / (2 * width) for step in steps]).reshape(3, 5)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


def test_gradients_are_handed_out_once() -> None:
    loss = token_divergences(logits(0).requires_grad_(), logits(1), divergence="jsd").sum()
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="compare again for another backward pass"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_the_gradient_of_the_forward_kl_is_student_minus_teacher() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    token_divergences(student, teacher, divergence="forward_kl").sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    torch.testing.assert_close(student.grad, student.detach().softmax(-1) - teacher.softmax(-1))


def test_the_two_directions_are_named_rightly() -> None:
    # The teacher has two modes, the student one of them: dear in KL(teacher ‖ student), cheap in KL(student ‖ teacher).
    teacher = torch.tensor([[0.499, 0.499, 0.002]], dtype=torch.float64).log()
    student = torch.tensor([[0.998, 0.001, 0.001]], dtype=torch.float64).log()
    assert forward_kl(student, teacher).item() == pytest.approx(
        0.499 * math.log(0.499 / 0.998) + 0.499 * math.log(499) + 0.002 * math.log(2)
    )
    assert reverse_kl(student, teacher).item() < 0.7 < 2.7 < forward_kl(student, teacher).item()


@given(st.integers(0, 10**6), st.sampled_from([*EVERY, ("jsd", 0.0), ("jsd", 1.0)]), st.floats(0.2, 5))
def test_divergences_are_never_negative_and_zero_for_equal_models(seed: int, kind: tuple[Divergence, float], temperature: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    options = {"divergence": kind[0], "beta": kind[1], "temperature": temperature}
    assert bool((token_divergences(student, teacher, **options) >= -1e-12).all())  # type: ignore[arg-type]
    # The same distribution by other logits: a constant cancels.
    same = token_divergences(student, student + 3.0, **options)  # type: ignore[arg-type]
    assert float(same.abs().max()) < 1e-12


@given(st.integers(0, 10**6), st.floats(0.01, 0.99))
def test_the_jsd_is_bounded_by_the_entropy_of_its_mixture_and_symmetric_with_beta(seed: int, beta: float) -> None:
    student, teacher = logits(seed).log_softmax(-1), logits(seed + 1).log_softmax(-1)
    found = generalised_jsd(student, teacher, beta)
    assert float(found.max()) <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta) + 1e-12
    torch.testing.assert_close(found, generalised_jsd(teacher, student, 1 - beta))


def test_the_jsd_tends_to_the_divergences_that_its_ends_stand_for() -> None:
    student, teacher = (logits(0) / 3).log_softmax(-1), (logits(1) / 3).log_softmax(-1)
    small = 1e-6
    torch.testing.assert_close(generalised_jsd(student, teacher, small) / small, forward_kl(student, teacher), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(generalised_jsd(student, teacher, 1 - small) / small, reverse_kl(student, teacher), rtol=1e-3, atol=1e-3)
    assert torch.equal(generalised_jsd(student, teacher, 0.0), forward_kl(student, teacher))
    assert torch.equal(generalised_jsd(student, teacher, 1.0), reverse_kl(student, teacher))


@pytest.mark.parametrize("temperature", [1.0, 1.6])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_values_and_gradients_are_those_of_trl(beta: float, temperature: float) -> None:
    # GKD's own loss on the same logits: means over the unmasked positions, and over a number of tokens that is given.
    trl = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    student, teacher = logits(0, 12).reshape(2, 6, 7), logits(1, 12).reshape(2, 6, 7)
    labels = torch.full((2, 6), -100)
    labels[0, 2:5], labels[1, 5] = 3, 1
    theirs, ours = student.clone().requires_grad_(), student.clone().requires_grad_()
    for count in (None, 11):
        expected = trl.GKDTrainer.generalized_jsd_loss(
            theirs, teacher, labels=labels, beta=beta, temperature=temperature, num_items_in_batch=count
        )
        kept = labels != -100
        tokens = token_divergences(ours[kept], teacher[kept], divergence="jsd", beta=beta, temperature=temperature)
        found = tokens.sum() / (count or 4)
        assert found.item() == pytest.approx(expected.item(), rel=1e-10)
        (mine,), (other,) = torch.autograd.grad(found, ours), torch.autograd.grad(expected, theirs)
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_models_padded_to_different_widths_are_compared_on_the_narrower(divergence: Divergence) -> None:
    student, teacher = logits(0), logits(1)
    padded = torch.cat([teacher, torch.full((6, 3), 50.0, dtype=torch.float64)], dim=-1)
    expected = token_divergences(student, teacher, divergence=divergence)
    assert torch.equal(token_divergences(student, padded, divergence=divergence), expected)
    assert torch.equal(token_divergences(torch.cat([student, padded[:, -3:]], dim=-1), teacher, divergence=divergence), expected)


def test_half_precision_logits_are_compared_in_float32() -> None:
    student, teacher = logits(0).bfloat16(), logits(1).bfloat16()
    found = token_divergences(student, teacher, divergence="jsd")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, token_divergences(student.double(), teacher.double(), divergence="jsd").float(), rtol=1e-5, atol=1e-6)


def test_far_apart_models_have_a_large_and_finite_divergence() -> None:
    student, teacher = torch.tensor([[200.0, 0.0, -200.0]]), torch.tensor([[-200.0, 0.0, 200.0]])
    for divergence, beta in EVERY:
        value = token_divergences(student, teacher, divergence=divergence, beta=beta).item()
        assert math.isfinite(value)
    assert token_divergences(student, teacher, divergence="forward_kl").item() == pytest.approx(400.0)
    assert token_divergences(student, teacher, divergence="jsd").item() == pytest.approx(math.log(2))


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    token_divergences(student, teacher, divergence="jsd").sum().backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None


def test_an_unknown_divergence_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown divergence 'kl'"):
        divergence_between(logits(0), logits(1), divergence="kl")  # type: ignore[arg-type]
