"""What can be said of a path once and for all, so that a tick need not say it again.

Wherever the arm slows down or stops on its path, it stays on it. Limits that do not change with
time therefore need one look at the whole path; a tick only asks how far along it is proven clear.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf

import numpy as np

from safe_o2o.interfaces import Constraint
from safe_o2o.safety.motion import Motion
from safe_o2o.safety.path import JointPath
from safe_o2o.safety.tool_speed import ToolSpeed
from safe_o2o.types import Array

LOOSE = 2.0
"""Sags that are allowed for: a chord between any two of its points, at most a tick apart, may lie
one off the path, and the path one off the chords between its ticks."""


class PathCheck:
    """The static constraints along a path.

    Args:
        path: the path.
        constraints: those that do not change with time.
        speed: cap on the tool's speed, which a slower clock keeps as well.
        dt: control period, s.
        v: velocity with which its start was reached `[n]`, rad/s.

    Attributes:
        inside: whether it starts inside all limits. From outside only a look at each single motion
            can tell whether it leads back.
        until: path time up to which it is clear, ticks.
        name: the constraint that ends it there.
    """

    def __init__(
        self,
        path: JointPath,
        constraints: Sequence[Constraint],
        speed: Sequence[ToolSpeed],
        dt: float,
        v: Array,
    ) -> None:
        count = max(ceil(path.end - 1e-9), 1)
        motion = Motion(path.positions(np.arange(count + 1.0)), dt, v, loose=LOOSE)
        self.inside, self.until, self.name = True, inf, ""
        self._margin = np.ones(count)
        for constraint in constraints:
            start, between = (np.asarray(x, np.float64) for x in constraint.swept(motion))
            if start.ndim != 1 or between.shape != (count, len(start)):
                self.inside, self.name = False, constraint.name
                return
            if not len(start):
                continue
            least = between.min(axis=1)
            self.inside = self.inside and bool((start >= 0.0).all())
            bad = np.flatnonzero(~(least >= 0.0))  # in the positive: NaN is not clear
            if len(bad) and bad[0] < self.until:
                self.until, self.name = float(bad[0]), constraint.name
            self._margin = np.minimum(self._margin, least / constraint.range)
        # Rate at which each tick of the path would reach the cap.
        self._rate = np.full(count, inf)
        for cap in speed:
            full = cap.speeds(motion)
            self._rate = np.minimum(self._rate, cap.cap / np.where(full > 0.0, full, 1e-12))
        # At full rate or slower nothing more is to be said of a tool that never reaches the cap.
        self._speed_name = speed[0].name if speed and not (self._rate >= 1.0).all() else ""
        if speed and not self._speed_name:
            self._margin = np.minimum(self._margin, 1.0 - 1.0 / self._rate)

    def refusal(self, before: float, times: Array) -> tuple[str, float]:
        """Who objects to going from path time `before` to `times` `[K]`, or `""`; and the margin.

        Args:
            before: ticks, where the arm is.
            times: ticks, increasing, one a control tick.
        """
        last = min(ceil(float(times[-1]) - 1e-9), len(self._margin))
        if not last <= self.until:
            return self.name, 0.0
        first = min(int(before), last - 1) if last else 0
        margin = float(self._margin[first:last].min()) if last > first else 1.0
        share = 1.0
        if self._speed_name:
            ticks = np.concatenate([[before], times])
            rates = ticks[1:] - ticks[:-1]
            # A tick of the clock spans at most two ticks of the path.
            begin = np.minimum(ticks[:-1].astype(int), len(self._rate) - 1)
            end = np.minimum(np.ceil(ticks[1:] - 1e-9).astype(int), len(self._rate)) - 1
            allowed = np.minimum(self._rate[begin], self._rate[np.maximum(end, begin)])
            if not (rates <= allowed).all():
                return self._speed_name, 0.0
            share = float((1.0 - rates / allowed).min())
        return "", min(margin, share)
