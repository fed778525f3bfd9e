"""Spheres and capsules in the arm's way, standing or moving with bounded speed and acceleration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.safety.body import Body
from safe_o2o.safety.motion import (
    Motion,
    chord_to_point,
    deepest,
    nearest_on_segment,
    segment_to_segment,
)
from safe_o2o.types import Array

Point = tuple[float, float, float]
MARGIN = 0.01
"""Distance to keep unless told otherwise, m."""
ROUNDING = 1e-9
"""How far beyond its margin, m, an end has to be for certain."""
ROWS = 8
"""How many of the nearest pairs get a linear row."""


@dataclass(frozen=True)
class Obstacle:
    """A sphere, or a capsule where `end` is given, as it was seen at `stamp`.

    Attributes:
        name: what reports call it.
        centre: its centre, or one end of its axis, in the arm's base frame, m.
        radius: m.
        end: other end of a capsule's axis, m.
        error: bound on how wrong position and size may be, m.
        speed: its speed when it was seen, m/s; None where that is not known.
        max_speed: bound on the speed of any of its points, m/s; 0 for what stands.
        max_acceleration: bound on their acceleration, m/s^2; used where `speed` is known.
        stamp: when it was seen, s, on the filter's clock; None for what never changes.

    Raises:
        ConfigError: a number is not finite, a radius not positive, or a bound negative.
    """

    name: str
    centre: Point
    radius: float
    end: Point | None = None
    error: float = 0.0
    speed: float | None = None
    max_speed: float = 0.0
    max_acceleration: float = inf
    stamp: float | None = None

    def __post_init__(self) -> None:
        ends = np.array([self.centre, self.end or self.centre], np.float64)
        sound = (
            ends.shape == (2, 3)
            and bool(np.isfinite(ends).all())
            and 0.0 < self.radius < inf
            and 0.0 <= self.error < inf
            and 0.0 <= self.max_speed < inf
            and self.max_acceleration >= 0.0
            and (self.speed is None or 0.0 <= self.speed < inf)
            and (self.stamp is None or isfinite(self.stamp))
        )
        if not sound:
            raise ConfigError(f"has a number out of range: {self}", where=f"obstacle {self.name!r}")
        if self.max_speed > 0.0 and self.stamp is None:
            raise ConfigError("moves and therefore needs a stamp", where=f"obstacle {self.name!r}")


def gaining(speed: Array, max_speed: Array, max_acceleration: Array) -> Array:
    """How long, s, a point can go on gaining speed `[...]`; for ever where it cannot gain any."""
    able = max_acceleration > 0.0
    return np.where(able, (max_speed - speed) / np.where(able, max_acceleration, 1.0), inf)


def travel(
    time: Array, speed: Array, max_speed: Array, max_acceleration: Array, gaining: Array
) -> Array:
    """How far a point gets in `time`: |v| t + a t^2 / 2 until it has its largest speed, then on.

    Never more than max_speed t (path_filter.md 7, step 4). All arguments `[...]`, SI; speed at most
    max_speed, and `gaining` what the function of that name says.
    """
    ramp = np.minimum(time, gaining)
    # An infinite acceleration is over at once: 0 and not NaN.
    gained = 0.5 * np.where(max_acceleration < inf, max_acceleration, 0.0) * ramp * ramp
    return np.asarray(speed * ramp + gained + max_speed * (time - ramp))


class Obstacles:
    """No sphere of the arm comes nearer to any obstacle than a margin, until the arm stands.

    An obstacle may be anywhere its bounds let it get to, between the moment it was seen and the
    moment the arm stands (speed and separation monitoring): its sphere grows with its age, the
    delay of sensing and the time ahead. What touches an arm that stands is not the arm's doing.

    Args:
        body: the arm.
        obstacles: what is there from the beginning.
        margin: distance to keep, m: the arm's tracking error, at least.
        delay: time from an obstacle's stamp being true to the stamp, s: latency of sensing.
        max_age: a moving obstacle seen longer ago than this is stale, s.
        margins: other margins for (frame of a capsule, name of an obstacle), m; negative where a
            task means contact.

    Raises:
        ConfigError: a number is out of range, or a margin is for a frame without capsules.
    """

    name = "obstacles"
    unit = "m"
    static = False
    exact_rows = False
    range = 0.1
    """Distance that counts as margin 1, m."""

    def __init__(
        self,
        body: Body,
        obstacles: Sequence[Obstacle] = (),
        *,
        margin: float = MARGIN,
        delay: float = 0.0,
        max_age: float = 0.2,
        margins: Mapping[tuple[str, str], float] | None = None,
    ) -> None:
        for what, value in (("margin", margin), ("delay", delay), ("max_age", max_age)):
            if not 0.0 <= value < inf:
                raise ConfigError(f"must be finite and not negative, got {value}", where=what)
        frames = {capsule.frame for capsule in body.capsules}
        for (frame, other), value in (margins or {}).items():
            if frame not in frames or not isfinite(value):
                raise ConfigError(
                    f"needs a frame with capsules ({sorted(frames)}) and a finite number, got "
                    f"{value} for {frame!r} and {other!r}",
                    where="margins",
                )
        self.body, self.margin, self.delay, self.max_age = body, margin, delay, max_age
        self.margins = dict(margins or {})
        self.exemptions = tuple(
            f"{frame} and {other} keep {value:g} m"
            for (frame, other), value in self.margins.items()
        )
        """What is not held with the margin, one line each."""
        self._owner = [body.capsules[i].frame for i in body.owner]
        self._reach = body.reach
        self.update(obstacles)

    def update(self, obstacles: Sequence[Obstacle]) -> None:
        """Replace all obstacles by these, as one; called between ticks.

        Raises:
            ConfigError: two have the same name.
        """
        names = tuple(obstacle.name for obstacle in obstacles)
        if len(set(names)) != len(names):
            raise ConfigError(f"names repeat: {names}", where="obstacles")
        self.names = names
        shape = (len(names), 3)
        start = np.array([o.centre for o in obstacles], np.float64).reshape(shape)
        end = np.array([o.end or o.centre for o in obstacles], np.float64).reshape(shape)
        self._start, self._end = np.ascontiguousarray(start.T), np.ascontiguousarray(end.T)
        self._long = np.array([o.end is not None and o.end != o.centre for o in obstacles], bool)
        self._half = 0.5 * np.linalg.norm(end - start, axis=1)
        self._middle = 0.5 * (self._start + self._end)
        self._middle_square = np.square(self._middle).sum(axis=0)
        self._radius = np.array([o.radius + o.error for o in obstacles], np.float64)
        # What is not known to be slower is taken to be as fast as it may be.
        self._speed = np.array(
            [o.max_speed if o.speed is None else o.speed for o in obstacles], np.float64
        )
        self._max_speed = np.array([o.max_speed for o in obstacles], np.float64)
        self._max_acceleration = np.array([o.max_acceleration for o in obstacles], np.float64)
        self._speed = np.minimum(self._speed, self._max_speed)
        self._moving = bool((self._max_speed > 0.0).any())
        self._gaining = gaining(self._speed, self._max_speed, self._max_acceleration)
        self._seen = np.array([inf if o.stamp is None else o.stamp for o in obstacles], np.float64)
        keep = np.full((self.body.spheres, len(names)), self.margin)
        for (frame, other), margin in self.margins.items():
            if other in names:
                keep[[f == frame for f in self._owner], names.index(other)] = margin
        self._begun: tuple[float, float, bytes] | None = None  # what `_begin` was computed for
        self._begin = np.empty(0)
        # Distance of centres at which the margin is used up: [S, M].
        self._keep = keep + self.body.radius[:, None]

    def fault(self, now: float) -> str:
        """`obstacles_stale` where a moving obstacle was seen too long ago, or in the future."""
        age = now - self._seen[self._max_speed > 0.0]
        return "" if ((age <= self.max_age) & (age >= -self.max_age)).all() else "obstacles_stale"

    def grown(self, now: float, ahead: Array) -> Array:
        """Radii `[K, M]`, m, that contain each obstacle `ahead` `[K]` s after `now`."""
        if not self._moving:
            return np.broadcast_to(self._radius, (len(ahead), len(self._radius)))
        age = np.maximum(now - self._seen, 0.0)  # 0 for what never changes
        time = age + self.delay + ahead[:, None]
        bounds = (self._speed, self._max_speed, self._max_acceleration, self._gaining)
        return np.asarray(self._radius + travel(time, *bounds))

    def clearance(self, q: Array) -> Array:
        """Distances beyond the margin `[K, S M]`, m, at `[K, n]`, to where obstacles were seen."""
        count, spheres = len(q), self.body.spheres
        centres = self.body.positions(q)[:, :, :spheres]
        pairs = spheres * len(self.names)
        out = np.empty((count, pairs))
        which, what = np.divmod(np.arange(pairs), max(len(self.names), 1))
        for k in range(count):
            point = centres[k][:, which]
            apart = self._point_distance(point, what)
            out[k] = apart - (self._keep + self._radius).ravel()
        return out

    def swept(self, motion: Motion) -> tuple[Array, Array]:
        """Least distance beyond the margin, at the start `[m]` and in each tick `[K, m]`, m.

        For the m pairs of sphere and obstacle that come within `range` of each other at all. An arm
        that is too near to something that moves may only leave faster than that may follow;
        otherwise it stands: it must not be met while it moves.
        """
        spheres = self.body.spheres
        centres = motion.positions(self.body)[:, :, :spheres]
        radii = self.grown(motion.now, motion.times)
        first = centres[0]
        sag = motion.sag(self._reach)
        farthest = np.sqrt(np.square(centres - first).sum(axis=1).max(axis=0)) + sag.max()
        apart = self._apart(first)
        near = apart - self._half - farthest[:, None] - radii[-1] - self._keep < self.range
        which, what = np.nonzero(near)
        if not len(which):
            return np.empty(0), np.empty((len(motion.steps), 0))
        keep = self._keep[which, what]
        begin, end = centres[:-1, :, which], centres[1:, :, which]
        distance, rate = self._chords(begin, end, what)
        start = self._point_distance(first[:, which], what) - radii[0, what] - keep
        return start, distance - deepest(rate, sag[:, None]) - radii[1:, what] - keep

    def refuses(self, motion: Motion) -> bool:
        """Whether some sphere ends beyond its margin, and farther in than it began.

        Less than half the work of a look between the ticks, which would refuse such a motion.
        """
        # No sphere is farther from a capsule's axis than from its middle, nor nearer by more than
        # half its length.
        key = (motion.now, motion.delay, motion.q[0].tobytes())
        if key != self._begun:
            self._begun, self._begin = key, self._at(motion, 0) - self._half
        return bool((self._at(motion, -1) < np.minimum(self._begin, -ROUNDING)).any())

    def _at(self, motion: Motion, k: int) -> Array:
        """Distances `[S, M]` beyond the margin, m, from the obstacles' middles at set-point k."""
        centres = self.body.positions(motion.q[k, None])[0][:, : self.body.spheres]
        radii = self.grown(motion.now, motion.times[k, None])[0]
        return np.asarray(self._apart(centres) - radii - self._keep)

    def _apart(self, points: Array) -> Array:
        """Distances `[S, M]`, m, of points `[3, S]` from the middles of the obstacles."""
        square = np.square(points).sum(axis=0)[:, None] + self._middle_square
        return np.asarray(np.sqrt(np.maximum(square - 2.0 * (points.T @ self._middle), 0.0)))

    def _point_distance(self, points: Array, what: Array) -> Array:
        """Distances `[m]`, m, of points `[3, m]` from the axes of obstacles `[m]`."""
        gap = points - nearest_on_segment(points, self._start[:, what], self._end[:, what])
        return np.asarray(np.sqrt(np.square(gap).sum(axis=0)))

    def _chords(self, begin: Array, end: Array, what: Array) -> tuple[Array, Array]:
        """Least distance, m, along chords `[K, 3, m]` and how fast it grows from an end."""
        distance, rate = chord_to_point(begin, end, self._middle[:, what])
        long = np.flatnonzero(self._long[what])
        if len(long):
            shape = (len(begin), len(long))
            flat = [np.moveaxis(chords[:, :, long], 1, 0).reshape(3, -1) for chords in (begin, end)]
            axis = [
                np.broadcast_to(ends[:, None, what[long]], (3, *shape)).reshape(3, -1)
                for ends in (self._start, self._end)
            ]
            distance[:, long] = segment_to_segment(*flat, *axis).reshape(shape)
            rate[:, long] = self._capsule_rate(flat, axis, distance[:, long])
        return distance, rate

    @staticmethod
    def _capsule_rate(flat: list[Array], axis: list[Array], distance: Array) -> Array:
        """How fast the distance from a capsule's axis grows from the end where it is least.

        The distance from a convex set is convex along a chord: from an end where it is least it
        grows at least as fast as it begins to.
        """
        least = distance.ravel()
        out = np.zeros(len(least))
        for here, there in (flat, flat[::-1]):
            gap = here - nearest_on_segment(here, *axis)
            apart = np.sqrt(np.square(gap).sum(axis=0))
            slope = (gap * (there - here)).sum(axis=0) / np.where(apart > 0.0, apart, np.inf)
            out = np.where(apart <= least + 1e-12, np.maximum(out, slope), out)
        return np.asarray(out.reshape(distance.shape))

    def rows(self, q: Array, dq: Array, dt: float) -> tuple[Array, Array]:
        """-grad d . w <= d / dt for the nearest pairs, `[m, n]` and `[m]`, m at most `ROWS`.

        Linearised at q, with the obstacles where they were seen.
        """
        spheres = self.body.spheres
        centres = self.body.positions(q[None])[0][:, :spheres]
        apart = self._apart(centres) - self._half - self._keep - self._radius
        order = np.argsort(apart, axis=None)[:ROWS]
        which, what = np.divmod(order, max(len(self.names), 1))
        point = centres[:, which]
        gap = point - nearest_on_segment(point, self._start[:, what], self._end[:, what])
        distance = np.sqrt(np.square(gap).sum(axis=0))
        normal = gap / np.where(distance > 0.0, distance, np.inf)
        gradient = np.einsum("im,min->mn", normal, self.body.jacobians(q, which))
        left = distance - self._keep[which, what] - self._radius[what]
        return np.asarray(-gradient), np.asarray(left / dt)
