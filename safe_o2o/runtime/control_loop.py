"""One control tick: read, certify, write. The same loop for environment, tests and ROS.

Nothing else writes to a robot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from safe_o2o.interfaces import Filter, Robot
from safe_o2o.types import Decision, Proposal, RobotState, Verdict


@dataclass(slots=True)
class StageTimes:
    """Wall time spent in each stage, s."""

    read: float = 0.0
    certify: float = 0.0
    write: float = 0.0

    def add(self, other: StageTimes) -> None:
        """Sum up."""
        self.read += other.read
        self.certify += other.certify
        self.write += other.write


@dataclass(slots=True)
class TickRecord:
    """What the filter did over several ticks.

    Attributes:
        verdict: the strictest verdict.
        reason: the first reason that came with it.
        margin: the smallest margin.
        counts: ticks that passed, were corrected, were stopped.
    """

    verdict: Verdict = Verdict.PASS
    reason: str = ""
    margin: float = 1.0
    counts: tuple[int, int, int] = (0, 0, 0)

    def add(self, decision: Decision) -> None:
        """Take one more tick into account."""
        if decision.verdict > self.verdict:
            self.verdict, self.reason = decision.verdict, decision.reason
        # A margin that is not a number claims nothing and therefore counts as none.
        if not decision.margin >= self.margin:
            self.margin = decision.margin if decision.margin == decision.margin else 0.0
        passed, corrected, stopped = self.counts
        self.counts = (
            passed + (decision.verdict is Verdict.PASS),
            corrected + (decision.verdict is Verdict.CORRECTED),
            stopped + (decision.verdict is Verdict.STOPPED),
        )


class ControlLoop:
    """Runs ticks on an active robot.

    Args:
        robot: the arm; ACTIVE when `tick` is called.
        filter: what certifies.
        clock: the time that proposals are aged against, s, on the clock of the robot's stamps; by
            default the stamp of the reading itself, which is right where simulated time passes
            with each write.
    """

    def __init__(
        self, robot: Robot, filter: Filter, clock: Callable[[], float] | None = None
    ) -> None:
        self.robot, self.filter, self.clock = robot, filter, clock
        self.last = StageTimes()
        """Times of the last tick."""

    def reset(self) -> RobotState:
        """Start from where the robot is, at rest; returns that reading."""
        state = self.robot.read()
        self.filter.reset(state)
        return state

    def tick(self, proposal: Proposal | None) -> Decision:
        """One control period: read, certify, write.

        Args:
            proposal: what to move along, the same object for as long as it is in progress; None
                asks to stop.

        Returns:
            What the filter decided. Any exception stops the robot on its way out.
        """
        robot, times = self.robot, self.last
        try:
            began = time.perf_counter()
            state = robot.read()
            have = time.perf_counter()
            now = state.stamp if self.clock is None else self.clock()
            decision = self.filter.certify(state, proposal, now)
            decided = time.perf_counter()
            robot.write(decision.command)
        except BaseException:
            robot.stop()
            raise
        times.read, times.certify = have - began, decided - have
        times.write = time.perf_counter() - decided
        return decision

    def run(self, proposal: Proposal | None, ticks: int) -> tuple[TickRecord, StageTimes]:
        """So many ticks along one proposal; what the filter did, and the times summed up."""
        record, total = TickRecord(), StageTimes()
        for _ in range(ticks):
            record.add(self.tick(proposal))
            total.add(self.last)
        return record, total
