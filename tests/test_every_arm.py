"""The whole filter on every arm that we ship: it moves, slows down, and stays clear."""

from __future__ import annotations

import numpy as np
import pytest

from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.obstacle import Obstacle, Obstacles
from safe_o2o.safety.self_collision import SelfCollision
from safe_o2o.safety.shipped import shipped_names
from safe_o2o.types import Proposal, RobotState, Verdict
from tests.test_robot_models import HOMES

DT = 0.01
MEASURED = {
    name: {"acceleration": [6.0] * n, "jerk": [400.0] * n}
    for name, n in (("ur3e", 6), ("ur5e", 6), ("ur10e", 6), ("xarm6", 6), ("xarm7", 7))
}


@pytest.mark.parametrize("robot", shipped_names("robot_geometry"))
def test_an_arm_among_obstacles_goes_where_it_may(robot: str) -> None:
    measured = MEASURED.get(robot)
    safety = SafetyFilter.for_robot(
        robot,
        workspace=((-1.5, -1.5, -0.5), (1.5, 1.5, 2.0)),
        table_height=-0.5,
        obstacles=[Obstacle("post", (0.0, 0.45, 0.3), 0.05, end=(0.0, 0.45, 0.9))],
        self_collision=True,
        period=DT,
        measured=measured,
    )
    limits = RobotLimits.load(robot, measured=measured)
    walls = [c for c in safety.constraints if isinstance(c, (Obstacles, SelfCollision))]
    generator, q, now = np.random.default_rng(0), np.array(HOMES[robot][0]), 0.0
    n, v, seen = len(q), np.zeros(len(q)), set()
    safety.reset(RobotState(q, np.zeros(n), q, now))
    away = q
    for k in range(600):
        if k % 20 == 0:
            wish = q + generator.normal(0.0, 0.15, n)
            wish[0] += 0.1 * (-1.0 if (k // 300) % 2 else 1.0)
            proposal = Proposal(wish[None], 0.2, now, limits.joint_names)
        now += DT
        decision = safety.certify(RobotState(q, np.zeros(n), q, now), proposal, now)
        seen.add(decision.verdict)
        after = decision.command.q
        w = (after - q) / DT
        assert (np.abs(w) <= limits.velocity * (1 + 1e-6)).all()
        assert (np.abs(w - v) <= limits.acceleration * DT * (1 + 1e-6)).all()
        assert (after >= limits.q_low).all() and (after <= limits.q_high).all()
        for wall in walls:
            assert wall.clearance(after[None]).min() >= -1e-9
        q, v = after, w
        away = (
            q if np.abs(q - HOMES[robot][0]).max() > np.abs(away - HOMES[robot][0]).max() else away
        )
    assert np.abs(away - HOMES[robot][0]).max() > 0.3
    assert Verdict.CORRECTED in seen
