"""One control tick: read, certify, write. The same loop for environment, tests and ROS.

Nothing else writes to a robot. With a `Supervision` around the filter the arm moves in ARMED alone,
as a real one must; without it the loop is always armed, which is right for simulated episodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from safe_o2o.interfaces import Filter, Robot, Simulated
from safe_o2o.runtime.supervision import Supervision
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
        supervision: who may move the arm, and what has to be well for that; None for a simulated
            arm that may always be moved.
        monotonic: the supervision's clock, s.
    """

    def __init__(
        self,
        robot: Robot,
        filter: Filter,
        clock: Callable[[], float] | None = None,
        supervision: Supervision | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.robot, self.filter, self.clock = robot, filter, clock
        self.supervision, self.monotonic = supervision, monotonic
        self.last = StageTimes()
        """Times of the last tick."""

    def reset(self) -> RobotState:
        """Start from where the robot is, at rest; returns that reading."""
        state = self.robot.read()
        if self.supervision is None:
            self.filter.reset(state)
        else:
            self.supervision.placed(state, self.monotonic())
        return state

    def tick(self, proposal: Proposal | None) -> Decision:
        """One control period: read, certify, write.

        Args:
            proposal: what to move along, the same object for as long as it is in progress; None
                asks to stop.

        Returns:
            What the filter decided. Any exception stops the robot on its way out.
        """
        robot, times, supervision = self.robot, self.last, self.supervision
        try:
            began = time.perf_counter()
            state = robot.read()
            have = time.perf_counter()
            now = state.stamp if self.clock is None else self.clock()
            if supervision is None:
                decision, write = self.filter.certify(state, proposal, now), True
            else:
                clock = self.monotonic()
                seen, allowed = supervision.before(state, proposal, clock)
                decision = self.filter.certify(seen, allowed, now)
                seconds = time.perf_counter() - began
                write = supervision.after(decision, proposal, clock, seconds)
            decided = time.perf_counter()
            if write:
                robot.write(decision.command)
            elif isinstance(robot, Simulated):
                robot.pass_time()
        except BaseException as error:
            robot.stop()
            if supervision is not None:
                supervision.stop(f"exception:{type(error).__name__}", self.monotonic(), str(error))
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
