"""Stops found ahead are those that would have been found one by one, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from safe_o2o.safety import stopping
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.kinematics import POSTURES
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.stops_ahead import StopsAhead
from safe_o2o.safety.sweep import JointDifferences
from safe_o2o.types import Decision, Proposal, RobotState
from tests.adversary import WORLDS
from tests.judge import MEASURED

HOMES = {"panda": POSTURES["panda"], "fr3": POSTURES["fr3"], "ur5e": WORLDS["ur5e"]["home"]}
WIDE = ((-9.0, -9.0, -9.0), (9.0, 9.0, 9.0))


def drive(robot: str, seed: int, period: float, rows: int) -> list[Decision]:
    """400 ticks along chunks that come early, late or not at all, some of them too fast."""
    generator = np.random.default_rng(seed)
    safe = SafetyFilter.for_robot(
        robot, workspace=WIDE, table_height=-9.0, measured=MEASURED.get(robot)
    )
    names, q = safe.limits.joint_names, np.array(HOMES[robot])
    state, decisions = RobotState(q, 0.0 * q, q, 0.0), []
    proposal: Proposal | None = None
    safe.reset(state)
    fast, change = safe.limits.velocity, 0.0
    for tick in range(400):
        now = 0.01 * tick
        if tick >= change:
            change = tick + generator.integers(3, 60)
            step = 0.08 * generator.normal(size=len(q)) * fast * period
            smooth = np.cumsum(np.ones((rows, 1)) * step, axis=0)
            proposal = Proposal(state.q_command + smooth, period, now, names)
        decision = safe.certify(state, proposal, now)
        q = decision.command.q
        state = RobotState(q, decision.command.dq, q, now + 0.01)
        decisions.append(decision)
    return decisions


@pytest.mark.parametrize(("robot", "rows", "period"), [("panda", 1, 0.2), ("ur5e", 8, 0.1),
                                                       ("fr3", 8, 1 / 30)])  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_every_decision_is_the_same_as_one_stop_at_a_time(
    robot: str, rows: int, period: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits = []
    find = StopsAhead.find

    def counted(self: StopsAhead, *args: object) -> object:
        found = find(self, *args)  # type: ignore[arg-type]
        hits.append(found is not None)
        return found

    monkeypatch.setattr(StopsAhead, "find", counted)
    ahead = drive(robot, seed, period, rows)
    assert sum(hits) > 60  # or nothing was tested
    monkeypatch.setattr(StopsAhead, "find", lambda *_: None)
    monkeypatch.setattr(stopping, "SINGLY", 99)
    for ours, plain in zip(ahead, drive(robot, seed, period, rows), strict=True):
        assert np.array_equal(ours.command.q, plain.command.q)
        assert (ours.verdict, ours.reason, ours.rate, ours.stop_ticks, ours.margin) == (
            plain.verdict, plain.reason, plain.rate, plain.stop_ticks, plain.margin
        )  # fmt: skip


@pytest.mark.parametrize("robot", ["panda", "ur5e"])
def test_many_motions_are_judged_as_one_by_one(robot: str) -> None:
    generator = np.random.default_rng(0)
    limits = RobotLimits.load(robot, MEASURED.get(robot))
    differences, n = JointDifferences(limits, 0.01), len(limits.velocity)
    scale = 10.0 ** generator.uniform(-5.0, -1.0, 400)[:, None, None]
    q = np.cumsum(generator.normal(size=(400, 6, n)) * scale, axis=1)
    q[:, 4:] = q[:, 3:4]  # some end early
    v, change = generator.normal(size=(2, 400, n)) * scale[:, 0]
    q[7, 2, 1] = np.nan
    good = differences.within(q, v, change)
    alone = [not differences.refusal(q[i, :4], v[i], change[i]) for i in range(400)]
    assert good.tolist() == alone
    assert 20 < good.sum() < 380 and not good[7]
