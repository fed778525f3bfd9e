"""An actor of several Gaussians: the density it learns by, and which of them acts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import distributions

from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.algorithms.fosp_presets import preset
from safe_o2o.errors import ConfigError
from safe_o2o.nets.policy import GaussianActor, MixtureActor
from tests.synthetic import SPEC, STATISTICS, sequence_batch


def test_the_likelihood_is_that_of_the_mixture() -> None:
    torch.manual_seed(0)
    actor = MixtureActor(5, 3, (16,), 0.25, 4)
    feature, action = torch.randn(7, 5), torch.rand(7, 3) * 2 - 1
    share, means = actor.modes(feature)
    mixture = distributions.MixtureSameFamily(
        distributions.Categorical(logits=share),
        distributions.Independent(distributions.Normal(means, 0.25), 1),
    )
    density, mean, _ = actor.likelihood(feature, action)
    torch.testing.assert_close(density, mixture.log_prob(action))
    assert torch.equal(mean, actor(feature)[0])


def fitted(actor: GaussianActor, action: torch.Tensor) -> torch.Tensor:
    """The action `[A]` that an actor chooses where half of the data did one thing, half another."""
    feature = torch.ones(len(action), 2)
    optimizer = torch.optim.Adam(actor.parameters(), 1e-2)
    for _ in range(300):
        likelihood = actor.likelihood(feature, action)[0]
        optimizer.zero_grad()
        (-likelihood.mean()).backward()
        optimizer.step()
    mean: torch.Tensor = actor(feature[:1])[0][0].detach()
    return mean


def test_where_some_go_left_and_some_right_it_goes_left_or_right() -> None:
    torch.manual_seed(0)
    side = torch.tensor([[0.8, 0.5], [-0.8, 0.5]]).repeat(32, 1)
    action = side + 0.05 * torch.randn(side.shape)
    mean = fitted(MixtureActor(2, 2, (16,), 0.25, 4), action)
    assert abs(mean[0].item()) == pytest.approx(0.8, abs=0.1)
    assert mean[1].item() == pytest.approx(0.5, abs=0.1)
    # Which one Gaussian cannot: it goes between them, into what they went around.
    assert abs(fitted(GaussianActor(2, 2, (16,), 0.25), action)[0].item()) < 0.1


def test_of_two_likely_ways_the_less_risky_one_is_taken() -> None:
    config = replace(preset("tiny"), actor_modes=2)
    module = Fosp(config, SPEC, STATISTICS).policy.module
    actor, scores = module.net.actor, list[torch.Tensor]()
    assert isinstance(actor, MixtureActor)
    means = torch.tensor([[[0.6, 0.0, 0.0], [-0.6, 0.0, 0.0]]])
    actor.modes = lambda feature: (torch.log(torch.tensor([[0.6, 0.4]])), means)  # type: ignore[method-assign]
    module.net.q_reach = lambda feature, action: 0.5 + 0.5 * action[..., 0]  # type: ignore[method-assign]
    feature = torch.zeros(1, module.net.feature_dim)
    mean, std = module._intended(module.net, feature, scores)
    assert mean[0, 0].item() == pytest.approx(-0.6) and std[0, 0].item() == config.actor_std
    # Equal risks: the likelier.
    module.net.q_reach = lambda feature, action: torch.full(action.shape[:-1], 0.3)  # type: ignore[method-assign]
    assert module._intended(module.net, feature, scores)[0][0, 0].item() == pytest.approx(0.6)
    assert len(scores) == 2  # a near tie is one that export's parity check must know of


def test_it_learns_offline_and_online_and_says_so_when_it_cannot() -> None:
    config = replace(preset("tiny"), actor_modes=3)
    algorithm = Fosp(config, SPEC, STATISTICS)
    for seed in range(2):
        assert all(
            torch.isfinite(torch.tensor(v)) for v in algorithm.update(sequence_batch(seed)).values()
        )
    algorithm.start_online()
    algorithm.update(sequence_batch(2))
    with pytest.raises(ConfigError, match="actor_modes"):
        replace(config, actor_std=0.0)
