"""Braking in ticks: exact against brute force, and against the numbers of the specification."""

from __future__ import annotations

import numpy as np
import pytest

from safe_o2o.safety.braking import (
    largest_velocity,
    stop_distance,
    synchronous_brake,
    synchronous_ticks,
)


def brake_by_hand(v: float, a: float, dt: float) -> float:
    """Distance of set-points that lower the speed by a dt before every move."""
    distance = 0.0
    while v > 1e-15:
        v = max(v - a * dt, 0.0)
        distance += v * dt
    return distance


def test_largest_velocity_equals_a_search_by_brute_force() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        a, dt = generator.uniform(1.0, 20.0), generator.choice([0.002, 0.01, 0.02])
        room = generator.uniform(0.0, 0.4)
        low, high = 0.0, 20.0
        for _ in range(80):  # the move of this tick and the stop after it must fit
            w = 0.5 * (low + high)
            fits = w * dt + brake_by_hand(w, a, dt) <= room
            low, high = (w, high) if fits else (low, w)
        assert float(largest_velocity(room, a, dt)) == pytest.approx(low, abs=1e-9)


@pytest.mark.parametrize(
    ("room", "speed"), [(0.105, 1.0), (0.1, 0.975), (0.01, 0.291667), (0.001, 0.075)]
)
def test_largest_velocity_has_the_numbers_of_the_oracle(room: float, speed: float) -> None:
    # path_filter.md O2: A 5, dt .01; sqrt(2 A d) would say 1.025, 1.0, .316 and .1: unsafe.
    assert float(largest_velocity(room, 5.0, 0.01)) == pytest.approx(speed, abs=1e-6)


def test_no_room_means_no_speed() -> None:
    assert float(largest_velocity(0.0, 5.0, 0.01)) == 0.0
    assert float(largest_velocity(-1.0, 5.0, 0.01)) == 0.0


@pytest.mark.parametrize("v", [0.0, 0.05, 0.1, 0.123, 1.0, 2.175])
def test_stop_distance_is_the_integral_of_a_held_brake(v: float) -> None:
    a, dt = 7.5, 0.01
    distance, speed = 0.0, v
    while speed > 0:
        slower = max(speed - a * dt, 0.0)
        distance += 0.5 * (speed + slower) * dt
        speed = slower
    assert float(stop_distance(v, a, dt)) == pytest.approx(distance, abs=1e-12)
    assert v * v / (2 * a) - 1e-12 <= distance <= v * v / (2 * a) + a * dt * dt / 8 + 1e-12


def test_adversarial_driving_never_passes_the_limit() -> None:
    generator = np.random.default_rng(1)
    a, dt, wall, top = 5.0, 0.02, 1.0, 2.0
    for _ in range(20):
        q = v = 0.0
        for _ in range(2000):
            up = float(largest_velocity(wall - q, a, dt))
            down = float(largest_velocity(q + wall, a, dt))
            low, high = max(-down, v - a * dt, -top), min(up, v + a * dt, top)
            assert low <= high + 1e-12
            v = high if generator.random() < 0.8 else low + generator.random() * (high - low)
            q += v * dt
            assert -wall - 1e-12 <= q <= wall + 1e-12


def test_synchronous_brake_stops_all_joints_together_within_their_limits() -> None:
    generator = np.random.default_rng(2)
    a, dt = np.array([15.0, 7.5, 10.0]), 0.01
    for _ in range(200):
        q, v = generator.normal(size=3), generator.uniform(-2.0, 2.0, 3)
        n = synchronous_ticks(v, a, dt)
        points = np.vstack([q, synchronous_brake(q, v, n, dt)])
        speeds = np.vstack([v, np.diff(points, axis=0) / dt])
        assert np.allclose(speeds[-1], 0.0, atol=1e-9)
        assert (np.abs(np.diff(speeds, axis=0)) <= a * dt * (1 + 1e-6)).all()
        # On the line through v, and its rest is the same brake: a stop once verified stays so.
        assert np.allclose(points[-1], q + v * dt * (n - 1) / 2)
        rest = synchronous_brake(points[1], speeds[1], synchronous_ticks(speeds[1], a, dt), dt)
        assert np.allclose(rest, points[2:])


def test_standing_still_takes_no_tick() -> None:
    assert synchronous_ticks(np.zeros(3), np.ones(3), 0.01) == 0
    assert synchronous_brake(np.ones(3), np.zeros(3), 0, 0.01).shape == (0, 3)
