"""How far a joint still moves when it brakes, exactly, for commands that change once a tick.

Two models of what a tick does with a commanded velocity w (online_safety.md 6.1): `held`
acceleration moves the joint by (v + w) dt / 2, an arm that follows set-points moves it by w dt.
"""

from __future__ import annotations

from math import ceil

import numpy as np

from safe_o2o.types import Array


def stop_distance(v: Array, a: Array, dt: float) -> Array:
    """Distance of a full brake from speed v >= 0 with acceleration held over each tick `[...]`.

    n = ceil(v / (a dt)), rho = v - (n - 1) a dt; d = (v^2 - rho^2) / (2 a) + rho dt / 2
    (online_safety.md 6.1).
    """
    v, a = np.asarray(v, np.float64), np.asarray(a, np.float64)
    n = np.ceil(v / (a * dt))
    rho = v - np.maximum(n - 1.0, 0.0) * a * dt
    return np.asarray((v**2 - rho**2) / (2.0 * a) + rho * dt / 2.0)


def largest_velocity(distance: Array, a: Array, dt: float) -> Array:
    """Largest next speed after which a full brake stops within `distance` `[...]`.

    For set-points (the joint moves by w dt in the tick itself); with held acceleration pass
    `distance - v dt / 2`. k = floor((-1 + sqrt(1 + 8 D / (a dt^2))) / 2),
    w = k a dt + (D - a dt^2 k (k + 1) / 2) / ((k + 1) dt) (online_safety.md 6.1). Zero where there
    is no distance left.
    """
    distance, a = np.asarray(distance, np.float64), np.asarray(a, np.float64)
    room = np.maximum(distance, 0.0)
    step = a * dt * dt
    k = np.floor((-1.0 + np.sqrt(1.0 + 8.0 * room / step)) / 2.0)
    return np.asarray(k * a * dt + (room - step * k * (k + 1.0) / 2.0) / ((k + 1.0) * dt))


def synchronous_ticks(v: Array, a: Array, dt: float) -> int:
    """Ticks in which all joints stop together without any exceeding its acceleration."""
    # The small slack keeps a brake that divides exactly from taking a tick more by rounding.
    return ceil(float(np.abs(v / a).max()) / dt - 1e-9)


def synchronous_brake(q: Array, v: Array, n: int, dt: float) -> Array:
    """Set-points `[n, joints]` of a stop along the line through v: v_k = v (n - k) / n.

    After one of its ticks the rest is the same brake with n - 1 ticks from the new speed, so that a
    stop once verified stays verified (online_safety.md 6.5).
    """
    if n == 0:
        return np.empty((0, len(q)))
    left = np.arange(n - 1, -1, -1) / n
    return np.asarray(q + np.cumsum(left)[:, None] * v * dt)


def scalar_stop(speed: float, ramps: int, hold: int, dt: float) -> Array:
    """Way `[K]` after each tick of a stop of the clock along a path.

    Without ramps the speed is lowered by v / hold in every tick, then moved: the shortest stop that
    a limit on changes of velocity allows, v (hold - 1) dt / 2 long (path_filter.md O2). With them
    the deceleration ramps up, holds and ramps down, in whole ticks, its peak v / ((ramps + hold)
    dt) being the one that ends exactly at rest, v (2 ramps + hold) dt / 2 on (1.1, step 4).

    Args:
        speed: v at the start.
        ramps: ticks of each ramp.
        hold: ticks at the peak.
        dt: control period.
    """
    if ramps == 0:
        time = np.arange(1.0, max(hold, 1))
        return np.asarray(speed * dt * (time - time * (time + 1.0) / (2.0 * hold)))
    time = np.arange(1.0, 2.0 * ramps + hold + 1.0)
    # Speed lost, in units of the peak: three pieces of a trapezoid, integrated twice.
    up = np.minimum(time, ramps)
    flat = np.clip(time - ramps, 0.0, hold)
    down = np.clip(time - ramps - hold, 0.0, ramps)
    lost = up**3 / (6.0 * ramps) + flat * ramps / 2.0 + flat * flat / 2.0
    lost += down * (ramps / 2.0 + hold) + down * down / 2.0 - down**3 / (6.0 * ramps)
    return np.asarray(speed * dt * (time - lost / (ramps + hold)))


def smooth_stop(q: Array, v: Array, a: Array, n: int, dt: float) -> Array:
    """Set-points `[n, joints]` to rest in n ticks from velocity v and acceleration a, all joints.

    The velocity is the cubic with these values at the start and none at the end, so that jerk stays
    finite whatever the joints are doing: for arms whose jerk limit forbids a brake at once.
    """
    span = n * dt
    x = (np.arange(1.0, n + 1.0) / n)[:, None]
    # Integrals of the Hermite cubics 1 - 3 x^2 + 2 x^3 and x - 2 x^2 + x^3.
    way = v * (x - x**3 + x**4 / 2.0)
    bend = a * span * (x**2 / 2.0 - 2.0 * x**3 / 3.0 + x**4 / 4.0)
    return np.asarray(q + span * (way + bend))


def jerk_limited_stop(
    speed: float, acceleration: float, limit: float, jerk: float
) -> tuple[float, float]:
    """Time, s, and way, m or rad, of the fastest stop from v >= 0 (online_safety.md 6.2).

    With A = min(sqrt(J v + a0^2 / 2), A_max): t1 = (a0 + A) / J, t2 = v1 / A - A / (2 J), t3 = A /
    J, v1 being the speed after t1.

    Args:
        speed: v, at least 0.
        acceleration: a0 at the start, along the motion; negative while it brakes already.
        limit: largest deceleration A_max.
        jerk: largest jerk J; infinite for none.

    Returns:
        Time to rest and the way on it. Where a0 brakes harder than the stop can be eased, the joint
        turns round; that is no stop, and both are NaN.
    """
    v, a0 = speed, acceleration
    if not np.isfinite(jerk):
        return v / limit, v * v / (2.0 * limit)
    if a0 < 0.0 and v < a0 * a0 / (2.0 * jerk):
        return float("nan"), float("nan")
    peak = min(float(np.sqrt(jerk * v + a0 * a0 / 2.0)), limit)
    t1 = (a0 + peak) / jerk
    v1 = v + (a0 * a0 - peak * peak) / (2.0 * jerk)
    t2 = max(0.0, (v1 - peak * peak / (2.0 * jerk)) / peak) if peak > 0.0 else 0.0
    t3 = peak / jerk
    way = v * t1 + a0 * t1**2 / 2.0 - jerk * t1**3 / 6.0
    way += v1 * t2 - peak * t2**2 / 2.0 + peak**3 / (6.0 * jerk * jerk)
    return t1 + t2 + t3, way
