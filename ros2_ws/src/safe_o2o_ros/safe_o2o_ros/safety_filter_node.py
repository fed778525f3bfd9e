"""The filter in front of a driver that is not ours: proposals in, certified set-points out.

Any source of proposals, any ros2_control arm or MoveIt Servo behind. There are no episodes and no
task here; see `robot_node` for those.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import JointState

from safe_o2o.config import require_given, require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.safety.arm import Arm
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.guards import FilterConfig
from safe_o2o.safety.kinematics import Kinematics
from safe_o2o.safety.stall import StallConfig
from safe_o2o.safety.supervisor import Mode
from safe_o2o.types import Verdict
from safe_o2o_ros import qos
from safe_o2o_ros.arm_node import ArmNode, ArmNodeConfig
from safe_o2o_ros.controlled_arm import ControlledArm
from safe_o2o_ros.conversions import FilterStatus, joint_state_to_msg, record_to_msg, stamp_from_msg
from safe_o2o_ros.node import ERROR, WARN, Health, run_node
from safe_o2o_ros.outputs import OUTPUTS, Wiring, make_output
from safe_o2o_ros.parameters import setting

LOOK = 0.2
"""Time between two looks at who else commands the arm, s."""
RETRY = 0.2
"""Time between two offers of an observation while the arm holds, s."""


@dataclass(frozen=True)
class SafetyFilterNodeConfig(ArmNodeConfig):
    """Parameters of the safety filter node."""

    rate: float = setting(100.0, "control rate: set-points a second, Hz")
    output: str = setting(
        "stopping_trajectory",
        f"the controller's language: {', '.join(OUTPUTS)}",
    )
    output_topic: str = setting("", "where the controller listens; empty for its usual name")
    controller_joints: tuple[str, ...] = setting(
        (), "joints in the order of a forward controller; empty for the arm's own"
    )
    shadow: bool = setting(True, "begin in SHADOW: everything is judged, nothing is sent")
    workspace_low: tuple[float, ...] = setting((), "lowest corner of the tool's box, base frame, m")
    workspace_high: tuple[float, ...] = setting((), "highest corner of the tool's box, m")
    table_height: float = setting(0.0, "lowest z of tool and elbow, m")
    tool_speed: float = setting(0.25, "largest speed of the tool, m/s")
    velocity_scale: float = setting(1.0, "share of the arm's speed limits, in (0, 1]")
    acceleration_scale: float = setting(1.0, "share of its acceleration limits, in (0, 1]")
    tracking_error: float = setting(0.0, "how far a joint may be from its set-point, rad")
    latency: int = setting(0, "ticks from a command until joint states show it")
    acceleration: tuple[float, ...] = setting(
        (), "measured joint accelerations of an arm whose maker publishes none, rad/s^2"
    )
    jerk: tuple[float, ...] = setting((), "measured joint jerks, likewise, rad/s^3")
    velocity_gain: float = setting(2.0, "velocity and twist: how fast a gap is closed, 1/s")
    velocity_correction: float = setting(0.05, "velocity and twist: most of that, rad/s")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_given(self, "workspace_low", "workspace_high")
        require_positive(self, "rate", "tool_speed")
        for name in ("workspace_low", "workspace_high"):
            if len(getattr(self, name)) != 3:
                raise ConfigError(f"needs x, y, z, got {getattr(self, name)}", where=name)

    @property
    def measured(self) -> dict[str, tuple[float, ...]]:
        """Limits that were measured, by name."""
        found = {"acceleration": self.acceleration, "jerk": self.jerk}
        return {name: values for name, values in found.items() if values}


class SafetyFilterNode(ArmNode):
    """Publishes set-points, `joint_commands` and `filter_status`."""

    def __init__(self, **options: Any) -> None:
        super().__init__("safety_filter_node", SafetyFilterNodeConfig, **options)
        self._failed = False

    def on_start(self) -> None:
        """Filter and output; subscriptions. The loop waits for the first joint state."""
        config: SafetyFilterNodeConfig = self.config
        period = 1.0 / config.rate
        arm = Arm.load(config.arm, config.measured)
        filter = SafetyFilter.for_robot(
            arm,
            workspace=(config.workspace_low, config.workspace_high),
            table_height=config.table_height,
            obstacles=() if config.obstacles else None,
            self_collision=config.self_collision,
            tool_speed=config.tool_speed,
            period=period,
            config=FilterConfig(latency=config.latency),
            velocity_scale=config.velocity_scale,
            acceleration_scale=config.acceleration_scale,
            tracking_error=config.tracking_error,
        )
        names, tool = filter.limits.joint_names, filter.limits.tool_frame
        self.output = make_output(
            config.output,
            Wiring(
                names,
                period,
                Kinematics(arm.description, (tool,)),
                tool,
                config.base_frame,
                config.controller_joints,
                config.velocity_gain,
                config.velocity_correction,
            ),
        )
        topic = config.output_topic or self.output.topic
        self._setpoints = self.create_publisher(self.output.message, topic, qos.COMMAND)
        self.robot = ControlledArm(
            names, period, self.output, self._setpoints.publish, lambda: filter.stop_ahead
        )
        self.robot.connect()
        self.make_loop(
            filter,
            retry=RETRY,
            clock=lambda: stamp_from_msg(self.get_clock().now().to_msg()),
            stall=StallConfig(latency=config.latency),
        )
        self._commands = self.create_publisher(JointState, "joint_commands", qos.STREAM)
        self._statuses = self.create_publisher(DiagnosticArray, "filter_status", qos.STREAM)
        self.create_subscription(
            JointState, "joint_states", self.guarded(self._on_joint_states), qos.SENSOR
        )
        self.create_timer(LOOK, self.guarded(self._look_for_others), clock=self.steady)
        self.get_logger().info(f"{topic}: should this node die, the arm {self.output.after_death}")

    def on_run(self) -> None:
        """The loop runs from the first joint state on."""
        self._failed, self._in_shadow = False, not self.config.shadow
        super().on_run()

    @property
    def ticking(self) -> bool:
        """Once the arm was heard of, until the loop fails."""
        return self.running and not self._failed and self.robot.heard

    def on_failure(self) -> None:
        """The arm was stopped; deactivate and activate the node to go on."""
        self._failed = True

    def after_tick(self, ready: bool) -> None:
        """Say what was done; begin in shadow; let go of an arm that is not to be moved."""
        if not self._in_shadow:
            self._in_shadow = not self.watch.shadow(time.monotonic())
        if not self.watch.supervisor.may_write:
            self.robot.let_go()
        if ready or self.telling:
            self._publish(ready)

    def health(self) -> Health:
        """The arm's, and whether anybody is there."""
        if self.robot is None:
            return super().health()
        if not self.robot.heard:
            return WARN, "no joint state has come yet", {}
        if self._failed:
            return ERROR, f"the control loop has stopped: {self.last_error}", {}
        level, text, values = super().health()
        listeners = self._setpoints.get_subscription_count()
        if not text and not listeners:
            level, text = WARN, f"nobody listens on {self._setpoints.topic_name}"
        return level, text or self.watch.mode.name, {**values, "output": self.config.output}

    def _publish(self, ready: bool) -> None:
        state, progress, supervisor = self.robot.read(), self.progress, self.watch.supervisor
        counts, cause = progress.counts, supervisor.cause
        stopped = supervisor.mode in (Mode.STOPPED, Mode.DEGRADED) and cause is not None
        status = FilterStatus(
            stamp=state.stamp,
            mode=supervisor.mode.name,
            cause=cause.code if stopped and cause is not None else "",
            ready=ready,
            proposal_stamp=progress.finished_stamp,
            verdict=int(progress.verdict),
            reason=progress.reason,
            margin=float(progress.margin),
            passed=counts[Verdict.PASS],
            corrected=counts[Verdict.CORRECTED],
            stopped=counts[Verdict.STOPPED],
            held=progress.held,
        )
        if ready:
            progress.clear_worst()
        self._statuses.publish(record_to_msg("filter_status", status, state.stamp))
        names = self.robot.joint_names
        self._commands.publish(joint_state_to_msg(names, state.q_command, None, state.stamp))

    def _on_joint_states(self, msg: JointState) -> None:
        heard = self.robot.heard
        self.robot.hear(msg)
        if not heard and self.robot.heard:
            self.start_ticking()

    def _look_for_others(self) -> None:
        """Two who command one arm add up to a motion that nobody certified."""
        if self.robot is None or self.watch.mode in (Mode.STOPPED, Mode.DISARMED, Mode.SHADOW):
            return
        if self.count_publishers(self._setpoints.topic_name) > 1:
            self.watch.stop("second_commander", time.monotonic(), self._setpoints.topic_name)
        if self.count_publishers("proposals") > 1:
            self.watch.stop("second_proposer", time.monotonic(), "two publish proposals")


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(SafetyFilterNode, argv)


if __name__ == "__main__":
    sys.exit(main())
