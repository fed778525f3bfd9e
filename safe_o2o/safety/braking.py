"""How far a joint still moves when it brakes, exactly, for commands that change once a tick.

Two models of what a tick does with a commanded velocity w (online_safety.md 6.1): `held`
acceleration moves the joint by (v + w) dt / 2, an arm that follows set-points moves it by w dt.
"""

from __future__ import annotations

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
    return int(np.ceil(np.max(np.abs(v) / (a * dt)) - 1e-9))


def synchronous_brake(q: Array, v: Array, n: int, dt: float) -> Array:
    """Set-points `[n, joints]` of a stop along the line through v: v_k = v (n - k) / n.

    After one of its ticks the rest is the same brake with n - 1 ticks from the new speed, so that a
    stop once verified stays verified (online_safety.md 6.5).
    """
    if n == 0:
        return np.empty((0, len(q)))
    left = np.arange(n - 1, -1, -1) / n
    return np.asarray(q + np.cumsum(left)[:, None] * v * dt)
