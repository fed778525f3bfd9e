"""Shipped arms: kinematics, limits and bodies against the makers' tables and against each other."""

from __future__ import annotations

from importlib import resources
from itertools import pairwise
from math import hypot, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from safe_o2o.errors import ConfigError, UnknownNameError
from safe_o2o.runtime.cartesian import CartesianDelta
from safe_o2o.safety.body import Body, Geometry
from safe_o2o.safety.kinematics import POSTURES, Kinematics, robot_model
from safe_o2o.safety.limits import RobotLimits, tool_frame
from safe_o2o.safety.self_collision import SelfCollision
from safe_o2o.safety.shipped import shipped_names
from safe_o2o.spaces import ActionSpec
from safe_o2o.types import RobotState

ROBOTS = ("fr3", "panda", "ur10e", "ur3e", "ur5e", "xarm6", "xarm7")
UR = {  # a2, a3, d1, d4, d5, d6; reach of the data sheet, m
    "ur3e": (-0.24355, -0.2132, 0.15185, 0.13105, 0.08535, 0.0921, 0.5),
    "ur5e": (-0.425, -0.3922, 0.1625, 0.1333, 0.0997, 0.0996, 0.85),
    "ur10e": (-0.6127, -0.57155, 0.1807, 0.17415, 0.11985, 0.11655, 1.3),
}
UPRIGHT = (0.0, -pi / 2, 0.0, -pi / 2, 0.0, 0.0)
BENT = (0.0, -pi / 2, pi / 2, -pi / 2, -pi / 2, 0.0)
FRANKA = (0.0, -pi / 4, 0.0, -3 * pi / 4, 0.0, pi / 2, pi / 4)
HOMES: dict[str, tuple[tuple[float, ...], ...]] = {
    "panda": (POSTURES["panda"], FRANKA),
    "fr3": (POSTURES["fr3"], FRANKA),
    **{robot: (POSTURES[robot], BENT, UPRIGHT) for robot in UR},
    "xarm6": (POSTURES["xarm6"], (0.0, -0.3, -0.9, 0.0, 1.2, 0.0), (0.0,) * 6),
    "xarm7": (POSTURES["xarm7"], (0.0, -0.3, 0.0, 0.9, 0.0, 1.2, 0.0), (0.0,) * 7),
}
"""For each arm the posture that it rests in, others, and one in which the maker parks it."""


def limits_of(robot: str) -> RobotLimits:
    """The shipped limits; what is not published does not matter here."""
    file = resources.files("safe_o2o.safety") / "robot_limits" / f"{robot}.yaml"
    raw = yaml.safe_load(file.read_text("utf-8"))
    n = len(raw["joint_names"])
    measured = {name: [1.0] * n for name, value in raw.items() if value == "measured_by_you"}
    return RobotLimits.load(robot, measured)


def configurations(robot: str, count: int) -> np.ndarray:
    limits = limits_of(robot)
    shape = (count, len(limits.joint_names))
    return np.random.default_rng(0).uniform(limits.q_low, limits.q_high, shape)


def turn(axis: int, angle: float) -> np.ndarray:
    out, (i, j) = np.eye(4), [(1, 2), (2, 0), (0, 1)][axis]
    out[i, i] = out[j, j] = np.cos(angle)
    out[j, i] = np.sin(angle)
    out[i, j] = -np.sin(angle)
    return out


def shift(x: float = 0.0, z: float = 0.0) -> np.ndarray:
    out = np.eye(4)
    out[:3, 3] = x, 0.0, z
    return out


def standard(table: list[tuple[float, float, float, float]], q: np.ndarray) -> np.ndarray:
    """Denavit-Hartenberg: turn about z by q + offset, along z by d, along x by a, about x."""
    out = np.eye(4)
    for (a, alpha, d, offset), angle in zip(table, q, strict=True):
        out = out @ turn(2, angle + offset) @ shift(x=a, z=d) @ turn(0, alpha)
    return out


def franka(q: np.ndarray) -> np.ndarray:
    """Craig's convention, then flange, hand and tool."""
    a = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088)
    d = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0)
    alpha = (0.0, -pi / 2, pi / 2, pi / 2, -pi / 2, pi / 2, pi / 2)
    out = np.eye(4)
    for row in range(7):
        out = out @ turn(0, alpha[row]) @ shift(x=a[row]) @ turn(2, q[row]) @ shift(z=d[row])
    return out @ shift(z=0.107) @ turn(2, -pi / 4) @ shift(z=0.1034)


def by_table(robot: str, q: np.ndarray) -> np.ndarray:
    """The tool in the base, from the maker's published table."""
    if robot in ("panda", "fr3"):
        return franka(q)
    if robot in UR:
        a2, a3, d1, d4, d5, d6, _ = UR[robot]
        table = [(0.0, pi / 2, d1, 0.0), (a2, 0.0, 0.0, 0.0), (a3, 0.0, 0.0, 0.0)]
        table += [(0.0, pi / 2, d4, 0.0), (0.0, -pi / 2, d5, 0.0), (0.0, 0.0, d6, 0.0)]
        return turn(2, pi) @ standard(table, q)  # base_link is turned against the controller's
    if robot == "xarm6":
        # The maker's own formulas; it prints the first as 0.28948866 (two digits slipped: 2 um).
        a2, lean = hypot(0.2845, 0.0535), np.arctan2(0.2845, 0.0535)
        assert abs(a2 - 0.28948866) < 3e-6 and abs(lean - 1.3849179) < 1e-7
        table = [(0.0, -pi / 2, 0.267, 0.0), (a2, 0.0, 0.0, -lean), (0.0775, -pi / 2, 0.0, lean)]
        table += [(0.0, pi / 2, 0.3425, 0.0), (0.076, -pi / 2, 0.0, 0.0), (0.0, 0.0, 0.097, 0.0)]
        return standard(table, q)
    table = [(0.0, -pi / 2, 0.267, 0.0), (0.0, pi / 2, 0.0, 0.0), (0.0525, pi / 2, 0.293, 0.0)]
    table += [(0.0775, pi / 2, 0.0, 0.0), (0.0, pi / 2, 0.3425, 0.0), (0.076, -pi / 2, 0.0, 0.0)]
    return standard([*table, (0.0, 0.0, 0.097, 0.0)], q)


def test_every_arm_has_a_model_limits_and_a_body() -> None:
    folder = resources.files("safe_o2o.safety") / "robot_limits"
    limits = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))
    assert (
        shipped_names("robot_models") == shipped_names("robot_geometry") == tuple(limits) == ROBOTS
    )
    with pytest.raises(UnknownNameError, match="ur5e"):
        Geometry.load("ur5")


@pytest.mark.parametrize("robot", ROBOTS)
def test_joints_and_limits_are_those_of_the_model(robot: str) -> None:
    model, limits = robot_model(robot), limits_of(robot)
    assert limits.joint_names == tuple(model.names)[1:] and model.name == robot
    assert (limits.q_low >= model.lowerPositionLimit).all()
    assert (limits.q_high <= model.upperPositionLimit).all()
    assert (limits.velocity <= model.velocityLimit).all()
    # Inside by rounding, and for the xArm by what its two generations have in common.
    assert np.abs(limits.velocity - model.velocityLimit).max() < 2e-3
    assert np.abs(limits.q_low - model.lowerPositionLimit).max() < 0.12
    assert np.abs(limits.q_high - model.upperPositionLimit).max() < 0.12
    for frame in (limits.tool_frame, limits.elbow_frame):
        assert model.existFrame(frame)


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_models_own_text_gives_its_limits(robot: str) -> None:
    file = resources.files("safe_o2o.safety") / "robot_models" / f"{robot}.urdf"
    limits, model = limits_of(robot), robot_model(robot)
    read = RobotLimits.from_urdf(
        file.read_text("utf-8"),
        acceleration=limits.acceleration,
        jerk=limits.jerk,
        tool_frame=limits.tool_frame,
        elbow_frame=limits.elbow_frame,
    )
    assert read.robot == robot and read.joint_names == limits.joint_names
    assert read.q_low.tolist() == model.lowerPositionLimit.tolist()
    assert read.velocity.tolist() == model.velocityLimit.tolist()


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_tool_is_where_the_makers_table_puts_it(robot: str) -> None:
    tool = limits_of(robot).tool_frame
    kinematics = Kinematics(robot, (tool,))
    for q in configurations(robot, 50):
        expected = by_table(robot, q)
        assert np.abs(kinematics.position(q, tool) - expected[:3, 3]).max() < 1e-9
        assert np.abs(kinematics.rotation(q, tool) - expected[:3, :3]).max() < 1e-9


@pytest.mark.parametrize("robot", ["panda", "fr3"])
def test_a_franka_reaches_what_its_data_sheet_says(robot: str) -> None:
    """855 mm: the farthest that the flange gets from the shoulder (0.333 m up), to 5 mm.

    The interface documentation adds that the arm is longest at -0.467002423653011 rad in joint 4.
    """
    kinematics = Kinematics(robot, (f"{robot}_link6", f"{robot}_link8"))
    angles, shoulder = np.linspace(-1.0, -0.1, 9001), np.array([0.0, 0.0, 0.333])
    q = np.zeros((len(angles), 7))
    q[:, 3] = angles
    wrist = np.linalg.norm(kinematics.positions(q)[:, 0] - shoulder, axis=1)
    assert angles[wrist.argmax()] == pytest.approx(-0.467002423653011, abs=1e-4)
    q[:, 3], q[:, 5] = angles[wrist.argmax()], np.linspace(0.5, 3.7, len(q))
    flange = np.linalg.norm(kinematics.positions(q)[:, 1] - shoulder, axis=1)
    assert flange.max() == pytest.approx(0.855, abs=5e-3)


@pytest.mark.parametrize("robot", sorted(UR))
def test_a_ur_reaches_what_its_data_sheet_says(robot: str) -> None:
    """500, 850 and 1300 mm from the base's axis: farther than wrist 1, less than the flange."""
    kinematics = Kinematics(robot, ("wrist_1_link", "tool0"))
    bend = np.linspace(-pi, pi, 73)
    q = np.zeros((len(bend) ** 2, 6))  # stretched out level, the wrist anyhow
    q[:, 3:5] = np.stack(np.meshgrid(bend, bend), -1).reshape(-1, 2)
    wrist, flange = np.moveaxis(kinematics.positions(q), 1, 0)
    *_, reach = UR[robot]
    a2, a3, _, d4, *_ = UR[robot]
    assert np.linalg.norm(wrist[0, :2]) == pytest.approx(hypot(a2 + a3, d4), abs=1e-12)
    assert -(a2 + a3) < reach < np.linalg.norm(flange[:, :2], axis=1).max()
    assert reach == pytest.approx(np.linalg.norm(flange[:, :2], axis=1).max(), rel=0.2)


@pytest.mark.parametrize(
    ("robot", "zero"), [("xarm6", (0.207, 0.0, 0.112)), ("xarm7", (0.206, 0.0, 0.1205))]
)
def test_an_xarm_starts_and_ends_where_its_manual_says(robot: str, zero: tuple[float, ...]) -> None:
    """At the manual's zero position the tool points down; 700 mm lies between wrist and flange."""
    n = len(HOMES[robot][0])
    kinematics = Kinematics(robot, (f"link{n - 1}", "link_eef"))
    q = np.zeros(n)
    assert kinematics.position(q, "link_eef") == pytest.approx(zero, abs=1e-12)
    assert kinematics.rotation(q, "link_eef")[:, 2] == pytest.approx([0.0, 0.0, -1.0])
    off = kinematics.positions(configurations(robot, 20000)) - np.array([0.0, 0.0, 0.267])
    wrist, flange = np.linalg.norm(off, axis=2).max(axis=0)
    longest = hypot(0.2845, 0.0535) if robot == "xarm6" else hypot(0.293, 0.0525)
    longest += hypot(0.3425, 0.0775)
    assert 0.95 * longest < wrist <= longest + 1e-12 < 0.7
    assert 0.7 < flange <= longest + hypot(0.076, 0.097) + 1e-12


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_body_is_of_this_arm(robot: str) -> None:
    geometry, limits = Geometry.load(robot), limits_of(robot)
    assert geometry.robot == robot and geometry.source
    body = Body(robot, geometry.capsules, (limits.tool_frame, limits.elbow_frame))
    assert 15 <= body.spheres <= 30 and len(geometry.capsules) <= 30
    model = robot_model(robot)
    joint = {
        capsule.frame: int(model.frames[model.getFrameId(capsule.frame)].parentJoint)
        for capsule in geometry.capsules
    }
    assert set(joint.values()) == set(range(model.nv + 1))  # every link, the base too
    skip = {frozenset(pair) for pair in geometry.skip}
    assert len(skip) == len(geometry.skip) and all(len(pair) == 2 for pair in skip)
    for first, second in pairwise(sorted(joint, key=joint.__getitem__)):
        assert frozenset((first, second)) in skip, "neighbours always touch"
    # What the elbow frame names lies between shoulder and wrist.
    elbow = int(model.frames[model.getFrameId(limits.elbow_frame)].parentJoint)
    assert elbow in (3, 4)


@pytest.mark.parametrize("robot", ROBOTS)
def test_an_arm_that_rests_does_not_touch_itself(robot: str) -> None:
    geometry, limits = Geometry.load(robot), limits_of(robot)
    constraint = SelfCollision(Body(robot, geometry.capsules), geometry.skip)
    postures = np.array(HOMES[robot])
    assert ((limits.q_low < postures) & (postures < limits.q_high)).all()
    assert constraint.clearance(postures).min() > 0.0
    # It is not blind either: folded at random, these arms do touch themselves.
    folded = constraint.clearance(configurations(robot, 500))
    assert (folded.min(axis=1) < 0.0).mean() > 0.02


@pytest.mark.parametrize("robot", ROBOTS)
def test_every_arm_rests_above_its_table_and_steps_from_there(robot: str) -> None:
    """Tool down, elbow up; a step of the tool in any direction is one, and it stays upright."""
    limits, home = limits_of(robot), np.array(POSTURES[robot])
    frames = (limits.tool_frame, limits.elbow_frame)
    tool, elbow = Kinematics(robot, frames).positions(home[None])[0]
    assert tool[0] > 0.25 and abs(tool[1]) < 0.01 and 0.1 < tool[2] < elbow[2] - 0.2
    assert limits.tool_frame == tool_frame(robot)
    step = 0.02
    action = ActionSpec(("dx", "dy", "dz"), "m", (-step,) * 3, (step,) * 3, 0.2)
    room = (tuple(tool - 0.1), tuple(tool + 0.1))
    cartesian = CartesianDelta(action, robot, workspace=room, frame=limits.tool_frame)
    assert np.abs(cartesian.posture - home).max() < 0.01, "what it starts from, to a hundredth"
    with pytest.raises(ConfigError, match="does not reach its middle"):
        far = np.array([1.6, 0.0, 0.0])
        room_there = (tuple(tool + far - 0.1), tuple(tool + far + 0.1))
        CartesianDelta(action, robot, workspace=room_there, frame=limits.tool_frame)
    state = RobotState(q=home, dq=0.0 * home, q_command=home, stamp=0.0)
    down = np.diag([1.0, -1.0, -1.0])
    for direction in (*np.eye(3), *-np.eye(3)):
        (q,) = cartesian.proposal(direction, state).q
        moved = cartesian.kinematics.position(q, limits.tool_frame) - tool
        assert moved == pytest.approx(step * direction, abs=2e-4)
        assert cartesian.kinematics.rotation(q, limits.tool_frame) == pytest.approx(down, abs=5e-3)


@pytest.mark.parametrize("robot", ROBOTS)
def test_no_pair_is_watched_that_always_touches(robot: str) -> None:
    geometry = Geometry.load(robot)
    constraint = SelfCollision(Body(robot, geometry.capsules), geometry.skip)
    parts = np.array_split(configurations(robot, 5000), 10)
    farthest = np.max([constraint.clearance(part).max(axis=0) for part in parts], axis=0)
    assert (farthest > 0.0).all()


def test_the_fr3_has_the_pandas_body() -> None:
    panda, fr3 = Geometry.load("panda"), Geometry.load("fr3")
    renamed = [(c.frame.replace("panda", "fr3"), c.start, c.end, c.radius) for c in panda.capsules]
    assert renamed == [(c.frame, c.start, c.end, c.radius) for c in fr3.capsules]
    assert [tuple(f.replace("panda", "fr3") for f in pair) for pair in panda.skip] == list(fr3.skip)


def triangles(path: Path) -> np.ndarray:
    """Corners `[T, 3, 3]` of the faces of an OBJ file."""
    vertices: list[list[float]] = []
    faces: list[list[int]] = []
    for line in path.read_text().splitlines():
        words = line.split()
        if words[:1] == ["v"]:
            vertices.append([float(word) for word in words[1:4]])
        elif words[:1] == ["f"]:
            corners = [int(word.split("/")[0]) - 1 for word in words[1:]]
            faces += [[corners[0], *pair] for pair in pairwise(corners[1:])]
    assert faces and min(map(min, faces)) >= 0
    return np.array(vertices)[np.array(faces)]


def inside(faces: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> bool:
    """Whether whole triangles lie in a union of balls: in one of them, or in quarters."""
    for _ in range(9):
        held = np.square(faces[:, :, None] - centres).sum(axis=-1) <= np.square(radii)
        if not held.any(axis=2).all():  # a corner in no ball at all
            return False
        faces = faces[~held.all(axis=1).any(axis=1)]
        if not len(faces):
            return True
        a, b, c = faces.transpose(1, 0, 2)
        d, e, f = (a + b) / 2.0, (b + c) / 2.0, (c + a) / 2.0
        faces = np.concatenate(
            [np.stack(t, 1) for t in ((a, d, f), (d, b, e), (f, e, c), (d, e, f))]
        )
    return False


def test_the_pandas_body_contains_its_collision_meshes() -> None:
    data = pytest.importorskip("pybullet_data")
    folder = Path(data.getDataPath()) / "franka_panda" / "meshes" / "collision"
    geometry = Geometry.load("panda")
    meshes = {f"panda_link{i}": triangles(folder / f"link{i}.obj") for i in range(8)}
    hand, finger = triangles(folder / "hand.obj"), triangles(folder / "finger.obj")
    turned = finger * np.array([-1.0, -1.0, 1.0])
    fingers = [
        side + np.array([0.0, sign * opening, 0.0584])
        for opening in np.linspace(0.0, 0.04, 17)
        for side, sign in ((finger, 1.0), (turned, -1.0))
    ]
    meshes["panda_hand"] = np.concatenate([hand, *fingers])
    for frame, faces in meshes.items():
        parts = [c.spheres() for c in geometry.capsules if c.frame == frame]
        centres = np.concatenate([points for points, _ in parts])
        radii = np.concatenate([np.full(len(points), radius) for points, radius in parts])
        assert inside(faces, centres, radii), frame
        # And would not be with balls a fifth smaller: the test can fail.
        assert not inside(faces, centres, 0.8 * radii), frame


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"source": None}, "source"),
        ({"capsules": [{"frame": "tool0", "start": [0.0, 0.0]}]}, "body|lacks"),
        ({"capsules": [{"frame": "tool0", "start": [0.0, 0.0, 0.0], "radius": 0.0}]}, "tool0"),
    ],
)
def test_a_damaged_body_is_refused(change: dict[str, Any], word: str) -> None:
    data: dict[str, Any] = {"robot": "ur5e", "source": "me", "capsules": []}
    data = {key: value for key, value in (data | change).items() if value is not None}
    with pytest.raises(ConfigError, match=word):
        Geometry.from_mapping(data, where="mine.yaml")
