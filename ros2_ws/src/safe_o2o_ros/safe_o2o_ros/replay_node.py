"""A recorded episode once more, open loop and through the filter: is the cell what it was?

The executed actions of the recording are proposed one after another, each from where the arm is
then. An arm that does not start where the recording did is not moved.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_o2o.config import require_given, require_positive
from safe_o2o.errors import SpecMismatchError
from safe_o2o.runtime.recording import POSE, Recording
from safe_o2o.spaces import Spec
from safe_o2o.types import Observation, RobotState, Source
from safe_o2o_ros.conversions import TaskStatus
from safe_o2o_ros.episode_driver import EpisodeDriver, EpisodeDriverConfig, Turn, Who
from safe_o2o_ros.node import ERROR, OK, Health, run_node
from safe_o2o_ros.parameters import setting


@dataclass(frozen=True)
class ReplayNodeConfig(EpisodeDriverConfig):
    """Parameters of the replay node."""

    episode: str = setting("", "episode file")
    start_within: float = setting(0.02, "farthest of the tool from the recording's start, m")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_given(self, "episode")
        require_positive(self, "start_within")


class ReplayNode(EpisodeDriver):
    """Says in its health how far the tool came from the recording's way."""

    def __init__(self, **options: Any) -> None:
        super().__init__("replay_node", ReplayNodeConfig, **options)
        self.farthest = 0.0
        self._refused = ""

    def on_start(self) -> None:
        """Read the recording; subscribe."""
        self.recording = Recording(self.config.episode)
        super().on_start()

    def health(self) -> Health:
        """Progress, and how far from the recording."""
        _, doing, values = super().health()
        values = {**values, "farthest from the recording, m": f"{self.farthest:.4f}"}
        return (ERROR, self._refused, values) if self._refused else (OK, doing, values)

    def on_task(self, spec: Spec) -> None:
        """The recording has to be of this robot's task."""
        if self.recording.episode.spec.action != spec.action:
            raise SpecMismatchError(
                "the recording's actions are not this robot's", where=self.config.episode
            )

    @property
    def who(self) -> Who:
        """The recording."""
        return Who(f"replay of {Path(self.config.episode).name}", Source.SCRIPT)

    def begin(self, seed: int) -> None:
        """A twin lays out what its seed says; on a real arm a person does."""
        self.farthest, recorded = 0.0, self.recording.episode.meta.seed
        if seed != recorded:
            self.get_logger().warning(f"this is layout {seed}, the recording's was {recorded}")

    def exhausted(self) -> bool:
        """Every action was proposed."""
        return self.step_count >= len(self.recording)

    def decide(self, status: TaskStatus, state: RobotState, obs: Observation) -> Turn | None:
        """The next action."""
        gap = self.recording.gap(self.step_count, obs[POSE])
        if not self.step_count and not gap <= self.config.start_within:
            self._refused = (
                f"the tool is {gap:.3f} m from where the recording starts: bring it there"
            )
            self.note_error(self._refused)
            self.exit_code, self.finished = 2, True
            return None
        self.farthest = max(self.farthest, gap)
        action = self.recording.actions[self.step_count]
        return Turn(action, self.cartesian.proposal(action, state, Source.SCRIPT))


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(ReplayNode, argv)


if __name__ == "__main__":
    sys.exit(main())
