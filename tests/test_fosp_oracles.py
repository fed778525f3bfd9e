"""The numbers of fosp.md section 9 (T1 to T16, T18, T19), one test an oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from safe_o2o.algorithms import losses
from safe_o2o.algorithms.duals import AugmentedLagrangian
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.errors import ConfigError
from safe_o2o.nets.critic import Critic, NumberHead
from safe_o2o.nets.distribution import (
    TwoHot,
    categorical_kl,
    normal_entropy,
    normal_log_prob,
    symexp,
    symlog,
    unimix,
)
from safe_o2o.nets.normalizer import PercentileNormalizer
from safe_o2o.nets.policy import GaussianActor
from safe_o2o.nets.rssm import NormGRUCell

GAMMA = 1.0 - 1.0 / 333.0


@pytest.mark.parametrize("shift", [losses.shift_by_blocks, losses.shift_by_index])
def test_a_shift_moves_every_frame_of_a_window_and_repeats_the_edge(shift: Any) -> None:
    image = torch.randint(0, 256, (6, 3, 9, 8, 2), dtype=torch.uint8)
    offset = torch.tensor([[0, 2, -2, 1, 0, -1], [0, -1, 2, 0, -2, 1]])
    moved = shift(image, offset).numpy()
    assert moved.shape == tuple(image.shape)
    for window, out, (dy, dx) in zip(image.numpy(), moved, offset.T.tolist(), strict=True):
        wide = np.pad(window, [(0, 0), (2, 2), (2, 2), (0, 0)], mode="edge")
        np.testing.assert_array_equal(out, wide[:, 2 + dy : 11 + dy, 2 + dx : 10 + dx])


def test_other_pure_colours_leave_greys_and_change_the_rest_as_their_share_of_them() -> None:
    image = torch.rand(3, 2, 6, 4, 5) - 0.5  # two cameras
    image[:, :, :, 0, 0] = 0.04  # grey
    same = losses.pure_colours(image).expand(3, 6, 3)
    torch.testing.assert_close(losses.repaint(image, same), image, atol=1e-6, rtol=0)
    palette = torch.rand(3, 6, 3)
    found = losses.repaint(image, palette)
    torch.testing.assert_close(found[:, :, :, 0, 0], image[:, :, :, 0, 0], atol=1e-6, rtol=0)
    # A dark green beside a red: the green becomes yellow, the red stays.
    pair = torch.tensor([[0.1, 0.6, 0.2], [0.85, 0.1, 0.1]]).T.reshape(1, 1, 3, 1, 2) - 0.5
    palette = losses.pure_colours(pair)[None].clone()
    palette[:, 1] = torch.tensor([1.75, 1.5, 0.0])
    green, red = (losses.repaint(pair, palette) + 0.5).reshape(3, 2).unbind(1)
    # 0.1 white + 0.1 cyan + 0.4 of what green became
    torch.testing.assert_close(green, torch.tensor([0.8, 0.8, 0.2]))
    torch.testing.assert_close(red, torch.tensor([0.85, 0.1, 0.1]))


@pytest.mark.parametrize("share", (-0.1, 1.1, math.nan))
def test_the_share_of_other_colours_is_a_probability(share: float) -> None:
    with pytest.raises(ConfigError, match="recolour"):
        FospConfig(recolour=share)


def test_each_window_has_colours_of_its_own() -> None:
    image = torch.rand(64, 1, 3, 2, 2).expand(64, 3, 3, 2, 2) - 0.5
    generator = torch.Generator().manual_seed(0)
    found = losses.random_colours(image, 0.5, generator)
    assert all(torch.equal(found[:, 0], found[:, t]) for t in (1, 2))
    assert found.abs().max() <= 0.5
    unlike = (found - image).abs().amax((1, 2, 3, 4)) > 1e-3
    assert 0.9 < unlike.float().mean() <= 1.0
    assert losses.random_colours(image, 0.0) is image


def test_a_colour_that_means_something_stays() -> None:
    red = torch.tensor([0.8, 0.1, 0.1]) - 0.5
    green = torch.tensor([0.1, 0.6, 0.2]) - 0.5
    image = torch.stack([red, green], 1).reshape(1, 1, 3, 1, 2).expand(64, 2, 3, 1, 2)
    found = losses.random_colours(image, 0.5, torch.Generator().manual_seed(0), ("red",))
    torch.testing.assert_close(found[..., 0], image[..., 0])
    assert ((found - image)[..., 1].abs().amax((1, 2, 3)) > 1e-3).float().mean() > 0.4
    with pytest.raises(ConfigError, match="orange"):
        FospConfig(recolour_keep=("orange",))


def double(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_t1_symlog() -> None:
    x = double(1.0, -3.0, 1000.0, 0.25)
    expected = double(0.693147, -1.386294, 6.908755, 0.223144)
    assert torch.allclose(symlog(x), expected, atol=1e-6)
    assert symexp(double(-1.5)).item() == pytest.approx(-3.481689, abs=1e-6)
    assert symexp(double(20.0)).item() == pytest.approx(4.851652e8, rel=1e-6)
    assert torch.allclose(symexp(symlog(x)), x, rtol=1e-9)


@pytest.mark.parametrize(
    ("number", "bins"),
    [
        (0.0, {127: 1.0}),
        (1.0, {131: 0.598515, 132: 0.401485}),
        (-7.3, {113: 0.438223, 114: 0.561777}),
        (4.0, {137: 0.780069, 138: 0.219931}),
        (250.0, {162: 0.913374, 163: 0.086626}),
    ],
)
def test_t2_two_hot(number: float, bins: dict[int, float]) -> None:
    two_hot = TwoHot()
    assert two_hot.width == pytest.approx(0.1574803, abs=1e-7)
    code = two_hot.encode(double(number))[0]
    assert code.sum().item() == pytest.approx(1.0)
    for index, weight in bins.items():
        assert code[index].item() == pytest.approx(weight, abs=2e-6)
    decoded = two_hot.decode(torch.log(code.float() + 1e-12))
    assert decoded.item() == pytest.approx(number, abs=1e-3 * max(1.0, abs(number)))


def test_t2_two_hot_ends_and_order_of_decoding() -> None:
    two_hot = TwoHot()
    assert two_hot.nll(torch.zeros(1, 255), torch.tensor([3.3])).item() == pytest.approx(
        math.log(255), abs=1e-5
    )
    assert two_hot.encode(torch.tensor([1e12]))[0, 254] == 1.0
    logits = torch.full((1, 255), -1e9)
    logits[0, 127] = logits[0, 254] = 0.0
    # The mean bin is decoded; decoding first would give 2.4258e8.
    assert two_hot.decode(logits).item() == pytest.approx(22025.466, rel=1e-4)


def test_t3_unimix() -> None:
    logits = torch.full((1, 1, 48), -1e9, dtype=torch.float64)
    logits[..., 0] = 0.0
    log_p = unimix(logits, 0.01)
    assert log_p.exp().min().item() == pytest.approx(2.083333e-4, rel=1e-6)
    assert log_p.exp().max().item() == pytest.approx(0.9902083, rel=1e-6)
    uniform = torch.full_like(log_p, -math.log(48))
    assert categorical_kl(log_p, uniform).item() == pytest.approx(3.778460, abs=1e-6)
    many = log_p.expand(1, 48, 48)
    assert categorical_kl(many, uniform.expand(1, 48, 48)).item() == pytest.approx(
        181.366, abs=1e-3
    )


def test_t4_kl_balance_and_free_nats() -> None:
    post = torch.log(double(0.7, 0.3)).expand(48, 2).unsqueeze(0)
    prior = torch.log(double(0.5, 0.5)).expand(48, 2).unsqueeze(0)
    loss, plain = losses.kl_loss(post, prior, 1.0, 0.5, 0.1)
    assert plain.item() == pytest.approx(48 * 0.0822829, abs=1e-5)
    assert loss.item() == pytest.approx(2.369747, abs=1e-6)

    same = post.clone().requires_grad_()
    twin = post.clone().requires_grad_()
    loss, _ = losses.kl_loss(same, twin, 1.0, 0.5, 0.1)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.6)
    assert same.grad is not None and not same.grad.any()
    assert twin.grad is not None and not twin.grad.any()


def test_t4_dyn_trains_the_prior_only_and_rep_the_posterior_only() -> None:
    for dyn, rep, trained in ((0.5, 0.0, "prior"), (0.0, 0.1, "post")):
        leaf = {
            "post": torch.log(double(0.9, 0.1)).repeat(48, 1).unsqueeze(0).requires_grad_(),
            "prior": torch.log(double(0.5, 0.5)).repeat(48, 1).unsqueeze(0).requires_grad_(),
        }
        loss, _ = losses.kl_loss(leaf["post"], leaf["prior"], 1.0, dyn, rep)
        loss.sum().backward()
        for name, tensor in leaf.items():
            assert tensor.grad is not None
            assert bool(tensor.grad.any()) == (name == trained)


def test_t5_gru_gate() -> None:
    deter = torch.rand(3, 8, dtype=torch.float64)
    after = NormGRUCell.gate(torch.zeros(3, 24, dtype=torch.float64), deter)
    assert torch.allclose(after, 0.731059 * deter, atol=1e-6)


def lambda_return(reward: Tensor, value: Tensor, cont: Tensor) -> Tensor:
    stack = [x.unsqueeze(1) for x in (reward, value, cont)]
    return losses.imagined_lambda_return(*stack, GAMMA, 0.95)[:, 0]


def test_t6_lambda_return() -> None:
    reward, value = double(99.0, 1.0, 0.0, 2.0), double(9.0, 0.5, 1.0, -0.5)
    alive = torch.ones(4, dtype=torch.float64)
    assert torch.allclose(
        lambda_return(reward, value, alive), double(2.419119, 1.471993, 1.501502), atol=1e-6
    )
    dead = double(1.0, 1.0, 0.0, 1.0)
    assert torch.allclose(
        lambda_return(reward, value, dead), double(1.024925, 0.0, 1.501502), atol=1e-6
    )
    other = value.clone()
    other[0] = -1e6
    assert torch.equal(lambda_return(reward, other, alive), lambda_return(reward, value, alive))
    ones, steady = torch.ones(4, dtype=torch.float64), torch.full((4,), 333.0, dtype=torch.float64)
    assert torch.allclose(lambda_return(ones, steady, ones), steady[:3], atol=1e-9)
    weight = losses.imagination_weight(double(1.0, 1.0, 0.0, 1.0).unsqueeze(1), GAMMA)[:, 0]
    assert torch.allclose(weight, double(1.0, 0.996997, 0.0, 0.0), atol=1e-6)


def test_t6_recorded_return_equals_the_imagined_one_on_the_same_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    reward, value = torch.rand(2, 3, 7, generator=generator, dtype=torch.float64)
    is_first, terminated = torch.zeros(3, 7), torch.zeros(3, 7)
    is_first[:, 0] = 1
    pairs = losses.transition_pairs(is_first, terminated, torch.ones(3, 7))
    recorded = losses.recorded_lambda_return(reward, pairs, value, 0.97, 0.9)
    imagined = losses.imagined_lambda_return(
        reward.T, value.T, torch.ones(7, 3, dtype=torch.float64), 0.97, 0.9
    )
    assert torch.allclose(recorded, imagined.T, atol=1e-12)


def minimise_expectile(samples: list[float], expectile: float) -> float:
    """Closed form: v with sum of weighted residuals zero, found by bisection."""
    q = np.asarray(samples)
    low, high = q.min(), q.max()
    for _ in range(200):
        v = 0.5 * (low + high)
        pull = np.sum(np.where(q < v, 1.0 - expectile, expectile) * (q - v))
        low, high = (v, high) if pull > 0 else (low, v)
    return float(0.5 * (low + high))


@pytest.mark.parametrize(
    ("samples", "expectile", "value"),
    [
        ([0.0, 1.0], 0.8, 0.8),
        ([0.0, 1.0], 0.2, 0.2),
        ([0.0, 1.0, 4.0], 0.5, 1.666667),
        ([0.0, 1.0, 4.0], 0.7, 2.384615),
        ([0.0, 1.0, 4.0], 0.8, 2.833333),
        ([0.0, 1.0, 4.0], 0.2, 0.833333),
    ],
)
def test_t7_expectile(samples: list[float], expectile: float, value: float) -> None:
    assert minimise_expectile(samples, expectile) == pytest.approx(value, abs=1e-6)
    v = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    losses.expectile_loss(double(*samples) - v, expectile).mean().backward()
    assert v.grad is not None and abs(v.grad.item()) < 1e-5


def test_t7_expectile_gradient_points_up() -> None:
    v = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    loss = losses.expectile_loss(double(0.0, 1.0, 4.0) - v, 0.8).mean()
    loss.backward()
    assert loss.item() == pytest.approx(2.466667, abs=1e-6)
    assert v.grad is not None and v.grad.item() == pytest.approx(-1.466667, abs=1e-6)


def test_t7b_expectile_through_the_two_hot_likelihood_is_not_mirrored() -> None:
    head = NumberHead(1, [], "two_hot")
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    x, q = torch.ones(2, 1), torch.tensor([0.0, 4.0])
    for _ in range(1500):
        raw = head(x)
        weight = losses.expectile_weight(q - head.decode(raw).detach(), 0.8)
        loss = (weight * head.nll(raw, q)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    value = head.predict(x)[0].item()
    assert value == pytest.approx(2.62, abs=0.05)  # mirrored weights end at 0.379


def reach_fixed_point(transition: np.ndarray, violation: np.ndarray, discount: float) -> Tensor:
    p = torch.zeros(len(violation), dtype=torch.float64)
    matrix = torch.from_numpy(transition)
    for _ in range(5000):
        p = losses.reach_target(torch.from_numpy(violation), matrix @ p, discount)
    return p


def test_t8_reach_fixed_points() -> None:
    chain = np.zeros((4, 4))
    chain[0, 1] = chain[1, 2] = chain[2, 3] = chain[3, 3] = 1.0
    p = reach_fixed_point(chain, np.array([0.0, 0.0, 1.0, 0.0]), 0.99)
    assert torch.allclose(p, double(0.9801, 0.99, 1.0, 0.0), atol=1e-9)

    fork = np.array([[0.0, 0.3, 0.7], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert reach_fixed_point(fork, np.array([0.0, 1.0, 0.0]), 0.99)[0].item() == pytest.approx(
        0.297
    )
    loop = np.array([[0.9, 0.1], [0.0, 1.0]])
    p = reach_fixed_point(loop, np.array([0.0, 1.0]), 0.99)
    assert p[0].item() == pytest.approx(0.908257, abs=1e-6)
    assert reach_fixed_point(loop, np.array([0.0, 1.0]), 1.0)[0].item() == pytest.approx(1.0)

    five = np.zeros((5, 5))
    five[0, 1] = five[0, 2] = 0.5
    five[1, 2], five[1, 3] = 0.8, 0.2
    five[2, 4] = five[3, 4] = five[4, 4] = 1.0
    p = reach_fixed_point(five, np.array([0.0, 0.0, 0.0, 1.0, 0.0]), 0.99)
    assert torch.allclose(p, double(0.09801, 0.198, 0.0, 1.0, 0.0), atol=1e-9)


def test_t8_reach_rollout_and_monotonicity() -> None:
    violation, last = double(0, 0, 0, 1, 0).unsqueeze(1), double(0.2)
    p = losses.imagined_reach_target(violation, last, 0.99)[:, 0]
    # The last state bootstraps with its own prediction, so the list of the spec starts one later.
    expected = double(0.970299, 0.9801, 0.99, 1.0, 0.2)
    assert torch.allclose(p, expected, atol=1e-9)
    quiet = losses.imagined_reach_target(torch.zeros(6, 1, dtype=torch.float64), last, 0.99)[:, 0]
    assert torch.allclose(
        quiet[:5], double(0.190198, 0.192119, 0.194060, 0.196020, 0.198), atol=1e-6
    )
    for flipped in range(5):
        other = violation.clone()
        other[flipped] = 1.0
        change = losses.imagined_reach_target(other, last, 0.99)[:, 0] - p
        assert (change[: flipped + 1] >= 0).all() and not change[flipped + 1 :].any()


def test_t9_augmented_lagrangian() -> None:
    def state(dual: AugmentedLagrangian) -> tuple[float, float]:
        return dual.lagrange_multiplier.item(), dual.penalty.item()

    dual = AugmentedLagrangian(0.0, 1e-6, 5e-9, 1e-5)
    g = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    phi = dual(g)
    phi.backward()
    assert phi.item() == pytest.approx(1.025e-5, rel=1e-9)
    assert g.grad is not None and g.grad.item() == pytest.approx(1.05e-6, rel=1e-9)
    dual.update(g.detach())
    assert state(dual) == pytest.approx((1.05e-6, 5.00005e-9), rel=1e-9)

    dual = AugmentedLagrangian(0.0, 1e-6, 5e-9, 1e-5)
    g = torch.tensor(-1000.0, dtype=torch.float64, requires_grad=True)
    phi = dual(g)
    phi.backward()
    assert phi.item() == pytest.approx(-1e-4, rel=1e-9)
    assert g.grad is not None and g.grad.item() == 0.0
    dual.update(g.detach())
    assert state(dual)[0] == 0.0

    for cost, value, multiplier in ((2.0, 1.2, 0.7), (-6.0, -1.25, 0.0)):
        dual = AugmentedLagrangian(0.0, 0.5, 0.1)
        assert dual(double(cost)[0]).item() == pytest.approx(value)
        dual.update(double(cost)[0])
        assert state(dual)[0] == pytest.approx(multiplier)


def test_t9_penalty_growth() -> None:
    for updates, value in ((1e5, 1.3591e-8), (5e5, 7.4205e-7), (1e6, 1.1013e-4)):
        assert 5e-9 * (1 + 1e-5) ** updates == pytest.approx(value, rel=1e-4)
    dual = AugmentedLagrangian(0.0, 1e-6, 5e-9, 1e-5)
    for _ in range(1000):
        dual.update(torch.zeros(()))
    assert dual.penalty.item() == pytest.approx(5e-9 * (1 + 1e-5) ** 1000, rel=1e-9)
    dual = AugmentedLagrangian(0.0, 0.0, 0.9999999, 1e-5)
    dual.update(torch.zeros(()))
    assert dual.penalty.item() == 1.0


def test_t10_expansion() -> None:
    q_reward, q_cost = double(1.0, 0.8), double(2.0, 0.5)
    score = losses.expansion_log_weight(q_reward, q_cost, 0.1, 5.0)
    assert torch.allclose(score / 5.0, double(0.80, 0.75))
    p = torch.softmax(score, -1)
    assert torch.allclose(p, double(0.562177, 0.437823), atol=1e-6)
    plain = torch.softmax(losses.expansion_log_weight(q_reward, q_cost, 0.0, 5.0), -1)
    assert torch.allclose(plain, double(0.731059, 0.268941), atol=1e-6)
    swapped = torch.softmax(
        losses.expansion_log_weight(q_reward.flip(0), q_cost.flip(0), 0.1, 5.0), -1
    )
    assert torch.allclose(swapped, p.flip(0))


def test_t11_weights() -> None:
    u, reward, cost = double(0.9), double(0.5), double(0.2)
    assert losses.offline_weight(u, reward, cost).item() == pytest.approx(1.565722, abs=1e-6)
    assert losses.online_weight(u, reward, cost).item() == pytest.approx(0.43)
    one, zero = double(1.0), double(0.0)
    assert losses.offline_weight(one, reward, cost) == torch.exp(reward)
    assert losses.offline_weight(zero, reward, cost) == torch.exp(-cost)
    assert losses.offline_weight(u, reward, cost - 0.1) > losses.offline_weight(u, reward, cost)


def test_t12_actor() -> None:
    mean, std = GaussianActor.moments(double(0.3), double(0.0))
    assert mean.item() == pytest.approx(0.291313, abs=1e-6)
    assert std.item() == pytest.approx(0.892717, abs=1e-6)
    assert normal_log_prob(double(0.5), mean, std).item() == pytest.approx(-0.832777, abs=1e-6)
    assert normal_entropy(double(0.1)).item() == pytest.approx(-0.883647, abs=1e-6)
    assert normal_entropy(double(1.0)).item() == pytest.approx(1.418939, abs=1e-6)


def test_t13_percentile_normalizer() -> None:
    scale = PercentileNormalizer()
    # 5th and 95th percentile of this line are exactly -1 and 9.
    x = torch.linspace(-1 - 10 / 18, 9 + 10 / 18, 10001)
    for _ in range(3):
        scale.update(x)
    assert scale.low.item() == pytest.approx(-0.029701, abs=1e-5)
    assert scale.high.item() == pytest.approx(0.267309, abs=1e-5)
    assert scale.divisor.item() == 1.0
    for _ in range(297):
        scale.update(x)
    assert scale.low.item() == pytest.approx(-0.950959, abs=1e-4)
    assert scale.high.item() == pytest.approx(8.558632, abs=1e-3)
    assert scale.divisor.item() == pytest.approx(9.509591, abs=1e-3)


def test_t14_rare_cost_weight() -> None:
    two_hot, logits = TwoHot(), torch.zeros(3, 255)
    cost = torch.tensor([0.0, 1.0, 4.0])
    loss = losses.cost_weight(cost, 10.0) * two_hot.nll(logits, cost)
    assert loss.tolist() == pytest.approx([5.541264, 55.412635, 55.412635], abs=1e-4)


def test_t15_image_loss() -> None:
    image = torch.zeros(1, 3, 64, 64)
    assert losses.image_loss(image + 0.5, image).item() == 3072.0


def test_t16_layer_norm() -> None:
    norm = nn.LayerNorm(4, eps=1e-3)
    y = norm(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert y.tolist() == pytest.approx([-1.341104, -0.447035, 0.447035, 1.341104], abs=1e-6)
    activated = nn.functional.silu(y)
    assert activated.tolist() == pytest.approx([-0.278049, -0.174373, 0.272662, 1.063055], abs=1e-6)


def test_t18_alignment() -> None:
    reward = torch.arange(10.0).unsqueeze(0)
    cost = (torch.arange(10) == 7).float().unsqueeze(0)
    is_first = torch.zeros(1, 10)
    is_first[0, 0] = 1
    pairs = losses.transition_pairs(is_first, torch.zeros(1, 10), torch.ones(1, 10))
    value = torch.zeros(1, 10)
    target_r = losses.one_step_target(reward, pairs, value, GAMMA)[0]
    target_c = losses.one_step_target(cost, pairs, value, GAMMA)[0]
    assert target_r[6] == 7.0 and target_c[6] == 1.0
    assert target_c[7] == 0.0
    for lambda_ in (0.0, 0.95):
        c = losses.recorded_lambda_return(cost, pairs, value, GAMMA, lambda_)[0]
        assert c[6] == 1.0 and not c[7:].any()


def test_t19_no_target_crosses_an_episode() -> None:
    generator = torch.Generator().manual_seed(1)
    x, value = torch.rand(2, 2, 6, generator=generator)
    is_first = torch.zeros(2, 6)
    is_first[:, 0] = 1
    is_first[0, 3] = 1  # a second episode starts inside the first sequence
    pairs = losses.transition_pairs(is_first, torch.zeros(2, 6), torch.ones(2, 6))
    assert pairs.valid[0].tolist() == [1, 1, 0, 1, 1]

    def targets(value: Tensor) -> Tensor:
        one = losses.one_step_target(x, pairs, value, 0.9)
        many = losses.recorded_lambda_return(x, pairs, value, 0.9, 0.95)
        return torch.stack([one, many]) * pairs.valid

    before = targets(value)
    other = value.clone()
    other[1, 0] = 1e6  # first state of the second sequence
    assert torch.equal(targets(other)[:, 0], before[:, 0])
    other = value.clone()
    other[0, 3:] = 1e6  # everything after the boundary
    assert torch.equal(targets(other)[:, 0, :2], before[:, 0, :2])


PIT, GOAL = 0, 6
LEFT, RIGHT = 0, 1


def corridor_policy(pit_costs: bool, goal_pays: bool = True, plain: bool = False) -> Tensor:
    """Probabilities `[5, 2]` of left and right between pit and goal, after offline training.

    Seven cells in a row; the data takes both actions equally often in every inner one. Values are
    expectiles of one-step targets, REF is the fixed point of its target; `plain` weighs by the
    reward's advantage alone, as IQL does.
    """
    inner = torch.arange(1, 6)
    state = inner.repeat_interleave(2)
    after = state + torch.tensor([-1, 1]).repeat(5)
    x = {
        "reward": (after == GOAL).float() * float(goal_pays),
        "cost": (after == PIT).float() * float(pit_costs),
    }
    ended = ((after == GOAL) | (after == PIT)).float()
    zero = torch.zeros_like(ended)
    one = torch.ones(10, 2)
    pairs = losses.transition_pairs(
        torch.stack([zero + 1.0, zero], 1), torch.stack([zero, ended], 1), one
    )
    advantage = {}
    for kind in x:
        value = torch.zeros(7)
        for _ in range(3000):
            arrival = torch.stack([zero, x[kind]], 1)
            q = losses.one_step_target(arrival, pairs, value[torch.stack([state, after], 1)], 0.9)
            gap = q[:, 0] - value[state]
            step = losses.expectile_weight(gap, 0.8) * gap
            value[1:6] += 0.2 * step.reshape(5, 2).sum(1)
        advantage[kind] = (q[:, 0] - value[state]).detach()
    p = torch.zeros(7)
    p[PIT] = float(pit_costs)
    for _ in range(500):
        ahead = p[after].reshape(5, 2).mean(1)
        p[1:6] = losses.reach_target(torch.zeros(5), ahead, 0.99)
    weight = (
        torch.exp(advantage["reward"])
        if plain
        else losses.offline_weight((1.0 - p)[state], advantage["reward"], advantage["cost"])
    )
    logits = torch.zeros(5, 2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(500):
        log_pi = torch.log_softmax(logits, -1).reshape(-1)
        optimizer.zero_grad()
        (-(weight * log_pi).mean()).backward()
        optimizer.step()
    return torch.softmax(logits.detach(), -1)


def test_t20_a_corridor_between_pit_and_goal() -> None:
    # Half of the data beside the pit goes into it; the policy does so less.
    assert (corridor_policy(pit_costs=True)[:, LEFT] < 0.5).all()
    # Also where nothing but the pit tells the two directions apart.
    shy = corridor_policy(pit_costs=True, goal_pays=False)
    assert (shy[:, LEFT] < 0.5).all() and shy[0, LEFT] < 0.45
    safe = corridor_policy(pit_costs=False)
    torch.testing.assert_close(safe, corridor_policy(pit_costs=False, plain=True))
    assert (safe[:, LEFT] < 0.5).all()


def test_terminated_does_not_bootstrap_and_truncated_does() -> None:
    is_first, x, value = torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3)
    is_first[:, 0] = 1
    terminated = torch.tensor([[0, 0, 1], [0, 0, 0]])
    pairs = losses.transition_pairs(is_first, terminated, torch.ones(2, 3))
    target = losses.one_step_target(x, pairs, value, 0.9)
    assert target.tolist() == [[pytest.approx(0.9), 0.0], [pytest.approx(0.9), pytest.approx(0.9)]]


def test_ensemble_is_pessimistic_in_both_directions() -> None:
    critic = Critic(4, 2, [8], "scalar", ensemble=3)
    for index, member in enumerate(critic.member):
        nn.init.constant_(member.mlp.output.bias, float(index))
    q = critic(torch.zeros(5, 4), torch.zeros(5, 2))
    assert q.shape == (3, 5)
    assert (q.amin(0) == 0).all() and (q.amax(0) == 2).all()
