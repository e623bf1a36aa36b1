"""Divergences from a teacher that is known in part: its most probable tokens, or what it says of the sampled ones; and their chunks."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import UsageError
from steelyard_distill.comparing import Signal, compare_states
from steelyard_distill.config import DistillConfig
from steelyard_distill.divergences import (
    Divergence,
    Tail,
    TopK,
    divergence_between,
    log_probabilities,
    reverse_kl,
    sampled_reverse_kl,
    top_k_divergences,
    top_k_of,
)
from steelyard_distill.states import TargetStates

EVERY: list[tuple[Divergence, float]] = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.2)]
TAILS: list[Tail] = ["bucket", "renormalise", "ignore"]


def logits(seed: int, tokens: int = 6, vocabulary: int = 9) -> torch.Tensor:
    return 2 * torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets(tokens: int = 6, vocabulary: int = 9) -> torch.Tensor:
    return torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(5))


def whole_divergences(
    student: torch.Tensor, teacher: torch.Tensor, *, divergence: Divergence, beta: float = 0.5, temperature: float = 1.0
) -> torch.Tensor:
    """Between whole distributions, over the student's vocabulary, with its gradient by automatic differentiation."""
    pair = (log_probabilities(one[:, : student.shape[1]], temperature) for one in (student, teacher))
    return divergence_between(*pair, divergence=divergence, beta=beta)


def softmax(row: list[float], temperature: float) -> list[float]:
    weights = [math.exp(x / temperature) for x in row]
    return [w / sum(weights) for w in weights]


def written_out(student: list[float], teacher: list[float], k: int, divergence: str, beta: float, temperature: float, tail: str) -> float:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    best = sorted(range(len(p)), key=lambda v: -p[v])[:k]
    some, mine = [p[v] for v in best], [q[v] for v in best]
    if tail == "bucket" and k < len(p):
        some, mine = [*some, 1 - sum(some)], [*mine, 1 - sum(mine)]
    if tail == "renormalise":
        some, mine = [x / sum(some) for x in some], [x / sum(mine) for x in mine]
    if divergence == "forward_kl":
        return sum(a * math.log(a / b) for a, b in zip(some, mine, strict=True))
    if divergence == "reverse_kl":
        return sum(b * math.log(b / a) for a, b in zip(some, mine, strict=True))
    middle = [beta * a + (1 - beta) * b for a, b in zip(some, mine, strict=True)]
    return sum(beta * a * math.log(a / m) + (1 - beta) * b * math.log(b / m) for a, b, m in zip(some, mine, middle, strict=True))


@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("divergence", "beta"), EVERY)
def test_top_k_divergences_follow_their_formula(divergence: Divergence, beta: float, tail: Tail, k: int) -> None:
    student, teacher = logits(0), logits(1)
    known = top_k_of(teacher, targets(), k, temperature=1.4)
    found = top_k_divergences(student, known, divergence=divergence, beta=beta, temperature=1.4, tail=tail)
    expected = [written_out(s, t, k, divergence, beta, 1.4, tail) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("divergence", "beta"), EVERY)
def test_gradients_agree_with_finite_differences(divergence: Divergence, beta: float, tail: Tail) -> None:
    known = top_k_of(logits(1, 3), targets(3), 4)

    def loss(student: torch.Tensor) -> torch.Tensor:
        return top_k_divergences(student, known, divergence=divergence, beta=beta, tail=tail)

    assert torch.autograd.gradcheck(loss, (logits(0, 3).requires_grad_(),))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("divergence", "beta"), EVERY)
def test_with_the_whole_vocabulary_it_is_the_whole_divergence(divergence: Divergence, beta: float, tail: Tail) -> None:
    student, same, teacher = logits(0).requires_grad_(), logits(0).requires_grad_(), logits(1)
    found = top_k_divergences(student, top_k_of(teacher, targets(), 9), divergence=divergence, beta=beta, tail=tail)
    whole = whole_divergences(same, teacher, divergence=divergence, beta=beta)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-13)
    (mine,), (other,) = torch.autograd.grad(found.sum(), student), torch.autograd.grad(whole.sum(), same)
    torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-13)


@given(st.integers(0, 10**6), st.sampled_from(EVERY))
def test_a_bucket_never_says_more_than_the_whole_and_more_tokens_say_more(seed: int, kind: tuple[Divergence, float]) -> None:
    student, teacher = logits(seed, 4), logits(seed + 1, 4)
    values = [top_k_divergences(student, top_k_of(teacher, targets(4), k), divergence=kind[0], beta=kind[1]) for k in range(1, 10)]
    for fewer, more in itertools.pairwise(values):
        assert bool((fewer <= more + 1e-12).all()) and bool((fewer >= -1e-12).all())


@pytest.mark.parametrize(("divergence", "beta"), EVERY)
@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_equal_models_are_at_0_with_a_gradient_of_0(divergence: Divergence, beta: float, tail: Tail) -> None:
    student = logits(0).requires_grad_()
    found = top_k_divergences(student, top_k_of(logits(0) + 2, targets(), 3), divergence=divergence, beta=beta, tail=tail)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert float(found.detach().abs().max()) < 1e-12 and float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize(("divergence", "beta"), EVERY)
@pytest.mark.parametrize("tail", TAILS)
def test_huge_logits_and_a_teacher_without_a_rest_stay_finite(divergence: Divergence, beta: float, tail: Tail) -> None:
    student = torch.tensor([[3e4, 0.0, -3e4], [0.0, 1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[-3e4, 0.0, 3e4], [-math.inf, -math.inf, 0.0]])
    found = top_k_divergences(student, top_k_of(teacher, torch.tensor([0, 2]), 1), divergence=divergence, beta=beta, tail=tail)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert bool(found.isfinite().all()) and bool(gradient.isfinite().all())


def test_the_rest_is_summed_where_one_less_the_sum_would_be_noise() -> None:
    known = top_k_of(torch.tensor([[40.0, 0.0, 0.0]]), torch.tensor([1]), 1)
    assert known.tail.item() == pytest.approx(math.log(2) - 40, rel=1e-6)
    assert known.target.item() == pytest.approx(-40, rel=1e-6)


def test_an_unknown_tail_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown tail 'drop'"):
        top_k_divergences(logits(0), top_k_of(logits(1), targets(), 2), divergence="jsd", tail="drop")  # type: ignore[arg-type]


# The estimate at sampled tokens


def test_over_all_samples_the_estimate_and_its_gradient_are_the_reverse_kl_and_its_gradient() -> None:
    student, teacher = logits(0, 3).requires_grad_(), logits(1, 3)
    q, p = student.log_softmax(-1), teacher.log_softmax(-1)
    tokens, width = student.shape
    # Every token once, weighed by the student's probability of sampling it.
    every = sampled_reverse_kl(q.reshape(-1), p.reshape(-1)).reshape(tokens, width)
    estimate = (q.detach().exp() * every).sum(dim=-1)
    exact = reverse_kl(q, p)
    torch.testing.assert_close(estimate, exact, rtol=1e-12, atol=1e-12)
    (mine,) = torch.autograd.grad(estimate.sum(), student, retain_graph=True)
    (other,) = torch.autograd.grad(exact.sum(), student)
    torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_the_estimates_gradient_is_the_policy_gradient_with_the_teachers_advantage() -> None:
    student, teacher = torch.tensor([-0.5, -3.0, -1.0], dtype=torch.float64).requires_grad_(), torch.tensor([-2.0, -1.0, -1.0])
    values = sampled_reverse_kl(student, teacher)
    assert values.tolist() == pytest.approx([1.5, -2.0, 0.0])
    (gradient,) = torch.autograd.grad(values.sum(), student)
    # Descending it makes a token that the teacher likes better more probable.
    assert gradient.tolist() == pytest.approx([1.5, -2.0, 0.0])


# A few targets at a time


class Models:
    """Hidden states and heads of a student and of a wider teacher, in float64."""

    def __init__(self, tokens: int = 11, vocabulary: int = 9):
        made = torch.Generator().manual_seed(3)
        self.states = torch.randn(tokens, 4, generator=made, dtype=torch.float64).requires_grad_()
        self.head = torch.randn(vocabulary, 4, generator=made, dtype=torch.float64).requires_grad_()
        teacher, head = torch.randn(tokens, 6, generator=made, dtype=torch.float64), torch.randn(vocabulary + 2, 6, generator=made).double()
        self.student = TargetStates(self.states, lambda some: some @ self.head.T, vocabulary, (self.head,))
        self.teacher = TargetStates(teacher, lambda some: some @ head.T, vocabulary + 2)
        self.theirs = (teacher @ head.T)[:, :vocabulary]
        self.targets = targets(tokens, vocabulary)


SAMPLING = {"on_policy_share": 1, "max_new_tokens": 4}
SERVED = {"teacher": "server", "server": {"url": "http://127.0.0.1:1/v1", "model": "m"}, "top_k": 3}
KINDS: list[dict[str, Any]] = [
    {"divergence": "forward_kl"},
    {"divergence": "jsd", "beta": 0.2, "temperature": 1.5},
    {"divergence": "sampled_reverse_kl", **SAMPLING},
    {"divergence": "reverse_kl", **SERVED},
    {"divergence": "sampled_reverse_kl", "teacher": "engine", **SAMPLING},
]


def said(models: Models, config: DistillConfig) -> Signal:
    if config.top_k is not None:
        return top_k_of(models.theirs, models.targets, config.top_k)
    if config.teacher == "engine":
        return models.theirs.log_softmax(-1).gather(1, models.targets[:, None])[:, 0]
    return models.teacher


@pytest.mark.parametrize("options", KINDS, ids=lambda o: "-".join(str(o[name]) for name in ("divergence", "teacher") if name in o))
def test_chunks_change_neither_values_nor_gradients(options: dict[str, Any]) -> None:
    config = DistillConfig(lr=1e-3, **options)

    def run(max_logits: int) -> list[torch.Tensor]:
        models = Models()
        weights = torch.arange(1, 12, dtype=torch.float64)
        keys: dict[str, Any] = {"weights": weights, "ce_coefficient": 0.3, "max_logits": max_logits}
        found = compare_states(models.student, models.targets, said(models, config), config, **keys)
        found.loss.backward()  # type: ignore[no-untyped-call]
        assert models.states.grad is not None and models.head.grad is not None
        rest = [] if found.agreement is None else [found.agreement]
        values = [found.loss, found.divergence, found.cross_entropy, found.teacher_cross_entropy, *rest]
        return [*(value.detach() for value in values), models.states.grad, models.head.grad]

    for mine, theirs in zip(run(10**6), run(40), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("options", [*KINDS, {"divergence": "jsd", "beta": 0.0}, {"divergence": "jsd", "beta": 1.0}], ids=str)
def test_the_loss_and_its_gradients_are_those_of_automatic_differentiation(options: dict[str, Any]) -> None:
    config, models = DistillConfig(lr=1e-3, divergence_coefficient=0.7, **options), Models()
    weights = torch.arange(1, 12, dtype=torch.float64)
    keys: dict[str, Any] = {"divergence": config.divergence, "beta": config.beta, "temperature": config.temperature}
    mine, known = models.student.logits(models.states), said(models, config)
    own = (mine / config.temperature).log_softmax(-1).gather(1, models.targets[:, None])[:, 0]
    if config.divergence == "sampled_reverse_kl":
        theirs = models.teacher.logits(models.teacher.states) if isinstance(known, TargetStates) else models.theirs
        divergence = sampled_reverse_kl(own, theirs.log_softmax(-1).gather(1, models.targets[:, None])[:, 0])
    elif isinstance(known, TopK):
        divergence = top_k_divergences(mine, known, **keys)
    else:
        divergence = whole_divergences(mine, models.teacher.logits(models.teacher.states), **keys)
    cross_entropy = torch.nn.functional.cross_entropy(mine, models.targets, reduction="none")
    expected = (weights * (0.7 * divergence + 0.3 * cross_entropy)).sum()
    found = compare_states(models.student, models.targets, known, config, weights=weights, ce_coefficient=0.3, max_logits=50)
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.divergence, divergence.detach(), rtol=1e-12, atol=1e-12)
    inputs = (models.states, models.head)
    for one, other in zip(torch.autograd.grad(2 * found.loss, inputs), torch.autograd.grad(2 * expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("options", KINDS[:3], ids=lambda o: o["divergence"])
def test_the_measures_are_the_models_own(options: dict[str, Any]) -> None:
    config, models = DistillConfig(lr=1e-3, **options), Models()
    mine, theirs = models.student.logits(models.states), models.teacher.logits(models.teacher.states)
    found = compare_states(models.student, models.targets, models.teacher, config, weights=torch.ones(11))
    places = torch.arange(11)
    torch.testing.assert_close(found.cross_entropy, -mine.log_softmax(-1)[places, models.targets])
    torch.testing.assert_close(found.teacher_cross_entropy, -theirs.log_softmax(-1)[places, models.targets])
    assert found.agreement is not None
    assert found.agreement.tolist() == (mine.argmax(-1) == theirs.argmax(-1)).double().tolist()


def test_no_token_has_no_divergence_and_a_gradient_of_0() -> None:
    for options in KINDS:
        config, models = DistillConfig(lr=1e-3, **options), Models(0)
        found = compare_states(models.student, models.targets, said(models, config), config, weights=torch.ones(0))
        found.loss.backward()  # type: ignore[no-untyped-call]
        assert found.divergence.shape == (0,) and found.loss.item() == 0
        assert models.head.grad is not None and float(models.head.grad.abs().sum()) == 0


def test_a_top_k_is_as_long_as_its_tokens() -> None:
    known = top_k_of(logits(1), targets(), 3)
    assert len(known) == 6 and {field.name for field in fields(TopK)} == {"ids", "logprobs", "tail", "target", "width"}
    assert bool((known.logprobs.diff(dim=1) <= 0).all())
