"""PPO-Lagrangian against numbers worked out by hand, and its state bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from safe_o2o.algorithms.ppo_lagrangian import (
    Episodes,
    PpoLagrangian,
    PpoLagrangianConfig,
    clipped_objective,
    generalized_advantage,
    standardized,
)
from safe_o2o.errors import ConfigError
from safe_o2o.nets.tanh_mlp import RunningNormalizer, tanh_mlp

SMALL = PpoLagrangianConfig(total_updates=10, epochs=2, minibatch_size=32, hidden_dims=(8,))


def episodes(seed: int = 0, steps: int = 12, n: int = 3, cost: float = 1.0) -> Episodes:
    """Random episodes; the last one is shorter."""
    draw = torch.Generator().manual_seed(seed)
    valid = torch.ones(steps, n, dtype=torch.bool)
    valid[steps // 2 :, -1] = False
    return Episodes(
        obs=torch.randn(steps + 1, n, 4, generator=draw),
        action=torch.randn(steps, n, 2, generator=draw),
        reward=torch.randn(steps, n, generator=draw),
        cost=torch.full((steps, n), cost),
        terminated=torch.zeros(steps, n, dtype=torch.bool),
        valid=valid,
    )


def test_advantages_of_three_steps_by_hand() -> None:
    """gamma 0.5, lambda 0.5: delta = (1 + 1 - 1, 0 + 2 - 2, 2 + 0.5 V - 4), A = delta + A' / 4."""
    reward = torch.tensor([[1.0], [0.0], [2.0]])
    value = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    no, yes = torch.zeros(3, 1, dtype=torch.bool), torch.ones(3, 1, dtype=torch.bool)
    found = generalized_advantage(reward, value, no, yes, 0.5, 0.5)
    assert found.flatten().tolist() == [1.0 + 0.5 / 4, 0.5, 2.0]  # time ran out: V_3 = 8 counts
    end = no.clone()
    end[2] = True
    found = generalized_advantage(reward, value, end, yes, 0.5, 0.5)
    assert found.flatten().tolist() == [1.0 - 0.5 / 4, -0.5, -2.0]  # an end: it does not
    end[1] = True  # two episodes one after the other: nothing crosses
    found = generalized_advantage(reward, value, end, yes, 0.5, 0.5)
    assert found.flatten().tolist() == [1.0 - 2.0 / 4, -2.0, -2.0]


def test_advantages_do_not_look_past_the_end_of_a_shorter_episode() -> None:
    batch = episodes()
    value = torch.randn(13, 3)
    arguments = (batch.terminated, batch.valid, 0.9, 0.8)
    whole = generalized_advantage(batch.reward, value, *arguments)
    other = batch.reward.clone()
    other[6:, -1] += 100.0
    assert torch.equal(generalized_advantage(other, value, *arguments), whole)
    assert (whole[6:, -1] == 0).all()
    short = (batch.terminated[:6, 2:], batch.valid[:6, 2:], 0.9, 0.8)
    alone = generalized_advantage(batch.reward[:6, 2:], value[:7, 2:], *short)
    assert torch.allclose(whole[:6, 2:], alone)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.1, 2.0, 2.2, 2.0),
        (1.3, 2.0, 2.4, 0.0),  # good and already likelier: no more of it
        (0.7, 2.0, 1.4, 2.0),
        (1.3, -2.0, -2.6, -2.0),
        (0.7, -2.0, -1.6, 0.0),  # bad and already rarer
    ],
)
def test_the_clipped_objective_by_hand(
    ratio: float, advantage: float, value: float, slope: float
) -> None:
    x = torch.tensor(ratio, requires_grad=True)
    objective = clipped_objective(x, torch.tensor(advantage), 0.2)
    objective.backward()
    assert float(objective.detach()) == pytest.approx(value)
    assert float(x.grad) == pytest.approx(slope)


def test_the_multiplier_climbs_by_the_excess_and_stays_within_its_bounds() -> None:
    config = replace(SMALL, cost_limit=2.0, multiplier_rate=0.1, multiplier_max=1.2, epochs=1)
    config = replace(config, multiplier_gain=0.0)
    algorithm = PpoLagrangian(config, "x", 4, 2)
    costs = []
    for cost in (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0):
        algorithm.update(episodes(cost=cost))
        costs.append(algorithm.lagrange_multiplier)
    # Episodes of 12, 12 and 6 steps cost 10 in the mean: + 0.1 (10 - 2); without cost: - 0.2.
    expected = [0.8, 1.2, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0]
    assert costs == pytest.approx(expected, abs=1e-9)
    quick = replace(config, multiplier_rate=0.01, multiplier_gain=0.1, cost_decay=0.5)
    quick = replace(quick, gain_after=1)
    algorithm = PpoLagrangian(quick, "x", 4, 2)
    costs = []
    for cost in (1.0, 1.0, 0.0, 0.0):
        algorithm.update(episodes(cost=cost))
        costs.append(algorithm.lagrange_multiplier)
    # The integral goes 0.08, 0.16, 0.14, 0.12; the average cost 10, 10, 5, 2.5.
    expected = [0.08, 0.16 + 0.8, 0.14 + 0.3, 0.12 + 0.05]
    assert costs == pytest.approx(expected, abs=1e-9)
    free = PpoLagrangian(SMALL, "x", 4, 2)
    free.update(episodes())
    assert free.lagrange_multiplier == 0.0


def test_a_price_turns_the_policy_away_from_what_costs() -> None:
    """Reward and cost of a step are both its action: without a price up, with a high one down."""

    def mean_after(multiplier: float) -> float:
        algorithm = PpoLagrangian(replace(SMALL, minibatch_size=128, actor_rate=1e-2), "x", 1, 1)
        for seed in range(6):
            algorithm.lagrange_multiplier = multiplier
            draw = torch.Generator().manual_seed(seed)
            action = torch.randn(16, 8, 1, generator=draw) * 0.6
            batch = Episodes(
                obs=torch.zeros(17, 8, 1),
                action=action,
                reward=action.squeeze(-1),
                cost=action.squeeze(-1) + 3.0,
                terminated=torch.ones(16, 8, dtype=torch.bool),
                valid=torch.ones(16, 8, dtype=torch.bool),
            )
            algorithm.update(batch)
        return float(algorithm.policy.act({"x": torch.zeros(1, 1)}, ())[0])

    assert mean_after(0.0) > 0.05
    assert mean_after(10.0) < -0.05


def test_the_normaliser_knows_mean_and_variance_of_all_rows() -> None:
    rows = np.random.default_rng(0).normal(3.0, [0.1, 10.0], (300, 2))
    normalizer = RunningNormalizer(2)
    for part in np.split(rows, [7, 100]):
        normalizer.update(torch.as_tensor(part))
    mean, std = normalizer.scale()
    assert mean.numpy() == pytest.approx(rows.mean(0), rel=1e-6)
    assert std.numpy() == pytest.approx(rows.std(0), rel=1e-6)
    far = normalizer(torch.tensor([1e9, -1e9]))
    assert far.tolist() == [10.0, -10.0]


def test_hidden_weights_are_orthogonal() -> None:
    first = tanh_mlp(6, 2, (4,), 0.01)[0]
    product = (first.weight @ first.weight.T).detach()
    assert torch.allclose(product, 2.0 * torch.eye(4), atol=1e-5)


def test_nothing_but_noise_is_not_blown_up() -> None:
    x = torch.tensor([0.0, 0.002])
    assert standardized(x).tolist() == pytest.approx([-1.0, 1.0])
    assert standardized(x, floor=0.05).tolist() == pytest.approx([-0.02, 0.02])


def test_the_same_seed_gives_the_same_numbers_and_a_saved_one_goes_on_bit_for_bit() -> None:
    def play(algorithm: PpoLagrangian, first: int, n: int) -> list[Any]:
        out: list[Any] = []
        for i in range(first, first + n):
            obs = {"x": torch.ones(2, 4)}
            out.append(algorithm.policy.act(obs, (), deterministic=False)[0].tolist())
            out.append(algorithm.update(episodes(i)))
        return out

    config = replace(SMALL, cost_limit=1.0, gain_after=1)
    whole, same, later = (PpoLagrangian(config, "x", 4, 2) for _ in range(3))
    assert play(whole, 0, 4) == play(same, 0, 2) + play(same, 2, 2)
    begun = PpoLagrangian(config, "x", 4, 2)
    play(begun, 0, 2)
    later.load_state_dict(begun.state_dict())
    assert play(later, 2, 2) == play(begun, 2, 2)
    assert later.lagrange_multiplier == whole.lagrange_multiplier
    for a, b in zip(later.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "settings", [{"clip": 0.0}, {"discount": 1.5}, {"cost_limit": -1.0}, {"total_updates": 0}]
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PpoLagrangianConfig(**settings)
