"""An arm behind topics: joint states come in, certified set-points go to its controller."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from sensor_msgs.msg import JointState

from safe_o2o.errors import RobotStateError
from safe_o2o.lifecycle import LifecycleRobot, LifecycleState
from safe_o2o.types import Array, CertifiedCommand, RobotState
from safe_o2o_ros.conversions import joints_from_msg, stamp_from_msg
from safe_o2o_ros.outputs import Output


class ControlledArm(LifecycleRobot):
    """A `Robot` whose driver is another process.

    Its clock is that of the stamps of the joint states.

    Args:
        joint_names: its n joints, in the filter's order.
        period: control period, s.
        output: the controller's language.
        send: publishes a message of it.
        ahead: the verified stop from the newest command on `[K, n]`, rad.
    """

    def __init__(
        self,
        joint_names: tuple[str, ...],
        period: float,
        output: Output,
        send: Callable[[Any], None],
        ahead: Callable[[], Array],
    ) -> None:
        self.joint_names, self.period = joint_names, period
        super().__init__("controlled arm")
        self._output, self._send, self._ahead = output, send, ahead
        self._forget()

    def _forget(self) -> None:
        self._state: tuple[Array, Array, float] | None = None
        self._told: Array | None = None

    @property
    def heard(self) -> bool:
        """Whether a joint state has come."""
        return self._state is not None

    def hear(self, msg: JointState) -> None:
        """Take a message of `joint_states`; one of other joints alone (a gripper's) is no news.

        Raises:
            MessageError: some of the arm's joints are missing, or a number is not finite.
        """
        if not set(self.joint_names).isdisjoint(msg.name):
            q, dq = joints_from_msg(msg, self.joint_names)
            # To the microsecond: what is told of this instant has the same stamp on every topic.
            self._state = (q, dq, round(stamp_from_msg(msg.header.stamp), 6))

    def deactivate(self) -> None:
        """ACTIVE -> INACTIVE; the arm holds."""
        self.lifecycle.require("deactivate", LifecycleState.ACTIVE)
        self.stop()

    def read(self) -> RobotState:
        """The newest state. Raises `RobotStateError` when UNCONFIGURED or before the first one."""
        self.lifecycle.require_connected("read")
        if self._state is None:
            raise RobotStateError(
                "no joint state has come yet",
                where="controlled arm",
                todo="see that the driver publishes joint_states with this arm's joints",
            )
        q, dq, stamp = self._state
        return RobotState(q, dq, q if self._told is None else self._told, stamp)

    def write(self, command: CertifiedCommand) -> None:
        """Send one tick's set-point. Raises `RobotStateError` unless ACTIVE."""
        self.lifecycle.require("write", LifecycleState.ACTIVE)
        self._send(self._output.message_of(command, self._ahead(), self.read()))
        self._told = np.asarray(command.q)

    def let_go(self) -> None:
        """Nothing more will be written for now: hold, and count from where the arm is again.

        A controller goes on with the last velocity that it was told. Nothing is sent to an arm that
        was told nothing: it may be another's.
        """
        told, self._told = self._told, None
        if told is not None:
            self._send(self._output.hold(told))

    def stop(self) -> None:
        """Stop moving, from any state, without raising; an active arm becomes INACTIVE."""
        if self.lifecycle.connected:
            self.lifecycle.state = LifecycleState.INACTIVE
        with contextlib.suppress(Exception):  # on the way out of a failure nobody is left to tell
            self.let_go()

    def close(self) -> None:
        """Any state -> UNCONFIGURED; idempotent."""
        self.stop()
        super().close()
        self._forget()
