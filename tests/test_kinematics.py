"""The arm's kinematics against PyBullet's own model of the arm, which shares no code with ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from safe_o2o.errors import ConfigError, UnknownNameError
from safe_o2o.safety.body import Body
from safe_o2o.safety.kinematics import Kinematics
from safe_o2o.safety.shipped import shipped_names

FRAMES = ("panda_hand_tcp", "panda_link4", "panda_hand")
LOW = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
HIGH = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])


@pytest.fixture(scope="module")
def kinematics() -> Kinematics:
    return Kinematics("panda", FRAMES)


def configurations(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(LOW, HIGH, (n, 7))


def test_forward_kinematics_agrees_with_pybullets_panda(kinematics: Kinematics) -> None:
    pybullet = pytest.importorskip("pybullet")
    data = pytest.importorskip("pybullet_data")
    client = pybullet.connect(pybullet.DIRECT)
    try:
        arm = pybullet.loadURDF(
            str(Path(data.getDataPath()) / "franka_panda" / "panda.urdf"),
            useFixedBase=True,
            physicsClientId=client,
        )
        link = {
            pybullet.getJointInfo(arm, j, physicsClientId=client)[12].decode(): j
            for j in range(pybullet.getNumJoints(arm, physicsClientId=client))
        }
        for q in configurations(30):
            for joint, value in enumerate(q):
                pybullet.resetJointState(arm, joint, value, physicsClientId=client)
            for frame in ("panda_hand", "panda_link4"):
                state = pybullet.getLinkState(
                    arm, link[frame], computeForwardKinematics=True, physicsClientId=client
                )
                rotation = np.array(pybullet.getMatrixFromQuaternion(state[5])).reshape(3, 3)
                assert kinematics.position(q, frame) == pytest.approx(state[4], abs=2e-6)
                assert np.abs(kinematics.rotation(q, frame) - rotation).max() < 2e-6
    finally:
        pybullet.disconnect(client)


def test_tool_at_the_zero_pose_lies_where_the_published_table_puts_it(
    kinematics: Kinematics,
) -> None:
    # 0.333 + 0.316 + 0.384 up, then 0.107 + 0.1034 down; forward 0.088 (the two 0.0825 cancel).
    expected = [0.088, 0.0, 0.333 + 0.316 + 0.384 - 0.107 - 0.1034]
    assert kinematics.position(np.zeros(7), "panda_hand_tcp") == pytest.approx(expected, abs=1e-12)


def test_batched_positions_are_the_single_ones(kinematics: Kinematics) -> None:
    q = configurations(5)
    batched = kinematics.positions(q)
    assert batched.shape == (5, 3, 3)
    for k in range(5):
        for f, frame in enumerate(FRAMES):
            assert np.array_equal(batched[k, f], kinematics.position(q[k], frame))


@pytest.mark.parametrize("frame", FRAMES)
def test_jacobian_is_the_derivative_of_the_position(kinematics: Kinematics, frame: str) -> None:
    step = 1e-6
    for q in configurations(5, seed=1):
        differences = np.stack(
            [
                (kinematics.position(q + dq, frame) - kinematics.position(q - dq, frame))
                / (2 * step)
                for dq in np.eye(7) * step
            ],
            axis=1,
        )
        jacobian = Body("panda", (), FRAMES).jacobians(q, np.array([FRAMES.index(frame)]))[0]
        assert jacobian == pytest.approx(differences, abs=1e-8)


def test_no_frame_is_ever_farther_from_a_joints_axis_than_its_reach() -> None:
    kinematics = Kinematics("panda", ("panda_hand_tcp", "panda_link4"))
    body, largest = Body("panda", (), kinematics.frames), np.zeros(7)
    for q in configurations(2000, seed=2):  # the norm of a column is the distance to that axis
        distances = np.linalg.norm(body.jacobians(q, np.arange(2)), axis=1)
        largest = np.maximum(largest, distances.max(axis=0))
    assert np.array_equal(body.reach, kinematics.reach)
    assert (largest <= kinematics.reach + 1e-12).all()
    assert (kinematics.reach <= 1.5 * largest + 1e-9).all()  # and the bound is of use


def test_returned_arrays_are_not_overwritten_by_the_next_query(kinematics: Kinematics) -> None:
    a, b = configurations(2)
    first = kinematics.position(a, "panda_hand"), kinematics.rotation(a, "panda_hand")
    kept = first[0].copy(), first[1].copy()
    kinematics.position(b, "panda_hand")
    kinematics.rotation(b, "panda_hand")
    assert np.array_equal(first[0], kept[0])
    assert np.array_equal(first[1], kept[1])


def test_unknown_arm_and_frame_are_refused_by_name(kinematics: Kinematics) -> None:
    assert "panda" in shipped_names("robot_models")
    with pytest.raises(UnknownNameError, match="panda"):
        Kinematics("pandas")
    with pytest.raises(ConfigError, match="panda_elbow"):
        kinematics.position(np.zeros(7), "panda_elbow")


@pytest.mark.parametrize("robot", shipped_names("robot_models"))
def test_limits_and_model_of_every_arm_tell_the_same_story(robot: str) -> None:
    model = Kinematics(robot, ()).model
    folder = Path(__file__).resolve().parent.parent / "safe_o2o" / "safety" / "robot_limits"
    limits = yaml.safe_load((folder / f"{robot}.yaml").read_text("utf-8"))
    assert limits["robot"] == robot
    assert limits["source"]
    assert tuple(limits["joint_names"]) == tuple(model.names)[1:]
    # Rounded inwards, and where a maker has two numbers the stricter: never wider than the model.
    for key, bound, sign in (
        ("position_low", model.lowerPositionLimit, -1.0),
        ("position_high", model.upperPositionLimit, 1.0),
        ("velocity", model.velocityLimit, 1.0),
    ):
        inside = sign * (bound - np.array(limits[key]))
        assert (inside >= -1e-9).all() and (inside < 0.2).all(), key
    for name in ("tool_frame", "elbow_frame"):
        assert model.existFrame(limits[name])
