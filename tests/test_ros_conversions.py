"""Messages carry what the types hold, joints go by name, malformed messages are refused."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="ROS 2 is not installed (pip install 'safe_o2o[ros]')")
conversions = pytest.importorskip(
    "safe_o2o_ros.conversions", reason="pip install ./ros2_ws/src/safe_o2o_ros"
)
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from safe_o2o.errors import ConfigError  # noqa: E402
from safe_o2o.types import Proposal, Source  # noqa: E402
from safe_o2o_ros.matching import StampMatcher  # noqa: E402

pytestmark = pytest.mark.ros
NAMES = ("a", "b", "c")


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_a_stamp_survives_the_message_to_the_nanosecond(nanoseconds: int) -> None:
    msg = conversions.stamp_to_msg(nanoseconds / 1e9)
    assert 0 <= msg.nanosec < 10**9
    # a double holds 2^31 s to 0.24 us; below 2^53 ns it is exact
    there = msg.sec * 10**9 + msg.nanosec
    assert abs(there - nanoseconds) <= max(0, nanoseconds >> 52)


@given(st.integers(0, 2**31 * 10**6 - 1))
def test_an_instant_to_the_microsecond_has_one_key_in_seconds_and_in_messages(instant: int) -> None:
    msg = conversions.stamp_to_msg(instant / 1e6)
    assert conversions.stamp_key(msg) == conversions.key_of(instant / 1e6) == instant
    assert conversions.key_of(conversions.stamp_from_msg(msg)) == instant


def test_joints_are_matched_by_name() -> None:
    msg = conversions.joint_state_to_msg(
        ("c", "a", "x", "b"), [3.0, 1, 9, 2], [30.0, 10, 90, 20], 1.5
    )
    q, dq = conversions.joints_from_msg(msg, NAMES)
    assert q.tolist() == [1, 2, 3] and dq.tolist() == [10, 20, 30]
    assert (msg.header.stamp.sec, msg.header.stamp.nanosec) == (1, 500_000_000)


@pytest.mark.parametrize(
    ("names", "q", "dq", "complaint"),
    [
        (("a", "b"), [1.0, 2], None, "no joint 'c'"),
        (NAMES, [1.0, 2], None, "2 positions"),
        (NAMES, [1.0, 2, 3], [0.0], "1 velocities"),
        (NAMES, [1.0, np.nan, 3], None, "not finite"),
        (NAMES, [1.0, 2, 3], [0.0, np.inf, 0], "not finite"),
    ],
)
def test_malformed_joint_states_are_refused(names, q, dq, complaint) -> None:
    msg = conversions.joint_state_to_msg(names, q, dq, 0.0)
    with pytest.raises(conversions.MessageError, match=complaint):
        conversions.joints_from_msg(msg, NAMES)


def test_a_robot_state_needs_both_topics_of_one_instant() -> None:
    measured = conversions.joint_state_to_msg(NAMES, [1.0, 2, 3], [4.0, 5, 6], 2.0)
    command = conversions.joint_state_to_msg(NAMES, [7.0, 8, 9], None, 2.0)
    state = conversions.robot_state(measured, command, NAMES)
    assert state.stamp == 2.0
    assert state.q.tolist() == [1, 2, 3] and state.dq.tolist() == [4, 5, 6]
    assert state.q_command.tolist() == [7, 8, 9]
    command.header.stamp.nanosec += 1000  # the next instant that there is
    with pytest.raises(conversions.MessageError, match="different instants"):
        conversions.robot_state(measured, command, NAMES)


def test_an_image_survives_and_wrong_ones_are_refused() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 7, 3), np.uint8)
    msg = conversions.image_to_msg(image[:, ::-1], 1.0)  # a view with a negative stride
    assert (msg.height, msg.width, msg.step, msg.encoding) == (5, 7, 21, "rgb8")
    assert msg.data[:3].tolist() == image[0, 6].tolist()
    assert np.array_equal(conversions.image_from_msg(msg), image[:, ::-1])
    msg.step = 22
    with pytest.raises(conversions.MessageError, match="step 22"):
        conversions.image_from_msg(msg)
    msg.encoding = "bgr8"
    with pytest.raises(conversions.MessageError, match="bgr8"):
        conversions.image_from_msg(msg)
    with pytest.raises(conversions.MessageError, match="float64"):
        conversions.image_to_msg(image / 255.0, 1.0)


def test_messages_pass_with_field_checks_on() -> None:
    code = (
        "import numpy as np; from safe_o2o_ros import conversions as c\n"
        "from safe_o2o.types import Proposal\n"
        "c.image_from_msg(c.image_to_msg(np.zeros((4, 4, 3), np.uint8), 1.0))\n"
        "m = c.joint_state_to_msg(('a',), np.ones(1, np.float32), np.zeros(1), 1.0)\n"
        "c.joints_from_msg(m, ('a',))\n"
        "c.proposal_from_msg(c.proposal_to_msg(Proposal(np.ones((2, 1)), 0.2, 1.0, ('a',))))\n"
        "c.record_to_msg('x', {'a': 1}, 1.0)\n"
    )
    environment = {**os.environ, "ROS_PYTHON_CHECK_FIELDS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)


def test_a_proposal_survives() -> None:
    proposal = Proposal(
        q=np.array([[1.0, 2, 3], [4, 5, 6]]), period=0.2, stamp=12.34, joint_names=NAMES
    )
    msg = conversions.proposal_to_msg(proposal)
    last = msg.points[1].time_from_start
    assert (last.sec, last.nanosec) == (0, 400_000_000)
    back = conversions.proposal_from_msg(msg, Source.HUMAN)
    assert np.array_equal(back.q, proposal.q) and back.joint_names == NAMES
    assert (back.period, back.stamp, back.source) == (0.2, 12.34, Source.HUMAN)


def test_a_proposal_lets_bad_numbers_through_to_the_filter_but_no_bad_form() -> None:
    proposal = Proposal(np.full((2, 3), np.nan), 0.2, 0.0, NAMES)
    msg = conversions.proposal_to_msg(proposal)
    assert np.isnan(conversions.proposal_from_msg(msg).q).all()
    msg.points[1].time_from_start.nanosec += 100_000_000
    with pytest.raises(conversions.MessageError, match="one policy period apart"):
        conversions.proposal_from_msg(msg)
    msg.points[1].positions = [1.0]
    with pytest.raises(conversions.MessageError, match="point 1 has 1 positions for 3"):
        conversions.proposal_from_msg(msg)
    with pytest.raises(conversions.MessageError, match="no points"):
        conversions.proposal_from_msg(JointTrajectory())


def test_a_record_survives_and_a_foreign_one_is_refused() -> None:
    output = conversions.PolicyOutput(
        stamp=1.25,
        episode=3,
        seed=7,
        step=2,
        event="decision",
        action=(0.5, -1.0, 0.25),
        outputs={"risk": 0.125},
        behavior="policy v000002",
        source=0,
        bundle="v000002",
        graph="ab12",
        gate="shadow",
        round=1,
        truncated=False,
        terminated=True,
    )
    msg = conversions.record_to_msg("policy_output", output, output.stamp)
    assert conversions.record_from_msg(conversions.PolicyOutput, msg) == output
    with pytest.raises(ConfigError, match="TaskStatus"):
        conversions.record_from_msg(conversions.TaskStatus, msg)
    msg.status[0].values[0].value = "{"
    with pytest.raises(conversions.MessageError, match="not JSON"):
        conversions.record_from_msg(conversions.PolicyOutput, msg)


def test_only_equal_stamps_match_and_lost_pictures_are_counted() -> None:
    matcher = StampMatcher(("status", "joints", "image"), anchor="status", depth=4)
    assert matcher.add("joints", 1, "j1") is None
    assert matcher.add("image", 2, "i2") is None
    assert matcher.add("status", 1, "s1") is None
    assert matcher.add("image", 1, "i1") == {"joints": "j1", "status": "s1", "image": "i1"}
    assert len(matcher) == 1
    matcher.add("status", 3, "s3")  # its picture never comes
    for key in range(10, 20):
        matcher.add("joints", key, "j")  # a fast topic without pictures is no loss
    assert matcher.dropped == 1 and len(matcher) == 4
