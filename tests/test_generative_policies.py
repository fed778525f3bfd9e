"""Generative policies against sections 1, 5 and 7 of the offline specification."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from safe_o2o.export.graph import Graphs
from safe_o2o.nets.consistency import (
    LOW,
    ConsistencyPolicy,
    boundary_weights,
    karras,
    level_count,
)
from safe_o2o.nets.denoiser import (
    Denoiser,
    MLPDenoiser,
    ResidualDenoiser,
    SinusoidalEmbedding,
)
from safe_o2o.nets.diffusion import DiffusionPolicy, Sampler
from safe_o2o.nets.generative import GaussianPolicy, GenerativePolicy, MixturePolicy
from safe_o2o.nets.mlp import count_parameters
from safe_o2o.nets.schedule import Kind, NoiseSchedule

POLICIES = {
    "gaussian": lambda: GaussianPolicy(4, 2, (32, 32)),
    "squashed": lambda: GaussianPolicy(4, 2, (32, 32), state_std=True, squash="tanh"),
    "mixture": lambda: MixturePolicy(4, 2, (32, 32), components=3),
    "squashed mixture": lambda: MixturePolicy(4, 2, (32, 32), components=3, squash="tanh"),
    "diffusion": lambda: DiffusionPolicy(4, 2, steps=4, network="mlp", hidden_dim=32),
    "beta": lambda: DiffusionPolicy(4, 2, steps=4, hidden_dim=32, sampler="beta", clip="each"),
    "ddim": lambda: DiffusionPolicy(4, 2, steps=4, hidden_dim=32, sampler="ddim", clip="none"),
    "consistency": lambda: ConsistencyPolicy(4, 2, hidden_dim=32),
    "one level": lambda: ConsistencyPolicy(4, 2, hidden_dim=32, levels=(80.0,)),
    "released": lambda: ConsistencyPolicy(4, 2, hidden_dim=32, levels=(80.0, 2.0), released=True),
}


def made(name: str) -> GenerativePolicy:
    torch.manual_seed(0)
    policy: GenerativePolicy = POLICIES[name]().eval()
    return policy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------ the contract


@pytest.mark.parametrize("name", POLICIES)
def test_samples_are_functions_of_their_noise(name: str) -> None:
    policy = made(name)
    obs = torch.randn(5, 4, generator=generator())
    noise = torch.randn(5, 7, *policy.noise_shape, generator=generator(1))
    action = policy.decode(obs, noise)
    assert action.shape == (5, 7, 2) and (action.abs() <= 1.0).all()
    assert torch.equal(action, policy.decode(obs, noise))
    one = policy.decode(obs[2:3], noise[2:3, 4:5])  # nobody else in the batch matters
    torch.testing.assert_close(one[0, 0], action[2, 4], rtol=0, atol=1e-5)
    again = policy.sample(obs, 7, generator(3))
    assert torch.equal(again, policy.sample(obs, 7, generator(3)))
    assert not torch.equal(again, policy.sample(obs, 7, generator(4)))


@pytest.mark.parametrize("name", POLICIES)
def test_gradients_reach_every_weight(name: str) -> None:
    """By imitation, and through a whole sample, whatever its number of steps."""
    policy = made(name)
    obs, action = torch.randn(16, 4), torch.rand(16, 2) * 1.8 - 0.9
    loss = policy.loss(obs, action, generator())
    assert loss.shape == (16,) and torch.isfinite(loss).all()
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())
    policy.zero_grad()
    (0.01 * policy.sample(obs, 3, generator())).sum().backward()
    trained = [p for name, p in policy.named_parameters()]
    assert sum(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained) > 1


@pytest.mark.parametrize("name", ["diffusion", "ddim", "consistency", "squashed mixture"])
def test_the_whole_chain_has_the_right_gradient(name: str) -> None:
    policy = made(name).double()
    obs = torch.randn(2, 4).double()
    noise = 0.3 * torch.randn(2, 1, *policy.noise_shape).double()
    weight = next(policy.parameters())

    def through(x: Tensor) -> Tensor:
        return policy.decode(obs, x)

    assert weight.dtype == torch.float64
    assert torch.autograd.gradcheck(through, (noise.requires_grad_(),), atol=1e-4, rtol=1e-3)


class _Decode(nn.Module):
    def __init__(self, policy: GenerativePolicy) -> None:
        super().__init__()
        self.policy = policy
        self.input_names, self.output_names = ["obs", "noise"], ["action"]

    def example_inputs(self) -> tuple[Tensor, ...]:
        return torch.zeros(1, 4), torch.zeros(1, 6, *self.policy.noise_shape)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.policy.decode(obs, noise)


@pytest.mark.parametrize("name", POLICIES)
def test_the_graph_gives_the_same_actions(name: str) -> None:
    policy = made(name).requires_grad_(False)
    session = ort.InferenceSession(Graphs().trace(_Decode(policy), Path("graph")))
    for seed in range(5):
        obs = torch.randn(1, 4, generator=generator(seed))
        noise = torch.randn(1, 6, *policy.noise_shape, generator=generator(seed + 9))
        (found,) = session.run(None, {"obs": obs.numpy(), "noise": noise.numpy()})
        np.testing.assert_allclose(found, policy.decode(obs, noise).numpy(), atol=1e-5)


# ------------------------------------------------------------------ explicit densities


@pytest.mark.parametrize("name", ["gaussian", "squashed", "mixture", "squashed mixture"])
def test_log_density_is_exact(name: str) -> None:
    policy = made(name).double()
    obs, action = torch.randn(8, 4).double(), (torch.rand(8, 2) * 1.8 - 0.9).double()
    log_weight, mean, std = policy.moments(obs)
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, std), 1)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=log_weight), normal
    )
    expected = (
        torch.distributions.TransformedDistribution(
            mixture, torch.distributions.TanhTransform(cache_size=1)
        ).log_prob(action)
        if "squashed" in name
        else mixture.log_prob(action)
    )
    torch.testing.assert_close(policy.log_prob(obs, action), expected)
    torch.testing.assert_close(policy.loss(obs, action, generator()), -expected)


def test_a_squashed_density_integrates_to_one() -> None:
    policy = MixturePolicy(1, 1, (16,), components=3, squash="tanh").double()
    edge = 1.0 - 1e-7
    a = torch.linspace(-edge, edge, 200_001).double()[:, None]
    density = policy.log_prob(torch.zeros(len(a), 1).double(), a).exp()
    assert float(torch.trapezoid(density, a[:, 0])) == pytest.approx(1.0, abs=1e-3)


def test_mixture_samples_have_its_shares() -> None:
    policy = MixturePolicy(1, 1, (16,), components=3).eval()
    with torch.no_grad():
        log_weight, mean, _ = policy.moments(torch.zeros(1, 1))
        noise = torch.randn(1, 200_000, 2, generator=generator())
        noise[..., 0] = 0.0  # each sample is its Gaussian's mean
        found = policy.decode(torch.zeros(1, 1), noise)[0, :, 0]
    for k in range(3):
        share = (found - mean[0, k, 0].clamp(-1, 1)).abs().lt(1e-6).float().mean()
        assert float(share) == pytest.approx(float(log_weight[0, k].exp()), abs=5e-3)


def test_what_is_one_gaussian_is_sampled_as_one() -> None:
    policy = GaussianPolicy(1, 1, (16,)).eval()
    with torch.no_grad():
        policy.log_std.fill_(math.log(0.1))
        found = policy.sample(torch.zeros(1, 1), 100_000, generator())
        _, mean, std = policy.moments(torch.zeros(1, 1))
    assert float(found.mean()) == pytest.approx(float(mean), abs=2e-3)
    assert float(found.std()) == pytest.approx(float(std), rel=2e-2) == pytest.approx(0.1, rel=2e-2)


# ------------------------------------------------------------------ schedule, networks


def test_schedule_of_five_steps() -> None:
    table = NoiseSchedule(5)
    expected = {
        "beta": (0.195875, 0.458818, 0.635781, 0.754878, 0.835031),
        "alpha_bar": (0.804125, 0.435178, 0.158500, 0.038852, 0.006409),
        "posterior_var": (0, 0.159114, 0.426742, 0.660907, 0.807766),
        "clean": (1, 0.728435, 0.498410, 0.312681, 0.165654),
        "noisy": (0, 0.255116, 0.405078, 0.433466, 0.392901),
    }
    for name, values in expected.items():
        torch.testing.assert_close(
            getattr(table, name), torch.tensor(values).float(), rtol=0, atol=1e-6
        )
    for steps in (1, 5, 15, 50, 1000):
        last = float(NoiseSchedule(steps).alpha_bar[-1])
        assert last == pytest.approx(math.exp(-5.05), rel=1e-4)


def test_cosine_schedule() -> None:
    expected = torch.tensor([0.101294, 0.279544, 0.473635, 0.724052, 0.999])
    torch.testing.assert_close(NoiseSchedule(5, "cosine").beta, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", ["vp", "cosine", "linear"])
def test_any_schedule_learns_and_samples_within_bounds(schedule: Kind) -> None:
    policy = DiffusionPolicy(
        2, 1, steps=10, network="mlp", hidden_dim=32, schedule=schedule, weighting="elbo"
    )
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    g = generator()
    for _ in range(300):
        obs = torch.randn(128, 2, generator=g)
        action = 0.5 * torch.tanh(obs[:, :1])
        optimizer.zero_grad()
        policy.loss(obs, action, g).mean().backward()
        optimizer.step()
    obs = torch.randn(200, 2, generator=g)
    with torch.no_grad():
        found = policy.sample(obs, 16, g)
    assert float(found.abs().max()) <= 1.0
    error = (found.mean(1) - 0.5 * torch.tanh(obs[:, :1])).abs().mean()
    assert float(error) < 0.2


def test_linear_schedule_of_twenty_steps() -> None:
    table = NoiseSchedule(20, "linear")
    kept = table.alpha_bar[[0, 4, 9, 14, 19]]
    expected = torch.tensor([0.99992, 0.6374, 0.1094, 0.00314, 5e-6])
    torch.testing.assert_close(kept, expected, rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "weights"),
    [("posterior", (2.16, 1.55, 1.83, 2.63)), ("beta", (0.62, 0.75, 1.04, 1.60, 2.55))],
)
def test_weights_of_the_likelihoods_bound(sampler: Sampler, weights: tuple[float, ...]) -> None:
    policy = DiffusionPolicy(
        1, 1, steps=5, network="mlp", hidden_dim=8, sampler=sampler, weighting="elbo"
    )
    found = policy.step_weights[-len(weights) :]
    torch.testing.assert_close(found, torch.tensor(weights), rtol=0, atol=6e-3)
    assert torch.isfinite(policy.step_weights).all()


def test_both_forms_of_the_reverse_mean() -> None:
    table, x, noise = NoiseSchedule(5), torch.tensor(0.7), torch.tensor(-0.3)
    for i, mean in enumerate((0.928677, 1.200502, 1.504415, 1.880427, 2.342201)):
        clean = table.clean_of(x, i, noise)
        assert float(table.clean[i] * clean + table.noisy[i] * x) == pytest.approx(mean, abs=1e-5)
        beta, kept = table.beta[i], table.alpha_bar[i]
        other = (x - beta * noise / (1 - kept).sqrt()) / table.alpha[i].sqrt()
        assert float(other) == pytest.approx(mean, abs=1e-5)


def test_networks_are_of_the_published_sizes() -> None:
    assert count_parameters(MLPDenoiser(17, 6)) == pytest.approx(144e3, rel=0.005)
    assert count_parameters(ResidualDenoiser(17, 6)) == pytest.approx(1.75e6, rel=0.005)
    frequency = SinusoidalEmbedding(16).frequency
    expected = (1, 0.268, 0.0720, 0.0193, 0.00518, 0.00139, 0.000373, 0.0001)
    torch.testing.assert_close(frequency, torch.tensor(expected), rtol=5e-3, atol=0)
    embed = SinusoidalEmbedding(16)
    found = embed(torch.tensor([80.0, 60.0, 0.002, 0.0075]))
    torch.testing.assert_close(found[0, :8], torch.sin(80.0 * frequency))
    assert float((found[0] - found[1]).norm()) == pytest.approx(1.97, abs=0.01)
    assert float((found[2] - found[3]).norm()) == pytest.approx(0.0057, abs=2e-4)


# ------------------------------------------------------------------ what samplers do


class Perfect(Denoiser):
    """The noise that is most likely in a mixture of Gaussians: E[eps | x_i].

    Args:
        schedule: of the policy.
        mean, std: of the Gaussians, equally likely.
    """

    def __init__(self, schedule: NoiseSchedule, mean: tuple[float, ...], std: float) -> None:
        super().__init__()
        self.schedule, self.std = schedule, std
        self.mean = torch.tensor(mean)

    def forward(self, x: Tensor, level: Tensor, obs: Tensor) -> Tensor:
        kept = self.schedule.alpha_bar[level.long() - 1].view(-1, 1, 1)
        var = kept * self.std**2 + 1.0 - kept
        share = torch.softmax(-0.5 * (x - kept.sqrt() * self.mean).square() / var, -1)
        clean = self.mean + kept.sqrt() * self.std**2 / var * (x - kept.sqrt() * self.mean)
        expected = (share * clean).sum(-1, keepdim=True)
        return (x - kept.sqrt() * expected) / (1.0 - kept).sqrt()


def sampled(steps: int, sampler: str, clip: str, mean: tuple[float, ...], std: float) -> Tensor:
    blank = Perfect(NoiseSchedule(steps), mean, std)
    policy = DiffusionPolicy(1, 1, steps=steps, sampler=sampler, clip=clip, denoiser=blank)
    with torch.no_grad():
        return policy.sample(torch.zeros(1, 1), 100_000, generator(steps))[0, :, 0]


@pytest.mark.parametrize(
    ("sampler", "clip", "spread"),
    [
        ("beta", "each", (0.093, 0.193, 0.202)),
        ("posterior", "x0", (0.071, 0.130, 0.167)),
        ("ddim", "x0", (0.073, 0.142, 0.180)),
    ],
)
def test_few_steps_shrink_a_gaussian(sampler: str, clip: str, spread: tuple[float, ...]) -> None:
    for steps, expected in zip((5, 15, 50), spread, strict=True):
        found = sampled(steps, sampler, clip, (0.3,), 0.2)
        assert float(found.std()) == pytest.approx(expected, abs=0.004), steps


@pytest.mark.parametrize(
    ("sampler", "clip", "between"),
    [
        ("beta", "each", (0.297, 0.030, 1e-4)),
        ("posterior", "x0", (0.393, 0.018, 1e-4)),
        ("ddim", "x0", (0.350, 0.018, 1e-4)),
    ],
)
def test_few_steps_land_between_two_modes(
    sampler: str, clip: str, between: tuple[float, ...]
) -> None:
    for steps, expected in zip((5, 15, 50), between, strict=True):
        found = sampled(steps, sampler, clip, (-0.6, 0.6), 0.05)
        share = float((found.abs() < 0.4).float().mean())
        assert share == pytest.approx(expected, abs=max(0.006, 0.1 * expected)), steps


def test_the_beta_sampler_is_biased() -> None:
    found = sampled(5, "beta", "each", (0.3,), 0.2)
    assert float(found.mean()) == pytest.approx(0.291, abs=2e-3)


@pytest.mark.parametrize(
    ("std", "error"), [(0.05, 0.0025), (0.1, 0.0099), (0.2, 0.0361), (0.3, 0.0711), (0.5, 0.1449)]
)
def test_error_that_no_network_can_avoid(std: float, error: float) -> None:
    """What kappa of DiffCPS has to allow at least; what a network of zeros has is 1."""
    perfect = Perfect(NoiseSchedule(5), (0.0,), std)
    policy = DiffusionPolicy(1, 1, steps=5, denoiser=perfect)
    action = std * torch.randn(400_000, 1, generator=generator())
    loss = policy.loss(torch.zeros(400_000, 1), action, generator(1)).mean()
    assert float(loss) == pytest.approx(error, abs=max(5e-4, 0.01 * error))


def test_a_network_of_zeros_has_an_error_of_one() -> None:
    class Zeros(Denoiser):
        def forward(self, x: Tensor, level: Tensor, obs: Tensor) -> Tensor:
            return torch.zeros_like(x)

    policy = DiffusionPolicy(1, 3, steps=5, denoiser=Zeros())
    loss = policy.loss(torch.zeros(200_000, 1), torch.zeros(200_000, 3), generator()).mean()
    assert float(loss) == pytest.approx(1.0, abs=5e-3)


# ------------------------------------------------------------------ consistency


def test_boundary_weights() -> None:
    level = torch.tensor([0.002, 0.5, 1, 2, 10, 80], dtype=torch.float64)
    skip, out = boundary_weights(level)
    table = (1, 0.502004, 0.200641, 0.058934, 0.002495, 3.906e-5)
    torch.testing.assert_close(skip, torch.tensor(table).double(), rtol=2e-4, atol=1e-7)
    table = (0, 0.352139, 0.446319, 0.484586, 0.499276, 0.499978)
    torch.testing.assert_close(out, torch.tensor(table).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("released", [False, True])
def test_at_the_smallest_level_the_action_itself_comes_out(released: bool) -> None:
    policy = ConsistencyPolicy(4, 2, hidden_dim=32, released=released)
    x = torch.randn(3, 5, 2)
    found = policy.clean(x, torch.full((1,), LOW), torch.randn(3, 4))
    torch.testing.assert_close(found, x)


def test_levels_and_their_curriculum() -> None:
    n = torch.arange(18, dtype=torch.float64)
    torch.testing.assert_close(
        karras(n[:3], 3), torch.tensor([0.002, 2.515219, 80]).double(), rtol=1e-6, atol=1e-7
    )
    five = torch.tensor([0.002, 0.169753, 2.515219, 17.527832, 80]).double()
    torch.testing.assert_close(karras(n[:5], 5), five, rtol=1e-5, atol=1e-7)
    first = torch.tensor([0.002, 0.007528, 0.022935, 0.059947]).double()
    torch.testing.assert_close(karras(n, 18)[:4], first, rtol=1e-4, atol=1e-7)
    assert [level_count(p) for p in (0.0, 0.1, 0.5, 0.999)] == [2, 48, 107, 150]
    weight = 100.0 / (karras(n[1:3], 3) - karras(n[:2], 3))
    torch.testing.assert_close(weight, torch.tensor([39.79, 1.29]).double(), rtol=1e-3, atol=0)


class Exact(Denoiser):
    """F of the exact consistency function of N(.3, .2^2), for the released parametrisation."""

    def forward(self, x: Tensor, level: Tensor, obs: Tensor) -> Tensor:
        k = level.double().view(-1, 1, 1)
        f = 0.3 + torch.sqrt((0.04 + 4e-6) / (0.04 + k**2)) * (x - 0.3)
        skip, out = boundary_weights(k)
        return (f - skip * x) / out


def test_the_exact_function_of_a_gaussian() -> None:
    policy = ConsistencyPolicy(1, 1, levels=(80.0, 2.0), released=True, denoiser=Exact()).double()
    obs, at = torch.zeros(1, 1).double(), torch.tensor([80.0]).double()
    x = torch.tensor([[[80.0], [-40.0], [40.0]]]).double()
    found = policy.clean(x, at, obs)[0, :, 0]
    assert float(found[0]) == pytest.approx(0.499259, abs=1e-6)
    assert float(found[1]) == pytest.approx(0.199245, abs=1e-6)
    assert float(policy.denoiser(x, at, obs)[0, 2]) == pytest.approx(0.795420, abs=1e-5)
    noise = torch.randn(1, 400_000, 2, 1, generator=generator()).double()
    both = policy.decode(obs, noise)[0, :, 0]
    policy.levels = (80.0,)
    one = policy.decode(obs, noise[:, :, :1])[0, :, 0]
    for sample, mean, std in ((one, 0.299250, 0.200009), (both, 0.299925, 0.200010)):
        assert float(sample.mean()) == pytest.approx(mean, abs=1.5e-3)
        assert float(sample.std()) == pytest.approx(std, abs=2e-3)  # clamped at 1, 3.5 sd away


@pytest.mark.parametrize(("level", "kept"), [(2.0, 0.10), (0.5, 0.37), (0.17, 0.76), (0.05, 0.97)])
def test_how_much_of_an_action_a_second_level_keeps(level: float, kept: float) -> None:
    policy = ConsistencyPolicy(1, 1, levels=(80.0, level), released=True, denoiser=Exact()).double()
    obs, noise = torch.zeros(1, 1).double(), torch.randn(1, 100_000, 2, 1).double()
    both = policy.decode(obs, noise)[0, :, 0]
    policy.levels = (80.0,)
    one = policy.decode(obs, noise[:, :, :1])[0, :, 0]
    correlation = torch.corrcoef(torch.stack([one, both]))[0, 1]
    assert float(correlation) == pytest.approx(kept, abs=0.02)


@pytest.mark.parametrize("name", ["mixture", "diffusion", "consistency"])
def test_two_modes_are_learned_as_two(name: str) -> None:
    """Left or right, never between: what one Gaussian cannot do."""
    torch.manual_seed(0)
    policy: GenerativePolicy = {
        "mixture": lambda: MixturePolicy(1, 1, (64,), components=2),
        "diffusion": lambda: DiffusionPolicy(1, 1, steps=15, network="mlp", hidden_dim=64),
        "consistency": lambda: ConsistencyPolicy(1, 1, hidden_dim=64),
    }[name]()
    optimizer = torch.optim.Adam(policy.parameters(), 2e-3)
    g, obs = generator(), torch.zeros(256, 1)
    for step in range(2000):
        side = torch.randint(2, (256, 1), generator=g) * 2.0 - 1.0
        action = 0.6 * side + 0.05 * torch.randn(256, 1, generator=g)
        if isinstance(policy, ConsistencyPolicy):
            loss = policy.loss(obs, action, g, progress=0.1 * step / 2000).mean()
        else:
            loss = policy.loss(obs, action, g).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = policy.eval().sample(obs[:1], 4000, g)[0, :, 0]
    between = float((found.abs() < 0.3).float().mean())
    right = float((found > 0).float().mean())
    assert between < 0.12 and 0.35 < right < 0.65, (between, right)
