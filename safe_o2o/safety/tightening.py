"""Room for an arm that does not follow its set-points exactly (online_safety.md 6.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.safety.body import Body
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.workspace import Box, HalfPlane


@dataclass(frozen=True)
class Tightening:
    """How far the arm may be from where it was sent, and what is taken off the limits for it.

    A joint that is off by e moves no point of the arm by more than e times the largest distance
    that the point can have from the joint's axis; the sum over all joints bounds what they do
    together.

    Attributes:
        joints: largest tracking error of each joint `[n]`, rad.
        tool: how far the tool may be off for it, m.
        elbow: how far the elbow, m.
        body: how far any part of the arm, m.
    """

    joints: tuple[float, ...]
    tool: float
    elbow: float
    body: float

    @classmethod
    def of(cls, error: float | Sequence[float], limits: RobotLimits, body: Body) -> Tightening:
        """For a tracking error, one number or one a joint, rad.

        Raises:
            ConfigError: a number is negative or not finite, or leaves a joint no range.
        """
        n = len(limits.joint_names)
        given = np.atleast_1d(np.asarray(error, np.float64))
        if given.shape not in ((1,), (n,)) or not (np.isfinite(given) & (given >= 0.0)).all():
            raise ConfigError(
                f"needs one number or {n}, not negative, got {error}", where="tracking_error"
            )
        each = np.broadcast_to(given, (n,))
        if not (limits.q_high - limits.q_low > 2.0 * each).all():
            raise ConfigError(f"leaves a joint no range: {error} rad", where="tracking_error")
        tool, elbow = (
            float(body.reach_of(frame) @ each) for frame in (limits.tool_frame, limits.elbow_frame)
        )
        return cls(tuple(each.tolist()), tool, elbow, float(body.reach @ each))

    def limits(self, limits: RobotLimits) -> RobotLimits:
        """Joint ranges without the room."""
        each = np.asarray(self.joints)
        return replace(limits, q_low=limits.q_low + each, q_high=limits.q_high - each)

    @staticmethod
    def box(box: Box, room: float) -> Box:
        """A box without the room on every side."""
        low, high = (np.asarray(corner, np.float64) for corner in box)
        return low + room, high - room

    def half_planes(self, planes: Sequence[HalfPlane]) -> list[HalfPlane]:
        """Half-planes for tool and elbow, moved inwards."""
        return [(normal, offset - self.ends) for normal, offset in planes]

    @property
    def ends(self) -> float:
        """How far tool or elbow may be off, m."""
        return max(self.tool, self.elbow)
