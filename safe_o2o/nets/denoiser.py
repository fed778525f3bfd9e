"""Networks that read a noisy action, how noisy it is, and the state (offline.md 1.3).

What depends on the state or on the noise level alone is computed once for all candidates.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from safe_o2o.nets.ensemble import EnsembleMLP

Network = Literal["residual", "mlp"]


class Denoiser(nn.Module, ABC):
    """A network of noisy actions."""

    def at(self, level: Tensor) -> Tensor:
        """What it reads of levels `[N]`, `[N, ...]`: worked out for all of a chain at once."""
        return level

    @abstractmethod
    def forward(self, x: Tensor, at: Tensor, obs: Tensor) -> Tensor:
        """`[B, n, A]` of noisy actions `[B, n, A]`, `at` of B or 1 levels, and states `[B, F]`."""


def make_denoiser(network: Network, obs_dim: int, action_dim: int, hidden_dim: int) -> Denoiser:
    """IDQL's residual network, or Diffusion-QL's MLP."""
    if network == "mlp":
        return MLPDenoiser(obs_dim, action_dim, hidden_dim)
    return ResidualDenoiser(obs_dim, action_dim, hidden_dim)


class SinusoidalEmbedding(nn.Module):
    """Sines, then cosines of a level at frequencies from 1 to 1e-4 (geometric), `[N] -> [N, D]`."""

    frequency: Tensor

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        half = dim // 2
        exponent = torch.arange(half, dtype=torch.float64) / (half - 1)
        self.register_buffer("frequency", torch.exp(-math.log(1e4) * exponent).float(), False)

    def forward(self, level: Tensor) -> Tensor:
        """See the class."""
        angle = level.float().unsqueeze(-1) * self.frequency
        return torch.cat([angle.sin(), angle.cos()], -1)


class MLPDenoiser(Denoiser):
    """Diffusion-QL's: [x, level, state] through three Mish layers.

    Args:
        obs_dim: F.
        action_dim: A.
        hidden_dim: of each layer.
    """

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int = 256) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            SinusoidalEmbedding(16), nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16)
        )
        self.mlp = EnsembleMLP(1, action_dim + 16 + obs_dim, action_dim, (hidden_dim,) * 3, "mish")
        self._parts = (action_dim, 16, obs_dim)

    def at(self, level: Tensor) -> Tensor:
        """See `Denoiser`."""
        found: Tensor = self.embed(level)
        return found

    def forward(self, x: Tensor, at: Tensor, obs: Tensor) -> Tensor:
        """See `Denoiser`."""
        at = at.expand(len(x), -1)
        if x.shape[1] == 1:  # as in training: one node of autograd for all layers
            one: Tensor = self.mlp(torch.cat([x[:, 0], at, obs], -1))[0]
            return one.unsqueeze(1)
        first = self.mlp.hidden[0].linear
        by_action, by_level, by_state = first.weight[0].split(self._parts)
        known = obs @ by_state + at @ by_level + first.bias[0]
        out: Tensor = self.mlp.above(x @ by_action + known.unsqueeze(1))
        return out


class ResidualBlock(nn.Module):
    """Dropout, LayerNorm, four times as wide and back, onto its input."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Dropout(dropout),
            nn.LayerNorm(dim),
            nn.Linear(dim, 4 * dim),
            nn.SiLU(),
            nn.Linear(4 * dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D] -> [..., D]`."""
        return x + self.inner(x)


class ResidualDenoiser(Denoiser):
    """IDQL's: learnable Fourier features of the level, three residual blocks with LayerNorm.

    Args:
        obs_dim: F.
        action_dim: A.
        hidden_dim: width of the trunk.
        blocks: how many.
        dropout: in each of them.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_dim: int = 256,
        blocks: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.frequency = nn.Parameter(0.2 * torch.randn(64))
        condition = hidden_dim
        self.embed = nn.Sequential(
            nn.Linear(128, condition), nn.SiLU(), nn.Linear(condition, condition)
        )
        self.first = nn.Linear(action_dim + obs_dim + condition, hidden_dim)
        self.blocks = nn.Sequential(*(ResidualBlock(hidden_dim, dropout) for _ in range(blocks)))
        self.last = nn.Sequential(nn.SiLU(), nn.Linear(hidden_dim, action_dim))
        self._parts = (action_dim, obs_dim, condition)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def at(self, level: Tensor) -> Tensor:
        """See `Denoiser`."""
        angle = 2.0 * math.pi * level.float().unsqueeze(-1) * self.frequency
        found: Tensor = self.embed(torch.cat([angle.cos(), angle.sin()], -1))
        return found

    def forward(self, x: Tensor, at: Tensor, obs: Tensor) -> Tensor:
        """See `Denoiser`."""
        by_action, by_state, by_level = self.first.weight.split(self._parts, 1)
        known = nn.functional.linear(obs, by_state, self.first.bias)
        known = known + nn.functional.linear(at, by_level)
        trunk = nn.functional.linear(x, by_action) + known.unsqueeze(1)
        out: Tensor = self.last(self.blocks(trunk))
        return out
