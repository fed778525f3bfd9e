"""Diffusion policies: a denoiser of actions, and samplers of few steps (offline.md 1.4, 1.5).

With five steps even a perfect network puts a third of its samples between two modes: fifteen are
the default.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from safe_o2o.nets.denoiser import Denoiser, Network, make_denoiser
from safe_o2o.nets.generative import GenerativePolicy
from safe_o2o.nets.schedule import Kind, NoiseSchedule

Sampler = Literal["posterior", "beta", "ddim"]
Clip = Literal["x0", "each", "none"]
Weighting = Literal["uniform", "elbo"]


class DiffusionPolicy(GenerativePolicy):
    """DDPM on actions.

    Args:
        obs_dim: F.
        action_dim: A.
        steps: T.
        network: see `make_denoiser`.
        hidden_dim: width of the network.
        sampler: `posterior` adds noise of the posterior's variance (DiffCPS), `beta` of the forward
            step's (IDQL), `ddim` none.
        clip: what is kept within [-1, 1] on the way: the clean action (DiffCPS), each step's result
            (IDQL), or nothing before the end.
        schedule: of the noise, see `forward_variance`.
        weighting: of the steps in the loss: all alike, or by the bound of the likelihood.
        denoiser: a network to use instead.
    """

    density = "bound"
    step_weights: Tensor

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        steps: int = 15,
        network: Network = "residual",
        hidden_dim: int = 256,
        sampler: Sampler = "posterior",
        clip: Clip = "x0",
        schedule: Kind = "vp",
        weighting: Weighting = "uniform",
        denoiser: Denoiser | None = None,
    ) -> None:
        super().__init__()
        self.sampler, self.clip = sampler, clip
        self.noise_shape = (steps, action_dim)  # where it starts, and what T - 1 steps add
        self.schedule = NoiseSchedule(steps, schedule)
        weights = torch.ones(steps) if weighting == "uniform" else self.bound_weights()
        self.register_buffer("step_weights", weights, persistent=False)
        self.denoiser = denoiser or make_denoiser(network, obs_dim, action_dim, hidden_dim)

    def loss(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Squared error of the noise `[B]`, mean over entries as DiffCPS has it; IDQL sums them."""
        device, rows = obs.device, len(obs)
        index = torch.randint(self.schedule.steps, (rows,), generator=generator, device=device)
        noise = torch.randn(action.shape, generator=generator, device=device, dtype=action.dtype)
        error = self.noise_in(self.schedule.noised(action, index, noise), index, obs) - noise
        return self.step_weights[index] * error.square().mean(-1)

    def noise_in(self, x: Tensor, index: Tensor, obs: Tensor) -> Tensor:
        """The noise that it sees in actions `[B, A]` at steps `[B]` (index), of `[B, F]`."""
        found: Tensor = self.denoiser(x.unsqueeze(1), self.denoiser.at(index + 1), obs)[:, 0]
        return found

    def bound_weights(self) -> Tensor:
        """What a step's error counts in the bound of the likelihood `[T]` (offline.md 5.3).

        beta^2 / (2 var alpha (1 - alpha_bar)), with the variance that the sampler adds. The last
        step adds none in the posterior: it has the weight of the one before.
        """
        table = self.schedule
        spread = table.beta if self.sampler == "beta" else table.posterior_var
        weight = table.beta**2 / (2.0 * spread * table.alpha * (1.0 - table.alpha_bar))
        if self.sampler != "beta":
            weight[0] = weight[1] if len(weight) > 1 else 1.0
        return weight

    def decode(self, obs: Tensor, noise: Tensor) -> Tensor:
        """See `GenerativePolicy`: the whole chain; nothing is added at the last step."""
        schedule, x = self.schedule, noise[:, :, 0]
        at = self.denoiser.at(torch.arange(1, schedule.steps + 1, device=obs.device))
        for index in reversed(range(schedule.steps)):
            found = self.denoiser(x, at[index : index + 1], obs)
            clean = schedule.clean_of(x, index, found)
            if self.clip == "x0":
                clean = clean.clamp(-1.0, 1.0)
            fresh = noise[:, :, schedule.steps - index] if index else None
            x = self._back(x, clean, index, fresh)
            if self.clip == "each":
                x = x.clamp(-1.0, 1.0)
        return x.clamp(-1.0, 1.0)

    def _back(self, x: Tensor, clean: Tensor, index: int, fresh: Tensor | None) -> Tensor:
        """X of the step below."""
        numbers = {name: table[index] for name, table in self.schedule.numbers.items()}
        if self.sampler == "ddim":
            kept, before = numbers["alpha_bar"], numbers["before"]
            # By what is left of x, so that a clean action that was cut is taken as it is.
            share = math.sqrt((1.0 - before) / (1.0 - kept))
            return (share * x).add(clean, alpha=math.sqrt(before) - share * math.sqrt(kept))
        mean = (numbers["noisy"] * x).add(clean, alpha=numbers["clean"])
        if fresh is None:
            return mean
        spread = numbers["posterior_var" if self.sampler == "posterior" else "beta"]
        return mean.add(fresh, alpha=math.sqrt(spread))
