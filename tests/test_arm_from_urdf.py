"""A user's own arm: limits, kinematics and body out of a URDF, and a filter that holds them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pinocchio
import pytest

from safe_o2o.errors import ConfigError
from safe_o2o.safety.arm import Arm
from safe_o2o.safety.body import Body, Capsule, Geometry
from safe_o2o.safety.filter import FilterConfig, SafetyFilter
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.obstacle import Obstacle
from safe_o2o.safety.shipped import shipped_text
from safe_o2o.safety.urdf import with_moving_joints
from safe_o2o.types import Array, Proposal, RobotState, Verdict

BOX: Any = ((-1.5, -1.5, -1.5), (1.5, 1.5, 1.5))


def limb(name: str, *shapes: str) -> str:
    return f'<link name="{name}">{"".join(f"<collision>{s}</collision>" for s in shapes)}</link>'


def hinge(name: str, parent: str, child: str, x: float) -> str:
    return (
        f'<joint name="{name}" type="revolute"><parent link="{parent}"/><child link="{child}"/>'
        f'<origin xyz="{x} 0 0"/><axis xyz="0 0 1"/>'
        '<limit lower="-2" upper="2" velocity="1.5" effort="9"/></joint>'
    )


BALL = '<geometry><sphere radius="0.06"/></geometry>'
ROD = (
    '<origin xyz="0.2 0 0" rpy="0 1.5707963267948966 0"/>'
    '<geometry><cylinder radius="0.04" length="0.4"/></geometry>'
)
BRICK = '<origin xyz="0.1 0 0" rpy="0.3 0 0"/><geometry><box size="0.2 0.06 0.08"/></geometry>'
TWO_LINKS = (
    '<robot name="mine">'
    + limb("base", BALL)
    + limb("upper", ROD)
    + limb("lower", BRICK)
    + limb("tool")
    + hinge("one", "base", "upper", 0.0)
    + hinge("two", "upper", "lower", 0.4)
    + '<joint name="mount" type="fixed"><parent link="lower"/><child link="tool"/>'
    '<origin xyz="0.2 0 0"/></joint></robot>'
)
MORE: Any = dict(acceleration=[5.0, 5.0], jerk=[np.inf] * 2, tool_frame="tool", elbow_frame="lower")


MEASURED = {"acceleration": [8.0] * 6, "jerk": [900.0] * 6}
PATIENT = FilterConfig(max_proposal_age=30.0)


def run(safety: SafetyFilter, q: Array, target: Array, steps: int = 15) -> list[Any]:
    """All the way in one chunk, and a while longer."""
    safety.reset(RobotState(q, 0.0 * q, q, 0.0))
    rows, out = q + np.linspace(0.0, 1.0, steps + 1)[1:, None] * (target - q), []
    proposal = Proposal(rows, 0.2, 0.0, safety.limits.joint_names)
    for k in range(20 * steps + 100):
        now = (k + 1) * 0.01
        decision = safety.certify(RobotState(q, 0.0 * q, q, now), proposal, now)
        q = decision.command.q
        out.append(decision)
    return out


def two_links() -> Arm:
    return Arm(RobotLimits.from_urdf(TWO_LINKS, **MORE), Geometry.from_urdf(TWO_LINKS), TWO_LINKS)


def watched(arm: Arm, thing: Obstacle) -> SafetyFilter:
    return SafetyFilter.for_robot(
        arm, workspace=BOX, table_height=-1.0, obstacles=[thing], self_collision=True,
        config=PATIENT,
    )  # fmt: skip


def test_a_shipped_arm_read_from_its_urdf_is_filtered_to_the_bit_as_by_its_name() -> None:
    text, known = (
        shipped_text("robot_models", "ur5e", ".urdf"),
        Arm.load("ur5e", MEASURED),
    )
    limits = RobotLimits.from_urdf(
        text, acceleration=known.limits.acceleration, jerk=known.limits.jerk,
        tool_frame=known.limits.tool_frame, elbow_frame=known.limits.elbow_frame,
    )  # fmt: skip
    own = Arm(limits, known.geometry, text)
    own = replace(own, limits=replace(known.limits, robot="mine"))
    thing = Obstacle("thing", (0.0, -0.5, 0.4), 0.1)
    q = np.array([0.0, -1.2, 1.5, -1.9, -1.5, 0.0])
    found = []
    for arm in (known, own):
        safety = watched(arm, thing)
        found.append(run(safety, q, q + np.array([-1.0, 0.3, 0.1, 0.0, 0.0, 0.4])))
    for a, b in zip(*found, strict=True):
        assert np.array_equal(a.command.q, b.command.q)
        assert (a.verdict, a.reason, a.margin) == (b.verdict, b.reason, b.margin)
    assert {d.verdict for d in found[1]} >= {Verdict.CORRECTED}


def test_an_arm_of_ones_own_stops_before_what_is_in_its_way() -> None:
    arm = two_links()
    assert arm.limits.robot == "mine" and arm.limits.joint_names == ("one", "two")
    wall = Obstacle("wall", (0.45, 0.45, 0.0), 0.1)
    safety = watched(arm, wall)
    decisions = run(safety, np.zeros(2), np.array([1.2, 0.0]))
    last = decisions[-1]
    assert last.verdict is Verdict.STOPPED and last.reason == "obstacles"
    assert 0.3 < last.command.q[0] < 0.75
    # By hand: the tool end of a straight arm is a rod about the ray at this angle.
    across = np.array([-np.sin(last.command.q[0]), np.cos(last.command.q[0])])
    gap = float(across @ np.array([0.45, 0.45])) - 0.1 - np.hypot(0.03, 0.04)
    assert -0.002 < gap - 0.01 < 0.02


def test_capsules_contain_every_collision_shape() -> None:
    found = {c.frame: c for c in Geometry.from_urdf(TWO_LINKS).capsules}
    assert found["base"] == Capsule("base", (0.0,) * 3, (0.0,) * 3, 0.06)
    np.testing.assert_allclose(found["upper"].start, (0.0, 0.0, 0.0), atol=1e-12)
    np.testing.assert_allclose(found["upper"].end, (0.4, 0.0, 0.0), atol=1e-12)
    generator = np.random.default_rng(0)
    turned = pinocchio.rpy.rpyToMatrix(0.3, 0.0, 0.0)
    corners = generator.choice((-0.5, 0.5), (200, 3)) * (0.2, 0.06, 0.08)
    body = Body(TWO_LINKS, (found["lower"],), ("lower",))
    here = pinocchio.buildModelFromXML(TWO_LINKS)
    data, q = here.createData(), generator.uniform(-1, 1, 2)
    pinocchio.framesForwardKinematics(here, data, q)
    link = data.oMf[here.getFrameId("lower")]
    points = (corners @ turned.T + (0.1, 0.0, 0.0)) @ link.rotation.T + link.translation
    centres = body.positions(q[None])[0, :, : body.spheres]
    apart = np.linalg.norm(points[:, :, None] - centres, axis=1) - body.radius
    assert apart.min(axis=1).max() <= 1e-12


def test_neighbours_and_what_is_fixed_together_may_touch() -> None:
    text = TWO_LINKS.replace(limb("tool"), limb("tool", BALL))
    pairs = {frozenset(pair) for pair in Geometry.from_urdf(text, [("base", "tool")]).skip}
    expected = [("base", "upper"), ("upper", "lower"), ("lower", "tool"), ("upper", "tool")]
    assert pairs == {frozenset(p) for p in (*expected, ("base", "tool"))}


def test_a_load_in_the_hand_of_ones_own_arm_counts() -> None:
    arm = two_links()
    rod = Capsule("tool", (0.0, 0.0, 0.0), (0.3, 0.0, 0.0), 0.02)
    plain, loaded = (arm.body(load)[0] for load in ((), (rod,)))
    assert loaded.spheres > plain.spheres and (loaded.reach >= plain.reach).all()
    with pytest.raises(ConfigError, match=r"mine.*no frame 'hand'"):
        arm.body([Capsule("hand", (0.0,) * 3, (0.0,) * 3, 0.02)])


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        ('<geometry><mesh filename="package://a/b.stl"/></geometry>', "'upper'.*has mesh"),
        ("<geometry/>", "'upper'.*has nothing"),
        ("", "'upper'.*has nothing"),
        ('<geometry><sphere radius="-1"/></geometry>', "'upper'.*positive"),
        ('<geometry><sphere radius="wide"/></geometry>', "'upper'.*number"),
        ("<geometry><sphere/></geometry>", "'upper'.*number"),
        ('<geometry><box size="1 2"/></geometry>', "'upper'.*number"),
        ('<geometry><box size="1 2 nan"/></geometry>', "'upper'.*number"),
        ('<geometry><cylinder radius="0.1"/></geometry>', "'upper'.*number"),
        ('<origin xyz="0 0"/><geometry><sphere radius="1"/></geometry>', "'upper'.*number"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(shape: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        Geometry.from_urdf(TWO_LINKS.replace(ROD, shape))
    assert "\n" not in str(caught.value)


def test_an_arm_of_which_nothing_but_its_joints_is_known_is_not_watched_for_obstacles() -> None:
    bare = TWO_LINKS.replace(BALL, "").replace("<collision></collision>", "")
    for shape in (ROD, BRICK):
        bare = bare.replace(f"<collision>{shape}</collision>", "")
    with pytest.raises(ConfigError, match="no collision shapes"):
        Geometry.from_urdf(bare)
    arm = Arm(RobotLimits.from_urdf(bare, **MORE), None, bare)
    for settings in ({"obstacles": ()}, {"self_collision": True}):
        with pytest.raises(ConfigError, match="mine: has no body"):
            SafetyFilter.for_robot(arm, workspace=BOX, **settings)  # type: ignore[arg-type]
    safety = SafetyFilter.for_robot(arm, workspace=BOX, table_height=-1.0, config=PATIENT)
    assert run(safety, np.zeros(2), np.array([0.1, 0.1]))[200].verdict is Verdict.PASS
    for text in ("<robot", "<robot name='x'><link"):
        with pytest.raises(ConfigError, match="URDF"):
            Geometry.from_urdf(text)
        with pytest.raises(ConfigError, match="URDF"):
            RobotLimits.from_urdf(text, **MORE)


def test_of_a_whole_machine_the_arm_alone_moves() -> None:
    finger = (
        '<link name="finger"/><joint name="grip" type="prismatic"><parent link="lower"/>'
        '<child link="finger"/><axis xyz="1 0 0"/>'
        '<limit lower="0" upper="0.04" velocity="1" effort="9"/><mimic joint="two"/></joint>'
        "</robot>"
    )
    machine = TWO_LINKS.replace("</robot>", finger)
    with pytest.raises(ConfigError, match="grip"):
        RobotLimits.from_urdf(machine, **MORE)
    text = with_moving_joints(machine, ("two", "one"))
    limits = RobotLimits.from_urdf(text, **MORE)
    assert limits.joint_names == ("one", "two")  # the chain's order, not that of the list
    arm = Arm(limits, Geometry.from_urdf(text), text)
    SafetyFilter.for_robot(arm, workspace=BOX, obstacles=())
    with pytest.raises(ConfigError, match="three"):
        with_moving_joints(machine, ("one", "three"))
