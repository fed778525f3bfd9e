"""The one check that every motion has to pass before its first set-point is sent."""

from __future__ import annotations

import numpy as np

from safe_o2o.interfaces import Constraint
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.motion import Motion
from safe_o2o.types import Array

SLACK = 1e-9
"""Relative slack of speed, acceleration and jerk: rounding must not refuse the limit itself."""
ROUNDING = 1e-12
"""Clearance, in a constraint's unit, that is lost to rounding and does not count."""


class JointDifferences:
    """Speed, acceleration and jerk of set-points, by their differences.

    Args:
        limits: the arm's limits.
        dt: control period, s.
    """

    def __init__(self, limits: RobotLimits, dt: float) -> None:
        self._dt = dt
        self._speed = limits.velocity * (1.0 + SLACK)
        self._change = limits.acceleration * dt * (1.0 + SLACK)
        self._jump = limits.jerk * dt * dt * (1.0 + SLACK)
        self.jerk_binds = bool((self._jump < 2.0 * self._change).any())
        """Whether jerk forbids anything that acceleration allows from one tick to the next."""

    def first_tick(self, w: Array, v: Array, change: Array) -> str:
        """The limit that the next velocity w `[n]`, rad/s, exceeds by itself, or `""`."""
        if not (np.abs(w) <= self._speed).all():
            return "joint_velocity"
        if not (np.abs(w - v) <= self._change).all():
            return "joint_acceleration"
        if self.jerk_binds and not (np.abs(w - v - change) <= self._jump).all():
            return "joint_jerk"
        return ""

    def refusal(self, q: Array, v: Array, change: Array) -> str:
        """The limit that set-points `[K + 1, n]` exceed, the seam to what was sent included.

        Args:
            q: set-points, rad; the first was sent already, the last is at rest.
            v: velocity with which the first was reached `[n]`, rad/s.
            change: change of velocity at the tick before it `[n]`, rad/s.
        """
        w = np.zeros((len(q) + 1, q.shape[1]))  # before, on the way, and to rest after the last one
        w[0] = v
        np.subtract(q[1:], q[:-1], out=w[1:-1])
        w[1:-1] /= self._dt
        if not (np.abs(w[1:]) <= self._speed).all():
            return "joint_velocity"
        ddq = w[1:] - w[:-1]
        if not (np.abs(ddq) <= self._change).all():
            return "joint_acceleration"
        if self.jerk_binds:
            dddq = np.diff(np.concatenate([change[None], ddq, np.zeros((1, len(v)))]), axis=0)
            if not (np.abs(dddq) <= self._jump).all():
                return "joint_jerk"
        return ""

    def within(self, q: Array, v: Array, change: Array) -> Array:
        """Which of M motions `[M, K + 1, n]` `refusal` finds nothing wrong with, `[M]`.

        Velocity and its change are `[M, n]`, or one for all of them `[n]`. A motion that is shorter
        than the others is filled up with its last set-point.
        """
        w = np.zeros((len(q), q.shape[1] + 1, q.shape[2]))
        w[:, 0] = v
        np.subtract(q[:, 1:], q[:, :-1], out=w[:, 1:-1])
        w[:, 1:-1] /= self._dt
        ddq = w[:, 1:] - w[:, :-1]
        good = (np.abs(w[:, 1:]) <= self._speed).all(axis=(1, 2))
        good &= (np.abs(ddq) <= self._change).all(axis=(1, 2))
        if self.jerk_binds:
            edges = np.zeros((len(q), ddq.shape[1] + 2, q.shape[2]))
            edges[:, 0], edges[:, 1:-1] = change, ddq
            dddq = np.diff(edges, axis=1)
            good &= (np.abs(dddq) <= self._jump).all(axis=(1, 2))
        return np.asarray(good)


def lowest_clearance(constraint: Constraint, motion: Motion) -> float | None:
    """Least clearance of a motion to standstill, between its ticks too.

    Args:
        constraint: what to keep clear of.
        motion: what would be sent.

    Returns:
        A lower bound >= 0 in the constraint's unit, at most its `range`: beyond nothing matters.
        None where the motion is not proven to stay inside. From outside a limit (pushed by hand,
        bad start) a motion counts as inside as long as it leads no farther out of that limit, and
        no limit is left for another.
    """
    start, between = (np.asarray(part, np.float64) for part in constraint.swept(motion))
    if start.ndim != 1 or between.shape != (len(motion.steps), len(start)):
        return None
    if not len(start):
        return constraint.range
    # In the positive, and with NumPy's min, because Python's overlooks a NaN.
    lowest = float(np.minimum(between.min(), start.min()))
    if lowest >= 0.0:
        return min(lowest, constraint.range)
    if not (start > -np.inf).all():
        return None
    if not (between >= np.minimum(start, -ROUNDING)).all():
        return None
    return max(0.0, float(between.min()))
