"""The robot's side of a task on the twin: its physics, filter and episodes in one process.

The loop runs on the steady clock, `speed` times as fast as the robot's own time, while an episode
is on. A long pause, while a learner trains say, passes slowly: the cores are the learner's then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from std_msgs.msg import String

from safe_o2o import catalog
from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.interfaces import Simulated
from safe_o2o.runtime.cartesian import certified_box
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.supervisor import Mode
from safe_o2o.types import RobotState
from safe_o2o_ros import qos
from safe_o2o_ros.arm_node import ArmNodeConfig
from safe_o2o_ros.conversions import Scene, TaskDescription, record_to_text
from safe_o2o_ros.episode_node import EpisodeNode, Labels
from safe_o2o_ros.node import run_node
from safe_o2o_ros.parameters import setting


@dataclass(frozen=True)
class RobotNodeConfig(ArmNodeConfig):
    """Parameters of the robot node."""

    robot: str = setting("pybullet_twin", "catalogue name of the robot")
    task: str = setting("safe_reach", "catalogue name of the task")
    variant: str = setting("standard", "scene variant of the task")
    first_seed: int = setting(0, "seed of the first layout; each reset takes the next one")
    speed: float = setting(1.0, "robot time per wall time; 1 is real time")
    arm_at_reset: bool = setting(
        False, "simulated arms only: a new episode resets and arms the supervisor"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "speed")


class RobotNode(EpisodeNode):
    """Publishes the scene as well, for who has to draw it."""

    def __init__(self, **options: Any) -> None:
        super().__init__("robot_node", RobotNodeConfig, **options)
        self.seed = self.config.first_seed - 1

    def on_start(self) -> None:
        """Robot, task and filter; publishers and the reset service."""
        config: RobotNodeConfig = self.config
        made: Any = catalog.load("task", config.task)
        robot = catalog.load("robot", config.robot)(continuous_clock=True)
        if config.arm_at_reset and not isinstance(robot, Simulated):
            raise ConfigError("is for simulated arms only", where="arm_at_reset")
        robot.connect()
        self.robot = robot
        # No camera here: the picture is made in another process, from its own copy of the scene.
        self.task = made(robot, None, made.config_class(variant=config.variant))
        workspace = self.task.config.workspace
        filter = SafetyFilter.for_robot(
            config.arm,
            workspace=certified_box(workspace),
            tool_speed=self.task.config.tool_speed,
            obstacles=() if config.obstacles else None,
            self_collision=config.self_collision,
            period=robot.period,
        )
        self.make_loop(filter, retry=self.task.spec.action.period, speed=config.speed)
        self._scenes = self.create_publisher(String, "scene", qos.LATCHED)
        self.make_topics(
            TaskDescription(
                task=config.task,
                variant=config.variant,
                max_steps=self.task.max_steps,
                joint_names=robot.joint_names,
                spec=self.task.spec.to_json(),
                arm=config.arm,
                tool_frame="",
                posture=(),
                workspace=workspace,
            )
        )

    @property
    def ticking(self) -> bool:
        """While an episode is on: time does not pass on the twin between them."""
        return self.running and self.in_episode

    def lay_out(self) -> str:
        """Lay out the next scene: the arm at its start pose, at rest, the filter reset."""
        watch = self.watch
        if watch.mode is Mode.STOPPED and not self.config.arm_at_reset:
            cause = watch.supervisor.cause
            return f"STOPPED by {cause.code if cause else '?'}: reset and arm first"
        if not self.robot.lifecycle.active:
            self.robot.activate()  # after a control loop that was stopped by an error
        self.seed += 1
        self.task.reset(self.seed)
        self.loop.reset()
        return self._arm_placed() if self.config.arm_at_reset else ""

    def labels(self) -> Labels:
        """The twin labels itself."""
        return Labels(*self.task.outcome())

    def touch(self) -> tuple[float, float]:
        """As the twin feels and knows it."""
        return self.task.contact_force(), self.task.clearance()

    def began(self, state: RobotState) -> None:
        """Tell the scene; time passes from now on."""
        layout = self.task.layout.scene.to_json()
        self._scenes.publish(record_to_text(Scene(self.episode, state.stamp, layout)))
        self.start_ticking()

    def _arm_placed(self) -> str:
        """Make a simulated arm, which was just put to rest, ready to move; `""` or why not."""
        watch, now = self.watch, time.monotonic()
        if watch.mode is Mode.STOPPED and (why := watch.reset(now)):
            return why
        return "" if watch.mode in (Mode.ARMED, Mode.DEGRADED) else watch.arm(now)


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(RobotNode, argv)


if __name__ == "__main__":
    sys.exit(main())
