"""Cartesian steps: the tool goes where the action says, and back from commands to the action."""

from __future__ import annotations

import numpy as np
import pytest

from safe_o2o.errors import ConfigError
from safe_o2o.runtime.cartesian import WORKSPACE, CartesianDelta
from safe_o2o.spaces import ActionSpec
from safe_o2o.types import Array, RobotState, Source

SPEC = ActionSpec(("dx", "dy", "dz"), "m", (-0.02,) * 3, (0.02,) * 3, 0.2)


@pytest.fixture(scope="module")
def cartesian() -> CartesianDelta:
    return CartesianDelta(SPEC)


def at(q: Array, stamp: float = 0.0) -> RobotState:
    return RobotState(q=q, dq=np.zeros_like(q), q_command=q, stamp=stamp)


def test_full_steps_are_exact_to_half_a_millimetre_and_keep_the_tool_upright(
    cartesian: CartesianDelta,
) -> None:
    generator = np.random.default_rng(0)
    q = cartesian.posture
    worst = tilt = turn = 0.0
    for step in range(600):
        if step % 30 == 0:
            goal = generator.uniform(cartesian.low, cartesian.high)
        before = cartesian.position(q)
        action = np.clip((goal - before) / 0.02, -1.0, 1.0)
        q = cartesian.proposal(action, at(q)).q[0]
        wanted = np.clip(before + 0.02 * action, cartesian.low, cartesian.high)
        worst = max(worst, float(np.abs(cartesian.position(q) - wanted).max()))
        rotation = cartesian.kinematics.rotation(q, "panda_hand_tcp")
        tilt = max(tilt, float(np.linalg.norm(rotation[:, 2] - [0.0, 0.0, -1.0])))
        turn = max(turn, abs(float(np.arctan2(rotation[1, 0], rotation[0, 0]))))
    assert worst < 0.5e-3
    assert tilt < 2e-3
    assert turn < 2e-3


def test_a_target_beyond_the_wall_is_clamped_to_it(cartesian: CartesianDelta) -> None:
    low = np.array(WORKSPACE[0])
    q = cartesian.solve(low + 0.008, cartesian.posture, 60)
    proposed = cartesian.proposal(np.array([-1.0, -1.0, -1.0]), at(q))
    assert cartesian.position(proposed.q[0]) == pytest.approx(low, abs=2e-4)


def test_executed_action_is_the_inverse_of_the_proposal(cartesian: CartesianDelta) -> None:
    before = at(cartesian.posture)
    action = np.array([0.5, -0.25, 0.125])
    after = at(cartesian.proposal(action, before).q[0])
    executed = cartesian.executed_action(before, after)
    assert executed.dtype == np.float32
    assert executed == pytest.approx(action, abs=5e-3)
    assert cartesian.executed_action(before, before) == pytest.approx([0, 0, 0], abs=1e-6)


def test_steps_count_from_the_last_command_and_not_from_the_lagging_arm(
    cartesian: CartesianDelta,
) -> None:
    command = cartesian.posture
    lagging = RobotState(q=command - 0.01, dq=np.zeros(7), q_command=command, stamp=3.5)
    proposed = cartesian.proposal(np.zeros(3), lagging, Source.SCRIPT)
    assert cartesian.position(proposed.q[0]) == pytest.approx(cartesian.position(command), abs=2e-5)
    assert (proposed.stamp, proposed.period, proposed.source) == (3.5, 0.2, Source.SCRIPT)
    assert proposed.joint_names == cartesian.joint_names
    assert proposed.q.shape == (1, 7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_for_the_filter_to_refuse(
    cartesian: CartesianDelta, bad: float
) -> None:
    proposed = cartesian.proposal(np.array([0.0, bad, 0.0]), at(cartesian.posture))
    if np.isnan(bad):
        assert np.isnan(proposed.q).all()
    else:  # an infinite wish is clipped to the largest step, as any wish is
        moved = cartesian.position(proposed.q[0]) - cartesian.position(cartesian.posture)
        assert moved == pytest.approx([0.0, np.sign(bad) * 0.02, 0.0], abs=5e-4)


def test_elbow_returns_to_where_it_was_after_a_round_trip(cartesian: CartesianDelta) -> None:
    q = cartesian.posture
    for action in ([1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]):
        for _ in range(8):
            q = cartesian.proposal(np.array(action, float), at(q)).q[0]
    for _ in range(10):
        q = cartesian.proposal(np.zeros(3), at(q)).q[0]
    assert q == pytest.approx(cartesian.posture, abs=0.02)


def test_observation_is_the_measured_tool(cartesian: CartesianDelta) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    state = RobotState(cartesian.posture, np.zeros(7), cartesian.posture + 0.3, 0.0)
    obs = cartesian.observe(state, image)
    assert obs["image"] is image
    assert obs["tcp_pose"].dtype == np.float32
    tool = cartesian.position(cartesian.posture)
    assert obs["tcp_pose"] == pytest.approx([*tool, 0.0, 1.0], abs=1e-3)
    turned = CartesianDelta(SPEC, yaw=0.5)
    pose = turned.observe(at(turned.posture), image)["tcp_pose"]
    assert pose[3:] == pytest.approx([np.sin(0.5), np.cos(0.5)], abs=1e-3)


def test_wrong_specs_and_boxes_are_refused() -> None:
    degrees = ActionSpec(("dx", "dy", "dz"), "rad", (-0.02,) * 3, (0.02,) * 3, 0.2)
    with pytest.raises(ConfigError, match="dx, dy, dz in m"):
        CartesianDelta(degrees)
    with pytest.raises(ConfigError, match="workspace"):
        CartesianDelta(SPEC, workspace=((0.3, 0.1, 0.0), (0.6, 0.1, 0.3)))
