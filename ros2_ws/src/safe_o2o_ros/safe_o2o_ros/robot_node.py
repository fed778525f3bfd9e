"""The robot's side of a task: driver (here the twin's physics), filter, episodes and their labels.

The loop runs on the steady clock, `speed` times as fast as the robot's own time, while an episode
is on. A long pause, while a learner trains say, passes slowly: the cores are the learner's then.
"""

from __future__ import annotations

import json
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from safe_o2o import catalog
from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.interfaces import Simulated
from safe_o2o.runtime.cartesian import certified_box
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.supervisor import Mode
from safe_o2o.types import Proposal, RobotState, Verdict
from safe_o2o_ros import qos
from safe_o2o_ros.arm_node import ArmNode, ArmNodeConfig
from safe_o2o_ros.conversions import (
    Scene,
    TaskDescription,
    TaskStatus,
    joint_state_to_msg,
    key_of,
    record_to_msg,
    record_to_text,
)
from safe_o2o_ros.node import Health, run_node
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


class RobotNode(ArmNode):
    """Service `~/reset_episode`; publishes states, status, scene and what the task is."""

    def __init__(self, **options: Any) -> None:
        super().__init__("robot_node", RobotNodeConfig, **options)
        self.episode = -1
        self.seed = self.config.first_seed - 1
        self.in_episode = False

    # Lifecycle.

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
        filter = SafetyFilter.for_robot(
            config.arm,
            workspace=certified_box(self.task.config.workspace),
            tool_speed=self.task.config.tool_speed,
            obstacles=() if config.obstacles else None,
            self_collision=config.self_collision,
            period=robot.period,
        )
        self.make_loop(filter, retry=self.task.spec.action.period, speed=config.speed)
        self._make_topics()

    def _make_topics(self) -> None:
        self._states = self.create_publisher(JointState, "joint_states", qos.STREAM)
        self._commands = self.create_publisher(JointState, "joint_commands", qos.STREAM)
        self._statuses = self.create_publisher(DiagnosticArray, "task_status", qos.STREAM)
        self._scenes = self.create_publisher(String, "scene", qos.LATCHED)
        self._descriptions = self.create_publisher(String, "task_description", qos.LATCHED)
        self.create_service(Trigger, "~/reset_episode", self.guarded(self._on_reset))
        self._descriptions.publish(
            record_to_text(
                TaskDescription(
                    task=self.config.task,
                    variant=self.config.variant,
                    max_steps=self.task.max_steps,
                    joint_names=self.robot.joint_names,
                    spec=self.task.spec.to_json(),
                )
            )
        )

    def on_hold(self) -> None:
        """The arm holds where it is, and the episode is over."""
        self.in_episode = False
        super().on_hold()

    def health(self) -> Health:
        """The arm's, and the episode's number."""
        level, text, values = super().health()
        if self.robot is None:
            return level, text, values
        doing = "in an episode" if self.in_episode else "waits for a reset"
        return level, text or doing, {"episode": self.episode, **values}

    # The control loop.

    @property
    def ticking(self) -> bool:
        """While an episode is on."""
        return self.running and self.in_episode

    def on_failure(self) -> None:
        """The episode is over."""
        self.in_episode = False

    def takes(self, proposal: Proposal) -> bool:
        """Not one of an episode that is over."""
        if proposal.stamp < self._began:
            return False
        self._answered_at = self._asked.get(key_of(proposal.stamp))
        return True

    def after_tick(self, ready: bool) -> None:
        """Publish the state at its rate, and whenever a decision is due."""
        if self._answered_at is not None:
            self.latency.add("image_to_command", time.monotonic() - self._answered_at)
            self._answered_at = None
        if ready or self.telling:
            self._publish_state(ready)

    def _publish_state(self, ready: bool) -> None:
        state, read_at = self.robot.read(), time.monotonic()
        names = self.robot.joint_names
        if ready:
            self._publish_status(state, read_at)
        self._states.publish(joint_state_to_msg(names, state.q, state.dq, state.stamp))
        self._commands.publish(joint_state_to_msg(names, state.q_command, None, state.stamp))

    def _publish_status(self, state: RobotState, read_at: float) -> None:
        progress = self.progress
        if progress.finished_stamp != self._labelled:
            # Once a proposal, as in one process; a touch while holding counts for the next one.
            self._labelled = progress.finished_stamp
            reward, cost, terminated = self.task.outcome()
            self._reward += reward
            self._cost += cost
            self._terminated |= terminated
        counts = progress.counts
        status = TaskStatus(
            stamp=state.stamp,
            began=self._began,
            episode=self.episode,
            seed=self.seed,
            variant=self.config.variant,
            reward=self._reward,
            cost=self._cost,
            force=self.task.contact_force(),
            clearance=self.task.clearance(),
            terminated=self._terminated,
            verdict=int(progress.verdict),
            reason=progress.reason,
            margin=float(progress.margin),
            passed=counts[Verdict.PASS],
            corrected=counts[Verdict.CORRECTED],
            stopped=counts[Verdict.STOPPED],
            held=progress.held,
            proposal_stamp=progress.finished_stamp,
            read_at=read_at,
            speed=round(self.real_speed, 4),
        )
        progress.clear_worst()
        self._asked[key_of(state.stamp)] = read_at
        while len(self._asked) > 64:
            self._asked.popitem(last=False)
        self._statuses.publish(record_to_msg("task_status", status, state.stamp))

    # What comes in.

    def _arm_placed(self) -> str:
        """Make a simulated arm, which was just put to rest, ready to move; `""` or why not."""
        watch, now = self.watch, time.monotonic()
        if watch.mode is Mode.STOPPED and (why := watch.reset(now)):
            return why
        return "" if watch.mode in (Mode.ARMED, Mode.DEGRADED) else watch.arm(now)

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Lay out the next episode: the arm at its start pose, at rest, the filter reset."""
        if not self.running:
            response.message = "robot_node is not active"
            return response
        with self.latency.time("reset"):
            if self.watch.mode is Mode.STOPPED and not self.config.arm_at_reset:
                cause = self.watch.supervisor.cause
                response.message = f"STOPPED by {cause.code if cause else '?'}: reset and arm first"
                return response
            if not self.robot.lifecycle.active:
                self.robot.activate()  # after a control loop that was stopped by an error
            self.seed += 1
            self.episode += 1
            self.task.reset(self.seed)
            state = self.loop.reset()
            if self.config.arm_at_reset and (why := self._arm_placed()):
                response.message = why
                return response
        self.progress.reset()
        self._began = state.stamp
        self._reward = self._cost = 0.0
        self._terminated = False
        self._labelled = self.progress.finished_stamp
        self._asked: OrderedDict[int, float] = OrderedDict()
        self._answered_at: float | None = None
        layout = self.task.layout.scene.to_json()
        self._scenes.publish(record_to_text(Scene(self.episode, state.stamp, layout)))
        self.in_episode = True
        self.start_ticking()
        response.success = True
        response.message = json.dumps({"episode": self.episode, "seed": self.seed})
        return response


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(RobotNode, argv)


if __name__ == "__main__":
    sys.exit(main())
