"""An arm as the filter knows it, shipped or the user's own: limits, kinematics, body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from safe_o2o.errors import ConfigError
from safe_o2o.safety.body import Body, Capsule, Geometry
from safe_o2o.safety.limits import RobotLimits


@dataclass(frozen=True)
class Arm:
    """Limits, kinematics and body of an arm: a shipped one by its name, or the user's own.

        Arm(RobotLimits.from_urdf(text, ...), Geometry.from_urdf(text), text)

    Attributes:
        limits: what its joints may do.
        geometry: what its links occupy; None where that is not known, and then neither obstacles
            nor self-collision can be watched.
        description: name of a shipped arm, or the text of a URDF: the kinematics.
    """

    limits: RobotLimits
    geometry: Geometry | None
    description: str

    @classmethod
    def load(cls, robot: str, measured: Mapping[str, Any] | None = None) -> Arm:
        """A shipped arm.

        Args:
            robot: its name.
            measured: limits that its maker does not publish, by name (`acceleration`, `jerk`).

        Raises:
            UnknownNameError: no such arm.
            ConfigError: a number is out of range.
        """
        return cls(RobotLimits.load(robot, measured=measured), Geometry.load(robot), robot)

    def body(self, load: Sequence[Capsule] = (), *, spheres: bool = True) -> tuple[Body, Any]:
        """The arm as spheres and frames (tool, elbow), and the pairs of frames not to watch.

        Args:
            load: what it carries or has mounted, in the frames of its links or tool.
            spheres: False where only the frames are wanted.

        Raises:
            ConfigError: spheres are wanted, and nothing is known of what the arm occupies.
        """
        frames = (self.limits.tool_frame, self.limits.elbow_frame)
        if not spheres:
            return Body(self.description, (), frames), ()
        if self.geometry is None:
            raise ConfigError(
                "has no body, which obstacles and self-collision need",
                where=self.limits.robot,
                todo="give it a geometry: capsules about its links",
            )
        shape = replace(self.geometry, robot=self.description).carrying(load)
        return Body(self.description, shape.capsules, frames), shape.skip
