"""Joint position limits as a constraint."""

from __future__ import annotations

import numpy as np

from safe_o2o.safety.braking import largest_velocity
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.motion import Motion
from safe_o2o.safety.path import JointPath
from safe_o2o.safety.sweep import ROUNDING
from safe_o2o.types import Array


class JointLimits:
    """Joints stay between `q_low` and `q_high`, and can always still stop there.

    Args:
        limits: the arm's limits.
    """

    name = "joint_limits"
    unit = "rad"
    # A path may turn back between two of its ticks, beyond both: unless all of it is well inside
    # (`along`), what is sent is looked at itself.
    static = False
    exact_rows = True

    def __init__(self, limits: RobotLimits) -> None:
        self.limits = limits
        self._n = len(limits.joint_names)
        self._rows = np.vstack([np.eye(self._n), -np.eye(self._n)])
        self.range = float((limits.q_high - limits.q_low).min() / 2.0)
        """Distance that counts as margin 1, rad."""

    def rows(self, q: Array, dq: Array, dt: float) -> tuple[Array, Array]:
        """Box on the next velocity w, `[2n, n]` and `[2n]`, exact for set-points (6.1).

        Acceleration, speed and the largest velocity that can still stop before the limit.
        """
        limits = self.limits
        up = largest_velocity(limits.q_high - q, limits.acceleration, dt)
        down = largest_velocity(q - limits.q_low, limits.acceleration, dt)
        change = limits.acceleration * dt
        high = np.minimum(np.minimum(up, limits.velocity), dq + change)
        low = np.maximum(np.maximum(-down, -limits.velocity), dq - change)
        return self._rows, np.concatenate([high, -low])

    def fault(self, now: float) -> str:
        """Nothing here can be out of date."""
        return ""

    def clearance(self, q: Array) -> Array:
        """Distances `[K, 2n]` to the lower and upper joint limits, rad, at `[K, n]`."""
        limits = self.limits
        return np.concatenate([q - limits.q_low, limits.q_high - q], axis=1)

    def along(self, path: JointPath, motion: Motion) -> float | None:
        """Least distance of all points of the path, rad; None where one may be outside."""
        low, high = path.hull()
        least = float(np.minimum(low - self.limits.q_low, self.limits.q_high - high).min())
        return least if least >= ROUNDING else None

    def swept(self, motion: Motion) -> tuple[Array, Array]:
        """Least distance, at the start `[2n]` and in each tick `[K, 2n]`, rad."""
        distances = self.clearance(motion.q)
        return distances[0], np.minimum(distances[:-1], distances[1:])
