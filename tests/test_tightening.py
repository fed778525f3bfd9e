"""An arm that is off by as much as was allowed for stays inside the untightened limits."""

from __future__ import annotations

import numpy as np
import pytest

from safe_o2o.errors import ConfigError
from safe_o2o.safety.body import Body, Geometry
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.tightening import Tightening
from safe_o2o.types import Proposal, RobotState
from tests.invariance import BOX, HOME
from tests.judge import DT, MEASURED, Judge

ERROR = 4e-3


@pytest.mark.parametrize("robot", ["panda", "fr3", "ur5e"])
def test_no_point_moves_farther_than_the_room_that_was_made_for_it(robot: str) -> None:
    limits = RobotLimits.load(robot, measured=MEASURED.get(robot))
    body = Body(robot, Geometry.load(robot).capsules, (limits.tool_frame, limits.elbow_frame))
    n = len(limits.joint_names)
    generator = np.random.default_rng(0)
    error = generator.uniform(0.0, 0.02, n)
    room = Tightening.of(error, limits, body)
    q = generator.uniform(limits.q_low, limits.q_high, (2_000, n))
    off = q + generator.choice([-1.0, 1.0], q.shape) * error
    moved = np.linalg.norm(body.positions(off) - body.positions(q), axis=1)
    assert 0.2 * room.body < moved.max() <= room.body
    tool, elbow = moved[:, body.spheres], moved[:, body.spheres + 1]
    assert tool.max() <= room.tool <= room.body and elbow.max() <= room.elbow <= room.body


def test_driven_into_the_walls_with_that_error_the_arm_stays_inside() -> None:
    guard = SafetyFilter.for_robot("panda", workspace=BOX, tool_speed=None, tracking_error=ERROR)
    judge, generator = Judge("panda", BOX), np.random.default_rng(0)
    q, v, now, proposal = HOME, np.zeros(7), 0.0, None
    guard.reset(RobotState(q, v, q, now))
    nearest = np.inf
    for tick in range(1_500):
        if tick % 30 == 0:
            push = generator.choice([-1.0, 0.0, 1.0], 7) * 0.4
            home = np.clip(HOME - q, -0.9, 0.9)
            goal = q + (push if generator.random() < 0.7 else home)
            proposal = Proposal(goal[None], 0.3, now, judge.names)
        now += DT
        measured = q + generator.choice([-ERROR, ERROR], 7)
        before, q = q, guard.certify(RobotState(measured, v, q, now), proposal, now).command.q
        v = (q - before) / DT
        off = [q + generator.choice([-ERROR, ERROR], 7) for _ in range(8)]
        _, tool, elbow = judge.place(off)
        assert judge.walls(tool, elbow) == []
        nearest = min(nearest, float(np.minimum(tool - BOX[0], np.array(BOX[1]) - tool).min()))
        assert all((pose >= judge.low).all() and (pose <= judge.high).all() for pose in off)
    assert nearest < 0.03  # it was at the walls


@pytest.mark.parametrize("bad", [-0.1, float("nan"), [0.1, 0.1], 4.0])
def test_an_error_that_makes_no_sense_is_refused(bad: object) -> None:
    with pytest.raises(ConfigError, match="tracking_error"):
        SafetyFilter.for_robot("panda", workspace=BOX, tracking_error=bad)  # type: ignore[arg-type]


def test_an_error_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="workspace"):
        SafetyFilter.for_robot("panda", workspace=BOX, tracking_error=0.2)
