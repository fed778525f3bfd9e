"""An arm as the filter knows it, shipped or the user's own: limits, kinematics, body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from safe_o2o.errors import ConfigError
from safe_o2o.safety.body import Body, Capsule, Geometry
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.types import Array


@dataclass(frozen=True)
class Arm:
    """Limits, kinematics and body of an arm.

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

    @classmethod
    def from_urdf(
        cls,
        text: str,
        *,
        acceleration: Sequence[float] | Array,
        jerk: Sequence[float] | Array,
        tool_frame: str,
        elbow_frame: str,
        geometry: Geometry | None = None,
    ) -> Arm:
        """The user's own arm.

        Args:
            text: the URDF, as in the parameter `robot_description`.
            acceleration: largest joint accelerations `[n]`, rad/s^2, which a URDF does not hold.
            jerk: largest joint jerks `[n]`, rad/s^3; infinite where it need not be limited.
            tool_frame: link or frame of the tool's point.
            elbow_frame: link or frame of the point in the middle of the arm.
            geometry: what its links occupy, `Geometry.from_urdf(text)` where the URDF says it.

        Raises:
            ConfigError: the URDF does not describe such an arm.
        """
        limits = RobotLimits.from_urdf(
            text,
            acceleration=acceleration,
            jerk=jerk,
            tool_frame=tool_frame,
            elbow_frame=elbow_frame,
        )
        if geometry is not None:
            geometry = replace(geometry, robot=text)
        return cls(limits, geometry, text)

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
        shape = self.geometry.carrying(load)
        return Body(self.description, shape.capsules, frames), shape.skip
