"""How to stop after a set-point: along the path if the joints can, else straight on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np

from safe_o2o.safety.braking import (
    scalar_stop,
    smooth_stop,
    synchronous_brake,
    synchronous_ticks,
)
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.path import JointPath
from safe_o2o.safety.sweep import JointDifferences
from safe_o2o.types import Array

LONGER = (1.0, 1.3, 1.7, 2.3, 3.2, 5.0)
"""Factors on the ticks of a stop along a straight line: how much of the joints' acceleration the
path itself takes up is not known before it is tried."""
LONGEST = 256
"""Ticks up to which the rest of the path counts as a stop."""
WAITS = (1, 2, 4, 8, 16, 32)
"""Ticks to go on as before until there is acceleration left to brake with along the path."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A verified set-point and the set-points that lead from it to rest.

    Attributes:
        first: the set-point `[n]`, rad.
        q: what follows, one a tick `[K, n]`, rad; the last one is at rest.
        times: where on the path that is `[K]`, ticks; None where it leaves the path.
        time: where on the path `first` is, ticks.
    """

    first: Array
    q: Array
    times: Array | None
    time: float

    @classmethod
    def none(cls, n: int) -> Stop:
        """Nothing to stop: n joints at rest."""
        return cls(np.full(n, np.nan), np.empty((0, n)), None, 0.0)

    @property
    def rate(self) -> float:
        """Path ticks of its next tick."""
        return float(self.times[0] - self.time) if self.times is not None and len(self.q) else 0.0

    def rest(self) -> Stop:
        """What is left when its next set-point has been played."""
        times = self.times
        return Stop(
            self.q[0], self.q[1:],
            None if times is None else times[1:],
            self.time if times is None else float(times[0]),
        )  # fmt: skip


class Stopping:
    """Finds stops that keep to the joints' speed, acceleration and jerk.

    Args:
        limits: the arm's limits.
        dt: control period, s.
        differences: the check.
    """

    def __init__(self, limits: RobotLimits, dt: float, differences: JointDifferences) -> None:
        self._acceleration, self._dt, self._differences = limits.acceleration, dt, differences
        # Ticks in which the slowest joint's acceleration can be built up.
        ramp = float((limits.acceleration / limits.jerk).max()) / dt
        self._ramps = ceil(ramp - 1e-9) if differences.jerk_binds else 0

    def after(
        self,
        path: JointPath,
        time: float,
        rate: float,
        q: Array,
        v: Array,
        change: Array,
        leave: bool,
    ) -> tuple[Stop | None, str]:
        """A stop after the set-point at `time` on the path.

        Args:
            path: the path.
            time: ticks along it.
            rate: path ticks of the tick that leads there.
            q: the last command `[n]`, rad.
            v: its velocity `[n]`, rad/s.
            change: change of velocity at it `[n]`, rad/s.
            leave: whether the stop may leave the path where the joints cannot stop along it.

        Returns:
            The stop and `""`, or None and the limit that refused the last one tried.
        """
        first, dt = path.at(time), self._dt
        w = (first - q) / dt
        n, refusal = synchronous_ticks(w, self._acceleration, dt), ""
        for tried, times in enumerate(self._along(path, time, rate, n)):
            points = np.empty((len(times) + 2, len(q)))
            points[0], points[1], points[2:] = q, first, path.positions(times)
            refusal = self._differences.refusal(points, v, change)
            if not refusal:
                return Stop(first, points[2:], times, time), ""
            alone = "" if tried else self._differences.first_tick(w, v, change)
            if alone:  # whatever comes after it
                return None, alone
        return self.straight(first, time, q, v, change) if leave else (None, refusal)

    def straight(
        self, first: Array, time: float, q: Array, v: Array, change: Array
    ) -> tuple[Stop | None, str]:
        """A stop after the set-point `first` `[n]`, off the path; arguments as for `after`.

        A brake along the line of its velocity, or where the jerk forbids that as fast as it allows.
        """
        dt, two = self._dt, np.array([q, first])
        w = (first - q) / dt
        refusal = self._differences.first_tick(w, v, change)
        n = synchronous_ticks(w, self._acceleration, dt)
        if refusal:
            return None, refusal
        if not self._differences.jerk_binds:
            rest = synchronous_brake(first, w, n, dt)
            refusal = self._differences.refusal(np.concatenate([two, rest]), v, change)
            return (None, refusal) if refusal else (Stop(first, rest, None, time), "")
        for longer in LONGER:
            ticks = max(ceil(n * longer), self._ramps) + self._ramps
            rest = smooth_stop(first, w, (w - v) / dt, ticks, dt)
            refusal = self._differences.refusal(np.concatenate([two, rest]), v, change)
            if not refusal:
                return Stop(first, rest, None, time), ""
        return None, refusal

    def _along(self, path: JointPath, time: float, rate: float, n: int) -> Iterator[Array]:
        """Path times of stops along the path, the fastest first, `[K]` each, ticks."""
        if not n:
            yield np.empty(0)
            return
        # The path itself ends at rest: going on as before is a stop if the end is near.
        left = ceil((path.end - time) / rate - 1e-9)
        onward = time + rate * np.arange(1.0, min(left, LONGEST) + 1.0)
        for longer in LONGER:
            if 0 < left <= n * longer:
                yield np.minimum(onward, path.end)
                return
            hold = max(ceil(n * longer) - self._ramps, 0)
            yield time + scalar_stop(rate, self._ramps, hold, 1.0)
        # In a curve that takes all of a joint's acceleration nothing is left to brake with: then
        # first on to where the curve ends.
        hold = max(ceil(n * LONGER[1]) - self._ramps, 0)
        stop = scalar_stop(rate, self._ramps, hold, 1.0)
        for wait in WAITS:
            if wait < left:
                on = onward[:wait]
                yield np.concatenate([on, np.minimum(on[-1] + stop, path.end)])
        if 0 < left <= LONGEST:
            yield np.minimum(onward, path.end)
