"""A person takes the arm from the policy and gives it back: the device, the robot's side, both."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed (pip install 'safe_o2o[ros]')")
pytest.importorskip("safe_o2o_ros.takeover_node", reason="pip install ./ros2_ws/src/safe_o2o_ros")
pytest.importorskip("pybullet", reason="needs the simulator (pip install pybullet)")
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from geometry_msgs.msg import Twist, TwistStamped  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import JointState, Joy  # noqa: E402
from std_msgs.msg import Bool  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from safe_o2o.errors import SafeO2OError  # noqa: E402
from safe_o2o.safety.supervisor import Mode  # noqa: E402
from safe_o2o.types import Array, Proposal  # noqa: E402
from safe_o2o_ros import handover, qos  # noqa: E402
from safe_o2o_ros.conversions import TaskStatus, proposal_to_msg, record_from_msg  # noqa: E402
from safe_o2o_ros.episode_node import Labels  # noqa: E402
from safe_o2o_ros.node import WARN  # noqa: E402
from safe_o2o_ros.robot_node import RobotNode  # noqa: E402
from safe_o2o_ros.takeover_node import DEVICES, TakeoverNode  # noqa: E402
from tests.ros_world import World, make_world  # noqa: E402, F401

pytestmark = pytest.mark.ros
PATIENT = {"command_degrade": 5.0, "command_latch": 20.0, "state_degrade": 5.0, "state_latch": 9.0}


class Bench:
    """A robot node, a takeover node, a device, and a policy that turns the first joint."""

    def __init__(
        self, world: World, device: str = "twist", policy: bool = False, **settings: object
    ) -> None:
        self.world, client = world, world.client_node
        of_robot = {**PATIENT, "takeover": True, "arm_at_reset": True}
        of_device = {"device": device, "silent": 2.0, **settings}
        self.node = RobotNode(context=world.context, parameter_overrides=parameters(of_robot))
        self.takeover = TakeoverNode(
            context=world.context, parameter_overrides=parameters(of_device)
        )
        for node in (self.node, self.takeover):
            world.executor.add_node(node)
            node.autostart()
        self.policy = client.create_publisher(JointTrajectory, "proposals", qos.COMMAND)
        self.device = client.create_publisher(DEVICES[device], "device", qos.SENSOR)
        self.engage = client.create_publisher(Bool, "engage", qos.COMMAND)
        self.said: Any = None
        self.path: list[Array] = []
        self.step = np.array([2e-3, 0, 0, 0, 0, 0, 0])
        self.policy_acts = policy
        heard = (("proposals", self.node), ("device", self.takeover))
        self.until(lambda: all(client.count_subscribers(topic) for topic, _ in heard))
        assert self.call("reset_episode").success
        self.until(lambda: self.takeover._command is not None)

    def until(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        deadline, due = time.monotonic() + timeout, 0.0
        while not condition():
            assert time.monotonic() < deadline, (self.node.health(), self.takeover.health())
            self.node.step(self.world.executor)
            if self.node.ticking:
                self.path.append(self.node.robot.read().q_command)
            if time.monotonic() >= due:
                due = time.monotonic() + 0.05
                self.speak()

    def speak(self) -> None:
        """What policy and device publish, at 20 Hz."""
        if self.policy_acts and self.node.ticking:
            state = self.node.robot.read()
            q = state.q_command + self.step
            names = self.node.robot.joint_names
            self.policy.publish(proposal_to_msg(Proposal(q[None], 0.05, state.stamp, names)))
        if self.said is not None:
            self.device.publish(self.said)

    def call(self, name: str) -> Trigger.Response:
        return self.world.call(Trigger, f"robot_node/{name}", Trigger.Request(), self.until)

    def ticks(self, count: int) -> None:
        """So many control periods."""
        end = self.node._ticks + count
        self.until(lambda: self.node._ticks >= end)

    def mode_is(self, mode: Mode) -> bool:
        return self.node.watch.mode is mode

    @property
    def taken(self) -> bool:
        return self.node.progress.taken_over

    @property
    def tool(self) -> Array:
        state = self.node.robot.read()
        assert self.takeover.cartesian is not None
        return self.takeover.cartesian.position(state.q_command)


def parameters(settings: dict[str, object]) -> list[Parameter]:
    return [Parameter(name, value=value) for name, value in settings.items()]


def twist(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Twist:
    msg = Twist()
    msg.linear.x, msg.linear.y, msg.linear.z = x, y, z
    return msg


def test_a_person_takes_over_and_lets_go_without_a_jump(world) -> None:
    bench = Bench(world, policy=True, linger=1.0)  # a stall of the machine is no rest
    bench.ticks(30)
    assert not bench.taken and bench.path[-1][0] > bench.path[0][0]
    bench.said = twist(x=-1.0)
    bench.until(lambda: bench.taken)
    bench.ticks(10)
    before, turned, human = bench.tool, bench.path[-1][0], bench.node.progress.human
    bench.ticks(50)
    after = bench.tool
    # Half a second at 0.1 m/s, less the way from one command to the next; nothing of the policy's.
    assert -0.06 < after[0] - before[0] < -0.02
    assert np.abs(after - before)[1:].max() < 4e-3 and abs(bench.path[-1][0] - turned) < 0.02
    assert bench.node.progress.human == human + 50
    values = bench.node.health()[2]
    assert values["moved by"] == "a person" and values["takeovers"] == 1
    bench.said = twist()
    bench.until(lambda: not bench.taken)
    at = bench.path[-1][0]
    bench.ticks(30)
    assert bench.path[-1][0] > at and bench.mode_is(Mode.ARMED)
    # From tick to tick the speed changes by no more than the arm may accelerate.
    limits, period = bench.node.filter.limits, bench.node.robot.period
    path = np.array(bench.path)
    path = path[np.r_[True, np.abs(np.diff(path, axis=0)).max(1) > 0]]
    change = np.abs(np.diff(path, 2, axis=0)) / period**2
    assert (change.max(0) <= 1.01 * limits.acceleration).all()


def test_the_policy_is_asked_as_before_while_a_person_drives(world) -> None:
    bench = Bench(world, policy=True)
    bench.said = twist(y=1.0)
    bench.until(lambda: bench.taken)
    seen = {bench.node.progress.finished_stamp}
    bench.until(lambda: seen.add(bench.node.progress.finished_stamp) or len(seen) > 4)
    assert bench.node.progress.proposal is not bench.node.progress.offered


def test_what_a_person_does_is_labelled_where_nobody_else_proposes(world) -> None:
    bench = Bench(world)
    rewards: list[float] = []
    world.client_node.create_subscription(
        DiagnosticArray,
        "task_status",
        lambda msg: rewards.append(record_from_msg(TaskStatus, msg).reward),
        qos.STREAM,
    )
    bench.node.labels = lambda: Labels(reward=1.0)
    bench.until(lambda: len(rewards) >= 3)
    assert rewards[-1] == 0.0  # nothing has been done yet
    bench.said = twist(x=-1.0)
    bench.until(lambda: rewards[-1] >= 2.0)
    bench.said = twist()
    bench.until(lambda: not bench.taken)
    before, count = rewards[-1], len(rewards)
    bench.until(lambda: len(rewards) >= count + 4)
    assert rewards[-1] <= before + 1.0  # its last motion, and nothing of the rest


def test_a_stop_goes_before_a_person_who_has_to_let_go_before_going_on(world) -> None:
    bench = Bench(world, policy=True, linger=2.0)  # a stall of the machine is no rest
    bench.said = twist(z=1.0)
    bench.until(lambda: bench.taken)
    bench.ticks(10)
    assert bench.call("stop").success and bench.mode_is(Mode.STOPPED)
    bench.policy_acts = False
    bench.until(lambda: not bench.taken and bench.call("reset").success)
    stood = bench.tool
    bench.until(lambda: bench.call("arm").success)
    bench.ticks(40)  # the device is still deflected; a twin's servos settle
    np.testing.assert_allclose(bench.tool, stood, atol=1e-3)
    assert bench.takeover.engaged and not bench.taken
    bench.said = twist()
    bench.until(lambda: not bench.takeover.engaged)
    bench.ticks(10)
    bench.said = twist(z=1.0)
    bench.until(lambda: bench.tool[2] > stood[2] + 5e-3)


def test_who_holds_the_device_when_an_episode_begins_has_to_let_go_first(world) -> None:
    bench = Bench(world)
    bench.said = twist(z=1.0)
    bench.until(lambda: bench.taken)
    assert bench.call("reset_episode").success
    start = bench.tool
    bench.ticks(40)
    assert bench.takeover.engaged and not bench.taken and bench.node.progress.human == 0
    np.testing.assert_allclose(bench.tool, start, atol=1e-3)
    bench.said = twist()
    bench.until(lambda: not bench.takeover.engaged)
    bench.ticks(10)
    bench.said = twist(z=1.0)
    bench.until(lambda: bench.taken and bench.tool[2] > start[2] + 5e-3)


def test_a_takeover_node_that_dies_on_the_way_stops_the_arm(world) -> None:
    bench = Bench(world)
    bench.said = twist(x=1.0)
    bench.until(lambda: bench.taken and bench.tool[0] != 0.0)
    bench.ticks(10)
    world.executor.remove_node(bench.takeover)
    bench.takeover.destroy_node()
    bench.until(lambda: bench.mode_is(Mode.STOPPED))
    assert bench.node.watch.supervisor.cause.code == "lost_command"
    assert "takeover" in bench.node.watch.supervisor.cause.detail
    bench.until(lambda: not bench.taken)


def test_a_device_that_falls_silent_leaves_the_arm_standing_with_the_person(world) -> None:
    bench = Bench(world, device="joy", engage="button", button=2, axes=[0, 1, 2], silent=0.2)
    bench.said = Joy(axes=[0.0, 1.0, 0.0], buttons=[0, 0, 1])
    bench.until(lambda: bench.taken)
    bench.ticks(20)
    bench.said = None
    bench.until(lambda: bench.takeover.health()[0] == WARN)
    progress, filter = bench.node.progress, bench.node.filter
    bench.until(lambda: progress.offered is None and len(filter.stop_ahead) == 0)
    stood = bench.tool
    bench.ticks(60)
    np.testing.assert_array_equal(bench.tool, stood)
    assert bench.taken and bench.mode_is(Mode.ARMED)
    bench.said = Joy(axes=[0.0, 0.0, 0.0], buttons=[0, 0, 0])
    bench.until(lambda: not bench.taken)


def test_a_leader_arm_is_followed_from_where_it_was_taken(world) -> None:
    bench = Bench(world, device="joint_state", engage="topic")
    names = [*bench.node.robot.joint_names]
    leader = np.array([1.0, 0.5, 0, -1.0, 0, 1.0, 0])  # far from where the arm is

    def say(q: Array) -> None:
        order = names[::-1]
        bench.said = JointState(name=order, position=[float(x) for x in q[::-1]])

    say(leader)
    bench.until(lambda: bench.takeover._leader is not None)
    start = bench.node.robot.read().q_command
    bench.until(lambda: world.client_node.count_subscribers("engage") > 0)
    bench.engage.publish(Bool(data=True))
    bench.until(lambda: bench.taken)
    bench.ticks(20)
    np.testing.assert_allclose(bench.node.robot.read().q_command, start, atol=1e-6)
    moved = np.array([0.1, -0.05, 0, 0, 0, 0, 0.2])
    say(leader + moved)
    bench.until(lambda: np.abs(bench.node.robot.read().q_command - start - moved).max() < 1e-3)
    bench.engage.publish(Bool(data=False))
    bench.until(lambda: not bench.taken)


def test_a_stamped_twist_in_the_persons_own_directions(world) -> None:
    bench = Bench(world, device="twist_stamped", directions=[-1.0, -1.0, 1.0], full=0.5)
    start = bench.tool
    bench.said = TwistStamped(twist=twist(y=0.5))
    bench.until(lambda: bench.tool[1] < start[1] - 0.02)


def test_what_a_device_says_that_is_no_number_moves_nothing(world) -> None:
    bench = Bench(world)
    start = bench.tool
    bench.said = twist(x=math.nan)
    bench.until(lambda: bench.takeover.errors > 2)
    assert "finite" in bench.takeover.last_error and not bench.taken
    np.testing.assert_array_equal(bench.tool, start)
    bench.said = twist(x=0.04)  # within the deadband
    bench.ticks(20)
    assert not bench.taken


def test_before_a_person_arms_nothing_is_anybodys(world) -> None:
    bench = Bench(world)
    assert bench.call("disarm").success
    start = bench.tool
    bench.said = twist(x=1.0)
    bench.until(lambda: bench.takeover.engaged)
    bench.ticks(20)
    assert not bench.taken
    np.testing.assert_array_equal(bench.tool, start)


@pytest.mark.parametrize(
    "settings",
    (
        {"device": "mouse"},
        {"engage": "button"},
        {"device": "joint_state"},
        {"axes": [0, 1]},
        {"axes": [0, 1, -1]},
        {"deadband": 1.0},
        {"speed": 0.0},
    ),
)
def test_settings_that_make_no_sense_are_refused(world, settings) -> None:
    with pytest.raises(SafeO2OError, match=next(iter(settings)) + "|engage"):
        TakeoverNode(context=world.context, parameter_overrides=parameters(settings))


def test_messages_of_takeover_say_stand_or_let_go() -> None:
    assert handover.stand(("a",)).joint_names == ["a"] and not handover.stand(("a",)).points
    assert not handover.let_go().joint_names and not handover.let_go().points
