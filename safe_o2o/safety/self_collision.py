"""The arm does not touch itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.safety.body import Body
from safe_o2o.safety.motion import Motion, chord_to_point, deepest
from safe_o2o.types import Array

ROWS = 8
"""How many of the nearest pairs get a linear row."""


OWN_MARGIN = 0.005
"""Distance to keep unless told otherwise, m."""


class SelfCollision:
    """Spheres of different links stay apart, but for pairs of frames that are not watched.

    Args:
        body: the arm.
        skip: pairs of frames that are not watched.
        margin: distance to keep, m.
        margins: other margins for pairs of frames, m; negative where a task means contact.

    Raises:
        ConfigError: a number is out of range, or a frame has no capsules.
    """

    name = "self_collision"
    unit = "m"
    static = True
    exact_rows = False
    range = 0.05
    """Distance that counts as margin 1, m."""

    def __init__(
        self,
        body: Body,
        skip: Sequence[tuple[str, str]] = (),
        *,
        margin: float = OWN_MARGIN,
        margins: Mapping[tuple[str, str], float] | None = None,
    ) -> None:
        if not 0.0 <= margin < inf:
            raise ConfigError(f"must be finite and not negative, got {margin}", where="margin")
        owner = [body.capsules[i].frame for i in body.owner]
        special = {frozenset(pair): value for pair, value in (margins or {}).items()}
        named = [*skip, *(margins or {})]
        unknown = sorted({frame for pair in named for frame in pair} - set(owner))
        if unknown or not all(isfinite(value) for value in special.values()):
            raise ConfigError(f"no capsules on {unknown}, or no number in {margins}", where="pairs")
        skipped = {frozenset(pair) for pair in skip}
        first, second = np.triu_indices(body.spheres, 1)
        pairs = [frozenset((owner[a], owner[b])) for a, b in zip(first, second, strict=True)]
        watched = np.array([len(pair) == 2 and pair not in skipped for pair in pairs], bool)
        self.body, self.margin = body, margin
        self._first, self._second = first[watched], second[watched]
        keep = np.array([special.get(pair, margin) for pair in pairs], np.float64)[watched]
        self._keep = keep + body.radius[self._first] + body.radius[self._second]
        self._reach = 2.0 * body.reach
        self.exemptions = (
            *(f"{a} and {b} are not watched" for a, b in sorted(set(skip))),
            *(f"{a} and {b} keep {m:g} m" for (a, b), m in (margins or {}).items()),
        )
        """What is not held, or not with the margin, one line each."""

    def fault(self, now: float) -> str:
        """Nothing here can be out of date."""
        return ""

    def clearance(self, q: Array) -> Array:
        """Distances beyond the margin, `[K, P]`, m, of all watched pairs at `[K, n]`."""
        centres = self.body.positions(q)
        apart = centres[:, :, self._first] - centres[:, :, self._second]
        return np.asarray(np.sqrt(np.square(apart).sum(axis=1)) - self._keep)

    def swept(self, motion: Motion) -> tuple[Array, Array]:
        """Least distance beyond the margin, at the start `[m]` and in each tick `[K, m]`, m.

        For the m pairs that come within `range` of each other at all.
        """
        centres = motion.positions(self.body)[:, :, : self.body.spheres]
        first = centres[0]
        sag = motion.sag(self._reach)
        moved = np.sqrt(np.square(centres - first).sum(axis=1).max(axis=0))
        gap = first[:, self._first] - first[:, self._second]
        start = np.sqrt(np.square(gap).sum(axis=0)) - self._keep
        moved_by = moved[self._first] + moved[self._second] + sag.max()
        near = np.flatnonzero(start - moved_by < self.range)
        if not len(near):
            return np.empty(0), np.empty((len(motion.steps), 0))
        apart = centres[:, :, self._first[near]] - centres[:, :, self._second[near]]
        distance, rate = chord_to_point(apart[:-1], apart[1:], np.zeros((3, len(near))))
        return start[near], distance - deepest(rate, sag[:, None]) - self._keep[near]

    def rows(self, q: Array, dq: Array, dt: float) -> tuple[Array, Array]:
        """-grad d . w <= d / dt for the nearest pairs, `[m, n]` and `[m]`, m at most `ROWS`."""
        centres = self.body.positions(q[None])[0]
        gap = centres[:, self._first] - centres[:, self._second]
        distance = np.sqrt(np.square(gap).sum(axis=0))
        near = np.argsort(distance - self._keep)[:ROWS]
        normal = gap[:, near] / np.where(distance[near] > 0.0, distance[near], np.inf)
        jacobian = self.body.jacobians(q, self._first[near]) - self.body.jacobians(
            q, self._second[near]
        )
        gradient = np.einsum("im,min->mn", normal, jacobian)
        return np.asarray(-gradient), np.asarray((distance - self._keep)[near] / dt)
