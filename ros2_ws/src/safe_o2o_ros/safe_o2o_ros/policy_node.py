"""The policy: one decision whenever the robot is ready for one; drives the episodes.

A decision needs picture, joint states, last certified command and task status of one and the same
instant. What it publishes is a proposal; the robot's side decides what becomes of it. Between
episodes it looks for a newer promoted bundle; a bad one is refused and the last good one stays.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from safe_o2o.config import require_given
from safe_o2o.errors import ConfigError
from safe_o2o.runtime.actors import gate_decision, with_executed
from safe_o2o.runtime.live_policy import LivePolicy
from safe_o2o.runtime.rounds import count_episodes
from safe_o2o.safety.reachability_gate import GateMode
from safe_o2o.spaces import Spec
from safe_o2o.types import STALLED, RobotState
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import (
    EpisodeCommitted,
    LearnerStatus,
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
    stamp_key,
)
from safe_o2o_ros.described_task import cartesian_of
from safe_o2o_ros.matching import StampMatcher
from safe_o2o_ros.node import OK, WARN, GuardedNode, Health, run_node
from safe_o2o_ros.parameters import setting

RECORDER_TIMEOUT = 15.0
"""Discovery of a new process takes 0.3 s, now and then 3 s; beyond this it is not coming, s."""
ANSWER_TIMEOUT = 2.0
"""Wall time after its end at which a proposal that the robot never reported on is lost, s."""
COMMIT_TIMEOUT = 5.0
"""Wall time after which the recorder's word on an ended episode is not coming, s."""
MOST_PASSED_OVER = 3
"""Instants in a row that are passed over because their picture was late."""
ASK_AGAIN = 0.3
"""Time until a robot that has no new episode yet is asked again, s."""
HEARTBEAT_TIMEOUT = 5.0
"""Silence after which the learner counts as dead, s."""


@dataclass(frozen=True)
class PolicyNodeConfig:
    """Parameters of the policy node."""

    run_dir: str = setting("", "run directory; its bundles folder is watched between episodes")
    bundles: str = setting("", "folder of versioned bundles, or one bundle")
    episodes: int = setting(0, "episodes to run; 0 goes on until stopped")
    episodes_per_round: int = setting(0, "episodes between two looks at the learner; 0 never waits")
    wait_for_learner: float = setting(0.0, "longest wait for the learner after a round, s")
    deterministic: bool = setting(True, "mean action; false adds the policy's own noise")
    gate: str = setting("on", "the bundle's reachability gate: on, shadow (decides only) or off")
    recorder: bool = setting(True, "wait for the recorder before the first decision")
    exit_when_done: bool = setting(False, "end the process after the last episode")

    def __post_init__(self) -> None:
        require_given(self, "bundles")
        if self.gate not in get_args(GateMode):
            raise ConfigError(f"must be on, shadow or off, got {self.gate!r}", where="gate")
        for name in ("episodes", "episodes_per_round", "wait_for_learner"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"must be 0 or more, got {getattr(self, name)}", where=name)


class PolicyNode(GuardedNode):
    """See the module; `phase` says what it is waiting for.

    Phases: `connect` (the robot's description and service), `between` (learner, newer bundle),
        `reset`
    (the robot's answer), `recorder` (first episode only), `run`, `commit` (the recorder's word).
    """

    def __init__(self) -> None:
        super().__init__("policy_node", PolicyNodeConfig)
        self.phase = "connect"
        self.task: TaskDescription | None = None
        self.done = 0
        self.failed_commits = 0
        self.rounds_seen = 0
        self._phase_since = time.monotonic()
        self._heartbeat = -np.inf
        self._learner_state = ""
        self._newest_stamp = self._newest_offer = 0.0
        self._passed_over = 0
        self._future: Any = None
        self._recorder_ready = False
        self._refusal, self._pause = "", 0.0
        self._clear_episode(-1, 0)

    # Lifecycle.

    def on_start(self) -> None:
        """Load and warm up the policy; subscribe."""
        self.live = LivePolicy(self.config.bundles, gate=cast(GateMode, self.config.gate))
        self._matcher = StampMatcher(("measured", "command", "image", "status"), anchor="status")
        self._proposals = self.create_publisher(JointTrajectory, "proposals", qos.COMMAND)
        self._outputs = self.create_publisher(DiagnosticArray, "policy_output", qos.LOGGED)
        self._reset = self.create_client(Trigger, "robot_node/reset_episode")
        self._ready = self.create_client(Trigger, "recorder_node/ready")
        for kind, topic, callback, profile in (
            (String, "task_description", self._on_task, qos.LATCHED),
            (JointState, "joint_states", self._on_measured, qos.STREAM),
            (JointState, "joint_commands", self._on_command, qos.STREAM),
            (Image, "image", self._on_image, qos.STREAM),
            (DiagnosticArray, "task_status", self._on_status, qos.STREAM),
            (DiagnosticArray, "learner_status", self._on_learner, qos.LATCHED),
            (DiagnosticArray, "episode_committed", self._on_committed, qos.LOGGED),
        ):
            self.create_subscription(kind, topic, self.guarded(callback), profile)
        self.create_timer(0.05, self.guarded(self.advance), clock=self.steady)

    def health(self) -> Health:
        """Phase, bundle, progress."""
        doing = self._refusal or self.phase
        values = {"phase": self.phase, "bundle": self.live.version, "episodes": self.done}
        values |= {"refused bundles": len(self.live.refused), "unmatched": self._matcher.dropped}
        level = WARN if self.live.refused else OK
        return level, doing, values

    # What comes in.

    def _on_task(self, msg: String) -> None:
        task = record_from_text(TaskDescription, msg)
        spec = Spec.from_json(task.spec)
        self.live.require(spec)
        self.spec, self.task = spec, task
        self.cartesian = cartesian_of(task, spec)

    def _on_measured(self, msg: JointState) -> None:
        self._newest_stamp = max(self._newest_stamp, stamp_from_msg(msg.header.stamp))
        self._on_part("measured", msg)

    def _on_command(self, msg: JointState) -> None:
        self._on_part("command", msg)

    def _on_image(self, msg: Image) -> None:
        self._on_part("image", msg)

    def _on_status(self, msg: DiagnosticArray) -> None:
        self._newest_offer = max(self._newest_offer, stamp_from_msg(msg.header.stamp))
        self._on_part("status", msg)

    def _on_part(self, name: str, msg: Any) -> None:
        complete = self._matcher.add(name, stamp_key(msg.header.stamp), msg)
        if complete is not None and self.phase == "run":
            self._on_instant(complete)

    def _on_learner(self, msg: DiagnosticArray) -> None:
        status = record_from_msg(LearnerStatus, msg)
        self._heartbeat = time.monotonic()
        self.rounds_seen, self._learner_state = status.rounds, status.state

    def _on_committed(self, msg: DiagnosticArray) -> None:
        committed = record_from_msg(EpisodeCommitted, msg)
        if committed.episode == self.episode and self.phase == "commit":
            self._episode_done(committed.path != "")

    # One decision.

    def _on_instant(self, parts: Mapping[str, Any]) -> None:
        status = record_from_msg(TaskStatus, parts["status"])
        assert self.task is not None
        if status.episode != self.episode or self._is_early(status) or self._is_late(status):
            return
        self._passed_over = 0
        if status.terminated or self._stalled or self.step_count >= self.task.max_steps:
            self._end(status)
            return
        state = robot_state(parts["measured"], parts["command"], self.task.joint_names)
        obs = self.cartesian.observe(state, image_from_msg(parts["image"]))
        if self._before is not None:  # what the arm did, not what it was asked to do
            did = self.cartesian.executed_action(self._before, state)
            self.carry = with_executed(self.carry, did)
        self._before = state
        self.latency.add("image_age", time.monotonic() - status.read_at)
        self.latency.add("image_age_twin", max(0.0, self._newest_stamp - status.stamp))
        with self.latency.time("inference"):
            batch = {name: array[None] for name, array in obs.items()}
            chunk, self.carry = self.live.policy.act(batch, self.carry, self.config.deterministic)
        action = chunk[0, 0] if chunk.ndim == 3 else chunk[0]  # of a chunk, the first is executed
        with self.latency.time("ik"):
            proposal = self.cartesian.proposal(action, state)
        gate = gate_decision(self.live.policy)
        if gate is not None:
            proposal = proposal.slowed(gate.speed)
        self._proposals.publish(proposal_to_msg(proposal))
        self._asked, self._asked_at = status.stamp, time.monotonic()
        self._lasts = proposal.length
        self._publish_output(status, action if gate is None else gate.wish, "decision")
        self.step_count += 1
        self._stalled = gate is not None and gate.stalled

    def _is_early(self, status: TaskStatus) -> bool:
        """Whether our last proposal is still being executed, as far as this instant knows."""
        if status.stamp <= self._asked:
            return True
        used_up = key_of(status.proposal_stamp) == key_of(self._asked)
        lost = time.monotonic() - self._asked_at > ANSWER_TIMEOUT + self._lasts
        return self.step_count > 0 and not (used_up or lost)

    def _is_late(self, status: TaskStatus) -> bool:
        """Whether a fresher offer is known already, so that this picture is better passed over.

        Not for ever: on a machine where pictures are always late, a late one must do.
        """
        if status.stamp < self._newest_offer and self._passed_over < MOST_PASSED_OVER:
            self._passed_over += 1
            return True
        return False

    def _end(self, status: TaskStatus) -> None:
        self._publish_output(status, np.zeros(0), "end")
        self._enter("commit")
        if not self.config.recorder:
            self._episode_done(True)

    def _publish_output(self, status: TaskStatus, action: Any, event: str) -> None:
        per_round, ended = self.config.episodes_per_round, event == "end"
        output = PolicyOutput(
            stamp=status.stamp,
            episode=status.episode,
            seed=status.seed,
            step=self.step_count,
            event=event,
            action=tuple(float(entry) for entry in np.ravel(action)),
            outputs={STALLED: float(self._stalled)} if ended else self.live.figures(),
            **self.live.provenance,
            round=self._recorded // per_round if per_round else 0,
            truncated=ended and not status.terminated,
            terminated=ended and status.terminated,
        )
        self._outputs.publish(record_to_msg("policy_output", output, output.stamp))

    # Between decisions.

    def advance(self) -> None:
        """Look at what the current phase waits for."""
        waited = time.monotonic() - self._phase_since
        if self.phase == "connect" and self.task is not None and self._reset.service_is_ready():
            self._enter("between")
        elif self.phase == "between" and waited >= self._pause and self._may_go_on(waited):
            if 0 < self.config.episodes <= self.done:
                self.finished = self.config.exit_when_done
                return
            self._swap()
            self._future = self._reset.call_async(Trigger.Request())
            self._enter("reset")
        elif self.phase == "reset" and (self._future.done() or waited > ANSWER_TIMEOUT * 5):
            self._on_reset_answer()
        elif self.phase == "recorder":
            self._wait_for_recorder(waited)
        elif self.phase == "commit" and waited > COMMIT_TIMEOUT:
            self._episode_done(False)

    def _may_go_on(self, waited: float) -> bool:
        """Whether the learner has had its say, is dead, or has had its time."""
        per_round = self.config.episodes_per_round
        if per_round == 0 or self.rounds_seen >= count_episodes(self.config.run_dir) // per_round:
            return True
        silent = time.monotonic() - max(self._heartbeat, self._phase_since) > HEARTBEAT_TIMEOUT
        gone = self._learner_state in ("failed", "done")
        if silent or gone or waited > self.config.wait_for_learner:
            why = "is silent" if silent else self._learner_state if gone else "takes too long"
            self.get_logger().warning(f"learner {why}: going on with {self.live.version}")
            return True
        return False

    def _swap(self) -> None:
        before = dict(self.live.refused)
        with self.latency.time("bundle_swap"):
            swapped = self.live.swap()
        if swapped:
            self.get_logger().info(f"now acting: {self.live.version}")
        for name, why in self.live.refused.items():
            if name not in before:
                self.get_logger().error(f"refused bundle {name}: {why}")

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
        self._clear_episode(facts["episode"], facts["seed"])
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

    def _clear_episode(self, episode: int, seed: int) -> None:
        self.episode, self.step_count = episode, 0
        self._asked, self._asked_at, self._lasts = -1.0, 0.0, 0.0
        self._stalled = False
        self._before: RobotState | None = None
        if episode >= 0:
            self._recorded = count_episodes(self.config.run_dir) if self.config.run_dir else 0
            self.live.policy.seed(seed)
            self.carry = self.live.policy.initial_carry(1)

    def _enter(self, phase: str) -> None:
        self.phase, self._phase_since = phase, time.monotonic()
        if phase == "recorder":
            self._future = None


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(PolicyNode, argv)


if __name__ == "__main__":
    sys.exit(main())
