"""The arm as spheres: where every part of it is, for many configurations at once.

Links are described by capsules (one radius about one line segment, fixed to a frame). Each capsule
is covered by spheres that contain it, because distances between spheres are the cheapest there are
and a certified motion has to be looked at all the way to its standstill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil
from typing import Any

import numpy as np
import yaml

from safe_o2o.errors import ConfigError
from safe_o2o.safety.kinematics import chain_reach, robot_model
from safe_o2o.safety.shipped import shipped_text
from safe_o2o.safety.urdf import collision_capsules
from safe_o2o.types import Array

SPACING = 0.7
"""Distance of neighbouring spheres in radii of the capsule: they are 1.06 times as thick as it."""


@dataclass(frozen=True)
class Capsule:
    """All points within `radius` of a segment that is fixed to a frame.

    Attributes:
        frame: name of the frame.
        start: one end of the segment `[3]` in that frame, m.
        end: the other end `[3]`, m; equal to `start` for a ball.
        radius: m.

    Raises:
        ConfigError: a number is not finite or the radius is not positive.
    """

    frame: str
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float

    def __post_init__(self) -> None:
        ends = np.array([self.start, self.end], np.float64)
        if ends.shape != (2, 3) or not np.isfinite(ends).all() or not 0.0 < self.radius < np.inf:
            raise ConfigError(
                f"needs two finite ends and a positive radius, got {self.start}, {self.end}, "
                f"{self.radius}",
                where=f"capsule on {self.frame}",
            )

    def spheres(self, spacing: float = SPACING) -> tuple[Array, float]:
        """Centres `[S, 3]`, m, and the one radius, m, of spheres that together contain it.

        The sphere of radius R about each of two centres h apart contains all between them that lies
        within r of their line if R^2 >= r^2 + (h / 2)^2.
        """
        start, end = np.array(self.start), np.array(self.end)
        length = float(np.linalg.norm(end - start))
        pieces = ceil(length / (spacing * self.radius) - 1e-9)
        share = np.linspace(0.0, 1.0, pieces + 1) if pieces else np.zeros(1)
        step = length / pieces if pieces else 0.0
        centres = start + share[:, None] * (end - start)
        return centres, float(np.hypot(self.radius, 0.5 * step))


@dataclass(frozen=True)
class Geometry:
    """The body of an arm.

    Attributes:
        robot: name of the arm; where it is no shipped one, `carrying` needs its URDF here.
        capsules: what its links occupy.
        skip: pairs of frames whose distance is not watched, because neighbours always touch or
            because the joint limits keep them apart.
        source: where the numbers come from.
    """

    robot: str
    capsules: tuple[Capsule, ...]
    skip: tuple[tuple[str, str], ...] = ()
    source: str = ""

    @classmethod
    def load(cls, robot: str) -> Geometry:
        """The shipped body of an arm.

        Raises:
            UnknownNameError: no body is shipped under this name.
            ConfigError: the file is incomplete or out of range.
        """
        data = yaml.safe_load(shipped_text("robot_geometry", robot, ".yaml"))
        return cls.from_mapping(data, where=f"{robot}.yaml")

    def carrying(self, load: Sequence[Capsule]) -> Geometry:
        """The arm with something in its hand, or mounted on a link.

        The load is not watched against what moves with it, nor against what that is not watched
        against: the fingers touch what they hold.

        Raises:
            ConfigError: the arm has no such frame.
        """
        if not load:
            return self
        model = robot_model(self.robot)
        joint = {frame.name: frame.parentJoint for frame in model.frames}
        skip = list(self.skip)
        for name in dict.fromkeys(capsule.frame for capsule in load):
            if name not in joint:
                raise ConfigError(
                    f"has no frame {name!r}", where=str(model.name), todo=f"known: {sorted(joint)}"
                )
            carriers = {c.frame for c in self.capsules if joint[c.frame] == joint[name]} - {name}
            skip += [(name, carrier) for carrier in sorted(carriers)]
            for pair in self.skip:
                for carrier, other in (pair, pair[::-1]):
                    if carrier in carriers and other not in carriers:
                        skip.append((name, other))
        return replace(self, capsules=(*self.capsules, *load), skip=tuple(skip))

    @classmethod
    def from_urdf(cls, text: str, skip: Sequence[tuple[str, str]] = ()) -> Geometry:
        """What the URDF's `collision` elements say, each shape in a capsule that contains it.

        Pairs of links that are fixed to each other, or joined by one joint, are not watched.

        Args:
            text: the URDF.
            skip: further pairs of links that are not watched.

        Raises:
            ConfigError: the text is no URDF, a link has a mesh instead of a box, a cylinder or a
                sphere, or there is nothing at all.
        """
        model = robot_model(text)
        found = tuple(
            Capsule(link, _point(start), _point(end), radius)
            for link, start, end, radius in collision_capsules(text)
        )
        joint = {c.frame: model.frames[model.getFrameId(c.frame)].parentJoint for c in found}
        near = [
            (a, b)
            for a, b in combinations(joint, 2)
            if joint[a] == joint[b]
            or joint[a] == model.parents[joint[b]]
            or joint[b] == model.parents[joint[a]]
        ]
        return cls(str(model.name), found, (*near, *skip), "collision elements of the URDF")

    @classmethod
    def from_mapping(cls, data: Any, *, where: str) -> Geometry:
        """A body as a settings file holds it.

        Raises:
            ConfigError: a field is missing or out of range.
        """
        try:
            return cls(
                robot=str(data["robot"]),
                capsules=tuple(
                    Capsule(
                        str(entry["frame"]),
                        _point(entry["start"]),
                        _point(entry.get("end", entry["start"])),
                        float(entry["radius"]),
                    )
                    for entry in data["capsules"]
                ),
                skip=tuple((str(a), str(b)) for a, b in data.get("skip", ())),
                source=str(data["source"]),
            )
        except KeyError as error:
            raise ConfigError(f"lacks {error.args[0]!r}", where=where) from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"is no body ({error})", where=where) from error


class Body:
    """Spheres and points that are fixed to the links of an arm with n joints.

    Args:
        robot: name of a shipped arm, or the text of a URDF.
        capsules: what its links occupy.
        frames: frames whose origins are wanted as well (tool, elbow).

    Attributes:
        radius: radii `[S]`, m, of the spheres.
        owner: index `[S]` of the capsule that each sphere belongs to.
        reach: upper bound `[n]`, m, on the distance of any sphere's centre or frame from joint i's
            axis.

    Raises:
        UnknownNameError: no such arm.
        ConfigError: the arm has no such frame, or a joint that does not turn about an axis.
    """

    def __init__(
        self, robot: str, capsules: Sequence[Capsule] = (), frames: Sequence[str] = ()
    ) -> None:
        self.frames, self.capsules = tuple(frames), tuple(capsules)
        self._model = model = robot_model(robot)
        self.n: int = model.nv
        self._chain = _Chain(model, str(model.name))
        radii: list[float] = []
        owner: list[int] = []
        columns: list[Array] = []
        for index, capsule in enumerate(self.capsules):
            points, radius = capsule.spheres()
            for point in points:
                columns.append(self._chain.column(capsule.frame, point))
                radii.append(radius)
                owner.append(index)
        columns += [self._chain.column(frame, np.zeros(3)) for frame in self.frames]
        self.radius: Array = np.array(radii)
        self.owner: Array = np.array(owner, int)
        self._columns = np.ascontiguousarray(np.array(columns).T)
        self.reach: Array = chain_reach(model, map(_fixed_point, columns))

    def reach_of(self, frame: str) -> Array:
        """`reach` of one frame's origin alone `[n]`, m."""
        return chain_reach(self._model, [_fixed_point(self._chain.column(frame, np.zeros(3)))])

    @property
    def spheres(self) -> int:
        """How many spheres S."""
        return len(self.radius)

    def positions(self, q: Array) -> Array:
        """Positions `[K, 3, S + F]`, m: centres of the spheres, then the frames, at `[K, n]`."""
        placed = self._chain.placements(q)
        return np.asarray(placed.reshape(-1, placed.shape[-1]) @ self._columns).reshape(
            len(q), 3, -1
        )

    def jacobians(self, q: Array, points: Array) -> Array:
        """Linear Jacobians `[m, 3, n]`, m/rad, of m of the points of `positions`, at `[n]`."""
        placed = self._chain.placements(q[None])[0]
        return self._chain.jacobians(placed, self._columns[:, points])


class _Chain:
    """Forward kinematics of all joints for many configurations, in a few matrix products.

    pinocchio answers one configuration a call, which costs more in crossing from Python than in
    computing; a stop of thirty ticks needs thirty. The constants are read from its model, and a
    test holds the two against each other.
    """

    def __init__(self, model: Any, robot: str) -> None:
        self._model = model
        self.n: int = model.nv
        if model.nq != model.nv or any(joint.nv != 1 for joint in list(model.joints)[1:]):
            raise ConfigError("needs joints that turn about one axis, with an end", where=robot)
        # Placement of joint i in its parent at angle a: P (I + sin a A + (1 - cos a) A^2).
        self._fixed, self._sine, self._versine = (np.zeros((self.n, 4, 4)) for _ in range(3))
        self._axis = np.zeros((self.n, 3))
        self._parent = [int(parent) - 1 for parent in list(model.parents)[1:]]
        for i in range(self.n):
            placement = model.jointPlacements[i + 1]
            motion = model.joints[i + 1].createData().S.ravel()
            axis = motion[3:]
            if np.abs(motion[:3]).max() > 0.0 or abs(float(axis @ axis) - 1.0) > 1e-9:
                raise ConfigError("needs joints that turn about one axis", where=robot)
            cross = np.cross(np.eye(3), axis)  # cross @ v is axis x v
            self._fixed[i] = placement.homogeneous
            self._sine[i, :3, :3] = placement.rotation @ cross
            self._versine[i, :3, :3] = placement.rotation @ cross @ cross
            self._axis[i] = axis

    def column(self, frame: str, point: Array) -> Array:
        """What `placements` is multiplied with to give the position of a point of a frame."""
        model = self._model
        if not model.existFrame(frame):
            known = sorted({f.name for f in model.frames})
            raise ConfigError(f"the arm has no frame {frame!r}", todo=f"known: {known}")
        found = model.frames[model.getFrameId(frame)]
        joint = int(found.parentJoint)
        local = found.placement.act(np.asarray(point, np.float64))
        column = np.zeros(4 * (self.n + 1))
        column[4 * joint : 4 * joint + 3], column[4 * joint + 3] = local, 1.0
        return column

    def placements(self, q: Array) -> Array:
        """Rotations and translations of base and joints, `[K, 3, 4 (n + 1)]`."""
        sine, versine = np.sin(q)[:, :, None, None], 1.0 - np.cos(q)[:, :, None, None]
        steps = self._fixed + sine * self._sine + versine * self._versine
        out = np.empty((len(q), self.n + 1, 3, 4))
        out[:, 0] = np.eye(3, 4)
        for i, parent in enumerate(self._parent):
            np.matmul(out[:, parent + 1], steps[:, i], out=out[:, i + 1])
        return out.transpose(0, 2, 1, 3).reshape(len(q), 3, -1)

    def jacobians(self, placed: Array, columns: Array) -> Array:
        """Linear Jacobians `[m, 3, n]` of the points of m columns at placements `[3, 4 (n + 1)]`.

        Joint i moves a point p behind it by axis_i x (p - origin_i).
        """
        points = (placed @ columns).T
        links = placed.reshape(3, self.n + 1, 4)[:, 1:]
        axes = np.einsum("cij,ij->ic", links[:, :, :3], self._axis)
        arms = points[:, None, :] - links[:, :, 3].T
        out = np.cross(axes, arms)
        for m, column in enumerate(columns.T):
            joint, _ = _fixed_point(column)
            moves = np.zeros(self.n, bool)
            while joint > 0:
                moves[joint - 1] = True
                joint = int(self._model.parents[joint])
            out[m, ~moves] = 0.0
        return np.asarray(out.transpose(0, 2, 1))


def _fixed_point(column: Array) -> tuple[int, Array]:
    """The joint and the place in its frame that a column of `_Chain.column` speaks of."""
    parts = column.reshape(-1, 4)
    joint = int(np.flatnonzero(parts[:, 3])[0])
    return joint, parts[joint, :3]


def _point(values: Any) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
