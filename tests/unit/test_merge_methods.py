"""The formulas of merging, held against their papers' written anew element by element; and what must come out to the last bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steelyard_merge import methods
from steelyard_merge.measures import Distances, Signs
from steelyard_merge.methods import angle, drop_and_rescale, slerp, task_arithmetic, ties, weighted_sum
from steelyard_merge.trimming import magnitude_threshold


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Float32 numbers in float64, as weights are when they are merged."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
    return numbers.float().double()


def rounded(tensor: Tensor) -> Tensor:
    """As the merged model stores it."""
    return tensor.float()


# Weighted sums


@pytest.mark.parametrize("weights", [[0.2, 0.5, 0.3], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.5], [2.0, -1.0, 0.25]])
def test_a_weighted_sum_is_the_sum_of_the_weighted(weights: list[float]) -> None:
    models = [draw(seed, 50) for seed in range(3)]
    merged = weighted_sum(models, weights)
    for place in range(50):
        expected = math.fsum(weight * float(model[place]) for weight, model in zip(weights, models, strict=True))
        assert float(merged[place]) == pytest.approx(expected, rel=1e-13, abs=1e-15)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=6), st.integers(0, 1000))
def test_the_average_of_equal_models_is_the_model_to_the_last_bit(given_weights: list[float], seed: int) -> None:
    model = draw(seed, 200, scale=10.0 ** (seed % 20 - 10))
    weights = [weight / math.fsum(given_weights) for weight in given_weights]
    assert torch.equal(weighted_sum([model.clone() for _ in weights], weights), model)


def test_a_model_with_all_the_weight_is_the_sum_even_where_another_is_far_larger() -> None:
    small, large = torch.tensor([1e-20, 3e-38], dtype=torch.float64), torch.tensor([1.0, -7e30], dtype=torch.float64)
    assert torch.equal(weighted_sum([large, small], [0.0, 1.0]), small)
    assert torch.equal(weighted_sum([small, large], [1.0, 0.0]), small)


# Spherical interpolation


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_slerp_goes_along_the_arc_at_constant_speed(t: float) -> None:
    first, second = draw(1, 400), draw(2, 400)
    theta = angle(first, second)
    cosine = math.fsum(float(a) * float(b) for a, b in zip(first, second, strict=True)) / (float(first.norm()) * float(second.norm()))
    assert theta == pytest.approx(math.acos(cosine), abs=1e-12)
    merged = slerp(first, second, t, theta)
    for place in range(400):
        expected = (math.sin((1 - t) * theta) * float(first[place]) + math.sin(t * theta) * float(second[place])) / math.sin(theta)
        assert float(merged[place]) == pytest.approx(expected, rel=1e-12, abs=1e-14)
    # On a sphere: of two directions it has the length, and t of the angle.
    on_sphere = slerp(first / first.norm(), second / second.norm(), t, theta)
    assert float(on_sphere.norm()) == pytest.approx(1, abs=1e-12)
    assert angle(first, on_sphere) == pytest.approx(t * theta, abs=1e-12)
    assert float(weighted_sum([first / first.norm(), second / second.norm()], [1 - t, t]).norm()) < 0.95


def test_slerp_does_not_ask_which_model_comes_first() -> None:
    first, second = draw(1, 100), draw(2, 100)
    theta = angle(first, second)
    torch.testing.assert_close(slerp(first, second, 0.3, theta), slerp(second, first, 0.7, theta), atol=1e-15, rtol=1e-13)


@pytest.mark.parametrize(("t", "which"), [(0.0, 0), (1.0, 1)])
def test_at_either_end_of_the_arc_is_a_model_exactly(t: float, which: int) -> None:
    pair = draw(1, 100), draw(2, 100, scale=1e-12)
    assert torch.equal(slerp(*pair, t, angle(*pair)), pair[which])


@pytest.mark.parametrize("second", ["equal", "longer", "opposite", "zero", "close"])
def test_where_there_is_no_arc_slerp_is_linear(second: str) -> None:
    first = draw(1, 100)
    other = {"equal": first, "longer": 3 * first, "opposite": -first, "zero": 0 * first, "close": first + draw(2, 100, scale=1e-6)}[second]
    merged = slerp(first, other, 0.25, angle(first, other))
    torch.testing.assert_close(merged, 0.75 * first + 0.25 * other, atol=1e-15, rtol=1e-14)
    assert second != "equal" or torch.equal(merged, first)


def test_small_angles_keep_their_digits_and_the_arc_meets_the_chord_where_slerp_turns_linear() -> None:
    first = draw(1, 2000)
    across = draw(2, 2000)
    across -= first * (across @ first) / (first @ first)
    for theta in (1e-9, 1e-4, 1.1e-4, 0.3, 3.0):
        turned = math.cos(theta) * first + math.sin(theta) * across * first.norm() / across.norm()
        assert angle(first, turned) == pytest.approx(theta, rel=1e-6)
    nearly = math.cos(1.01e-4) * first + math.sin(1.01e-4) * across * first.norm() / across.norm()
    arc, chord = slerp(first, nearly, 0.5, angle(first, nearly)), weighted_sum([first, nearly], [0.5, 0.5])
    assert float((arc - chord).norm() / first.norm()) < 2e-9 < torch.finfo(torch.float32).eps


def test_the_angle_of_a_large_tensor_is_found_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = draw(1, 37, 11), draw(2, 37, 11)
    whole = angle(first, second)
    monkeypatch.setattr(methods, "PIECE", 64)
    assert angle(first, second) == pytest.approx(whole, rel=1e-14)


# Task arithmetic


def test_task_vectors_are_added_and_taken_away() -> None:
    base, models, scales = draw(0, 60), [draw(seed, 60) for seed in (1, 2, 3)], [0.4, 1.0, -0.7]
    merged = task_arithmetic(base, models, scales)
    for place in range(60):
        start = float(base[place])
        expected = start + math.fsum(scale * (float(model[place]) - start) for scale, model in zip(scales, models, strict=True))
        assert float(merged[place]) == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_one_whole_task_vector_gives_its_model_exactly() -> None:
    base = torch.cat([draw(0, 100), torch.tensor([1.0, -3e30], dtype=torch.float64)])
    model = torch.cat([draw(1, 100), torch.tensor([1e-20, 2e-38], dtype=torch.float64)])
    assert torch.equal(task_arithmetic(base, [model], [1.0]), model)
    assert torch.equal(task_arithmetic(base, [base, base], [0.3, 0.9]), base)


def test_dare_drops_that_share_of_the_changes_and_keeps_their_mean() -> None:
    base, model = draw(0, 200_000), draw(1, 200_000)
    merged = drop_and_rescale(base, model, 0.9, torch.Generator().manual_seed(5))
    dropped = merged == base
    # 4.5 standard deviations of a binomial share.
    assert float(dropped.double().mean()) == pytest.approx(0.9, abs=4.5 * math.sqrt(0.09 / 200_000))
    torch.testing.assert_close(merged[~dropped], (base + (model - base) / (1 - 0.9))[~dropped])
    change, meant = (merged - base).mean(), (model - base).mean()
    assert float((change - meant).abs()) < 5 * math.sqrt(9 * 2 / 200_000)
    again = drop_and_rescale(base, model, 0.9, torch.Generator().manual_seed(5))
    assert torch.equal(merged, again)


# TIES


def ties_by_loops(base: Tensor, models: list[Tensor], weights: list[float], scale: float, density: float) -> tuple[list[float], int, int]:
    """Algorithm 1 of arXiv 2306.01708, element by element: trim, elect, merge. Also how many elements change, and how many conflict."""
    changes = [[float(m) - float(b) for m, b in zip(model, base, strict=True)] for model in models]
    trimmed = []
    for change in changes:
        largest = sorted(range(len(change)), key=lambda place: -abs(change[place]))[: round(density * len(change))]
        trimmed.append([value if place in set(largest) else 0.0 for place, value in enumerate(change)])
    merged, kept, conflicts = [], 0, 0
    for place in range(len(base)):
        values = [change[place] for change in trimmed]
        total = math.fsum(weight * value for weight, value in zip(weights, values, strict=True))
        sign = (total > 0) - (total < 0)
        agreeing = [(w, v) for w, v in zip(weights, values, strict=True) if v != 0 and (v > 0) - (v < 0) == sign]
        mass = math.fsum(weight for weight, _ in agreeing)
        mean = math.fsum(weight * value for weight, value in agreeing) / mass if agreeing else 0.0
        merged.append(float(base[place]) + scale * mean)
        kept += any(values)
        conflicts += any(value > 0 for value in values) and any(value < 0 for value in values)
    return merged, kept, conflicts


def thresholds(base: Tensor, models: list[Tensor], density: float) -> list[float]:
    keep = max(1, round(density * base.numel()))
    return [magnitude_threshold(lambda model=model: [(model - base).abs().float()], keep) for model in models]  # type: ignore[misc]


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(("weights", "scale"), [([1.0, 1.0, 1.0], 1.0), ([0.5, 2.0, 1.0], 0.7), ([1.0, 1.0, 0.0], 1.3)])
def test_ties_is_the_papers_algorithm(density: float, weights: list[float], scale: float) -> None:
    base, models = draw(0, 300), [draw(seed, 300) for seed in (1, 2, 3)]
    expected, kept, conflicts = ties_by_loops(base, models, weights, scale, density)
    merged, counts, conflict = ties(base, models, weights, scale, thresholds(base, models, density))
    torch.testing.assert_close(merged, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-12)
    assert int((counts > 0).sum()) == kept and int(conflict.sum()) == conflicts


def test_one_model_kept_whole_is_that_model_exactly() -> None:
    base = torch.cat([draw(0, 100), torch.tensor([1.0, 0.0], dtype=torch.float64)])
    model = torch.cat([draw(1, 100), torch.tensor([1e-20, 0.0], dtype=torch.float64)])
    merged, _, _ = ties(base, [model], [0.3], 1.0, thresholds(base, [model], 1.0))
    assert torch.equal(rounded(merged), rounded(model))


def test_changes_that_cancel_leave_the_base_and_a_stronger_one_decides() -> None:
    base = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    up, down = base + torch.tensor([2.0, 2.0, 0.0]), base + torch.tensor([-2.0, -1.0, -1.0])
    merged, counts, conflict = ties(base, [up, down], [1.0, 1.0], 1.0, [0.0, 0.0])
    assert merged.tolist() == [1.0, 3.0, 0.0]
    assert counts.tolist() == [2, 2, 1] and conflict.tolist() == [True, True, False]


# The largest changes


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
    st.integers(1, 60),
    st.integers(1, 7),
)
def test_the_threshold_is_the_kth_largest_magnitude(values: list[float], keep: int, piece: int) -> None:
    keep = min(keep, len(values))
    tensor = torch.tensor(values)
    found = magnitude_threshold(lambda: torch.split(tensor, piece), keep)
    assert found == float(tensor.sort(descending=True).values[keep - 1])
    assert int((tensor >= found).sum()) >= keep > int((tensor > found).sum())


# What is measured


def test_distances_are_over_all_weights_and_told_for_every_pair() -> None:
    models = {name: [draw(seed, 40), draw(seed + 10, 7, 3)] for seed, name in enumerate(("start", "a", "b"))}
    models["c"] = models["a"]
    distances = Distances("start", ["a", "b", "c"])
    for place in (0, 1):
        distances.add({name: parts[place] for name, parts in models.items()})
    flat = {name: torch.cat([part.flatten() for part in parts]) for name, parts in models.items()}
    length = float(flat["start"].norm())
    assert distances.norm == pytest.approx(length)
    told = distances.to_json()
    assert len(told) == 6
    for pair, value in told.items():
        one, two = pair.split(" – ")
        assert value == pytest.approx(float((flat[one] - flat[two]).norm()) / length)
    assert distances.largest() == max(told.values())
    assert distances.twins() == [("a", "c")] and distances.same(["a", "c"]) and not distances.same(["a", "b", "c"])


def test_sign_conflicts_are_shares_of_what_several_models_change() -> None:
    signs = Signs()
    assert signs.metrics() == {}
    signs.add(torch.tensor([0, 1, 2, 3]), torch.tensor([False, False, True, False]))
    signs.add(torch.tensor([2, 2, 0, 0]), torch.tensor([False, False, False, False]))
    assert signs.metrics() == {"merge/changed": 5 / 8, "merge/shared": 4 / 5, "merge/sign_conflicts": 1 / 4}
