"""Any policy rate: steps that fall between the ticks, long chunks, and what planning them costs."""

from __future__ import annotations

import time

import numpy as np
import pytest

from safe_o2o.safety.path import JointPath
from safe_o2o.types import Verdict
from tests.test_filter import DT, HOME, LIMITS, Bench

STILL, ANY = np.zeros(7), np.full(7, np.inf)
BOUNDS = (LIMITS.velocity, LIMITS.acceleration, ANY)


@pytest.mark.parametrize("chunk", [1, 10])
@pytest.mark.parametrize("rate", [5.0, 15.0, 24.0, 30.0, 33.0, 50.0, 60.0])
def test_a_gentle_motion_passes_at_any_policy_rate(rate: float, chunk: int) -> None:
    # 0.3 rad to and fro in 4 s: a tenth of what the slowest joint can do.
    bench, period, due, ticks = Bench(), 1.0 / rate, 0.0, 800
    path = [HOME]
    for k in range(ticks):
        if k * DT >= due - 1e-9:
            when = due + period * np.arange(1, chunk + 1)
            wave = 0.15 * (1.0 - np.cos(0.5 * np.pi * when))
            proposal = bench.propose(*(HOME + np.outer(wave, np.eye(7)[0])), period=period)
            due += period * chunk
        assert bench.tick(proposal).verdict is Verdict.PASS
        path.append(bench.q)
    moved = np.array(path)[:, 0] - HOME[0]
    ideal = 0.15 * (1.0 - np.cos(0.5 * np.pi * DT * np.arange(ticks + 1)))
    # Only what straight tangents cut off its corners; a step that is a tick off would be 2.4e-3.
    assert np.abs(moved - ideal).max() < 1.5e-3 + 0.05 * period**2
    change = np.diff(moved, n=2) / DT**2
    assert np.abs(change).max() < 8 * 0.15 * (0.5 * np.pi) ** 2


@pytest.mark.parametrize("gentle", [False, True])
@pytest.mark.parametrize("per_step", [1.6667, 2.0, 10.0 / 3.0, 20.0])
@pytest.mark.parametrize("lead", [-0.99, -1.0 / 3.0, 0.0, 0.4, 0.99])
def test_a_path_that_starts_between_two_steps_meets_its_targets_in_time(
    lead: float, per_step: float, gentle: bool
) -> None:
    generator = np.random.default_rng(0)
    q, v = generator.normal(size=(2, 7)) * [[1.0], [0.1]]
    target = q + np.cumsum(generator.normal(0.0, 0.1, (3, 7)), axis=0)
    path = JointPath(q, v, 0.0 * v, target, per_step * DT, DT, gentle, lead)
    assert path.ticks == np.ceil(3 * per_step + lead - 1e-9)
    assert np.array_equal(path.at(0.0), q)
    for i in range(3):
        assert np.allclose(path.at((i + 1) * per_step + lead), target[i], rtol=0.0, atol=1e-13)
    ticks = np.arange(path.ticks + 1.0)
    assert np.array_equal(path.positions(ticks), [path.at(t) for t in ticks])
    eps = 1e-7

    def speed(t: float) -> np.ndarray:
        return np.asarray(path.at(t + eps) - path.at(t)) / (eps * DT)

    assert np.allclose(speed(0.0), v, atol=1e-4)
    for i in range(3):  # no kink at a target, the last one included: it goes straight on
        here = (i + 1) * per_step + lead
        assert np.allclose(speed(here - eps), speed(here), atol=1e-3)


def test_phase_is_the_way_to_the_nearest_step_if_that_is_no_tick_away() -> None:
    path = JointPath(HOME, STILL, STILL, np.array([HOME + 0.01] * 3), DT * 10.0 / 3.0, DT)
    for ticks, phase in ((0.0, 0.0), (3.0, 1.0 / 3.0), (7.0, -1.0 / 3.0), (10.0, 0.0), (5.0, 0.0)):
        path.time = ticks
        assert path.phase == pytest.approx(phase, abs=1e-9)


@pytest.mark.parametrize(("length", "limit"), [(1, 5e-3), (20, 10e-3), (100, 25e-3)])
def test_a_hopeless_chunk_is_planned_within_a_few_milliseconds(length: int, limit: float) -> None:
    # A fifth of the limit is usual; the rest is for a busy machine.
    turns = np.where(np.arange(length) % 2 == 0, 0.45, -0.45)
    target, spent = HOME + np.outer(turns, np.ones(7)), []
    for _ in range(5):
        began = time.perf_counter()
        path = JointPath.fit(HOME, STILL, None, target, 0.2, DT, *BOUNDS)
        spent.append(time.perf_counter() - began)
    assert path.late and min(spent) < limit
    assert path.refusal(path.motion(0.0)[0], None, *BOUNDS) == ""


@pytest.mark.parametrize("bad", [0, 3, 40])
def test_one_fast_segment_anywhere_in_a_chunk_is_seen(bad: int) -> None:
    move = np.full((60, 7), 1e-3)
    move[bad] = 0.6  # 3 rad/s
    path = JointPath(HOME, STILL, STILL, HOME + np.cumsum(move, axis=0), 0.2, DT)
    assert (
        path.refusal(STILL, STILL, LIMITS.velocity, 1e9 * LIMITS.acceleration, ANY)
        == "joint_velocity"
    )
    assert path.refusal(STILL, STILL, 1e9 * LIMITS.velocity, LIMITS.acceleration, ANY) == (
        "joint_acceleration"
    )
    assert path.refusal(STILL, STILL, 1e9 * LIMITS.velocity, 1e9 * LIMITS.acceleration, ANY) == ""
