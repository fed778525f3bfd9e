"""Joint speeds that fall towards the ends of the joints' range, as the Franka FR3 asks for."""

from __future__ import annotations

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.motion import Motion
from safe_o2o.types import Array


class JointSpeed:
    """Towards a limit at distance d a joint is at most -v_off + sqrt(2 a_dec d) fast.

    The arm's own controller refuses what is faster (Franka Control Interface documentation, limits
    for FR3; online_safety.md 6.3).

    Args:
        limits: the arm's limits, with `velocity_offset` and `velocity_deceleration`.

    Raises:
        ConfigError: the arm has no such limits.
    """

    name = "joint_speed"
    unit = "rad/s"
    static = False
    exact_rows = True

    def __init__(self, limits: RobotLimits) -> None:
        if limits.velocity_offset is None or limits.velocity_deceleration is None:
            raise ConfigError("has one speed limit a joint, wherever it is", where=limits.robot)
        self.limits = limits
        self._offset, self._twice = limits.velocity_offset, 2.0 * limits.velocity_deceleration
        self._rows = np.vstack([np.eye(len(self._offset)), -np.eye(len(self._offset))])
        self.range = float(limits.velocity.min())
        """Speed that counts as margin 1, rad/s."""

    def caps(self, q: Array) -> Array:
        """Largest speed upwards and downwards at `[K, n]`, `[K, 2n]`, rad/s."""
        limits = self.limits
        room = np.concatenate([limits.q_high - q, q - limits.q_low], axis=1)
        reach = np.sqrt(np.maximum(room, 0.0) * np.tile(self._twice, 2))
        return np.asarray(
            np.clip(reach - np.tile(self._offset, 2), 0.0, np.tile(limits.velocity, 2))
        )

    def fault(self, now: float) -> str:
        """Nothing here can be out of date."""
        return ""

    def clearance(self, q: Array) -> Array:
        """The caps themselves: an arm that stands is not too fast anywhere."""
        return self.caps(q)

    def swept(self, motion: Motion) -> tuple[Array, Array]:
        """What is left of the caps, at the start `[2n]` and in each tick `[K, 2n]`, rad/s."""
        caps, speed = self.caps(motion.q), motion.velocity
        both = np.concatenate([speed, -speed], axis=1)
        least = np.minimum(caps[:-1], caps[1:])
        return caps[0] - both[0], least - both[1:]

    def rows(self, q: Array, dq: Array, dt: float) -> tuple[Array, Array]:
        """Box on the next velocity, `[2n, n]` and `[2n]`, where it will be after this tick."""
        ahead = self.caps((q + dq * dt)[None])[0]
        return self._rows, np.minimum(self.caps(q[None])[0], ahead)
