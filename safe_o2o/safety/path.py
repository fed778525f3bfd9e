"""The intended path of a proposal: joint targets as one smooth curve in policy time."""

from __future__ import annotations

import numpy as np

from safe_o2o.types import Array

STRETCHES = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
"""Factors on the policy period that are tried until speed and acceleration fit."""


class JointPath:
    """Cubic Hermite curve through joint targets, one policy period apart.

    It starts at the last command with its velocity, so that a new proposal never jerks the arm, and
    passes every target at the mean velocity of the segments around it. It leaves the last target
    with the velocity of the last segment: the next proposal takes over there, and if none comes the
    filter's stored stop ends the motion just beyond.

    Args:
        q: start position `[n]`, rad.
        v: start velocity `[n]`, rad/s.
        target: targets `[H, n]`, rad.
        period: policy period, s.
        tick: control period, s.

    Attributes:
        time: ticks along the path so far; behind the clock where the filter slowed down.
        rate: path ticks of the last control tick, in [0, 1].
        late: the limit that made it slower than proposed, `""` while it is on time.
    """

    def __init__(self, q: Array, v: Array, target: Array, period: float, tick: float) -> None:
        self._point = np.vstack([q, target])
        self._per_step = period / tick
        self._tick = tick
        chord = np.diff(self._point, axis=0) / period
        velocity = np.vstack([v, chord])
        velocity[1:-1] = 0.5 * (chord[:-1] + chord[1:])
        self._tangent = velocity * period
        self.time, self.rate, self.late = 0.0, 1.0, ""

    @classmethod
    def fit(
        cls,
        q: Array,
        v: Array,
        target: Array,
        period: float,
        tick: float,
        speed: Array,
        acceleration: Array,
    ) -> JointPath:
        """The fastest stretch of the path, not faster than proposed, that the joints can follow.

        Args:
            q: start position `[n]`, rad.
            v: start velocity `[n]`, rad/s.
            target: targets `[H, n]`, rad.
            period: policy period, s.
            tick: control period, s.
            speed: largest joint speeds `[n]`, rad/s.
            acceleration: largest joint accelerations `[n]`, rad/s^2.
        """
        path, late = None, ""
        for stretch in STRETCHES:
            path = cls(q, v, target, period * stretch, tick)
            dq = path.velocities(v)
            if not (np.abs(dq) <= speed).all():
                late = "joint_velocity"
            elif not (np.abs(np.diff(dq, axis=0)) <= acceleration * tick).all():
                late = "joint_acceleration"
            else:
                path.late = late
                return path
        assert path is not None  # the slowest one: each tick is checked again anyway
        path.late = late
        return path

    def velocities(self, v: Array) -> Array:
        """Velocities `[K + 1, n]`, rad/s, that the control ticks will see, the start's first."""
        times = np.minimum(np.arange(max(1, round(self.ticks)) + 1.0), self.ticks)
        return np.vstack([v, np.diff(self.positions(times), axis=0) / self._tick])

    def positions(self, time: Array) -> Array:
        """Joint positions `[K, n]` at path times `[K]` in ticks; `at` for many."""
        count = len(self._point) - 1
        s = np.minimum(time / self._per_step, float(count))
        i = np.minimum(s.astype(np.int64), count - 1)
        u = (s - i)[:, None]
        w = u - 1.0
        return np.asarray(
            (1.0 + 2.0 * u) * w * w * self._point[i]
            + u * u * (3.0 - 2.0 * u) * self._point[i + 1]
            + u * w * w * self._tangent[i]
            + u * u * w * self._tangent[i + 1]
        )

    @property
    def ticks(self) -> float:
        """Length of the path in ticks."""
        return float((len(self._point) - 1) * self._per_step)

    @property
    def reached(self) -> int:
        """Number of targets passed."""
        return min(int(self.time / self._per_step + 1e-9), len(self._point) - 1)

    def at(self, time: float) -> Array:
        """Joint positions `[n]` at a path time in ticks; beyond the end, the last target."""
        s = time / self._per_step
        count = len(self._point) - 1
        i = int(s)
        if i >= count:
            return np.asarray(self._point[-1])
        u = s - i
        if u == 0.0:
            return np.asarray(self._point[i])
        w = u - 1.0
        return np.asarray(
            (1.0 + 2.0 * u) * w * w * self._point[i]
            + u * u * (3.0 - 2.0 * u) * self._point[i + 1]
            + u * w * w * self._tangent[i]
            + u * u * w * self._tangent[i + 1]
        )
