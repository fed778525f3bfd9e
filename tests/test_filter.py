"""The safety filter: what passes, what is corrected, what stops, and how it comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from safe_o2o.errors import ConfigError
from safe_o2o.safety.filter import FilterConfig, SafetyFilter
from safe_o2o.safety.joint_limits import JointLimits
from safe_o2o.safety.kinematics import POSTURES, Kinematics
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.motion import Motion
from safe_o2o.safety.path import JointPath
from safe_o2o.types import Array, Decision, Proposal, RobotState, Verdict

BOX = ((0.30, -0.26, 0.01), (0.70, 0.26, 0.28))
HOME = np.array(POSTURES["panda"])
LIMITS = RobotLimits.load("panda")
NAMES = LIMITS.joint_names
DT = 0.01


class Bench:
    """A filter and an arm that follows its set-points exactly."""

    def __init__(self, filter_: SafetyFilter | None = None, q: Array = HOME) -> None:
        self.filter = filter_ or SafetyFilter.for_robot(
            "panda", workspace=BOX, tool_speed=None, period=DT
        )
        self.q, self.time = np.array(q), 0.0
        self.filter.reset(self.state())

    def state(self, **changes: Any) -> RobotState:
        return replace(RobotState(self.q, np.zeros(7), self.q, self.time), **changes)

    def propose(self, *targets: Array, period: float = 0.2, **changes: Any) -> Proposal:
        return replace(Proposal(np.array(targets), period, self.time, NAMES), **changes)

    def tick(self, proposal: Proposal | None, dt: float = DT, **state: Any) -> Decision:
        self.time += dt
        decision = self.filter.certify(self.state(**state), proposal, self.time)
        self.q = decision.command.q
        return decision

    def run(self, proposal: Proposal | None, ticks: int) -> list[Decision]:
        return [self.tick(proposal) for _ in range(ticks)]


def test_an_easy_step_passes_and_arrives_exactly() -> None:
    bench = Bench()
    for step in range(5):
        target = bench.q + 0.01 * np.sin(np.arange(7) + step)
        decisions = bench.run(bench.propose(target), 20)
        assert {d.verdict for d in decisions} == {Verdict.PASS}
        assert np.array_equal(bench.q, target)  # bit for bit
        assert all(0.0 < d.margin <= 1.0 for d in decisions)


def test_a_chunk_passes_through_its_targets() -> None:
    bench = Bench()
    targets = [HOME + 0.01 * k * np.ones(7) for k in (1, 2, 3)]
    proposal = bench.propose(*targets)
    for target in targets:
        assert {d.verdict for d in bench.run(proposal, 20)} == {Verdict.PASS}
        assert np.array_equal(bench.q, target)


def test_a_finished_proposal_ends_in_a_hold_that_is_no_fault() -> None:
    bench = Bench()
    proposal = bench.propose(HOME + 0.02)
    bench.run(proposal, 20)
    after = bench.run(proposal, 20)
    assert {d.verdict for d in after} == {Verdict.PASS}
    assert np.array_equal(after[-1].command.q, after[-2].command.q)
    assert np.abs(bench.q - HOME - 0.02).max() < 2e-3  # the stop ends just beyond the target


def test_joints_are_matched_by_name() -> None:
    bench, other = Bench(), Bench()
    target = HOME + 0.01 * np.arange(7)
    order = [3, 1, 0, 2, 6, 5, 4]
    shuffled = bench.propose(target[order], joint_names=tuple(NAMES[i] for i in order))
    bench.run(shuffled, 20)
    other.run(other.propose(target), 20)
    assert np.array_equal(bench.q, other.q) and np.array_equal(bench.q, target)


GUARDS: list[tuple[str, Callable[[Bench], Proposal | None]]] = [
    ("no_proposal", lambda b: None),
    ("proposal_not_finite", lambda b: b.propose(np.full(7, np.nan))),
    ("proposal_not_finite", lambda b: b.propose(np.where(np.arange(7) == 2, np.inf, HOME))),
    ("first_target_far", lambda b: b.propose(np.full(7, 1e300))),
    ("first_target_far", lambda b: b.propose(HOME + 1.5)),
    ("proposal_shape", lambda b: b.propose(np.zeros(6))),
    ("proposal_shape", lambda b: replace(b.propose(HOME), q=np.zeros((0, 7)))),
    ("proposal_shape", lambda b: replace(b.propose(HOME), q=HOME)),
    ("proposal_names", lambda b: b.propose(HOME, joint_names=NAMES[:-1])),
    ("proposal_names", lambda b: b.propose(HOME, joint_names=(*NAMES[:-1], NAMES[0]))),
    ("proposal_period", lambda b: b.propose(HOME, period=float("nan"))),
    ("proposal_period", lambda b: b.propose(HOME, period=0.0)),
    ("proposal_period", lambda b: b.propose(HOME, period=1e9)),
    ("target_far", lambda b: b.propose(HOME, HOME + 1.5)),
    ("target_far", lambda b: b.propose(HOME, np.full(7, 1.7e308), np.full(7, -1.7e308))),
    ("proposal_stale", lambda b: b.propose(HOME, stamp=b.time - 5.0)),
    ("proposal_stale", lambda b: b.propose(HOME, stamp=b.time + 5.0)),
    ("proposal_not_finite", lambda b: b.propose(HOME, stamp=float("nan"))),
]


@pytest.mark.parametrize(
    ("reason", "make"), GUARDS, ids=[f"{i}-{g[0]}" for i, g in enumerate(GUARDS)]
)
def test_bad_proposals_play_the_stored_stop(
    reason: str, make: Callable[[Bench], Proposal | None]
) -> None:
    bench = Bench()
    bench.run(bench.propose(HOME + 0.05), 10)  # in the middle of a motion
    before, speed = bench.q, np.abs(bench.filter._v).max()
    assert speed > 0.1
    bad = make(bench)
    decisions = bench.run(bad, 30)
    assert all(d.verdict is Verdict.STOPPED and d.reason == reason for d in decisions)
    assert np.array_equal(decisions[-1].command.dq, np.zeros(7))
    assert np.abs(bench.q - before).max() < 0.05


@pytest.mark.parametrize(
    ("reason", "dt", "state"),
    [
        ("state_invalid", DT, {"q": np.full(7, np.nan)}),
        ("state_invalid", DT, {"q": np.zeros(6)}),
        ("state_invalid", DT, {"dq": np.full(7, np.inf)}),
        ("state_stale", DT, {"stamp": -1.0}),
        ("state_stale", DT, {"stamp": float("nan")}),
        ("command_mismatch", DT, {"q_command": HOME + 0.02}),
        ("command_mismatch", DT, {"q_command": np.full(7, np.nan)}),
        ("tracking_error", DT, {"q": HOME + 0.5}),
        ("clock_jump", 0.0, {}),
        ("clock_jump", -1.0, {}),
        ("clock_jump", 10 * DT, {}),
        ("clock_invalid", float("nan"), {}),
    ],
)
def test_bad_readings_and_clocks_stop(reason: str, dt: float, state: dict[str, Any]) -> None:
    bench = Bench()
    proposal = bench.propose(HOME + 0.05)
    bench.run(proposal, 10)
    clock = bench.time
    decision = bench.tick(proposal, dt, **state)
    assert decision.verdict is Verdict.STOPPED and decision.reason == reason
    assert np.isfinite(decision.command.q).all()
    bench.time = clock + DT


def test_first_command_passes_is_ramped_or_is_refused_by_its_distance() -> None:
    near, far, absurd = Bench(), Bench(), Bench()
    assert near.tick(near.propose(HOME + 0.02)).verdict is Verdict.PASS
    ramp = far.run(far.propose(HOME + np.eye(7)[0] * 0.8), 20)
    assert {d.verdict for d in ramp} == {Verdict.CORRECTED}
    speed = np.abs(np.diff([HOME, *(d.command.q for d in ramp)], axis=0)).max(0) / DT
    assert (speed <= LIMITS.velocity * (1 + 1e-6)).all()
    assert absurd.tick(absurd.propose(HOME + 1.2)).reason == "first_target_far"
    assert np.array_equal(absurd.q, HOME)


def test_it_stops_at_the_wall_and_comes_back() -> None:
    bench = Bench()
    kinematics = Kinematics("panda", ("panda_hand_tcp",))
    down = HOME + np.array([0.0, 0.35, 0.0, -0.2, 0.0, 0.2, 0.0])
    assert kinematics.positions([down])[0, 0, 2] < BOX[0][2]  # below the box
    reasons = set()
    for _ in range(30):
        reasons |= {d.reason for d in bench.run(bench.propose(down), 20)}
    tool = kinematics.positions([bench.q])[0, 0]
    assert "workspace" in reasons
    assert BOX[0][2] - 1e-9 <= tool[2] < BOX[0][2] + 0.03  # close to the wall, inside
    for _ in range(30):
        decisions = bench.run(bench.propose(HOME), 20)
    assert np.allclose(bench.q, HOME, atol=1e-9)  # and free to leave
    assert decisions[-1].verdict is not Verdict.STOPPED


def test_outside_its_limits_it_only_moves_back() -> None:
    q = HOME.copy()
    q[0] = LIMITS.q_high[0] + 0.05  # pushed by hand
    walls = SafetyFilter(LIMITS, [JointLimits(LIMITS)], DT)
    bench = Bench(walls, q)
    worse, better = q.copy(), q.copy()
    worse[0] += 0.02
    better[0] -= 0.10
    refused = bench.run(bench.propose(worse), 20)
    assert {d.reason for d in refused} == {"joint_limits"} and np.array_equal(bench.q, q)
    for _ in range(3):
        bench.run(bench.propose(better), 20)
    assert bench.q[0] == pytest.approx(better[0])


def test_the_way_back_into_one_limit_does_not_leave_another() -> None:
    q = HOME.copy()
    q[0], q[1] = LIMITS.q_high[0] + 0.2, LIMITS.q_high[1] - 0.01
    bench = Bench(SafetyFilter(LIMITS, [JointLimits(LIMITS)], DT), q)
    trade = q.copy()
    trade[0] -= 0.1
    trade[1] += 0.1
    decisions = bench.run(bench.propose(trade), 20)
    assert decisions[-1].verdict is Verdict.STOPPED and decisions[-1].reason == "joint_limits"
    assert bench.q[1] <= LIMITS.q_high[1]


def test_a_loop_that_ticks_too_often_is_stopped_and_jitter_is_not() -> None:
    fast, jittery = Bench(), Bench()
    proposal = fast.propose(HOME + 0.05)
    answers = [fast.tick(proposal, DT / 10) for _ in range(10)]
    assert answers[0].verdict is Verdict.PASS
    assert answers[-1].reason == "clock_fast" and answers[-1].verdict is Verdict.STOPPED
    proposal = jittery.propose(HOME + 0.05)
    for dt in [1.9 * DT, 0.1 * DT] * 10:
        assert jittery.tick(proposal, dt).verdict is Verdict.PASS


def test_a_reset_to_nonsense_in_motion_plays_the_stop_to_its_end() -> None:
    bench = Bench()
    proposal = bench.propose(HOME + 0.05)
    bench.run(proposal, 10)
    path, nowhere = [bench.q], np.full(7, np.nan)
    bench.filter.reset(bench.state(q=nowhere))
    path += [bench.tick(proposal, q=nowhere).command.q for _ in range(10)]
    change = np.abs(np.diff(path, n=2, axis=0)) / DT**2
    assert (change <= LIMITS.acceleration * (1 + 1e-6)).all()
    assert np.array_equal(path[-1], path[-2])
    proposal = bench.propose(HOME + 0.05)  # and from there it goes on
    assert {d.verdict for d in bench.run(proposal, 20)} == {Verdict.PASS}


def test_nobody_can_write_into_a_certified_command() -> None:
    bench = Bench()
    proposal = bench.propose(HOME + 0.02)
    for decision in bench.run(proposal, 30):
        for array in (decision.command.q, decision.command.dq):
            with pytest.raises(ValueError):
                array[0] = 99.0


class Broken(JointLimits):
    """A constraint that answers nonsense after a while."""

    def __init__(self, answer: Callable[[Motion], Any], after: int) -> None:
        super().__init__(LIMITS)
        self.answer, self.left = answer, after

    def along(self, path: JointPath, motion: Motion) -> None:
        """Nothing is settled: it is asked in every tick."""

    def swept(self, motion: Motion) -> Any:
        self.left -= 1
        return super().swept(motion) if self.left > 0 else self.answer(motion)


def explode(motion: Motion) -> Any:
    raise RuntimeError("sensor unplugged")


def ticks(motion: Motion) -> int:
    return len(motion.steps)


@pytest.mark.parametrize(
    "answer",
    [
        lambda m: (np.full(1, np.nan), np.full((ticks(m), 1), np.nan)),
        lambda m: (np.ones(1), np.append(np.ones(ticks(m) - 1), np.nan)[:, None]),
        lambda m: (np.array([1.0, np.nan]), np.ones((ticks(m), 2))),
        lambda m: (np.full(2, -np.inf), np.full((ticks(m), 2), -np.inf)),
        lambda m: (np.ones(1), np.ones(ticks(m))),
        lambda m: (np.ones(1), np.ones((ticks(m) + 1, 1))),
        lambda m: (np.ones(2), np.ones((ticks(m), 3))),
        lambda m: np.ones((ticks(m), 1)),
        lambda m: None,
        explode,
    ],
)
def test_a_constraint_that_answers_nonsense_leads_to_the_stored_stop(
    answer: Callable[[Motion], Any],
) -> None:
    bench = Bench(SafetyFilter(LIMITS, [Broken(answer, 10)], DT))
    proposal = bench.propose(HOME + 0.05)
    decisions = bench.run(proposal, 60)
    assert decisions[5].verdict is Verdict.PASS
    assert decisions[-1].verdict is Verdict.STOPPED
    assert decisions[-1].reason.startswith(("joint_limits", "exception"))
    assert np.array_equal(decisions[-1].command.dq, np.zeros(7))


def test_after_a_stop_the_rest_of_the_proposal_is_done_late() -> None:
    bench = Bench()
    target = HOME + 0.05
    proposal = bench.propose(target)
    bench.run(proposal, 8)
    lost = bench.tick(proposal, q=np.full(7, np.nan))
    assert (lost.verdict, lost.reason) == (Verdict.STOPPED, "state_invalid") and lost.rate < 1.0
    decisions = bench.run(proposal, 40)
    # It leaves the target at 0.25 rad/s and rests 0.25 * 0.035 / 2 rad beyond, as if undisturbed.
    assert np.allclose(bench.q, target + 0.004375, atol=1e-9)
    moving = [d for d in decisions if d.command.dq.any()]
    assert {(d.verdict, d.reason) for d in moving} == {(Verdict.CORRECTED, "state_invalid")}


def test_the_caller_may_reuse_its_arrays() -> None:
    bench = Bench()
    target = HOME + 0.02
    proposal = bench.propose(target)
    bench.tick(proposal)
    proposal.q[:] = 1e3  # after it was handed over
    bench.run(proposal, 19)
    assert np.array_equal(bench.q, target)


def test_never_ready_never_moves() -> None:
    filter_ = SafetyFilter.for_robot("panda", workspace=BOX)
    bad = RobotState(np.full(7, np.nan), np.zeros(7), np.zeros(7), 0.0)
    filter_.reset(bad)
    decision = filter_.certify(bad, Proposal(HOME[None], 0.2, 0.0, NAMES), 0.01)
    assert decision.verdict is Verdict.STOPPED and decision.reason == "state_invalid"
    assert not np.isfinite(decision.command.q).any()  # which every driver refuses


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_tolerances_must_be_positive(value: float) -> None:
    with pytest.raises(ConfigError):
        FilterConfig(tracking_tolerance=value)
    with pytest.raises(ConfigError):
        SafetyFilter.for_robot("panda", workspace=BOX, period=value)
    with pytest.raises(ConfigError):
        SafetyFilter.for_robot("panda", workspace=((0.0, 0.0, 0.0), (value, 1.0, 1.0)))
