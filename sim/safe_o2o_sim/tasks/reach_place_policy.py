"""A scripted chunk policy for ReachPlace: straight to the next way-point, eight targets at a time.

It sees neither visitors nor velocities nor the time: whatever slows the arm down or holds it does
not show it anything new. Which way-points lie ahead follows from where the tool is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.runtime.cartesian import CartesianDelta
from safe_o2o.types import Array, Observation

CRUISE = 0.17
"""Height of the tool between workpiece and goal, m."""
_OVER = 0.012  # m on the table within which the policy goes straight down


@dataclass(frozen=True)
class ChunkPolicyConfig:
    """How it moves.

    Attributes:
        horizon: targets in a chunk H, one policy period apart.
        speed: of the tool along the way-points, m/s.

    Raises:
        ConfigError: a number is not positive.
    """

    horizon: int = 8
    speed: float = 0.25

    def __post_init__(self) -> None:
        if not (self.horizon > 0 and self.speed > 0):
            raise ConfigError(f"needs a horizon and a speed, got {self}", where="chunk policy")


class ChunkPolicy:
    """Reach, lift, carry, place.

    Args:
        cartesian: inverse kinematics of the task.
        config: see `ChunkPolicyConfig`.
    """

    def __init__(self, cartesian: CartesianDelta, config: ChunkPolicyConfig | None = None) -> None:
        self.cartesian, self.config = cartesian, config or ChunkPolicyConfig()

    def act(self, obs: Observation, q_command: Array) -> Array:
        """A chunk of joint targets `[H, 7]`, rad, from the last command `[7]`, rad."""
        tool = self.cartesian.position(q_command)
        target = obs["goal"] if obs["holding"][0] > 0.5 else obs["object"]
        corners = np.vstack([tool, self._way_points(tool, np.asarray(target, np.float64))])
        lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
        passed = np.concatenate([[0.0], np.cumsum(lengths)])
        step = self.config.speed * self.cartesian.spec.period
        along = step * np.arange(1, self.config.horizon + 1)
        points = np.stack([np.interp(along, passed, axis) for axis in corners.T], axis=1)
        rows, q, last = [], q_command, tool
        for point in points:
            q = q if np.array_equal(point, last) else self.cartesian.solve(point, q, 2)
            last = point
            rows.append(q)
        return np.array(rows)

    def _way_points(self, tool: Array, target: Array) -> list[Array]:
        """Corners of the way from the tool to the target, `[3]` each, m: up, across, down."""
        beside = float(np.linalg.norm(tool[:2] - target[:2]))
        if beside <= _OVER:
            return [target]
        over = np.array([*target[:2], CRUISE])
        # Far from the target and low: first up, where it is.
        if beside > 0.04 and tool[2] < CRUISE - 0.02:
            return [np.array([*tool[:2], CRUISE]), over, target]
        return [over, target]
