"""Consistency policies: from any noisy action to a clean one in one evaluation (offline.md 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from safe_o2o.nets.denoiser import Denoiser, Network, make_denoiser
from safe_o2o.nets.generative import GenerativePolicy

LOW, HIGH, DATA_STD, RHO = 0.002, 80.0, 0.5, 7.0
"""Smallest and largest noise level, the data's deviation, and how levels crowd at the low end."""
LEVELS = (2, 150)
"""Levels at the start and at the end of training."""


def boundary_weights(level: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out: at the smallest level the action itself comes out (7.2)."""
    above, data = level - LOW, DATA_STD**2
    return data / (above.square() + data), DATA_STD * above / (level.square() + data).sqrt()


def level_count(progress: float) -> int:
    """N(it): levels at a share of the training (7.3)."""
    first, last = LEVELS
    return math.ceil(math.sqrt(progress * (last**2 - first**2) + first**2) - 1.0) + 1


def karras(n: Tensor, count: int) -> Tensor:
    """Noise level of numbers n of `count` levels (7.3)."""
    low, high = LOW ** (1.0 / RHO), HIGH ** (1.0 / RHO)
    return (low + n / (count - 1) * (high - low)) ** RHO


class ConsistencyPolicy(GenerativePolicy):
    """f(x, k) = c_skip x + c_out F(x, k, s), trained to agree with itself along the levels.

    Args:
        obs_dim: F.
        action_dim: A.
        levels: noise levels of a sample, the largest first; one is enough.
        network: see `make_denoiser`.
        hidden_dim: width of the network.
        released: the released code's: the network reads x and k as they are, and errors count by
            100 over the distance of their levels. Otherwise both are scaled, errors are
            pseudo-Huber, and count by one over the distance.
        denoiser: a network to use instead.
    """

    density = "none"

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        levels: Sequence[float] = (HIGH, 0.5),
        network: Network = "mlp",
        hidden_dim: int = 256,
        released: bool = False,
        denoiser: Denoiser | None = None,
    ) -> None:
        super().__init__()
        self.levels, self.released = tuple(levels), released
        self.noise_shape = (len(self.levels), action_dim)
        self.denoiser = denoiser or make_denoiser(network, obs_dim, action_dim, hidden_dim)

    def clean(self, x: Tensor, level: Tensor, obs: Tensor) -> Tensor:
        """f: clean actions `[B, n, A]` of noisy ones at levels `[B]` or `[1]`."""
        skip, out = (weight.view(-1, 1, 1) for weight in boundary_weights(level))
        k = level.view(-1, 1, 1)
        if self.released:
            found = self.denoiser(x, self.denoiser.at(level), obs)
        else:
            scaled = x / (k.square() + DATA_STD**2).sqrt()
            found = self.denoiser(scaled, self.denoiser.at(level.log() / 4.0), obs)
        return skip * x + out * found

    def loss(
        self,
        obs: Tensor,
        action: Tensor,
        generator: torch.Generator,
        teacher: ConsistencyPolicy | None = None,
        progress: float = 1.0,
    ) -> Tensor:
        """How far two neighbouring levels of one noise disagree `[B]`.

        Args:
            obs: `[B, F]`.
            action: `[B, A]`.
            generator: of levels and noise.
            teacher: who says what the lower level comes to: a slow copy; None asks itself.
            progress: share of all training that is done: levels grow with it, from two to 150.
        """
        count, device = level_count(min(progress, 1.0)), obs.device
        n = torch.randint(count - 1, (len(obs),), generator=generator, device=device)
        lower, upper = karras(n, count), karras(n + 1, count)
        noise = torch.randn(action.shape, generator=generator, device=device, dtype=action.dtype)
        x = action + upper.unsqueeze(-1) * noise
        found = self.clean(x.unsqueeze(1), upper, obs)[:, 0]
        with torch.no_grad():
            x = action + lower.unsqueeze(-1) * noise
            aim = (teacher or self).clean(x.unsqueeze(1), lower, obs)[:, 0]
        if self.released:
            return 100.0 / (upper - lower) * (found - aim).square().mean(-1)
        c = 0.00054 * math.sqrt(action.shape[-1])
        distance = ((found - aim).square().sum(-1) + c * c).sqrt() - c
        return distance / (upper - lower)

    def decode(self, obs: Tensor, noise: Tensor) -> Tensor:
        """See `GenerativePolicy`: from noise at the first level; noised anew at the others."""
        action = torch.zeros_like(noise[:, :, 0])
        for number, level in enumerate(self.levels):
            # The first level drowns whatever action there was.
            spread = level if number == 0 else math.sqrt(level**2 - LOW**2)
            at = torch.full((1,), level, device=obs.device)
            action = self.clean(action + spread * noise[:, :, number], at, obs)
        return action.clamp(-1.0, 1.0)
