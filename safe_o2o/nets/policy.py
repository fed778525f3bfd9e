"""Gaussian actor of DreamerV3/FOSP (fosp.md 3.7), and a mixture of Gaussians in its place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safe_o2o.nets.distribution import normal_entropy, normal_log_prob
from safe_o2o.nets.mlp import MLP


class GaussianActor(nn.Module):
    """Normal(tanh(m), std), std = 0.9 * sigmoid(raw + 2) + 0.1, or a constant.

    Samples are not squashed; the environment clips.

    Args:
        feature_dim: size of the state feature.
        action_dim: A.
        hidden_dims: hidden layers.
        fixed_std: constant standard deviation; None learns it (the paper).
    """

    def __init__(
        self,
        feature_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        fixed_std: float | None = None,
    ) -> None:
        super().__init__()
        self.fixed_std = fixed_std
        self.mlp = MLP(feature_dim, action_dim * (1 if fixed_std else 2), hidden_dims)

    @staticmethod
    def moments(raw_mean: Tensor, raw_std: Tensor) -> tuple[Tensor, Tensor]:
        """Raw outputs to mean in (-1, 1) and std in (0.1, 1)."""
        return torch.tanh(raw_mean), 0.9 * torch.sigmoid(raw_std + 2.0) + 0.1

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Feature `[..., F]` -> mean and std `[..., A]`."""
        raw = self.mlp(feature)
        if self.fixed_std:
            mean = torch.tanh(raw)
            return mean, self._std(mean)
        return self.moments(*raw.chunk(2, -1))

    def _std(self, mean: Tensor) -> Tensor:
        assert self.fixed_std is not None
        return torch.full_like(mean, self.fixed_std)

    def likelihood(self, feature: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-density `[...]` of actions `[..., A]`, and what `forward` returns."""
        mean, std = self(feature)
        return self.log_prob(action, mean, std), mean, std

    @staticmethod
    def sample(mean: Tensor, std: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Re-parameterised sample."""
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + std * noise

    @staticmethod
    def log_prob(action: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Log-density `[...]` of actions `[..., A]`."""
        return normal_log_prob(action, mean, std)

    @staticmethod
    def entropy(std: Tensor) -> Tensor:
        """Entropy `[...]` in nats."""
        return normal_entropy(std)


class MixtureActor(GaussianActor):
    """Several Gaussians of one constant std, for data that goes left here and right there.

    Called as a `GaussianActor` it is the likeliest of them.

    Args:
        feature_dim: size of the state feature.
        action_dim: A.
        hidden_dims: hidden layers.
        fixed_std: constant standard deviation.
        modes: K, number of Gaussians.
    """

    def __init__(
        self,
        feature_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        fixed_std: float,
        modes: int,
    ) -> None:
        # Of every mode a log-share and a mean.
        super().__init__(feature_dim, modes * (1 + action_dim), hidden_dims, fixed_std)
        self.count = modes
        # Alike they would stay alike: each learns from what it is the nearest to.
        self.start = nn.Parameter(0.5 * torch.randn(modes, action_dim))

    def modes(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Log-shares `[..., K]` and means `[..., K, A]` of the Gaussians."""
        raw = self.mlp(feature).unflatten(-1, (self.count, -1))
        return torch.log_softmax(raw[..., 0], -1), torch.tanh(raw[..., 1:] + self.start)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Feature `[..., F]` -> mean and std `[..., A]` of the likeliest Gaussian."""
        return self.taking(*self.modes(feature))

    def taking(self, score: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std `[..., A]` of the Gaussian with the largest score, of K `[..., K]`."""
        index = score.argmax(-1, keepdim=True).unsqueeze(-1)
        mean = torch.gather(means, -2, index.expand(*index.shape[:-1], means.shape[-1])).squeeze(-2)
        return mean, self._std(mean)

    def likelihood(self, feature: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `GaussianActor`; the density is that of the mixture."""
        share, means = self.modes(feature)
        each = normal_log_prob(action.unsqueeze(-2), means, self._std(means))
        return torch.logsumexp(share + each, -1), *self.taking(share, means)
