"""Certified set-points in the languages of drivers that are not ours.

One class a language: ros2_control's joint_trajectory_controller (a point a tick, or a point and the
verified stop behind it), its forward position and velocity controllers, and MoveIt Servo. Each says
what its controller does when this process dies, because nothing here can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import TwistStamped
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from safe_o2o.errors import ConfigError, UnknownNameError
from safe_o2o.safety.kinematics import Kinematics
from safe_o2o.types import Array, CertifiedCommand, RobotState
from safe_o2o_ros.conversions import stamp_to_msg


@dataclass(frozen=True)
class Wiring:
    """What an output has to know of the arm and of its controller.

    Attributes:
        joint_names: the arm's n joints, in the filter's order.
        controller_joints: in the order in which the controller lists them; empty for the same.
        period: control period, s.
        kinematics: of the arm, with the tool's frame.
        tool_frame: the frame that a twist moves.
        base_frame: the frame that a twist is told in.
        gain: how fast a velocity closes the gap between where the arm is and was to be, 1/s.
        correction: most of a joint's velocity that closing the gap may add, rad/s.

    Raises:
        ConfigError: the controller's joints are not the arm's.
    """

    joint_names: tuple[str, ...]
    period: float
    kinematics: Kinematics
    tool_frame: str
    base_frame: str = "base_link"
    controller_joints: tuple[str, ...] = ()
    gain: float = 2.0
    correction: float = 0.05

    def __post_init__(self) -> None:
        if self.controller_joints and sorted(self.controller_joints) != sorted(self.joint_names):
            raise ConfigError(
                f"must be the arm's joints {list(self.joint_names)} in the controller's order, "
                f"got {list(self.controller_joints)}",
                where="controller_joints",
            )
        if not (0.0 <= self.gain < 1.0 / self.period and 0.0 <= self.correction < np.inf):
            raise ConfigError(
                f"needs 0 <= gain < {1.0 / self.period:g} 1/s and a correction that is not "
                f"negative, got {self.gain} and {self.correction}",
                where="velocity_gain, velocity_correction",
            )

    def ordered(self, values: Array) -> list[float]:
        """Numbers `[n]` of the arm's joints in the controller's order."""
        if self.controller_joints:
            values = values[[self.joint_names.index(name) for name in self.controller_joints]]
        return [float(value) for value in values]

    def closing(self, command: CertifiedCommand, state: RobotState) -> Array:
        """The certified joint velocity `[n]`, rad/s, and what brings the arm back to its way.

        Velocities alone would drift away from what was certified: nobody adds up their errors. The
        gap is between where the arm is and where this tick starts.
        """
        gap = command.q - self.period * command.dq - state.q
        return np.asarray(command.dq + np.clip(self.gain * gap, -self.correction, self.correction))


class Output(Protocol):
    """A controller's language."""

    message: ClassVar[type[Any]]
    topic: ClassVar[str]
    """Where such a controller listens, unless told otherwise."""
    after_death: ClassVar[str]
    """What the arm does when this process dies between two messages."""

    def message_of(self, command: CertifiedCommand, ahead: Array, state: RobotState) -> Any:
        """One tick.

        Args:
            command: what this tick ends with.
            ahead: the verified stop from there, one set-point a tick `[K, n]`, rad.
            state: the reading behind it.
        """
        ...

    def hold(self, q: Array) -> Any:
        """Stay at `q` `[n]`, rad, at once."""
        ...


class JointTrajectoryOutput:
    """A point a tick for joint_trajectory_controller, one control period ahead.

    Let the controller go on from where it wanted to be and not from where the arm is
    (`interpolate_from_desired_state: true`; before Jazzy `open_loop_control: true`): else each
    message throws it back by the tracking error.
    """

    message = JointTrajectory
    topic = "joint_trajectory_controller/joint_trajectory"
    after_death = "stops at the last point, as hard as its servos can"

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring

    def message_of(self, command: CertifiedCommand, ahead: Array, state: RobotState) -> Any:
        """The set-point alone."""
        return self._message([command.q])

    def hold(self, q: Array) -> Any:
        """Go there in one period."""
        return self._message([q])

    def _message(self, rows: Sequence[Array]) -> JointTrajectory:
        # No start time: from its arrival on. No velocities: a trajectory that does not end at rest
        # is refused by default from Jazzy on, and set-points a tick apart need none.
        msg = JointTrajectory(joint_names=list(self.wiring.joint_names))
        for row, q in enumerate(rows, 1):
            when = stamp_to_msg(row * self.wiring.period)
            msg.points.append(
                JointTrajectoryPoint(
                    positions=[float(x) for x in q],
                    time_from_start=Duration(sec=when.sec, nanosec=when.nanosec),
                )
            )
        return msg


class StoppingTrajectoryOutput(JointTrajectoryOutput):
    """The same with the verified stop behind the point: whoever dies, the arm comes to rest."""

    after_death = "brakes along the verified stop that came with the last point"

    def message_of(self, command: CertifiedCommand, ahead: Array, state: RobotState) -> Any:
        """The set-point and the way from it to rest."""
        return self._message([command.q, *ahead])


class PositionOutput:
    """Positions for forward_position_controller and its like."""

    message = Float64MultiArray
    topic = "forward_position_controller/commands"
    after_death = "stops at the last point, as hard as its servos can"

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring

    def message_of(self, command: CertifiedCommand, ahead: Array, state: RobotState) -> Any:
        """The set-point, in the controller's order."""
        return self.hold(command.q)

    def hold(self, q: Array) -> Any:
        """The same."""
        return Float64MultiArray(data=self.wiring.ordered(q))


class VelocityOutput:
    """Velocities for forward_velocity_controller and its like."""

    message = Float64MultiArray
    topic = "forward_velocity_controller/commands"
    after_death = "MOVES ON at the last velocity until its driver or a watchdog of yours stops it"

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring

    def message_of(self, command: CertifiedCommand, ahead: Array, state: RobotState) -> Any:
        """The certified velocity, and a little to stay on the way."""
        return Float64MultiArray(data=self.wiring.ordered(self.wiring.closing(command, state)))

    def hold(self, q: Array) -> Any:
        """No velocity."""
        return Float64MultiArray(data=self.wiring.ordered(np.zeros(len(q))))


class TwistOutput:
    """The tool's velocity for MoveIt Servo (`command_in_type: speed_units`).

    Servo chooses the joints' way itself: what was certified of elbow and joints is not what it
    does, and the next tick's reading is what tells. Prefer another output where there is one.
    """

    message = TwistStamped
    topic = "servo_node/delta_twist_cmds"
    after_death = "halts after Servo's incoming_command_timeout"

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring

    def message_of(self, command: CertifiedCommand, ahead: Array, state: RobotState) -> Any:
        """What the certified joint velocities amount to at the tool."""
        wiring = self.wiring
        jacobian = wiring.kinematics.jacobian(state.q, wiring.tool_frame)
        return self._message(jacobian @ wiring.closing(command, state), command.stamp)

    def hold(self, q: Array) -> Any:
        """No velocity; no stamp, which Servo takes for now."""
        return self._message(np.zeros(6), 0.0)

    def _message(self, twist: Array, stamp: float) -> TwistStamped:
        msg = TwistStamped()
        msg.header.stamp, msg.header.frame_id = stamp_to_msg(stamp), self.wiring.base_frame
        for vector, values in ((msg.twist.linear, twist[:3]), (msg.twist.angular, twist[3:])):
            vector.x, vector.y, vector.z = (float(value) for value in values)
        return msg


OUTPUTS: dict[str, type[Output]] = dict(
    joint_trajectory=JointTrajectoryOutput,
    stopping_trajectory=StoppingTrajectoryOutput,
    position=PositionOutput,
    velocity=VelocityOutput,
    twist=TwistOutput,
)


def output_class(name: str) -> Any:
    """The output of a name, to be made with a `Wiring`.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in OUTPUTS:
        raise UnknownNameError("output", name, OUTPUTS)
    return OUTPUTS[name]


def listens_at(output: type[Output], controller: str, topic: str) -> str:
    """The topic of a controller.

    Args:
        output: its language.
        controller: its name, `/left/scaled_joint_trajectory_controller` say; goes before `topic`.
        topic: where it listens; empty for the usual topic of the language.
    """
    if controller:
        name = controller if "/" in controller else f"/{controller}"  # drivers have no namespace
        return f"{name}/{output.topic.rsplit('/')[-1]}"
    return topic or output.topic
