"""Half-planes for tool and elbow: the workspace box, the table, and whatever else is flat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.safety.body import Body
from safe_o2o.safety.motion import Motion, below_chord
from safe_o2o.types import Array

Box = tuple[Sequence[float] | Array, Sequence[float] | Array]
HalfPlane = tuple[Sequence[float] | Array, float]
"""Normal n `[3]` (of any length) and offset b, m, along n / |n|: points with n'p / |n| <= b."""


class Workspace:
    """The tool stays in a box, tool and elbow above the table and within every half-plane.

    Args:
        body: the arm, with the frames (tool, elbow), in this order.
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
    static = True
    exact_rows = False

    def __init__(
        self,
        body: Body,
        low: Sequence[float] | Array,
        high: Sequence[float] | Array,
        table_height: float = 0.0,
        *,
        elbow: Box | None = None,
        half_planes: Sequence[HalfPlane] = (),
    ) -> None:
        if len(body.frames) != 2:
            raise ConfigError("needs the frames of tool and elbow", where="workspace")
        self.body = body
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
        self._reach = np.maximum(*(body.reach_of(frame) for frame in body.frames))

    def rows(self, q: Array, dq: Array, dt: float) -> tuple[Array, Array]:
        """-grad d . w <= d / dt for each of the m half-planes, `[m, n]` and `[m]`, linearised."""
        first = self.body.spheres
        jacobians = self.body.jacobians(q, np.array([first, first + 1])).reshape(6, -1)
        return np.asarray(self._normals @ jacobians), self.clearance(q[None])[0] / dt

    def fault(self, now: float) -> str:
        """Nothing here can be out of date."""
        return ""

    def clearance(self, q: Array) -> Array:
        """Distances `[K, m]`, m, of tool and elbow to the half-planes at `[K, n]`."""
        return self._distances(self.body.positions(q))

    def swept(self, motion: Motion) -> tuple[Array, Array]:
        """Least distance, at the start `[m]` and in each tick `[K, m]`, m."""
        distances = self._distances(motion.positions(self.body))
        return distances[0], below_chord(distances, motion.sag(self._reach))

    def _distances(self, positions: Array) -> Array:
        points = positions[:, :, self.body.spheres :].transpose(0, 2, 1).reshape(-1, 6)
        return np.asarray(self._offsets - points @ self._across)


def _box(
    low: Sequence[float] | Array, high: Sequence[float] | Array, where: str
) -> tuple[Array, Array]:
    corners = np.array(low, np.float64), np.array(high, np.float64)
    ok = corners[0].shape == corners[1].shape == (3,) and bool(np.isfinite(corners).all())
    if not (ok and (corners[0] < corners[1]).all()):
        raise ConfigError(f"needs finite low < high in x, y, z, got {low} and {high}", where=where)
    return corners
