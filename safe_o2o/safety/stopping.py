"""How to stop after a set-point: along the path if the joints can, else straight on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
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
from safe_o2o.safety.stop import Stop
from safe_o2o.safety.stops_ahead import StopsAhead, motions
from safe_o2o.safety.sweep import JointDifferences
from safe_o2o.types import Array

LONGER = (1.0, 1.3, 1.7, 2.3, 3.2, 5.0)
"""Factors on the ticks of a stop along a straight line: how much of the joints' acceleration the
path itself takes up is not known before it is tried."""
LONGEST = 256
"""Ticks up to which the rest of the path counts as a stop."""
WAITS = (1, 2, 4, 8, 16, 32)
"""Ticks to go on as before until there is acceleration left to brake with along the path."""
SINGLY, TOGETHER = 2, 4
"""Ways to stop along the path that are looked at one by one, as mostly one of them will do; and of
the others as many in one go."""


class Stopping:
    """Finds stops that keep to the joints' speed, acceleration and jerk.

    Args:
        limits: the arm's limits.
        dt: control period, s.
        differences: the check.
    """

    def __init__(self, limits: RobotLimits, dt: float, differences: JointDifferences) -> None:
        self._acceleration, self._dt, self._differences = limits.acceleration, dt, differences
        self._ahead = StopsAhead(differences, dt, self._fastest)
        self._from_full: dict[int, Array] = {}  # stops of the clock by their ticks
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
        if rate == 1.0:
            ready = self._ahead.find(path, time, q, v, change)
            if ready is not None:
                return ready, ""
        first, dt = path.at(time), self._dt
        w = (first - q) / dt
        # A new pace is mostly refused for the tick itself, whatever comes after it.
        refusal = "" if rate == path.rate else self._differences.first_tick(w, v, change)
        if refusal:
            return None, refusal
        n = synchronous_ticks(w, self._acceleration, dt)
        ways = self._along(path, time, rate, n)
        looked = rate != path.rate
        for times in islice(ways, SINGLY):
            points = np.concatenate([q[None], first[None], path.positions(times)])
            refusal = self._differences.refusal(points, v, change)
            if not refusal:
                return Stop(first, points[2:], times, time), ""
            alone = "" if looked else self._differences.first_tick(w, v, change)
            if alone:
                return None, alone
            looked = True
        while some := list(islice(ways, TOGETHER)):
            several = motions(path, q, first, some)
            good = self._differences.within(several, v, change)
            if good.any():
                row = int(good.argmax())
                rest = several[row, 2 : 2 + len(some[row])]
                return Stop(first, rest, some[row], time), ""
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

    def _fastest(self, path: JointPath, time: float, v: Array) -> Array:
        """Path times `[K]` of the fastest stop along the path from full speed, v `[n]` there."""
        return next(
            self._along(path, time, 1.0, synchronous_ticks(v, self._acceleration, self._dt))
        )

    def _along(self, path: JointPath, time: float, rate: float, n: int) -> Iterator[Array]:
        """Path times of stops along the path, the fastest first, `[K]` each, ticks."""
        if not n:
            yield np.empty(0)
            return
        # The path itself ends at rest: going on as before is a stop if the end is near.
        left = ceil((path.end - time) / rate - 1e-9)
        for longer in LONGER:
            if 0 < left <= n * longer:
                yield self._onward(path, time, rate, left)
                return
            yield time + self._stop(rate, n * longer)
        # In a curve that takes all of a joint's acceleration nothing is left to brake with: then
        # first on to where the curve ends.
        stop = self._stop(rate, n * LONGER[1])
        for wait in WAITS:
            if wait < left:
                on = time + rate * np.arange(1.0, wait + 1.0)
                yield np.concatenate([on, np.minimum(on[-1] + stop, path.end)])
        if 0 < left <= LONGEST:
            yield self._onward(path, time, rate, left)

    @staticmethod
    def _onward(path: JointPath, time: float, rate: float, left: int) -> Array:
        """Path times `[left]` of going on as before to the path's end."""
        on: Array = time + rate * np.arange(1.0, min(left, LONGEST) + 1.0)
        return np.minimum(on, path.end)

    def _stop(self, rate: float, ticks: float) -> Array:
        """Path ticks `[K]` from now of a stop of the clock in about so many ticks."""
        hold = max(ceil(ticks) - self._ramps, 0)
        if rate != 1.0:
            return scalar_stop(rate, self._ramps, hold, 1.0)
        known = self._from_full.get(hold)
        if known is None:
            known = self._from_full[hold] = scalar_stop(1.0, self._ramps, hold, 1.0)
        return known
