"""A motion that could be sent, as constraints look at it: to standstill, and between the ticks."""

from __future__ import annotations

import numpy as np

from safe_o2o.safety.body import Body
from safe_o2o.types import Array


class Motion:
    """Set-points at control ticks, the last one at rest.

    Between two set-points an arm goes along the straight line in joint space, give or take the
    parabola of its acceleration; `sag` bounds what that does to points on the links.

    Args:
        q: set-points `[K + 1, n]`, rad, one a tick; the first is the last command already given.
        dt: control period, s.
        before: velocity `[n]`, rad/s, with which the first one was reached.
        now: the clock, s, when this is looked at.
        delay: how long after that the first set-point is reached, s: the queue of commands that
            were sent and not executed yet.
        loose: factor on the sags.

    Attributes:
        steps: differences of the set-points `[K, n]`, rad.
        velocity: velocities of first set-point and ticks, `[K + 1, n]`, rad/s.
    """

    def __init__(
        self,
        q: Array,
        dt: float,
        before: Array,
        *,
        now: float = 0.0,
        delay: float = 0.0,
        loose: float = 1.0,
    ) -> None:
        self._loose = loose
        self.q, self.dt, self.now, self.delay = q, dt, now, delay
        self.steps: Array = q[1:] - q[:-1]
        self.velocity: Array = np.concatenate([before[None], self.steps / dt])
        self._positions: dict[int, Array] = {}
        self._turn: Array | None = None
        self._bend: Array | None = None

    @property
    def times(self) -> Array:
        """When each set-point is reached, `[K + 1]`, s after `now`."""
        return np.asarray(self.delay + self.dt * np.arange(len(self.q)))

    def positions(self, body: Body) -> Array:
        """Where spheres and frames of the body are at each set-point, `[K + 1, 3, P]`, m."""
        found = self._positions.get(id(body))
        if found is None:
            found = self._positions[id(body)] = body.positions(self.q)
        return found

    def turn(self, reach: Array) -> Array:
        """How far a point may leave the chord between its places at two set-points, `[K]`, m.

        On the straight line in joint space p'' is the sum over all pairs of joints of what the
        outer one, j, does to the point at a distance of at most R_j from its axis, turned by the
        inner one: |p''| <= sum_j R_j |dq_j| (|dq_j| + 2 sum_{i<j} |dq_i|). The arc stays within an
        eighth of that of the chord, and within 4 t (1 - t) of this at the share t of the way.

        Args:
            reach: upper bounds R `[n]` on the distance of the point from each joint's axis, m.
        """
        if self._turn is None:
            step = np.abs(self.steps)
            self._turn = self._loose / 8.0 * step * (2.0 * np.cumsum(step, axis=1) - step)
        return np.asarray(self._turn @ reach)

    def sag(self, reach: Array) -> Array:
        """`turn`, and what a parabola between two set-points adds to the straight line, `[K]`, m.

        An acceleration that is held over a tick bends the line by an eighth of the second
        difference at most. What of that points along the line leaves it only where it turns back.
        """
        if self._bend is None:
            change = np.empty_like(self.velocity)
            np.subtract(self.velocity[1:], self.velocity[:-1], out=change[:-1])
            np.negative(self.velocity[-1], out=change[-1])
            change *= self.dt
            both = np.stack([change[:-1], change[1:]])
            self._bend = 0.125 * self._loose * _bend(both, self.steps)
        return np.asarray(self.turn(reach) + (self._bend @ reach).max(axis=0))


def _bend(change: Array, step: Array) -> Array:
    """What of second differences `[2, K, n]` leads off the line along a step `[K, n]`, rad."""
    length = (step * step).sum(axis=-1)
    share = (change * step).sum(axis=-1) / np.where(length > 0.0, length, np.inf)
    share = np.where(np.abs(share) <= 2.0, share, 0.0)  # beyond that the parabola turns back
    return np.asarray(np.abs(change - share[..., None] * step))


def below_chord(ends: Array, sag: Array) -> Array:
    """Least value, `[K, m]`, of what is linear along chords and dips below them by at most `sag`.

    Args:
        ends: values at the set-points, `[K + 1, m]`.
        sag: dips `[K]`: below the chord by at most 4 t (1 - t) of that at the share t of the way.
    """
    before, after, dip = ends[:-1], ends[1:], sag[:, None]
    slope = np.abs(after - before)
    return np.asarray(np.minimum(before, after) - deepest(slope, dip))


def deepest(slope: Array, dip: Array) -> Array:
    """How far s t - 4 b t (1 - t) goes below zero for t in [0, 1], slope s >= 0 and dip b >= 0.

    b (1 - s / (4 b))^2 where the slope does not outweigh the dip, else nothing.
    """
    share = np.maximum(0.0, 1.0 - slope / np.where(dip > 0.0, 4.0 * dip, 1.0))
    return np.asarray(dip * share * share)


def chord_to_point(start: Array, end: Array, point: Array) -> tuple[Array, Array]:
    """Distance of points from the segments that other points move along.

    Args:
        start: where they start, `[..., 3, N]`, m.
        end: where they end, `[..., 3, N]`, m.
        point: what to keep clear of, `[3, N]`, m.

    Returns:
        Least distance on the way `[..., N]`, m, and how fast the distance grows from where it is
        least, m a segment: 0 where that is neither end.
    """
    way, gap = end - start, point - start
    length = np.einsum("...in,...in->...n", way, way)
    along = np.einsum("...in,...in->...n", gap, way)
    share = np.clip(along / np.where(length > 0.0, length, 1.0), 0.0, 1.0)
    nearest = gap - share[..., None, :] * way
    distance = np.sqrt(np.einsum("...in,...in->...n", nearest, nearest))
    # d' = -(gap - t way) . way / d: at the start it has to rise, at the end to fall.
    rate = np.abs(along - share * length) / np.where(distance > 0.0, distance, np.inf)
    return distance, rate


def nearest_on_segment(point: Array, start: Array, end: Array) -> Array:
    """The points `[3, N]` of segments start-end `[3, N]` that are nearest to points `[3, N]`."""
    way = end - start
    length = (way * way).sum(axis=0)
    share = ((point - start) * way).sum(axis=0) / np.where(length > 0.0, length, 1.0)
    return np.asarray(start + np.clip(share, 0.0, 1.0) * way)


def segment_to_segment(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Distance `[N]`, m, of segments a-b from segments c-d, each `[3, N]`.

    The closest points of two segments are the closest points of their lines where these lie on
    both, else one of them is an end (Ericson, Real-Time Collision Detection, 5.1.9).
    """
    first, second, gap = b - a, d - c, a - c
    aa = np.einsum("in,in->n", first, first)
    bb = np.einsum("in,in->n", second, second)
    ab = np.einsum("in,in->n", first, second)
    ag = np.einsum("in,in->n", first, gap)
    bg = np.einsum("in,in->n", second, gap)
    safe_aa, safe_bb = np.where(aa > 0.0, aa, 1.0), np.where(bb > 0.0, bb, 1.0)
    cross = aa * bb - ab * ab
    # Nearly parallel lines: any share will do for the first, the second is then clamped to it.
    parallel = cross <= 1e-12 * aa * bb
    s = np.clip((ab * bg - ag * bb) / np.where(parallel, 1.0, cross), 0.0, 1.0)
    s = np.where(parallel | (aa == 0.0), 0.0, s)
    t = np.clip((ab * s + bg) / safe_bb, 0.0, 1.0)
    t = np.where(bb == 0.0, 0.0, t)
    s = np.where(aa == 0.0, 0.0, np.clip((ab * t - ag) / safe_aa, 0.0, 1.0))
    apart = gap + s * first - t * second
    return np.asarray(np.sqrt(np.einsum("in,in->n", apart, apart)))
