"""Calibrated alarms: order statistics by hand, and the promised rate by simulation."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from scipy import stats

from safe_o2o.errors import ConfigError
from safe_o2o.runtime.gate_calibration import CalibrationConfig, calibrate
from safe_o2o.safety.calibration import (
    AlphaTracker,
    CalibrationError,
    RankScore,
    alarms_expected,
    false_alarm_rank,
    miss_rank,
    order_statistic,
    pac_rank,
    rate_interval,
    thresholds,
)
from tests.test_gate_bundle import made_up

SAFE = (0.12, 0.31, 0.07, 0.45, 0.22, 0.18, 0.52, 0.27, 0.61, 0.35,
        0.09, 0.40, 0.15, 0.73, 0.29, 0.25, 0.33, 0.48, 0.20)  # fmt: skip
VIOLATING = (0.91, 0.84, 0.35, 0.77, 0.62, 0.95, 0.58, 0.88, 0.71, 0.66,
             0.93, 0.80, 0.49, 0.97, 0.74, 0.69, 0.86, 0.53, 0.90)  # fmt: skip


@pytest.mark.parametrize(
    "alpha, k, theta", [(0.1, 18, 0.61), (0.2, 16, 0.48), (0.05, 19, 0.73)], ids=str
)
def test_t7_the_threshold_of_nineteen_safe_episodes(alpha: float, k: int, theta: float) -> None:
    found = false_alarm_rank(len(SAFE), alpha)
    assert found == k and order_statistic(SAFE, found) == theta


def test_t7_too_few_episodes_are_refused_with_the_number_that_would_do() -> None:
    with pytest.raises(CalibrationError, match=r"19 safe episodes .* alpha 0.04; record .* 24"):
        false_alarm_rank(19, 0.04)
    assert false_alarm_rank(24, 0.04) == 24
    for alpha, least in ((0.05, 19), (0.1, 9)):
        assert false_alarm_rank(least, alpha) == least
        with pytest.raises(CalibrationError):
            false_alarm_rank(least - 1, alpha)


@pytest.mark.parametrize("beta, k, theta", [(0.1, 2, 0.49), (0.05, 1, 0.35)], ids=str)
def test_t7_the_miss_side(beta: float, k: int, theta: float) -> None:
    found = miss_rank(len(VIOLATING), beta)
    assert found == k and order_statistic(VIOLATING, found) == theta


def test_t7_both_sides_agree_or_are_said_not_to() -> None:
    assert not thresholds(SAFE, VIOLATING, alpha=0.1, beta=0.1).compatible  # 0.61 > 0.49
    assert thresholds(SAFE, VIOLATING, alpha=0.2, beta=0.1).compatible  # 0.48 < 0.49
    few = thresholds(SAFE, VIOLATING[:5], alpha=0.2, beta=0.1)
    assert few.theta_miss is None and not few.compatible  # unknown is not fine


def test_an_alarm_never_ends_above_where_it_begins() -> None:
    rng = np.random.default_rng(0)
    for alpha in (0.05, 0.2, 0.4, 0.6, 0.9):
        found = thresholds(rng.random(50), VIOLATING, alpha=alpha)
        assert found.theta_off <= found.theta


def test_t8_the_largest_score_and_the_two_level_rule() -> None:
    episodes = [(0.1, 0.2, 0.9, 0.3), (0.5, 0.4, 0.2, 0.1), (0.3, 0.3, 0.8, 0.2),
                (0.6, 0.1, 0.2, 0.7)]  # fmt: skip
    k = false_alarm_rank(4, 0.2)
    assert order_statistic([max(e) for e in episodes], k) == 0.9
    # UNISafe's: a share of an episode's ticks may lie above. It is the weaker statement.
    within = [order_statistic(e, ceil(0.75 * len(e))) for e in episodes]
    assert within == [0.3, 0.4, 0.3, 0.6] and order_statistic(within, k) == 0.6


@pytest.mark.parametrize(
    "n, alpha, delta, k",
    [(100, 0.1, 0.05, 96), (100, 0.05, 0.05, 99), (200, 0.1, 0.05, 188), (200, 0.05, 0.05, 196),
     (200, 0.1, 0.05 / 20, 192)],
)  # fmt: skip
def test_the_pac_index(n: int, alpha: float, delta: float, k: int) -> None:
    assert pac_rank(n, alpha, delta) == k
    # The same from the other side: the rate behind S_(k) is Beta(n + 1 - k, k).
    assert stats.beta.sf(alpha, n + 1 - k, k) <= delta < stats.beta.sf(alpha, n + 2 - k, k - 1)


def test_the_pac_index_needs_fifty_nine() -> None:
    assert pac_rank(59, 0.05, 0.05) == 59
    with pytest.raises(CalibrationError, match="record at least 59"):
        pac_rank(58, 0.05, 0.05)


def test_the_rate_of_a_calibration_set() -> None:
    low, high = rate_interval(100, 96, level=0.9)
    assert high == pytest.approx(0.089, abs=5e-4) and 0.0 < low < 0.0495
    assert rate_interval(19, 18, level=0.9)[1] == pytest.approx(0.226, abs=5e-4)
    assert rate_interval(200, 191, level=0.9)[1] == pytest.approx(0.077, abs=5e-4)
    assert alarms_expected(200, 191, 300) == 28  # bar 1 of the gate


@pytest.mark.parametrize(
    "n, alpha, mean, spread, low, high",
    [(19, 0.1, 0.0997, 0.0020, 0.020, 0.223), (100, 0.05, 0.0491, 0.0007, 0.019, 0.088),
     (200, 0.05, 0.0498, 0.0005, 0.027, 0.078)],
)  # fmt: skip
def test_t9_the_rate_is_the_nominal_one(
    n: int, alpha: float, mean: float, spread: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(7)
    k = false_alarm_rank(n, alpha)
    # True rates by the empirical distribution of many maxima.
    many = np.sort(_maxima(rng, 400_000, 80))
    sets = rng.choice(many, (4000, n))
    theta = np.sort(sets, 1)[:, k - 1]
    rates = 1.0 - np.searchsorted(many, theta, side="right") / len(many)
    exact = (n + 1 - k) / (n + 1)
    assert abs(rates.mean() - exact) < 0.003
    assert abs(rates.mean() - mean) < 3 * spread
    # 5th and 95th percentile of the sets, as the spec has them.
    found = np.quantile(rates, (0.05, 0.95))
    np.testing.assert_allclose(found, (low, high), atol=0.006)
    if n >= 100:
        rates = 1.0 - np.searchsorted(many + 0.3, theta, side="right") / len(many)
        assert 0.100 < rates.mean() < 0.113  # a shift of 0.3 doubles it
        longer = np.sort(_maxima(rng, 200_000, 160))
        rates = 1.0 - np.searchsorted(longer, theta, side="right") / len(longer)
        assert 0.090 < rates.mean() < 0.100  # and so do longer episodes


def _maxima(rng: np.random.Generator, episodes: int, ticks: int) -> np.ndarray:
    """Largest values of stationary AR(1) paths, rho 0.9."""
    x = rng.standard_normal(episodes)
    largest = x.copy()
    for _ in range(ticks - 1):
        x = 0.9 * x + np.sqrt(1 - 0.81) * rng.standard_normal(episodes)
        np.maximum(largest, x, out=largest)
    return largest


def test_t11_the_tracker_of_alpha() -> None:
    free = AlphaTracker(0.1, 0.05, low=-1.0, high=1.0)
    found = [free.update(bool(err)) for err in (0, 0, 1, 0, 1, 1, 0, 0)]
    expected = [0.105, 0.11, 0.065, 0.07, 0.025, -0.02, -0.015, -0.01]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    held = AlphaTracker(0.1, 0.05)
    assert min(held.update(True) for _ in range(9)) == 0.01


# Five knots are enough to compute by hand; a calibration insists on a hundred.
HAND = RankScore({"a": (0.1, 0.2, 0.3, 0.4, 0.6), "b": (3.0, 4.0, 5.0, 6.0, 8.0)})


def test_t13_the_rank_score() -> None:
    """The oracle's is the step function; ours is linear in between, so that ranks do not tie."""
    for pair, step in (((0.25, 5.5), 0.6), ((0.35, 6.0), 0.8)):
        rank = float(HAND(dict(zip("ab", pair, strict=True))))
        assert np.floor(rank * 5 + 1e-9) / 5 == pytest.approx(step)
    assert float(HAND.rank("a", 0.25)) == pytest.approx(0.5)
    assert float(HAND.rank("b", 5.5)) == pytest.approx(0.7)


def test_beyond_all_that_was_seen_scores_still_differ() -> None:
    assert float(HAND.rank("a", 0.05)) == 0.0
    far, farther = float(HAND.rank("a", 2.0)), float(HAND.rank("a", 3.0))
    assert 1.0 < far < farther and farther - far == pytest.approx(1e-3)
    assert float(HAND({"a": np.nan, "b": 3.0})) == np.inf


@pytest.mark.parametrize("theta", [0.05, 0.2, 0.37, 0.4, 0.93, 1.0, 1.0007])
def test_one_threshold_is_one_on_each_score(theta: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(-0.5, 3.0, 20_000)
    over = HAND.rank("a", values) > theta
    cut = HAND.threshold("a", theta)
    np.testing.assert_array_equal(over, values > cut)


@pytest.mark.parametrize("theta", [0.05, 0.37, 0.93, 1.0, 1.0007])
def test_a_stretched_score_strays_farther_for_the_same_rank(theta: float) -> None:
    far = RankScore(HAND.knots, {"a": 3.0})
    assert float(far.rank("a", 0.3)) == float(HAND.rank("a", 0.3))  # the median stays
    assert float(far.rank("a", 0.6)) == pytest.approx(float(HAND.rank("a", 0.4)))
    values = np.random.default_rng(0).uniform(-0.5, 3.0, 20_000)
    np.testing.assert_array_equal(far.rank("a", values) > theta, values > far.threshold("a", theta))
    np.testing.assert_array_equal(far.rank("b", values), HAND.rank("b", values))
    knots = {name: list(values) for name, values in far.knots.items()}  # as a file has them
    assert RankScore.of({"knots": knots, "stretch": {"a": 3.0}}) == far


def test_a_score_that_tells_nothing_costs_little_of_the_power() -> None:
    """Equal parts of the false alarms leave the one that tells something a third of them."""
    made = {}
    for novelty in (1.0, 3.0):
        config = CalibrationConfig(novelty=novelty)
        made[novelty] = calibrate("graph", made_up(400, 100, 2.5), config).gate.calibration["late"]
    assert made[3.0] < 0.8 * made[1.0]


def test_the_rank_score_wants_a_hundred_finite_episodes() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(CalibrationError, match="has 99 episodes"):
        RankScore.fit({"risk": rng.normal(size=99)})
    with pytest.raises(CalibrationError, match="not finite"):
        RankScore.fit({"risk": np.r_[rng.normal(size=120), np.nan]})
    rank = RankScore.fit({"risk": rng.normal(size=120)})
    assert 0.4 < float(rank({"risk": 0.0})) < 0.6


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(CalibrationError, match="not finite"):
        thresholds([*SAFE, np.nan], VIOLATING, alpha=0.2)
    with pytest.raises(CalibrationError, match="not finite"):
        thresholds(SAFE, [*VIOLATING, np.nan], alpha=0.2)
    # A violation before the arm could be stopped: never in time, whatever the threshold.
    late = thresholds(SAFE, [*VIOLATING, -np.inf, -np.inf, -np.inf], alpha=0.2)
    assert late.theta_miss == -np.inf and not late.compatible
    with pytest.raises(ConfigError, match="alpha"):
        thresholds(SAFE, VIOLATING, alpha=0.0)
