"""Baselines and ablations: each is FOSP with one thing exchanged, and that thing is really gone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_o2o import catalog
from safe_o2o.algorithms import losses
from safe_o2o.algorithms.baselines import BehaviorCloning, Dreamer, SafeDreamer
from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.fosp_presets import PRESETS, SIZES, VARIANTS, preset
from safe_o2o.data.batch import Batch
from safe_o2o.errors import UnknownNameError
from tests.synthetic import SPEC, STATISTICS, sequence_batch

TINY = preset("tiny")


def actor_gradient(algorithm: Fosp, batch: Batch, updates: int = 2) -> Tensor:
    """Of the actor's parameters, after some updates that fill critics which start at zero."""
    for _ in range(updates):
        algorithm.update(sequence_batch(0))
    loss, _ = algorithm.objectives(batch, algorithm.step)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in algorithm.net.actor.parameters()])  # type: ignore[union-attr]


def with_costs(batch: Batch, cost: float) -> Batch:
    return replace(batch, cost=torch.full_like(batch.cost, cost))


def observed(algorithm: Fosp, batch: Batch) -> tuple[Any, Any]:
    """A batch seen through the world model, and its records."""
    data = algorithm.objectives.records(batch)
    seen = algorithm.net.world_model.observe(
        data.image, data.vector, data.action, data.is_first, algorithm.generator
    )
    return seen, data


def imagined(algorithm: Fosp, batch: Batch) -> tuple[Any, Any]:
    seen, data = observed(algorithm, batch)
    return algorithm.objectives.imagine(seen, data), data


@pytest.mark.parametrize("make", [BehaviorCloning, Dreamer])
def test_without_a_constraint_costs_do_not_reach_the_actor(make: type[Fosp]) -> None:
    grads = [
        actor_gradient(
            make(make.preset("tiny"), SPEC, STATISTICS), with_costs(sequence_batch(1), c)
        )
        for c in (0.0, 1.0)
    ]
    assert torch.equal(grads[0], grads[1]) and bool(grads[0].any())


def test_cloning_weighs_all_data_alike() -> None:
    algorithm = BehaviorCloning(BehaviorCloning.preset("tiny"), SPEC, STATISTICS)
    metrics = algorithm.update(sequence_batch(0))
    assert metrics["actor/weight_max"] == 1.0
    assert not any(name.startswith("lagrange") for name in metrics)
    algorithm.start_online()
    assert algorithm.objectives.actor_objective == "clone"
    assert algorithm.policy.module.base is None


def test_safedreamer_is_dreamer_with_the_lagrangian_and_no_gate() -> None:
    config = SafeDreamer.preset("tiny")
    assert config.cost_limit == 2.0 and config.penalty == "imagined"
    assert replace(
        config,
        penalty="none",
        cost_limit=TINY.cost_limit,
        penalty_coefficient=TINY.penalty_coefficient,
        lagrange_multiplier_max=TINY.lagrange_multiplier_max,
    ) == Dreamer.preset("tiny")
    algorithm = SafeDreamer(config, SPEC, STATISTICS)
    metrics = algorithm.update(sequence_batch(0))
    assert "lagrange/multiplier" in metrics
    feature = torch.zeros(3, algorithm.net.feature_dim)
    assert algorithm.objectives.read.feasible(feature).tolist() == [1.0, 1.0, 1.0]


def test_released_takes_the_end_of_time_for_the_end_of_the_task() -> None:
    batch = sequence_batch(0)
    truncated = torch.zeros_like(batch.truncated)
    truncated[:, 3] = True
    batch = replace(batch, truncated=truncated, terminated=torch.zeros_like(truncated))
    for name, cont in (("tiny", 1.0), ("tiny_released", 0.0)):
        data = Fosp(preset(name), SPEC, STATISTICS).objectives.records(batch)
        assert (data.pairs.cont[:, 2] == cont).all()


def test_released_gates_nothing_and_never_learns_q_from_records() -> None:
    algorithm = Fosp(preset("tiny_released"), SPEC, STATISTICS)
    assert not algorithm.objectives.replays and algorithm.objectives.imagines
    before = algorithm.update(sequence_batch(0))
    assert before["value/reward_loss"] >= 0.0
    config = algorithm.config
    assert (config.expectile_reward, config.expectile_cost) == (0.2, 0.2)  # the mirrored 0.8


@pytest.mark.parametrize("when", ["always", "offline", "never"])
def test_q_learns_from_records_when_it_is_told_to(when: str) -> None:
    config = replace(FospConfig(), **_small_sizes(), critic_replay=when, horizon=2)
    algorithm = Fosp(config, SPEC, STATISTICS)
    found = []
    for online in (False, True):
        algorithm.objectives.online = online
        found.append(algorithm.objectives.replays)
    assert found == {"always": [True, True], "offline": [True, False], "never": [False] * 2}[when]


def _small_sizes() -> dict[str, Any]:
    return {"world_model": TINY.world_model, "hidden_dims": (8,), "batch_size": 2}


@pytest.mark.parametrize("data", ["imagined", "both"])
@pytest.mark.parametrize("goal", ["q", "lambda_return"])
def test_v_may_learn_from_imagined_pairs(data: str, goal: str) -> None:
    config = replace(
        preset("tiny"), head_input="latent", value_data=data, value_target=goal, horizon=3
    )
    algorithm = Fosp(config, SPEC, STATISTICS)
    algorithm.update(sequence_batch(0))
    rollout, _ = imagined(algorithm, sequence_batch(1))
    part = algorithm.objectives
    _, loss = part._imagined_critics("reward", rollout)
    state = rollout.feature[:-1].detach()
    critic, value = algorithm.net.critic["reward"], algorithm.net.value["reward"]
    target = (
        part.read.imagined_return(rollout, "reward")
        if goal == "lambda_return"
        else critic(state, rollout.action.detach()).amin(0)
    ).detach()
    gap = target - value(state)[0]
    weight = losses.imagination_weight(rollout.cont[:-1], config.discount_reward)
    tilt = losses.expectile_weight(gap.detach(), config.expectile_reward)
    nll = value.nll(value.raw(state), target)[0]
    torch.testing.assert_close(loss, (weight * tilt * nll).mean())
    assert float(loss.detach()) > 0.0


def test_the_score_function_is_a_weighted_log_likelihood_of_imagined_actions() -> None:
    finetune = replace(FospConfig().finetune, actor="score")
    config = replace(FospConfig(), **_small_sizes(), finetune=finetune, horizon=3, penalty="none")
    algorithm = Fosp(config, SPEC, STATISTICS)
    for seed in range(2):
        algorithm.update(sequence_batch(seed))
    algorithm.start_online()
    part, net = algorithm.objectives, algorithm.net
    rollout, _ = imagined(algorithm, sequence_batch(3))
    loss = part.actor._imagined("score", rollout, {})
    state = rollout.feature[:-1].detach()
    advantage = {
        kind: (part.read.imagined_return(rollout, kind).detach() - net.value[kind](state)[0])
        / algorithm.scale[kind].divisor
        for kind in ("reward", "cost")
    }
    u = part.read.feasible(state)
    gain = losses.online_weight(u, advantage["reward"], advantage["cost"]).detach()
    mean, std = net.actor(state)
    by_hand = gain * net.actor.log_prob(rollout.action.detach(), mean, std)
    by_hand = by_hand + config.entropy * net.actor.entropy(std)
    weight = losses.imagination_weight(rollout.cont[:-1], config.discount_reward)
    torch.testing.assert_close(loss, -(weight * by_hand).mean())


def test_the_penalty_sums_over_the_horizon_or_takes_the_mean() -> None:
    cost = {}
    for reduction in ("sum", "mean"):
        config = replace(FospConfig(), **_small_sizes(), horizon=4, penalty_reduction=reduction)
        algorithm = Fosp(config, SPEC, STATISTICS)
        cost[reduction] = algorithm.update(sequence_batch(0))["actor/cost"]
    assert cost["sum"] == pytest.approx(4 * cost["mean"], rel=1e-5) and cost["sum"] > 0.0


def test_a_fresh_policy_starts_anew_beside_the_frozen_one() -> None:
    for fresh in (False, True):
        finetune = replace(TINY.finetune, fresh=fresh)
        algorithm = Fosp(replace(TINY, finetune=finetune), SPEC, STATISTICS)
        algorithm.update(sequence_batch(0))
        algorithm.start_online()
        assert algorithm.base is not None
        new, old = algorithm.net.actor.state_dict(), algorithm.base.actor.state_dict()
        assert all(torch.equal(new[name], old[name]) for name in new) is not fresh


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_differs_from_its_size_and_trains(name: str) -> None:
    for size in SIZES:
        assert PRESETS[f"{size}_{name}"] != PRESETS[size]
    algorithm = Fosp(preset(f"tiny_{name}"), SPEC, STATISTICS)
    algorithm.update(sequence_batch(0))
    algorithm.start_online()
    metrics = algorithm.update(sequence_batch(1, origin=1))
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())


def test_an_unknown_preset_names_the_near_miss() -> None:
    with pytest.raises(UnknownNameError, match="small_without_reach"):
        preset("small_without_reech")
    for name in ("dreamer", "safedreamer", "behavior_cloning"):
        with pytest.raises(UnknownNameError, match="paper"):
            catalog.load("algorithm", name).preset("papper")


def _recorded(algorithm: Fosp, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
    """Records of a batch, and the targets of its pairs, REF's among them."""
    part, (seen, data) = algorithm.objectives, observed(algorithm, batch)
    feature = algorithm.net.feature(seen.latent, seen.embed)
    target = part.critic_targets(feature, data)
    target["reach"] = part.reach_targets(feature, data)[2]
    return data, target


def test_rewards_count_up_to_the_first_violation_only() -> None:
    batch = sequence_batch(0, batch=2, steps=6)
    mask = torch.ones_like(batch.mask)
    reward, cost = torch.zeros(2, 6), torch.zeros(2, 6)
    reward[:, 5], cost[0, 3] = 1.0, 1.0  # both arrive, the first through an obstacle
    batch = replace(
        batch, reward=reward, cost=cost, mask=mask, action_mask=mask,
        terminated=torch.zeros_like(mask),
    )  # fmt: skip
    for ends in (False, True):
        config = replace(TINY, violation_ends=ends)
        algorithm = Fosp(config, SPEC, STATISTICS)  # values start at zero: returns of records alone
        _, target = _recorded(algorithm, batch)
        back = config.discount_reward * config.lambda_
        arrives = torch.tensor([back**4, back**3, back**2, back, 1.0])
        through = arrives * torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]) if ends else arrives
        torch.testing.assert_close(target["reward"], torch.stack([through, arrives]))


def test_the_gate_goes_by_the_critic_or_by_what_was_recorded() -> None:
    batch = sequence_batch(0, batch=2, steps=6)
    mask = torch.ones_like(batch.mask)
    cost = torch.zeros(2, 6)
    cost[0, 5] = 1.0
    batch = replace(
        batch, reward=torch.zeros(2, 6), cost=cost, mask=mask, action_mask=mask,
        terminated=torch.zeros_like(mask),
    )  # fmt: skip
    for gate in ("critic", "recorded"):
        algorithm = Fosp(replace(TINY, gate=gate), SPEC, STATISTICS)
        part = algorithm.objectives
        data, target = _recorded(algorithm, batch)
        said = part.read.estimates(torch.zeros(2, 6, algorithm.net.feature_dim), data)
        weight = part.actor._weight(said, data, target, data.pairs.valid, {})
        # A critic that has learned nothing tells neither; the record says who hit something.
        assert torch.allclose(weight[0], weight[1]) == (gate == "critic")
        if gate == "recorded":
            assert (weight[0] < 0.1 * weight[1]).all()
