"""What can be said of a path once and for all, so that a tick need not say it again.

Wherever the arm slows down or stops on its path, it stays on it. One look at the path therefore
settles most limits for most of it; only where it leaves a doubt is the very motion that would be
sent looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, inf

import numpy as np

from safe_o2o.interfaces import Constraint, SettledByPath
from safe_o2o.safety.motion import Motion
from safe_o2o.safety.path import JointPath
from safe_o2o.types import Array

LOOSE = 2.0
"""Sags that are allowed for: a chord between any two of its points, at most a tick apart, may lie
one off the path, and the path one off the chords between its ticks."""
BLOCK = 16
"""Ticks that are looked at in one go, beyond those asked for, a policy period at least: most paths
are replaced long before their end, and nobody waits for a look at the rest."""


class PathConstraints:
    """Constraints by what a look at a path can say of them.

    Args:
        constraints: all of them.

    Attributes:
        all: all of them, those that look at each motion anyway first: they mostly refuse first.
        always: those alone.
        settled: those that do so only where the path leaves a doubt.
        along: how each of these settles a piece of a path by itself; None where `swept` says it.
    """

    def __init__(self, constraints: Sequence[Constraint]) -> None:
        self.always: list[Constraint] = []
        self.settled: list[Constraint] = []
        self.along: list[Callable[[JointPath, Motion], float | None] | None] = []
        for constraint in constraints:
            along = constraint.along if isinstance(constraint, SettledByPath) else None
            if along is None and not constraint.static:
                self.always.append(constraint)
            else:
                self.settled.append(constraint)
                self.along.append(along)
        self.all = [*self.always, *self.settled]


class PathCheck:
    """The constraints along a path, looked at as far as anybody asks.

    Args:
        path: the path.
        constraints: all of them.
        dt: control period, s.
        v: velocity with which its start was reached `[n]`, rad/s.
    """

    def __init__(self, path: JointPath, constraints: PathConstraints, dt: float, v: Array) -> None:
        self._path, self._constraints, self._dt, self._before = path, constraints, dt, v
        self._count, self._known = max(ceil(path.end - 1e-9), 1), 0
        self._block = max(BLOCK, ceil(path.per_step))
        rows = len(constraints.settled)
        self._doubt = np.ones((rows, self._count), bool)
        self._beyond = [inf] * rows
        self._margin = np.ones(self._count)
        self._clear = 0  # up to which tick nothing at all is in doubt

    def look(self, before: float, times: Array) -> tuple[str, float, list[Constraint]]:
        """What is settled about going from path time `before` to `times` `[K]`.

        Args:
            before: ticks, where the arm is.
            times: ticks, increasing, one a control tick.

        Returns:
            Who objects, or `""`; the margin to what is settled, and who has to look at the motion
            itself.
        """
        end = float(times[-1])
        last = min(ceil(end - 1e-9), self._count)
        first = min(int(before), last - 1) if last else 0
        if last <= first:
            return "", 1.0, self._constraints.always
        if last > self._known:
            self._extend(min(last + self._block, self._count))
        margin = float(self._margin[first:last].min())
        if last <= self._clear:
            return "", margin, self._constraints.always
        left = []
        for row in np.flatnonzero(self._doubt[:, first:last].any(axis=1)):
            if end >= self._beyond[row]:
                return self._constraints.settled[row].name, 0.0, []
            left.append(self._constraints.settled[row])
        return "", margin, left + self._constraints.always

    def _extend(self, last: int) -> None:
        """Look on, up to tick `last`."""
        first, self._known = self._known, last
        q = self._path.positions(np.arange(first, last + 1.0))
        motion = Motion(q, self._dt, self._before, loose=LOOSE)
        self._before = motion.velocity[-1]
        for row, along in enumerate(self._constraints.along):
            if along is None:
                self._sweep(row, first, motion)
                continue
            least = along(self._path, motion)
            if least is not None:
                self._settle(row, first, np.full(last - first, least))
        doubt = self._doubt[:, first:last].any(axis=0)
        if self._clear == first:
            self._clear = first + int(doubt.argmax()) if doubt.any() else last

    def _sweep(self, row: int, first: int, motion: Motion) -> None:
        constraint = self._constraints.settled[row]
        start, between = (np.asarray(x, np.float64) for x in constraint.swept(motion))
        if start.ndim != 1 or between.shape != (len(motion.steps), len(start)):
            return
        if not (start >= 0.0).all():
            return  # from outside only a look at each single motion can tell whether it leads back
        if not len(start):
            self._settle(row, first, np.full(len(motion.steps), constraint.range))
            return
        least = between.min(axis=1)
        self._settle(row, first, least)
        if not (least >= 0.0).all() and self._beyond[row] == inf:
            through = ~(np.asarray(constraint.clearance(motion.q)) >= 0.0).all(axis=1)
            if through.any():
                self._beyond[row] = float(first + through.argmax())

    def _settle(self, row: int, first: int, least: Array) -> None:
        """Tick by tick from `first`: the least clearance `[K]` of one constraint."""
        clear = least >= 0.0  # in the positive: NaN is not clear
        ticks = slice(first, first + len(least))
        self._doubt[row, ticks] = ~clear
        share = np.where(clear, least / self._constraints.settled[row].range, 1.0)
        self._margin[ticks] = np.minimum(self._margin[ticks], share)
