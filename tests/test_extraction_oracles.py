"""Sections 2 to 6 of the offline specification against numbers worked out elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from safe_o2o.algorithms import extraction
from safe_o2o.algorithms.align_iql import dual_losses, share
from safe_o2o.algorithms.closed_form import (
    gaussian_shift,
    half_log_det,
    jensen_moments,
    jensen_shift,
    lse_shift,
    shifted,
)
from safe_o2o.algorithms.duals import DualVariable
from safe_o2o.algorithms.iql import advantage_weight
from safe_o2o.algorithms.losses import expectile_loss
from safe_o2o.errors import ConfigError

MU = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def least(loss: Callable[[Tensor], Tensor]) -> float:
    """The v that a convex loss is least at, by bisection on its slope."""

    def slope(v: float) -> float:
        x = torch.tensor(v, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(x), x)
        return float(gradient)

    return float(optimize.brentq(slope, -5.0, 5.0, xtol=1e-13))


def expectile_value(tau: float) -> float:
    return least(lambda v: (MU * expectile_loss(Q - v, tau)).sum())


# ------------------------------------------------------------------ IQL


@pytest.mark.parametrize(("tau", "v"), [(0.5, 0.7), (0.7, 0.98), (0.9, 1.5), (0.99, 1.936893)])
def test_expectile_of_three_actions(tau: float, v: float) -> None:
    assert expectile_value(tau) == pytest.approx(v, abs=1e-6)


@pytest.mark.parametrize(("tau", "v"), [(0.7, 0.604356), (0.9, 0.75)])
def test_expectile_of_uniform_returns(tau: float, v: float) -> None:
    q = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    assert least(lambda x: expectile_loss(q - x, tau).mean()) == pytest.approx(v, abs=1e-5)
    assert math.sqrt(tau) / (math.sqrt(tau) + math.sqrt(1 - tau)) == pytest.approx(v, abs=1e-6)


def test_expectile_loss_of_a_batch() -> None:
    assert expectile_loss(t(0.5, -0.5), 0.7).mean() == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("tau", "v0"), [(0.5, 0.995), (0.7, 1.2702), (0.9, 1.7038), (0.99, 1.950598)]
)
def test_two_state_chain(tau: float, v0: float) -> None:
    """s0: a0 leads to s1 for nothing, a1 ends with 1; s1 ends with 0 or 2; uniform data."""
    later = least(lambda v: expectile_loss(t(0.0, 2.0) - v, tau).mean())
    assert later == pytest.approx(2 * tau)
    now = least(lambda v: expectile_loss(t(0.99 * later, 1.0) - v, tau).mean())
    assert now == pytest.approx(v0, abs=1e-6)


def test_advantage_weights_and_their_clip() -> None:
    weight = advantage_weight(t(1.0, 1.5, 2.0, 1e6), 3.0, 100.0)
    torch.testing.assert_close(weight, t(20.0855, 90.0171, 100.0, 100.0), rtol=0, atol=1e-4)
    assert advantage_weight(t(1.535), 3.0, 100.0) < 100.0 <= advantage_weight(t(1.536), 3.0, 100.0)


# ------------------------------------------------------------------ IDQL


def implicit(weight: Tensor) -> Tensor:
    return MU * weight / (MU * weight).sum()


@pytest.mark.parametrize(
    ("tau", "pi"),
    [
        (0.7, (0.30, 0.42, 0.28)),
        (0.9, (0.192308, 0.115385, 0.692308)),
        (0.99, (0.024272, 0.014563, 0.961165)),
    ],
)
def test_implicit_policy_of_an_expectile(tau: float, pi: tuple[float, ...]) -> None:
    v = expectile_value(tau)
    found = implicit(extraction.expectile_weight(Q, t(v), tau))
    torch.testing.assert_close(found, t(*pi), rtol=0, atol=1e-6)
    assert (found * Q).sum() == pytest.approx(v)  # the policy is the one that V is the value of


@pytest.mark.parametrize(
    ("alpha", "v", "pi"),
    [
        (1.0, 1.027222, (0.330083, 0.312612, 0.357305)),
        (2.0, 1.306369, (0.212453, 0.268724, 0.518823)),
    ],
)
def test_implicit_policy_of_linex(alpha: float, v: float, pi: tuple[float, ...]) -> None:
    assert math.log((MU * torch.exp(alpha * Q)).sum()) / alpha == pytest.approx(v, abs=1e-6)
    found = implicit(extraction.linex_weight(Q, t(v), alpha))
    torch.testing.assert_close(found, t(*pi), rtol=0, atol=1e-6)
    assert (found * Q).sum() == pytest.approx(v, abs=1e-5)
    if alpha == 1.0:  # Boltzmann's is another one
        boltzmann = MU * torch.exp(Q) / (MU * torch.exp(Q)).sum()
        assert (boltzmann * Q).sum() == pytest.approx(1.350, abs=1e-3)


def test_linex_weight_where_q_is_v() -> None:
    torch.testing.assert_close(extraction.linex_weight(t(0.5), t(0.5), 2.0), t(4.0))
    near = extraction.linex_weight(t(0.5 + 1e-5), t(0.5), 2.0)
    torch.testing.assert_close(near, t(4.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("tau", [0.3, 0.6, 0.9])
def test_quantile_weights_balance_at_their_quantile(tau: float) -> None:
    q = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    weight = extraction.quantile_weight(q, t(tau), tau, floor=1e-9)
    assert abs(float((weight * (q - tau)).mean())) < 1e-6
    assert (weight > 0).all()


@pytest.mark.parametrize(
    ("tau", "p"), [(0.7, (0.15, 0.35, 0.35, 0.15)), (0.9, (0.05, 0.45, 0.45, 0.05))]
)
def test_candidates_are_sampled_by_their_weights(tau: float, p: tuple[float, ...]) -> None:
    q = t(1.0, 2.0, 5.0, -1.0).expand(1, 4)
    ranked = extraction.by_value(q, extraction.expectile_weight(q, t(1.5), tau))
    torch.testing.assert_close(torch.softmax(ranked.log_weight, -1), t(*p).expand(1, 4))
    assert int(extraction.final_score(ranked, torch.zeros_like(q)).argmax()) == 2
    draws = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0)).double()
    score = extraction.final_score(
        extraction.Ranked(*(x.expand(200_000, 4) for x in ranked)), draws
    )
    share = torch.bincount(score.argmax(-1), minlength=4).double() / len(draws)
    torch.testing.assert_close(share, t(*p), rtol=0, atol=5e-3)


# ------------------------------------------------------------------ AlignIQL


def aligned(v: float) -> tuple[float, float, Tensor]:
    """alpha, beta and the policy that both dual losses together are stationary at."""
    x = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)

    def gradient(point: np.ndarray) -> np.ndarray:
        y = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        rows = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)  # ten rows of data are mu
        first, second = dual_losses(y[0].expand(10), y[1].expand(10), Q[rows], t(v).expand(10))
        (by_alpha,) = torch.autograd.grad(first, y, retain_graph=True)
        (by_beta,) = torch.autograd.grad(second, y)
        return np.array([float(by_alpha[0]), float(by_beta[1])])

    found = optimize.root(gradient, x.detach().numpy(), tol=1e-12)
    assert found.success
    alpha, beta = map(float, found.x)
    return alpha, beta, MU * torch.exp(-1.0 - alpha - beta * Q)


ALIGNED = [
    (0.98, -0.640985, -0.428654, (0.349182, 0.321636, 0.329182), 0.061066),
    (1.5, 0.423993, -1.278000, (0.120375, 0.259249, 0.620375), 0.493007),
    (0.7, -1.0, 0.0, (0.5, 0.3, 0.2), 0.0),
    (1.2, -0.282212, -0.757552, (0.243915, 0.312170, 0.443915), 0.191275),
    (0.4, -1.315261, 0.583652, (0.685309, 0.229383, 0.085309), 0.081801),
]


@pytest.mark.parametrize(("v", "alpha", "beta", "pi", "kl"), ALIGNED)
def test_hard_alignment_is_the_least_kl_among_aligned_policies(
    v: float, alpha: float, beta: float, pi: tuple[float, ...], kl: float
) -> None:
    found = aligned(v)
    assert found[0] == pytest.approx(alpha, abs=1e-5) and found[1] == pytest.approx(beta, abs=1e-5)
    torch.testing.assert_close(found[2], t(*pi), rtol=0, atol=1e-5)
    assert (found[2] * torch.log(found[2] / MU)).sum() == pytest.approx(kl, abs=1e-5)
    solved = optimize.minimize(
        lambda p: float(np.sum(p * np.log(np.maximum(p, 1e-12) / MU.numpy()))),
        MU.numpy(),
        method="SLSQP",
        bounds=[(1e-9, 1)] * 3,
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1},
            {"type": "eq", "fun": lambda p: p @ Q.numpy() - v},
        ],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(solved.x, found[2].numpy(), atol=1e-4)
    ranked = extraction.by_multiplier(Q.expand(1, 3), t(found[1]).expand(1, 1))
    weighed = MU * torch.softmax(ranked.log_weight[0], -1)  # candidates are samples of mu
    torch.testing.assert_close(weighed / weighed.sum(), found[2], rtol=0, atol=1e-6)


def test_hard_alignment_by_chi_square() -> None:
    start = torch.tensor([-2.0, 0.0], dtype=torch.float64)
    rows = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)

    def gradient(point: np.ndarray) -> np.ndarray:
        y = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        q, v = Q[rows], t(0.98).expand(10)
        first, second = dual_losses(y[0].expand(10), y[1].expand(10), q, v, "chi2")
        (by_alpha,) = torch.autograd.grad(first, y, retain_graph=True)
        (by_beta,) = torch.autograd.grad(second, y)
        return np.array([float(by_alpha[0]), float(by_beta[1])])

    found = optimize.root(gradient, start.numpy(), method="lm", tol=1e-12)
    assert found.success
    pi = MU * share(t(found.x[0]), t(found.x[1]), Q, "chi2")
    torch.testing.assert_close(pi, t(0.339344, 0.341311, 0.319344), rtol=0, atol=1e-5)


def test_hard_with_the_best_taken_is_the_best_q() -> None:
    """Which is why the hard version always draws."""
    ranked = extraction.by_multiplier(Q.expand(1, 3), t(-0.4).expand(1, 1))
    assert int(ranked.score.argmax()) == int(Q.argmax())


@pytest.mark.parametrize(
    ("eta", "pi", "mean"),
    [
        (1.0, (0.340569, 0.533677, 0.125754), 0.785185),
        (10.0, (0.000113, 0.999867, 0.000020), None),
    ],
)
def test_soft_alignment(eta: float, pi: tuple[float, ...], mean: float | None) -> None:
    ranked = extraction.by_alignment(Q.expand(1, 3), t(0.98), eta)
    weighed = MU * torch.softmax(ranked.log_weight[0], -1)
    found = weighed / weighed.sum()
    torch.testing.assert_close(found, t(*pi), rtol=0, atol=1e-6)
    assert mean is None or (found * Q).sum() == pytest.approx(mean, abs=1e-6)
    assert int(ranked.score.argmax()) == 1  # the one nearest to V, not the best
    released = MU * (Q - 0.98) ** 2  # the inverse: most to whom V is furthest from
    share = released / released.sum()
    assert share[1] < 0.001 < 0.4 < share[0]


def test_an_exponent_that_would_overflow_goes_on_as_a_line() -> None:
    alpha, beta = t(0.0).requires_grad_(), t(-100.0).requires_grad_()
    first, second = dual_losses(alpha, beta, t(1000.0), t(0.0))
    assert torch.isfinite(first) and torch.isfinite(second)
    slope = torch.autograd.grad(first + second, (alpha, beta))
    assert all(torch.isfinite(x) and x != 0 for x in slope)
    assert slope[0] == pytest.approx(1.0 - math.exp(5.0))


# ------------------------------------------------------------------ DiffCPS, selection


def test_softmax_in_units_of_the_spread_does_not_mind_the_scale() -> None:
    q = torch.randn(1000, 50, generator=torch.Generator().manual_seed(0)).double()
    raw = {0.01: 0.011, 0.1: 0.099, 1.0: 0.949, 10.0: 2.23}
    for scale, gain in raw.items():
        p = torch.softmax(extraction.by_softmax(scale * q, 1.0, raw=True).log_weight, -1)
        assert (p * q).sum(-1).mean() == pytest.approx(gain, abs=0.03), scale
        p = torch.softmax(extraction.by_softmax(scale * q, 0.1).log_weight, -1)
        assert (p * q).sum(-1).mean() == pytest.approx(2.23, abs=0.06)


def test_raw_softmax() -> None:
    p = torch.softmax(extraction.by_softmax(t(100, 101, 103).expand(1, 3), 1.0, raw=True).score, -1)
    torch.testing.assert_close(p[0], t(0.04201, 0.114195, 0.843795), rtol=0, atol=1e-6)


def test_first_step_of_a_raw_price() -> None:
    for violation, price in ((0.02, 1.00003), (-0.02, 0.99997)):
        dual = DualVariable(1.0, 3e-5, 0.0, 100.0, raw=True)
        dual.update(torch.tensor(violation))
        assert float(dual.parameter) == pytest.approx(price, abs=1e-9)


def test_a_price_is_bounded_and_does_not_wind_up() -> None:
    dual = DualVariable(1.0, 0.1, 0.1, 10.0)
    for violation, bound in ((1.0, 10.0), (-1.0, 0.1)):
        for _ in range(300):
            dual.update(torch.tensor(violation))
        assert float(dual()) == pytest.approx(bound)
    for _ in range(12):  # from its floor it rises at once, however long it lay there
        dual.update(torch.tensor(1.0))
    assert float(dual()) > 0.1
    wound = DualVariable(1.0, 0.1, 0.0, 10.0, raw=True)
    for _ in range(300):
        wound.update(torch.tensor(-1.0))
    for _ in range(12):
        wound.update(torch.tensor(1.0))
    assert float(wound()) == 0.0


def test_a_price_survives_a_violation_that_is_no_number() -> None:
    dual = DualVariable(2.0, 0.1)
    dual.update(torch.tensor(math.nan))
    assert float(dual()) == pytest.approx(2.0)
    dual.update(torch.tensor(1.0))
    assert float(dual()) > 2.0
    with pytest.raises(ConfigError, match="0 < low < high"):
        DualVariable(1.0, 0.1, 0.0)


# ------------------------------------------------------------------ CFPI


def test_gaussian_shift() -> None:
    mean, var, g = t(0.2, -0.4), t(0.25, 0.04), t(1.0, -2.0)
    found = gaussian_shift(mean, var, g, 0.5)
    torch.testing.assert_close(found.action, t(0.590434, -0.524939), rtol=0, atol=1e-6)
    assert (found.action - mean) @ g == pytest.approx(0.640312, abs=1e-6)
    normal = torch.distributions.Normal(mean, var.sqrt())
    assert float(-normal.log_prob(found.action).sum()) == pytest.approx(0.035292, abs=1e-6)
    assert float(half_log_det(var)) + 0.5 == pytest.approx(0.035292, abs=1e-6)
    torch.testing.assert_close(gaussian_shift(mean, var, 1e-20 * g, 0.5).action, found.action)
    torch.testing.assert_close(gaussian_shift(mean, var, 0.0 * g, 0.5).action, mean)
    torch.testing.assert_close(gaussian_shift(mean, var, g, 0.0).action, mean)


def solved(
    log_density: Callable[[np.ndarray], float], g: Tensor, low: float, start: Tensor
) -> float:
    """The largest gain g^T a with a density of at least `low`, by SLSQP."""
    best = optimize.minimize(
        lambda a: -float(a @ g.numpy()),
        start.numpy(),
        method="SLSQP",
        constraints=[{"type": "ineq", "fun": lambda a: log_density(a) - low}],
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    return -float(best.fun)


@pytest.mark.parametrize("seed", range(20))
def test_gaussian_shift_is_what_a_solver_finds(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    mean, gradient = (torch.randn(4, generator=g).double() for _ in range(2))
    var, log_tau = (
        torch.rand(4, generator=g).double() + 0.1,
        float(torch.rand((), generator=g)) + 0.1,
    )
    normal = torch.distributions.Normal(mean, var.sqrt())
    low = -float(half_log_det(var)) - log_tau
    gain = solved(lambda a: float(normal.log_prob(torch.from_numpy(a)).sum()), gradient, low, mean)
    found = gaussian_shift(mean, var, gradient, log_tau)
    assert float(found.action @ gradient) == pytest.approx(gain, abs=1e-5)


SHARE, MEAN, STD = t(0.6, 0.3, 0.1), t(-0.5, 0.3, 0.9), t(0.2, 0.1, 0.05)


def one_dimension(log_tau: float, **flags: float) -> tuple[Tensor, Tensor]:
    ones = torch.ones(3, 1, dtype=torch.float64)
    found = lse_shift(SHARE.log(), MEAN[:, None], STD.square()[:, None], ones, log_tau, **flags)
    return found.action[:, 0], found.feasible


def test_lse_shift_in_one_dimension() -> None:
    peak = half_log_det(STD.square()[:, None]) - SHARE.log()
    torch.testing.assert_close(peak, t(-0.179674, -0.179674, 0.225791), rtol=0, atol=1e-6)
    action, feasible = one_dimension(0.0)
    assert feasible.tolist() == [True, True, False]
    torch.testing.assert_close(action, MEAN)  # what is not feasible stays where it was
    action, feasible = one_dimension(0.5)
    torch.testing.assert_close(action, t(-0.3, 0.4, 0.921741), rtol=0, atol=1e-6)
    assert feasible.all()
    a = torch.linspace(-2, 2, 4_000_001, dtype=torch.float64)[:, None]
    log_density = torch.distributions.Normal(MEAN, STD).log_prob(a) + SHARE.log()
    allowed = log_density.amax(-1) >= -0.320326  # delta of the specification
    assert float(a[allowed].max()) == pytest.approx(0.921741, abs=2e-6)


def test_the_released_code_shifts_components_further() -> None:
    peak = half_log_det(STD.square()[:, None]) - SHARE.log()
    action, _ = one_dimension(0.5, factor=4.0)
    squared = ((action - MEAN) / STD).square()
    torch.testing.assert_close(squared, t(2.0, 2.0, 0.378140), rtol=0, atol=1e-5)
    torch.testing.assert_close(squared, 4.0 * (peak.min() + 0.5 - peak))


def test_jensen_is_not_feasible_for_modes_that_lie_apart() -> None:
    centre, var = jensen_moments(SHARE.log(), MEAN[:, None], STD.square()[:, None])
    assert float(centre) == pytest.approx(0.441176, abs=1e-6)
    assert math.sqrt(float(var)) == pytest.approx(0.108465, abs=1e-6)
    found = jensen_shift(SHARE.log(), MEAN[:, None], STD.square()[:, None], t(1.0), 0.5)
    assert not bool(found.feasible) and float(found.radius) == 0.0


def test_jensen_and_lse_in_two_dimensions() -> None:
    share, mean = t(0.7, 0.3), torch.stack([t(0.0, 0.0), t(0.1, 0.05)])
    var, g = torch.stack([t(0.09, 0.04), t(0.04, 0.09)]), t(1.0, 0.5)
    centre, total = jensen_moments(share.log(), mean, var)
    torch.testing.assert_close(total, t(0.065455, 0.048), rtol=0, atol=1e-6)
    torch.testing.assert_close(centre, t(0.049091, 0.008), rtol=0, atol=1e-6)
    found = jensen_shift(share.log(), mean, var, g, 0.5)
    assert float(found.radius) ** 2 == pytest.approx(0.954818, abs=1e-6)
    torch.testing.assert_close(found.action, t(0.278905, 0.092265), rtol=0, atol=1e-6)
    low = -0.5 - float((share * half_log_det(var)).sum())

    def bound(a: np.ndarray) -> float:
        each = torch.distributions.Normal(mean, var.sqrt()).log_prob(torch.from_numpy(a)).sum(-1)
        return float((share * each).sum())

    assert float(found.action @ g) == pytest.approx(solved(bound, g, low, centre), abs=1e-6)
    lse = lse_shift(share.log(), mean, var, g.expand(2, 2), 0.5)
    torch.testing.assert_close(lse.action[0], t(0.284605, 0.063246), rtol=0, atol=1e-6)
    assert lse.feasible.tolist() == [True, False]


def test_shift_before_tanh() -> None:
    mean, std = t(0.5), t(0.3)
    slope = 2.0 * (1.0 - torch.tanh(mean) ** 2)
    assert float(slope) == pytest.approx(1.572895, abs=1e-6)
    found = gaussian_shift(mean, std.square(), slope, 0.5)
    assert float(found.action) == pytest.approx(0.8)
    assert float(torch.tanh(found.action)) == pytest.approx(0.664037, abs=1e-6)


def test_a_radius_below_zero_is_not_feasible() -> None:
    found = shifted(t(0.1, 0.2), t(1.0, 1.0), t(1.0, 0.0), t(-0.1)[0])
    assert not bool(found.feasible)
    torch.testing.assert_close(found.action, t(0.1, 0.2))


# ------------------------------------------------------------------ the mask


def test_what_is_not_feasible_is_never_taken() -> None:
    score = t(3.0, 2.0, 1.0).expand(4, 3)
    risk = torch.stack([t(0.0, 0, 0), t(0.9, 0.1, 0), t(0.9, 0.8, 0.7), t(math.nan, 0.9, 0.8)])
    ranked = extraction.Ranked(score, score)
    found = extraction.final_score(ranked, torch.zeros(4, 3).double(), risk, 0.2)
    assert found.argmax(-1).tolist() == [0, 1, 2, 2]
    for seed in range(50):
        draw = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)).double()
        taken = extraction.final_score(ranked, draw, risk, 0.2).argmax(-1)
        assert int(taken[1]) > 0 and int(taken[2]) == 2 and int(taken[3]) == 2


def test_the_policys_own_action_comes_first_then_the_best() -> None:
    q = torch.tensor([[-3.0, 5.0, 1.0, 9.0]])
    candidates = torch.arange(4.0).view(1, 4, 1)
    draw = torch.zeros_like(q)
    for risk, expected in (((0, 0, 0, 0), 0), ((1, 0, 0, 1), 1), ((1, 0.2, 0.3, 1), 1)):
        score = extraction.final_score(
            extraction.own(q), draw, torch.tensor([risk]).float(), limit=0.1
        )
        assert int(extraction.take(candidates, score)[1]) == expected


def test_others_stand_by() -> None:
    score = t(1.0, 50.0, -3.0).expand(1, 3)
    preferred = torch.tensor([[True, False, True]])
    assert int(extraction.below(score, preferred).argmax()) == 0
    flat = extraction.below(torch.zeros(1, 3), preferred)
    assert flat.argmax(-1).item() != 1


@pytest.mark.parametrize(
    ("n", "gain"),
    [(2, 0.564), (4, 1.029), (8, 1.424), (16, 1.766), (32, 2.070), (64, 2.344)],
)
def test_best_of_n_and_the_shift_that_goes_as_far(n: int, gain: float) -> None:
    q = torch.randn(200_000, n, generator=torch.Generator().manual_seed(n))
    best = torch.gather(q, 1, q.argmax(-1, keepdim=True)).mean()
    assert best == pytest.approx(gain, abs=5e-3)
    log_tau = gain**2 / 2
    found = gaussian_shift(t(0.0), t(1.0), t(1.0), log_tau)
    assert float(found.action) == pytest.approx(gain)
