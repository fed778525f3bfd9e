"""What stands behind a safety filter node in tests: a controller and the arm that obeys it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import JointState

from safe_o2o.safety.kinematics import Kinematics
from safe_o2o.types import Array
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import stamp_from_msg
from safe_o2o_ros.outputs import OUTPUTS

TOOL = "panda_hand_tcp"


class StandInController:
    """Obeys as the real controllers do, with servos that follow at once.

    Joint states come in another order than the filter's and with a gripper among them, as they do
    from a joint_state_broadcaster; every second message is of a gripper alone.

    Args:
        node: its ROS node; somebody spins it.
        output: whose language it speaks.
        q: where the arm begins `[n]`, rad.
        drifts: error of a velocity servo, rad/s a joint.
    """

    def __init__(self, node: Any, output: str, q: Array, drifts: float = 0.0) -> None:
        self.kinematics = Kinematics("panda", (TOOL,))
        self.names = self.kinematics.joint_names
        self.q, self.drifts = np.array(q), drifts
        self.output, self.speaks = output, True
        self.velocity = np.zeros(len(q))
        self.way: list[tuple[float, Array]] = []
        self.messages: list[Any] = []
        self.path: list[Array] = [self.q.copy()]
        self._now = time.monotonic()
        self._node, self._order = node, list(reversed(self.names))
        spoken = OUTPUTS[output]
        node.create_subscription(spoken.message, spoken.topic, self._on_message, qos.COMMAND)
        self._states = node.create_publisher(JointState, "joint_states", qos.SENSOR)
        self._count = 0
        node.create_timer(0.01, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _on_message(self, msg: Any) -> None:
        self._move()
        self.messages.append(msg)
        if self.output in ("joint_trajectory", "stopping_trajectory"):
            assert list(msg.joint_names) == list(self.names)
            self.way = [(self._now, self.q.copy())] + [
                (self._now + stamp_from_msg(point.time_from_start), np.array(point.positions))
                for point in msg.points
            ]
        elif self.output == "position":
            self.q = np.array(msg.data)[::-1]
        elif self.output == "velocity":
            self.velocity = np.array(msg.data)[::-1]
        else:
            linear, angular = msg.twist.linear, msg.twist.angular
            twist = [linear.x, linear.y, linear.z, angular.x, angular.y, angular.z]
            jacobian = self.kinematics.jacobian(self.q, TOOL)
            self.velocity = np.linalg.pinv(jacobian) @ twist

    def _move(self) -> None:
        """Let time pass until now."""
        now = time.monotonic()
        if self.way:
            times = [when for when, _ in self.way]
            rows = np.array([q for _, q in self.way])
            self.q = np.array([np.interp(now, times, column) for column in rows.T])
        drift = self.drifts * (self.velocity != 0.0)
        self.q = self.q + (now - self._now) * (self.velocity + drift)
        self._now = now
        self.path.append(self.q.copy())

    def _tick(self) -> None:
        self._move()
        if not self.speaks:
            return
        self._count += 1
        msg = JointState()
        msg.header.stamp = self._node.get_clock().now().to_msg()
        if self._count % 2:
            index = [self.names.index(name) for name in self._order]
            msg.name = [*self._order[:3], "finger_joint", *self._order[3:]]
            values = [float(x) for x in self.q[index]]
            msg.position = [*values[:3], 0.02, *values[3:]]
        else:
            msg.name, msg.position = ["finger_joint"], [0.02]
        self._states.publish(msg)
