"""What drives episodes: asks for one, answers its instants, says when it is over.

A decision needs picture, joint states, last certified command and task status of one and the same
instant. What is published is a proposal; the robot's side decides what becomes of it. Children say
who decides: a policy, a person, a recording.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from safe_o2o.errors import ConfigError
from safe_o2o.spaces import Spec
from safe_o2o.types import STALLED, Array, Observation, Proposal, RobotState, Source
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import (
    EpisodeCommitted,
    PolicyOutput,
    TaskDescription,
    TaskStatus,
    image_from_msg,
    key_of,
    proposal_to_msg,
    record_from_msg,
    record_from_text,
    record_to_msg,
    robot_state,
    stamp_from_msg,
)
from safe_o2o_ros.described_task import cartesian_of
from safe_o2o_ros.instants import Instants
from safe_o2o_ros.node import OK, GuardedNode, Health
from safe_o2o_ros.parameters import setting

RECORDER_TIMEOUT = 15.0
"""Discovery of a new process takes 0.3 s, now and then 3 s; beyond this it is not coming, s."""
ANSWER_TIMEOUT = 2.0
"""Wall time after its end at which a proposal that the robot never reported on is lost, s."""
COMMIT_TIMEOUT = 5.0
"""Wall time after which the recorder's word on an ended episode is not coming, s."""
MOST_PASSED_OVER = 3
"""Instants in a row that are passed over because their picture was late."""
STUCK = 30.0
"""Time in one phase after which the log says which, s."""
ASK_AGAIN = 0.3
"""Time until a robot that has no new episode yet is asked again, s."""


@dataclass(frozen=True)
class EpisodeDriverConfig:
    """Parameters of whoever drives episodes."""

    run_dir: str = setting("", "run directory")
    episodes: int = setting(0, "episodes to run; 0 goes on until stopped")
    recorder: bool = setting(True, "wait for the recorder before the first decision")
    exit_when_done: bool = setting(False, "end the process after the last episode")

    def __post_init__(self) -> None:
        if not self.episodes >= 0:
            raise ConfigError(f"must be 0 or more, got {self.episodes}", where="episodes")


@dataclass(frozen=True)
class Turn:
    """What is decided at an instant.

    Attributes:
        wish: the action `[A]` in [-1, 1] that is recorded as proposed; NaN where nobody has one.
        proposal: what is sent to the robot; None for nothing.
        figures: what else is worth keeping, a number each.
    """

    wish: Array
    proposal: Proposal | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Who:
    """Who decides, for the recorded episodes.

    Attributes:
        behavior: in words.
        source: in each step.
        bundle: version of the policy bundle, if any.
        graph: hash of its graph.
        gate: what its reachability gate may do.
        round: number of the round of online learning, from 0.
    """

    behavior: str
    source: Source
    bundle: str = ""
    graph: str = ""
    gate: str = "off"
    round: int = 0


class EpisodeDriver(GuardedNode):
    """See the module; `phase` says what it is waiting for.

    Phases: `connect` (the robot's description and service), `between` (whatever children wait for),
    `reset` (the robot's answer), `recorder` (first episode only), `run`, `commit` (the recorder's
    word).
    """

    def __init__(self, name: str, config_cls: type[EpisodeDriverConfig], **options: Any) -> None:
        super().__init__(name, config_cls, **options)
        self.phase = "connect"
        self.task: TaskDescription | None = None
        self.done = 0
        self.failed_commits = 0
        self._phase_since, self._said_stuck = time.monotonic(), False
        self._newest_stamp = self._newest_offer = 0.0
        self._passed_over = 0
        self._future: Any = None
        self._recorder_ready = False
        self._refusal, self._pause = "", 0.0
        self._clear_episode(-1)

    # What children fill in.

    @property
    def who(self) -> Who:
        """Who decides in this episode."""
        raise NotImplementedError

    def decide(self, status: TaskStatus, state: RobotState, obs: Observation) -> Turn | None:
        """Decide at one instant; None where the episode has not begun yet."""
        raise NotImplementedError

    def on_task(self, spec: Spec) -> None:
        """The robot has described its task. Raises where it is not one for this node."""

    def begin(self, seed: int) -> None:
        """An episode begins, of the layout with this seed."""

    def exhausted(self) -> bool:
        """Whether there is nothing left to decide in this episode, whatever the task says."""
        return False

    def stalled(self) -> bool:
        """Whether the episode is cut off because the decider is at a loss."""
        return False

    def may_go_on(self, waited: float) -> bool:
        """Whether the next episode may be asked for, having waited so long, s."""
        return True

    def before_reset(self) -> None:
        """The next episode is about to be asked for."""

    # Lifecycle.

    def on_start(self) -> None:
        """Subscribe."""
        self._instants = Instants(self, self._on_instant, self._hear)
        self._proposals = self.create_publisher(JointTrajectory, "proposals", qos.COMMAND)
        self._outputs = self.create_publisher(DiagnosticArray, "policy_output", qos.LOGGED)
        self._reset = self.create_client(Trigger, "robot_node/reset_episode")
        self._ready = self.create_client(Trigger, "recorder_node/ready")
        for kind, topic, callback, profile in (
            (String, "task_description", self._on_task, qos.LATCHED),
            (DiagnosticArray, "episode_committed", self._on_committed, qos.LOGGED),
        ):
            self.create_subscription(kind, topic, self.guarded(callback), profile)
        self.create_timer(0.05, self.guarded(self.advance), clock=self.steady)

    def health(self) -> Health:
        """Phase and progress, or why the robot has no new episode yet."""
        values = {"phase": self.phase, "episodes": self.done, "unmatched": self._instants.dropped}
        return OK, self._refusal or self.phase, values

    # What comes in.

    def _on_task(self, msg: String) -> None:
        task = record_from_text(TaskDescription, msg)
        spec = Spec.from_json(task.spec)
        self.on_task(spec)
        self.spec, self.task = spec, task
        self.cartesian = cartesian_of(task, spec)

    def _hear(self, part: str, msg: Any) -> None:
        """What is the newest there is?"""
        if part == "measured":
            self._newest_stamp = max(self._newest_stamp, stamp_from_msg(msg.header.stamp))
        elif part == "status":
            self._newest_offer = max(self._newest_offer, msg.stamp)

    def _on_committed(self, msg: DiagnosticArray) -> None:
        committed = record_from_msg(EpisodeCommitted, msg)
        if committed.episode == self.episode and self.phase == "commit":
            self._episode_done(committed.path != "")

    # One decision.

    def _on_instant(self, parts: Mapping[str, Any]) -> None:
        if self.phase != "run":
            return
        status: TaskStatus = parts["status"]
        assert self.task is not None
        if status.episode != self.episode or self._is_early(status) or self._is_late(status):
            return
        self._passed_over = 0
        over = status.terminated or self.stalled() or self.exhausted()
        if over or self.step_count >= self.task.max_steps:
            self._end(status)
            return
        state = robot_state(parts["measured"], parts["command"], self.task.joint_names)
        obs = self.cartesian.observe(state, image_from_msg(parts["image"]))
        self.latency.add("image_age", time.monotonic() - status.read_at)
        self.latency.add("image_age_twin", max(0.0, self._newest_stamp - status.stamp))
        turn = self.decide(status, state, obs)
        if turn is None:
            return
        self._asked, self._asked_at = status.stamp, time.monotonic()
        self._answerable = turn.proposal is not None
        if turn.proposal is not None:
            self._proposals.publish(proposal_to_msg(turn.proposal))
            self._lasts = turn.proposal.length
        self.decided(status, turn)

    def start_over(self) -> None:
        """Give this episode up, of which nothing was recorded yet, and ask for another."""
        self._enter("between")

    def decided(self, status: TaskStatus, turn: Turn) -> None:
        """Say what was decided at an instant."""
        self._publish_output(status, turn.wish, "decision", turn.figures)
        self.step_count += 1

    def _is_early(self, status: TaskStatus) -> bool:
        """Whether our last proposal is still being executed, as far as this instant knows."""
        if status.stamp <= self._asked:
            return True
        used_up = key_of(status.proposal_stamp) == key_of(self._asked)
        lost = time.monotonic() - self._asked_at > ANSWER_TIMEOUT + self._lasts
        return self._answerable and not (used_up or lost)

    def _is_late(self, status: TaskStatus) -> bool:
        """Whether a fresher offer is known already, so that this picture is better passed over.

        Not for ever: on a machine where pictures are always late, a late one must do.
        """
        if status.stamp < self._newest_offer and self._passed_over < MOST_PASSED_OVER:
            self._passed_over += 1
            return True
        return False

    def _end(self, status: TaskStatus) -> None:
        if not self.step_count:  # over before it began
            self.start_over()
            return
        self._publish_output(status, np.zeros(0), "end", {STALLED: float(self.stalled())})
        self._enter("commit")
        if not self.config.recorder:
            self._episode_done(True)

    def _publish_output(
        self, status: TaskStatus, action: Any, event: str, figures: Mapping[str, float]
    ) -> None:
        ended, who = event == "end", self.who
        output = PolicyOutput(
            stamp=status.stamp,
            episode=status.episode,
            seed=status.seed,
            step=self.step_count,
            event=event,
            action=tuple(float(entry) for entry in np.ravel(action)),
            outputs=dict(figures),
            behavior=who.behavior,
            source=int(who.source),
            bundle=who.bundle,
            graph=who.graph,
            gate=who.gate,
            round=who.round,
            truncated=ended and not status.terminated,
            terminated=ended and status.terminated,
        )
        self._outputs.publish(record_to_msg("policy_output", output, output.stamp))

    # Between decisions.

    def advance(self) -> None:
        """Look at what the current phase waits for."""
        waited = time.monotonic() - self._phase_since
        if waited > STUCK and not self._said_stuck:
            self._said_stuck = True
            unheard = ", ".join(sorted(self._instants.unheard)) or "none"
            self.get_logger().info(
                f"in phase {self.phase} for {waited:.0f} s: {self.done} episodes, "
                f"{self.step_count} decisions in this one, "
                f"{self._instants.dropped} instants not whole, "
                f"topics never heard: {unheard}"
            )
        if self.phase == "connect" and self.task is not None and self._reset.service_is_ready():
            self._enter("between")
        elif self.phase == "between" and waited >= self._pause and self.may_go_on(waited):
            if 0 < self.config.episodes <= self.done:
                self.finished = self.config.exit_when_done
                return
            self.before_reset()
            self._future = self._reset.call_async(Trigger.Request())
            self._enter("reset")
        elif self.phase == "reset" and (self._future.done() or waited > ANSWER_TIMEOUT * 5):
            self._on_reset_answer()
        elif self.phase == "recorder":
            self._wait_for_recorder(waited)
        elif self.phase == "commit" and waited > COMMIT_TIMEOUT:
            self._episode_done(False)

    def _on_reset_answer(self) -> None:
        answer = self._future.result() if self._future.done() else None
        if answer is None or not answer.success:
            text = answer.message if answer else "no answer"
            if text != self._refusal:
                self.get_logger().warning(f"no new episode yet: {text}")
            self._refusal, self._pause = text, ASK_AGAIN
            self._enter("between")
            return
        self._refusal, self._pause = "", 0.0
        facts = json.loads(answer.message)
        self._clear_episode(facts["episode"])
        self.begin(facts["seed"])
        self._enter("run" if self._recorder_ready or not self.config.recorder else "recorder")

    def _wait_for_recorder(self, waited: float) -> None:
        """The first episode starts when the recorder sees pictures and hears us."""
        if waited > RECORDER_TIMEOUT:
            self.note_error(f"no recorder after {RECORDER_TIMEOUT:.0f} s: going on without")
            self._recorder_ready = True
            self._enter("run")
        elif self._future is not None and self._future.done():
            answer, self._future = self._future.result(), None
            if answer is not None and answer.success:
                self._recorder_ready = True
                self._enter("run")
        elif (
            self._future is None
            and self._ready.service_is_ready()
            and self._outputs.get_subscription_count() > 0
        ):
            self._future = self._ready.call_async(Trigger.Request())

    def _episode_done(self, committed: bool) -> None:
        self.done += committed
        self.failed_commits = 0 if committed else self.failed_commits + 1
        if self.failed_commits >= 3:
            self.note_error("three episodes in a row were not recorded: giving up")
            self.exit_code, self.finished = 3, True
        self._enter("between")

    def _clear_episode(self, episode: int) -> None:
        self.episode, self.step_count = episode, 0
        self._asked, self._asked_at, self._lasts = -1.0, 0.0, 0.0
        self._answerable = False

    def _enter(self, phase: str) -> None:
        self.phase, self._phase_since, self._said_stuck = phase, time.monotonic(), False
        if phase == "recorder":
            self._future = None
