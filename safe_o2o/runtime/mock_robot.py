"""An arm with perfect servos and nothing else: every test's body, and a dry run's."""

from __future__ import annotations

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.lifecycle import LifecycleRobot, LifecycleState
from safe_o2o.safety.kinematics import POSTURES, Kinematics
from safe_o2o.types import Array, CertifiedCommand, RobotState


class MockRobot(LifecycleRobot):
    """Is where it was told to be, one tick later. Time passes with each `write`.

    Args:
        robot: arm with a shipped model; gives the n joints their names.
        q: joint positions after `connect` `[n]`, rad; by default elbow up, tool pointing down.
        period: control period, s.

    Raises:
        ConfigError: `q` has another length, or the arm has no default.
    """

    def __init__(self, robot: str = "panda", q: Array | None = None, period: float = 0.01) -> None:
        self.joint_names: tuple[str, ...] = Kinematics(robot, ()).joint_names
        self.period = period
        start = np.asarray(POSTURES.get(robot, ()) if q is None else q, np.float64)
        if start.shape != (len(self.joint_names),):
            raise ConfigError(
                f"needs {len(self.joint_names)} joint positions, got {start.size}", where=robot
            )
        super().__init__(f"mock {robot}")
        self._start = start
        self._q: Array = start
        self._hold(start)
        self._ticks = 0

    def deactivate(self) -> None:
        """ACTIVE -> INACTIVE; the arm holds."""
        super().deactivate()
        self._hold(self._q)

    def read(self) -> RobotState:
        """The newest state. Raises `RobotStateError` when UNCONFIGURED."""
        self.lifecycle.require_connected("read")
        stamp = self._ticks * self.period
        return RobotState(q=self._q, dq=self._dq, q_command=self._q_command, stamp=stamp)

    def write(self, command: CertifiedCommand) -> None:
        """Be there. Raises `RobotStateError` unless ACTIVE."""
        self.lifecycle.require("write", LifecycleState.ACTIVE)
        q = np.array(command.q, np.float64)
        self._dq = (q - self._q) / self.period
        self._q = self._q_command = q
        self._ticks += 1

    def pass_time(self) -> None:
        """One control period without a command; the arm holds."""
        self.lifecycle.require_connected("pass time")
        self._hold(self._q)
        self._ticks += 1

    def teleport(self, q: Array) -> None:
        """Be at rest at `q` `[n]`, rad, with the clock at zero. Needs a connection."""
        self.lifecycle.require_connected("teleport")
        self._hold(np.array(q, np.float64))
        self._ticks = 0

    def stop(self) -> None:
        """Stop moving, from any state, without raising; an active arm becomes INACTIVE."""
        if self.lifecycle.active:
            self.lifecycle.state = LifecycleState.INACTIVE
        self._hold(self._q)

    def close(self) -> None:
        """Any state -> UNCONFIGURED; idempotent."""
        super().close()
        self._hold(self._start)

    def _hold(self, q: Array) -> None:
        self._q, self._q_command, self._dq = q, q, np.zeros_like(q)
