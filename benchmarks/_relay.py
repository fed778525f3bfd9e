"""The messages of a decision passed on by bare rclpy nodes that do nothing: what transport costs.

`robot` sends joint states, commands and a status and waits for a trajectory; `camera` answers a
status with a picture; `policy` answers a picture with a trajectory. The same types, sizes,
quality of service, executor and start-up as in the graph. `ticker` does nothing, HZ times a second.

    python benchmarks/_relay.py robot|camera|policy|ticker [FILE] [HZ]
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from safe_o2o.runtime.latency import StageLatency
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import TaskStatus, record_to_msg, stamp_to_msg
from safe_o2o_ros.node import make_executor
from safe_o2o_ros.progress import ProposalProgress

JOINTS = [f"panda_joint{i}" for i in range(1, 8)]
SIZE = 64
STATUS = TaskStatus(
    **asdict(ProposalProgress(0.01, 0.2).report),
    stamp=0.0,
    began=0.0,
    episode=0,
    seed=0,
    variant="standard",
    reward=0.0,
    cost=0.0,
    force=0.0,
    clearance=0.1,
    terminated=False,
    read_at=0.0,
    speed=1.0,
)


class Relay:
    """One of the three."""

    def __init__(self, node: Node, role: str, latency: StageLatency) -> None:
        self.node, self.latency, self.sent = node, latency, 0.0
        self.status = record_to_msg("task_status", STATUS, 0.0)
        self.joints = JointState(name=JOINTS, position=[0.0] * 7, velocity=[0.0] * 7)
        self.picture = Image(height=SIZE, width=SIZE, encoding="rgb8", step=3 * SIZE)
        self.picture.data = bytes(3 * SIZE * SIZE)
        point = JointTrajectoryPoint(positions=[0.0] * 7)
        self.trajectory = JointTrajectory(joint_names=JOINTS, points=[point])
        if role == "robot":
            self.publishers = [
                (node.create_publisher(JointState, "floor/joint_states", qos.STREAM), self.joints),
                (node.create_publisher(JointState, "floor/commands", qos.STREAM), self.joints),
                (node.create_publisher(DiagnosticArray, "floor/status", qos.STREAM), self.status),
            ]
            node.create_subscription(
                JointTrajectory, "floor/trajectory", self._arrived, qos.COMMAND
            )
        elif role == "camera":
            self._answer(DiagnosticArray, "floor/status", Image, "floor/image", self.picture)
        else:
            self._answer(Image, "floor/image", JointTrajectory, "floor/trajectory", self.trajectory)

    def _answer(self, heard: Any, topic: str, kind: Any, to: str, answer: Any) -> None:
        profile = qos.COMMAND if kind is JointTrajectory else qos.STREAM
        publisher = self.node.create_publisher(kind, to, profile)

        def pass_on(msg: Any) -> None:
            answer.header = Header(stamp=msg.header.stamp)
            publisher.publish(answer)

        self.node.create_subscription(heard, topic, pass_on, qos.STREAM)

    def send(self) -> None:
        """One decision's worth."""
        self.sent = time.monotonic()
        for publisher, msg in self.publishers:
            msg.header.stamp = stamp_to_msg(self.sent)
            publisher.publish(msg)

    def _arrived(self, msg: JointTrajectory) -> None:
        if msg.header.stamp == stamp_to_msg(self.sent):
            self.latency.add("floor", time.monotonic() - self.sent)


def main() -> None:
    role = sys.argv[1]
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    stop, executor = threading.Event(), make_executor()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    node, latency = Node(f"floor_{role}"), StageLatency()
    executor.add_node(node)
    if role == "ticker":
        tick(executor, stop, latency)
    else:
        serve(Relay(node, role, latency), role, executor, stop)
    if role in ("robot", "ticker"):
        latency.write(Path(sys.argv[2]))
    node.destroy_node()
    executor.shutdown()
    rclpy.try_shutdown()


def tick(executor: Any, stop: threading.Event, latency: StageLatency) -> None:
    """Wait as the control loop does, and do nothing."""
    period = 1.0 / float(sys.argv[3])
    due = time.perf_counter()
    while not stop.is_set():
        executor.spin_once(timeout_sec=max(0.0, due - time.perf_counter()))
        late = time.perf_counter() - due
        if late >= 0.0:
            latency.add("floor_lateness", late)
            latency.add("floor_late" if late > 0.5 * period else "floor_in_time", late)
            due = max(due, due + late - 5.0 * period) + period


def serve(relay: Relay, role: str, executor: Any, stop: threading.Event) -> None:
    """Serve messages; the robot sends some."""
    due = 0.0
    while not stop.is_set():
        executor.spin_once(timeout_sec=0.005)
        if role == "robot" and time.monotonic() >= due:
            due = time.monotonic() + 1.0 / float(sys.argv[3])
            relay.send()


if __name__ == "__main__":
    main()
