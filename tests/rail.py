"""An arm with one joint that is a rail: what is worked out by hand on a line can be tried on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from safe_o2o.interfaces import Constraint
from safe_o2o.safety.body import Capsule
from safe_o2o.safety.filter import FilterConfig, SafetyFilter
from safe_o2o.safety.joint_limits import JointLimits
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.types import Array, Decision, Proposal, RobotState


class RailBody:
    """A point at (x, 0, 0), or (x, y, 0) with two rails, as `Body` would show it."""

    radius = np.array([1e-9])
    owner = np.array([0])
    capsules = (Capsule("carriage", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 1e-9),)
    frames = ("carriage",)
    spheres = 1

    def __init__(self, rails: int = 1) -> None:
        self.n, self.reach = rails, np.zeros(rails)

    def reach_of(self, frame: str) -> Array:
        return self.reach

    def positions(self, q: Array) -> Array:
        out = np.zeros((len(q), 3, 2))
        out[:, : self.n] = q[:, :, None]
        return out

    def jacobians(self, q: Array, points: Array) -> Array:
        return np.broadcast_to(np.eye(3, self.n), (len(points), 3, self.n))


def rail_limits(
    v: float = 1.0, a: float = 5.0, j: float = np.inf, end: float = 1e3, rails: int = 1
) -> RobotLimits:
    one = np.ones(rails)
    return RobotLimits(
        "rail", ("x", "y")[:rails], -1e3 * one, end * one, v * one, a * one, "carriage", "carriage",
        jerk=j * one,
    )  # fmt: skip


class Rail:
    """A filter, and a carriage that does what it was told so many ticks ago."""

    def __init__(
        self,
        limits: RobotLimits,
        constraints: Sequence[Any] = (),
        dt: float = 0.01,
        latency: int = 0,
        start: float = 0.0,
        config: FilterConfig | None = None,
    ) -> None:
        self.dt, self.now = dt, 0.0
        walls: list[Constraint] = [JointLimits(limits), *constraints]
        self.filter = SafetyFilter(limits, walls, dt, config or FilterConfig(latency=latency))
        self.names = limits.joint_names
        self.queue = deque([np.full(len(self.names), start)] * (latency + 1))
        self.told = self.queue[-1]
        self.filter.reset(self.state())

    @property
    def x(self) -> float:
        return float(self.queue[0][0])

    def state(self) -> RobotState:
        return RobotState(self.queue[0], 0.0 * self.told, self.told, self.now)

    def tick(self, proposal: Proposal | None) -> Decision:
        self.now += self.dt
        decision = self.filter.certify(self.state(), proposal, self.now)
        self.told = decision.command.q
        self.queue.append(self.told)
        self.queue.popleft()
        return decision

    def go(self, speed: float | Array, period: float | None = None) -> Decision:
        """One tick at the end of an endless run: the next target is always one step ahead."""
        ahead = self.told + speed * (period or self.dt)
        return self.tick(Proposal(ahead[None], period or self.dt, self.now, self.names))
