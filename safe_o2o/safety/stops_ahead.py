"""The stops of the next ticks of an arm that is on its path and on time, found in one go.

Most ticks are like the one before: full speed along the path, and the fastest stop along it is
within the joints' limits. A policy period of them looked at together costs as much as a few of
them one by one, and says the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np

from safe_o2o.safety.path import JointPath
from safe_o2o.safety.stop import Stop
from safe_o2o.safety.sweep import JointDifferences
from safe_o2o.types import Array

LEAST, MOST = 8, 32
"""Ticks that are looked at in one go: a policy period, but no fewer and no more than these."""


class StopsAhead:
    """Stops after the ticks to come, for as long as each tick is what was expected.

    Args:
        differences: the check.
        dt: control period, s.
        fastest: path times `[K]` of the fastest stop along a path, from a path time, ticks, and
            the velocity there `[n]`, rad/s.
    """

    def __init__(
        self,
        differences: JointDifferences,
        dt: float,
        fastest: Callable[[JointPath, float, Array], Array],
    ) -> None:
        self._differences, self._dt, self._fastest = differences, dt, fastest
        self._path: JointPath | None = None
        self._looked = 0.0  # path time up to which nothing more is to be found out
        self._ready: dict[float, tuple[Array, Stop]] = {}  # with the state that it holds for

    def find(self, path: JointPath, time: float, q: Array, v: Array, change: Array) -> Stop | None:
        """The stop after the set-point at `time` on the path, where it was found ahead.

        Args:
            path: the path.
            time: ticks along it, the next tick at full speed.
            q: the last command `[n]`, rad.
            v: its velocity `[n]`, rad/s.
            change: change of velocity at it `[n]`, rad/s.
        """
        if path is not self._path:
            # Not yet: this tick already had the path to plan, and the next one to look along it.
            self._path, self._looked = path, time + 1.0
            self._ready.clear()
            return None
        if time > self._looked and path.rate == 1.0 and time == path.time + 1.0:
            self._look(path, time, q, v, change)
        found = self._ready.get(time)
        if found is None or not np.array_equal(found[0], np.array([q, v, change])):
            return None
        return found[1]

    def _look(self, path: JointPath, time: float, q: Array, v: Array, change: Array) -> None:
        count = min(max(ceil(path.per_step), LEAST), MOST, int(path.end - time) + 1)
        self._ready.clear()
        self._looked = time + max(count, 1) - 1.0
        if count < 1:
            return
        ticks = time + np.arange(count)
        first = path.positions(ticks)
        start = np.concatenate([q[None], first[:-1]])
        w = (first - start) / self._dt
        before = np.concatenate([v[None], w[:-1]])
        changes = np.concatenate([change[None], w[:-1] - before[:-1]])
        times = [self._fastest(path, float(at), speed) for at, speed in zip(ticks, w, strict=True)]
        points = motions(path, start, first, times)
        good = self._differences.within(points, before, changes)
        state = np.stack([start, before, changes], axis=1)
        for row in np.flatnonzero(good).tolist():
            at = float(ticks[row])
            stop = Stop(points[row, 1], points[row, 2 : 2 + len(times[row])], times[row], at)
            self._ready[at] = state[row], stop


def motions(path: JointPath, before: Array, first: Array, times: Sequence[Array]) -> Array:
    """M motions `[M, K, n]` of which each goes on along a path, filled up with their last points.

    Args:
        path: the path.
        before: the last commands, rad, `[M, n]` or one for all of them `[n]`.
        first: the set-points, rad, the same.
        times: M path times `[K_i]`, ticks, of what follows them.
    """
    rest = path.scattered(np.concatenate(times))
    points = np.empty((len(times), 2 + max(map(len, times)), first.shape[-1]))
    points[:, 0], points[:, 1] = before, first
    used = 0
    for row, each in zip(points, times, strict=True):
        end = 2 + len(each)
        row[2:end] = rest[used : used + len(each)]
        row[end:] = row[end - 1]
        used += len(each)
    return points
