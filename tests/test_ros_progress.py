"""The robot offers a decision when a proposal is used up, and again while it holds."""

from __future__ import annotations

import math

import numpy as np
import pytest

progress = pytest.importorskip(
    "safe_o2o_ros.progress", reason="pip install ./ros2_ws/src/safe_o2o_ros"
)

from safe_o2o.types import Command, Decision, Proposal, Verdict  # noqa: E402


def decision(verdict: Verdict = Verdict.PASS, reason: str = "", margin: float = 1.0) -> Decision:
    q = np.zeros(1)
    return Decision(Command(q, q, 0.0), verdict, reason, margin)  # type: ignore[arg-type]


def proposal(stamp: float, rows: int = 1) -> Proposal:
    return Proposal(np.zeros((rows, 1)), 0.2, stamp, ("a",))


def ticks(tracker, count: int, given: Decision | None = None) -> list[int]:
    """Which of the next ticks end with an offer, counted from 1."""
    return [i + 1 for i in range(count) if tracker.after_tick(given or decision())]


def test_offers_come_at_the_start_at_the_end_of_a_proposal_and_while_holding() -> None:
    tracker = progress.ProposalProgress(0.01, retry=0.2)
    assert ticks(tracker, 45) == [1, 21, 41]
    tracker.accept(proposal(0.4))
    assert tracker.in_progress
    assert ticks(tracker, 60) == [20, 40, 60]
    assert tracker.finished_stamp == 0.4 and not tracker.in_progress
    assert tracker.report.passed == 20 and tracker.report.held == 45 + 40


def test_a_chunk_lasts_as_many_periods_as_it_has_rows() -> None:
    tracker = progress.ProposalProgress(0.01, retry=0.2)
    tracker.accept(proposal(0.0, rows=3))
    assert ticks(tracker, 60) == [60]


def test_a_replaced_proposal_never_counts_as_used_up() -> None:
    tracker = progress.ProposalProgress(0.01, retry=0.2)
    tracker.accept(proposal(1.0))
    assert ticks(tracker, 5) == []
    tracker.accept(proposal(2.0))
    assert ticks(tracker, 20) == [20] and tracker.finished_stamp == 2.0


def test_the_strictest_verdict_keeps_its_reason_and_holding_is_not_judged() -> None:
    tracker = progress.ProposalProgress(0.01, retry=0.2)
    tracker.after_tick(decision(Verdict.STOPPED, "age", 0.0))  # nobody asked for this motion
    assert tracker.report.verdict == Verdict.PASS and tracker.report.margin == 1.0
    tracker.accept(proposal(0.0))
    for verdict, reason, margin in (
        (Verdict.CORRECTED, "joint_limits", 0.3),
        (Verdict.STOPPED, "workspace", 0.5),
        (Verdict.CORRECTED, "tcp_speed", 0.2),
    ):
        tracker.after_tick(decision(verdict, reason, margin))
    told = tracker.report
    assert (told.verdict, told.reason, told.margin) == (Verdict.STOPPED, "workspace", 0.2)
    tracker.after_tick(decision(margin=math.nan))  # claims nothing, so there is none
    assert tracker.report.margin == 0.0
    tracker.clear_worst()
    told = tracker.report
    assert (told.verdict, told.reason, told.margin) == (Verdict.PASS, "", 1.0)
    assert (told.passed, told.corrected, told.stopped) == (1, 2, 1)
    tracker.reset()
    told = tracker.report
    assert told.held == told.passed == told.corrected == told.stopped == 0


def test_a_person_moves_the_arm_and_the_policys_time_passes() -> None:
    tracker = progress.ProposalProgress(0.01, retry=0.2)
    tracker.accept(proposal(0.0))
    ticks(tracker, 5)
    persons = proposal(0.05)
    tracker.take_over(persons)
    assert tracker.offered is persons and ticks(tracker, 15) == [15]
    assert tracker.finished_stamp == 0.0 and tracker.report.human == 15
    tracker.accept(proposal(0.2))
    assert tracker.offered is persons and ticks(tracker, 4) == []
    tracker.take_over(None)  # stand
    assert tracker.offered is None and ticks(tracker, 16) == [16]
    assert ticks(tracker, 40) == [20, 40]  # nobody proposes: offers as ever
    tracker.accept(proposal(0.8))
    tracker.take_over(persons)
    ticks(tracker, 5)
    tracker.give_back()
    # What is left of the policy's proposal is not moved along; the next one is.
    assert tracker.offered is None and ticks(tracker, 15) == [15]
    tracker.accept(after := proposal(1.0))
    assert tracker.offered is after
    told = tracker.report
    assert (told.passed, told.human, told.held) == (5 + 19 + 5, 15 + 20 + 40 + 5, 15)
    tracker.take_over(persons)
    tracker.reset()
    assert tracker.taken_over and tracker.report.human == 0 and tracker.offered is None


def test_a_long_hold_is_a_rest_and_ends_with_the_next_proposal() -> None:
    tracker = progress.ProposalProgress(0.01, retry=0.2)
    ticks(tracker, 499)
    assert not tracker.resting
    ticks(tracker, 1)
    assert tracker.resting
    tracker.accept(proposal(0.0))
    assert not tracker.resting
    ticks(tracker, 20 + 499)
    assert not tracker.resting  # the hold is counted from the proposal's end
    ticks(tracker, 1)
    assert tracker.resting
    tracker.reset()
    assert not tracker.resting
