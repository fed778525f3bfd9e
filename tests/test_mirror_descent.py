"""DPMD's and SDAC's objectives and samplers against closed forms (online_safety.md 2.6)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from safe_o2o.algorithms.sdac import reverse_noise, tempered
from safe_o2o.nets.denoiser import Denoiser
from safe_o2o.nets.diffusion import DiffusionPolicy, Sampler


class Line(Denoiser):
    """A denoiser of two numbers: the best one for Gaussians."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def at(self, level: Tensor) -> Tensor:
        return torch.zeros(len(level), 0)

    def forward(self, x: Tensor, at: Tensor, obs: Tensor) -> Tensor:
        return self.line[0] * x + self.line[1]


def test_weighted_denoising_has_the_score_of_the_new_policy() -> None:
    """pi_old N(0, 1), Q = -(a - 1.5)^2, lambda 1: the new policy is N(1, 1/3)."""
    policy = DiffusionPolicy(1, 1, steps=1, denoiser=Line())
    policy.schedule.alpha_bar.fill_(0.5)
    g = torch.Generator().manual_seed(0)
    a = torch.randn(400_000, 1, generator=g, dtype=torch.float64)
    weight = torch.exp(-(a[:, 0] - 1.5).square())
    obs = torch.zeros(len(a), 1)
    optimizer = torch.optim.LBFGS(policy.parameters(), max_iter=50, tolerance_grad=1e-9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight * policy.loss(obs, a, torch.Generator().manual_seed(1))).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    line = next(policy.parameters()).detach()
    expected = torch.tensor([1.060660, -0.75], dtype=torch.float64)
    torch.testing.assert_close(line, expected, rtol=0, atol=8e-3)
    # So the noisy policy is N(sqrt(.5) 1, .5 / 3 + .5): its score at 0 and its slope are known.
    score = -line / math.sqrt(0.5)
    variance = -1.0 / float(score[0])
    assert variance == pytest.approx(0.5 / 3.0 + 0.5, rel=0.01)
    assert float(score[1]) * variance == pytest.approx(math.sqrt(0.5), rel=0.01)


@pytest.mark.parametrize(("k", "mean"), [(1, 1.0), (2, 1.2), (5, 1.3636), (20, 1.4634)])
def test_repeated_steps_come_to_the_best_action(k: int, mean: float) -> None:
    a = torch.linspace(-8.0, 8.0, 40_001, dtype=torch.float64)
    density = torch.softmax(-0.5 * a.square() - k * (a - 1.5).square(), 0)
    assert float(density @ a) == pytest.approx(mean, abs=1e-4)
    spread = float(density @ (a - mean).square())
    assert 1.0 / spread == pytest.approx(1.0 + 2.0 * k, rel=1e-3)


def value(a: Tensor) -> Tensor:
    return 2.0 * torch.cos(1.5 * math.pi * a) + 0.5 * a


@pytest.mark.parametrize(
    ("kept", "x", "exact", "drawn"),
    [(0.1094, 0.0, -0.0072, -0.2745), (0.1094, 0.9, 0.9438, 0.1338), (0.8771, 0.9, 1.949, 0.382)],
)
def test_reverse_draws_within_the_box(kept: float, x: float, exact: float, drawn: float) -> None:
    g = torch.Generator().manual_seed(0)
    uniform = torch.rand(200_000, 1, generator=g, dtype=torch.float64)
    noisy, k = torch.tensor([[x]]).double(), torch.tensor(kept).double()

    def regressed(noise: Tensor) -> float:
        clean = (noisy - (1.0 - k).sqrt() * noise) / k.sqrt()
        weight = torch.softmax(value(clean.clamp(-1.0, 1.0)) / 0.5, 0)
        return float((weight * noise).sum())

    noise = reverse_noise(noisy, k, uniform)
    clean = (noisy - (1.0 - k).sqrt() * noise) / k.sqrt()
    assert float(clean.abs().max()) <= 1.0 + 1e-9
    assert regressed(noise) == pytest.approx(exact, abs=0.012)
    # Clipped draws, as in the released code, regress on something else.
    free = torch.randn(uniform.shape, generator=g, dtype=torch.float64)
    assert regressed(free) == pytest.approx(drawn, abs=0.02)


@pytest.mark.parametrize("x", [-30.0, -6.0, 0.0, 6.0, 30.0])
@pytest.mark.parametrize("kept", [0.999, 0.5, 1e-4])
def test_reverse_draws_have_no_gaps_in_the_tails(x: float, kept: float) -> None:
    uniform = torch.linspace(1e-6, 1.0 - 1e-6, 999, dtype=torch.float64).unsqueeze(1)
    k = torch.tensor(kept).double()
    noise = reverse_noise(torch.tensor([[x]]).double(), k, uniform)
    clean = (x - (1.0 - k).sqrt() * noise) / k.sqrt()
    assert bool(noise.isfinite().all()) and float(clean.abs().max()) <= 1.0 + 1e-6


def test_a_temperature_that_leaves_too_few_draws_rises() -> None:
    score = torch.tensor([[100.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0, 0.0, 0.0]])
    weight = tempered(score, 4.0)
    assert float(1.0 / weight[0].square().sum()) >= 4.0
    assert int(weight[0].argmax()) == 0
    torch.testing.assert_close(weight[1], torch.softmax(score[1], 0))
    masked = torch.tensor([[3.0, 1.0, -torch.inf, -torch.inf]])
    found = tempered(masked, 4.0)
    assert found[0, 2:].tolist() == [0.0, 0.0] and bool(found.isfinite().all())


class Exact(Denoiser):
    """The noise in actions of a density on [-1, 1], by quadrature."""

    def __init__(self, log_density: Tensor, grid: Tensor) -> None:
        super().__init__()
        self.log_density, self.grid = log_density, grid
        self.kept = torch.ones(1)

    def at(self, level: Tensor) -> Tensor:
        return self.kept[level.long() - 1].unsqueeze(-1)

    def forward(self, x: Tensor, at: Tensor, obs: Tensor) -> Tensor:
        kept = at.view(())
        off = (x[:, 0] - kept.sqrt() * self.grid) / (1.0 - kept).sqrt()
        weight = torch.softmax(self.log_density - 0.5 * off.square(), -1)
        return (weight * off).sum(-1, keepdim=True).unsqueeze(1)


@pytest.mark.parametrize(
    ("steps", "sampler", "spread", "distance"),
    [
        (20, "posterior", 0.430, 0.246),
        (20, "beta", 0.487, 0.384),
        (20, "ddim", 0.440, 0.215),
        (100, "posterior", 0.470, 0.090),
    ],
)
def test_what_a_chain_of_few_steps_makes_of_two_modes(
    steps: int, sampler: Sampler, spread: float, distance: float
) -> None:
    grid = torch.linspace(-1.0, 1.0, 201)
    q = -32.0 * (grid - 0.5).square() * (grid + 0.5).square() + 0.1 * grid
    log_density = q / 0.5
    target = torch.softmax(log_density, 0)
    assert float(target @ grid) == pytest.approx(0.0458, abs=1e-3)
    exact = Exact(log_density, grid)
    policy = DiffusionPolicy(1, 1, steps=steps, sampler=sampler, schedule="linear", denoiser=exact)
    exact.kept = policy.schedule.alpha_bar
    count = 40_000
    noise = torch.randn(count, 1, *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    found = policy.decode(torch.zeros(count, 1), noise)[:, 0, 0]
    assert float(found.std()) == pytest.approx(spread, abs=0.012)
    edges = torch.linspace(-1.0, 1.0, 41)
    share = torch.histogram(found, edges).hist / count
    fine = torch.linspace(-1.0, 1.0, 4001)
    fine_q = (-32.0 * (fine - 0.5).square() * (fine + 0.5).square() + 0.1 * fine) / 0.5
    wanted = torch.histogram(fine, edges, weight=torch.softmax(fine_q, 0)).hist
    assert float((share - wanted).abs().sum()) / 2.0 == pytest.approx(distance, abs=0.03)
