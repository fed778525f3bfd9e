"""Every constraint of the catalogue: rows against finite differences, bulges that bound, finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from safe_o2o import catalog
from safe_o2o.interfaces import Constraint
from safe_o2o.safety.filter import lowest_clearance
from safe_o2o.safety.kinematics import POSTURES, Kinematics
from safe_o2o.safety.limits import RobotLimits
from tests.invariance import BOX

LIMITS = RobotLimits.load("panda")
HOME = np.array(POSTURES["panda"])


def build(name: str) -> Any:
    cls = catalog.load("constraint", name)
    if name == "joint_limits":
        return cls(LIMITS)
    kinematics = Kinematics("panda", (LIMITS.tool_frame, LIMITS.elbow_frame))
    return cls(kinematics, *BOX)


@pytest.mark.parametrize("name", sorted(catalog.constraints))
def test_rows_and_clearance_are_finite_and_of_the_right_shape(name: str) -> None:
    constraint = build(name)
    assert isinstance(constraint, Constraint) and constraint.name == name and constraint.range > 0
    generator = np.random.default_rng(0)
    q = generator.uniform(LIMITS.q_low, LIMITS.q_high, (50, 7))
    clearance = constraint.clearance(q)
    assert np.isfinite(clearance).all() and clearance.shape == (50, clearance.shape[1])
    for row in q:
        g, h = constraint.rows(row, np.zeros(7), 0.01)
        assert g.shape == (len(h), 7) and np.isfinite(g).all() and np.isfinite(h).all()


@pytest.mark.parametrize("name", sorted(catalog.constraints))
def test_a_step_inside_the_rows_keeps_the_clearance(name: str) -> None:
    """G w <= h, linearised or exact, against the true clearance after the step."""
    constraint, dt = build(name), 0.01
    generator = np.random.default_rng(1)
    tried = 0
    for _ in range(400):
        q = HOME + generator.normal(0.0, 0.3, 7)
        w = generator.normal(0.0, 1.0, 7)
        if not (constraint.clearance(q[None]) > 0).all():
            continue
        g, h = constraint.rows(q, w, dt)
        if not (g @ w <= h).all():
            continue
        tried += 1
        after = constraint.clearance((q + w * dt)[None]).min()
        # The rows are linear: curvature over the whole step is at most four bulges (L^2 / 2).
        assert after >= -4.0 * constraint.bulge(w * dt) - 1e-9
    assert tried > 50


def test_workspace_rows_are_the_gradients_of_its_planes() -> None:
    workspace, dt, eps = build("workspace"), 0.01, 1e-6
    q = HOME + 0.1
    g, h = workspace.rows(q, np.zeros(7), dt)
    for joint in range(7):
        step = np.eye(7)[joint] * eps
        high = workspace.rows(q + step, np.zeros(7), dt)[1] * dt
        low = workspace.rows(q - step, np.zeros(7), dt)[1] * dt
        assert np.allclose(-(high - low) / (2 * eps), g[:, joint], atol=1e-6)
    assert np.allclose(workspace.clearance(q[None])[0], h * dt)


@pytest.mark.parametrize("name", sorted(catalog.constraints))
def test_bulge_bounds_the_dip_between_two_configurations(name: str) -> None:
    constraint = build(name)
    generator, share = np.random.default_rng(2), np.linspace(0.0, 1.0, 21)[:, None]
    for _ in range(200):
        a = HOME + generator.normal(0.0, 0.3, 7)
        step = generator.normal(0.0, 0.05, 7)
        clearance = constraint.clearance(a + share * step)
        line = (1.0 - share) * clearance[0] + share * clearance[-1]
        dip = 4.0 * share * (1.0 - share) * constraint.bulge(step)
        assert (clearance >= line - dip - 1e-12).all()
    assert constraint.bulge(np.zeros(7)) == 0.0


@pytest.mark.parametrize("name", sorted(catalog.constraints))
def test_what_is_proven_of_a_motion_holds_along_all_of_it(name: str) -> None:
    constraint = build(name)
    generator, share = np.random.default_rng(3), np.linspace(0.0, 1.0, 21)[:, None]
    proven, refused = 0, 0
    for _ in range(1000):
        a = HOME + generator.normal(0.0, 0.4, 7)
        scale = generator.choice([0.01, 0.05, 0.2])
        b = a + generator.normal(0.0, scale, 7)
        bound = lowest_clearance(constraint, np.array([a, b]))
        clearance = constraint.clearance(a + share * (b - a))
        if bound is None:
            refused += 1
        elif (clearance[0] >= 0.0).all():
            assert clearance.min() >= bound - 1e-12
            proven += 1
        else:  # outside: no limit may be left any farther, nor another one for it
            assert (clearance >= np.minimum(clearance[0], 0.0) - 1e-11).all()
    assert proven > 50 and refused > 20


def test_joint_rows_are_the_exact_discrete_box() -> None:
    constraint, dt = build("joint_limits"), 0.01
    q = LIMITS.q_high - 0.001
    g, h = constraint.rows(q, np.full(7, 0.05), dt)
    high, low = h[:7], -h[7:]
    assert np.array_equal(g, np.vstack([np.eye(7), -np.eye(7)]))
    assert (q + high * dt <= LIMITS.q_high + 1e-12).all()
    assert (low <= high).all() and (np.abs(low) <= LIMITS.velocity).all()
