"""Random smooth motions for the benchmarks of the filter, and a judge of distances of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import coal
import numpy as np
import pinocchio
import yaml

from safe_o2o.safety.body import Body, Geometry
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.obstacle import Obstacle
from safe_o2o.safety.self_collision import SelfCollision
from safe_o2o.types import Array

DT = 0.01
"""Control period, s."""
DEGREE = 5
ROOM = 0.02
"""How far, m, a motion that is in nobody's way stays from what the filter guards."""
BOXES = dict(
    panda=((0.25, -0.45, 0.05), (0.75, 0.45, 0.75)), fr3=((0.25, -0.45, 0.05), (0.75, 0.45, 0.75))
)
"""Workspace of the tool by arm, m; for the others `WIDE`."""
WIDE = ((-0.9, -0.9, 0.05), (0.9, 0.9, 1.2))
SAFETY = Path(__file__).resolve().parents[1] / "safe_o2o" / "safety"


def spline(points: Array, u: Array, degree: int) -> Array:
    """A uniform B-spline with control points `[m, n]` at parameters `[K]` in [0, m - degree]."""
    first = np.clip(u.astype(int), 0, len(points) - degree - 1)
    t = u - first
    weights = [np.ones_like(u)]
    for d in range(1, degree + 1):  # Cox and de Boor, all knots one apart
        saved, following = np.zeros_like(u), []
        for r, weight in enumerate(weights):
            following.append(saved + (r + 1.0 - t) * weight / d)
            saved = (t + d - r - 1.0) * weight / d
        weights = [*following, saved]
    out = np.zeros((len(u), points.shape[1]))
    for r, weight in enumerate(weights):
        out += weight[:, None] * points[first + r]
    return out


@dataclass(frozen=True)
class Trajectory:
    """A quintic B-spline from rest to rest: four times continuously differentiable.

    Attributes:
        points: control points `[m, n]`, rad.
        spacing: time between knots, s.
    """

    points: Array
    spacing: float

    @property
    def duration(self) -> float:
        """From rest to rest, s."""
        return (len(self.points) - DEGREE) * self.spacing

    def at(self, t: Array, order: int = 0) -> Array:
        """Its derivative of this order `[K, n]` at times `[K]`, s, which may lie beyond its end."""
        u = np.clip(t / self.spacing, 0.0, len(self.points) - DEGREE)
        change = np.diff(self.points, n=order, axis=0) / self.spacing**order
        return spline(change, u, DEGREE - order)

    def faster(self, factor: float) -> Trajectory:
        """The same way in less time."""
        return Trajectory(self.points, self.spacing / factor)


class Motions:
    """Random trajectories of an arm, inside a share of its limits and clear of everything.

    Args:
        arm: name of a shipped arm.
        seed: of all that is random.
        share: of the limits of speed, acceleration, jerk and the tool's speed that a trajectory
            uses up in whichever of them binds.
        knots: least time between knots, in policy periods.
    """

    def __init__(self, arm: str, seed: int, share: float = 0.9, knots: float = 2.0) -> None:
        self.limits, self.share, self.knots = RobotLimits.load(arm), share, knots
        self.box = BOXES.get(arm, WIDE)
        shape = Geometry.load(arm)
        frames = (self.limits.tool_frame, self.limits.elbow_frame)
        self.body = Body(arm, shape.capsules, frames)
        self._itself = SelfCollision(self.body, shape.skip)
        self._generator = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[tuple[Trajectory, float]]:
        """Trajectories and policy periods, s, between 5 and 20 Hz, every other one 10 Hz."""
        generator, count = self._generator, 0
        while True:
            rate = 10.0 if count % 2 else float(generator.choice([5.0, 8.0, 12.5, 15.0, 20.0]))
            yield self._draw(1.0 / rate), 1.0 / rate
            count += 1

    def _draw(self, period: float) -> Trajectory:
        generator, limits = self._generator, self.limits
        half = 0.5 * (limits.q_high - limits.q_low)
        middle = limits.q_low + half
        while True:
            centre = middle + generator.uniform(-0.8, 0.8, len(half)) * half
            if not self.inside(centre[None]):
                continue
            spread = float(np.exp(generator.uniform(np.log(0.1), np.log(0.8))))
            way = centre + generator.normal(0.0, spread, (int(generator.integers(2, 8)), len(half)))
            points = np.concatenate([[way[0]] * DEGREE, way, [way[-1]] * DEGREE])
            found = Trajectory(points, 1.0)
            u = np.linspace(0.0, found.duration, int(found.duration) * 50)
            if self.inside(found.at(u)):
                return self.timed(found, u, self.knots * period)

    def timed(self, way: Trajectory, u: Array, least: float) -> Trajectory:
        """As fast as the share of the limits allows, with knots `least` s apart or more.

        A policy cannot say what changes between two of its rows.
        """
        limits = self.limits
        with np.errstate(divide="ignore"):
            needs = [
                np.abs(way.at(u, order)).max(axis=0) / (self.share * bound)
                for order, bound in enumerate(
                    (limits.velocity, limits.acceleration, limits.jerk), start=1
                )
            ]
        spacing = max(float(need.max()) ** (1.0 / k) for k, need in enumerate(needs, start=1))
        if limits.tool_velocity is not None:
            tool = self.body.positions(way.at(u))[:, :, -2]
            speed = np.linalg.norm(np.diff(tool, axis=0), axis=1) / (u[1] - u[0])
            spacing = max(spacing, float(speed.max()) / (self.share * limits.tool_velocity))
        return Trajectory(way.points, max(spacing, least))

    def inside(self, q: Array) -> bool:
        """Whether configurations `[K, n]` are `ROOM` away from everything that is guarded."""
        limits = self.limits
        if not ((q >= limits.q_low + 0.05) & (q <= limits.q_high - 0.05)).all():
            return False
        tool, elbow = self.body.positions(q)[:, :, -2:].transpose(2, 0, 1)
        low, high = (np.array(corner) for corner in self.box)
        if not ((tool >= low + ROOM) & (tool <= high - ROOM)).all() or elbow[:, 2].min() < ROOM:
            return False
        return bool(self._itself.clearance(q).min() >= ROOM)


class Distances:
    """Distances by pinocchio and coal, from the same files and with none of our code.

    The filter covers links by spheres and uses its own kinematics; here links are the capsules
    themselves.

    Args:
        arm: name of a shipped arm.
    """

    def __init__(self, arm: str) -> None:
        model = SAFETY / "robot_models" / f"{arm}.urdf"
        shape = yaml.safe_load((SAFETY / "robot_geometry" / f"{arm}.yaml").read_text())
        limits = yaml.safe_load((SAFETY / "robot_limits" / f"{arm}.yaml").read_text())
        self.model = pinocchio.buildModelFromUrdf(str(model))
        self.data = self.model.createData()
        self._tool = self.model.getFrameId(limits["tool_frame"])
        self._elbow = self.model.getFrameId(limits["elbow_frame"])
        self._links = [
            (self.model.getFrameId(entry["frame"]), *_capsule(entry)) for entry in shape["capsules"]
        ]

    def to_obstacles(self, q: Array, obstacles: Sequence[Obstacle]) -> float:
        """Least distance, m, of the arm at `[n]` from any of these, where they were seen."""
        pinocchio.framesForwardKinematics(self.model, self.data, q)
        request, least = coal.DistanceRequest(), np.inf
        others = [
            _capsule({"start": o.centre, "end": o.end or o.centre, "radius": o.radius})
            for o in obstacles
        ]
        for frame, shape, place in self._links:
            here = coal_pose(self.data.oMf[frame] * place)
            for other, there in others:
                result = coal.DistanceResult()
                coal.distance(shape, here, other, coal_pose(there), request, result)
                least = min(least, result.min_distance)
        return float(least)

    def to_walls(self, q: Array, box: Any, table: float = 0.0) -> float:
        """Least distance, m, of the tool from its box and of tool and elbow from the table."""
        pinocchio.framesForwardKinematics(self.model, self.data, q)
        tool = self.data.oMf[self._tool].translation
        elbow = self.data.oMf[self._elbow].translation
        low, high = (np.array(corner) for corner in box)
        heights = min(tool[2], elbow[2]) - table
        return float(min((tool - low).min(), (high - tool).min(), heights))


def _capsule(entry: Any) -> tuple[Any, Any]:
    """A capsule of coal, which lies along z about its middle, and where it is."""
    start, end = np.array(entry["start"], float), np.array(entry.get("end", entry["start"]), float)
    length = float(np.linalg.norm(end - start))
    if length == 0.0:
        return coal.Sphere(entry["radius"]), pinocchio.SE3(np.eye(3), start)
    turn = pinocchio.Quaternion.FromTwoVectors(np.array([0.0, 0.0, 1.0]), (end - start) / length)
    place = pinocchio.SE3(turn.matrix(), 0.5 * (start + end))
    return coal.Capsule(entry["radius"], length), place


def coal_pose(place: Any) -> Any:
    """A pose of pinocchio as coal wants it."""
    return coal.Transform3s(place.rotation, place.translation)


def reference_ms(count: int = 200) -> Array:
    """Milliseconds of a fixed piece of work in the style of the filter: how busy is the machine?"""
    a = np.linspace(0.0, 1.0, 31 * 12).reshape(31, 3, 4)
    b, out = np.linspace(1.0, 2.0, 4 * 29).reshape(4, 29), np.empty(count)
    for k in range(count):
        began = time.perf_counter()
        for _ in range(30):
            c = a @ b
            np.sqrt(np.square(c).sum(axis=1)).min()
        out[k] = 1e3 * (time.perf_counter() - began)
    return out
