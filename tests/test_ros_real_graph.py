"""A real arm's graph with mock hardware: an operator's day, as processes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

for needed, how in (
    ("rclpy", "pip install 'safe_o2o[ros]'"),
    ("safe_o2o_ros", "pip install ./ros2_ws/src/safe_o2o_ros"),
):
    pytest.importorskip(needed, reason=f"{needed} is not installed ({how})")

import rclpy  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from geometry_msgs.msg import Twist  # noqa: E402
from rclpy.signals import SignalHandlerOptions  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from safe_o2o.data.dataset import Dataset  # noqa: E402
from safe_o2o.errors import ConfigError  # noqa: E402
from safe_o2o.runtime.deployment import DeployReport, deploy  # noqa: E402
from safe_o2o.runtime.process_group import DeploymentError, free_domain  # noqa: E402
from safe_o2o.safety.supervisor import Mode  # noqa: E402
from safe_o2o.types import Source  # noqa: E402
from safe_o2o_ros import qos  # noqa: E402
from safe_o2o_ros.conversions import joints_from_msg  # noqa: E402
from safe_o2o_ros.real_robot_node import RealRobotNode  # noqa: E402
from tests.standin_policy import standin_bundles  # noqa: E402
from tests.test_ros_graph import node_pids, nothing_leaks  # noqa: E402, F401

pytestmark = pytest.mark.ros
PATIENT = {  # of a machine that does other things as well
    "robot_node": {
        **{"state_degrade": 2.0, "state_latch": 5.0, "command_degrade": 2.0},
        **{"command_latch": 20.0, "image_degrade": 3.0, "image_latch": 9.0},
    },
    "camera_node": {"oldest": 1.0},
}


class Operator:
    """A person at the cell: looks at where the arm is, and calls services."""

    def __init__(self, domain: int) -> None:
        self.context = rclpy.Context()
        rclpy.init(
            context=self.context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO
        )
        self.node = rclpy.create_node("operator", context=self.context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.states: list[JointState] = []
        self.node.create_subscription(JointState, "/joint_states", self.states.append, qos.SENSOR)
        self.statuses: list[DiagnosticArray] = []
        self.node.create_subscription(
            DiagnosticArray, "/safe_o2o/task_status", self.statuses.append, qos.STREAM
        )

    def call(self, name: str, timeout: float = 30.0) -> Trigger.Response:
        client = self.node.create_client(Trigger, f"/safe_o2o/robot_node/{name}")
        deadline = time.monotonic() + timeout
        while not client.service_is_ready():
            assert time.monotonic() < deadline, f"no service {name}"
            self.executor.spin_once(timeout_sec=0.05)
        future = client.call_async(Trigger.Request())
        while not future.done():
            assert time.monotonic() < deadline, f"no answer from {name}"
            self.executor.spin_once(timeout_sec=0.05)
        return future.result()

    def insist(self, name: str, timeout: float = 60.0) -> None:
        """Until it is granted."""
        deadline, answer = time.monotonic() + timeout, None
        while answer is None or not answer.success:
            assert time.monotonic() < deadline, (name, answer)
            answer = self.call(name)
            self.wait(0.1)

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def decisions(self, count: int, timeout: float = 60.0) -> None:
        """So many more instants at which a policy decides."""
        end, deadline = len(self.statuses) + count, time.monotonic() + timeout
        while len(self.statuses) < end:
            assert time.monotonic() < deadline, "no decisions"
            self.wait(0.05)

    def arm_at(self) -> list[float]:
        names = [f"panda_joint{i}" for i in range(1, 8)]
        self.states.clear()
        while not any(set(names) <= set(msg.name) for msg in self.states):
            self.wait(0.05)
        found = next(msg for msg in reversed(self.states) if set(names) <= set(msg.name))
        return joints_from_msg(found, names)[0].tolist()

    def close(self) -> None:
        self.node.destroy_node()
        self.executor.shutdown()
        rclpy.try_shutdown(context=self.context)


@pytest.fixture
def operator(monkeypatch) -> Iterator[Operator]:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with free_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        found = Operator(domain)
        yield found
        found.close()
        for work in Deployment.begun:  # of a test that failed
            work.end()
        Deployment.begun.clear()


class Deployment(threading.Thread):
    """`safe-o2o deploy --graph real --mock yes` in a thread of this process."""

    begun: ClassVar[list[Deployment]] = []

    def __init__(self, run: Path, **settings: object) -> None:
        super().__init__()
        self.run_dir, self.settings = run, settings
        self.report: DeployReport | None = None
        self.error: Exception | None = None
        self.begun.append(self)
        self.start()

    def end(self) -> None:
        """Take away what it cannot do without."""
        while self.is_alive():
            for robot in node_pids("robot_node"):
                os.kill(robot, signal.SIGKILL)
            self.join(1.0)

    def run(self) -> None:
        try:
            self.report = deploy(
                self.run_dir,
                bundles=standin_bundles(),
                ros=True,
                graph="real",
                use_mock_hardware=True,
                **{"parameters": PATIENT, **self.settings},
            )
        except Exception as error:
            self.error = error


def test_an_operator_arms_begins_and_labels_and_the_arm_goes_home_between_episodes(
    operator, tmp_path
) -> None:
    work = Deployment(tmp_path, episodes=2)
    operator.insist("begin")  # already: the scene is laid out
    start = operator.arm_at()
    # In SHADOW an episode runs, and nothing moves.
    operator.insist("success")
    operator.wait(3.0)  # it is over: what moves from here on is not of it
    assert operator.arm_at() == start
    operator.insist("disarm")
    operator.insist("arm")
    operator.insist("begin")
    operator.insist("violation")
    operator.wait(1.5)
    away = operator.arm_at()
    assert max(abs(a - b) for a, b in zip(away, start, strict=True)) > 0.005
    operator.insist("failure")
    work.join(60.0)
    assert work.error is None and work.report is not None, work.error
    shadowed, real = Dataset(tmp_path / "online")
    assert shadowed.array("reward").sum() == 1.0 and shadowed.array("terminated")[-1]
    assert real.array("cost").sum() == 1.0 and real.array("reward").sum() == 0.0
    assert real.array("terminated")[-1] and len(real) >= 5
    assert abs(real.array("action")).max() > 0.1 and not abs(shadowed.array("action")).max() > 0


def test_a_person_takes_over_from_the_policy_and_both_wishes_are_recorded(
    operator, tmp_path
) -> None:
    work = Deployment(tmp_path, episodes=1, takeover=True)
    device = operator.node.create_publisher(Twist, "/spacenav/twist", qos.SENSOR)
    operator.insist("arm")
    operator.insist("begin")
    operator.decisions(5)  # the policy's
    push = Twist()
    push.linear.y = 0.7  # to the left
    for _ in range(40):
        device.publish(push)
        operator.wait(0.05)
    operator.decisions(10)  # the policy's again
    operator.insist("success")
    work.join(60.0)
    assert work.error is None and work.report is not None, work.error
    (episode,) = Dataset(tmp_path / "online")
    human = episode.array("source") == Source.HUMAN
    assert 5 <= human.sum() < len(human) and not human[0] and not human[-1]
    action, wish = episode.array("action"), episode.array("proposed_action")
    assert np.median(action[human][:, 1]) > 0.4
    assert np.abs(action - wish)[human].max(1).mean() > 0.3
    (line,) = (tmp_path / "deploy" / "episodes.jsonl").read_text().splitlines()
    assert json.loads(line)["ticks"]["human"] > 100


def test_a_word_of_success_is_heard_while_the_arm_rests(operator, tmp_path) -> None:
    work = Deployment(tmp_path, episodes=1, takeover=True, drive="demonstrate")
    device = operator.node.create_publisher(Twist, "/spacenav/twist", qos.SENSOR)
    operator.insist("arm")
    operator.insist("begin")
    operator.decisions(3)  # what moves before is done once more
    push = Twist()
    push.linear.y = 0.7
    for _ in range(30):
        device.publish(push)
        operator.wait(0.05)
    device.publish(Twist())
    operator.wait(2.0)  # at the goal, at rest, and nobody moves it any more
    operator.insist("success")
    work.join(60.0)
    assert work.error is None and work.report is not None, work.error
    (episode,) = Dataset(tmp_path / "dataset")
    assert len(episode) < 60  # not what is left of the eighty steps
    assert episode.array("reward").sum() == 1.0 and episode.array("terminated")[-1]


def test_a_begin_does_not_outlive_a_stop(operator, tmp_path) -> None:
    Deployment(tmp_path, episodes=1)
    operator.insist("arm")
    operator.insist("begin")
    operator.insist("stop")
    assert not operator.call("begin").success  # STOPPED
    operator.insist("reset")
    operator.insist("arm")
    operator.wait(3.0)
    assert "no episode" in operator.call("success").message
    operator.insist("begin")
    operator.insist("success")


def test_an_arm_of_another_make_moves_from_its_own_posture(operator, tmp_path) -> None:
    cell = {"workspace_low": [0.35, -0.15, 0.1], "workspace_high": [0.55, 0.15, 0.3]}
    measured = {"acceleration": [5.0] * 6, "jerk": [100.0] * 6}
    robot = {**PATIENT["robot_node"], **cell, **measured, "arm": "ur5e"}
    parameters = {**PATIENT, "robot_node": robot, "mock_driver_node": {"arm": "ur5e"}}
    work = Deployment(tmp_path, episodes=1, parameters=parameters)
    operator.insist("arm")
    operator.insist("begin")
    operator.decisions(10)
    operator.insist("success")
    work.join(60.0)
    assert work.error is None and work.report is not None, work.error
    (episode,) = Dataset(tmp_path / "online")
    tool = episode.array("obs.tcp_pose")[:, :3]
    assert tool[0] == pytest.approx([0.45, 0.0, 0.2], abs=1e-3)  # the middle of its workspace
    assert np.ptp(tool, axis=0).max() > 0.01


def test_a_dead_camera_stops_a_real_arm(operator, tmp_path) -> None:
    work = Deployment(tmp_path, episodes=1)
    operator.insist("arm")
    operator.insist("begin")
    operator.wait(1.0)
    (camera,) = node_pids("camera_node")
    os.kill(camera, signal.SIGKILL)
    work.join(30.0)
    assert isinstance(work.error, DeploymentError) and "camera_node" in str(work.error)


def test_mock_hardware_is_no_twins(tmp_path) -> None:
    with pytest.raises(ConfigError, match="use_mock_hardware"):
        deploy(tmp_path, bundles=standin_bundles(), use_mock_hardware=True)


def test_who_finds_the_arm_at_home_ends_its_way_there() -> None:
    """Asked between two ticks: else the watchdog waits for commands that nobody sends any more."""
    ended: list[str] = []
    node = SimpleNamespace(
        in_episode=True,
        ticking=True,
        watch=SimpleNamespace(
            mode=Mode.ARMED,
            supervisor=SimpleNamespace(cause=None),
            idle=lambda: ended.append("idle"),
        ),
        progress=SimpleNamespace(taken_over=False, reset=lambda: ended.append("reset")),
        config=SimpleNamespace(go_home=True, operator_begins=True),
        _at_home=lambda: True,
        _homing=True,
        _begun=False,
    )
    node._end_way_home = lambda: RealRobotNode._end_way_home(node)
    assert "waits for the operator" in RealRobotNode.lay_out(node)
    assert ended == ["reset", "idle"] and not node._homing
    assert "waits for the operator" in RealRobotNode.lay_out(node)
    assert ended == ["reset", "idle"]  # once
