"""Obstacles: what moves grows, what is stale stops, what is touched may be left."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from safe_o2o.errors import ConfigError
from safe_o2o.runtime.cartesian import CartesianDelta
from safe_o2o.safety.body import Body, Capsule, Geometry
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.joint_limits import JointLimits
from safe_o2o.safety.kinematics import POSTURES
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.motion import Motion
from safe_o2o.safety.obstacle import Obstacle, Obstacles
from safe_o2o.safety.self_collision import SelfCollision
from safe_o2o.safety.sweep import lowest_clearance
from safe_o2o.safety.tool_speed import ToolSpeed
from safe_o2o.spaces import ActionSpec
from safe_o2o.types import Proposal, RobotState, Verdict
from tests.rail import Rail, RailBody, rail_limits

LIMITS = RobotLimits.load("panda")
HOME = np.array(POSTURES["panda"])
HAND = Capsule("panda_hand", (0.0, -0.06, 0.03), (0.0, 0.06, 0.03), 0.05)
FOREARM = Capsule("panda_link5", (0.0, 0.06, -0.2), (0.0, 0.06, -0.05), 0.06)
BODY = Body("panda", (FOREARM, HAND), (LIMITS.tool_frame, LIMITS.elbow_frame))
DT = 0.01


def on_rail(*obstacles: Obstacle, start: float = 0.0, **settings: Any) -> tuple[Rail, Obstacles]:
    watched = Obstacles(RailBody(), obstacles, **settings)  # type: ignore[arg-type]
    return Rail(rail_limits(v=1.0, a=5.0), [watched], start=start), watched


def at(x: float, radius: float = 0.1, **settings: Any) -> Obstacle:
    return Obstacle("thing", (x, 0.0, 0.0), radius, **settings)


def test_it_stops_before_what_stands_by_its_margin_and_error() -> None:
    rail, _ = on_rail(at(1.0, error=0.02), margin=0.03)
    decisions = [rail.go(0.8) for _ in range(200)]
    assert rail.x == pytest.approx(1.0 - 0.1 - 0.02 - 0.03, abs=2e-3) and rail.x <= 0.85
    assert decisions[-1].verdict is Verdict.STOPPED and decisions[-1].reason == "obstacles"
    assert min(decisions, key=lambda d: d.margin).margin == 0.0
    assert decisions[0].margin == pytest.approx(1.0, abs=1e-3)


def test_what_was_seen_long_ago_has_grown_and_then_stops_everything() -> None:
    rail, watched = on_rail(margin=0.0, max_age=0.2)
    for k in range(40):
        if k <= 5:
            watched.update([at(2.0, max_speed=1.0, max_acceleration=2.0, speed=0.0,
                               stamp=rail.now + DT)])  # fmt: skip
        decision = rail.go(0.5, period=0.4)
        if k < 25:
            assert decision.verdict is Verdict.PASS
    # Seen at 0.06 s: from 0.26 s on that is too long ago.
    assert decision.verdict is Verdict.STOPPED and decision.reason == "obstacles_stale"
    assert not decision.command.dq.any()
    assert watched.fault(0.06 + 0.2) == "" and watched.fault(0.06 + 0.2001) == "obstacles_stale"
    assert watched.fault(float("nan")) == "obstacles_stale"
    grown = watched.grown(0.16, np.array([0.0, 0.1]))
    assert grown[:, 0] == pytest.approx([0.1 + 0.5 * 2.0 * 0.1**2, 0.1 + 0.5 * 2.0 * 0.2**2])


def test_what_stands_never_gets_old() -> None:
    watched = Obstacles(BODY, [at(2.0)])
    assert watched.fault(1e9) == "" and watched.grown(1e9, np.array([5.0]))[0, 0] == 0.1


def test_from_inside_only_what_leads_out_passes() -> None:
    rail, _ = on_rail(at(0.55, radius=0.2), start=0.40, margin=0.0)
    worse = [rail.go(0.2) for _ in range(5)]
    assert {d.reason for d in worse} == {"obstacles"} and rail.x == 0.40
    for _ in range(100):
        better = rail.go(-0.2)
    assert better.verdict is Verdict.PASS and rail.x < 0.30


def test_contact_that_is_meant_is_a_negative_margin_for_one_pair() -> None:
    body = Body("panda", (FOREARM, HAND), (LIMITS.tool_frame, LIMITS.elbow_frame))
    hand = body.positions(HOME[None])[0][:, -3]
    cup = Obstacle("cup", (float(hand[0]), float(hand[1]), float(hand[2]) - 0.06), 0.02)
    still = Motion(np.array([HOME, HOME]), DT, np.zeros(7))
    apart = [
        float(Obstacles(body, [cup], margin=0.0, margins=margins).swept(still)[0].min())
        for margins in (None, {("panda_hand", "cup"): -0.03}, {("panda_link5", "cup"): -0.03})
    ]
    assert apart[1] == pytest.approx(apart[0] + 0.03) and apart[2] == pytest.approx(apart[0])
    with pytest.raises(ConfigError, match="margins"):
        Obstacles(body, [cup], margins={("nowhere", "cup"): 0.1})
    with pytest.raises(ConfigError, match="margins"):
        Obstacles(body, [cup], margins={("panda_hand", "cup"): float("nan")})


@pytest.mark.parametrize("far", [False, True])
def test_leaving_out_what_is_far_changes_nothing(far: bool) -> None:
    """Against all pairs at many times, with obstacles near and far, long and round, moving."""
    generator = np.random.default_rng(8)
    share = np.linspace(0.0, 1.0, 11)
    for _ in range(60):
        start = HOME + generator.normal(0.0, 0.3, 7)
        q = start + np.cumsum(generator.normal(0.0, 0.01, (6, 7)), axis=0)
        things = []
        for k in range(6):
            place = BODY.positions(start[None])[0][:, 0] + generator.normal(0.0, 0.4 + far, 3)
            end = place + generator.normal(0.0, 0.2, 3)
            things.append(
                Obstacle(f"o{k}", tuple(place), 0.05, end=tuple(end) if k % 2 else None,
                         max_speed=0.5 * (k > 2), stamp=0.9 if k > 2 else None)
            )  # fmt: skip
        watched = Obstacles(BODY, things, margin=0.01)
        motion = Motion(q, DT, np.zeros(7), now=1.0)
        bound = lowest_clearance(watched, motion)
        least = np.inf
        for j in range(5):
            fine = q[j] + share[:, None] * (q[j + 1] - q[j])
            apart = watched.clearance(fine).reshape(11, BODY.spheres, 6)
            grown = 0.5 * (0.1 + (j + share) * DT)[:, None, None] * (np.arange(6) > 2)
            least = min(least, float((apart - grown).min()))
        if bound is None:
            assert least < 0.01
        else:
            assert bound <= max(least, 0.0) + 1e-9 or least >= watched.range
            slack = float(motion.sag(BODY.reach).max()) + 0.5 * DT
            assert bound >= min(least, watched.range) - slack - 1e-9


@pytest.mark.parametrize(
    "settings",
    [
        {"radius": 0.0}, {"radius": np.nan}, {"error": -0.1}, {"max_speed": np.inf},
        {"max_acceleration": np.nan}, {"speed": -1.0}, {"stamp": np.nan}, {"max_speed": 1.0},
        {"end": (0.0, np.inf, 0.0)},
    ],
)  # fmt: skip
def test_nonsense_is_refused_in_one_line(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="obstacle 'thing'"):
        at(1.0, **settings)


def test_names_must_differ_and_numbers_be_sound() -> None:
    with pytest.raises(ConfigError, match="repeat"):
        Obstacles(BODY, [at(1.0), at(2.0)])
    for settings in ({"margin": -0.1}, {"delay": np.nan}, {"max_age": np.inf}):
        with pytest.raises(ConfigError):
            Obstacles(BODY, **settings)
    with pytest.raises(ConfigError, match="no capsules"):
        SelfCollision(BODY, [("panda_hand", "nowhere")])
    with pytest.raises(ConfigError, match="tool speed"):
        ToolSpeed(BODY, "nowhere")
    with pytest.raises(ConfigError, match="positive"):
        ToolSpeed(BODY, LIMITS.tool_frame, energy=0.1)


def test_the_tool_is_never_faster_than_its_cap_and_gets_there() -> None:
    """A far target, the cap of reduced speed: the tool goes at that, and the arm arrives."""
    cap = ToolSpeed(BODY, LIMITS.tool_frame)
    assert cap.cap == 0.25
    safety = SafetyFilter(LIMITS, [JointLimits(LIMITS), cap], DT)
    q, now = HOME, 0.0
    safety.reset(RobotState(q, np.zeros(7), q, now))
    target = HOME + np.array([0.5, 0.1, 0.0, 0.1, 0.0, 0.0, 0.0])
    proposal = Proposal(target[None], 0.5, 0.0, LIMITS.joint_names)
    path = [q]
    for _ in range(200):
        now += DT
        proposal = Proposal(target[None], 0.5, now, LIMITS.joint_names) if now > 1 else proposal
        decision = safety.certify(RobotState(q, np.zeros(7), q, now), proposal, now)
        q = decision.command.q
        path.append(q)
    tool = BODY.positions(np.array(path))[:, :, BODY.spheres]
    speed = np.linalg.norm(np.diff(tool, axis=0), axis=1) / DT
    assert speed.max() <= 0.25 + 1e-9 and speed.max() > 0.22


def test_energy_caps_the_speed_too() -> None:
    assert ToolSpeed(BODY, LIMITS.tool_frame, 1.0, energy=0.014, mass=3.0).cap == pytest.approx(
        0.096609, abs=1e-6
    )
    assert ToolSpeed(BODY, LIMITS.tool_frame, 0.05, energy=0.014, mass=3.0).cap == 0.05


@pytest.mark.parametrize("speed", [0.8, 0.0])
def test_an_arm_that_stopped_for_something_fast_does_not_run_away_from_it_and_get_hit(
    speed: float,
) -> None:
    """A hand comes at its top speed, and the policy wants to go the same way, but more slowly."""
    cartesian = CartesianDelta(ActionSpec(("dx", "dy", "dz"), "m", (-0.02,) * 3, (0.02,) * 3, 0.1))
    box = ((0.2, -0.4, 0.0), (0.8, 0.4, 0.5))
    guard = SafetyFilter.for_robot("panda", workspace=box, tool_speed=0.5, obstacles=())
    watch = next(c for c in guard.constraints if isinstance(c, Obstacles))
    body = Body("panda", Geometry.load("panda").capsules)
    q, still = cartesian.solve(np.array([0.5, 0.0, 0.15]), cartesian.posture, 60), np.zeros(7)
    tool = cartesian.position(q)
    rows, row = [], q
    for step in range(1, 9):
        row = cartesian.solve(tool + np.array([0.0, 0.025 * step, 0.0]), row, 5)
        rows.append(row)
    guard.reset(RobotState(q, still, q, 0.0))
    hand, proposal, moved = np.array([0.5, -0.75 if speed else -0.13, 0.15]), None, 0.0
    for tick in range(140):
        now = 0.01 * tick
        seen = Obstacle(
            "hand", tuple(hand), 0.05, speed=speed, max_speed=speed, max_acceleration=3.0, stamp=now
        )
        watch.update([seen])
        if tick >= 60 and tick % 40 == 20:
            proposal = Proposal(np.array(rows), 0.1, now, guard.limits.joint_names)
        before, q = q, guard.certify(RobotState(q, still, q, now), proposal, now).command.q
        hand = hand + np.array([0.0, 0.01 * speed, 0.0])
        gap = np.linalg.norm(body.positions(q[None])[0].T - hand, axis=1) - body.radius - 0.05
        assert not (gap.min() < 0.0 and (q != before).any())
        moved += float(np.abs(q - before).sum())
        if gap.min() < -0.02:
            break
    assert speed or moved > 0.05  # from what stands it may go away, however near


def test_exemptions_are_told_one_by_one() -> None:
    shape = Geometry.load("panda")
    body = Body("panda", shape.capsules, (LIMITS.tool_frame, LIMITS.elbow_frame))
    constraints = [
        JointLimits(LIMITS),
        SelfCollision(body, [("panda_link1", "panda_link2")]),
        Obstacles(body, [], margins={("panda_hand", "cup"): -0.005}),
    ]
    assert SafetyFilter(LIMITS, constraints).exemptions == (
        "self_collision: panda_link1 and panda_link2 are not watched",
        "obstacles: panda_hand and cup keep -0.005 m",
    )


def test_what_is_refused_by_its_ends_is_refused_by_the_whole_way() -> None:
    """Standing, moving and long obstacles, from outside their margin and from inside."""
    generator = np.random.default_rng(0)
    counts = Counter[tuple[bool, bool]]()
    inside = 0
    for _ in range(400):
        step = 0.05 * generator.normal(size=7) * np.linspace(1.0, 0.0, 12)[:, None]
        q = HOME + np.cumsum(np.vstack([0.0 * step[:1], step]), axis=0)
        hand = BODY.positions(q[-1:])[0][:, 1]
        centre = hand + generator.normal(0.0, 0.12, 3)
        end = tuple(centre + generator.normal(0.0, 0.1, 3)) if generator.random() < 0.5 else None
        moves = dict(max_speed=0.3, speed=0.1, max_acceleration=2.0, stamp=0.9)
        thing = Obstacle(
            "thing", tuple(centre), 0.05, end, **(moves if generator.random() < 0.5 else {})
        )
        obstacles = Obstacles(BODY, [thing])
        motion = Motion(q, DT, np.zeros(7), now=1.0, delay=0.02)
        refused = lowest_clearance(obstacles, motion) is None
        counts[obstacles.refuses(motion), refused] += 1
        inside += bool((obstacles.swept(motion)[0] < 0.0).any())
    assert counts[True, False] == 0
    assert counts[True, True] > 50 and counts[False, True] > 5 and counts[False, False] > 50
    assert inside > 20
