"""The robot node's supervisor over ROS: services, what a lost policy does, what diagnostics say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed (pip install 'safe_o2o[ros]')")
robot_node = pytest.importorskip(
    "safe_o2o_ros.robot_node", reason="pip install ./ros2_ws/src/safe_o2o_ros"
)
pytest.importorskip("pybullet", reason="needs the simulator (pip install pybullet)")
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import Image, PointCloud2  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from safe_o2o.errors import ConfigError  # noqa: E402
from safe_o2o.safety.obstacle import Obstacle  # noqa: E402
from safe_o2o.safety.supervisor import Mode  # noqa: E402
from safe_o2o.types import Proposal  # noqa: E402
from safe_o2o_ros import arm_node, qos  # noqa: E402
from safe_o2o_ros.conversions import proposal_to_msg  # noqa: E402
from safe_o2o_ros.node import ERROR  # noqa: E402
from safe_o2o_ros.obstacles import obstacles_from_msg, obstacles_to_msg  # noqa: E402
from tests.ros_world import World, make_world  # noqa: E402, F401

pytestmark = pytest.mark.ros


class Bench:
    """A robot node in this process, and a policy that only wiggles one joint."""

    def __init__(self, world: World, **parameters: object) -> None:
        self.world = world
        self.node = robot_node.RobotNode(
            context=world.context,
            parameter_overrides=[
                Parameter(name, value=value) for name, value in parameters.items()
            ],
        )
        world.executor.add_node(self.node)
        self.node.autostart()
        self.policy = world.client_node.create_publisher(JointTrajectory, "proposals", qos.COMMAND)
        self.sent = 0

    def until(self, condition: Callable[[], bool], timeout: float = 20.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.node.health()
            self.node.step(self.world.executor)

    def call(self, name: str) -> Trigger.Response:
        return self.world.call(Trigger, f"robot_node/{name}", Trigger.Request(), self.until)

    def propose(self) -> None:
        state = self.node.robot.read()
        q = state.q_command + np.array([2e-3, 0, 0, 0, 0, 0, 0])
        names = self.node.robot.joint_names
        self.policy.publish(proposal_to_msg(Proposal(q[None], 0.05, state.stamp, names)))
        self.sent += 1

    def drive(self, seconds: float) -> None:
        """A policy at 20 Hz."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.propose()
            due = time.monotonic() + 0.05
            self.until(lambda: time.monotonic() >= due)  # noqa: B023

    @property
    def mode(self) -> Mode:
        return self.node.watch.mode


def test_nothing_moves_before_a_person_arms_and_after_a_stop_until_reset_and_arm(world) -> None:
    bench = Bench(world, command_degrade=0.5, command_latch=2.0)
    bench.until(lambda: world.client_node.count_subscribers("proposals") > 0)
    assert bench.call("reset_episode").success
    start = bench.node.robot.read().q_command
    bench.drive(0.3)
    assert bench.mode is Mode.DISARMED
    np.testing.assert_array_equal(bench.node.robot.read().q_command, start)
    bench.until(lambda: bench.call("arm").success)
    bench.drive(0.5)
    assert bench.node.robot.read().q_command[0] > start[0] + 2e-3
    assert bench.call("stop").success and bench.mode is Mode.STOPPED
    bench.drive(0.5)
    stood = bench.node.robot.read().q_command
    bench.drive(0.3)
    np.testing.assert_array_equal(bench.node.robot.read().q_command, stood)
    assert "reset first" in bench.call("arm").message
    refused = bench.call("reset_episode")
    assert not refused.success and "operator" in refused.message
    level, text, values = bench.node.health()
    assert level == ERROR and "operator" in text and values["mode"] == "STOPPED"
    assert bench.call("reset").message == "DISARMED"
    bench.until(lambda: bench.call("arm").success)
    bench.drive(0.3)
    assert (bench.node.robot.read().q_command != stood).any()


def test_a_silent_policy_latches_a_stop_and_shadow_mode_only_watches(world) -> None:
    bench = Bench(world, command_degrade=0.2, command_latch=0.6)
    assert bench.call("reset_episode").success
    assert bench.call("shadow").message == "SHADOW"
    start = bench.node.robot.read().q_command
    bench.drive(0.5)
    np.testing.assert_array_equal(bench.node.robot.read().q_command, start)
    assert bench.node.watch.shadow_report.report()["proposed"] > 10
    answer = bench.call("shadow_report")
    report = json.loads(answer.message)
    assert report["proposed"] > 10 and report["interventions"] == 0
    assert not answer.success and any("10000" in line for line in report["missing"])
    assert bench.call("arm").success
    bench.drive(0.3)
    bench.until(lambda: bench.mode is Mode.STOPPED)
    cause = bench.node.watch.supervisor.cause
    assert cause is not None and cause.code == "lost_command"


def test_a_simulated_arm_may_be_armed_by_its_episodes(world) -> None:
    bench = Bench(world, arm_at_reset=True)
    for _ in range(2):
        answer = bench.call("reset_episode")
        assert answer.success and bench.mode is Mode.ARMED, answer.message
        bench.drive(0.2)
        bench.call("stop")
        assert bench.mode is Mode.STOPPED
    assert json.loads(bench.call("reset_episode").message)["episode"] == 2


def test_a_simulated_arm_at_rest_leaves_the_processor_to_the_learner(world) -> None:
    bench = Bench(world, speed=8.0)
    node = bench.node
    assert bench.call("reset_episode").success

    def due_after() -> float:
        """Wall time from a tick that is on time to the next one, s."""
        due = node._next
        node._schedule(due)
        return node._next - due

    assert due_after() == pytest.approx(0.01 / 8.0)
    bench.until(lambda: node.progress.resting)
    assert due_after() == pytest.approx(0.01 / arm_node.REST_SPEED)
    bench.until(lambda: world.client_node.count_subscribers("proposals") > 0)
    bench.propose()
    bench.until(lambda: not node.progress.resting)
    assert due_after() == pytest.approx(0.01 / 8.0)


def test_a_frozen_camera_latches_a_stop(world) -> None:
    bench = Bench(world, image_topics=["wrist/image"], image_degrade=0.3, image_latch=0.8)
    camera = world.client_node.create_publisher(Image, "wrist/image", qos.STREAM)
    bench.until(lambda: camera.get_subscription_count() > 0)
    shot, frozen = 0, False

    def show() -> None:
        nonlocal shot
        shot += not frozen
        camera.publish(Image(height=2, width=2, encoding="rgb8", step=6, data=bytes([shot] * 12)))

    timer = world.client_node.create_timer(1 / 30, show)
    assert bench.call("reset_episode").success
    bench.until(lambda: bench.call("arm").success)
    due = time.monotonic() + 0.5
    bench.until(lambda: time.monotonic() > due)
    assert bench.mode is Mode.ARMED
    frozen = True
    bench.until(lambda: bench.mode is Mode.STOPPED)
    timer.cancel()
    cause = bench.node.watch.supervisor.cause
    assert cause is not None and cause.code == "lost_image:wrist/image"


def test_obstacles_come_by_topic_and_their_silence_stops_the_arm(world) -> None:
    bench = Bench(
        world, obstacles=True, self_collision=True, command_degrade=1.0, command_latch=9.0
    )
    eye = world.client_node.create_publisher(PointCloud2, "obstacles", qos.STREAM)
    bench.until(lambda: eye.get_subscription_count() > 0)
    seen: list[Obstacle] = []

    def tell() -> None:
        stamp = bench.node.robot.read().stamp
        now = [replace(obstacle, stamp=stamp) for obstacle in seen]
        eye.publish(obstacles_to_msg(now, stamp, "base"))

    assert bench.call("reset_episode").success
    assert "obstacles" in bench.call("arm").message
    timer = world.client_node.create_timer(1 / 30, tell)
    bench.until(lambda: bench.call("arm").success)
    bench.drive(0.5)
    bench.until(lambda: bench.mode is Mode.ARMED)  # a tick that came too late is over by itself
    assert bench.node.progress.report.passed > 20
    hand = tuple(float(x) for x in bench.node.task.cartesian.position(bench.node.robot.read().q))
    seen.append(Obstacle("0", (hand[0], hand[1], hand[2] + 0.3), 0.05, max_speed=0.5, stamp=0.0))
    bench.drive(0.3)
    moved = bench.node.robot.read().q_command
    bench.drive(0.5)
    np.testing.assert_array_equal(bench.node.robot.read().q_command, moved)
    bench.until(lambda: bench.mode is Mode.ARMED)  # held by the filter, and no fault
    timer.cancel()
    bench.until(lambda: bench.mode is Mode.STOPPED)
    cause = bench.node.watch.supervisor.cause
    assert cause is not None and cause.code == "lost_obstacles"


def test_obstacles_survive_the_wire() -> None:
    sent = [
        Obstacle("obstacle_0", (0.5, 0.1, 0.2), 0.05),
        Obstacle("obstacle_1", (0.5, 0.1, 0.2), 0.1, end=(0.5, 0.1, 0.6), error=0.01, speed=0.2,
                 max_speed=0.5, max_acceleration=2.0, stamp=3.5),
    ]  # fmt: skip
    assert obstacles_from_msg(obstacles_to_msg(sent, 3.5, "base"), "base") == sent
    assert obstacles_from_msg(obstacles_to_msg([], 3.5, "base"), "base") == []
    with pytest.raises(ConfigError, match="frame"):
        obstacles_from_msg(obstacles_to_msg(sent, 3.5, "map"), "base")
    short = obstacles_to_msg(sent, 3.5, "base")
    short.data = short.data[:-5]
    with pytest.raises(ConfigError, match="cannot be read"):
        obstacles_from_msg(short, "base")
    blind = obstacles_to_msg(sent, 3.5, "base")
    blind.fields = [field for field in blind.fields if field.name != "radius"]
    with pytest.raises(ConfigError, match="radius"):
        obstacles_from_msg(blind, "base")
