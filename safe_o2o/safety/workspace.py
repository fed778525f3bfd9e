"""Half-planes for tool and elbow: the workspace box, the table, and whatever else is flat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.safety.kinematics import Kinematics
from safe_o2o.types import Array

Box = tuple[Sequence[float] | Array, Sequence[float] | Array]
HalfPlane = tuple[Sequence[float] | Array, float]
"""Normal n `[3]` (of any length) and offset b, m, along n / |n|: points with n'p / |n| <= b."""


class Workspace:
    """The tool stays in a box, tool and elbow above the table and within every half-plane.

    Args:
        kinematics: with the frames (tool, elbow), in this order.
        low: lowest tool position x, y, z in the base frame, m.
        high: highest tool position, m.
        table_height: lowest z of tool and elbow, m.
        elbow: lowest and highest elbow position, m, if the elbow has a box of its own.
        half_planes: further half-planes, for tool and elbow.

    Raises:
        ConfigError: a box is empty, a number is not finite, a normal is zero, or the frames are not
            two.
    """

    name = "workspace"
    unit = "m"

    def __init__(
        self,
        kinematics: Kinematics,
        low: Sequence[float] | Array,
        high: Sequence[float] | Array,
        table_height: float = 0.0,
        *,
        elbow: Box | None = None,
        half_planes: Sequence[HalfPlane] = (),
    ) -> None:
        if len(kinematics.frames) != 2:
            raise ConfigError("needs the frames of tool and elbow", where="workspace")
        self.kinematics = kinematics
        self.low, self.high = _box(low, high, "workspace")
        self.table_height = float(table_height)
        if not np.isfinite(self.table_height):
            raise ConfigError(f"must be finite, got {table_height}", where="table_height")
        tool, none = np.eye(3), np.zeros((3, 3))
        # Rows (normal on the tool, normal on the elbow) and offsets of n'p <= b.
        normals: list[Array] = [np.hstack([-tool, none]), np.hstack([tool, none])]
        offsets: list[Array] = [-self.low, self.high]
        if elbow is not None:
            elbow_low, elbow_high = _box(*elbow, "elbow workspace")
            normals += [np.hstack([none, -tool]), np.hstack([none, tool])]
            offsets += [-elbow_low, elbow_high]
        for normal, offset in [((0.0, 0.0, -1.0), -self.table_height), *half_planes]:
            n, b = np.array(normal, np.float64), float(offset)
            length = float(np.linalg.norm(n)) if n.shape == (3,) else 0.0
            if not (0.0 < length < np.inf and np.isfinite(b)):
                raise ConfigError(f"needs a normal and an offset, got {normal}, {offset}",
                                  where="half_planes")  # fmt: skip
            normals.append(np.kron(np.eye(2), n / length))
            offsets.append(np.array([b, b]))
        self._normals: Array = np.vstack(normals)
        self._offsets: Array = np.concatenate(offsets)
        self._across = np.ascontiguousarray(self._normals.T)
        self.range = float((self.high - self.low).min() / 2.0)
        """Distance that counts as margin 1, m."""
        self._reach = float(kinematics.reach.max())

    def rows(self, q: Array, dq: Array, dt: float) -> tuple[Array, Array]:
        """-grad d . w <= d / dt for each of the m half-planes, `[m, n]` and `[m]`.

        Linearised at q: with curvature the true distance after the step differs by at most four
        times `bulge`.
        """
        jacobians = [self.kinematics.jacobian(q, frame) for frame in self.kinematics.frames]
        return np.asarray(self._normals @ np.vstack(jacobians)), self.clearance(q[None])[0] / dt

    def clearance(self, q: Array) -> Array:
        """Distances `[K, m]`, m, of tool and elbow to the half-planes at `[K, n]`."""
        points = self.kinematics.positions(q).reshape(len(q), 6)
        return np.asarray(self._offsets - points @ self._across)

    def bulge(self, step: Array) -> float:
        """How far a point may leave the chord between two configurations `step` apart, m.

        |p''| <= R (sum |dq|)^2 along the segment, R being the arm's reach, so the arc stays within
        R (sum |dq|)^2 / 8 of the chord, and within 4 t (1 - t) of that at the share t of the way.
        """
        total = float(np.abs(step).sum())
        return self._reach * total * total / 8.0


def _box(
    low: Sequence[float] | Array, high: Sequence[float] | Array, where: str
) -> tuple[Array, Array]:
    corners = np.array(low, np.float64), np.array(high, np.float64)
    ok = corners[0].shape == corners[1].shape == (3,) and bool(np.isfinite(corners).all())
    if not (ok and (corners[0] < corners[1]).all()):
        raise ConfigError(f"needs finite low < high in x, y, z, got {low} and {high}", where=where)
    return corners
