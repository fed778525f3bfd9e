"""A filter that is told, before each tick, what has been seen of the obstacles that move."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.obstacle import Obstacle
from safe_o2o.types import Decision, Proposal, RobotState


class Watching:
    """The same filter, with eyes.

    Args:
        filter: what certifies; it watches obstacles.
        seen: the obstacles as known at a time, s, on the clock of the readings.

    Raises:
        ConfigError: the filter watches no obstacles.
    """

    def __init__(self, filter: SafetyFilter, seen: Callable[[float], Sequence[Obstacle]]) -> None:
        self.filter, self.seen = filter, seen
        filter.see(())  # refused here, not in the first tick

    def reset(self, state: RobotState) -> None:
        """See `SafetyFilter.reset`."""
        self.filter.reset(state)

    def certify(self, state: RobotState, proposal: Proposal | None, now: float) -> Decision:
        """See `SafetyFilter.certify`."""
        self.filter.see(self.seen(now))
        return self.filter.certify(state, proposal, now)
