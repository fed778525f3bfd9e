"""What a look at a path settles must be what a look at each motion would have said."""

from __future__ import annotations

import numpy as np
import pytest

from safe_o2o.interfaces import Constraint
from safe_o2o.safety.body import Body, Geometry
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.joint_limits import JointLimits
from safe_o2o.safety.kinematics import POSTURES
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.motion import Motion
from safe_o2o.safety.obstacle import Obstacle, Obstacles
from safe_o2o.safety.path import JointPath
from safe_o2o.safety.precheck import BLOCK, PathCheck, PathConstraints
from safe_o2o.safety.self_collision import SelfCollision
from safe_o2o.safety.sweep import lowest_clearance
from safe_o2o.safety.tool_speed import ToolSpeed
from safe_o2o.safety.workspace import Workspace
from safe_o2o.types import Array, Proposal, RobotState, Verdict
from tests.rail import Rail, RailBody, rail_limits

LIMITS = RobotLimits.load("panda")
HOME = np.array(POSTURES["panda"])
SHAPE = Geometry.load("panda")
BODY = Body("panda", SHAPE.capsules, (LIMITS.tool_frame, LIMITS.elbow_frame))
DT = 0.01


def around(generator: np.random.Generator, q: Array, path: JointPath) -> list[Constraint]:
    """Walls and caps that the path comes close to, some on this side, some on the other."""
    at = BODY.positions(path.positions(np.arange(path.end)))[:, :, BODY.spheres]
    reach, near = at.max(axis=0), generator.normal(0.0, 0.004, 3)
    box = Workspace(BODY, at.min(axis=0) - 0.5, np.maximum(reach + near, at[0] + 1e-3))
    step = np.linalg.norm(np.diff(at, axis=0), axis=1).max() / DT
    speed = ToolSpeed(BODY, LIMITS.tool_frame, max(step * generator.uniform(0.97, 1.1), 1e-3))
    far = path.positions(np.arange(path.end))
    high = np.maximum(far.max(axis=0) + generator.normal(0.0, 1e-3, 7), q + 1e-4)
    narrow = RobotLimits(
        "panda", LIMITS.joint_names, far.min(axis=0) - 1.0, high, LIMITS.velocity,
        LIMITS.acceleration, LIMITS.tool_frame, LIMITS.elbow_frame,
    )  # fmt: skip
    return [JointLimits(narrow), box, speed, SelfCollision(BODY, SHAPE.skip)]


@pytest.mark.parametrize("seed", range(6))
def test_it_never_settles_what_a_motion_would_be_refused_for(seed: int) -> None:
    """Any times on the path, in any order of looks: stops, slow stretches, whole ticks or not."""
    generator, settled, refused, left = np.random.default_rng(seed), 0, 0, 0
    for _ in range(12):
        q, v = HOME + generator.normal(0.0, 0.1, 7), generator.normal(0.0, 0.2, 7)
        target = q + np.cumsum(generator.normal(0.0, 0.03, (6, 7)), axis=0)
        path = JointPath(q, v, None, target, 0.1, DT, bool(generator.random() < 0.3), rest=0.3)
        constraints = around(generator, q, path)
        check, before = PathCheck(path, PathConstraints(constraints), DT, v), 0.0
        for _ in range(12):
            # Mostly on at full rate, sometimes slowly, always to some way ahead.
            rate = 1.0 if generator.random() < 0.5 else generator.uniform(0.05, 1.0)
            count = int(generator.integers(1, 30))
            times = np.minimum(before + rate * np.arange(1.0, count + 1.0), path.end)
            name, margin, doubtful = check.look(before, times)
            points = path.positions(np.concatenate([[before], times]))
            motion = Motion(points, DT, path.motion(before)[0] * rate)
            clear = {c.name: lowest_clearance(c, motion) for c in constraints}
            if name:
                refused += 1
                assert clear[name] is None
            else:
                for constraint in constraints:
                    if constraint in doubtful:
                        left += 1
                        continue
                    settled, lowest = settled + 1, clear[constraint.name]
                    assert lowest is not None
                    assert margin <= lowest / constraint.range + 1e-9
                before = float(times[int(generator.integers(0, count))])
    assert min(settled, left) > 50 and refused > 5  # all three of them happen


def test_far_from_everything_nothing_is_asked_twice_and_no_more_is_looked_at_than_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[int] = []
    real = Workspace.swept

    def counted(self: Workspace, motion: Motion) -> tuple[Array, Array]:
        looked.append(len(motion.steps))
        return real(self, motion)

    monkeypatch.setattr(Workspace, "swept", counted)
    box = Workspace(BODY, (-2.0, -2.0, -1.0), (2.0, 2.0, 2.0))
    target = HOME + 0.001 * np.arange(1, 17)[:, None]
    path = JointPath(HOME, np.zeros(7), None, target, 0.1, DT)
    check = PathCheck(path, PathConstraints([JointLimits(LIMITS), box]), DT, np.zeros(7))
    for tick in range(100):
        name, margin, doubtful = check.look(tick, np.arange(tick + 1.0, tick + 9.0))
        assert name == "" and margin > 0.0 and not doubtful
    assert sum(looked) <= 100 + 8 + BLOCK and len(looked) <= 108 / BLOCK + 1


def test_who_may_change_his_mind_is_always_asked() -> None:
    path = JointPath(HOME, np.zeros(7), None, HOME[None] + 0.01, 0.1, DT)
    watched = Obstacles(BODY, [])
    check = PathCheck(path, PathConstraints([JointLimits(LIMITS), watched]), DT, np.zeros(7))
    assert check.look(0.0, np.array([1.0, 1.5]))[2] == [watched]


@pytest.mark.parametrize("gentle", [False, True])
def test_the_hull_holds_every_point_of_the_path_and_hardly_more(gentle: bool) -> None:
    generator = np.random.default_rng(3)
    for lead in (0.0, -4.5, 3.0):
        q, v, a = generator.normal(size=(3, 7))
        target = q + np.cumsum(generator.normal(0.0, 0.1, (5, 7)), axis=0)
        path = JointPath(q, v, a, target, 0.2, DT, gentle, lead, rest=0.4)
        low, high = path.hull()
        points = path.positions(np.linspace(0.0, path.end + 1.0, 20_000))
        assert (points >= low - 1e-12).all() and (points <= high + 1e-12).all()
        room = np.ptp(points, axis=0)
        assert (points.min(axis=0) - low < 0.6 * room).all()
        assert (high - points.max(axis=0) < 0.6 * room).all()


def test_a_tool_just_below_its_cap_is_not_slowed_down() -> None:
    """A bound for a whole path has to be loose; it is the motion itself that counts."""
    arm, cap = Body("panda", (), (LIMITS.tool_frame, LIMITS.elbow_frame)), 0.25
    q, turn = HOME.copy(), np.zeros(7)
    turn[0] = 1.0
    radius = float(np.linalg.norm(arm.positions(q[None])[0, :2, 0]))
    bend = 0.5 * float(arm.reach_of(LIMITS.tool_frame)[0]) * DT  # of a turn about the first axis
    speed = (np.sqrt(radius**2 + 4.0 * bend * cap) - radius) / (2.0 * bend) * (1.0 - 2e-3)
    assert radius * speed + 2.0 * bend * speed**2 > cap  # twice the bend is too much
    watched = ToolSpeed(arm, LIMITS.tool_frame, cap)
    filter_ = SafetyFilter(LIMITS, [JointLimits(LIMITS), watched], DT)
    state = RobotState(q, np.zeros(7), q, 0.0)
    filter_.reset(state)
    # From rest up to speed within twelve periods, smoothly, then on at it.
    share = np.minimum(np.arange(1, 31) / 12.0, 1.0)
    rates = (3.0 * share**2 - 2.0 * share**3) * speed * 0.1
    rows = q + np.cumsum(rates)[:, None] * turn
    proposal = Proposal(rows, 0.1, 0.0, LIMITS.joint_names)
    decisions = []
    for k in range(250):
        now = (k + 1) * DT
        decision = filter_.certify(RobotState(q, 0.0 * q, q, now), proposal, now)
        q = decision.command.q
        decisions.append(decision)
    assert {d.verdict for d in decisions} == {Verdict.PASS}, decisions[-1]
    fastest = max(float(np.abs(d.command.dq).max()) for d in decisions)
    assert fastest == pytest.approx(speed, rel=2e-3)


@pytest.mark.parametrize("stop_at", [60, 85, 100, 110])
def test_an_arm_that_moves_stops_on_its_path_however_hard_its_path_brakes(stop_at: int) -> None:
    """x slows down with 97 % of what it can, y goes on: to slow down even more is impossible."""
    limits = rail_limits(v=3.0, a=5.0, rails=2)
    filter_ = SafetyFilter(limits, [JointLimits(limits)], DT)
    time, ramp, brake = np.arange(0.02, 2.0, 0.02), 0.8, 1.4 * np.pi / (2.0 * 0.97 * 5.0)
    up, down = np.clip(time / ramp, 0.0, 1.0), np.clip((time - ramp) / brake, 0.0, 1.0)
    x = 0.7 * ramp * (up - np.sin(np.pi * up) / np.pi)
    x += 0.7 * brake * (down + np.sin(np.pi * down) / np.pi)
    y = 0.5 * ramp * (up - np.sin(np.pi * up) / np.pi) + np.maximum(time - ramp, 0.0)
    proposal = Proposal(np.stack([x, y], axis=1), 0.02, 0.0, limits.joint_names)
    q, kinds, sent = np.zeros(2), [], []
    filter_.reset(RobotState(q, q, q, 0.0))
    for k in range(200):
        now = (k + 1) * DT
        wish = proposal if k < stop_at else None
        decision = filter_.certify(RobotState(q, 0.0 * q, q, now), wish, now)
        q, stop = decision.command.q, filter_._stop  # a look inside: what would be played
        assert decision.verdict is (Verdict.PASS if k < stop_at else Verdict.STOPPED)
        kinds += [stop.times is not None] if len(stop.q) else []
        sent.append(q)
    assert len(kinds) > 50 and all(kinds)
    assert np.abs(np.diff(sent, n=2, axis=0)).max() <= 5.0 * DT**2 * (1.0 + 1e-6)
    assert np.array_equal(sent[-1], sent[-2]) and sent[-1][1] > 0.3


def test_beside_what_is_in_the_way_a_waiting_arm_asks_little_and_leaves_at_once() -> None:
    watched = Obstacles(RailBody(), [Obstacle("thing", (0.5, 0.0, 0.0), 0.1)])  # type: ignore
    rail = Rail(rail_limits(v=1.0, a=5.0), [watched])
    waiting = [rail.go(0.5) for _ in range(150)]
    assert waiting[-1].verdict is Verdict.STOPPED and waiting[-1].reason == "obstacles"
    assert max(d.tried for d in waiting[-20:]) <= 3 < max(d.tried for d in waiting)
    there = rail.x
    watched.update([])
    first = rail.go(0.5)
    assert first.verdict is Verdict.CORRECTED and first.command.dq.any()
    for _ in range(20):
        rail.go(0.5)
    assert rail.x > there + 0.02
