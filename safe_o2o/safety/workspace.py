"""Workspace box for the tool, and the table plane for tool and elbow."""

from __future__ import annotations

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.safety.kinematics import Kinematics
from safe_o2o.types import Array


class Workspace:
    """The tool stays in a box, the elbow above the table.

    Args:
        kinematics: with the frames (tool, elbow), in this order.
        low: lowest tool position x, y, z in the base frame, m.
        high: highest tool position, m.
        table_height: lowest z of the elbow, m.

    Raises:
        ConfigError: the box is empty, not finite, or the frames are not two.
    """

    name = "workspace"
    unit = "m"

    def __init__(
        self, kinematics: Kinematics, low: Array, high: Array, table_height: float = 0.0
    ) -> None:
        self.kinematics = kinematics
        self.low, self.high = np.array(low, np.float64), np.array(high, np.float64)
        self.table_height = float(table_height)
        ok = self.low.shape == self.high.shape == (3,) and (self.low < self.high).all()
        if not (ok and np.isfinite([*self.low, *self.high, self.table_height]).all()):
            raise ConfigError(
                f"needs finite low < high in x, y, z, got {low} and {high}", where="workspace"
            )
        if len(kinematics.frames) != 2:
            raise ConfigError("needs the frames of tool and elbow", where="workspace")
        self.range = float((self.high - self.low).min() / 2.0)
        """Distance that counts as margin 1, m."""
        self._reach = float(kinematics.reach.max())

    def _distances(self, points: Array) -> Array:
        """Distances `[K, 7]` of tool and elbow `[K, 2, 3]` to the planes, >= 0 inside."""
        tool, elbow = points[:, 0], points[:, 1]
        return np.concatenate(
            [tool - self.low, self.high - tool, elbow[:, 2:] - self.table_height], axis=1
        )

    def rows(self, q: Array, dq: Array, dt: float) -> tuple[Array, Array]:
        """-grad d . w <= d / dt for each of the seven planes, `[7, n]` and `[7]`.

        Linearised at q: with curvature the true distance after the step differs by at most `bulge`.
        """
        frames = self.kinematics.frames
        tool = self.kinematics.jacobian(q, frames[0])
        elbow = self.kinematics.jacobian(q, frames[1])
        distance = self._distances(self.kinematics.positions(q[None]))[0]
        return np.vstack([-tool, tool, -elbow[2:]]), np.asarray(distance / dt)

    def clearance(self, q: Array) -> Array:
        """Distance to the nearest plane `[K]`, m, of configurations `[K, n]`."""
        return np.asarray(self._distances(self.kinematics.positions(q)).min(-1))

    def bulge(self, step: Array) -> float:
        """How far a point may leave the chord between two configurations `step` apart, m.

        |p''| <= R (sum |dq|)^2 along the segment, so the arc stays within R (sum |dq|)^2 / 8.
        """
        total = float(np.abs(step).sum())
        return self._reach * total * total / 8.0
