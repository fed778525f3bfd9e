"""The filter in front of a driver that is not ours: proposals in, certified set-points out.

Any source of proposals, any ros2_control arm or MoveIt Servo behind. There are no episodes and no
task here; see `real_robot_node` for those.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import JointState

from safe_o2o.safety.supervisor import Mode
from safe_o2o_ros import qos
from safe_o2o_ros.arm_node import ArmNode
from safe_o2o_ros.conversions import FilterStatus, joint_state_to_msg, record_to_msg
from safe_o2o_ros.driver_link import DriverConfig, DriverLink
from safe_o2o_ros.node import Health, run_node

RETRY = 0.2
"""Time between two offers of an observation while the arm holds, s."""


class SafetyFilterNode(ArmNode):
    """Publishes set-points, `joint_commands` and `filter_status`."""

    def __init__(self, **options: Any) -> None:
        super().__init__("safety_filter_node", DriverConfig, **options)

    def on_start(self) -> None:
        """Filter and output; publishers."""
        config: DriverConfig = self.config
        self.driver = DriverLink(self, (config.workspace_low, config.workspace_high), RETRY)
        self._commands = self.create_publisher(JointState, "joint_commands", qos.STREAM)
        self._statuses = self.create_publisher(DiagnosticArray, "filter_status", qos.STREAM)

    def on_run(self) -> None:
        """The loop runs from the first joint state on."""
        self.driver.on_run()
        super().on_run()

    @property
    def ticking(self) -> bool:
        """See `DriverLink`."""
        return self.driver.ticking

    def on_failure(self) -> None:
        """See `DriverLink`."""
        self.driver.on_failure()

    def after_tick(self, ready: bool) -> None:
        """Say what was done."""
        self.driver.after_tick()
        if ready or self.telling:
            self._publish(ready)

    def health(self) -> Health:
        """The arm's mode, unless there is worse to say."""
        if self.robot is None:
            return super().health()
        level, text, values = self.driver.health(super().health)
        return level, text or self.watch.mode.name, values

    def _publish(self, ready: bool) -> None:
        state, progress, supervisor = self.robot.read(), self.progress, self.watch.supervisor
        cause = supervisor.cause
        stopped = supervisor.mode in (Mode.STOPPED, Mode.DEGRADED)
        status = FilterStatus(
            **asdict(progress.report),
            stamp=state.stamp,
            mode=supervisor.mode.name,
            cause=cause.code if stopped and cause is not None else "",
            ready=ready,
        )
        if ready:
            progress.clear_worst()
        self._statuses.publish(record_to_msg("filter_status", status, state.stamp))
        names = self.robot.joint_names
        self._commands.publish(joint_state_to_msg(names, state.q_command, None, state.stamp))


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(SafetyFilterNode, argv)


if __name__ == "__main__":
    sys.exit(main())
