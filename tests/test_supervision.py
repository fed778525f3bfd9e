"""The control loop under supervision: who may move the arm, on the mock, tick by tick."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from safe_o2o.runtime.control_loop import ControlLoop
from safe_o2o.runtime.mock_robot import MockRobot
from safe_o2o.runtime.supervision import Supervision, SupervisionConfig
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.supervisor import Mode
from safe_o2o.types import Array, Decision, Proposal, Verdict

BOX = ((0.30, -0.26, 0.01), (0.70, 0.26, 0.28))
HOME = np.array([0.0, 0.06, 0.0, -2.35, 0.0, 2.41, 0.785])
DT = 0.01


class Bench:
    """A mock arm, its filter and supervision, and a clock that goes on with every tick."""

    def __init__(self, config: SupervisionConfig | None = None) -> None:
        self.robot = MockRobot("panda", q=HOME)
        self.robot.connect()
        self.robot.activate()
        self.filter = SafetyFilter.for_robot("panda", workspace=BOX, period=DT)
        self.now = 100.0
        names = self.filter.limits.joint_names
        self.watch = Supervision(self.filter, names, DT, config)
        self.loop = ControlLoop(
            self.robot, self.filter, supervision=self.watch, monotonic=lambda: self.now
        )
        self.names = names
        self.written: list[Array] = []
        write = self.robot.write

        def noted(command: Any) -> None:
            self.written.append(command.q)
            write(command)

        self.robot.write = noted  # type: ignore[method-assign]

    def tick(self, proposal: Proposal | None = None, ticks: int = 1) -> Decision:
        for _ in range(ticks):
            self.now += DT
            decision = self.loop.tick(proposal)
        return decision

    def propose(self, offset: float | Array, rows: int = 1, period: float = 0.05) -> Proposal:
        state = self.robot.read()
        way = np.linspace(0.0, 1.0, rows + 1)[1:, None] * np.broadcast_to(offset, (1, 7))
        return Proposal(state.q_command + way, period, state.stamp, self.names)

    def armed(self) -> Bench:
        self.tick()
        assert self.watch.arm(self.now) == ""
        return self

    def drive(self, ticks: int, step: float = 2e-3) -> None:
        """A policy at 20 Hz that is well."""
        for tick in range(ticks):
            if tick % 5 == 0:
                proposal = self.propose([step, 0, 0, 0, 0, 0, 0])
            self.tick(proposal)


def test_nothing_is_written_until_somebody_arms() -> None:
    bench = Bench()
    bench.drive(20)
    assert bench.watch.mode is Mode.DISARMED and not bench.written
    np.testing.assert_array_equal(bench.robot.read().q, HOME)
    assert bench.watch.arm(bench.now) == ""
    bench.drive(20)
    assert bench.watch.mode is Mode.ARMED and len(bench.written) == 20
    assert bench.robot.read().q[0] > 4e-3


def test_nobody_arms_an_arm_that_was_not_read() -> None:
    bench = Bench()
    assert "joint_state" in bench.watch.arm(bench.now)


def test_a_stop_begins_in_the_next_tick_and_stays_until_reset_and_arm() -> None:
    bench = Bench().armed()
    bench.drive(20, 4e-3)
    proposal = bench.propose([4e-3, 0, 0, 0, 0, 0, 0])
    speed = abs(bench.robot.read().dq[0])
    assert speed > 0.05
    bench.watch.stop("operator", bench.now)
    assert bench.tick(proposal).verdict is Verdict.STOPPED
    for _ in range(60):
        bench.tick(proposal)
    assert bench.watch.mode is Mode.STOPPED and bench.watch.supervisor.cause is not None
    assert bench.watch.supervisor.cause.code == "operator"
    rest = bench.robot.read()
    assert not rest.dq.any()
    count = len(bench.written)
    bench.drive(20)
    assert len(bench.written) == count  # let be, once it stands
    assert "reset first" in bench.watch.arm(bench.now)
    assert bench.watch.reset(bench.now) == ""
    bench.drive(5)
    assert len(bench.written) == count
    assert bench.watch.arm(bench.now) == ""
    bench.drive(5)
    assert len(bench.written) == count + 5


def test_a_policy_that_falls_silent_degrades_and_then_latches() -> None:
    bench = Bench().armed()
    bench.drive(20)
    last = bench.propose([2e-3, 0, 0, 0, 0, 0, 0])
    modes = [bench.watch.mode]
    for _ in range(70):
        bench.tick(last)
        modes.append(bench.watch.mode)
    degraded, stopped = modes.index(Mode.DEGRADED), modes.index(Mode.STOPPED)
    # A chunk of 50 ms, then 100 ms and 500 ms of the source's limits.
    assert degraded == pytest.approx(15, abs=2) and stopped == pytest.approx(55, abs=2)
    assert bench.watch.supervisor.cause is not None
    assert bench.watch.supervisor.cause.code == "lost_command"


def test_a_late_policy_is_taken_back_by_itself() -> None:
    bench = Bench().armed()
    bench.drive(20)
    bench.tick(bench.propose([2e-3, 0, 0, 0, 0, 0, 0]), ticks=20)
    assert bench.watch.mode is Mode.DEGRADED
    bench.drive(60)
    assert bench.watch.mode is Mode.ARMED


def test_nobody_misses_a_policy_between_episodes() -> None:
    bench = Bench().armed()
    bench.drive(20)
    bench.watch.idle()
    bench.tick(None, ticks=200)
    assert bench.watch.mode is Mode.ARMED


def test_a_reading_that_does_not_change_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench().armed()
    bench.drive(20)
    frozen = bench.robot.read()
    monkeypatch.setattr(bench.robot, "read", lambda: frozen)
    for _ in range(12):
        bench.tick(None)
    assert bench.watch.mode is Mode.STOPPED


@pytest.mark.parametrize(("offset", "moves"), [(0.05, True), (0.3, True), (0.6, False)])
def test_the_first_target_passes_is_approached_or_refused_by_its_distance(
    offset: float, moves: bool
) -> None:
    bench = Bench().armed()
    goal = bench.propose([offset, 0, 0, 0, 0, 0, 0], period=0.5)
    fastest = 0.0
    for tick in range(250):
        if tick % 50 == 0:
            state = bench.robot.read()
            goal = replace(goal, stamp=state.stamp)  # asked for again
        bench.tick(goal)
        fastest = max(fastest, float(np.abs(bench.robot.read().dq).max()))
    moved = bench.robot.read().q[0] - HOME[0]
    if not moves:
        assert moved == 0.0 and fastest == 0.0
        assert bench.watch.supervisor.cause is not None
        assert bench.watch.supervisor.cause.code == "first_command"
        return
    assert moved == pytest.approx(offset, abs=1e-6)
    if offset > 0.1:
        assert fastest < 0.45  # a minimum-jerk way at 0.2 rad/s peaks at 15/8 of its mean


def test_shadow_counts_what_would_have_been_and_writes_nothing() -> None:
    bench = Bench()
    bench.tick()
    assert bench.watch.shadow(bench.now) == ""
    bench.drive(100)
    for tick in range(100):
        if tick % 5 == 0:
            bad = bench.propose([np.nan, 0, 0, 0, 0, 0, 0])
        bench.tick(bad)
    report = bench.watch.shadow_report.report()
    assert not bench.written and bench.watch.mode is Mode.SHADOW
    assert report["ticks"] == report["proposed"] == 200
    assert report["interventions"] == 100
    assert report["reasons"] == {"proposal_not_finite": 100}
    assert "proposal_not_finite" in bench.watch.arm(bench.now)
    bench.drive(5)
    assert bench.watch.arm(bench.now) == ""
    bench.drive(10)
    assert len(bench.written) == 10


def test_an_error_in_the_loop_latches_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench().armed()
    bench.drive(20)

    def broken(command: Any) -> None:
        raise OSError("cable")

    monkeypatch.setattr(bench.robot, "write", broken)
    with pytest.raises(OSError, match="cable"):
        bench.drive(1)
    assert bench.watch.mode is Mode.STOPPED
    assert bench.watch.supervisor.cause is not None
    assert bench.watch.supervisor.cause.code == "exception:OSError"
