"""Imagination by the step that is written out by hand, against autograd through plain layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from safe_o2o.algorithms import losses
from safe_o2o.algorithms.baselines import Dreamer
from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.fosp_presets import dreamer
from safe_o2o.algorithms.world_model import WorldModelConfig
from safe_o2o.nets.distribution import TwoHot
from safe_o2o.nets.mlp import LAYER_NORM_EPS, NormLinear, constant
from safe_o2o.nets.rssm import RSSM, Latent, NormGRUCell
from safe_o2o.nets.rssm_step import choose
from safe_o2o.spaces import ObservationSpec, Spec
from tests.synthetic import SPEC, STATISTICS, sequence_batch

N, A, L, C = 6, 2, 3, 4


def _plain_step(model: RSSM, latent: Latent, action: Tensor, uniform: Tensor) -> Latent:
    """The step by plain functions; which class a draw takes is tested by itself."""

    def layer(made: NormLinear | NormGRUCell, x: Tensor) -> Tensor:
        scale, shift = made.norm.weight, made.norm.bias
        return nn.functional.layer_norm(made.linear(x), scale.shape, scale, shift, LAYER_NORM_EPS)

    action = action / action.abs().clamp(min=1.0).detach()
    x = nn.functional.silu(layer(model.img_in, torch.cat([latent.stoch, action], -1)))
    gates = layer(model.gru, torch.cat([latent.deter, x], -1))
    deter = NormGRUCell.gate(gates, latent.deter)
    logits = model.img_stats(nn.functional.silu(layer(model.img_out, deter)))
    share = torch.softmax(logits.unflatten(-1, (model.latents, model.classes)), -1)
    hot = nn.functional.one_hot(choose(share, uniform, model.mix), model.classes)
    p = (1.0 - model.mix) * share + model.mix / model.classes
    return Latent(deter, (hot + p - p.detach()).flatten(-2))


def _model() -> tuple[RSSM, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = RSSM(5, A, deter_dim=7, latents=L, classes=C, hidden_dim=8, mix=0.05).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.6)
    given = {
        "deter": torch.randn(N, 7, dtype=torch.float64),
        "stoch": nn.functional.one_hot(torch.randint(0, C, (N, L)), C).double().flatten(1),
        "action": 1.5 * torch.randn(N, A, dtype=torch.float64),
    }
    return model, {name: x.requires_grad_() for name, x in given.items()}


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_a_step_has_the_gradients_of_autograd(used: tuple[int, ...]) -> None:
    model, x = _model()
    uniform = torch.rand(N, L, dtype=torch.float64)
    latent = Latent(x["deter"], x["stoch"])
    want = _plain_step(model, latent, x["action"], uniform)
    got = model.img_step(latent, x["action"], uniform, model.step_weights(torch.float64))
    generator = torch.Generator().manual_seed(1)
    weight = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in want]
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
    found, expected = (
        torch.autograd.grad(sum((out[i] * weight[i]).sum() for i in used), list(x.values()))
        for out in (got, want)
    )
    for name, a, b in zip(x, expected, found, strict=True):
        assert a.abs().max() > 1e-6, name  # nothing is compared with nothing
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-11, msg=name)


def test_a_step_in_bf16_moves_the_gradients_by_little() -> None:
    model, x = _model()
    model = model.float()
    given = [tensor.detach().float().requires_grad_() for tensor in x.values()]
    uniform, grads = torch.rand(N, L), []
    for dtype in (torch.float32, torch.bfloat16):
        latent = Latent(given[0], given[1].to(dtype))
        deter, stoch = model.img_step(latent, given[2], uniform, model.step_weights(dtype))
        assert deter.dtype == torch.float32 and stoch.dtype == dtype
        total = (deter * torch.arange(7.0)).sum() + (stoch.float() * torch.arange(12.0)).sum()
        grads.append(torch.autograd.grad(total, given))
    for exact, rough in zip(*grads, strict=True):
        assert not torch.equal(exact, rough)
        assert nn.functional.cosine_similarity(exact.flatten(), rough.flatten(), 0) > 0.98


@pytest.mark.parametrize("mix", [0.0, 0.1])
def test_classes_are_drawn_as_often_as_their_probabilities_say(mix: float) -> None:
    """Every number of a fine grid in [0, 1) once: the shares are the probabilities themselves."""
    count = 100_000
    p = torch.tensor([0.6, 0.0, 0.25, 0.15], dtype=torch.float64)
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    share = torch.bincount(choose(p.expand(count, 4), grid, mix), minlength=4) / count
    expected = (1.0 - mix) * p + mix / 4
    torch.testing.assert_close(share.double(), expected, atol=5 / count, rtol=0.0)


def test_the_last_class_is_taken_where_probabilities_round_to_less_than_one() -> None:
    p = torch.tensor([0.5, 0.4999])
    assert int(choose(p, torch.tensor(0.99999), 0.0)) == 1


def _small(**changes: object) -> FospConfig:
    sizes = WorldModelConfig(
        depth=2, deter_dim=12, latents=4, classes=4, hidden_dim=16, head_units=16, decoder_depth=2,
        precision="fp32",
    )  # fmt: skip
    return replace(FospConfig(world_model=sizes, hidden_dims=(16, 16), horizon=4), **changes)  # type: ignore[arg-type]


def test_the_actor_climbs_imagined_returns_as_by_plain_autograd() -> None:
    algorithm = Dreamer(dreamer(_small(entropy=0.01)), SPEC, STATISTICS)
    for seed in range(2):
        algorithm.update(sequence_batch(seed))
    net, part, config = algorithm.net, algorithm.objectives, algorithm.config
    with torch.no_grad():  # heads start at zero, from where no gradient comes
        for p in (*net.world_model.reward.parameters(), *net.value.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    data = part.records(sequence_batch(5))
    seen = net.world_model.observe(data.image, data.vector, data.action, data.is_first)
    draws = torch.Generator()
    draws.set_state(algorithm.generator.get_state())
    loss = part.actor._imagined("reward", part.imagine(seen, data), {})
    found = torch.autograd.grad(loss, list(net.actor.parameters()))

    latent = Latent(*(x.flatten(0, 1).detach() for x in seen.latent))
    model, size = net.world_model, len(latent.deter)
    uniform = torch.rand(config.horizon, size, 4, generator=draws)
    noise = torch.randn(config.horizon, size, 3, generator=draws)
    features, entropy = [latent.feature], []
    with constant(model, net.value):
        for h in range(config.horizon):
            mean, std = net.actor(features[-1].detach())
            action = mean + std * noise[h]
            latent = _plain_step(model.rssm, latent, action, uniform[h])
            features.append(latent.feature)
            entropy.append(net.actor.entropy(std))
        feature = torch.stack(features)
        cont = (model.cont(feature)[..., 0] > 0).float().detach()
        cont[0] = 1.0 - data.terminated.flatten()
        value = net.value["reward"](feature)[0]
        returns = losses.imagined_lambda_return(
            model.reward.predict(feature), value, cont, config.discount_reward, config.lambda_
        )
    gain = (returns - value[:-1].detach()) / algorithm.scale["reward"].divisor
    weight = losses.imagination_weight(cont[:-1], config.discount_reward)
    by_hand = -(weight * (gain + config.entropy * torch.stack(entropy))).mean()
    torch.testing.assert_close(loss, by_hand)
    expected = torch.autograd.grad(by_hand, list(net.actor.parameters()))
    for a, b in zip(expected, found, strict=True):
        assert a.any()
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5 * float(a.abs().max()))


@pytest.mark.parametrize(
    ("phase", "penalty", "wanted"),
    [
        ("weighted", "none", set()),
        ("weighted", "imagined", {"cost"}),
        ("reward", "none", {"reward"}),
        ("score", "none", set()),
        ("imagined", "none", {"reward", "cost"}),
    ],
)
def test_only_what_trains_the_actor_is_differentiable(
    phase: str, penalty: str, wanted: set[str]
) -> None:
    finetune = replace(FospConfig().finetune, actor=phase)
    algorithm = Fosp(_small(finetune=finetune, penalty=penalty), SPEC, STATISTICS)
    algorithm.start_online()
    part = algorithm.objectives
    data = part.records(sequence_batch(0))
    seen = algorithm.net.world_model.observe(data.image, data.vector, data.action, data.is_first)
    rollout = part.imagine(seen, data)
    assert {name for name, x in rollout.x.items() if x.requires_grad} == wanted
    assert rollout.feature.requires_grad == bool(wanted)
    assert rollout.mean.requires_grad == (bool(wanted) or phase == "score")


def test_cross_entropy_of_two_bins_is_that_of_the_whole_target() -> None:
    head = TwoHot(31, -5.0, 5.0)
    generator = torch.Generator().manual_seed(0)
    logits = 30.0 * torch.randn(2, 9, 31, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    x = torch.tensor([0.0, 1.0, -7.3, 4.0, 250.0, 1e9, -1e9, 0.3, 0.0], dtype=torch.float64)
    got = head.nll(logits, x.expand(2, 9))
    want = -(head.encode(x) * torch.log_softmax(logits, -1)).sum(-1)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    weight = torch.linspace(-1.0, 1.0, 18, dtype=torch.float64).view(2, 9)
    found, expected = (torch.autograd.grad((y * weight).sum(), logits)[0] for y in (got, want))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_robot_without_vectors_is_trained_on_its_images() -> None:
    images = {"image": SPEC.observation.arrays["image"]}
    algorithm = Fosp(_small(), Spec(ObservationSpec(images), SPEC.action))
    batch = sequence_batch(0)
    batch = replace(batch, obs={"image": batch.obs["image"]})
    metrics = algorithm.update(batch)
    assert "model/vector" not in metrics and metrics["model/image"] > 0.0
    carry = algorithm.policy.initial_carry(4)
    action, _ = algorithm.policy.act({"image": batch.obs["image"][:, 0]}, carry)
    assert action.shape == (4, 3) and bool(torch.isfinite(action).all())
