"""CVPO's E-step against the specification's tables and SLSQP (online_safety.md 1.8)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from safe_o2o.algorithms.expectation_step import Tilt, expectation_step
from safe_o2o.errors import ConfigError
from safe_o2o.types import Array

Q_R = np.array([[1.0, 2.0, 3.0, 4.0]])
Q_C = np.array([[[0.0, 0.5, 2.0, 5.0]]])


def solved(limit: float, kl: float, **more: object) -> Tilt:
    return expectation_step(Q_R, Q_C, np.array([limit]), kl, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kl", "limit", "eta", "price", "q", "reward", "cost"),
    [
        (0.1, 3.0, 2.413506, 0.0, (0.120924, 0.183002, 0.276949, 0.419125), 2.994274, 2.741022),
        (0.1, 1.5, 0.873305, 0.654776, (0.164049, 0.354376, 0.361688, 0.119887), 2.437413, 1.5),
        (0.1, 1.2, 1.411107, 0.900137, (0.251645, 0.371569, 0.289906, 0.086881), 2.212023, 1.2),
        (0.5, 1.0, 0.287809, 0.767321, (0.068474, 0.582853, 0.344932, 0.003742), 2.283942, 1.0),
    ],
)
def test_one_state(
    kl: float, limit: float, eta: float, price: float, q: Array, reward: float, cost: float
) -> None:
    for start in (None, (1.0, np.array([1.0])), (30.0, np.array([5.0])), (0.01, np.array([0.1]))):
        found = solved(limit, kl, start=start)
        assert found.feasible
        assert found.temperature == pytest.approx(eta, abs=2e-6)
        assert found.price[0] == pytest.approx(price, abs=2e-6)
        np.testing.assert_allclose(found.weight[0], q, atol=1e-6)
        assert found.reward == pytest.approx(reward, abs=2e-6)
        assert found.cost[0] == pytest.approx(cost, abs=2e-6)
        assert found.kl == pytest.approx(kl, abs=1e-7)


@pytest.mark.parametrize(("kl", "least"), [(0.02, 1.495818), (0.1, 1.063873), (0.5, 0.328005)])
def test_a_budget_that_no_tilt_keeps_gets_the_least_cost(kl: float, least: float) -> None:
    found = solved(0.99 * least, kl)
    assert not found.feasible and found.kl == pytest.approx(kl, abs=1e-7)
    assert found.cost[0] == pytest.approx(least, abs=1e-6)
    assert solved(1.01 * least, kl).feasible


def test_an_infeasible_budget_leaves_temperature_and_price_as_they_were() -> None:
    before = (0.7, np.array([3.0]))
    found = solved(0.5, 0.1, start=before)
    assert not found.feasible
    np.testing.assert_allclose(found.weight[0], (0.3688, 0.3220, 0.2143, 0.0949), atol=1e-4)
    assert (found.temperature, found.price) == before


R3 = np.array([[1, 2, 3, 4], [0, 1, 0, 2], [2, 1, 3, 0]], float)
C3 = np.array([[0, 0.5, 2, 5], [1, 0, 0, 3], [0, 4, 1, 1]], float)
P3 = np.array([[0.25] * 4, [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])


def test_three_states_and_a_prior() -> None:
    found = expectation_step(R3, C3[None], np.array([0.9]), 0.1, log_prior=np.log(P3))
    assert found.temperature == pytest.approx(3.207998, abs=3e-6)
    assert found.price[0] == pytest.approx(1.235402, abs=2e-6)
    assert found.reward == pytest.approx(1.553681, abs=2e-6)
    expected = [
        [0.297485, 0.335135, 0.256879, 0.110501],
        [0.289329, 0.435590, 0.212622, 0.062459],
        [0.179838, 0.056435, 0.501343, 0.262384],
    ]
    np.testing.assert_allclose(found.weight, expected, atol=1e-6)


def test_slopes_and_curvature_of_the_dual() -> None:
    from safe_o2o.algorithms.expectation_step import _Dual

    dual = _Dual(np.stack([R3.T, C3.T]), np.array([0.9]), 0.1, np.log(P3).T)
    point = dual.at(np.array([1.3, 0.7]))
    np.testing.assert_allclose(point.slope, [-0.145732, -0.038476], atol=1e-6)
    expected = [[0.254528, -0.186743], [-0.186743, 0.933010]]
    np.testing.assert_allclose(point.curvature, expected, atol=1e-6)


def slsqp(reward: Array, cost: Array, limit: Array, kl: float) -> Array:
    """The primal over all simplices, by a solver that knows nothing of the dual."""
    rows, k = reward.shape
    each = (cost / limit[:, None, None]).reshape(len(limit), -1) / rows
    gain = reward.ravel() / np.abs(reward).max() / rows
    whole = np.kron(np.eye(rows), np.ones(k))

    def spent(q: Array) -> float:
        return float(np.sum(q * np.log(q * k))) / rows

    found = optimize.minimize(
        lambda q: -float(q @ gain),
        np.full(rows * k, 1.0 / k),
        jac=lambda q: -gain,
        method="SLSQP",
        bounds=[(1e-9, 1.0)] * (rows * k),
        constraints=[
            {"type": "eq", "fun": lambda q: whole @ q - 1.0, "jac": lambda q: whole},
            {
                "type": "ineq",
                "fun": lambda q: kl - spent(q),
                "jac": lambda q: -(np.log(q * k) + 1.0) / rows,
            },
            {"type": "ineq", "fun": lambda q: 1.0 - each @ q, "jac": lambda q: -each},
        ],
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    assert found.success, found.message
    result: Array = found.x.reshape(rows, k)
    return result


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_several_budgets_agree_with_slsqp(seed: int, budgets: int) -> None:
    g = np.random.default_rng(seed)
    reward = 10.0 * g.normal(size=(3, 5))
    cost = g.exponential(size=(budgets, 3, 5)) * 10.0 ** g.uniform(-2, 2, (budgets, 1, 1))
    tilt = np.exp(g.normal(0.0, 0.4, (3, 5)))  # a q that keeps them, well within the KL
    tilt /= tilt.sum(1, keepdims=True)
    limit = np.einsum("bk,mbk->m", tilt, cost) / 3
    found = expectation_step(reward, cost, limit, 0.1)
    assert found.feasible
    expected = slsqp(reward, cost, limit, 0.1)
    np.testing.assert_allclose(found.weight, expected, atol=2e-4)
    value = float((expected * reward).sum()) / 3
    assert found.reward == pytest.approx(value, rel=1e-5, abs=1e-5)
    assert (found.cost <= limit * (1 + 1e-6)).all() and found.kl <= 0.1 + 1e-7
    assert (found.price[found.cost < limit * (1 - 1e-6)] == 0.0).all()  # complementary slackness


def test_two_budgets_that_cannot_be_kept_at_once() -> None:
    reward = np.array([[1.0, 0.0]])
    cost = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    found = expectation_step(reward, cost, np.array([0.3, 0.3]), 0.1)
    assert not found.feasible and found.kl <= 0.1 + 1e-7
    np.testing.assert_allclose(
        found.cost, [0.5, 0.5], atol=5e-3
    )  # both over by as little as can be
    # Each by itself could be kept.
    assert expectation_step(reward, cost[:1], np.array([0.3]), 0.1).feasible
    assert expectation_step(reward, cost[1:], np.array([0.3]), 0.1).feasible


@pytest.mark.parametrize("seed", range(20))
def test_any_scale_and_any_start_come_to_the_same(seed: int) -> None:
    g = np.random.default_rng(seed)
    reward, cost = g.normal(size=(64, 16)), g.exponential(size=(1, 64, 16))
    limit = cost.mean((1, 2)) * g.uniform(0.8, 1.1)
    expected = expectation_step(reward, cost, limit, 0.05)
    a, b = 10.0 ** g.uniform(-4, 4, 2)
    scaled = expectation_step(a * reward + 7.0, b * cost, b * limit, 0.05)
    np.testing.assert_allclose(scaled.weight, expected.weight, atol=1e-6)
    assert scaled.temperature == pytest.approx(a * expected.temperature, rel=1e-4)
    start = (10.0 ** g.uniform(-3, 3), 10.0 ** g.uniform(-3, 3, 1))
    again = expectation_step(reward, cost, limit, 0.05, start=start)
    np.testing.assert_allclose(again.weight, expected.weight, atol=1e-6)


def test_alike_samples_stay_alike() -> None:
    for cost, limit in ((0.0, 1.0), (2.0, 1.0)):
        found = expectation_step(np.ones((4, 8)), np.full((1, 4, 8), cost), np.array([limit]), 0.1)
        np.testing.assert_allclose(found.weight, 1.0 / 8.0)
        assert found.feasible == (cost <= limit)


def test_excluded_samples_get_nothing() -> None:
    prior = np.array([[np.log(0.5), np.log(0.5), -np.inf, -np.inf]])
    found = expectation_step(Q_R, Q_C, np.array([3.0]), 0.1, log_prior=prior)
    np.testing.assert_array_equal(found.weight[0, 2:], 0.0)
    assert np.isfinite(found.weight).all() and found.kl == pytest.approx(0.1, abs=1e-6)


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="no number"):
        expectation_step(np.full((1, 2), np.nan), np.zeros((0, 1, 2)), np.zeros(0), 0.1)
    with pytest.raises(ConfigError, match=r"\[m, B, K\]"):
        expectation_step(np.zeros((1, 2)), np.zeros((1, 1, 3)), np.zeros(1), 0.1)
