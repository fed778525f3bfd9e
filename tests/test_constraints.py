"""Budgets on average: thresholds, the M-step, the mask in the E-step, CVPO on a known problem."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from safe_o2o.algorithms.constraint_layer import ConstraintConfig, ConstraintLayer, feasible_prior
from safe_o2o.algorithms.cost_profile import CostProfile
from safe_o2o.algorithms.cvpo import Cvpo, CvpoConfig
from safe_o2o.algorithms.learner import SafetyConfig
from safe_o2o.algorithms.trust_region import Gaussians, TrustRegion, decoupled_fit
from safe_o2o.data.batch import Batch
from safe_o2o.errors import ConfigError
from tests.synthetic import STATE_SPEC, STATISTICS, transition_batch

THRESHOLDS = [
    (10, 0.99, 400, 2.455124),
    (20, 0.99, 300, 6.339727),
    (10, 0.97, 300, 1.110992),
    (25, 0.995, 1000, 4.966730),
    (25, 0.98, 1000, 1.25),
    (25, 0.995, 500, 9.184281),
    (25, 0.99, 500, 4.967148),
]


@pytest.mark.parametrize(("limit", "discount", "length", "expected"), THRESHOLDS)
@pytest.mark.parametrize("paid", [0.0, 0.3])
def test_threshold_of_a_uniform_cost(
    limit: float, discount: float, length: int, expected: float, paid: float
) -> None:
    profile = CostProfile(discount)
    profile.see(torch.arange(length), torch.full((length,), paid))
    assert float(profile.threshold(limit)) == pytest.approx(expected, abs=6e-7)


def test_threshold_of_costs_that_come_late() -> None:
    profile = CostProfile(0.9)
    steps = torch.tensor([0, 10, 10, 20])
    profile.see(steps, torch.tensor([1.0, 1.0, 2.0, 0.0]))
    share = (1.0 + 3.0 * 0.9**10) / 4.0
    assert float(profile.threshold(8.0)) == pytest.approx(8.0 * share)
    assert float(CostProfile(0.9).threshold(8.0)) == 8.0  # nothing is known yet


def gaussians(mean: list[float], std: list[float]) -> Gaussians:
    return Gaussians(torch.tensor([mean]).double().T, torch.tensor([std]).double().T)


def fitted(old: Gaussians, target: Tensor, second: Tensor, region: TrustRegion) -> Gaussians:
    """Where the M-step ends for samples with such moments: two a state, weighed alike."""
    spread = second.sqrt()
    middle = target
    # Two samples around the mean, so that both moments are as asked.
    raw = torch.stack([middle - spread, middle + spread], 1).unsqueeze(-1)
    weight = torch.full((len(target), 2), 0.5).double()
    mean = old.mean.clone().requires_grad_()
    log_std = old.std.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([mean, log_std], lr=1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9985)
    for _ in range(6000):
        fit = decoupled_fit(Gaussians(mean, log_std.exp()), old, raw, weight)
        region.update(fit)
        optimizer.zero_grad()
        region.loss(fit).backward()
        optimizer.step()
        schedule.step()
    return Gaussians(mean.detach(), log_std.exp().detach())


def test_the_m_step_finds_the_exact_mean_within_its_kl() -> None:
    old = gaussians([0.0, 0.0, 0.0], [1.0, 0.5, 2.0])
    target = torch.tensor([0.5, -0.2, 1.0]).double()
    region = TrustRegion(0.01, 1e6, rate=3e-3, price=2.0)
    second = torch.full((3,), 1e-6).double()
    found = fitted(old, target, second, region)
    expected = torch.tensor([0.150756, -0.060302, 0.301511]).double()
    torch.testing.assert_close(found.mean[:, 0], expected, rtol=0, atol=2e-3)
    off = (found.mean / old.std).square().sum(-1).mean() / 2.0
    assert float(off) == pytest.approx(0.01, rel=0.03)


def test_the_m_step_finds_the_exact_deviation_within_its_kl() -> None:
    old = gaussians([0.0, 0.0, 0.0], [1.0, 0.5, 2.0])
    second = torch.tensor([0.8, 0.2, 5.0]).double()
    region = TrustRegion(1e6, 1e-3, rate=3e-3, price=2.0)
    found = fitted(old, torch.zeros(3).double(), second, region)
    expected = torch.tensor([0.942170, 0.235542, 4.28915]).double()
    torch.testing.assert_close(found.std[:, 0].square(), expected, rtol=5e-3, atol=0)


def test_samples_that_are_not_feasible_are_left_out() -> None:
    """The specification's two states (5.7): one with feasible samples, one without any."""
    q = torch.arange(1.0, 5.0).expand(2, 4)
    risk = torch.tensor([[-1.0, -0.2, 0.1, 0.4], [0.2, 0.5, 0.1, 0.9]])
    prior, lost = feasible_prior(risk, 0.0)
    assert prior is not None and lost.tolist() == [False, True]
    weight = torch.softmax(prior[0] + q[0], -1)
    torch.testing.assert_close(
        weight, torch.tensor([0.268941, 0.731059, 0.0, 0.0]), rtol=0, atol=1e-6
    )
    layer = ConstraintLayer(2, 1, ConstraintConfig(cost=None, samples=4), CvpoConfig())
    found, metrics = layer.weigh(q, torch.zeros(0, 2, 4), risk, 0.0)
    expected = torch.tensor([0.344584, 0.076887, 0.568123, 0.010406])
    torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-6)
    assert found[0, 2:].tolist() == [0.0, 0.0] and float(metrics["constraint/lost"]) == 0.5
    assert found[0, 1] > found[0, 0] > 0.0
    nothing, lost = feasible_prior(torch.full((1, 2), torch.nan), 0.0)
    assert bool(lost.all()) and nothing is not None


def bandit(batch: int, seed: int, spread: float = 1.0) -> Batch:
    """One step: reward is the first entry of the action, cost is 1 where it is positive."""
    made = transition_batch(seed, batch)
    g = torch.Generator().manual_seed(1000 + seed)
    action = spread * (2.0 * torch.rand(batch, 3, generator=g) - 1.0)
    assert made.index is not None
    return replace(
        made,
        action=action,
        reward=action[:, 0],
        cost=(action[:, 0] > 0.0).float(),
        terminated=torch.ones(batch, dtype=torch.bool),
        index=replace(made.index, step=torch.zeros_like(made.index.step)),
    )


@pytest.mark.parametrize("policy", ["gaussian", "diffusion"])
def test_cvpo_keeps_its_budget_and_gains_what_is_left(policy: str) -> None:
    """With a budget of 0.3 every third action may be a costly one, not all of them."""
    costs = {}
    for limit in (0.3, None):
        config = replace(
            Cvpo.preset("tiny"),
            hidden_dims=(64, 64),
            policy=policy,
            kl_mean=0.02,
            kl_std=0.005,
            batch_size=128,
            normalize=False,
            average_rate=0.02,
            constraint=ConstraintConfig(cost=limit, samples=16),
            safety=SafetyConfig(mask=False),
        )
        learner = Cvpo(config, STATE_SPEC, STATISTICS)
        for seed in range(100):
            learner.update(bandit(128, seed))
        learner.start_online()
        for seed in range(400):
            metrics = learner.update(bandit(128, seed))
        x = learner.read(bandit(128, 9))
        action, _ = learner._sampled(learner.net["actor"], x.obs)
        costs[limit] = float((action[..., 0] > 0.0).float().mean())
        assert np.isfinite(list(metrics.values())).all()
    assert costs[0.3] <= 0.45 and costs[None] >= 0.75
    assert costs[0.3] >= 0.05  # what it may spend is spent


def test_bad_limits_are_one_line() -> None:
    with pytest.raises(ConfigError, match="0 or more"):
        ConstraintConfig(cost=-1.0)
    with pytest.raises(ConfigError, match="no tilt of 4 samples"):
        ConstraintConfig(samples=4, kl=2.0)
    with pytest.raises(ConfigError, match="policy"):
        CvpoConfig(policy="gausian")
