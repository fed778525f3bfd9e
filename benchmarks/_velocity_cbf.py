"""A plain CBF-QP on joint velocities, scenes for it and its peers, and the judge of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pinocchio
from _motions import DT, ROOM, Motions, Trajectory
from _oscbf_peer import ALPHA, STEP

from safe_o2o.safety.body import Body, Capsule
from safe_o2o.safety.kinematics import robot_model
from safe_o2o.safety.obstacle import Obstacle
from safe_o2o.types import Array

SPHERES: tuple[tuple[tuple[float, float, float, float], ...], ...] = (
    ((0, 0, -0.15, 0.06), (0, -0.065, 0, 0.06)),
    ((0, 0, 0.065, 0.06), (0, -0.14, 0, 0.06)),
    ((0, 0, -0.065, 0.06), (0.08, 0.065, 0, 0.055)),
    ((0, 0, 0.065, 0.055), (-0.08, 0.08, 0, 0.055)),
    (
        (0, 0, -0.23, 0.06),
        (0, 0.06, -0.18, 0.04),
        (0, 0.08, -0.125, 0.025),
        (0, 0.09, -0.075, 0.025),
        (0, 0.08, 0, 0.055),
    ),
    ((0, 0, 0.01, 0.05), (0.08, 0.035, 0, 0.05)),
    (
        (0, 0, 0.08, 0.05),
        (0.04, 0.04, 0.09, 0.04),
        (0.055, 0.055, 0.15, 0.03),
        (-0.055, -0.055, 0.15, 0.03),
        (-0.055, -0.055, 0.11, 0.03),
        (0, 0, 0.20, 0.02),
    ),
)
"""OSCBF's collision model of the Panda: centre and radius, m, link by link."""


def sphere_body() -> Body:
    """OSCBF's spheres on our model of the arm."""
    balls = [
        Capsule(f"panda_link{link}", (x, y, z), (x, y, z), r)
        for link, spheres in enumerate(SPHERES, start=1)
        for x, y, z, r in spheres
    ]
    return Body("panda", balls, ("panda_hand_tcp", "panda_link4"))


@dataclass(frozen=True)
class Scene:
    """A motion that leads into an obstacle."""

    way: Trajectory
    period: float
    centres: Array
    radii: Array

    def obstacles(self) -> list[Obstacle]:
        """As our filter wants them."""
        return [
            Obstacle(f"o{k}", tuple(c), float(r))
            for k, (c, r) in enumerate(zip(self.centres, self.radii, strict=True))
        ]

    @property
    def times(self) -> Array:
        """Steps of the plant, with half a second more than the motion takes."""
        return np.asarray(np.arange(0.0, self.way.duration + 0.5, STEP))


def scenes(body: Body, count: int, motions: int) -> list[Scene]:
    """So many motions among `count` obstacles, the first of which is in the way."""
    generator, out = np.random.default_rng([7, count]), []
    for way, period in Motions("panda", 8 + count):
        t = np.array([0.0, generator.uniform(0.3, 0.9) * way.duration])
        start, later = body.positions(way.at(t))[:, :, : body.spheres]
        moved = np.flatnonzero(np.linalg.norm(later - start, axis=0) > 0.2)
        if not len(moved):
            continue
        centres, radii = [later[:, generator.choice(moved)]], [generator.uniform(0.03, 0.1)]
        for _ in range(50 * count):
            centre = generator.uniform((-0.4, -0.8, 0.0), (0.9, 0.8, 1.0))
            radius = generator.uniform(0.03, 0.1)
            if len(centres) < count and _gap(start, body.radius, centre, radius) > 2 * ROOM:
                centres.append(centre)
                radii.append(radius)
        clear = _gap(start, body.radius, centres[0], radii[0]) > 2 * ROOM
        if clear and len(centres) == count:
            out.append(Scene(way, period, np.array(centres), np.array(radii)))
        if len(out) == motions:
            break
    return out


def _gap(points: Array, radius: Array, centre: Array, other: float) -> float:
    return float((np.linalg.norm(points.T - centre, axis=1) - radius - other).min())


class SphereModel:
    """Spheres and their distances by pinocchio: for the CBF-QP, and to judge everybody."""

    def __init__(self) -> None:
        self.model = robot_model("panda")
        self.data = self.model.createData()
        links = [np.array(spheres, float) for spheres in SPHERES]
        self.joint = np.repeat(np.arange(7), [len(link) for link in links])
        self.local = np.concatenate(links)[:, :3]
        self.radius = np.concatenate(links)[:, 3]
        self.moves = np.arange(7) <= self.joint[:, None]

    def centres(self, q: Array) -> Array:
        """Of the spheres `[21, 3]`, m; their Jacobians are in `data` afterwards."""
        pinocchio.computeJointJacobians(self.model, self.data, q)
        placed = np.array([self.data.oMi[j].homogeneous for j in range(1, 8)])[self.joint]
        return np.asarray(np.einsum("sij,sj->si", placed[:, :3, :3], self.local) + placed[:, :3, 3])

    def barrier(self, q: Array, centres: Array, radii: Array) -> tuple[Array, Array]:
        """Distances `[21 N]`, m, and their gradients `[21 N, 7]`, m/rad."""
        points = self.centres(q)
        gap = points[:, None] - centres
        distance = np.sqrt(np.square(gap).sum(axis=2))
        normal = gap / distance[:, :, None]
        arm = np.cross(points[:, None], normal)
        gradient = normal @ self.data.J[:3] + arm @ self.data.J[3:]
        gradient *= self.moves[:, None]
        left = distance - self.radius[:, None] - radii
        return left.ravel(), gradient.reshape(-1, 7)

    def least(self, q: Array, scene: Scene) -> float:
        """Least clearance on the way `[K, 7]`, m."""
        return float(min(self.barrier(x, scene.centres, scene.radii)[0].min() for x in q))


class VelocityCbf:
    """min |w - u|^2 over -grad h . w <= alpha h and |w| <= speed limits; at rest if that fails."""

    def __init__(self, spheres: SphereModel, speed: Array, solver: str) -> None:
        import qpsolvers

        self._solve, self._spheres, self._speed = qpsolvers.solve_qp, spheres, speed
        self._solver, self._weight = solver, np.eye(7)
        self.failures = 0

    def __call__(self, q: Array, u: Array, scene: Scene) -> Array:
        """The velocity `[7]` to command, rad/s."""
        h, gradient = self._spheres.barrier(q, scene.centres, scene.radii)
        found = self._solve(
            self._weight, -u, -gradient, ALPHA * h, lb=-self._speed, ub=self._speed,
            solver=self._solver,
        )  # fmt: skip
        if found is None or not np.isfinite(found).all():
            self.failures += 1
            return np.zeros(7)
        return np.asarray(found)


def states(spheres: SphereModel, found: Sequence[Scene], count: int) -> tuple[Array, Array, Array]:
    """States, wished velocities and scenes to time, on the motions before they touch."""
    q, u, which = [], [], []
    for k, scene in enumerate(found):
        t = scene.times
        for time_ in t[:: max(1, len(t) * len(found) // (2 * count))]:
            here = scene.way.at(np.array([time_]))[0]
            if spheres.barrier(here, scene.centres, scene.radii)[0].min() < 0.0:
                break
            q.append(here)
            u.append(scene.way.at(np.array([time_]), 1)[0])
            which.append(k)
    order = np.random.default_rng(0).permutation(len(q))[:count]
    return np.array(q)[order], np.array(u)[order], np.array(which)[order]


def carried_out(q: Array) -> Array:
    """Set-points as an arm gets there that changes its velocity steadily from tick to tick."""
    w = np.diff(q, axis=0, prepend=q[:1], append=q[-1:]) / DT  # of the ticks, at their middles
    middle = DT * (np.arange(len(w)) - 0.5)
    t = np.arange(0.0, DT * (len(q) - 1), STEP)
    v = np.stack([np.interp(t, middle, column) for column in w.T], axis=1)
    first = q[0] + 0.125 * DT * w[1]
    steps = 0.5 * (v[1:] + v[:-1]) * STEP
    return np.asarray(np.concatenate([first[None], first + np.cumsum(steps, axis=0)]))
