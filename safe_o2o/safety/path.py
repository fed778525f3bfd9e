"""The intended path of a proposal: joint targets as one smooth curve in policy time."""

from __future__ import annotations

from bisect import bisect_right
from math import sqrt

import numpy as np

from safe_o2o.types import Array

STRETCHES = (1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)
"""Factors on the policy period that are tried until speed and acceleration fit."""
SWITCH = sqrt(0.5)
"""Where two parabolas meet in a segment: from any start velocity to the segment's mean velocity, no
later switch and no other curve needs less acceleration, (1 + sqrt 2) |change| / period."""


class JointPath:
    """A curve through joint targets, one policy period apart, in cubic pieces.

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
        gentle: two parabolas a segment instead of one cubic: least acceleration (2.4 against 4
            changes of velocity a period), at the price of a higher speed on the way.

    Attributes:
        time: ticks along the path so far; behind the clock where the filter slowed down.
        rate: path ticks of the last control tick, in [0, 1].
        late: the limit that made it slower than proposed, `""` while it is on time.
        ticks: length of the path in ticks.
    """

    def __init__(
        self, q: Array, v: Array, target: Array, period: float, tick: float, gentle: bool = False
    ) -> None:
        per_step = period / tick
        # 0.3 / 0.1 is not 3: targets that fall on a tick must be met there to the last bit.
        whole = round(per_step)
        self._per_step = float(whole) if abs(per_step - whole) < 1e-9 * per_step else per_step
        self._tick = tick
        self._last = np.array(target[-1])
        self._count = len(target)
        self.ticks = self._count * self._per_step
        self.time, self.rate, self.late = 0.0, 1.0, ""
        point = np.vstack([q, target])
        move = np.diff(point, axis=0)
        # Tangents at the points, rad a policy period.
        tangent = np.vstack([v * period, move])
        tangent[1:-1] = 0.5 * (move[:-1] + move[1:])
        pieces = _parabolas if gentle else _cubics
        starts, self._pieces = pieces(point[:-1], move, tangent[:-1], tangent[1:])
        self._starts = starts.tolist()

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
        path, late = cls(q, v, target, period, tick), ""
        # No shape is slower than the mean speed of its segments: shorter stretches need no try.
        move = np.abs(np.diff(np.vstack([q, target]), axis=0))
        least = min(float((move / (speed * period)).max()), STRETCHES[-1])
        for stretch in STRETCHES:
            if stretch < least:
                late = "joint_velocity"
                continue
            for gentle in (False, True):
                if late:
                    path = cls(q, v, target, period * stretch, tick, gentle)
                dq = path.velocities(v)
                if not (np.abs(dq) <= speed).all():
                    late = "joint_velocity"
                elif not (np.abs(dq[1:] - dq[:-1]) <= acceleration * tick).all():
                    late = "joint_acceleration"
                else:
                    # The other shape arrives at the same time: only a stretch is later.
                    path.late = late if stretch > 1.0 else ""
                    return path
        path.late = late  # the slowest one: each tick is checked again anyway
        return path

    def velocities(self, v: Array) -> Array:
        """Velocities `[K + 1, n]`, rad/s, that the control ticks will see, the start's first."""
        times = np.minimum(np.arange(max(1, round(self.ticks)) + 1.0), self.ticks)
        q = self.positions(times)
        return np.vstack([v, (q[1:] - q[:-1]) / self._tick])

    def positions(self, time: Array) -> Array:
        """Joint positions `[K, n]` at path times `[K]` in ticks; `at` for many."""
        s = time / self._per_step
        piece = np.searchsorted(self._starts, s, side="right") - 1
        a, b, c, d = self._pieces[piece].transpose(1, 0, 2)
        u = (s - np.asarray(self._starts)[piece])[:, None]
        q = a + u * (b + u * (c + u * d))
        q[s >= self._count] = self._last
        return np.asarray(q)

    @property
    def reached(self) -> int:
        """Number of targets passed."""
        return min(int(self.time / self._per_step + 1e-9), self._count)

    def at(self, time: float) -> Array:
        """Joint positions `[n]` at a path time in ticks; from the end on, the last target."""
        s = time / self._per_step
        if s >= self._count:
            return self._last
        piece = bisect_right(self._starts, s) - 1
        a, b, c, d = self._pieces[piece]
        u = s - self._starts[piece]
        return np.asarray(a + u * (b + u * (c + u * d)))


def _cubics(point: Array, move: Array, start: Array, end: Array) -> tuple[Array, Array]:
    """One Hermite cubic a segment: starts `[H]` and coefficients `[H, 4, n]`, lowest first."""
    slack = start + end - 2.0 * move
    return (
        np.arange(float(len(move))),
        np.stack([point, start, move - start - slack, slack], axis=1),
    )


def _parabolas(point: Array, move: Array, start: Array, end: Array) -> tuple[Array, Array]:
    """Two parabolas a segment: starts `[2H]` and coefficients `[2H, 4, n]`, lowest first.

    With accelerations A before and B after `SWITCH` = k: velocities ask for A k + B (1 - k) =
    end - start, positions for A k (1 - k / 2) + B (1 - k)^2 / 2 = move - start.
    """
    k, rest = SWITCH, 1.0 - SWITCH
    change, lag = end - start, move - start
    first = (2.0 * lag - rest * change) / k
    second = (change - k * first) / rest
    zero = np.zeros_like(move)
    before = np.stack([point, start, first / 2.0, zero], axis=1)
    after = np.stack(
        [point + k * start + 0.5 * k * k * first, start + k * first, second / 2.0, zero], axis=1
    )
    n = len(move)
    starts = (np.arange(float(n))[:, None] + np.array([0.0, k])).ravel()
    return starts, np.stack([before, after], axis=1).reshape(2 * n, *before.shape[1:])
