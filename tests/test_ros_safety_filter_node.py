"""The filter in front of somebody else's controller: every output, every way it can go wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed (pip install 'safe_o2o[ros]')")
pytest.importorskip(
    "safe_o2o_ros.safety_filter_node", reason="pip install ./ros2_ws/src/safe_o2o_ros"
)
from rclpy.parameter import Parameter  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from safe_o2o.errors import SafeO2OError  # noqa: E402
from safe_o2o.safety.kinematics import POSTURES, Kinematics  # noqa: E402
from safe_o2o.safety.limits import RobotLimits  # noqa: E402
from safe_o2o.safety.shipped import shipped_text  # noqa: E402
from safe_o2o.safety.supervisor import Mode  # noqa: E402
from safe_o2o.types import Array, Proposal  # noqa: E402
from safe_o2o_ros import qos  # noqa: E402
from safe_o2o_ros.conversions import (  # noqa: E402
    FilterStatus,
    proposal_to_msg,
    record_from_msg,
    stamp_from_msg,
)
from safe_o2o_ros.mock_driver_node import MockDriverNode  # noqa: E402
from safe_o2o_ros.node import ERROR, OK, WARN  # noqa: E402
from safe_o2o_ros.outputs import OUTPUTS, listens_at  # noqa: E402
from safe_o2o_ros.safety_filter_node import SafetyFilterNode  # noqa: E402
from tests.ros_world import World, make_world  # noqa: E402, F401

pytestmark = pytest.mark.ros
FORWARD = ("position", "velocity")
START = np.array(POSTURES["panda"])
BOX: dict[str, object] = {"workspace_low": [0.2, -0.4, 0.0], "workspace_high": [0.8, 0.4, 0.9]}
# Of a machine that does other things as well: what has to be noticed is tested with less.
PATIENT = {"state_degrade": 2.0, "state_latch": 5.0, "command_degrade": 2.0, "command_latch": 10.0}


class Controller(MockDriverNode):
    """Keeps what it was told and where it went, and can fall silent."""

    speaks = True

    def obey(self, msg: Any) -> None:
        self.messages.append(msg)
        super().obey(msg)

    def move(self) -> None:
        super().move()
        self.path.append(self.q.copy())

    def tell(self) -> None:
        if self.speaks:
            super().tell()

    def on_start(self) -> None:
        self.messages: list[Any] = []
        self.path: list[Array] = []
        super().on_start()


def parameters_of(settings: dict[str, object]) -> list[Parameter]:
    return [Parameter(name, value=value) for name, value in settings.items()]


class Bench:
    """The node, a controller, and somebody who proposes."""

    def __init__(
        self, world: World, output: str, drifts: float = 0.0, **parameters: object
    ) -> None:
        self.world, client = world, world.client_node
        names = Kinematics("panda", ()).joint_names
        order = {"controller_joints": list(reversed(names))} if output in FORWARD else {}
        driver = {"output": output, "drift": drifts, **order}
        self.controller = Controller(
            context=world.context, parameter_overrides=parameters_of(driver)
        )
        world.executor.add_node(self.controller)
        self.controller.autostart()
        settings = {"output": output, "shadow": False, **BOX, **PATIENT, **order, **parameters}
        self.node = SafetyFilterNode(
            context=world.context,
            parameter_overrides=parameters_of(settings),
        )
        world.executor.add_node(self.node)
        self.node.autostart()
        self.policy = client.create_publisher(JointTrajectory, "proposals", qos.COMMAND)
        self.statuses: list[FilterStatus] = []
        client.create_subscription(
            self.node._statuses.msg_type,
            "filter_status",
            lambda msg: self.statuses.append(record_from_msg(FilterStatus, msg)),
            qos.STREAM,
        )

    def until(self, condition: Callable[[], bool], timeout: float = 20.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, (self.node.health(), self.node.last_error)
            self.node.step(self.world.executor)

    def call(self, name: str) -> Trigger.Response:
        return self.world.call(Trigger, f"safety_filter_node/{name}", Trigger.Request(), self.until)

    def ready(self) -> None:
        """Until somebody could arm."""
        client = self.world.client_node
        self.until(lambda: client.count_subscribers("proposals") > 0 and self.node._ticks > 5)

    def arm(self) -> None:
        self.ready()
        self.until(lambda: self.call("arm").success)

    def wait(self, seconds: float) -> None:
        due = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= due)

    def propose(self, q: Array, period: float = 0.2) -> None:
        now = stamp_from_msg(self.node.get_clock().now().to_msg())
        names = self.controller.names
        self.policy.publish(proposal_to_msg(Proposal(q[None], period, now, names)))

    def go(self, target: Array, seconds: float) -> None:
        """Towards a target in small steps, five a second, as a policy does."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            told = self.node.robot.read().q_command
            self.propose(told + np.clip(target - told, -0.04, 0.04))
            self.wait(0.2)

    @property
    def mode(self) -> Mode:
        return self.node.watch.mode


@pytest.mark.parametrize("output", sorted(OUTPUTS))
def test_an_arm_behind_any_controller_goes_where_it_was_certified_to_go(world, output) -> None:
    bench = Bench(world, output, drifts=0.01 if output == "velocity" else 0.0)
    bench.arm()
    target = START + np.array([0.15, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0])
    tool = Kinematics("panda").position
    for _ in range(10):
        bench.go(target, 1.0)
        if np.abs(bench.controller.q - target).max() < 0.011:
            break
    bench.until(lambda: bench.mode is Mode.ARMED)  # a tick that came too late is over by itself
    reached, wanted = (tool(q, "panda_hand_tcp") for q in (bench.controller.q, target))
    # A drift of 0.01 rad/s is what a gain of 2/s holds at half a hundredth of a radian.
    assert np.abs(reached - wanted).max() < 0.01
    if output != "twist":  # Servo finds a way of its own for seven joints
        np.testing.assert_allclose(bench.controller.q, target, atol=0.012)
    steps = np.diff(np.array(bench.controller.path), axis=0)
    assert np.abs(steps).max() < 0.06  # nothing jumped, however late this machine is
    while not any(status.mode == "ARMED" and status.passed > 20 for status in bench.statuses):
        bench.go(target, 0.4)
    assert bench.call("stop").success
    bench.wait(0.5)
    assert bench.mode is Mode.STOPPED
    stood = bench.controller.q.copy()
    bench.go(START, 0.6)
    np.testing.assert_allclose(bench.controller.q, stood, atol=1e-9)
    level, text, _ = bench.node.health()
    assert level == ERROR and "operator" in text


@pytest.mark.parametrize(
    ("language", "controller", "topic", "found"),
    [
        ("joint_trajectory", "", "", "joint_trajectory_controller/joint_trajectory"),
        ("joint_trajectory", "", "/a/b", "/a/b"),
        ("stopping_trajectory", "scaled", "/a/b", "/scaled/joint_trajectory"),
        ("position", "/left/positions", "", "/left/positions/commands"),
        ("twist", "servo_server", "", "/servo_server/delta_twist_cmds"),
    ],
)
def test_a_controller_listens_where_its_name_says(language, controller, topic, found) -> None:
    assert listens_at(OUTPUTS[language], controller, topic) == found


def test_it_begins_in_shadow_and_sends_nothing_there(world) -> None:
    bench = Bench(world, "position", shadow=True)
    bench.ready()
    bench.until(lambda: bench.mode is Mode.SHADOW)
    bench.go(START + 0.1, 0.8)
    assert bench.controller.messages == []
    np.testing.assert_array_equal(bench.controller.q, START)
    report = bench.node.watch.shadow_report.report()
    assert report["proposed"] > 10
    bench.until(lambda: bench.call("arm").success)
    bench.go(START + 0.1, 0.8)
    assert bench.controller.messages


def test_what_comes_with_each_point_is_a_way_to_rest(world) -> None:
    bench = Bench(world, "stopping_trajectory", acceleration_scale=0.05)
    bench.arm()
    target, moving = START + np.array([2.0, 0, 0, 0, 0, 0, 0]), None
    while moving is None or len(moving.points) < 6:
        bench.go(target, 0.4)
        moving = max(bench.controller.messages, key=lambda msg: len(msg.points))
        assert bench.controller.q[0] < START[0] + 1.5
    rows = np.array([point.positions for point in moving.points])
    times = [stamp_from_msg(point.time_from_start) for point in moving.points]
    np.testing.assert_allclose(np.diff(times), 0.01, atol=1e-9)
    # Braking: every step is shorter than the one before, and the last is next to nothing.
    speed = np.abs(np.diff(rows[:, 0]))
    assert speed[0] > 1e-4 and speed[-1] < 0.3 * speed[0]
    # The node dies, and the controller is left with what it was told last.
    bench.world.executor.remove_node(bench.node)
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        bench.world.executor.spin_once(timeout_sec=0.01)
    last = np.array(bench.controller.messages[-1].points[-1].positions)
    np.testing.assert_allclose(bench.controller.q, last, atol=1e-9)


def test_velocities_end_at_zero_whenever_the_node_lets_go(world) -> None:
    bench = Bench(world, "velocity", drifts=0.03)
    bench.arm()
    bench.go(START + np.array([0.3, 0, 0, 0, 0, 0, 0]), 0.8)
    assert np.abs(bench.controller.velocity).max() > 0.02
    bench.node.trigger_deactivate()  # in the middle of a motion, as Ctrl-C does
    before = len(bench.controller.messages)
    for _ in range(50):
        bench.world.executor.spin_once(timeout_sec=0.01)
    assert len(bench.controller.messages) > before
    assert not np.any(bench.controller.messages[-1].data)


def test_an_arm_that_falls_silent_is_stopped_for_good(world) -> None:
    bench = Bench(world, "position", state_degrade=1.0, state_latch=3.0)
    assert bench.node.health()[:2] == (WARN, "no joint state has come yet on joint_states")
    bench.arm()
    bench.go(START + 0.1, 0.4)
    bench.until(lambda: bench.node.health()[0] == OK)
    bench.controller.speaks = False
    bench.until(lambda: bench.mode is Mode.STOPPED)
    cause = bench.node.watch.supervisor.cause
    assert cause is not None and cause.code in ("state_stale", "lost_joint_state")
    bench.controller.speaks = True
    bench.wait(0.3)
    assert bench.mode is Mode.STOPPED
    assert bench.call("reset").message == "DISARMED"
    bench.until(lambda: bench.call("arm").success)


@pytest.mark.parametrize("topic", ("proposals", "forward_position_controller/commands"))
def test_a_second_voice_stops_the_arm(world, topic) -> None:
    bench = Bench(world, "position")
    bench.arm()
    kind = JointTrajectory if topic == "proposals" else OUTPUTS["position"].message
    other = bench.world.client_node.create_publisher(kind, topic, qos.COMMAND)
    bench.until(lambda: bench.mode is Mode.STOPPED)
    cause = bench.node.watch.supervisor.cause
    assert cause is not None and cause.code.startswith("second_")
    bench.world.client_node.destroy_publisher(other)


def test_limits_and_kinematics_come_from_the_machines_own_description(world) -> None:
    names = list(Kinematics("panda", ()).joint_names)
    limits = RobotLimits.load("panda")
    described = {
        "description": "topic",
        "joints": names,
        "tool_frame": limits.tool_frame,
        "elbow_frame": limits.elbow_frame,
        "acceleration": limits.acceleration.tolist(),
        "jerk": limits.jerk.tolist(),
    }
    with pytest.raises(SafeO2OError, match="/robot_description"):
        Bench(world, "position", **described, description_wait=0.3)
    # Half as fast as the shipped ones, and with a gripper.
    slow = re.sub(
        r'velocity="([0-9.]+)"',
        lambda found: f'velocity="{0.5 * float(found[1])}"',
        shipped_text("robot_models", "panda", ".urdf"),
    )
    gripper = (
        '<link name="finger"/><joint name="finger_joint" type="prismatic">'
        '<parent link="panda_link7"/><child link="finger"/><axis xyz="0 1 0"/>'
        '<limit lower="0" upper="0.04" velocity="0.1" effort="9"/></joint></robot>'
    )
    client = world.client_node
    publisher = client.create_publisher(String, "/robot_description", qos.LATCHED)
    publisher.publish(String(data=slow.replace("</robot>", gripper)))
    bench = Bench(world, "position", **described)
    np.testing.assert_allclose(bench.node.filter.limits.velocity, 0.5 * limits.velocity)
    bench.arm()
    for _ in range(10):
        bench.go(START + 0.05, 0.6)
        if np.abs(bench.controller.q - START).max() > 0.02:
            return
    raise AssertionError(bench.node.health())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"output": "servo"}, "servo"),
        ({"workspace_low": [0.0]}, "workspace_low"),
        ({"controller_joints": ["a", "b"]}, "controller_joints"),
        ({"velocity_gain": 1000.0}, "velocity_gain"),
        ({"arm": "ur5e"}, "acceleration"),
        ({"description": "guess"}, "description"),
        ({"description": "topic"}, "joints"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(world, wrong, says) -> None:
    settings = {"output": "velocity", **BOX, **wrong}
    with pytest.raises(SafeO2OError, match=says):
        SafetyFilterNode(
            context=world.context,
            parameter_overrides=parameters_of(settings),
        ).autostart()
