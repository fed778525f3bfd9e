"""The recorder: listens, matches by stamp, writes committed episodes. Nobody waits for it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from std_msgs.msg import String
from std_srvs.srv import Trigger

from safe_o2o.config import require_given
from safe_o2o.data.recorder import Dataset, EpisodeRecorder
from safe_o2o.spaces import Spec
from safe_o2o_ros import qos
from safe_o2o_ros.assembly import Committed, EpisodeAssembler, Snapshot
from safe_o2o_ros.conversions import (
    EpisodeCommitted,
    PolicyOutput,
    TaskDescription,
    image_from_msg,
    record_from_msg,
    record_from_text,
    record_to_msg,
    robot_state,
)
from safe_o2o_ros.described_task import cartesian_of
from safe_o2o_ros.instants import Instants
from safe_o2o_ros.node import OK, WARN, GuardedNode, Health, run_node
from safe_o2o_ros.parameters import setting

SNAPSHOT_TIMEOUT = 2.0
"""Wall time after which a missing picture of a decision will not come any more, s."""


@dataclass(frozen=True)
class RecorderNodeConfig:
    """Parameters of the recorder node."""

    run_dir: str = setting("", "run directory")
    folder: str = setting("online", "folder of the episodes in it")

    def __post_init__(self) -> None:
        require_given(self, "run_dir", "folder")


class RecorderNode(GuardedNode):
    """Subscribes to everything of an instant and to the policy's outputs; publishes commits."""

    def __init__(self) -> None:
        super().__init__("recorder_node", RecorderNodeConfig)
        self.task: TaskDescription | None = None
        self.assembler: EpisodeAssembler | None = None
        self.recorder: EpisodeRecorder | None = None
        self.committed = 0
        self._head: float | None = None
        self._head_since = 0.0

    def on_start(self) -> None:
        """Make the folder; subscribe. The dataset is opened when the robot describes its task."""
        self.run_dir = Path(self.config.run_dir)
        (self.run_dir / "deploy").mkdir(parents=True, exist_ok=True)
        self._instants = Instants(self, self._on_instant, self._hear)
        self._publisher = self.create_publisher(DiagnosticArray, "episode_committed", qos.LOGGED)
        for kind, topic, callback, profile in (
            (String, "task_description", self._on_task, qos.LATCHED),
            (DiagnosticArray, "policy_output", self._on_output, qos.LOGGED),
        ):
            self.create_subscription(kind, topic, self.guarded(callback), profile)
        self.create_service(Trigger, "~/ready", self.guarded(self._answer_ready))
        self.create_timer(0.2, self.guarded(self._give_up_late), clock=self.steady)

    def on_free(self) -> None:
        """Finish commits under way; the episode in progress is discarded."""
        if self.recorder is not None:
            recorder, self.recorder, self.assembler = self.recorder, None, None
            recorder.close()

    def health(self) -> Health:
        """Episodes on disk and everything that was dropped."""
        dropped = self.assembler.dropped_episodes if self.assembler else 0
        values = {
            "committed": self.committed,
            "dropped episodes": dropped,
            "dropped transitions": self.assembler.dropped_transitions if self.assembler else 0,
            "instants without picture": self._instants.dropped,
        }
        return (WARN if dropped else OK), f"{self.committed} episodes", values

    def _on_task(self, msg: String) -> None:
        if self.recorder is not None:
            return
        task = record_from_text(TaskDescription, msg)
        spec = Spec.from_json(task.spec)
        dataset = Dataset.create(
            self.run_dir / self.config.folder, spec, task=task.task, exist_ok=True
        )
        self.cartesian = cartesian_of(task, spec)
        self.recorder = EpisodeRecorder(dataset)
        self.assembler = EpisodeAssembler(self.recorder, self.cartesian.executed_action, task.task)
        self.task = task

    def _hear(self, part: str, msg: Any) -> None:
        """A status counts also where its picture never comes."""
        if part == "status" and self.assembler is not None:
            self.assembler.add_status(msg)

    def _on_instant(self, parts: Mapping[str, Any]) -> None:
        if self.assembler is not None:
            self._publish(self.assembler.add_snapshot(self._snapshot(parts)))

    def _snapshot(self, parts: Mapping[str, Any]) -> Snapshot:
        assert self.task is not None
        state = robot_state(parts["measured"], parts["command"], self.task.joint_names)
        obs = self.cartesian.observe(state, image_from_msg(parts["image"]))
        return Snapshot(state, obs, parts["status"])

    def _on_output(self, msg: DiagnosticArray) -> None:
        if self.assembler is None:
            return
        output = record_from_msg(PolicyOutput, msg)
        before = self.assembler.dropped_episodes
        with self.latency.time("recorder_output"):
            done = self.assembler.add_output(output)
        self._publish(done)
        if self.assembler.dropped_episodes > before and output.event == "end":
            self._say(output.episode, "")

    def _publish(self, done: Sequence[Committed]) -> None:
        for episode in done:
            self.committed += 1
            self._note_episode(episode)
            self._say(episode.end.episode, str(episode.path))

    def _say(self, episode: int, path: str) -> None:
        assert self.assembler is not None
        record = EpisodeCommitted(
            episode=episode,
            path=path,
            dropped_episodes=self.assembler.dropped_episodes,
            dropped_transitions=self.assembler.dropped_transitions,
        )
        now = self.get_clock().now().nanoseconds * 1e-9
        self._publisher.publish(record_to_msg("episode_committed", record, now))

    def _note_episode(self, episode: Committed) -> None:
        """One line an episode beside the dataset: what has no place in the episode file."""
        assert self.assembler is not None
        status = episode.status
        line = {
            "episode": episode.path.name,
            "seed": status.seed,
            "bundle": episode.end.bundle,
            "round": episode.end.round,
            "speed": status.speed,
            "ticks": {
                "passed": status.passed,
                "corrected": status.corrected,
                "stopped": status.stopped,
                "human": status.human,
                "held": status.held,
            },
            "outputs": [output.outputs for output in episode.outputs],
            "dropped_episodes": self.assembler.dropped_episodes,
        }
        with open(self.run_dir / "deploy" / "episodes.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def _answer_ready(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        """Ready when one whole instant has been seen and the policy's outputs have a way here."""
        sees = self.assembler is not None and self.assembler.newest_episode >= 0
        hears = self.count_publishers("policy_output") > 0
        response.success = sees and hears
        response.message = "" if response.success else "no whole instant seen yet"
        return response

    def _give_up_late(self) -> None:
        head = self.assembler.head if self.assembler is not None else None
        now = time.monotonic()
        if head is None or head != self._head:
            self._head, self._head_since = head, now
        elif now - self._head_since > SNAPSHOT_TIMEOUT:
            assert self.assembler is not None
            self.assembler.give_up()


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(RecorderNode, argv)


if __name__ == "__main__":
    sys.exit(main())
