"""The path through the targets: exact at every target, smooth, and no later than it must be."""

from __future__ import annotations

import numpy as np
import pytest

from safe_o2o.safety.path import JointPath

ONE, REST = np.ones(1), np.zeros(1)


@pytest.mark.parametrize("gentle", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_meets_every_target_to_the_bit_and_has_no_kink(gentle: bool, count: int) -> None:
    generator = np.random.default_rng(count)
    q, v = generator.normal(size=(2, 7))
    target = q + np.cumsum(generator.normal(0.0, 0.1, (count, 7)), axis=0)
    path = JointPath(q, v, target, 0.2, 0.01, gentle)
    assert path.ticks == 20.0 * count
    for i in range(count):
        assert np.array_equal(path.at(20.0 * (i + 1)), target[i])
    time = np.linspace(0.0, path.ticks, 20_000 * count + 1)
    fine, step = path.positions(time), 1e-5
    assert np.array_equal(fine[::5000], [path.at(t) for t in time[::5000]])
    speed = np.diff(fine, axis=0) / step
    assert np.allclose(speed[0], v, atol=2e-3)
    assert np.abs(np.diff(speed, axis=0)).max() < 2e-3  # no jump in velocity
    last = target[-1] - np.vstack([q, target])[-2]
    assert np.allclose(speed[-1], last / 0.2, atol=2e-3)  # leaves at the mean velocity


@pytest.mark.parametrize(("gentle", "factor"), [(False, 4.0), (True, 1.0 + np.sqrt(2.0))])
def test_largest_acceleration_is_the_one_worked_out_by_hand(gentle: bool, factor: float) -> None:
    # From rest to 1 rad in 1 s: 4 at the start of the cubic, 1 + sqrt 2 for two parabolas.
    path = JointPath(REST, REST, ONE[None], 1.0, 1e-4, gentle)
    acceleration = np.diff(path.positions(np.arange(10_001.0)), n=2, axis=0) / 1e-8
    assert np.abs(acceleration).max() == pytest.approx(factor, rel=1e-3)


def test_fit_takes_the_smooth_shape_then_the_gentle_one_then_time() -> None:
    for limit, ticks, late in ((4.1, 100, ""), (2.5, 100, ""), (2.3, 105, "joint_acceleration")):
        path = JointPath.fit(REST, REST, ONE[None], 1.0, 0.01, 9.0 * ONE, limit * ONE)
        assert path.ticks == pytest.approx(ticks) and path.late == late
    path = JointPath.fit(REST, REST, ONE[None], 1.0, 0.01, 0.7 * ONE, 99.0 * ONE)
    assert path.late == "joint_velocity" and path.ticks == 200.0  # 4 / 3 rad/s on time


@pytest.mark.parametrize(("period", "tick"), [(0.3, 0.1), (0.7, 0.01), (0.15, 0.05)])
def test_periods_that_floating_point_cannot_divide_still_end_on_a_tick(
    period: float, tick: float
) -> None:
    path = JointPath(REST, REST, ONE[None], period, tick)
    assert path.ticks == round(period / tick) and np.array_equal(path.at(path.ticks), ONE)
