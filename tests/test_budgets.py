"""Budgets: each finds the price at which the weighted data keeps its limit, and no other one."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_o2o import config
from safe_o2o.algorithms.budgets import Budget, BudgetConfig, Budgets
from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.fosp_presets import preset
from safe_o2o.data.batch import Batch
from safe_o2o.data.dataset import Dataset
from safe_o2o.errors import ConfigError, DataError
from safe_o2o.training.offline import make_replay
from tests.data_fakes import make_dataset, make_transitions
from tests.synthetic import SPEC, STATISTICS, sequence_batch


def with_columns(batch: Batch, verdict: Tensor | None = None, force: Tensor | None = None) -> Batch:
    zeros = torch.zeros(batch.reward.shape)
    return replace(
        batch,
        verdict=zeros.to(torch.uint8) if verdict is None else verdict,
        force=zeros if force is None else force,
    )


def settle(q: Tensor, reward: Tensor, limit: float, updates: int = 2000) -> tuple[Budget, Tensor]:
    """Dual ascent on one state with fixed critics, as the actor's weights do it."""
    budget = Budget(limit, 0.03, 50.0)
    advantage = q - q.mean()
    weight = torch.ones_like(q)
    for _ in range(updates):
        budget.scale.update(advantage, torch.ones_like(q))
        weight = torch.softmax(reward - budget.price(advantage), -1)
        budget.update(q.mean(), q.mean(), (weight * q).sum())
    return budget, weight


def test_the_price_is_that_of_the_convex_program() -> None:
    """max E_q[Q_r] + H(q) s.t. E_q[Q_c] <= d over four actions (online_safety.md 1.8), by SciPy."""
    import numpy as np
    from scipy.optimize import minimize

    reward = torch.tensor([1.0, 2.0, 3.0, 4.0])
    cost = torch.tensor([0.0, 0.5, 2.0, 5.0])
    for limit in (0.6, 1.2, 2.0):
        budget, found = settle(cost, reward, limit)
        r, c = reward.double().numpy(), cost.double().numpy()
        best = minimize(
            lambda q: float(-(q @ r) + (q * np.log(q)).sum()),  # noqa: B023
            np.full(4, 0.25),
            bounds=[(1e-9, 1.0)] * 4,
            constraints=[
                {"type": "eq", "fun": lambda q: q.sum() - 1.0},
                {"type": "ineq", "fun": lambda q: limit - q @ c},  # noqa: B023
            ],
            tol=1e-12,
        )
        assert best.success
        torch.testing.assert_close(found.double(), torch.tensor(best.x), atol=2e-3, rtol=0)
        assert float(budget.lagrange_multiplier) > 0.0


def test_a_limit_that_holds_by_itself_costs_nothing() -> None:
    cost, reward = torch.tensor([0.0, 0.5, 2.0, 5.0]), torch.tensor([4.0, 3.0, 2.0, 1.0])
    budget, weight = settle(cost, reward, limit=1.0, updates=500)
    assert float(budget.lagrange_multiplier) == 0.0
    torch.testing.assert_close(weight, torch.softmax(reward, -1))


def test_the_unit_between_a_mean_and_a_discounted_sum_is_measured() -> None:
    """Cost 0.2 an action for ever at discount 0.9 is a Q of 2: limit 0.1 is a threshold of 1."""
    budget = Budget(0.1, 0.01, 50.0)
    budget.scale.update(torch.ones(4), torch.ones(4))
    mean = [torch.tensor(x) for x in (0.2, 2.0)]
    spent = budget.update(*mean, torch.tensor(1.0))
    assert float(spent) == pytest.approx(0.1)
    assert float(budget.lagrange_multiplier) == pytest.approx(0.0, abs=1e-8)
    budget.update(*mean, torch.tensor(1.5))  # 0.5 spreads over: one dual step of half its size
    assert float(budget.lagrange_multiplier) == pytest.approx(0.005)


def test_where_nothing_was_paid_no_price_grows() -> None:
    budget = Budget(0.0, 0.01, 50.0)
    for _ in range(5):
        budget.update(torch.zeros(()), torch.tensor(-0.1), torch.tensor(0.3))
    assert float(budget.lagrange_multiplier) == 0.0


def test_prices_add_up_and_each_has_its_own() -> None:
    budgets = Budgets(BudgetConfig(intervention=0.0, force=1e6, multiplier_max=3.0))
    ones, metrics = torch.ones(()), {}
    for budget in budgets.values():
        budget.scale.update(torch.ones(4), torch.ones(4))
    same = dict.fromkeys(budgets, ones)
    for _ in range(1000):
        budgets.settle(same, same, same, metrics)
    assert float(metrics["budget/intervention_multiplier"]) == 3.0
    assert float(metrics["budget/force_multiplier"]) == 0.0
    advantage = {"intervention": torch.tensor([2.0]), "force": torch.tensor([7.0])}
    torch.testing.assert_close(budgets.price(advantage), torch.tensor([6.0]))


@pytest.mark.parametrize(
    "changes",
    [
        {"intervention": -0.1},
        {"force": float("nan")},
        {"discount": 1.0},
        {"dual_rate": 0.0},
    ],
)
def test_impossible_budgets_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        BudgetConfig(**changes)


def test_a_budget_survives_its_file() -> None:
    settings = replace(preset("tiny"), budget=BudgetConfig(force=5.0))
    text = json.dumps(config.to_json(settings))
    assert config.from_json(FospConfig, json.loads(text)) == settings


def test_costs_belong_to_the_arrival_that_they_caused() -> None:
    algorithm = build(BudgetConfig(intervention=0.1, force=1.0))
    verdict = torch.zeros(4, 6, dtype=torch.uint8)
    verdict[0, 2], verdict[1, 0] = 1, 2
    force = torch.zeros(4, 6)
    force[2, 3] = 12.5
    data = algorithm.objectives.records(with_columns(sequence_batch(0), verdict, force))
    assert data.x["intervention"].nonzero().tolist() == [[0, 3], [1, 1]]
    assert float(data.x["intervention"].max()) == 1.0
    assert data.x["force"].nonzero().tolist() == [[2, 4]] and float(data.x["force"].max()) == 12.5


def build(budget: BudgetConfig, name: str = "tiny", **changes: Any) -> Fosp:
    return Fosp(replace(preset(name), budget=budget, **changes), SPEC, STATISTICS)


def test_a_batch_that_does_not_say_is_refused() -> None:
    with pytest.raises(DataError, match=r"budget\.force"):
        build(BudgetConfig(force=1.0)).update(sequence_batch(0))


def test_data_that_never_measured_a_force_cannot_have_a_budget_on_it(tmp_path: Path) -> None:
    numb = make_dataset(tmp_path / "numb", [20], size=64)
    algorithm = Fosp(replace(preset("tiny"), budget=BudgetConfig(force=1.0)), numb.spec)
    with pytest.raises(DataError, match="nobody measured"):
        make_replay(algorithm, numb, seed=0)
    felt = Dataset.create(tmp_path / "felt", numb.spec, task="line")
    steps, last, stamp = make_transitions(20, size=64)
    felt.append(
        [replace(t, force=float(i)) for i, t in enumerate(steps)], last, stamp, numb[0].meta
    )
    batch = make_replay(algorithm, felt, seed=0).sample()
    caused = algorithm.objectives.records(batch).x["force"]
    assert batch.force is not None and batch.index is not None
    real = batch.mask[:, 1:]
    # The pixel of an episode's step t, and the force of the action before it, t - 1.
    assert (caused[:, 1:][real] == (batch.index.step[:, 1:].float() - 1.0)[real]).all()
    assert all(math.isfinite(value) for value in algorithm.update(batch).values())


def held_back(algorithm: Fosp, updates: int) -> tuple[Tensor, dict[str, float]]:
    """Weights of recorded actions, the first record of each window intervened in."""
    verdict = torch.zeros(4, 6, dtype=torch.uint8)
    verdict[:, 0] = 1
    batch = with_columns(sequence_batch(0), verdict)
    metrics: dict[str, float] = {}
    for _ in range(updates):
        metrics = algorithm.update(batch)
    part = algorithm.objectives
    data = part.records(batch)
    seen, _, _ = part.model(data, 0)
    feature = algorithm.net.feature(seen.latent, seen.embed)
    said = part.read.estimates(feature, data)
    target = part.critic_targets(feature, data)
    weight = part.actor._weight(said, data, target, data.pairs.valid, {})
    return weight[:3], metrics


def test_the_actor_turns_from_what_the_filter_had_to_change() -> None:
    """The same data with and without a budget: what was corrected counts for less and less."""
    free, _ = held_back(build(BudgetConfig(intervention=1.0, dual_rate=0.2), shift=0), 40)
    kept, metrics = held_back(build(BudgetConfig(intervention=0.0, dual_rate=0.2), shift=0), 40)

    def share(weight: Tensor) -> float:
        return float(weight[:, 0].sum() / weight.sum())

    assert metrics["budget/intervention_multiplier"] > 1.0
    assert share(kept) < 0.5 * share(free)


@pytest.mark.parametrize("name", ["tiny", "tiny_without_model"])
def test_every_phase_trains_and_resumes_with_budgets(name: str) -> None:
    batch = with_columns(sequence_batch(1), torch.ones(4, 6, dtype=torch.uint8), torch.rand(4, 6))
    whole, half = (build(BudgetConfig(intervention=0.1, force=0.2), name) for _ in range(2))
    whole.update(batch)
    half.update(batch)
    other = build(BudgetConfig(intervention=0.1, force=0.2), name, seed=9)
    other.load_state_dict(half.state_dict())
    for algorithm in (whole, other):
        algorithm.start_online()
    assert whole.update(batch) == other.update(batch)


def test_imagined_actions_pay_as_well() -> None:
    """Paper objective: the price reaches the actor through the critic of the budget alone."""
    tiny = preset("tiny")
    settings = {
        "world_model": replace(tiny.world_model, precision="fp32"),
        "hidden_dims": (8,), "batch_size": 4, "horizon": 2,
        "actor": "reward", "penalty": "none", "entropy": 0.0, "advantage_normalizer": "rms",
    }  # fmt: skip
    algorithm = Fosp(
        replace(FospConfig(), **settings, budget=BudgetConfig(force=0.0)), SPEC, STATISTICS
    )
    batch = with_columns(sequence_batch(2), force=torch.rand(4, 6))
    for _ in range(3):
        algorithm.update(batch)

    before = copy.deepcopy(algorithm.state_dict())

    def gradient(multiplier: float) -> Tensor:
        algorithm.load_state_dict(before)
        algorithm.budgets["force"].lagrange_multiplier.fill_(multiplier)
        loss, _ = algorithm.objectives(batch, 3)
        return torch.autograd.grad(loss, list(algorithm.net.actor.parameters()))[0]

    one, two, none = gradient(1.0), gradient(2.0), gradient(0.0)
    torch.testing.assert_close(two - none, 2.0 * (one - none), rtol=1e-3, atol=1e-7)
    assert bool((one - none).any())
