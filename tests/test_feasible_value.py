"""FISOR's and Hamilton-Jacobi's value: chain, grid, double integrator (online_safety.md 5.7)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from safe_o2o.algorithms.iql import Iql
from safe_o2o.algorithms.learner import SafetyConfig
from safe_o2o.algorithms.losses import expectile_loss
from safe_o2o.algorithms.safety_value import safety_target, warning_steps
from safe_o2o.data.batch import Batch
from safe_o2o.errors import ConfigError
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.types import Array


@pytest.mark.parametrize(
    ("danger", "discount", "steps", "value"),
    [
        (1, 0.99, 60, 0.094313),
        (1, 0.99, 80, -0.104954),
        (25, 0.99, 300, 0.275063),
        (25, 0.99, 350, -0.228579),
    ],
)
def test_a_violation_that_is_certain_but_far(
    danger: float, discount: float, steps: int, value: float
) -> None:
    found = torch.tensor(float(danger), dtype=torch.float64)
    safe, no = torch.tensor(-1.0, dtype=torch.float64), torch.tensor(0.0)
    for _ in range(steps):
        found = safety_target(safe, found, no, no, discount, danger)
    assert float(found) == pytest.approx(value, abs=1e-6)
    assert (float(found) > 0.0) == (steps < warning_steps(discount, danger))


def test_how_early_a_violation_is_seen() -> None:
    assert warning_steps(0.99, 1.0) == pytest.approx(68.97, abs=0.01)
    assert warning_steps(0.99, 25.0) == pytest.approx(324.2, abs=0.1)
    assert math.isinf(warning_steps(1.0, 1.0))


def test_reversed_expectile() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    for expectile, value in ((0.9, 1.545455), (0.1, -0.636364)):
        found = minimize_scalar(
            lambda v, level=expectile: float(expectile_loss(x - v, level).mean()),
            bounds=(-2.0, 3.0),
            method="bounded",
            options={"xatol": 1e-10},
        )
        assert found.x == pytest.approx(value, abs=1e-5)


# ------------------------------------------------------------------ double integrator

DT, SIZE = 0.05, 161
ACTIONS = np.linspace(-1.0, 1.0, 5)


def truth(x: Array, v: Array) -> Array:
    """V of |x| <= 1 with |u| <= 1."""
    found: Array = np.maximum(np.abs(x), np.abs(x + v * np.abs(v) / 2.0)) - 1.0
    return found


def test_the_known_value() -> None:
    points = [(0, 1.4), (0, 1.42), (0.5, 0.99), (0.5, 1.01), (-0.5, 1.7), (-0.5, 1.74)]
    expected = [-0.02, 0.0082, -0.00995, 0.01005, -0.055, 0.0138]
    x, v = np.array(points, float).T
    np.testing.assert_allclose(truth(x, v), expected, atol=1e-6)


def solved(discount: float) -> tuple[Array, Array, Array]:
    """The value on a grid by `safety_target`, with the places and speeds of its nodes."""
    axis = np.linspace(-2.0, 2.0, SIZE)
    x, v = np.meshgrid(axis, axis, indexing="ij")
    h = np.abs(x) - 1.0
    nodes, shares = [], []
    for u in ACTIONS:
        ahead = [(x + v * DT + 0.5 * u * DT**2), (v + u * DT)]
        place = [(np.clip(a, -2.0, 2.0) + 2.0) / 4.0 * (SIZE - 1) for a in ahead]
        low = [np.minimum(p.astype(int), SIZE - 2) for p in place]
        part = [p - i for p, i in zip(place, low, strict=True)]
        for i in (0, 1):
            for j in (0, 1):
                nodes.append((low[0] + i) * SIZE + low[1] + j)
                shares.append((part[0] if i else 1 - part[0]) * (part[1] if j else 1 - part[1]))
    index = torch.from_numpy(np.stack(nodes)).view(len(ACTIONS), 4, SIZE, SIZE)
    weight = torch.from_numpy(np.stack(shares)).view(len(ACTIONS), 4, SIZE, SIZE)
    value = danger = torch.from_numpy(h)
    no = torch.zeros_like(value)
    for _ in range(600):
        after = (value.flatten()[index] * weight).sum(1).amin(0)
        new = safety_target(danger, after, no, no, discount)
        done = float((new - value).abs().max()) < 1e-9
        value = new
        if done:
            break
    return value.numpy(), x, v


def test_the_equation_gives_the_known_value_on_a_grid() -> None:
    value, x, v = solved(1.0)
    inside = (np.abs(x) <= 1.0) & (np.abs(v) <= 1.9)
    exact = truth(x, v)
    off = np.abs(value - exact)[inside & (exact < 0.9)]  # further out the grid has its end
    assert off.max() <= 0.0132 and off.mean() <= 6e-4
    wrong = ((value > 0.0) != (exact > 0.0))[inside].mean()
    assert wrong <= 0.003
    assert (exact <= 0.0)[inside].mean() == pytest.approx(0.6955, abs=5e-3)


@pytest.mark.parametrize(("discount", "share"), [(0.999, 0.004), (0.99, 0.027), (0.95, 0.109)])
def test_a_discounted_value_calls_too_much_safe(discount: float, share: float) -> None:
    value, x, v = solved(discount)
    inside = (np.abs(x) <= 1.0) & (np.abs(v) <= 1.9)
    exact = truth(x, v)
    unsafe = ((value <= 0.0) & (exact > 0.0))[inside].mean()
    assert unsafe == pytest.approx(share, rel=0.25, abs=1e-3)
    assert ((value > 0.0) & (exact <= 0.0))[inside].mean() <= 2e-3


SPEC = Spec(
    ObservationSpec({"state": ArraySpec((2,), "float32", "1")}),
    ActionSpec(("u",), "1", (-1.0,), (1.0,), DT),
)


def transitions(seed: int, count: int = 256) -> Batch:
    """Random states of the double integrator, random actions."""
    g = np.random.default_rng(seed)
    x, v = g.uniform(-1.0, 1.0, count), g.uniform(-1.9, 1.9, count)
    u = g.uniform(-1.0, 1.0, count)
    dt = 0.2
    after = np.stack([x + v * dt + 0.5 * u * dt**2, v + u * dt], 1)
    here = np.stack([x, v], 1)
    out = np.abs(after[:, 0]) > 1.0
    no = torch.zeros(count, dtype=torch.bool)

    def tensor(array: Array) -> Tensor:
        return torch.from_numpy(array.astype(np.float32))

    return Batch(
        obs={"state": tensor(here)},
        action=tensor(u[:, None]),
        reward=torch.zeros(count),
        cost=tensor(out),
        terminated=torch.from_numpy(out),
        truncated=no,
        is_first=no,
        mask=~no,
        action_mask=~no,
        next_obs={"state": tensor(after)},
    )


def test_a_learned_value_knows_what_cannot_be_stopped() -> None:
    """Of what the critic calls feasible by a margin, almost nothing is lost already."""
    safety = SafetyConfig(label="feasible", limit=-0.05, danger=1.0, discount=0.95, expectile=0.03)
    config = replace(
        Iql.preset("tiny"), hidden_dims=(128, 128), batch_size=256, safety=safety, tau=0.02
    )
    learner = Iql(config, SPEC)
    for seed in range(900):
        learner.update(transitions(seed))
    batch = transitions(10_000, 4000)
    obs = learner.read(batch).obs
    with torch.no_grad():
        lowest = torch.stack(
            [learner.net["risk"].believed(obs, torch.full((4000, 1), u)) for u in (-1.0, 0.0, 1.0)]
        ).amin(0)
    state = batch.obs["state"].double().numpy()
    exact = truth(state[:, 0], state[:, 1])
    called_safe = lowest.numpy() <= -0.05
    # In steps of 0.2 s a little more is lost than in no time at all.
    assert (called_safe & (exact > 0.05)).mean() < 0.01
    assert (called_safe & (exact < 0.0)).mean() > 0.6 * (exact < 0.0).mean()


def test_limits_of_every_label() -> None:
    assert SafetyConfig(label="feasible", limit=0.0).limit == 0.0
    with pytest.raises(ConfigError, match="limit"):
        SafetyConfig(limit=0.0)
    with pytest.raises(ConfigError, match=r"\(-1, 25.0\)"):
        SafetyConfig(label="feasible", limit=-2.0)
