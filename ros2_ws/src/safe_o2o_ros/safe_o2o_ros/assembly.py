"""From matched messages to transitions and committed episodes; pure Python, no ROS calls.

A transition runs from one decision's observation to the next decision's observation. Reward and
cost are differences of the robot's cumulative figures at the two instants, so a lost message loses
nothing; the executed action is what the certified commands of the two instants amount to.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from safe_o2o.data.recorder import EpisodeMeta, Recorder
from safe_o2o.runtime.actors import source_of
from safe_o2o.types import (
    STALLED,
    Array,
    GateState,
    Observation,
    RobotState,
    Source,
    Transition,
    Verdict,
)
from safe_o2o_ros.conversions import PolicyOutput, TaskStatus, key_of

KEPT = 512
"""Instants kept while the policy's output for them is on its way."""


@dataclass(frozen=True)
class Snapshot:
    """Everything that was seen of one instant."""

    state: RobotState
    obs: Observation
    status: TaskStatus


@dataclass(frozen=True)
class Committed:
    """One episode that is on disk."""

    path: Path
    end: PolicyOutput
    outputs: tuple[PolicyOutput, ...]
    status: TaskStatus


class EpisodeAssembler:
    """Joins snapshots with the policy's outputs and drives a recorder.

    Args:
        recorder: where transitions go.
        executed_action: action `[A]` that the commands of two states amount to.
        task: catalogue name, for the episode's metadata.
    """

    def __init__(
        self,
        recorder: Recorder,
        executed_action: Callable[[RobotState, RobotState], Array],
        task: str,
    ) -> None:
        self.recorder, self.executed_action, self.task = recorder, executed_action, task
        self.dropped_episodes = 0
        self.dropped_transitions = 0
        self._snapshots: OrderedDict[int, Snapshot] = OrderedDict()
        self._statuses: deque[TaskStatus] = deque(maxlen=KEPT)
        self._outputs: deque[PolicyOutput] = deque()
        self._episode: list[PolicyOutput] = []
        self._last: Snapshot | None = None

    @property
    def waiting(self) -> int:
        """Outputs whose snapshot has not arrived."""
        return len(self._outputs)

    @property
    def head(self) -> float | None:
        """Stamp of the oldest output that waits for its snapshot, None when none does."""
        return self._outputs[0].stamp if self._outputs else None

    @property
    def newest_episode(self) -> int:
        """Number of the episode of the newest snapshot, -1 before the first."""
        return next(reversed(self._snapshots.values())).status.episode if self._snapshots else -1

    def add_status(self, status: TaskStatus) -> None:
        """Take a task status, also one whose picture never comes."""
        self._statuses.append(status)

    def add_snapshot(self, snapshot: Snapshot) -> list[Committed]:
        """Take an instant; returns the episodes that this completed."""
        self._snapshots[key_of(snapshot.state.stamp)] = snapshot
        while len(self._snapshots) > KEPT:
            self._snapshots.popitem(last=False)
        return self._drain()

    def add_output(self, output: PolicyOutput) -> list[Committed]:
        """Take what the policy decided; returns the episodes that this completed."""
        self._outputs.append(output)
        return self._drain()

    def give_up(self) -> None:
        """The snapshot of the oldest waiting output will not come: drop its episode."""
        if self._outputs:
            self._drop()
            self._outputs.popleft()

    def _drain(self) -> list[Committed]:
        done: list[Committed] = []
        while self._outputs and key_of(self._outputs[0].stamp) in self._snapshots:
            output = self._outputs.popleft()
            committed = self._take(output, self._snapshots[key_of(output.stamp)])
            if committed is not None:
                done.append(committed)
        return done

    def _take(self, output: PolicyOutput, snapshot: Snapshot) -> Committed | None:
        if output.event == "decision" and output.step == 0:
            self._drop()  # one still in progress was never ended
            self._episode, self._last = [output], snapshot
            self.recorder.start(self._meta(output, snapshot.status))
            return None
        if not self._follows(output):
            self._drop()
            return None
        assert self._last is not None
        before = self._episode[-1]
        self._append(before, self._last, output, snapshot)
        if output.event != "end":
            self._episode.append(output)
            self._last = snapshot
            return None
        outputs = tuple(self._episode)
        self._episode, self._last = [], None
        path = self.recorder.commit(snapshot.obs, snapshot.state.stamp)
        assert path is not None  # the recorder was not asked to write later
        return Committed(path, output, outputs, snapshot.status)

    def _follows(self, output: PolicyOutput) -> bool:
        if not self._episode:
            return False
        before = self._episode[-1]
        return output.episode == before.episode and output.step == before.step + 1

    def _drop(self) -> None:
        if self._episode:
            self.dropped_episodes += 1
            self.recorder.discard()
        self._episode, self._last = [], None

    def _append(
        self, before: PolicyOutput, old: Snapshot, after: PolicyOutput, new: Snapshot
    ) -> None:
        between = [
            status
            for status in self._statuses
            if status.episode == new.status.episode
            and old.state.stamp < status.stamp <= new.state.stamp
        ]
        worst = max(between, key=lambda status: status.verdict, default=new.status)
        ended = after.event == "end"
        said = before.outputs.get("gate_done")
        gate = None if said is None else GateState(int(said))
        source = Source(before.source) if gate is None else source_of(gate)
        if new.status.human > old.status.human:  # even for a part of the step
            source = Source.HUMAN
        kept = self.recorder.append(
            Transition(
                obs=old.obs,
                action=self.executed_action(old.state, new.state),
                proposed_action=np.asarray(before.action, np.float32),
                reward=new.status.reward - old.status.reward,
                cost=max(0.0, new.status.cost - old.status.cost),
                terminated=ended and after.terminated,
                truncated=ended and after.truncated,
                verdict=Verdict(worst.verdict),
                reason=STALLED if after.outputs.get(STALLED) else worst.reason,
                margin=min((status.margin for status in between), default=new.status.margin),
                stamp=old.state.stamp,
                force=max((status.force for status in between), default=new.status.force),
                clearance=0.0 if new.status.cost > old.status.cost else new.status.clearance,
                source=source,
                gate=gate,
            )
        )
        self.dropped_transitions += not kept

    def _meta(self, output: PolicyOutput, status: TaskStatus) -> EpisodeMeta:
        return EpisodeMeta(
            task=self.task,
            variant=status.variant,
            behavior=output.behavior,
            seed=output.seed,
            provenance={
                "bundle": output.bundle,
                "graph": output.graph,
                "gate": output.gate,
                "round": output.round,
                "deployment": "ros2",
                "began": status.began,
            },
        )
