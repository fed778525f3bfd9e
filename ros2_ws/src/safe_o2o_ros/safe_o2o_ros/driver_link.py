"""Between a node that moves an arm and somebody else's driver: joint states in, set-points out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rclpy.node import Node
from rclpy.wait_for_message import wait_for_message
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from safe_o2o.config import require_given, require_one_of, require_positive, require_xyz
from safe_o2o.errors import ConfigError
from safe_o2o.safety.arm import Arm
from safe_o2o.safety.body import Geometry
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.guards import FilterConfig
from safe_o2o.safety.kinematics import Kinematics
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.stall import StallConfig
from safe_o2o.safety.supervisor import Mode
from safe_o2o.safety.urdf import with_moving_joints
from safe_o2o_ros import qos
from safe_o2o_ros.arm_node import PROPOSALS, ArmNode, ArmNodeConfig
from safe_o2o_ros.controlled_arm import ControlledArm
from safe_o2o_ros.conversions import stamp_from_msg
from safe_o2o_ros.handover import TAKEOVER
from safe_o2o_ros.node import ERROR, OK, WARN, Health
from safe_o2o_ros.outputs import OUTPUTS, Wiring, listens_at, output_class
from safe_o2o_ros.parameters import setting

LOOK = 0.2
"""Time between two looks at who else commands the arm, s."""

Corner = tuple[float, ...]


@dataclass(frozen=True)
class DriverConfig(ArmNodeConfig):
    """Parameters of a node in front of somebody else's driver."""

    rate: float = setting(100.0, "control rate: set-points a second, Hz")
    description: str = setting(
        "shipped", "limits and kinematics: shipped, by `arm`; or topic, of `robot_description`"
    )
    description_topic: str = setting("/robot_description", "where the machine's URDF is latched")
    description_wait: float = setting(10.0, "longest wait for it, s")
    joints: tuple[str, ...] = setting(
        (), "with a description from a topic: the arm's joints; all others stay where they are"
    )
    tool_frame: str = setting("", "likewise: the frame of the tool's point")
    elbow_frame: str = setting("", "likewise: a frame in the middle of the arm")
    driver_states: str = setting("joint_states", "where the driver tells its joint states")
    output: str = setting("stopping_trajectory", f"the controller's language: {', '.join(OUTPUTS)}")
    controller: str = setting("", "the controller's name, whose topic is then the usual one")
    output_topic: str = setting("", "without that name: where it listens; empty for the usual")
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
    command_ticks: int = setting(0, "ticks from a command until joint states show it")
    acceleration: tuple[float, ...] = setting(
        (), "measured joint accelerations of an arm whose maker publishes none, rad/s^2"
    )
    jerk: tuple[float, ...] = setting((), "measured joint jerks, likewise, rad/s^3")
    velocity_gain: float = setting(2.0, "velocity and twist: how fast a gap is closed, 1/s")
    velocity_correction: float = setting(0.05, "velocity and twist: most of that, rad/s")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_given(self, "workspace_low", "workspace_high")
        require_positive(self, "rate", "tool_speed", "description_wait")
        require_one_of(self, "description", ("shipped", "topic"))
        if self.description == "topic":
            require_given(self, "joints", "tool_frame", "elbow_frame", "acceleration", "jerk")
        require_xyz(self, "workspace_low", "workspace_high")

    def measured(self) -> dict[str, tuple[float, ...]]:
        """Limits that were measured, by name."""
        found = {"acceleration": self.acceleration, "jerk": self.jerk}
        return {name: values for name, values in found.items() if values}


def arm_of(node: Node, config: DriverConfig) -> Arm:
    """The arm that the settings name, or that the machine's own description describes.

    Raises:
        UnknownNameError: no such arm.
        ConfigError: no description came, or it is not one of such an arm.
    """
    if config.description == "shipped":
        return Arm.load(config.arm, config.measured())
    found, msg = wait_for_message(
        String,
        node,
        config.description_topic,
        qos_profile=qos.LATCHED,
        time_to_wait=config.description_wait,
    )
    if not found:
        raise ConfigError(
            f"nothing came within {config.description_wait:g} s",
            where=config.description_topic,
            todo="start robot_state_publisher, or take a shipped description",
        )
    text = with_moving_joints(msg.data, config.joints)
    limits = RobotLimits.from_urdf(
        text,
        acceleration=config.acceleration,
        jerk=config.jerk,
        tool_frame=config.tool_frame,
        elbow_frame=config.elbow_frame,
    )
    watched = config.obstacles or config.self_collision
    return Arm(limits, Geometry.from_urdf(text) if watched else None, text)


class DriverLink:
    """Gives a node its robot, filter and loop, and looks after what only such a robot needs.

    Until the first joint state there is no tick. The arm is let go of whenever it may not be moved;
    a second voice on its controller's topic, or on `proposals`, stops it.

    Args:
        node: has no robot yet; its config is a `DriverConfig`.
        box: lowest and highest corner of what the filter lets the tool reach, m.
        retry: time between two offers of an observation while the arm holds, s.
    """

    def __init__(self, node: ArmNode, box: tuple[Corner, Corner], retry: float) -> None:
        self.node = node
        self.config: DriverConfig = node.config
        self.failed = False
        self._shadowed = True
        config, period = self.config, 1.0 / self.config.rate
        arm = self.described = arm_of(node, config)
        self.filter = filter = SafetyFilter.for_robot(
            arm,
            workspace=box,
            table_height=config.table_height,
            obstacles=() if config.obstacles else None,
            self_collision=config.self_collision,
            tool_speed=config.tool_speed,
            period=period,
            config=FilterConfig(latency=config.command_ticks, max_state_age=config.state_latch),
            velocity_scale=config.velocity_scale,
            acceleration_scale=config.acceleration_scale,
            tracking_error=config.tracking_error,
        )
        output = output_class(config.output)(self._wiring(arm, period))
        topic = listens_at(type(output), config.controller, config.output_topic)
        self._setpoints = node.create_publisher(output.message, topic, qos.COMMAND)
        self.arm = ControlledArm(
            filter.limits.joint_names,
            period,
            output,
            self._setpoints.publish,
            lambda: filter.stop_ahead,
        )
        self.arm.connect()
        node.robot = self.arm
        node.make_loop(
            filter,
            retry=retry,
            clock=lambda: stamp_from_msg(node.get_clock().now().to_msg()),
            stall=StallConfig(latency=config.command_ticks),
        )
        node.create_subscription(
            JointState, config.driver_states, node.guarded(self._on_joint_states), qos.SENSOR
        )
        node.create_timer(LOOK, node.guarded(self._look_for_others), clock=node.steady)
        node.get_logger().info(f"{topic}: should this node die, the arm {output.after_death}")

    def _wiring(self, arm: Arm, period: float) -> Wiring:
        config, tool = self.config, self.filter.limits.tool_frame
        return Wiring(
            joint_names=self.filter.limits.joint_names,
            period=period,
            kinematics=Kinematics(arm.description, (tool,)),
            tool_frame=tool,
            base_frame=config.base_frame,
            controller_joints=config.controller_joints,
            gain=config.velocity_gain,
            correction=config.velocity_correction,
        )

    @property
    def ticking(self) -> bool:
        """Once the arm was heard of, until the loop fails."""
        return self.node.running and not self.failed and self.arm.heard

    def on_run(self) -> None:
        """The node is activated: begin anew."""
        self.failed, self._shadowed = False, not self.config.shadow

    def on_failure(self) -> None:
        """The loop has stopped, and the arm; deactivate and activate the node to go on."""
        self.failed = True

    def after_tick(self) -> None:
        """Begin in shadow; let go of an arm that is not to be moved."""
        if not self._shadowed:
            self._shadowed = not self.node.watch.shadow(time.monotonic())
        if not self.node.watch.supervisor.may_write:
            self.arm.let_go()

    def why_not(self) -> str:
        """Why the loop does not run; `""` where it does."""
        if not self.arm.heard:
            return f"no joint state has come yet on {self.config.driver_states}"
        return f"the control loop has stopped: {self.node.last_error}" if self.failed else ""

    def health(self, of_arm: Callable[[], Health]) -> Health:
        """What the node says of its arm, unless there is worse to say of its driver."""
        output = {"output": self.config.output}
        if why := self.why_not():
            return (ERROR if self.failed else WARN), why, output
        level, text, values = of_arm()
        if level == OK and not self._setpoints.get_subscription_count():
            level, text = WARN, f"nobody listens on {self._setpoints.topic_name}"
        return level, text, {**values, **output}

    def _on_joint_states(self, msg: JointState) -> None:
        heard = self.arm.heard
        self.arm.hear(msg)
        if not heard and self.arm.heard:
            self.node.start_ticking()

    def _look_for_others(self) -> None:
        """Two who command one arm add up to a motion that nobody certified."""
        watch = self.node.watch
        if self.node.robot is None or watch.mode not in (Mode.ARMED, Mode.DEGRADED):
            return
        if self.node.count_publishers(self._setpoints.topic_name) > 1:
            watch.stop("second_commander", time.monotonic(), self._setpoints.topic_name)
        for topic in (PROPOSALS, TAKEOVER):
            if self.node.count_publishers(topic) > 1:
                watch.stop("second_proposer", time.monotonic(), f"two publish {topic}")
