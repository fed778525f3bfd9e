"""The control loop under supervision: who may move the arm, on the mock, tick by tick."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from safe_o2o.safety.supervisor import Mode
from safe_o2o.types import Verdict
from tests.invariance import HOME
from tests.rig import Rig


def test_nothing_is_written_until_somebody_arms() -> None:
    rig = Rig()
    rig.drive(20)
    assert rig.watch.mode is Mode.DISARMED and not rig.written
    np.testing.assert_array_equal(rig.robot.read().q, HOME)
    assert rig.watch.arm(rig.now) == ""
    rig.drive(20)
    assert rig.watch.mode is Mode.ARMED and len(rig.written) == 20
    assert rig.robot.read().q[0] > 4e-3


def test_nobody_arms_an_arm_that_was_not_read() -> None:
    rig = Rig()
    assert "joint_state" in rig.watch.arm(rig.now)


def test_a_stop_begins_in_the_next_tick_and_stays_until_reset_and_arm() -> None:
    rig = Rig().armed()
    rig.drive(20, 4e-3)
    proposal = rig.propose([4e-3, 0, 0, 0, 0, 0, 0])
    speed = abs(rig.robot.read().dq[0])
    assert speed > 0.05
    rig.watch.stop("operator", rig.now)
    assert rig.tick(proposal).verdict is Verdict.STOPPED
    for _ in range(60):
        rig.tick(proposal)
    assert rig.watch.mode is Mode.STOPPED and rig.watch.supervisor.cause is not None
    assert rig.watch.supervisor.cause.code == "operator"
    rest = rig.robot.read()
    assert not rest.dq.any()
    count = len(rig.written)
    rig.drive(20)
    assert len(rig.written) == count  # let be, once it stands
    assert "reset first" in rig.watch.arm(rig.now)
    assert rig.watch.reset(rig.now) == ""
    rig.drive(5)
    assert len(rig.written) == count
    assert rig.watch.arm(rig.now) == ""
    rig.drive(5)
    assert len(rig.written) == count + 5


def test_an_arm_that_is_not_quite_where_it_was_sent_may_be_armed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a servo was told last, before a stop say, is not what the filter starts from."""
    rig = Rig()
    read = rig.robot.read

    def settling() -> Any:
        state = read()
        return state if rig.written else replace(state, q_command=state.q + 5e-3)

    monkeypatch.setattr(rig.robot, "read", settling)
    rig.tick(None, ticks=3)
    assert rig.watch.arm(rig.now) == ""
    rig.drive(20)
    assert rig.watch.mode is Mode.ARMED and len(rig.written) == 20


def test_a_policy_that_falls_silent_degrades_and_then_latches() -> None:
    rig = Rig().armed()
    rig.drive(20)
    last = rig.propose([2e-3, 0, 0, 0, 0, 0, 0])
    modes = [rig.watch.mode]
    for _ in range(70):
        rig.tick(last)
        modes.append(rig.watch.mode)
    degraded, stopped = modes.index(Mode.DEGRADED), modes.index(Mode.STOPPED)
    # A chunk of 50 ms, then 100 ms and 500 ms of the source's limits.
    assert degraded == pytest.approx(15, abs=2) and stopped == pytest.approx(55, abs=2)
    assert rig.watch.supervisor.cause is not None
    assert rig.watch.supervisor.cause.code == "lost_command"


def test_a_late_policy_is_taken_back_by_itself() -> None:
    rig = Rig().armed()
    rig.drive(20)
    rig.tick(rig.propose([2e-3, 0, 0, 0, 0, 0, 0]), ticks=20)
    assert rig.watch.mode is Mode.DEGRADED
    rig.drive(60)
    assert rig.watch.mode is Mode.ARMED


def test_nobody_misses_a_policy_between_episodes() -> None:
    rig = Rig().armed()
    rig.drive(20)
    rig.watch.idle()
    rig.tick(None, ticks=200)
    assert rig.watch.mode is Mode.ARMED


def test_a_reading_that_does_not_change_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig().armed()
    rig.drive(20)
    frozen = rig.robot.read()
    monkeypatch.setattr(rig.robot, "read", lambda: frozen)
    for _ in range(12):
        rig.tick(None)
    assert rig.watch.mode is Mode.STOPPED


@pytest.mark.parametrize(("offset", "moves"), [(0.05, True), (0.3, True), (0.6, False)])
def test_the_first_target_passes_is_approached_or_refused_by_its_distance(
    offset: float, moves: bool
) -> None:
    rig = Rig().armed()
    goal = rig.propose([offset, 0, 0, 0, 0, 0, 0], period=0.5)
    fastest = 0.0
    for tick in range(250):
        if tick % 50 == 0:
            state = rig.robot.read()
            goal = replace(goal, stamp=state.stamp)  # asked for again
        rig.tick(goal)
        fastest = max(fastest, float(np.abs(rig.robot.read().dq).max()))
    moved = rig.robot.read().q[0] - HOME[0]
    if not moves:
        assert moved == 0.0 and fastest == 0.0
        assert rig.watch.supervisor.cause is not None
        assert rig.watch.supervisor.cause.code == "first_command"
        return
    assert moved == pytest.approx(offset, abs=1e-6)
    if offset > 0.1:
        assert fastest < 0.45  # a minimum-jerk way at 0.2 rad/s peaks at 15/8 of its mean


def test_shadow_counts_what_would_have_been_and_writes_nothing() -> None:
    rig = Rig()
    rig.tick()
    assert rig.watch.shadow(rig.now) == ""
    rig.drive(100)
    for tick in range(100):
        if tick % 5 == 0:
            bad = rig.propose([np.nan, 0, 0, 0, 0, 0, 0])
        rig.tick(bad)
    report = rig.watch.shadow_report.report()
    assert not rig.written and rig.watch.mode is Mode.SHADOW
    assert report["ticks"] == report["proposed"] == 200
    assert report["interventions"] == 100
    assert report["reasons"] == {"proposal_not_finite": 100}
    assert "proposal_not_finite" in rig.watch.arm(rig.now)
    rig.drive(5)
    assert rig.watch.arm(rig.now) == ""
    rig.drive(10)
    assert len(rig.written) == 10


def test_an_error_in_the_loop_latches_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig().armed()
    rig.drive(20)

    def broken(command: Any) -> None:
        raise OSError("cable")

    monkeypatch.setattr(rig.robot, "write", broken)
    with pytest.raises(OSError, match="cable"):
        rig.drive(1)
    assert rig.watch.mode is Mode.STOPPED
    assert rig.watch.supervisor.cause is not None
    assert rig.watch.supervisor.cause.code == "exception:OSError"


def test_between_two_episodes_the_last_proposal_is_nothing_anybody_waits_for() -> None:
    rig = Rig().armed()
    rig.drive(20)
    rig.watch.idle()
    rig.silent(200)  # the owner of the loop still hands in the old one
    assert rig.mode is Mode.ARMED
    rig.drive(20)
    assert rig.mode is Mode.ARMED and rig.written[-1][0] > rig.written[19][0]


def test_a_short_fault_between_two_episodes_does_not_bring_the_last_proposal_back() -> None:
    rig = Rig().armed()
    rig.drive(20)
    rig.watch.idle()
    rig.silent(20)
    rig.watch.supervisor.after_tick(["clock_jump"], rig.now, standing=True)
    assert rig.mode is Mode.DEGRADED
    rig.silent(200)  # the owner of the loop still hands in the old one
    assert rig.mode is Mode.ARMED and not rig.watch.expects


def test_an_arm_that_was_placed_is_ready_whatever_it_was_doing() -> None:
    rig = Rig().armed()
    rig.drive(20)
    rig.silent(20)
    assert rig.mode is Mode.DEGRADED
    rig.robot.teleport(HOME)
    rig.loop.reset()
    assert rig.mode is Mode.ARMED
    rig.drive(20)
    rig.watch.stop("operator", rig.now)
    rig.robot.teleport(HOME)
    rig.loop.reset()
    assert rig.mode is Mode.STOPPED and rig.watch.reset(rig.now) == ""
    assert rig.watch.arm(rig.now) == ""


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: replace(p, q=np.vstack([p.q, p.q * np.nan])), "proposal_not_finite"),
        (lambda p: replace(p, period=float("nan")), "proposal_period"),
        (lambda p: replace(p, period=1e-6), "proposal_period"),
        (
            lambda p: replace(
                p, q=np.hstack([p.q, p.q[:, :1]]), joint_names=(*p.joint_names, "finger")
            ),
            "proposal_shape",
        ),
    ],
)
def test_nothing_stands_in_for_a_first_proposal_that_is_none(spoil: Any, reason: str) -> None:
    """In the ramp band a slower version is followed; of what is refused whole there is none."""
    rig = Rig().armed()
    for tick in range(60):
        if tick % 5 == 0:
            bad = spoil(rig.propose([0.3, 0, 0, 0, 0, 0, 0]))
        rig.tick(bad)
    np.testing.assert_array_equal(rig.state.q_command, rig.written[0])
    assert rig.ticks[1].decision.reason == reason
    assert rig.mode is Mode.DEGRADED
