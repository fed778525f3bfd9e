"""A controller and the arm that obeys it, without either: dry runs of everything before a driver.

It speaks the language of any output and has servos that follow at once. Its joint states come as
those of a joint_state_broadcaster do: in another order than the arm's, with a gripper's among them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sensor_msgs.msg import JointState

from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.safety.kinematics import POSTURES, Kinematics
from safe_o2o.safety.limits import tool_frame
from safe_o2o.types import Array
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import stamp_from_msg
from safe_o2o_ros.node import OK, GuardedNode, Health, run_node
from safe_o2o_ros.outputs import OUTPUTS, listens_at, output_class
from safe_o2o_ros.parameters import setting

OTHERS = ("finger_joint",)
"""A joint that is nobody's business."""


@dataclass(frozen=True)
class MockDriverNodeConfig:
    """Parameters of the mock driver."""

    arm: str = setting("panda", "arm that it pretends to be")
    rate: float = setting(100.0, "joint states a second, Hz")
    driver_states: str = setting("joint_states", "where it tells them")
    output: str = setting("stopping_trajectory", f"what it listens to: {', '.join(OUTPUTS)}")
    controller: str = setting("", "name of the controller that it pretends to be")
    output_topic: str = setting("", "without that name: where it listens; empty for the usual")
    controller_joints: tuple[str, ...] = setting((), "order of a forward controller's joints")
    start: tuple[float, ...] = setting((), "where the arm begins, rad; empty for its posture")
    drift: float = setting(0.0, "error of its velocity servos, rad/s a moving joint")

    def __post_init__(self) -> None:
        require_positive(self, "rate")


class MockDriverNode(GuardedNode):
    """Subscribes to set-points; publishes joint states."""

    def __init__(self, **options: Any) -> None:
        super().__init__("mock_driver_node", MockDriverNodeConfig, **options)

    def on_start(self) -> None:
        """Stand there; publish and listen."""
        config: MockDriverNodeConfig = self.config
        self._tool = tool_frame(config.arm)
        self._kinematics = Kinematics(config.arm, (self._tool,))
        self.names = self._kinematics.joint_names
        start = np.array(config.start or POSTURES.get(config.arm, ()), np.float64)
        if start.shape != (len(self.names),):
            raise ConfigError(f"needs {len(self.names)} positions, got {start.size}", where="start")
        self.q: Array = start
        self.velocity: Array = np.zeros(len(start))
        self._way: list[tuple[float, Array]] = []
        self._order = list(config.controller_joints or self.names)
        self._told, self._now, self._count = 0, time.monotonic(), 0
        spoken = output_class(config.output)
        topic = listens_at(spoken, config.controller, config.output_topic)
        self.create_subscription(spoken.message, topic, self.guarded(self.obey), qos.COMMAND)
        self._states = self.create_publisher(JointState, config.driver_states, qos.STREAM)
        self.create_timer(1.0 / config.rate, self.guarded(self.tell), clock=self.steady)

    def health(self) -> Health:
        """That there is no arm."""
        return OK, "no hardware", {"set-points": self._told}

    def obey(self, msg: Any) -> None:
        """Take a set-point."""
        self.move()
        self._told += 1
        output = self.config.output
        if output.endswith("trajectory"):
            self._way = [(self._now, self.q)] + [
                (
                    self._now + stamp_from_msg(point.time_from_start),
                    self._sorted(point.positions, msg.joint_names),
                )
                for point in msg.points
            ]
        elif output == "position":
            self.q = self._sorted(msg.data, self._order)
        elif output == "velocity":
            self.velocity = self._sorted(msg.data, self._order)
        else:
            linear, angular = msg.twist.linear, msg.twist.angular
            twist = [linear.x, linear.y, linear.z, angular.x, angular.y, angular.z]
            jacobian = self._kinematics.jacobian(self.q, self._tool)
            self.velocity = np.linalg.pinv(jacobian) @ np.array(twist)

    def _sorted(self, values: Sequence[float], names: Sequence[str]) -> Array:
        index = {name: i for i, name in enumerate(names)}
        return np.array([values[index[name]] for name in self.names], np.float64)

    def move(self) -> None:
        """Let time pass until now."""
        now = time.monotonic()
        if self._way:
            times = [when for when, _ in self._way]
            rows = np.array([q for _, q in self._way])
            self.q = np.array([np.interp(now, times, column) for column in rows.T])
        drift = self.config.drift * (self.velocity != 0.0)
        self.q = self.q + (now - self._now) * (self.velocity + drift)
        self._now = now

    def tell(self) -> None:
        """Say where the arm is."""
        self.move()
        self._count += 1
        msg = JointState()
        msg.header.stamp = self.get_clock().now().to_msg()
        msg.name = [*reversed(self.names), *OTHERS]
        msg.position = [*(float(x) for x in self.q[::-1]), *([0.02] * len(OTHERS))]
        self._states.publish(msg)
        if self._count % 10 == 0:  # a gripper's own broadcaster
            msg.name, msg.position = list(OTHERS), [0.02] * len(OTHERS)
            self._states.publish(msg)


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(MockDriverNode, argv)


if __name__ == "__main__":
    sys.exit(main())
