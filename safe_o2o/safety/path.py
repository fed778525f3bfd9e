"""The intended path of a proposal: joint targets as one smooth curve in policy time."""

from __future__ import annotations

from bisect import bisect_right
from math import ceil, sqrt

import numpy as np

from safe_o2o.types import Array

STRETCHES = (1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)
"""Factors on the policy period that are tried until speed and acceleration fit."""
SWITCH = sqrt(0.5)
"""Where two parabolas meet in a segment: from any start velocity to the segment's mean velocity, no
later switch and no other curve needs less acceleration, (1 + sqrt 2) |change| / period."""
BLOCK = 256
"""Ticks looked at in one go: a chunk that cannot be followed is mostly refused by its first."""


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
        lead: by how many ticks the first target is due later than one policy period from now. A
            policy at 30 Hz steps between the ticks of 100 Hz: without it every step would be off
            by up to a tick.

    Attributes:
        time: ticks along the path so far; behind the clock where the filter slowed down.
        rate: path ticks of the last control tick, in [0, 1].
        late: the limit that made it slower than proposed, `""` while it is on time.
        ticks: length of the path in ticks, whole: where the last target falls between two, the path
            goes straight on to the later one.
    """

    def __init__(
        self,
        q: Array,
        v: Array,
        target: Array,
        period: float,
        tick: float,
        gentle: bool = False,
        lead: float = 0.0,
    ) -> None:
        per_step = period / tick
        # 0.3 / 0.1 is not 3: targets that fall on a tick must be met there to the last bit.
        whole = round(per_step)
        self._per_step = float(whole) if abs(per_step - whole) < 1e-9 * per_step else per_step
        self._tick = tick
        self._last = np.array(target[-1])
        self._count = len(target)
        self._lead = lead if self._per_step + lead >= 0.5 else 0.0
        self.ticks = float(ceil(self._count * self._per_step + self._lead - 1e-9))
        self.time, self.rate, self.late = 0.0, 1.0, ""
        point = np.vstack([q, target])
        move = np.diff(point, axis=0)
        # In policy periods the path begins here, and its first segment lasts so long. The same
        # expression as in `at`: rounding must not put time 0 before the first piece.
        begin = (0.0 - self._lead) / self._per_step
        first = 1.0 - begin
        mean = np.vstack([move[:1] / first, move[1:]])
        # Tangents at the points, rad a policy period.
        tangent = np.vstack([v * period, mean])
        tangent[1:-1] = 0.5 * (mean[:-1] + mean[1:])
        self._leave = tangent[-1]
        start, end = tangent[:-1].copy(), tangent[1:].copy()
        start[0] *= first
        end[0] *= first
        pieces = _parabolas if gentle else _cubics
        starts, self._pieces = pieces(point[:-1], move, start, end)
        head = starts < 1.0
        starts[head] = begin + starts[head] * first
        self._pieces[head] /= first ** np.arange(4.0)[:, None]
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
        lead: float = 0.0,
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
            lead: see the class.
        """
        path, late = cls(q, v, target, period, tick, lead=lead), ""
        # No shape is slower than the mean speed of its segments: shorter stretches need no try.
        move = np.abs(np.diff(np.vstack([q, target]), axis=0))
        least = min(float((move / (speed * period)).max()), STRETCHES[-1])
        for stretch in STRETCHES:
            if stretch < least:
                late = "joint_velocity"
                continue
            for gentle in (False, True):
                if late:
                    path = cls(q, v, target, period * stretch, tick, gentle, lead)
                refusal = path.refusal(v, speed, acceleration)
                if not refusal:
                    # The other shape arrives at the same time: only a stretch is later.
                    path.late = late if stretch > 1.0 else ""
                    return path
                late = refusal
        path.late = late  # the slowest one: each tick is checked again anyway
        return path

    def refusal(self, v: Array, speed: Array, acceleration: Array) -> str:
        """The limit that the control ticks will exceed, starting at velocity v, or `""`."""
        change = acceleration * self._tick
        for first in range(0, int(self.ticks), BLOCK):
            last = min(first + BLOCK, int(self.ticks))
            q = self.positions(np.arange(max(first - 1, 0), last + 1.0))
            dq = (q[1:] - q[:-1]) / self._tick
            if first == 0:
                dq = np.vstack([v, dq])
            if not (np.abs(dq) <= speed).all():
                return "joint_velocity"
            if not (np.abs(dq[1:] - dq[:-1]) <= change).all():
                return "joint_acceleration"
        return ""

    @property
    def phase(self) -> float:
        """Ticks from now to the policy step that is nearest, less than a tick away, else 0."""
        steps = (self.time - self._lead) / self._per_step
        away = (round(steps) - steps) * self._per_step
        return away if 1e-6 < abs(away) < 1.0 - 1e-6 else 0.0

    def positions(self, time: Array) -> Array:
        """Joint positions `[K, n]` at path times `[K]` in ticks; `at` for many."""
        s = (time - self._lead) / self._per_step
        piece = np.searchsorted(self._starts, s, side="right") - 1
        a, b, c, d = self._pieces[piece].transpose(1, 0, 2)
        u = (s - np.asarray(self._starts)[piece])[:, None]
        q = a + u * (b + u * (c + u * d))
        beyond = s >= self._count
        q[beyond] = self._last + (s[beyond, None] - self._count) * self._leave
        return np.asarray(q)

    @property
    def reached(self) -> int:
        """Number of targets passed."""
        return min(int((self.time - self._lead) / self._per_step + 1e-9), self._count)

    def at(self, time: float) -> Array:
        """Joint positions `[n]` at a path time in ticks; beyond the last target, straight on."""
        s = (time - self._lead) / self._per_step
        if s >= self._count:
            return np.asarray(self._last + (s - self._count) * self._leave)
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
