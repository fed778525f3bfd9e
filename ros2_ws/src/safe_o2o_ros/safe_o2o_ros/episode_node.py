"""Episodes of a task on an arm: what is told at each instant, and what a proposal answers.

Children say how an episode is made ready, and how what happened in it is labelled.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from safe_o2o.types import Proposal, RobotState
from safe_o2o_ros import qos
from safe_o2o_ros.arm_node import ArmNode
from safe_o2o_ros.conversions import (
    TaskDescription,
    TaskStatus,
    joint_state_to_msg,
    key_of,
    record_to_msg,
    record_to_text,
)
from safe_o2o_ros.node import Health

KEPT = 64
"""Instants whose answer may still come."""


@dataclass(frozen=True)
class Labels:
    """What happened since the last labels were asked for.

    Attributes:
        reward: of that time.
        cost: of that time.
        terminated: the task ended.
    """

    reward: float = 0.0
    cost: float = 0.0
    terminated: bool = False


class EpisodeNode(ArmNode):
    """Service `~/reset_episode`; publishes states, status and what the task is."""

    labels_by_motion = True
    """Whether `labels` is asked once a proposal, as in one process, or a person's period: a touch
    while the arm holds counts for the next. Else, after the first, at every instant that a decision
    is due."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.episode = self.seed = -1
        self.in_episode = False

    def make_topics(self, description: TaskDescription) -> None:
        """Publishers and the reset service; what the task is is told at once."""
        self.description = description
        self._states = self.create_publisher(JointState, "joint_states", qos.STREAM)
        self._commands = self.create_publisher(JointState, "joint_commands", qos.STREAM)
        self._statuses = self.create_publisher(DiagnosticArray, "task_status", qos.STREAM)
        self._descriptions = self.create_publisher(String, "task_description", qos.LATCHED)
        self.create_service(Trigger, "~/reset_episode", self.guarded(self._on_reset))
        self._descriptions.publish(record_to_text(description))

    # What children fill in.

    def lay_out(self) -> str:
        """Make the next episode ready; `""`, or why it is not, for the caller to ask again."""
        raise NotImplementedError

    def labels(self) -> Labels:
        """What happened since the last call."""
        raise NotImplementedError

    def touch(self) -> tuple[float, float]:
        """Largest contact force since the last call, N, and distance from contact, m; or NaN."""
        return float("nan"), float("nan")

    def began(self, state: RobotState) -> None:
        """An episode has begun with this reading."""

    # The control loop.

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

    def on_failure(self) -> None:
        """The episode is over."""
        self.in_episode = False

    def takes(self, proposal: Proposal) -> bool:
        """Not one of an episode that is over."""
        if not self.in_episode or proposal.stamp < self._began:
            return False
        self._answered_at = asked_at = self._asked.get(key_of(proposal.stamp))
        if asked_at is not None:
            self.latency.add("image_to_proposal", time.monotonic() - asked_at)
        return True

    def after_tick(self, ready: bool) -> None:
        """Publish the state at its rate, and in an episode whenever a decision is due."""
        ready = ready and self.in_episode
        if self.in_episode and self._answered_at is not None:
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
        moved_by = (progress.finished_stamp, progress.human)
        if moved_by != self._labelled or (self._moved and not self.labels_by_motion):
            self._labelled, self._moved = moved_by, True
            found = self.labels()
            self._reward += found.reward
            self._cost += found.cost
            self._terminated |= found.terminated
        force, clearance = self.touch()
        status = TaskStatus(
            **asdict(progress.report),
            stamp=state.stamp,
            began=self._began,
            episode=self.episode,
            seed=self.seed,
            variant=self.description.variant,
            reward=self._reward,
            cost=self._cost,
            force=force,
            clearance=clearance,
            terminated=self._terminated,
            read_at=read_at,
            speed=round(self.real_speed, 4),
        )
        progress.clear_worst()
        self._asked[key_of(state.stamp)] = read_at
        while len(self._asked) > KEPT:
            self._asked.popitem(last=False)
        self._statuses.publish(record_to_msg("task_status", status, state.stamp))

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Begin the next episode, once it is ready."""
        if not self.running:
            response.message = f"{self.get_name()} is not active"
            return response
        with self.latency.time("reset"):
            response.message = self.lay_out()
        if response.message:
            return response
        state = self.robot.read()
        self.episode += 1
        self.progress.reset()
        self.handover.begin()
        self._began = state.stamp
        self._reward = self._cost = 0.0
        self._terminated = False
        self._labelled = (self.progress.finished_stamp, self.progress.human)
        self._moved = False
        self._asked: OrderedDict[int, float] = OrderedDict()
        self._answered_at: float | None = None
        self.began(state)
        self.in_episode = True
        response.success = True
        response.message = json.dumps({"episode": self.episode, "seed": self.seed})
        return response
