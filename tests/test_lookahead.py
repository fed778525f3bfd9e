"""Lookahead policy iteration: the theorem's condition on the specification's example (4.3)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from safe_o2o.algorithms.lookahead import (
    LookaheadPolicyIteration,
    Mdp,
    best_values,
    gain_of,
    limit_of_loss,
    look_ahead,
    policy_values,
    steps_needed,
)
from safe_o2o.errors import ConfigError
from safe_o2o.types import Array

# x1: "go" r = 0 to x2, "stay" r = 1; x2: "stay" r = 0, "back" r = 0 to x1.
EXAMPLE = Mdp(
    np.array([[0.0, 1.0], [0.0, 0.0]]),
    np.array([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]]),
    0.9,
)
PHI = np.array([[1.0], [2.0]])
ONE, BOTH = np.array([0]), np.array([0, 1])


def run(sampled: Array, steps: int, horizon: int, rounds: int = 200) -> tuple[list[float], float]:
    """Theta after each round, and the loss of the last policy."""
    iteration = LookaheadPolicyIteration(EXAMPLE, PHI, sampled, steps, horizon)
    theta, found = np.array([20.0]), []
    for _ in range(rounds):
        policy, theta = iteration.round(theta)
        found.append(float(theta[0]))
    loss = np.abs(policy_values(EXAMPLE, policy) - best_values(EXAMPLE)).max()
    return found, float(loss)


def test_the_examples_values_and_gains() -> None:
    np.testing.assert_allclose(best_values(EXAMPLE), [10.0, 9.0])
    assert gain_of(PHI, ONE) == pytest.approx(2.0) and gain_of(PHI, BOTH) == pytest.approx(1.2)
    assert steps_needed(2.0, 0.9) == 7 and steps_needed(1.2, 0.9) == 2
    assert gain_of(np.eye(2), BOTH) == 1.0 and steps_needed(1.0, 0.9) == 1


def test_it_diverges_at_six_steps_and_is_bounded_at_seven() -> None:
    for steps, horizon, after in ((1, 1, None), (6, 1, 4.0e6), (1, 6, 1.7e7)):
        found, _ = run(ONE, steps, horizon)
        assert not LookaheadPolicyIteration(EXAMPLE, PHI, ONE, steps, horizon).is_bounded
        assert abs(found[-1]) > 1e6
        if after is not None:
            assert found[-1] == pytest.approx(after, rel=0.03)
    one, loss = run(ONE, 1, 1)
    assert one[41] == pytest.approx(1e12, rel=0.2) and loss == pytest.approx(10.0)
    assert one[20] / one[19] == pytest.approx(1.8, rel=1e-6)
    six, _ = run(ONE, 6, 1)
    assert six[-1] / six[-2] == pytest.approx(2.0 * 0.9**6, rel=1e-6)

    for steps, horizon, theta in ((7, 1, None), (1, 7, 107.9), (4, 4, 107.9)):
        found, loss = run(ONE, steps, horizon)
        assert LookaheadPolicyIteration(EXAMPLE, PHI, ONE, steps, horizon).is_bounded
        assert max(found) < 200.0
        if theta is not None:
            assert found[-1] == pytest.approx(theta, abs=0.1) and loss == 0.0


def test_bounded_values_at_one_step_are_not_a_good_policy() -> None:
    found, _ = run(ONE, 7, 1)
    assert any(value == pytest.approx(2.586, abs=1e-3) for value in found[-10:])
    iteration = LookaheadPolicyIteration(EXAMPLE, PHI, ONE, 7, 1)
    losses, theta = [], np.array([20.0])
    for _ in range(200):
        policy, theta = iteration.round(theta)
        gap = np.abs(policy_values(EXAMPLE, policy) - best_values(EXAMPLE)).max()
        losses.append(float(gap))
    assert max(losses[-20:]) == pytest.approx(10.0)
    far, loss = run(ONE, 3, 10)
    assert far[-1] == pytest.approx(15.77, abs=0.01) and loss == 0.0


def test_more_states_need_less() -> None:
    diverging, _ = run(BOTH, 1, 1)
    assert diverging[-1] == pytest.approx(9.7e7, rel=0.05)
    assert diverging[-1] / diverging[-2] == pytest.approx(1.08, rel=1e-6)
    for steps, horizon, theta, lost in ((1, 3, 5.911, 0.0), (1, 2, 7.187, 9.0)):
        found, loss = run(BOTH, steps, horizon)
        assert found[-1] == pytest.approx(theta, abs=2e-3) and loss == pytest.approx(lost)


def random_mdp(seed: int) -> tuple[Mdp, Array, Array]:
    g = np.random.default_rng(seed)
    transition = g.dirichlet(np.full(12, 0.3), (12, 3))
    mdp = Mdp(g.uniform(size=(12, 3)), transition, 0.8)
    return mdp, g.normal(size=(12, 4)), g.choice(12, 8, replace=False)


@pytest.mark.parametrize("seed", range(40))
def test_the_bound_holds(seed: int) -> None:
    mdp, features, sampled = random_mdp(seed)
    needed = steps_needed(gain_of(features, sampled), mdp.discount)
    horizon = 1 + seed % 4
    steps = max(1, needed + 1 - horizon)
    iteration = LookaheadPolicyIteration(mdp, features, sampled, steps, horizon)
    assert iteration.is_bounded
    fit = iteration.features @ iteration._fit
    theta, losses, errors = np.zeros(4), [], []
    best = best_values(mdp)
    for _ in range(60):
        policy, theta = iteration.round(theta)
        values = policy_values(mdp, policy)
        losses.append(float(np.abs(values - best).max()))
        errors.append(float(np.abs(fit @ values[sampled] - values).max()))
    bound = limit_of_loss(
        gain=iteration.gain,
        fit_error=max(errors),
        discount=mdp.discount,
        steps=steps,
        horizon=horizon,
    )
    assert max(losses[-20:]) <= bound


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_a_table_finds_the_best_policy(horizon: int) -> None:
    mdp, _, _ = random_mdp(3)
    iteration = LookaheadPolicyIteration(mdp, np.eye(12), np.arange(12), 1, horizon)
    theta = np.zeros(12)
    for _ in range(80):
        policy, theta = iteration.round(theta)
    np.testing.assert_allclose(policy_values(mdp, policy), best_values(mdp), atol=1e-9)


def test_many_gradient_steps_are_the_least_squares() -> None:
    mdp, features, sampled = random_mdp(5)
    exact = LookaheadPolicyIteration(mdp, features, sampled, 9, 3)
    steps = LookaheadPolicyIteration(mdp, features, sampled, 9, 3, descent=(20_000, 0.9))
    few = LookaheadPolicyIteration(mdp, features, sampled, 9, 3, descent=(1, 0.9))
    theta = np.ones(4)
    np.testing.assert_allclose(steps.round(theta).theta, exact.round(theta).theta, rtol=1e-5)
    assert np.abs(few.round(theta).theta - exact.round(theta).theta).max() > 1e-3


def test_lookahead_is_repeated_backups() -> None:
    policy, below = look_ahead(EXAMPLE, np.array([0.0, 5.0]), 2)
    np.testing.assert_allclose(below, [4.5, 4.5])
    assert policy.tolist() == [1, 0]  # 1 + 0.9 * 4.5; equals resolve to the first


def test_what_cannot_be_is_one_line() -> None:
    assert math.isinf(limit_of_loss(gain=2.0, fit_error=0.1, discount=0.9, steps=1, horizon=1))
    with pytest.raises(ConfigError, match="features apart"):
        gain_of(np.ones((3, 2)), np.array([0]))
    with pytest.raises(ConfigError, match="horizon"):
        look_ahead(EXAMPLE, np.zeros(2), 0)
    with pytest.raises(ConfigError, match="lookahead"):
        steps_needed(math.nan, 0.9)
