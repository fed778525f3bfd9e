"""The intended path of a proposal: joint targets as one smooth curve in policy time.

The filter only ever goes along it more slowly than proposed. Its parameter is the policy's clock,
so an arm that is slowed down does not skip actions, and a stop along it does not leave it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from math import ceil, sqrt
from typing import Any

import numpy as np

from safe_o2o.safety.curves import CONTROL, gentle_paces, parabolas, quintics, scaled, spline
from safe_o2o.safety.sweep import SLACK
from safe_o2o.types import Array

STRETCHES = (1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)
"""Factors on the policy period that are tried until speed, acceleration and jerk fit."""
TRIES = 3
"""How many of the stretches from the fastest that should fit are tried, for an arm that joins."""
CLEAR = 1.3
"""Where the gentle shape would have to be stretched by more, no look at its ticks will pass it."""
NEAR = 1.1
"""Where the gentle shape would have to be stretched by more, no other one will fit."""
START = 3.0
"""Start acceleration of a quintic whose acceleration may jump, in changes of velocity a period."""
ALIGNED = 0.5
"""Share of a tick's change of velocity by which an arm may move beside a path that it joins."""
BLOCK = 256
"""Ticks looked at in one go: a chunk that cannot be followed is mostly refused by its first."""
RESERVE = 0.95
"""Share of the acceleration that a path of our own pace may take: with all of it used up in a curve
nothing is left to brake along it, and a stop would leave it."""
GUESSED, GUESS = 3, 1.05
"""The last segments of a chunk, a quarter of it at most, hang on a guess of what follows, and the
next chunk mostly comes first: there a path may ask for so much more than the limits allow before
all of it is slowed down. Where none comes the arm slows down there: each tick is checked again."""
TAIL = 1.05
"""Reserve of the tail beyond the last target over the least duration that the limits allow."""


class JointPath:
    """A curve through joint targets, one policy period apart, in pieces of fifth order.

    It starts at the last command with its velocity and, where jerk binds, its acceleration, so that
    a new proposal never jerks the arm, and goes through a chunk's targets as the cubic spline does:
    a smooth motion that was sampled comes out as it was. It leaves the last target with the
    velocity it has there: the next proposal takes over, and if none comes a tail leads straight on
    to rest.

    Args:
        q: start position `[n]`, rad.
        v: start velocity `[n]`, rad/s.
        a: start acceleration `[n]`, rad/s^2; None where it may jump.
        target: targets `[H, n]`, rad.
        period: policy period, s.
        tick: control period, s.
        gentle: two parabolas a segment instead: least acceleration (2.4 against 3.5 changes of
            velocity a period), at the price of a higher speed on the way and of jumps in
            acceleration.
        lead: by how many ticks the first target is due later than one policy period from now. A
            policy at 30 Hz steps between the ticks of 100 Hz: without it every step would be off
            by up to a tick. Negative where the first of the targets was due earlier.
        rest: time from the last target to rest, s, or what gives it from the velocity there
            `[n]`, rad/s.
        abrupt: whether the deceleration to rest may begin and end at once.
        aligned: whether it starts along its first segment, at that one's speed, instead of v: for
            an arm that is slower and gains speed on the path.

    Attributes:
        time: ticks along the path so far; behind the clock where the filter slowed down.
        rate: path ticks of the last control tick, in [0, 1].
        late: the limit that made it slower than proposed, `""` while it is on time.
        stretch: factor on the proposed policy period.
        per_step: ticks a policy period, stretched.
        start: where it starts `[n]`, rad.
        before: velocity with which its start was reached, by set-points `[n]`, rad/s.
        check: what is known of the limits along it (`precheck.PathCheck`), once somebody asked.
        ticks: ticks to the last target, whole: where it falls between two, to the later one.
        end: ticks to rest; the arm stays where it is from there on.
    """

    def __init__(
        self,
        q: Array,
        v: Array,
        a: Array | None,
        target: Array,
        period: float,
        tick: float,
        gentle: bool = False,
        lead: float = 0.0,
        rest: float | Callable[[Array], float] = 0.0,
        abrupt: bool = False,
        aligned: bool = False,
    ) -> None:
        per_step = period / tick
        # 0.3 / 0.1 is not 3: targets that fall on a tick must be met there to the last bit.
        whole = round(per_step)
        self.per_step = float(whole) if abs(per_step - whole) < 1e-9 * per_step else per_step
        self._tick = tick
        self._last = np.array(target[-1])
        self._count = len(target)
        self._lead = lead if self.per_step + lead >= 0.5 else 0.0
        self.ticks = float(ceil(self._count * self.per_step + self._lead - 1e-9))
        self.time, self.rate, self.late, self.stretch = 0.0, 1.0, "", 1.0
        self.start = q
        self.before = v
        self.check: Any = None
        self._hull: tuple[Array, Array] | None = None
        point = np.vstack([q, target])
        move = np.diff(point, axis=0)
        # In policy periods the path begins here, and its first segment lasts so long. The same
        # expression as in `at`: rounding must not put time 0 before the first piece.
        begin = (0.0 - self._lead) / self.per_step
        first = 1.0 - begin
        mean = np.vstack([move[:1] / first, move[1:]])
        # Tangents and second derivatives at the points, rad a policy period (squared).
        tangent = np.vstack([mean[:1] if aligned else v * period, mean])
        bend = np.zeros_like(point)
        if self._count > 1 and not gentle:
            tangent, bend = spline(mean, tangent[0], first)
        elif self._count > 1:
            # The first segment may be longer or shorter than the others: the shorter says more.
            tangent[1] = (mean[0] + first * mean[1]) / (1.0 + first)
            tangent[2:-1] = 0.5 * (mean[1:-1] + mean[2:])
        elif a is None:
            # Where nothing is asked, at once: that takes the least acceleration, 3.5 |change|.
            bend[0] = START * (mean[0] - tangent[0]) / first
        if a is not None:
            bend[0] = 0.0 if aligned else a * period * period
        if gentle:
            starts, self._pieces = parabolas(point[:-1], move, *scaled(tangent, first))
        else:
            starts, self._pieces = quintics(
                point[:-1], move, *scaled(tangent, first), *scaled(bend, first * first)
            )
        head = starts < 1.0
        starts[head] = begin + starts[head] * first
        self._pieces[head] /= first ** np.arange(6.0)[:, None]
        # Straight on until the tick is full: the next proposal is taken over there, at full speed.
        full = max((self.ticks - self._lead) / self.per_step, float(self._count))
        self._starts = [*starts.tolist(), float(self._count), full]
        zero = np.zeros_like(self._last)
        coast = np.array([self._last, tangent[-1], zero, zero, zero, zero])
        onward = self._last + (full - self._count) * tangent[-1]
        rest = rest(tangent[-1] / period) if callable(rest) else rest
        tail = self._tail(onward, tangent[-1], full, rest / period, abrupt)
        self._pieces = np.concatenate([self._pieces, coast[None], tail[None]])
        self._edges = np.array(self._starts)

    def _tail(self, q: Array, leave: Array, start: float, length: float, abrupt: bool) -> Array:
        """To rest within `length` policy periods: w (1 - x), or smoothly w (1 - 3 x^2 + 2 x^3)."""
        # Shorter than a tick there is nothing to see of it; the next command brakes.
        length = max(length, 1.0 / self.per_step)
        self._rest = q + 0.5 * length * leave
        self._stops = start + length
        self.end = float(self._stops * self.per_step + self._lead)
        zero = np.zeros_like(leave)
        if abrupt:
            return np.array([q, leave, -0.5 * leave / length, zero, zero, zero])
        return np.array([q, leave, zero, -leave / length**2, 0.5 * leave / length**3, zero])

    @classmethod
    def fit(
        cls,
        q: Array,
        v: Array,
        a: Array | None,
        target: Array,
        period: float,
        tick: float,
        speed: Array,
        acceleration: Array,
        jerk: Array,
        lead: float = 0.0,
    ) -> JointPath:
        """The fastest stretch of the path, not faster than proposed, that the joints can follow.

        Args:
            q: start position `[n]`, rad.
            v: start velocity `[n]`, rad/s.
            a: start acceleration `[n]`, rad/s^2; None where it may jump.
            target: targets `[H, n]`, rad.
            period: policy period, s.
            tick: control period, s.
            speed: largest joint speeds `[n]`, rad/s.
            acceleration: largest joint accelerations `[n]`, rad/s^2.
            jerk: largest joint jerks `[n]`, rad/s^3.
            lead: see the class.
        """
        abrupt = bool((jerk * tick >= 2.0 * acceleration).all())

        def rest(leave: Array) -> float:
            # Smoothly, deceleration is 1.5 w / T and jerk 6 w / T^2 at most.
            leave = np.abs(leave)
            brake = float((leave / acceleration).max()) * (1.0 if abrupt else 1.5)
            ease = 0.0 if abrupt else sqrt(float((6.0 * leave / jerk).max()))
            return TAIL * max(brake, ease)

        def shaped(stretch: float, gentle: bool, aligned: bool = False) -> JointPath:
            path = cls(q, v, a, target, period * stretch, tick, gentle, lead, rest, abrupt, aligned)
            path.stretch = stretch
            return path

        path = shaped(1.0, False)
        late = path.refusal(v, a, speed, acceleration, jerk)
        if not late:
            return path
        calm, soft = RESERVE * acceleration, None if abrupt else jerk
        # No shape is slower than the mean speed of its segments: shorter stretches need no try.
        move, count = np.diff(np.vstack([q, target]), axis=0), len(target)
        least = min(float((np.abs(move) / (speed * period)).max()), STRETCHES[-1])
        lead = lead if period / tick + lead >= 0.5 else 0.0
        # What the gentle shape would ask for at each stretch is known at once.
        bounds, slack = (speed, calm, soft), _slack(count)
        paces = gentle_paces(np.array(STRETCHES), v, move, period, tick, lead, bounds, slack)
        if paces[0] <= CLEAR:
            path = shaped(1.0, True)
            if not path.refusal(v, a, speed, acceleration, jerk):
                return path
        # Already under way in its direction, or at rest: speed is gained along it.
        full = (target[0] - q) / (period + lead * tick)  # where it starts along its first segment
        size, beside = float(full @ full), ALIGNED * acceleration * tick
        along = float(v @ full) / size if size > 0.0 else 0.0
        joins = (np.abs(v - along * full) <= beside).all() and along >= 0.0
        if joins:
            # Such a path keeps its shape: what it asks for at one pace tells what at any other.
            natural = shaped(1.0, False, aligned=True)
            pace = max(least, natural.pace(speed, calm, soft))
            for stretch in [s for s in STRETCHES if s >= pace][:TRIES]:
                full = (target[0] - q) / (period * stretch + lead * tick)
                rate = min(along * stretch, 1.0) if size > 0.0 else 1.0
                if not (np.abs(v - rate * full) <= beside).all():
                    continue
                joined = natural if stretch == 1.0 else shaped(stretch, False, aligned=True)
                if joined.pace(speed, calm, soft) <= 1.0 + SLACK:
                    joined.late, joined.rate = late, rate
                    return joined
        # Another one bends less the longer it takes: the first stretch that fits, and the smooth
        # shape rather than the gentle one.
        found: JointPath | None = None
        for stretch, pace in zip(STRETCHES[1:], paces[1:].tolist(), strict=True):
            if stretch < least or pace > NEAR:
                continue
            path = shaped(stretch, False)
            if path.pace(speed, calm, soft) <= 1.0 + SLACK:
                found = path
            elif pace <= 1.0 + SLACK:
                found = shaped(stretch, True)
            if found is not None:
                break
        if found is None:
            found = shaped(STRETCHES[-1], True)  # each tick is checked again anyway
        found.late = late
        return found

    def pace(self, speed: Array, acceleration: Array, jerk: Array | None) -> float:
        """By how much it would have to be stretched at least for limits `[n]` to hold on it.

        At most 1 means that they do, up to the last target: what the control ticks show is no more.
        Enough for a path that keeps its shape. The last segments, which hang on a guess, count for
        less. A jerk of None is not looked at.
        """
        pieces, length = (part[:-2] for part in self._unit_pieces())
        seconds = (length * self.per_step * self._tick)[:, None, None]
        # A first segment that begins more than a period early is still the first.
        segment = np.maximum(self._edges[:-2].astype(int), 0)
        slack = _slack(self._count)[segment][:, None, None]
        dq, ddq = (CONTROL[k] @ pieces / seconds**k for k in (1, 2))
        shares = [np.abs(dq) / speed, np.abs(ddq) / acceleration]
        if jerk is not None:
            # From one tick to the next a jump of the acceleration is a jerk as well.
            dddq = np.abs(CONTROL[3] @ pieces) / seconds**3
            dddq[1:] += np.abs(ddq[1:, :1] - ddq[:-1, -1:]) / self._tick
            shares.append(dddq / jerk)
        most = [float((share / slack).max()) for share in shares]
        return max(float(value ** (1 / order)) for order, value in enumerate(most, start=1))

    def refusal(
        self, v: Array, a: Array | None, speed: Array, acceleration: Array, jerk: Array
    ) -> str:
        """The limit that the control ticks up to the last target will exceed, or `""`.

        Starting at velocity v and acceleration a, `[n]`; None where that may jump.
        """
        tick, ends = self._tick, int(self.ticks)
        sure = max(self._count - GUESSED, ceil(0.75 * self._count))
        known = min(int(sure * self.per_step + self._lead), ends)
        starts = [*range(0, known, BLOCK), *range(known, ends, BLOCK)]
        for first in starts:
            last = min(first + BLOCK, known if first < known else ends)
            slack = (1.0 + SLACK) * (1.0 if first < known else GUESS)
            q = self.positions(np.arange(max(first - 2, 0), last + 1.0))
            dq = (q[1:] - q[:-1]) / tick
            if first == 0:
                # The tick before it was half a tick ago on average, the one before that one more.
                slope = 0.0 * v if a is None else a * tick
                dq = np.vstack([v - 1.5 * slope, v - 0.5 * slope, dq])
            if not (np.abs(dq[2:]) <= slack * speed).all():
                return "joint_velocity"
            ddq = dq[1:] - dq[:-1]
            if not (np.abs(ddq[1:]) <= slack * tick * acceleration).all():
                return "joint_acceleration"
            dddq = ddq[1:] - ddq[:-1]
            jump = slack * tick * tick * jerk
            if not (np.abs(dddq if first or a is not None else dddq[2:]) <= jump).all():
                return "joint_jerk"
        return ""

    def motion(self, time: float) -> tuple[Array, Array]:
        """Velocity, rad/s, and acceleration, rad/s^2, at full rate, `[n]` each, at a path time."""
        s = (time - self._lead) / self.per_step
        if s >= self._stops:
            return np.zeros_like(self._last), np.zeros_like(self._last)
        piece = bisect_right(self._starts, s) - 1
        _, b, c, d, e, f = self._pieces[piece]
        u, period = s - self._starts[piece], self.per_step * self._tick
        v = b + u * (2.0 * c + u * (3.0 * d + u * (4.0 * e + u * 5.0 * f)))
        a = 2.0 * c + u * (6.0 * d + u * (12.0 * e + u * 20.0 * f))
        return np.asarray(v / period), np.asarray(a / period**2)

    def hull(self) -> tuple[Array, Array]:
        """Joint positions `[n]`, rad, below and above which no point of the path lies."""
        if self._hull is not None:
            return self._hull
        control = CONTROL[0] @ self._unit_pieces()[0]
        self._hull = control.min(axis=(0, 1)), control.max(axis=(0, 1))
        return self._hull

    def _unit_pieces(self) -> tuple[Array, Array]:
        """Coefficients `[P, 6, n]` over [0, 1] and lengths `[P]`, policy periods, of the pieces."""
        length = np.diff(self._edges, append=self._stops)
        return self._pieces * (length[:, None] ** np.arange(6.0))[:, :, None], length

    @property
    def phase(self) -> float:
        """Ticks from now to the policy step that is nearest, less than a tick away, else 0."""
        steps = (self.time - self._lead) / self.per_step
        away = (round(steps) - steps) * self.per_step
        return away if 1e-6 < abs(away) < 1.0 - 1e-6 else 0.0

    @property
    def lead_to_next(self) -> float:
        """By how many ticks more than one policy period the next target is away."""
        return (self.reached + 1) * self.per_step + self._lead - self.time - self.per_step

    def positions(self, time: Array) -> Array:
        """Joint positions `[K, n]` at path times `[K]` in ticks, not decreasing; `at` for many."""
        s = (time - self._lead) / self.per_step
        if not len(s):
            return np.empty((0, len(self._last)))
        piece = np.searchsorted(self._edges, s, side="right") - 1
        if piece[0] == piece[-1] and s[-1] < self._stops:  # as most stops do
            a, b, c, d, e, f = self._pieces[piece[0]]
            u = (s - self._starts[piece[0]])[:, None]
            return np.asarray(a + u * (b + u * (c + u * (d + u * (e + u * f)))))
        return self._on(piece, s)

    def scattered(self, time: Array) -> Array:
        """`positions` at path times in any order, the same to the bit."""
        s = (time - self._lead) / self.per_step
        return self._on(np.searchsorted(self._edges, s, side="right") - 1, s)

    def _on(self, piece: Array, s: Array) -> Array:
        """Joint positions `[K, n]` at path parameters `[K]` on these pieces `[K]`."""
        u = (s - self._edges[piece])[:, None]
        a, b, c, d, e, f = self._pieces[piece].transpose(1, 0, 2)
        q = a + u * (b + u * (c + u * (d + u * (e + u * f))))
        q[s >= self._stops] = self._rest
        return np.asarray(q)

    @property
    def reached(self) -> int:
        """Number of targets passed."""
        return min(int((self.time - self._lead) / self.per_step + 1e-9), self._count)

    def at(self, time: float) -> Array:
        """Joint positions `[n]` at a path time in ticks."""
        s = (time - self._lead) / self.per_step
        if s >= self._stops:
            return np.asarray(self._rest)
        piece = bisect_right(self._starts, s) - 1
        a, b, c, d, e, f = self._pieces[piece]
        u = s - self._starts[piece]
        return np.asarray(a + u * (b + u * (c + u * (d + u * (e + u * f)))))


def _slack(count: int) -> Array:
    """Factor on the limits for each of a chunk's segments `[H]`: the last hang on a guess."""
    sure = max(count - GUESSED, ceil(0.75 * count))
    return np.where(np.arange(count) >= sure, GUESS, 1.0)
