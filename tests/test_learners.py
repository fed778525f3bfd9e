"""What all learners on transitions promise: the mask, targets, time limits, going online."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from safe_o2o import catalog
from safe_o2o.algorithms.implicit_value import ImplicitValue
from safe_o2o.algorithms.learner import Learner, LearnerConfig, SafetyConfig
from safe_o2o.errors import ConfigError, SpecMismatchError
from tests.synthetic import (
    SPEC,
    STATE_SPEC,
    STATISTICS,
    observations_of,
    sequence_batch,
    transition_batch,
)

LEARNERS = sorted(
    name for name in catalog.algorithms if issubclass(catalog.load("algorithm", name), Learner)
)

CHOOSERS = [name for name in LEARNERS if name != "loop"]
"""Who chooses among candidates of one action; a planner is tested by itself."""


def build(name: str, **changes: Any) -> Any:
    cls = catalog.load("algorithm", name)
    return cls(replace(cls.preset("tiny"), **changes), STATE_SPEC, STATISTICS)


def observations(learner: Any, count: int) -> dict[str, Tensor]:
    rows = observations_of(learner, count)
    return {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}


def test_there_are_as_many_as_we_say() -> None:
    assert {
        "iql",
        "idql",
        "align_iql",
        "align_iql_hard",
        "diffcps",
        "cfpi",
        "consistency_ac",
    } <= set(LEARNERS)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("preset", ["small", "paper"])
def test_presets_are_made(name: str, preset: str) -> None:
    config = catalog.load("algorithm", name).preset(preset)
    assert isinstance(config, LearnerConfig)
    assert config.safety.mask == (preset == "small")


class Nothing(torch.nn.Module):
    """No risk at all."""

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return torch.zeros_like(action[..., 0]).unsqueeze(0)


class HalfSpace(torch.nn.Module):
    """A risk of 1 where the first entry of an action is positive."""

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return (action[..., 0] > 0.0).float().unsqueeze(0)


@pytest.mark.parametrize("name", CHOOSERS)
@pytest.mark.parametrize("deterministic", [True, False])
def test_the_mask_is_respected(name: str, deterministic: bool) -> None:
    """Where any candidate is feasible a feasible one is taken, whatever the reward critic says."""
    learner = build(name, safety=SafetyConfig(candidates=24))
    for seed in range(3):
        learner.update(transition_batch(seed))
    obs, took = observations(learner, 64), {}
    for risk in (Nothing(), HalfSpace()):
        learner.net["risk"].target = risk
        policy = learner.policy
        action, _ = policy.act(obs, {}, deterministic)
        took[type(risk).__name__] = int((action[:, 0] > 0.0).sum())
        if deterministic and isinstance(risk, HalfSpace):
            candidates = policy.module._weighed(*_inputs(policy, obs))[0]
            possible = (candidates[..., 0] <= 0.0).any(-1)
            assert possible.sum() > 10 and (action[possible, 0] <= 0.0).all()
    assert took["HalfSpace"] == 0 or took["HalfSpace"] < took["Nothing"] / 2


def _inputs(policy: Any, obs: dict[str, Tensor]) -> list[Tensor]:
    n = len(next(iter(obs.values())))
    noise = [still.expand(n, *still.shape[1:]) for still in policy._still.values()]
    return [*obs.values(), *noise]


@pytest.mark.parametrize("name", CHOOSERS)
def test_the_least_risk_is_taken_where_nothing_is_feasible(name: str) -> None:
    class Sloped(torch.nn.Module):
        def forward(self, obs: Tensor, action: Tensor) -> Tensor:
            return 5.0 + action[..., 1].unsqueeze(0)

    learner = build(name, safety=SafetyConfig(candidates=8))
    learner.net["risk"].target = Sloped()
    policy = learner.policy
    obs = observations(learner, 16)
    action, _ = policy.act(obs, {})
    candidates = policy.module._weighed(*_inputs(policy, obs))[0]
    torch.testing.assert_close(action[:, 1], candidates[..., 1].amin(-1))
    assert policy.last_output["risk"].shape == (16, 1)


@pytest.mark.parametrize("name", LEARNERS)
def test_without_a_mask_there_is_no_safety_critic(name: str) -> None:
    learner = build(name, safety=SafetyConfig(mask=False))
    learner.update(transition_batch(0))
    assert "risk" not in learner.net and "risk" not in learner.policy.module.output_names


@pytest.mark.parametrize("label", ["reach", "cost"])
def test_the_safety_critic_learns_who_is_near_a_violation(label: str) -> None:
    """Of a line of five states the last one violates; careful actions of the data turn back."""
    settings = {"hidden_dims": (64,), "learning_rate": 2e-3, "tau": 0.02}
    learner = build("iql", safety=SafetyConfig(label=label), **settings)
    g = torch.Generator().manual_seed(0)
    n = 256
    template = transition_batch(0, n)

    def observed(place: Tensor) -> dict[str, Tensor]:
        return {
            name: torch.nn.functional.pad(place.unsqueeze(1) / 4, (0, spec.shape[0] - 1))
            for name, spec in STATE_SPEC.observation.arrays.items()
        }

    for _ in range(800):
        place = torch.randint(0, 4, (n,), generator=g).float()
        right = torch.rand(n, generator=g) > 0.5
        there = (place + torch.where(right, 1.0, -1.0)).clamp(min=0.0)
        action = torch.zeros(n, 3)
        action[:, 0] = torch.where(right, 0.9, -0.9)
        learner.update(
            replace(
                template,
                obs=observed(place),
                next_obs=observed(there),
                action=action,
                cost=(there == 4).float(),
                terminated=there == 4,
            )
        )
    risk, reader = learner.net["risk"], learner.net["reader"]
    obs = reader(observed(torch.arange(4).float()))
    actions = torch.tensor([[-0.9, 0, 0], [0.9, 0, 0]]).expand(4, 2, 3)
    found = risk.believed(obs, actions).detach()
    assert found[3, 1] > 0.8  # over the edge
    assert found[3, 0] < 0.3 and found[:3].max() < 0.3  # there is a way back everywhere else
    assert found[2, 1] > found[1, 1] - 0.05


def test_time_limits_bootstrap_and_ends_do_not() -> None:
    learner = build("iql", discount=0.5, tau=1.0)
    value = learner.net["value"]
    assert isinstance(value, ImplicitValue)
    with torch.no_grad():
        for parameter in value.state_value.parameters():
            parameter.zero_()
        value.state_value.output.bias.fill_(4.0)
    batch = transition_batch(0)
    ended = torch.zeros(16, dtype=torch.bool)
    ended[:8] = True
    x = learner.read(replace(batch, terminated=ended, truncated=~ended))
    after = value.value(x.next_obs)
    target = x.reward + 0.5 * (1.0 - x.ended) * after
    torch.testing.assert_close(target[:8], x.reward[:8])
    torch.testing.assert_close(target[8:], x.reward[8:] + 2.0)


def test_the_order_is_value_policy_critic_with_the_new_value() -> None:
    """Q's target has V after its step in it, as the official order has."""
    from safe_o2o.algorithms.implicit_value import value_step

    learner = build("iql", learning_rate=0.05)
    x = learner.read(transition_batch(1))
    before = learner.net["value"].value(x.next_obs).detach()
    judged = value_step(learner, x, 0.7)
    after = learner.net["value"].value(x.next_obs).detach()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(judged.target, x.reward + 0.99 * (1.0 - x.ended) * after)


@pytest.mark.parametrize(
    ("kind", "reward", "expected"),
    [
        ("as_is", 0.5, 0.5),
        ("minus_one", 0.5, -0.5),
        ("cql_antmaze", 1.0, 2.0),
        ("return_range", 1.0, 250.0),
        ("standardized", 0.8, 1.0),
    ],
)
def test_rewards_are_transformed_as_the_papers_do(
    kind: str, reward: float, expected: float
) -> None:
    learner = build("iql", reward=kind)
    batch = replace(transition_batch(0), reward=torch.full((16,), reward))
    torch.testing.assert_close(learner.read(batch).reward, torch.full((16,), expected))
    other = catalog.load("algorithm", "iql")(learner.config, STATE_SPEC)
    other.load_state_dict(learner.state_dict())  # as a checkpoint is read: without statistics
    torch.testing.assert_close(other.read(batch).reward, torch.full((16,), expected))


def test_actions_stay_a_hair_inside_their_bounds() -> None:
    learner = build("iql")
    x = learner.read(replace(transition_batch(0), action=torch.ones(16, 3)))
    assert (x.action < 1.0).all() and (x.action > 0.9999).all()


def test_pictures_are_refused() -> None:
    cls = catalog.load("algorithm", "iql")
    with pytest.raises(SpecMismatchError, match="safe-o2o encode"):
        cls(cls.preset("tiny"), SPEC, STATISTICS)
    with pytest.raises(ConfigError, match="not from windows"):
        build("iql").update(sequence_batch(0))


@pytest.mark.parametrize("name", LEARNERS)
def test_going_online_and_back_from_disk(name: str) -> None:
    """Rates stop decaying, nothing is forgotten: targets, averages and prices included."""
    learner = build(name)
    for seed in range(3):
        learner.update(transition_batch(seed))
    obs = observations(learner, 8)
    before, _ = learner.policy.act(obs, learner.policy.initial_carry(8))
    learner.start_online()
    learner.start_online()
    if name != "cfpi":  # which steps further online
        after, _ = learner.policy.act(obs, learner.policy.initial_carry(8))
        assert torch.equal(before, after)
    learner.update(transition_batch(9))
    assert (learner.step, learner.online_step) == (4, 1)
    assert learner._rate("actor") == learner.config.actor_lr
    other = build(name, seed=5)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for network in (learner, other):
        network.update(transition_batch(10))
    for key, value in learner.net.state_dict().items():
        assert torch.equal(value, other.net.state_dict()[key]), key


def test_policy_rate_decays_offline() -> None:
    learner = build("iql", total_updates=4)
    rates = []
    for seed in range(4):
        rates.append(learner._rate("actor"))
        learner.update(transition_batch(seed))
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.2 * rates[0]
    assert learner._rate("actor") == pytest.approx(0.0)
    learner.start_online()
    assert learner._rate("actor") == learner.config.actor_lr


def test_a_warm_up_online_moves_nothing() -> None:
    learner = build("iql")
    learner = build("iql", finetune=replace(learner.config.finetune, warmup=1))
    learner.start_online()
    before = [p.clone() for p in learner.net["actor"].parameters()]
    learner.update(transition_batch(0))
    assert all(
        torch.equal(a, b) for a, b in zip(before, learner.net["actor"].parameters(), strict=True)
    )
    learner.update(transition_batch(1))
    assert any(
        not torch.equal(a, b)
        for a, b in zip(before, learner.net["actor"].parameters(), strict=True)
    )
