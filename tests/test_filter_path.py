"""The path through the targets: exact at every target, smooth, and no later than it must be."""

from __future__ import annotations

import numpy as np
import pytest

from safe_o2o.safety.curves import CONTROL, gentle_paces, spline
from safe_o2o.safety.path import GUESS, RESERVE, STRETCHES, JointPath, _slack
from safe_o2o.types import Array

ONE, REST = np.ones(1), np.zeros(1)
ANY = np.full(1, np.inf)


@pytest.mark.parametrize("gentle", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_meets_every_target_to_the_bit_and_has_no_kink(gentle: bool, count: int) -> None:
    generator = np.random.default_rng(count)
    q, v, a = generator.normal(size=(3, 7))
    target = q + np.cumsum(generator.normal(0.0, 0.1, (count, 7)), axis=0)
    path = JointPath(q, v, a, target, 0.2, 0.01, gentle)
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
    if gentle or count == 1:
        assert np.allclose(speed[-1], last / 0.2, atol=2e-3)  # leaves at the mean velocity


@pytest.mark.parametrize(("gentle", "factor"), [(False, 3.52738), (True, 1.0 + np.sqrt(2.0))])
def test_largest_acceleration_is_the_one_worked_out_by_hand(gentle: bool, factor: float) -> None:
    # From rest to 1 rad in 1 s: the quintic's 3 + 9 u - 42 u^2 + 30 u^3 is largest at u = 0.12348;
    # 1 + sqrt 2 for two parabolas.
    path = JointPath(REST, REST, None, ONE[None], 1.0, 1e-4, gentle)
    acceleration = np.diff(path.positions(np.arange(10_001.0)), n=2, axis=0) / 1e-8
    assert np.abs(acceleration).max() == pytest.approx(factor, rel=1e-3)


def test_fit_takes_the_smooth_shape_then_the_gentle_one_then_speed_gained_on_the_way() -> None:
    for limit, gentle, late in ((3.6, False, ""), (2.5, True, ""), (2.3, False, "aligned")):
        path = JointPath.fit(REST, REST, None, ONE[None], 1.0, 0.01, 9 * ONE, limit * ONE, ANY)
        assert path.ticks == 100.0 and path.late == ("joint_acceleration" if late else "")
        # Where it starts at the speed of its segment, the arm has to gain that on the way.
        assert path.rate == (0.0 if late else 1.0)
        assert (len(path._starts) == 4) is gentle
    assert np.allclose(path.motion(0.0)[0], ONE) and np.allclose(path.at(50.0), 0.5 * ONE)


def test_fit_takes_longer_where_the_joints_are_too_slow() -> None:
    two = np.array([[1.0], [1.5]])
    path = JointPath.fit(REST, ONE, None, two, 1.0, 0.01, 0.7 * ONE, 99.0 * ONE, ANY)
    assert path.late == "joint_velocity" and path.stretch == 1.75 and path.ticks == 350.0
    assert path.refusal(path.motion(0.0)[0], None, 0.7 * ONE, 99.0 * ONE, ANY) == ""


@pytest.mark.parametrize("gentle", [False, True])
def test_motion_is_the_derivative(gentle: bool) -> None:
    generator, tiny = np.random.default_rng(7), 1e-4
    q, v, a = generator.normal(size=(3, 4))
    target = q + np.cumsum(generator.normal(0.0, 0.1, (3, 4)), axis=0)
    path = JointPath(q, v, a, target, 0.2, 0.01, gentle, 0.3, rest=0.2)
    for time in (0.0, 3.3, 21.0, 45.5, 60.31, 60.9, 65.0, 99.0):
        speed, acceleration = path.motion(time)
        here = path.positions(np.array([time, time + tiny, time + 2 * tiny]))
        assert np.allclose((here[1] - here[0]) / (tiny * 0.01), speed, atol=1e-3)
        assert np.allclose(np.diff(here, n=2, axis=0)[0] / (tiny * 0.01) ** 2, acceleration, atol=1)
    assert np.array_equal(path.at(path.end), path.at(path.end + 50.0))


@pytest.mark.parametrize(("period", "tick"), [(0.3, 0.1), (0.7, 0.01), (0.15, 0.05)])
def test_periods_that_floating_point_cannot_divide_still_end_on_a_tick(
    period: float, tick: float
) -> None:
    path = JointPath(REST, REST, REST, ONE[None], period, tick)
    assert path.ticks == round(period / tick) and np.array_equal(path.at(path.ticks), ONE)


@pytest.mark.parametrize("lead", [0.0, 7.0, -12.5])
def test_what_was_sampled_from_a_smooth_motion_comes_out_as_it_was(lead: float) -> None:
    """Exactly where the motion is a parabola, within the sampling's error where it is a wave."""
    generator, period, tick = np.random.default_rng(0), 0.2, 0.01
    due = lead * tick + period * np.arange(1, 9)
    q, v, half = generator.normal(size=(3, 7))
    parabola = q + v * due[:, None] + half * due[:, None] ** 2
    path = JointPath(q, v, None, parabola, period, tick, lead=lead)
    time = np.linspace(0.0, due[-1], 500)
    expected = q + v * time[:, None] + half * time[:, None] ** 2
    np.testing.assert_allclose(path.positions(time / tick), expected, atol=1e-12)
    wave = np.sin(3.0 * due)[:, None] * np.ones(7)
    path = JointPath(np.zeros(7), np.full(7, 3.0), None, wave, period, tick, lead=lead)
    error = np.abs(path.positions(time / tick)[:, 0] - np.sin(3.0 * time))
    # 5 / 384 of h^4 and the fourth derivative; more in the last segments: there the end is a guess.
    assert error[time < due[-3]].max() < 1.5 * 5 / 384 * max(period, due[0]) ** 4 * 81
    assert error.max() < 0.02


def test_it_bends_less_than_any_other_curve_through_the_targets() -> None:
    """The clamped spline's system solved densely, with a last segment of constant bend."""
    generator, count, first = np.random.default_rng(1), 6, 0.6
    mean, start = generator.normal(size=(count, 7)), generator.normal(size=7)
    h = np.ones(count)
    h[0] = first
    matrix = np.zeros((count + 1, count + 1))
    right = np.zeros((count + 1, 7))
    matrix[0, :2], right[0] = (2 * first, first), 6 * (mean[0] - start)
    for i in range(1, count):
        matrix[i, i - 1 : i + 2] = h[i - 1], 2 * (h[i - 1] + h[i]), h[i]
        right[i] = 6 * (mean[i] - mean[i - 1])
    matrix[count, count - 1 :] = -1.0, 1.0
    bend = np.linalg.solve(matrix, right)
    tangent, found = spline(mean, start, first)
    np.testing.assert_allclose(found, bend, atol=1e-12)
    np.testing.assert_allclose(tangent[0], start, atol=1e-12)
    following = tangent[:-1] + h[:, None] * (bend[:-1] + bend[1:]) / 2
    np.testing.assert_allclose(tangent[1:], following, atol=1e-12)


def test_the_pace_it_guesses_is_the_fastest_that_fits() -> None:
    """Against trying every stretch from the fastest on, for arms at rest and under way."""
    generator, same = np.random.default_rng(5), 0
    speed, acceleration, jerk = np.full(7, 1.5), np.full(7, 6.0), np.full(7, np.inf)
    for _ in range(60):
        q = generator.normal(size=7)
        way = generator.normal(0.0, 0.12, 7) + generator.normal(0.0, 0.02, (8, 7))
        target = q + np.cumsum(way, axis=0)
        v = generator.choice((0.0, 0.2)) * way[0] / 0.1
        found = JointPath.fit(q, v, None, target, 0.1, 0.01, speed, acceleration, jerk)
        if not found.late or found.rate == 1.0:
            continue
        for stretch in STRETCHES:
            path = JointPath(q, v, None, target, 0.1 * stretch, 0.01, aligned=True, rest=0.5)
            start = path.motion(0.0)[0]
            if not path.refusal(start, None, speed, RESERVE * acceleration, jerk):
                break
        assert found.stretch in (stretch, STRETCHES[min(STRETCHES.index(stretch) + 1, 12)])
        same += found.stretch == stretch
    assert same > 25


def test_a_chunk_that_cannot_be_followed_costs_a_few_tries_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the arm is doing when it comes; planning happens within a control tick."""
    tries: list[int] = []
    real = JointPath.__init__
    monkeypatch.setattr(
        JointPath, "__init__", lambda self, *args: tries.append(1) or real(self, *args)
    )
    generator, most, stretched = np.random.default_rng(9), 0, set()
    speed, acceleration, jerk = np.full(7, 1.5), np.full(7, 6.0), np.full(7, np.inf)
    for _ in range(200):
        q, v = generator.normal(size=7), generator.normal(0.0, 0.6, 7) * generator.integers(0, 2)
        way = generator.normal(0.0, generator.choice((0.05, 0.07, 0.1, 0.2, 1.0)), (10, 7))
        tries.clear()
        target = q + np.cumsum(way, axis=0)
        path = JointPath.fit(q, v, None, target, 0.1, 0.01, speed, acceleration, jerk)
        most, stretched = max(most, len(tries)), stretched | {path.stretch}
    assert most <= 2 + 1 + 3 + 1 + 8 and len(stretched) >= 5


@pytest.mark.parametrize("order", range(4))
def test_control_points_are_those_of_the_derivative(order: int) -> None:
    """Against NumPy's polynomials: ends met, and the curve between its control points."""
    coefficients = np.random.default_rng(order).normal(size=6)
    points = CONTROL[order] @ coefficients
    along = np.polynomial.Polynomial(coefficients).deriv(order)(np.linspace(0.0, 1.0, 101))
    assert np.allclose(points[[0, -1]], along[[0, -1]])
    assert points.min() <= along.min() + 1e-12 and along.max() <= points.max() + 1e-12


@pytest.mark.parametrize("gentle", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_pace_is_no_less_than_what_the_ticks_show(gentle: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    v, a = 0.3 * generator.normal(size=(2, 7))
    start: Array | None = a if seed % 2 else None
    target = np.cumsum(generator.normal(0.0, 0.05, (int(generator.integers(1, 12)), 7)), axis=0)
    lead = float(generator.uniform(-2.0, 4.0))
    path = JointPath(np.zeros(7), v, start, target, 0.1, 0.01, gentle, lead)
    speed, acceleration, jerk = generator.uniform((0.1, 1.0, 10.0), (2.0, 20.0, 4e3), (7, 3)).T
    value = path.positions(np.arange(path.ticks + 1.0))
    shown = []
    for bound in (speed, acceleration, jerk):
        value = np.diff(value, axis=0) / 0.01
        shown.append(float((np.abs(value) / bound).max()))
    least = max(shown[0] / GUESS, (shown[1] / GUESS) ** (1 / 2), (shown[2] / GUESS) ** (1 / 3))
    assert path.pace(speed, acceleration, jerk) >= least * (1.0 - 1e-9)
    assert path.pace(speed, acceleration, None) <= path.pace(speed, acceleration, jerk)


def test_pace_says_by_how_much_to_stretch_a_path_that_keeps_its_shape() -> None:
    target = np.array([[0.1], [0.3], [0.4], [0.45], [0.5]])
    for bounds in ((0.5, 99.0), (9.0, 3.0)):
        speed, acceleration = (bound * ONE for bound in bounds)
        path = JointPath(REST, REST, None, target, 0.1, 0.01, aligned=True)
        pace = path.pace(speed, acceleration, None)
        slower = JointPath(REST, REST, None, target, 0.1 * pace, 0.01, aligned=True)
        assert pace > 1.5 and slower.pace(speed, acceleration, None) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(12))
def test_gentle_paces_are_those_of_the_paths(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count, v = int(generator.integers(1, 12)), 0.3 * generator.normal(size=7)
    move = generator.normal(0.0, 0.05, (count, 7))
    lead = float(generator.uniform(-2.0, 4.0)) if seed % 2 else 0.0
    speed, acceleration, jerk = generator.uniform((0.1, 1.0, 10.0), (2.0, 20.0, 4e3), (7, 3)).T
    stretch = np.array(STRETCHES)
    for limits in ((speed, acceleration, None), (speed, acceleration, jerk)):
        found = gentle_paces(stretch, v, move, 0.1, 0.01, lead, limits, _slack(count))
        for s, pace in zip(stretch, found, strict=True):
            target = np.cumsum(move, axis=0)
            path = JointPath(np.zeros(7), v, None, target, 0.1 * s, 0.01, True, lead)
            assert pace == pytest.approx(path.pace(*limits), rel=1e-9)
