"""The planner's arithmetic against the specification's numbers (online_safety.md 3.8)."""

from __future__ import annotations

import pytest
import torch

from safe_o2o.algorithms.extraction import ABSENT
from safe_o2o.algorithms.plan_weights import (
    Plan,
    discounted_return,
    drawn,
    effective_share,
    refit,
    safe_weights,
    shifted,
    temperature_for,
)

RETURNS = torch.tensor([1.0, 2.0, 3.0, 3.5, 0.0], dtype=torch.float64)
ACTIONS = torch.tensor([-0.8, -0.2, 0.3, 0.6, 0.9], dtype=torch.float64)
SAFE = torch.full((5,), -1.0, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kappa", "weights", "mean"),
    [
        (0.0, (0.2,) * 5, 0.16),
        (1.0, (0.04227, 0.11490, 0.31233, 0.51495, 0.01555), 0.359868),
        (5.0, (0.0, 0.00051, 0.07582, 0.92367, 0.0), 0.576841),
        (100.0, (0.0, 0.0, 0.0, 1.0, 0.0), 0.6),
    ],
)
def test_weights_of_five_candidates(kappa: float, weights: tuple[float, ...], mean: float) -> None:
    found = safe_weights(RETURNS, SAFE, kappa)
    weight = torch.softmax(found.log_weight, -1)
    expected = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(weight, expected, rtol=0, atol=6e-6)
    assert float(weight @ ACTIONS) == pytest.approx(mean, abs=1e-6)
    assert bool(found.constrained)


def test_the_variance_remembers() -> None:
    weight = torch.softmax(safe_weights(RETURNS, SAFE, 1.0).log_weight, -1)
    before = Plan(torch.zeros(1, 1).double(), torch.full((1, 1), 0.25).double())
    found = refit(ACTIONS.view(-1, 1, 1), weight, before, momentum=0.1, floor=0.05)
    assert float(found.mean) == pytest.approx(0.359868, abs=1e-6)
    assert float(found.variance) == pytest.approx(0.140407, abs=1e-6)
    alone = refit(ACTIONS.view(-1, 1, 1), weight, before, momentum=0.0, floor=0.05)
    assert float(alone.variance) == pytest.approx(0.128230, abs=1e-6)
    one = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]).double()
    narrow = refit(ACTIONS.view(-1, 1, 1), one, before, momentum=0.0, floor=0.05)
    assert float(narrow.variance) == pytest.approx(0.05**2)


@pytest.mark.parametrize(("kappa", "share"), [(0.5, 0.676), (1.0, 0.445), (5.0, 0.121)])
def test_effective_share_of_a_gaussian(kappa: float, share: float) -> None:
    """Prior N(0, 1), R = -(a - 2)^2 / 2: what is left is N(2 k / (1 + k), 1 / (1 + k))."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(400_000, generator=g, dtype=torch.float64)
    score = -0.5 * (a - 2.0).square()
    assert float(effective_share(kappa * score)) == pytest.approx(share, abs=0.01)
    weight = torch.softmax(kappa * score, 0)
    mean = float(weight @ a)
    assert mean == pytest.approx(2.0 * kappa / (1.0 + kappa), abs=0.02)
    assert float(weight @ (a - mean).square()) == pytest.approx(1.0 / (1.0 + kappa), abs=0.02)
    # And back: the share asks for the temperature, whatever the unit of the returns.
    for scale in (1.0, 1e-3, 1e4):
        found = temperature_for(scale * score, share)
        assert float(found) * scale == pytest.approx(kappa, rel=0.05)


def test_a_temperature_of_scores_that_are_alike_or_missing() -> None:
    assert bool(temperature_for(torch.ones(8), 0.2).isfinite())
    score = torch.tensor([1.0, 2.0, ABSENT, 3.0])
    kappa = temperature_for(score, 0.5)
    weight = torch.softmax(kappa * score, 0)
    assert float(weight[2]) == 0.0 and bool(weight.isfinite().all())


def test_returns_are_discounted_and_end_in_a_value() -> None:
    reward = torch.tensor([[1.0, 2.0, 3.0]])
    never = torch.zeros(1, 3)
    expected = 1.0 + 0.9 * 2.0 + 0.81 * 3.0 + 0.729 * 10.0
    value = torch.tensor([10.0])
    assert float(discounted_return(reward, never, value, 0.9)) == pytest.approx(expected)
    ended = torch.tensor([[0.0, 1.0, 0.0]])  # what comes after the end does not count
    assert float(discounted_return(reward, ended, value, 0.9)) == pytest.approx(1.0 + 0.9 * 2.0)
    perhaps = torch.tensor([[0.5, 0.0, 0.0]])
    later = 0.5 * (0.9 * 2.0 + 0.81 * 3.0 + 0.729 * 10.0)
    assert float(discounted_return(reward, perhaps, value, 0.9)) == pytest.approx(1.0 + later)


def test_only_feasible_candidates_count_where_there_are_enough() -> None:
    danger = torch.tensor([-1.0, -0.5, 0.1, 0.2, -0.3]).double()
    found = safe_weights(RETURNS, danger, 1.0, fewest=2)
    weight = torch.softmax(found.log_weight, -1)
    assert bool(found.constrained) and weight[2:4].tolist() == [0.0, 0.0]
    assert int(weight.argmax()) == 1
    tight = torch.softmax(safe_weights(RETURNS, danger, 1.0, margin=0.6, fewest=1).log_weight, -1)
    assert int(tight.argmax()) == 0 and float(tight[0]) == 1.0
    few = safe_weights(RETURNS, danger, 1.0, margin=0.6, fewest=2)
    assert not bool(few.constrained) and int(few.log_weight.argmax()) == 0
    order = few.log_weight.argsort(descending=True).tolist()
    assert order == danger.argsort().tolist()  # by danger, whatever the return


def test_danger_that_is_no_number_is_never_feasible() -> None:
    def weights(danger: torch.Tensor) -> list[float]:
        found: list[float] = torch.softmax(
            safe_weights(RETURNS, danger, 1.0).log_weight, -1
        ).tolist()
        return found

    danger = torch.full((5,), torch.nan).double()
    danger[3] = 4.0
    assert weights(danger)[3] == 1.0
    # The first, which is to brake.
    assert weights(torch.full((5,), torch.nan).double()) == [1.0, 0.0, 0.0, 0.0, 0.0]
    danger[0] = -1.0
    assert weights(danger) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_rows_of_a_batch_are_weighed_by_themselves() -> None:
    score = torch.stack([RETURNS, -RETURNS, torch.full_like(RETURNS, torch.nan)])
    danger = torch.stack([SAFE, -SAFE, SAFE])
    kappa = temperature_for(score, 0.5)
    found = safe_weights(score, danger, kappa)
    assert found.constrained.flatten().tolist() == [True, False, False]
    for row in range(3):
        alone = safe_weights(score[row], danger[row], kappa[row])
        torch.testing.assert_close(found.log_weight[row], alone.log_weight)
        assert bool(torch.softmax(alone.log_weight, -1).isfinite().all())


def test_candidates_stay_within_bounds() -> None:
    g = torch.Generator().manual_seed(0)
    plan = Plan(torch.tensor([[0.95], [-1.0], [0.0]]), torch.full((3, 1), 4.0))
    found = drawn(plan, torch.randn(5000, 3, 1, generator=g))
    assert float(found.abs().max()) <= 1.0
    assert float(found[:, 0].std()) <= 0.025 and bool((found[:, 1] == -1.0).all())
    later = torch.tensor([[1.0], [2.0], [3.0]])
    assert shifted(later).flatten().tolist() == [2.0, 3.0, 3.0]
