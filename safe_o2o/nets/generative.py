"""Policies that are sampled from: their interface, and the two whose density is a formula.

Noise is an input everywhere: the same numbers give the same actions in PyTorch and in the graph
that is exported (offline.md 9.2).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from safe_o2o.nets.distribution import normal_log_prob
from safe_o2o.nets.ensemble import EnsembleMLP

LOG_STD = (-5.0, 2.0)
MEAN_MAX = 9.0
"""Bound of a mean before tanh: beyond it nothing has a slope any more."""
Squash = Literal["clip", "tanh"]


class GenerativePolicy(nn.Module, ABC):
    """A policy over actions `[A]` in [-1, 1], of observations `[F]`.

    Attributes:
        density: whether `loss` is an exact log-density, a bound of it, or neither.
        noise_shape: shape of the standard normal numbers behind one action.
    """

    density: ClassVar[Literal["exact", "bound", "none"]]
    noise_shape: tuple[int, ...]

    @abstractmethod
    def loss(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """What imitation makes small `[B]`, of `[B, F]` and `[B, A]`; weights are the caller's."""

    @abstractmethod
    def decode(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Actions `[B, n, A]` of `[B, F]` and `[B, n, *noise_shape]`, differentiable."""

    def sample(self, obs: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """N actions each `[B, n, A]`, differentiable in the policy."""
        shape = (len(obs), n, *self.noise_shape)
        return self.decode(obs, torch.randn(shape, generator=generator, device=obs.device))


class Moments(NamedTuple):
    """Gaussians before the squash, K of them.

    Attributes:
        log_weight: log-shares `[B, K]`.
        mean: `[B, K, A]`.
        std: `[B, K, A]`.
    """

    log_weight: Tensor
    mean: Tensor
    std: Tensor


class _Explicit(GenerativePolicy):
    """Gaussians and what bounds their actions.

    Args:
        obs_dim: F.
        action_dim: A.
        outputs: numbers that the network gives.
        hidden_dims: hidden layers, ReLU.
        squash: `clip` cuts samples and keeps means within bounds by tanh; `tanh` squashes all.
        dropout: of the hidden layers' input.
    """

    density = "exact"

    def __init__(
        self,
        obs_dim: int,
        outputs: int,
        hidden_dims: Sequence[int],
        squash: Squash,
        dropout: float,
    ) -> None:
        super().__init__()
        self.squash = squash
        self.mlp = EnsembleMLP(1, obs_dim, outputs, hidden_dims, dropout=dropout)

    @abstractmethod
    def moments(self, obs: Tensor) -> Moments:
        """The Gaussians of `[B, F]`."""

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """Log-density `[B]` of actions `[B, A]`, where tanh squashes within (-1, 1)."""
        log_weight, mean, std = self.moments(obs)
        raw: Tensor = action
        bend: Tensor | float = 0.0
        if self.squash == "tanh":
            raw = torch.atanh(action)
            # log(1 - tanh^2 u), without taking a small number from one.
            slope = 2.0 * (math.log(2.0) - raw - nn.functional.softplus(-2.0 * raw))
            bend = slope.sum(-1)
        each = normal_log_prob(raw.unsqueeze(-2), mean, std)
        if each.shape[-1] == 1:
            return each[..., 0] - bend
        return torch.logsumexp(log_weight + each, -1) - bend

    def loss(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """See `GenerativePolicy`: the negative log-density."""
        return -self.log_prob(obs, action)

    def bounded(self, raw: Tensor) -> Tensor:
        """What is sampled, within [-1, 1]."""
        return torch.tanh(raw) if self.squash == "tanh" else raw.clamp(-1.0, 1.0)

    def _mean(self, raw: Tensor) -> Tensor:
        return raw.clamp(-MEAN_MAX, MEAN_MAX) if self.squash == "tanh" else torch.tanh(raw)


class GaussianPolicy(_Explicit):
    """One Gaussian.

    By default IQL's: the mean is a tanh, the distribution is not; one log-std an entry for all
    states, within [-5, 2] (offline.md 2.4). `state_std` and `squash="tanh"` make it CFPI's (6.7).

    Args:
        obs_dim: F.
        action_dim: A.
        hidden_dims: hidden layers, ReLU.
        state_std: a deviation of each state's own.
        squash: see `_Explicit`.
        dropout: of the hidden layers.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        *,
        state_std: bool = False,
        squash: Squash = "clip",
        dropout: float = 0.0,
    ) -> None:
        outputs = action_dim * (2 if state_std else 1)
        super().__init__(obs_dim, outputs, hidden_dims, squash, dropout)
        self.noise_shape = (action_dim,)
        self.log_std = None if state_std else nn.Parameter(torch.zeros(action_dim))

    def moments(self, obs: Tensor) -> Moments:
        """See `_Explicit`; K = 1."""
        raw = self.mlp(obs)[0]
        if self.log_std is None:
            raw, log_std = raw.chunk(2, -1)
        else:
            log_std = self.log_std.expand_as(raw)
        mean, std = self._mean(raw), log_std.clamp(*LOG_STD).exp()
        return Moments(torch.zeros_like(mean[..., :1]), mean.unsqueeze(-2), std.unsqueeze(-2))

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """See `_Explicit`: the same with less to do for one deviation and no squash."""
        if self.log_std is None or self.squash == "tanh":
            return super().log_prob(obs, action)
        log_std = self.log_std.clamp(*LOG_STD)
        z = (action - torch.tanh(self.mlp(obs)[0])) * torch.exp(-log_std)
        constant = 0.5 * math.log(2.0 * math.pi) * len(log_std)
        return -0.5 * z.square().sum(-1) - (log_std.sum() + constant)

    def decode(self, obs: Tensor, noise: Tensor) -> Tensor:
        """See `GenerativePolicy`."""
        _, mean, std = self.moments(obs)
        return self.bounded(mean + std * noise)


class MixturePolicy(_Explicit):
    """A mixture of Gaussians, shares and deviations of each state's own (offline.md 6.7).

    The last number of a sample's noise picks its Gaussian.

    Args:
        obs_dim: F.
        action_dim: A.
        hidden_dims: hidden layers, ReLU.
        components: K.
        squash: see `_Explicit`.
        dropout: of the hidden layers.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        *,
        components: int = 4,
        squash: Squash = "clip",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(obs_dim, components * (1 + 2 * action_dim), hidden_dims, squash, dropout)
        self.components, self.noise_shape = components, (action_dim + 1,)
        # Alike they would stay alike: each learns from what it is the nearest to.
        self.start = nn.Parameter(0.5 * torch.randn(components, action_dim))

    def moments(self, obs: Tensor) -> Moments:
        """See `_Explicit`."""
        raw = self.mlp(obs)[0].unflatten(-1, (self.components, -1))
        share, mean, log_std = raw.split([1, self.start.shape[1], self.start.shape[1]], -1)
        return Moments(
            torch.log_softmax(share[..., 0], -1),
            self._mean(mean + self.start),
            (log_std - 1.0).clamp(*LOG_STD).exp(),  # as wide as all actions they start as one
        )

    def decode(self, obs: Tensor, noise: Tensor) -> Tensor:
        """See `GenerativePolicy`."""
        log_weight, mean, std = self.moments(obs)
        uniform = 0.5 * (1.0 + torch.erf(noise[..., -1:] / 2.0**0.5))
        # How many of the cumulated shares lie below: the number of the Gaussian.
        reached = (uniform > log_weight.exp().cumsum(-1).unsqueeze(1)).sum(-1)
        index = reached.clamp(max=self.components - 1).unsqueeze(-1)
        index = index.expand(-1, -1, mean.shape[-1])
        chosen = (torch.gather(x, 1, index) for x in (mean, std))
        mean, std = chosen
        return self.bounded(mean + std * noise[..., :-1])
