"""The planner: it plans with what it knows, brakes where it knows nothing, and keeps its limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from safe_o2o.algorithms.loop import Loop
from safe_o2o.algorithms.planner import PlannerConfig
from safe_o2o.data.batch import Batch
from safe_o2o.errors import ConfigError
from safe_o2o.nets.dynamics import DynamicsEnsemble, Predicted
from tests.synthetic import STATE_SPEC, STATISTICS, transition_batch
from tests.test_learners import build, observations

PLANNER = PlannerConfig(horizon=4, candidates=128, proposals=6, iterations=6, disagreement=100.0)


class Known(nn.Module):
    """A model that is right: the state moves by the action's first entry, right is worth more.

    Args:
        wall: a violation beyond so far to the right; each member is off by a little.
        apart: by how much the members disagree on a step.
    """

    def __init__(self, wall: float = 100.0, apart: float = 0.0) -> None:
        super().__init__()
        self.members, self.wall = 3, wall
        self.register_buffer("off", apart * torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1))

    def forward(self, state: Tensor, action: Tensor) -> Predicted:
        if state.dim() == 2:
            state = state.expand(self.members, *state.shape)
        move = nn.functional.pad(action[..., :1], (0, state.shape[-1] - 1))
        after = state + move.expand_as(state) + self.off
        place = after[..., 0]
        odds = 50.0 * (place - self.wall)
        return Predicted(after, place, torch.full_like(place, -50.0), odds)


class Flat(nn.Module):
    """A value of nothing, a risk of nothing."""

    def __init__(self, number: float = 0.0) -> None:
        super().__init__()
        self.number = number

    def believed(self, obs: Tensor, action: Tensor) -> Tensor:
        return torch.full_like(action[..., 0], self.number)


def planner(model: nn.Module, risk: float = 0.0, **changes: Any) -> Loop:
    learner: Loop = build("loop", planner=replace(PLANNER, **changes))
    learner.net["model"] = model
    learner.net["value"] = Flat()
    learner.net["risk"] = Flat(risk)
    return learner


def decided(learner: Loop, count: int = 8) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Actions, what is carried on, and where each state was."""
    obs = observations(learner, count)
    policy = learner.policy
    action, carry = policy.act(obs, policy.initial_carry(count))
    return action, carry, learner.net["reader"](obs)[:, 0]


def test_it_goes_where_the_reward_is() -> None:
    action, carry, _ = decided(planner(Known()))
    assert float(action[:, 0].min()) > 0.3 and float(action[:, 0].mean()) > 0.6
    plan = carry["plan"].view(8, 4, 3)
    assert float(plan[:, :2, 0].mean()) > 0.4 and torch.equal(action, plan[:, 0])


def test_it_stops_in_front_of_a_wall_that_any_model_sees() -> None:
    """Free to go right for a while: it goes as far as the most pessimistic member allows."""
    for apart in (0.0, 0.1):
        learner = planner(Known(wall=1.0, apart=apart))
        obs = observations(learner, 8)
        state = learner.net["reader"](obs)
        policy = learner.policy
        action, carry = policy.act(obs, policy.initial_carry(8))
        place = state[:, :1] + torch.cumsum(carry["plan"].view(8, 4, 3)[..., 0], 1)
        place = place + apart * torch.arange(1, 5)
        could = state[:, 0] + 4.0 * -1.0 < 1.0  # some plan stays on this side
        inside = state[:, 0] + action[:, 0] + apart <= 1.0 + 0.01
        free = could & (state[:, 0] < 1.0)
        assert int(free.sum()) >= 3 and bool(inside[free].all())
        assert float(place[free].max()) <= 1.0 + 0.02


def test_where_every_plan_ends_badly_it_takes_the_least_danger() -> None:
    learner = planner(Known(wall=-50.0))
    action, _, _ = decided(learner)
    assert float(action[:, 0].max()) < 0.0  # away from it, whatever the reward


def test_where_nothing_is_known_it_brakes() -> None:
    class Broken(Known):
        def forward(self, state: Tensor, action: Tensor) -> Predicted:
            found = super().forward(state, action)
            return Predicted(*(torch.full_like(part, torch.nan) for part in found))

    action, _, _ = decided(planner(Broken()))
    assert torch.equal(action, torch.zeros_like(action))


def test_models_that_disagree_are_not_followed() -> None:
    """Wherever it goes the members end apart: nothing is feasible, none is worse than another."""
    bold, _, _ = decided(planner(Known(apart=0.5)))
    shy, _, _ = decided(planner(Known(apart=0.5), disagreement=0.01))
    assert float(bold[:, 0].mean()) > 0.6
    assert float(shy[:, 0].abs().mean()) < float(bold[:, 0].abs().mean())


def test_the_safety_critic_judges_what_is_done_and_where_it_ends() -> None:
    class Right(Flat):
        """Only going left is allowed."""

        def believed(self, obs: Tensor, action: Tensor) -> Tensor:
            return (action[..., 0] > 0.0).float()

    learner = planner(Known())
    learner.net["risk"] = Right()
    # Where it ends the policy's own action is judged: it goes left, too.
    learner.net["actor"].mlp.output.bias.data[:] = -3.0
    action, _, _ = decided(learner)
    assert float(action[:, 0].max()) <= 1e-3


def test_a_plan_is_remembered() -> None:
    learner = planner(Known(wall=2.0))
    obs, policy = observations(learner, 4), learner.policy
    carry = policy.initial_carry(4)
    first, carry = policy.act(obs, carry)
    assert torch.equal(carry["began"], torch.ones(4, 1))
    again, _ = policy.act(obs, carry)
    fresh, _ = policy.act(obs, policy.initial_carry(4))
    assert torch.equal(first, fresh) and not torch.equal(first, again)


def test_noise_explores() -> None:
    learner = planner(Known())
    obs, policy = observations(learner, 4), learner.policy
    one, _ = policy.act(obs, policy.initial_carry(4), deterministic=False)
    other, _ = policy.act(obs, policy.initial_carry(4), deterministic=False)
    assert not torch.equal(one, other) and bool((one.abs() <= 1.0).all())


# ------------------------------------------------------------------ the learned models


def moved(seed: int, count: int = 256) -> Batch:
    """States that move by half of the action, cost 1 where the first entry ends above 0.7."""
    made = transition_batch(seed, count)
    after = made.obs["deter"].clone()
    after[:, :3] += 0.5 * made.action
    return replace(
        made,
        next_obs={**made.obs, "deter": after},
        reward=made.action[:, 1],
        cost=(after[:, 0] > 0.7).float(),
        terminated=torch.zeros(count, dtype=torch.bool),
    )


def test_models_learn_what_an_action_does() -> None:
    learner = Loop(
        replace(Loop.preset("tiny"), normalize=False, model_dims=(64, 64)), STATE_SPEC, STATISTICS
    )
    for seed in range(300):
        learner.update(moved(seed))
    model = learner.net["model"]
    assert isinstance(model, DynamicsEnsemble)
    x = learner.read(moved(999))
    with torch.no_grad():
        found = model(x.obs, x.action)
    error = (found.state.mean(0) - x.next_obs).abs().mean()
    still = (x.obs - x.next_obs).abs().mean()
    assert float(error) < 0.35 * float(still)
    np.testing.assert_allclose(
        np.corrcoef(found.reward.mean(0).numpy(), x.reward.numpy())[0, 1], 1.0, atol=0.05
    )
    violated = x.cost > 0.0
    odds = found.violated.mean(0)
    assert float(odds[violated].mean()) > float(odds[~violated].mean()) + 0.5
    # Members differ, and more where there are no data.
    with torch.no_grad():
        far = model(x.obs + 30.0, x.action).state.std(0).mean()
    assert float(far) > 2.0 * float(found.state.std(0).mean()) > 0.0


def test_bad_settings_are_one_line() -> None:
    for changes in ({"horizon": 0}, {"share": 1.0}, {"momentum": 1.0}, {"violation": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            replace(PlannerConfig(), **changes)  # type: ignore[arg-type]
