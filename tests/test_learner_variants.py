"""Every named variant of the learners: it learns, acts, differs, and leaves as a graph."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safe_o2o import catalog
from safe_o2o.algorithms.constraint_layer import ConstraintConfig
from safe_o2o.algorithms.diffusion_config import DiffusionConfig
from safe_o2o.algorithms.learner import SafetyConfig
from safe_o2o.errors import ConfigError
from safe_o2o.export.onnx import PARITY_STEPS, export_bundle
from tests.synthetic import STATE_SPEC, STATISTICS, observations_of, transition_batch
from tests.test_learners import build, observations

BUDGETED = ConstraintConfig(cost=1.0, intervention=5.0, force=20.0, samples=8)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "idql, quantile": ("idql", {"weight": "quantile"}),
    "idql, linex": ("idql", {"weight": "linex"}),
    "align, eta of the paper": ("align_iql", {"eta": 1.0}),
    "align hard, chi2": ("align_iql_hard", {"divergence": "chi2"}),
    "idql, bound of the likelihood": (
        "idql",
        {"diffusion": DiffusionConfig(3, "mlp", 16, weighting="elbo")},
    ),
    "diffcps, raw": ("diffcps", {"kappa": 0.05, "raw_price": True, "raw_softmax": True}),
    "diffcps, max of ten": ("diffcps", {"backup_samples": 10}),
    "consistency, released": ("consistency_ac", {"released": True, "levels": (80.0, 2.0)}),
    "consistency, one level": ("consistency_ac", {"levels": (80.0,)}),
    "cfpi, one Gaussian": ("cfpi", {"components": 1, "bound": "lse"}),
    "cfpi, lse": ("cfpi", {"bound": "lse"}),
    "cfpi, jensen": ("cfpi", {"bound": "jensen"}),
    "cfpi, released": ("cfpi", {"released": True}),
    "cfpi, multi-step": ("cfpi", {"variant": "multi_step", "total_updates": 6, "rounds": 3}),
    "cfpi, iterative": ("cfpi", {"variant": "iterative", "sarsa": 0.0}),
    "cfpi, numbers": ("cfpi", {"critic": "mean"}),
    "cvpo, mixture": ("cvpo", {"policy": "mixture"}),
    "cvpo, diffusion": ("cvpo", {"policy": "diffusion"}),
    "cvpo, consistency": ("cvpo", {"policy": "consistency"}),
    "cvpo, three budgets": ("cvpo", {"constraint": BUDGETED}),
    "cvpo, as published": ("cvpo", {"m_steps": 6, "safety": SafetyConfig(mask=False)}),
    "sdac, without data": ("sdac", {"imitation_half_life": 0.0}),
    "cloning, mixture": ("cloning", {"kind": "mixture"}),
    "cloning, diffusion": ("cloning", {"kind": "diffusion"}),
    "cloning, consistency": ("cloning", {"kind": "consistency"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_learns_acts_and_is_exported(variant: str, tmp_path: Path) -> None:
    name, settings = VARIANTS[variant]
    learner = build(name, **settings)
    for seed in range(6):
        metrics = learner.update(transition_batch(seed))
        assert all(math.isfinite(value) for value in metrics.values())
    obs = observations(learner, 8)
    for deterministic in (True, False):
        action, _ = learner.policy.act(obs, {}, deterministic)
        assert (action.abs() <= 1.0).all() and torch.isfinite(action).all()
    report = export_bundle(
        learner.policy,
        STATE_SPEC,
        tmp_path / "v000001",
        algorithm=name,
        parity_steps=observations_of(learner, PARITY_STEPS + 4, seed=9),
        statistics=STATISTICS,
        provenance={},
    )
    assert report.parity <= 1e-5


def test_cfpi_without_a_step_imitates() -> None:
    """log tau = 0 is the density's own mean; a larger one goes up Q by a known distance."""
    learner = build("cfpi", components=1, bound="lse", log_tau=0.0)
    for seed in range(3):
        learner.update(transition_batch(seed))
    obs = observations(learner, 16)
    _, mean, std = learner.net["actor"].moments(learner.net["reader"](obs))
    learner.masked = False
    action, _ = learner.policy.act(obs, {})
    torch.testing.assert_close(action, torch.tanh(mean[:, 0]))
    learner.config = replace(learner.config, log_tau=0.5)
    action, _ = learner.policy.act(obs, {})
    away = ((torch.atanh(action) - mean[:, 0]) / std[:, 0]).square().sum(-1)
    torch.testing.assert_close(away, torch.ones(16), rtol=1e-2, atol=1e-2)


def test_multi_step_judges_the_policy_of_its_round() -> None:
    learner = build("cfpi", variant="multi_step", total_updates=4, rounds=2)
    judged = learner.net["judged"]["actor"]
    seen = []
    for seed in range(4):
        learner.update(transition_batch(seed))
        seen.append(torch.cat([p.flatten() for p in judged.parameters()]).clone())
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[1], seen[2])


def test_kappa_is_what_imitation_comes_to() -> None:
    learner = build("diffcps", total_updates=20, calibration=0.5, slack=1.1, policy_every=1)
    errors = []
    for seed in range(20):
        metrics = learner.update(transition_batch(seed))
        errors.append(metrics["actor/error"])
    kappa = metrics["actor/kappa"]
    assert kappa == pytest.approx(1.1 * sum(errors[:10]) / 10, rel=0.05)
    price = [learner.update(transition_batch(seed))["actor/price"] for seed in range(2)]
    assert all(learner.config.price_min <= p <= learner.config.price_max for p in price)


def test_the_price_follows_the_constraint() -> None:
    for kappa, rises in ((1e-3, True), (50.0, False)):
        learner = build("diffcps", kappa=kappa, policy_every=1, price_lr=0.05)
        prices = [learner.update(transition_batch(seed))["actor/price"] for seed in range(8)]
        assert (prices[-1] > prices[0]) == rises


def test_imitation_fades_online() -> None:
    learner = build("consistency_ac", clone_half_life=10.0)
    assert learner.clone_weight == 1.0
    learner.start_online()
    learner.online_step = 10
    assert learner.clone_weight == pytest.approx(0.5)
    paper = build("consistency_ac", clone_half_life=0.0)
    paper.start_online()
    assert paper.clone_weight == 0.0


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("idql", {"weight": "best"}, "weight: must be one of"),
        ("cfpi", {"components": 1, "bound": "jensen"}, "no Jensen bound"),
        ("cfpi", {"log_tau": -0.1}, "log_tau"),
        ("diffcps", {"kappa": 0.0, "calibration": 0.0}, "kappa must be positive"),
        ("iql", {"reward": "double"}, "reward: must be one of"),
        ("iql", {"discount": 1.0}, "discount must be in"),
        ("cloning", {"kind": "normal"}, "kind: must be one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    name: str, settings: dict[str, Any], says: str
) -> None:
    config = catalog.load("algorithm", name).preset("tiny")
    with pytest.raises(ConfigError, match=says):
        replace(config, **settings)
