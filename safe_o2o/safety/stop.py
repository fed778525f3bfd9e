"""A set-point and the way from it to rest: what the filter holds in hand at every tick."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from safe_o2o.types import Array


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
