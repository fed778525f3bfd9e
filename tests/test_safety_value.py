"""The safety Bellman equation and the scores beside it, against numbers worked out elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from safe_o2o.algorithms.safety_value import (
    disagreement,
    margin_loss,
    novelty_label,
    safety_discount,
    safety_target,
    surprise,
)

D = torch.float64
# T1: margins of six states (literature's sign), and where one can go from each; 5 is absorbing.
MARGIN = torch.tensor([1.0, 0.8, 0.5, 0.2, -0.1, -1.0], dtype=D)
MOVES = ((0, 1), (0, 2), (1, 3), (4,), (5,), (5,))
RIGHT = ((1,), (2,), (3,), (4,), (5,), (5,))


def solved(moves: tuple[tuple[int, ...], ...], discount: float) -> list[float]:
    """The fixed point for values of states, in the literature's sign."""
    h, value = -MARGIN, torch.zeros(6, dtype=D)
    never = torch.zeros(6, dtype=D)
    for _ in range(4000):
        best = torch.stack([value[list(to)].min() for to in moves])
        value = safety_target(h, best, never, never, discount)
    return (-value).tolist()


@pytest.mark.parametrize(
    "moves, discount, expected",
    [
        (MOVES, 0.85, (1, 0.8, 0.5, -0.70525, -0.865, -1)),
        (MOVES, 0.95, (1, 0.8, 0.5, -0.89725, -0.955, -1)),
        (MOVES, 0.99, (1, 0.8, 0.5, -0.97909, -0.991, -1)),
        (RIGHT, 0.85, (-0.126924, -0.325793, -0.524462, -0.70525, -0.865, -1)),
    ],
)
def test_t1_the_safety_bellman_equation(
    moves: tuple[tuple[int, ...], ...], discount: float, expected: tuple[float, ...]
) -> None:
    np.testing.assert_allclose(solved(moves, discount), expected, atol=1e-6)


def one(h: float, later: float, violated: float = 0, terminated: float = 0) -> float:
    numbers = [torch.tensor([x], dtype=D) for x in (h, later, violated, terminated)]
    return float(safety_target(*numbers, 0.95))


def test_t1_a_single_target_and_its_ends() -> None:
    assert one(-0.3, 0.2) == pytest.approx(0.175)
    assert one(-0.3, -0.7) == pytest.approx(-0.3)
    assert one(-0.3, -0.7, violated=1) == 1.0  # absorbing, whatever is thought of later
    assert one(-0.3, 0.9, terminated=1) == pytest.approx(-0.3)  # nothing comes after the goal


@pytest.mark.parametrize(
    "discount, steps, expected",
    [(0.95, 13, -0.026684), (0.95, 14, 0.024650), (0.99, 68, -0.009772), (0.99, 69, 0.000326)],
)
def test_t2_how_far_ahead_a_discount_sees(discount: float, steps: int, expected: float) -> None:
    """Margin 1 until a failure in so many steps that nobody can avoid."""
    value = torch.ones(1, dtype=D)  # house sign, at the failure
    never = torch.zeros(1, dtype=D)
    for _ in range(steps):
        value = safety_target(torch.full((1,), -1.0, dtype=D), value, never, never, discount)
    assert -float(value) == pytest.approx(expected, abs=1e-6)
    assert -float(value) == pytest.approx(1 - 2 * discount**steps)


@pytest.mark.parametrize(
    "update, expected",
    [(4000, 0.857495), (20_000, 0.883910), (100_000, 0.958319), (200_000, 0.988366)],
)
def test_t3_the_schedule(update: int, expected: float) -> None:
    assert safety_discount(update, 0.9999, 4000) == pytest.approx(expected, abs=1e-6)


def renyi_divergence(mean: np.ndarray, variance: np.ndarray) -> float:
    """JRD of M Gaussians with quadratic Renyi entropy (spec 2), what our score is not."""
    difference = mean[:, None] - mean[None]
    total = variance[:, None] + variance[None]
    z = np.exp(-0.5 * (difference**2 / total + np.log(total)).sum(-1))
    mixture = -np.log(z.mean())
    return float(mixture - 0.5 * np.log(2 * variance).sum(-1).mean())


@pytest.mark.parametrize(
    "mean, variance, expected",
    [
        ([[0.0], [0.0], [0.0]], [[1.0]] * 3, 0.0),
        ([[-1.0], [0.0], [1.0]], [[1.0]] * 3, 0.272835),
        ([[-1.0], [0.0], [1.0]], [[0.25]] * 3, 0.691338),
        ([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], [[1.0, 0.5], [0.5, 1.0], [2.0, 1.0]], 0.443701),
        ([[0.0], [1e3], [2e3], [3e3], [4e3]], [[1.0]] * 5, math.log(5)),
    ],
)
def test_t4_the_divergence_that_is_bounded(mean: list, variance: list, expected: float) -> None:  # type: ignore[type-arg]
    found = renyi_divergence(np.array(mean), np.array(variance))
    assert found == pytest.approx(expected, abs=1e-6)


def test_t5_the_divergence_goes_wrong_where_the_members_agree_and_ours_is_silent() -> None:
    offsets = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    mean = np.zeros((5, 512))
    for scale, expected in ((0.01, -2.546), (0.05, -22.384), (0.1, -47.981), (0.2, -99.181)):
        variance = np.exp(2 * scale * offsets)[:, None] * np.ones((1, 512))
        assert renyi_divergence(mean, variance) == pytest.approx(expected, abs=2e-3)
    assert math.log(47.981) == pytest.approx(3.871, abs=1e-3)  # what a threshold of 4.0 is about
    silent = disagreement(torch.zeros(5, 7, 512, dtype=D), torch.ones(512, dtype=D))
    np.testing.assert_allclose(silent.exp() - 1e-6, 0.0, atol=1e-12)
    apart = disagreement(torch.tensor([[-1.0], [0.0], [1.0]], dtype=D), torch.ones(1, dtype=D))
    assert float(apart.exp()) - 1e-6 == pytest.approx(0.666667, abs=1e-6)


def test_disagreement_is_linear_where_the_divergence_saturates() -> None:
    """Spec 6.4: 512 dimensions, means that differ by 0.02 to 0.15, residuals of 1."""
    means = torch.randn(5, 4000, 512, dtype=D, generator=torch.Generator().manual_seed(0))
    spreads = (0.02, 0.05, 0.10, 0.15)
    found = [
        float((disagreement(s * means, torch.ones(512, dtype=D)).exp() - 1e-6).mean())
        for s in spreads
    ]
    np.testing.assert_allclose(found, [3.2e-4, 2.0e-3, 8.0e-3, 1.8e-2], rtol=0.04)


def jensen_shannon(rows: np.ndarray) -> float:
    def entropy(p: np.ndarray) -> np.ndarray:
        return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(-1)

    return float(entropy(rows.mean(0)) - entropy(rows).mean())


def test_t6_divergences_of_categoricals() -> None:
    rows = np.array([(0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.3, 0.3, 0.4)])
    assert jensen_shannon(rows) == pytest.approx(0.208889, abs=1e-6)
    pairs = (rows[:, None] * rows[None]).sum(-1)
    renyi = -np.log(pairs.mean()) + np.log((rows**2).sum(-1)).mean()
    assert renyi == pytest.approx(0.311994, abs=1e-6)
    assert jensen_shannon(np.eye(3)) == pytest.approx(math.log(3))
    assert jensen_shannon(rows) / (2 * math.log(3)) == pytest.approx(0.095069, abs=1e-6)
    # Ours is the KL of posterior and prior: zero where they agree, and a sum over latents.
    post, prior = torch.tensor(rows[0], dtype=D).log(), torch.tensor(rows[1], dtype=D).log()
    by_hand = 0.7 * math.log(7) + 0.2 * math.log(0.25) + 0.1 * math.log(1.0)
    twice = surprise(torch.stack([post, post]), torch.stack([prior, prior]))
    assert float(twice) == pytest.approx(2 * by_hand)
    assert float(surprise(post[None], post[None])) == 0.0


def test_t12_the_margin_loss() -> None:
    weight = torch.tensor([0.3, 0.4], dtype=D, requires_grad=True)
    safe = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, 0.5]], dtype=D)
    failed = torch.tensor([[-1.0, -1.0], [0.0, 1.0]], dtype=D)
    failed_too = failed[[0, 1, 0, 1, 0, 1]]  # repeated to equal numbers
    loss = margin_loss(
        lambda z: z @ weight, safe[[0, 1, 2, 0, 1, 2]], failed_too, torch.rand(6, dtype=D)
    )
    assert float(loss) == pytest.approx(0.1 * -0.55 + 0.233333 + 10 * 0.16, abs=1e-6)
    assert float(loss) == pytest.approx(1.778333, abs=1e-6)
    (grad,) = torch.autograd.grad(loss, weight)  # the slope has a gradient of its own
    assert grad.isfinite().all() and float(grad.norm()) > 1.0


def lipschitz_factor(discount: float, dynamics: float) -> float:
    """How much steeper a value is than its margin, at most (LatentCBF, spec 3)."""
    return max(1.0, (1 - discount) / (1 - discount * dynamics))


def test_t12_how_much_steeper_a_value_is_than_its_margin() -> None:
    assert lipschitz_factor(0.95, 1.02) == pytest.approx(1.612903, abs=1e-6)
    assert lipschitz_factor(0.9, 1.05) == pytest.approx(1.818182, abs=1e-6)
    assert lipschitz_factor(0.9, 1.0) == 1.0
    # On a line x' = L x with margin 1 - |x| (slope 1): the learned value keeps the bound.
    grid = torch.linspace(0.0, 3.0, 3001, dtype=D)
    h, never = (grid - 1.0).clamp(-1.0, 1.0), torch.zeros(3001, dtype=D)
    value = h.clone()
    for _ in range(600):
        to = (grid * 1.05 / 3.0 * 3000).clamp(max=3000)
        low = to.floor().long()
        later = torch.lerp(value[low], value[(low + 1).clamp(max=3000)], to - low)
        value = safety_target(h, later, never, never, 0.9)
    steepest = float((value.diff() / grid.diff()).abs().max())
    assert 1.05 < steepest <= lipschitz_factor(0.9, 1.05) + 1e-6


def test_t13_what_is_unknown_counts_as_dangerous() -> None:
    threshold, width = torch.tensor(2.0, dtype=D), torch.tensor(0.2, dtype=D)
    for novelty, expected in ((1.9, -0.3), (2.0, 0.0), (2.05, 0.25), (2.2, 1.0)):
        label = novelty_label(torch.tensor(novelty, dtype=D), threshold, width)
        assert max(-0.3, float(label)) == pytest.approx(expected, abs=1e-9)
