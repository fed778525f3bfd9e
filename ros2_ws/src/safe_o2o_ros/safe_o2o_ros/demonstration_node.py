"""Episodes that a person drives through `takeover_node`: demonstrations, with no policy at all.

An episode begins at rest, right before the person's first motion, so that no recording begins with
a pause, and ends as the task does, or with the operator's word on a real arm.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from safe_o2o.types import Array, Observation, RobotState, Source
from safe_o2o_ros.conversions import TaskStatus
from safe_o2o_ros.episode_driver import EpisodeDriver, EpisodeDriverConfig, Turn, Who
from safe_o2o_ros.node import Health, run_node

STILL = 1e-4
"""Change of a joint's set-point that is no motion, rad."""


class DemonstrationNode(EpisodeDriver):
    """Proposes nothing; the instants at which a policy would decide are the steps."""

    def __init__(self, **options: Any) -> None:
        super().__init__("demonstration_node", EpisodeDriverConfig, **options)
        self._rest: tuple[TaskStatus, Array] | None = None

    @property
    def who(self) -> Who:
        """A person."""
        return Who("demonstration", Source.HUMAN)

    def health(self) -> Health:
        """Says when it waits for the person."""
        level, doing, values = super().health()
        waits = self.phase == "run" and not self.step_count
        return level, "waits for a person to take the arm" if waits else doing, values

    def begin(self, seed: int) -> None:
        """Nothing has moved yet."""
        self._rest = None

    def decide(self, status: TaskStatus, state: RobotState, obs: Observation) -> Turn | None:
        """Nobody wishes anything; what the arm did is the action."""
        nothing = Turn(np.full(self.spec.action.dim, np.nan, np.float32))
        if self.step_count:
            return nothing
        if status.human and self._rest is None:
            self.get_logger().warning("it moved before anything could be recorded: once more")
            self.start_over()
            return None
        if status.human and self._rest is not None:
            before, q = self._rest
            if np.abs(state.q_command - q).max() > STILL:
                self.decided(before, nothing)
                return nothing
        self._rest = (status, state.q_command)
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(DemonstrationNode, argv)


if __name__ == "__main__":
    sys.exit(main())
