"""The arm as spheres, against pinocchio and against geometry done the slow way."""

from __future__ import annotations

import numpy as np
import pytest

from safe_o2o.errors import ConfigError
from safe_o2o.safety.body import Body, Capsule, Geometry
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.kinematics import POSTURES, Kinematics
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.motion import (
    Motion,
    below_chord,
    chord_to_point,
    deepest,
    nearest_on_segment,
    segment_to_segment,
)
from safe_o2o.safety.obstacle import Obstacle, Obstacles
from safe_o2o.safety.self_collision import SelfCollision
from safe_o2o.types import Proposal, RobotState

LIMITS = RobotLimits.load("panda")
FRAMES = ("panda_hand_tcp", "panda_link4")
CAPSULES = tuple(
    Capsule(f"panda_link{i}", (0.0, 0.0, -0.1), (0.02, 0.0, 0.1), 0.06) for i in range(8)
)
BODY = Body("panda", CAPSULES, FRAMES)


def poses(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(LIMITS.q_low, LIMITS.q_high, (count, 7))


def test_frames_are_where_pinocchio_puts_them() -> None:
    q = poses(200)
    found = BODY.positions(q)[:, :, BODY.spheres :].transpose(0, 2, 1)
    assert np.abs(found - Kinematics("panda", FRAMES).positions(q)).max() < 1e-12


def test_spheres_are_where_pinocchio_puts_their_links() -> None:
    q, kinematics = poses(20), Kinematics("panda", FRAMES)
    found = BODY.positions(q)
    for k, row in enumerate(q):
        column = 0
        for capsule in CAPSULES:
            position = kinematics.position(row, capsule.frame)
            rotation = kinematics.rotation(row, capsule.frame)
            for centre in capsule.spheres()[0]:
                assert np.allclose(found[k, :, column], position + rotation @ centre, atol=1e-12)
                column += 1
        assert column == BODY.spheres


def test_jacobians_are_the_derivatives() -> None:
    q, points, step = poses(1)[0], np.array([0, 5, BODY.spheres - 1, BODY.spheres]), 1e-6
    jacobians = BODY.jacobians(q, points)
    assert jacobians.shape == (4, 3, 7)
    for joint in range(7):
        shift = step * np.eye(7)[joint]
        ahead, behind = BODY.positions(np.array([q + shift, q - shift]))
        slope = ((ahead - behind) / (2.0 * step))[:, points].T
        assert np.allclose(jacobians[:, :, joint], slope, atol=1e-8)


def test_reach_bounds_how_far_anything_moves() -> None:
    q, generator = poses(300), np.random.default_rng(1)
    step = generator.normal(0.0, 1e-3, q.shape)
    moved = np.linalg.norm(BODY.positions(q + step) - BODY.positions(q), axis=1)
    assert (moved.max(axis=1) <= np.abs(step) @ BODY.reach + 1e-5).all()


@pytest.mark.parametrize("length", [0.0, 0.01, 0.2, 1.0])
def test_the_spheres_of_a_capsule_contain_it(length: float) -> None:
    capsule = Capsule("panda_link1", (0.1, 0.0, 0.0), (0.1, 0.6 * length, 0.8 * length), 0.05)
    centres, radius = capsule.spheres()
    generator = np.random.default_rng(0)
    along = np.array([0.0, 0.6, 0.8])
    direction = generator.normal(size=(5000, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    middle = np.array(capsule.start) + generator.random((5000, 1)) * length * along
    surface = middle + 0.05 * direction
    distance = np.linalg.norm(surface[:, None] - centres, axis=2).min(axis=1)
    assert (distance <= radius + 1e-12).all()
    assert radius <= 0.05 * 1.062


@pytest.mark.parametrize(
    ("start", "radius"), [((0.0, 0.0, np.nan), 0.1), ((0.0,) * 3, 0.0), ((0.0,) * 3, np.inf)]
)
def test_a_capsule_of_nonsense_is_refused(start: tuple[float, float, float], radius: float) -> None:
    with pytest.raises(ConfigError, match="capsule on panda_link1"):
        Capsule("panda_link1", start, (0.0, 0.0, 0.0), radius)
    with pytest.raises(ConfigError, match="no frame"):
        Body("panda", (Capsule("nowhere", (0.0,) * 3, (0.0,) * 3, 0.1),))


def test_distances_of_segments_against_a_fine_grid() -> None:
    generator, share = np.random.default_rng(2), np.linspace(0.0, 1.0, 201)
    a, b, c, d = generator.normal(size=(4, 3, 60))
    b[:, :5], d[:, 3:8] = a[:, :5], c[:, 3:8]  # points
    d[:, 10:15] = c[:, 10:15] + 0.7 * (b - a)[:, 10:15]  # parallel
    found = segment_to_segment(a, b, c, d)
    first = a[:, :, None] + share * (b - a)[:, :, None]
    second = c[:, :, None] + share * (d - c)[:, :, None]
    grid = np.sqrt(np.square(first[..., :, None] - second[..., None, :]).sum(axis=0)).min((1, 2))
    assert (found <= grid + 1e-9).all() and (found >= grid - 0.03).all()
    near = nearest_on_segment(a, c, d)
    assert np.allclose(
        np.sqrt(np.square(a - near).sum(axis=0)), segment_to_segment(a, a, c, d), atol=1e-12
    )
    distance, rate = chord_to_point(a[None], b[None], c)
    assert np.allclose(distance[0], segment_to_segment(a, b, c, c), atol=1e-12)
    # Where an end is nearest, the distance grows from there at least as fast as it says.
    tiny = 1e-7
    for here, there in ((a, b), (b, a)):
        at = np.sqrt(np.square(here - c).sum(axis=0))
        after = np.sqrt(np.square(here + tiny * (there - here) - c).sum(axis=0))
        nearest = at <= distance[0] + 1e-12
        assert np.allclose(((after - at) / tiny)[nearest], rate[0][nearest], atol=1e-5)


def test_a_dip_below_a_chord_by_brute_force() -> None:
    generator, t = np.random.default_rng(3), np.linspace(0.0, 1.0, 2001)
    for _ in range(200):
        slope, dip = generator.exponential(1.0), generator.exponential(0.3)
        lowest = (slope * t - 4.0 * dip * t * (1.0 - t)).min()
        assert deepest(np.array(slope), np.array(dip)) == pytest.approx(-lowest, abs=1e-6)
        ends = generator.normal(size=(2, 1))
        line = ends[0, 0] * (1.0 - t) + ends[1, 0] * t - 4.0 * dip * t * (1.0 - t)
        assert below_chord(ends, np.array([dip]))[0, 0] == pytest.approx(line.min(), abs=1e-6)
    assert deepest(np.array(1.0), np.array(0.0)) == 0.0


@pytest.mark.parametrize("held", [False, True])
def test_nothing_leaves_its_chord_by_more_than_the_sag(held: bool) -> None:
    """On the straight line in joint space, and on the parabola of a held acceleration."""
    generator, share = np.random.default_rng(4), np.linspace(0.0, 1.0, 21)
    reach, dt = BODY.reach, 0.01
    for _ in range(300):
        q = poses(1, int(generator.integers(1 << 30)))
        v = generator.normal(0.0, 2.0, (3, 7))
        path = np.concatenate([q, q + np.cumsum(v[1:] * dt, axis=0)])
        motion = Motion(path, dt, v[0])
        # A parabola through the ends of the first tick, whose second difference is this one's.
        bend = 0.5 * (v[1] - v[0]) * dt if held else np.zeros(7)
        on_way = (
            path[0] + share[:, None] * (path[1] - path[0]) - np.outer(share * (1.0 - share), bend)
        )
        points = BODY.positions(on_way)
        ends = BODY.positions(path[:2])
        chord = ends[0] + share[:, None, None] * (ends[1] - ends[0])
        off = np.linalg.norm(points - chord, axis=1).max()
        if held:  # what is along the line only changes the time at which it is where
            way = ends[1] - ends[0]
            length = np.maximum(np.square(way).sum(axis=0), 1e-30)
            along = np.clip(((points - ends[0]) * way).sum(axis=1) / length, 0.0, 1.0)
            off = np.linalg.norm(points - ends[0] - along[:, None, :] * way, axis=1).max()
        allowed = motion.sag(reach) if held else motion.turn(reach)
        assert off <= allowed[0] + 1e-12


def test_a_load_counts_as_part_of_the_arm_but_not_against_the_hand_that_holds_it() -> None:
    rod = Capsule("panda_hand_tcp", (0.0, 0.0, -0.02), (0.0, 0.0, 0.15), 0.015)
    shape = Geometry.load("panda").carrying([rod])
    bare, loaded = Geometry.load("panda"), shape
    watched = {frozenset(pair) for pair in loaded.skip} - {frozenset(pair) for pair in bare.skip}
    for other in ("panda_hand", "panda_link7"):
        assert frozenset(("panda_hand_tcp", other)) in watched
    q = np.array(POSTURES["panda"])
    for geometry, free in ((bare, True), (loaded, True)):
        body = Body("panda", geometry.capsules, ("panda_hand_tcp", "panda_link4"))
        assert bool(SelfCollision(body, geometry.skip).clearance(q[None]).min() > 0.0) is free
    tip = Kinematics("panda", ("panda_hand_tcp",)).position(q, "panda_hand_tcp")
    below = Obstacle("table leg", (float(tip[0]), float(tip[1]), float(tip[2]) - 0.14), 0.02)
    distance = [
        float(Obstacles(Body("panda", g.capsules), [below]).clearance(q[None]).min())
        for g in (bare, loaded)
    ]
    assert distance[0] > 0.05 and distance[1] < 0.0
    with pytest.raises(ConfigError, match="panda_hnd"):
        bare.carrying([Capsule("panda_hnd", (0.0, 0.0, 0.0), (0.0, 0.0, 0.1), 0.01)])


def test_the_filter_stops_for_what_only_the_load_would_touch() -> None:
    q, names = np.array(POSTURES["panda"]), Kinematics("panda", ()).joint_names
    tip = Kinematics("panda", ("panda_hand_tcp",)).position(q, "panda_hand_tcp")
    ball = Obstacle("ball", (float(tip[0]), float(tip[1]) + 0.10, float(tip[2]) - 0.09), 0.03)
    rod = Capsule("panda_hand_tcp", (0.0, 0.0, 0.0), (0.0, 0.0, 0.12), 0.01)
    box = ((0.2, -0.5, 0.0), (0.8, 0.5, 0.9))
    moved = []
    for load in ((), (rod,)):
        guard = SafetyFilter.for_robot("panda", workspace=box, obstacles=[ball], load=load)
        here, now = q, 0.0
        guard.reset(RobotState(q, np.zeros(7), q, now))
        goal = Proposal(q[None] + [0.25, 0, 0, 0, 0, 0, 0], 1.5, 0.0, names)
        for _ in range(200):
            now += 0.01
            here = guard.certify(RobotState(here, np.zeros(7), here, now), goal, now).command.q
        moved.append(float(here[0] - q[0]))
    assert moved[0] == pytest.approx(0.25, abs=2e-3) and 0.0 < moved[1] < 0.2
