"""Every constraint of the catalogue: rows, sweeps that bound what happens between ticks, finite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from safe_o2o import catalog
from safe_o2o.interfaces import Constraint
from safe_o2o.safety.body import Body, Capsule
from safe_o2o.safety.kinematics import POSTURES
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.motion import Motion
from safe_o2o.safety.obstacle import Obstacle
from safe_o2o.safety.sweep import lowest_clearance
from tests.invariance import BOX

LIMITS = RobotLimits.load("panda")
HOME = np.array(POSTURES["panda"])
NARROW = replace(LIMITS, velocity_offset=np.full(7, 0.3), velocity_deceleration=np.full(7, 4.0))
DT = 0.01
CAPSULES = (
    Capsule("panda_link0", (0.0, 0.0, 0.05), (-0.1, 0.0, 0.05), 0.08),
    Capsule("panda_link4", (0.0, 0.0, 0.0), (-0.08, 0.1, 0.0), 0.07),
    Capsule("panda_link5", (0.0, 0.06, -0.2), (0.0, 0.06, -0.05), 0.06),
    Capsule("panda_hand", (0.0, -0.06, 0.03), (0.0, 0.06, 0.03), 0.05),
)
BODY = Body("panda", CAPSULES, (LIMITS.tool_frame, LIMITS.elbow_frame))
OBSTACLES = (
    Obstacle("ball", (0.45, 0.15, 0.15), 0.06),
    Obstacle("beam", (0.2, -0.3, 0.35), 0.05, end=(0.7, -0.3, 0.35), error=0.005),
)
NAMES = sorted(catalog.constraints)
SPEEDS = ("joint_speed", "tool_speed")
MEASURED_IN_METRES = [name for name in NAMES if name not in ("joint_limits", *SPEEDS)]


def build(name: str) -> Any:
    cls = catalog.load("constraint", name)
    arguments: dict[str, tuple[Any, ...]] = dict(
        joint_limits=(LIMITS,),
        joint_speed=(NARROW,),
        obstacles=(BODY, OBSTACLES),
        self_collision=(BODY, [("panda_link4", "panda_link5")]),
        tool_speed=(BODY, LIMITS.tool_frame, 0.25),
        workspace=(BODY, *BOX),
    )
    return cls(*arguments[name])


def straight(a: np.ndarray, b: np.ndarray, ticks: int = 1) -> Motion:
    """From a to b in equal steps; it was going there before."""
    share = np.linspace(0.0, 1.0, ticks + 1)[:, None]
    return Motion(a + share * (b - a), DT, (b - a) / ticks / DT)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_finite_and_of_the_right_shape(name: str) -> None:
    constraint = build(name)
    assert isinstance(constraint, Constraint) and constraint.name == name and constraint.range > 0
    assert constraint.fault(0.0) == ""
    generator = np.random.default_rng(0)
    q = generator.uniform(LIMITS.q_low, LIMITS.q_high, (50, 7))
    clearance = constraint.clearance(q)
    assert np.isfinite(clearance).all() and clearance.shape == (50, clearance.shape[1])
    for row in q:
        g, h = constraint.rows(row, np.zeros(7), DT)
        assert g.shape == (len(h), 7) and np.isfinite(g).all() and np.isfinite(h).all()
        motion = straight(row, row + generator.normal(0.0, 0.02, 7), 3)
        start, between = constraint.swept(motion)
        assert start.ndim == 1 and between.shape == (3, len(start))
        assert np.isfinite(start).all() and np.isfinite(between).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_inside_the_rows_keeps_the_clearance(name: str) -> None:
    """G w <= h, linearised or exact, against the true clearance after the step."""
    constraint, reach = build(name), BODY.reach
    generator = np.random.default_rng(1)
    tried = 0
    for _ in range(1000):
        q = HOME + generator.normal(0.0, 0.3, 7)
        w = generator.normal(0.0, 1.0, 7) * generator.choice([0.1, 1.0])
        if not (constraint.clearance(q[None]) > 0).all():
            continue
        g, h = constraint.rows(q, w, DT)
        if not (g @ w <= h).all():
            continue
        tried += 1
        step = straight(q, q + w * DT)
        if name in SPEEDS:
            after = float(constraint.swept(step)[1].min())
            slack = 4.0 * step.turn(reach)[0] / DT
        else:
            # The rows are linear: curvature over the whole step is at most L^2 / 2, and the
            # distance from a round thing curves by the way squared over the distance.
            after = float(constraint.clearance((q + w * DT)[None]).min())
            slack = 4.0 * step.turn(2.0 * reach)[0]
        assert after >= -slack - 1e-9
    assert tried > 50


@pytest.mark.parametrize("name", MEASURED_IN_METRES)
def test_rows_are_the_gradients_of_the_nearest_distances(name: str) -> None:
    constraint, step = build(name), 1e-6
    generator = np.random.default_rng(5)
    for _ in range(20):
        q = HOME + generator.normal(0.0, 0.3, 7)
        g, h = constraint.rows(q, np.zeros(7), DT)
        clearance = constraint.clearance(q[None])[0]
        # Which column each row speaks of: the one with its distance.
        column = np.array([int(np.abs(clearance - value * DT).argmin()) for value in h])
        assert np.allclose(clearance[column], h * DT, atol=1e-12)
        for joint in range(7):
            shift = step * np.eye(7)[joint]
            ahead, behind = constraint.clearance(np.array([q + shift, q - shift]))
            slope = (ahead - behind)[column] / (2.0 * step)
            assert np.allclose(-slope, g[:, joint], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_proven_of_a_motion_holds_along_all_of_it(name: str) -> None:
    constraint = build(name)
    generator, share = np.random.default_rng(3), np.linspace(0.0, 1.0, 21)[:, None]
    proven, refused = 0, 0
    for _ in range(1500):
        a = HOME + generator.normal(0.0, 0.4, 7)
        scale = generator.choice([0.001, 0.01, 0.05, 0.2])
        b = a + generator.normal(0.0, scale, 7)
        bound = lowest_clearance(constraint, straight(a, b))
        clearance = constraint.clearance(a + share * (b - a))
        if name == "joint_speed":
            speed = (b - a) / DT
            clearance = clearance - np.concatenate([speed, -speed])
        if name == "tool_speed":
            fine = BODY.positions(a + share * (b - a))[:, :, BODY.spheres]
            speed = np.linalg.norm(np.diff(fine, axis=0), axis=1) / (DT / 20)
            clearance = (constraint.cap - speed)[:, None]
        if bound is None:
            refused += 1
        elif (clearance[0] >= 0.0).all():
            assert clearance.min() >= bound - 1e-9
            proven += 1
        elif name not in SPEEDS:
            # Outside: no limit may be left any farther, nor another one for it.
            assert (clearance >= np.minimum(clearance[0], 0.0) - 1e-9).all()
    assert proven > 50 and refused > 20


@pytest.mark.parametrize("name", NAMES)
def test_the_margin_is_the_least_distance_where_that_matters(name: str) -> None:
    """For an arm that stands the bound is the true distance, up to `range`."""
    constraint = build(name)
    generator = np.random.default_rng(6)
    for _ in range(200):
        q = HOME + generator.normal(0.0, 0.3, 7)
        clearance = float(constraint.clearance(q[None]).min())
        if clearance < 0.0:
            continue
        still = lowest_clearance(constraint, straight(q, q))
        assert still == pytest.approx(min(clearance, constraint.range), abs=1e-9)


def test_joint_rows_are_the_exact_discrete_box() -> None:
    constraint = build("joint_limits")
    q = LIMITS.q_high - 0.001
    g, h = constraint.rows(q, np.full(7, 0.05), DT)
    high, low = h[:7], -h[7:]
    assert np.array_equal(g, np.vstack([np.eye(7), -np.eye(7)]))
    assert (q + high * DT <= LIMITS.q_high + 1e-12).all()
    assert (low <= high).all() and (np.abs(low) <= LIMITS.velocity).all()
