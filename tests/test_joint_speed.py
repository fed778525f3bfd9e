"""The FR3's speed limits that fall towards the ends of its joints."""

from __future__ import annotations

import numpy as np
import pytest

from safe_o2o.errors import ConfigError
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.joint_speed import JointSpeed
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.types import Proposal, RobotState
from tests.test_robot_models import HOMES

LIMITS = RobotLimits.load("fr3")
DT = 0.01


def test_the_caps_are_the_published_ones() -> None:
    """Where they begin and where they reach zero (online_safety.md 6.3), rad from the limit."""
    caps = JointSpeed(LIMITS)
    begins = np.array([0.90, 1.60, 1.14, 1.11, 1.00, 1.98, 0.96])
    zero = np.array([0.036, 0.012, 0.006, 0.016, 0.010, 0.022, 0.006])
    for joint in range(7):
        q = np.tile(0.5 * (LIMITS.q_low + LIMITS.q_high), (3, 1))
        q[:, joint] = LIMITS.q_high[joint] - np.array([begins[joint], zero[joint], 1e-4])
        found = caps.caps(q)[:, joint]
        assert found[0] == pytest.approx(LIMITS.velocity[joint], rel=0.01)
        assert found[1] < 0.03 and found[2] == 0.0


@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_driven_at_its_end_a_joint_is_never_faster_than_its_cap(joint: int, sign: float) -> None:
    wide = ((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0))
    safety = SafetyFilter.for_robot(
        "fr3", workspace=wide, table_height=-2.0, tool_speed=None, period=DT
    )
    assert "joint_speed" in {constraint.name for constraint in safety.constraints}
    caps, q, now = JointSpeed(LIMITS), np.array(HOMES["fr3"][0]), 0.0
    safety.reset(RobotState(q, np.zeros(7), q, now))
    fastest = 0.0
    for k in range(500):
        if k % 10 == 0:
            target = q + sign * 0.2 * np.eye(7)[joint]
            proposal = Proposal(target[None], 0.1, now, LIMITS.joint_names)
        now += DT
        after = safety.certify(RobotState(q, np.zeros(7), q, now), proposal, now).command.q
        speed = (after - q) / DT
        allowed = caps.caps(np.array([q, after])).min(axis=0)
        assert (speed <= allowed[:7] + 1e-9).all() and (-speed <= allowed[7:] + 1e-9).all()
        fastest, q = max(fastest, float(np.abs(speed).max())), after
    end = LIMITS.q_high if sign > 0.0 else LIMITS.q_low
    assert fastest > 0.5 and abs(q[joint] - end[joint]) < 0.25


def test_an_arm_without_such_limits_is_refused() -> None:
    with pytest.raises(ConfigError, match="panda"):
        JointSpeed(RobotLimits.load("panda"))
