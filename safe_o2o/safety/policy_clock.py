"""The policy's clock follows the path and not the wall: what is slowed down skips nothing."""

from __future__ import annotations

from collections import deque


class PolicyClock:
    """Policy time by wall time, as far back as an observation behind a proposal may lie.

    Args:
        remembered: how many ticks back.

    Attributes:
        now: policy time, s.
    """

    def __init__(self, remembered: int) -> None:
        self.now = 0.0
        self._past: deque[tuple[float, float]] = deque(maxlen=remembered)

    def restart(self) -> None:
        """At zero, with nothing behind it."""
        self.now = 0.0
        self._past.clear()

    def tick(self, seconds: float, wall: float) -> None:
        """Go on by policy time, s, in the control tick at a wall time, s."""
        self.now += seconds
        self._past.append((wall, self.now))

    def since(self, wall: float) -> float:
        """Policy time, s, that has passed since a wall time, s."""
        then = self.now
        for when, at in reversed(self._past):
            then = at
            if when <= wall + 1e-9:
                break
        return self.now - then
