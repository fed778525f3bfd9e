"""What FOSP promises beyond the formulas: who trains whom, expansion, the paper's settings."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.algorithms.fosp_config import FospConfig, SelectionConfig
from safe_o2o.algorithms.fosp_policy import DecisionModule
from safe_o2o.algorithms.fosp_presets import preset
from safe_o2o.algorithms.fosp_reading import constant
from safe_o2o.algorithms.world_model import WorldModelConfig
from safe_o2o.errors import ConfigError, UnknownNameError
from safe_o2o.nets.mlp import count_parameters
from tests.synthetic import SPEC, STATISTICS, sequence_batch

PAPER_TINY = FospConfig(
    world_model=WorldModelConfig(
        depth=2, deter_dim=16, latents=4, classes=4, hidden_dim=16, head_units=16, decoder_depth=2
    ),
    hidden_dims=(16, 16),
    horizon=4,
)


def gradients(algorithm: Fosp, part: str) -> float:
    """Size of the gradient that actor, critic and REF losses send into the encoder."""
    net, batch = algorithm.net, sequence_batch(0)
    algorithm.update(batch)  # critics start at zero and send nothing at first
    part_of = algorithm.objectives
    data = part_of.records(batch)
    seen = net.world_model.observe(
        data.image, data.vector, data.action, data.is_first, algorithm.generator
    )
    feature = net.feature(seen.latent, seen.embed)
    if algorithm.config.gradient == "stop":
        feature = feature.detach()
    imagined = part_of.imagine(seen, data) if part_of.imagines else None
    target, said = part_of.critic_targets(feature, data), part_of.read.estimates(feature, data)
    _, of_state, target["reach"] = part_of.reach_targets(feature, data)
    metrics: dict[str, torch.Tensor] = {}
    loss = {
        "critic": lambda: part_of.critic_loss(said, data, target, imagined, metrics),
        "reach": lambda: part_of.reach_loss(
            said, of_state, target["reach"], data, imagined, metrics
        ),
        "actor": lambda: part_of.actor(
            part_of.actor_objective, said, feature, data, target, imagined, metrics
        ),
    }[part]()
    loss.backward()
    model = [p.grad for p in net.world_model.parameters() if p.grad is not None]
    return sum(float(g.abs().sum()) for g in model)


@pytest.mark.parametrize("part", ["critic", "reach", "actor"])
def test_paper_stops_gradients_at_the_latents_and_small_does_not(part: str) -> None:
    assert gradients(Fosp(PAPER_TINY, SPEC, STATISTICS), part) == 0.0
    assert gradients(Fosp(preset("tiny"), SPEC, STATISTICS), part) > 0.0


def test_actor_loss_trains_the_actor_alone() -> None:
    for config in (PAPER_TINY, preset("tiny")):
        algorithm = Fosp(replace(config, gradient="stop"), SPEC, STATISTICS)
        gradients(algorithm, "actor")
        net = algorithm.net
        touched = {
            name: any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
            for name, module in net.named_children()
        }
        assert touched == {"world_model": False, "actor": True, "critic": False, "value": False}


def test_paper_settings_train_offline_and_online() -> None:
    algorithm = Fosp(PAPER_TINY, SPEC, STATISTICS)
    first = algorithm.update(sequence_batch(0))
    assert {"reach/loss", "lagrange/multiplier", "model/image"} <= first.keys()
    algorithm.start_online()
    metrics = algorithm.update(sequence_batch(1, origin=1))
    assert all(torch.isfinite(torch.tensor(v)) for v in metrics.values())
    assert algorithm.step == 2 and algorithm.online_step == 1


@pytest.mark.parametrize("config", [PAPER_TINY, preset("tiny")], ids=["paper", "small"])
def test_the_frozen_policy_never_moves(config: FospConfig) -> None:
    finetune = replace(config.finetune, warmup=0)
    algorithm = Fosp(replace(config, finetune=finetune), SPEC, STATISTICS)
    algorithm.update(sequence_batch(0))
    algorithm.start_online()
    assert algorithm.base is not None
    before = copy.deepcopy(algorithm.base.state_dict())
    moving = copy.deepcopy(algorithm.net.actor.state_dict())
    for seed in range(3):
        algorithm.update(sequence_batch(seed, origin=1))
    after = algorithm.base.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    now = algorithm.net.actor.state_dict()
    assert any(not torch.equal(moving[name], now[name]) for name in moving)


def test_warm_up_fills_the_moments_and_moves_nothing() -> None:
    config = preset("tiny")
    algorithm = Fosp(replace(config, finetune=replace(config.finetune, warmup=2)), SPEC, STATISTICS)
    algorithm.update(sequence_batch(0))
    algorithm.start_online()
    before = copy.deepcopy(algorithm.net.state_dict())
    for seed in range(2):
        algorithm.update(sequence_batch(seed, origin=1))
    same = [torch.equal(before[k], v) for k, v in algorithm.net.state_dict().items()]
    assert all(same)
    algorithm.update(sequence_batch(3, origin=1))
    assert not all(torch.equal(before[k], v) for k, v in algorithm.net.state_dict().items())


def decision(rule: str, base: bool = True) -> tuple[DecisionModule, Fosp]:
    config = replace(preset("tiny"), selection=SelectionConfig(rule=rule))  # type: ignore[arg-type]
    algorithm = Fosp(config, SPEC, STATISTICS)
    other = Fosp(replace(config, seed=7), SPEC, STATISTICS).net if base else None
    return DecisionModule(algorithm.net, other, SPEC), algorithm


def test_expansion_scores_each_candidate_at_its_own_action() -> None:
    module, _ = decision("expansion")
    mean, std = torch.zeros(1, 3), torch.full((1, 3), 0.25)
    base = torch.full((1, 3), 0.5)
    noise = {"noise": torch.ones(1, 16, 3)}
    candidates = module.candidates(mean, std, base, noise)
    assert candidates.shape == (1, 2, 3)
    assert torch.equal(candidates[0, 0], torch.full((3,), 0.25))
    assert torch.equal(candidates[0, 1], base[0])


def test_expansion_chooses_with_the_probabilities_of_the_paper() -> None:
    module, _ = decision("expansion")
    q_reward = torch.tensor([[1.0, 0.8]]).expand(20_000, 2)
    q_cost = torch.tensor([[2.0, 0.5]]).expand(20_000, 2)
    noise = {"noise": torch.randn(20_000, 16, 3, generator=torch.Generator().manual_seed(0))}
    action = torch.tensor([[0.0], [1.0]]).expand(20_000, 2, 1)
    chosen = module.choose(action, q_reward, q_cost, torch.zeros_like(q_cost), noise)
    # T10: P = (0.562177, 0.437823); three standard errors are 0.0105.
    assert (chosen == 0).float().mean().item() == pytest.approx(0.562177, abs=0.0105)


def test_reach_rule_keeps_the_mean_unless_it_is_risky_and_fails_closed() -> None:
    module, _ = decision("reach")
    threshold, blend = module.selection.threshold, module.selection.blend
    mean_risk = torch.tensor([0.0, threshold, threshold + blend / 2, threshold + blend, 0.9])
    risk = torch.stack([mean_risk, torch.zeros(5), torch.full((5,), 0.9)], 1)
    action = torch.tensor([[0.0], [1.0], [-1.0]]).expand(5, 3, 1)
    none = torch.zeros(5, 3)
    chosen = module.choose(action, none, none, risk, {})[:, 0]
    assert chosen[:2].tolist() == [0.0, 0.0]
    assert chosen[2].item() == pytest.approx(0.5, abs=0.01)
    assert chosen[3:].tolist() == pytest.approx([1.0, 1.0], abs=0.02)
    risk = torch.tensor([[float("nan"), 0.1, 0.1]])
    unknown = module.choose(action[:1], none[:1], none[:1], risk, {})
    assert not torch.isfinite(unknown).any()  # the runtime refuses an action that is no number


@pytest.mark.parametrize("rule", ["reach", "mean"])
def test_exploration_moves_the_policys_own_action_and_nothing_else(rule: str) -> None:
    module, algorithm = decision(rule)
    mean, std = torch.zeros(1, 3), torch.full((1, 3), 0.25)
    base, noise = torch.full((1, 3), 0.5), {"noise": torch.ones(1, 16, 3)}
    still = module.candidates(mean, std, base, noise | {"explore": torch.zeros(1, 3)})
    moved = module.candidates(mean, std, base, noise | {"explore": torch.full((1, 3), 2.0)})
    assert torch.equal(still[:, 0], mean)
    assert torch.equal(moved[:, 0], torch.full((1, 3), 0.5))
    assert torch.equal(still[:, 1:], moved[:, 1:])
    assert module.deterministic_noise["explore"] == "zero"
    policy, batch = algorithm.policy, sequence_batch(0, batch=1)
    obs = {name: array[:, 0].numpy() for name, array in batch.obs.items()}
    carry = policy.initial_carry()
    fixed = [policy.act(obs, carry)[0] for _ in range(2)]
    drawn = [policy.act(obs, carry, deterministic=False)[0] for _ in range(2)]
    assert torch.equal(*fixed) and not torch.equal(*drawn)


def test_reach_rule_stays_in_bounds_where_rounding_does_not() -> None:
    module, _ = decision("reach")
    generator = torch.Generator().manual_seed(0)
    risk = 0.9 + 0.01 * torch.rand(5000, 33, generator=generator)
    weight = torch.softmax(-risk / module.selection.risk_temperature, -1)
    assert weight.sum(-1).max().item() > 1.0  # else this asks nothing
    none, noise = torch.zeros(5000, 33), dict[str, torch.Tensor]()
    for bound in (1.0, -1.0):
        chosen = module.choose(torch.full((5000, 33, 3), bound), none, none, risk, noise)
        assert chosen.abs().max().item() <= 1.0 and (bound * chosen).min().item() > 0.999


def test_reach_rule_does_not_jump() -> None:
    module, _ = decision("reach")
    generator = torch.Generator().manual_seed(0)
    risk = torch.rand(5000, 17, generator=generator)
    action = torch.rand(5000, 17, 3, generator=generator) * 2 - 1
    none, noise = torch.zeros(5000, 17), dict[str, torch.Tensor]()
    before = module.choose(action, none, none, risk, noise)
    after = module.choose(action, none, none, risk + 1e-7 * torch.randn(risk.shape), noise)
    assert (before - after).abs().max().item() < 5e-5


def test_decision_resets_itself_at_the_start_of_an_episode() -> None:
    module, _ = decision("reach", base=False)
    inputs = list(module.example_inputs())
    clean = module(*inputs)
    names = module.input_names
    for name in ("deter", "stoch", "previous_action"):
        inputs[names.index(name)] = torch.full_like(inputs[names.index(name)], 3.0)
    dirty = module(*inputs)
    assert torch.equal(clean[0], dirty[0])
    inputs[names.index("started")] = torch.ones(1, 1)
    assert not torch.equal(clean[0], module(*inputs)[0])


def test_constant_lets_gradients_through_to_inputs_only() -> None:
    layer, x = torch.nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    with constant(layer):
        y = layer(x)
    y.sum().backward()
    assert x.grad is not None and layer.weight.grad is None
    assert all(p.requires_grad for p in layer.parameters())


def test_sizes_of_the_paper() -> None:
    """Encoder and RSSM counts of fosp.md 2.1 that do not depend on the camera of our task."""
    net = Fosp(preset("paper"), SPEC, STATISTICS).net
    rssm = net.world_model.rssm
    assert count_parameters(rssm.gru) == 1_575_936
    assert count_parameters(rssm.img_out) == 263_168
    assert count_parameters(rssm.img_stats) == 1_181_952
    assert count_parameters(net.world_model.reward) == 1_836_799
    assert count_parameters(net.value["reward"]) == 1_836_799


def test_bad_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="expectile_cost"):
        replace(preset("small"), expectile_cost=1.0)
    with pytest.raises(ConfigError, match="head_input"):
        replace(preset("paper"), head_input="stoch_embed")
    with pytest.raises(UnknownNameError, match="small"):
        preset("smal")


def test_filtering_a_sequence_at_once_is_filtering_it_step_by_step() -> None:
    """`observe` computes in batches what the deployed policy computes record by record."""
    from safe_o2o.nets.distribution import categorical_mode
    from safe_o2o.nets.rssm import RSSM, Latent

    torch.manual_seed(0)
    rssm = RSSM(embed_dim=7, action_dim=3, deter_dim=12, latents=3, classes=5, hidden_dim=11)
    with torch.no_grad():
        rssm.initial_deter.uniform_(-1.0, 1.0)
        embed, action = torch.randn(4, 6, 7), 2.0 * torch.randn(4, 6, 3)
        is_first = torch.zeros(4, 6)
        is_first[1, 3] = is_first[2, 1] = 1.0  # an episode may begin within a window
        latent, post, prior = rssm.observe(embed, action, is_first, sample=False)
        state, before = Latent(torch.zeros(4, 12), torch.zeros(4, 15)), torch.zeros(4, 3)
        for t in range(6):
            first = torch.ones(4, 1) if t == 0 else is_first[:, t : t + 1]
            state, before = rssm.reset(state, before, first)
            deter = rssm.advance(state, before)
            log_p = rssm.posterior_log_p(deter, embed[:, t])
            state, before = Latent(deter, categorical_mode(log_p).flatten(-2)), action[:, t]
            torch.testing.assert_close(latent.deter[:, t], deter)
            torch.testing.assert_close(latent.stoch[:, t], state.stoch)
            torch.testing.assert_close(post[:, t], log_p)
            torch.testing.assert_close(prior[:, t], rssm.prior_log_p(deter))


def test_sampled_latents_follow_their_probabilities() -> None:
    from safe_o2o.nets.distribution import gumbel_noise, straight_through_sample

    log_p = torch.log(torch.tensor([0.7, 0.2, 0.1])).expand(20_000, 3)
    noise = gumbel_noise(log_p.shape, torch.Generator().manual_seed(0), log_p)
    share = straight_through_sample(log_p, noise).mean(0)
    # Three standard deviations of 20,000 draws are below 0.01.
    torch.testing.assert_close(share, torch.tensor([0.7, 0.2, 0.1]), atol=0.01, rtol=0.0)
