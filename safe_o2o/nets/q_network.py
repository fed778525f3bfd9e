"""Ensembles of Q(s, a) for actions in their own right: numbers, or quantiles of the return.

`QuantileQNetwork` is the twin IQN of CFPI (Dabney et al., 2018; offline.md 6.6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from safe_o2o.nets.ensemble import EPS, Activation, EnsembleLayer, EnsembleLinear, EnsembleMLP


class QNetwork(nn.Module):
    """E MLPs of state and action.

    Args:
        obs_dim: F.
        action_dim: A.
        hidden_dims: hidden layers of each.
        ensemble: E.
        activation: of the hidden layers.
        layer_norm: LayerNorm in the hidden layers.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        ensemble: int = 2,
        activation: Activation = "relu",
        *,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.mlp = EnsembleMLP(
            ensemble, obs_dim + action_dim, 1, hidden_dims, activation, layer_norm=layer_norm
        )

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """`[B, F]` and `[B, A]` or `[B, n, A]` -> `[E, B]` or `[E, B, n]`."""
        q: Tensor = self.mlp(_joined(obs, action))[..., 0]
        return q.unflatten(1, action.shape[:-1])

    def with_gradient(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`, and its gradient with respect to the action `[E, B, (n,) A]`."""
        q, pull = self.mlp.with_pullback(_joined(obs, action))
        slope = pull(torch.ones_like(q))[..., -self.action_dim :]
        return (
            q[..., 0].unflatten(1, action.shape[:-1]),
            slope.unflatten(1, action.shape[:-1]),
        )


class QuantileQNetwork(nn.Module):
    """E implicit quantile networks; as a Q, the mean over fixed fractions.

    Args:
        obs_dim: F.
        action_dim: A.
        hidden_dims: the last above the fractions, the others below; all of one size.
        ensemble: E.
        activation: of the hidden layers, which all have LayerNorm.
        midpoints: fixed fractions behind the mean.
        draws: random fractions of the loss.
    """

    frequency: Tensor
    fixed: Tensor

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        ensemble: int = 2,
        activation: Activation = "relu",
        *,
        midpoints: int = 32,
        draws: int = 8,
    ) -> None:
        super().__init__()
        size = hidden_dims[-1]
        self.action_dim, self.draws = action_dim, draws
        dims = [obs_dim + action_dim, *[size] * max(1, len(hidden_dims) - 1)]
        self.below = nn.ModuleList(
            EnsembleLayer(ensemble, a, b, activation, True) for a, b in pairwise(dims)
        )
        self.embed = EnsembleLinear(ensemble, 64, size)
        self.above = EnsembleLayer(ensemble, size, size, activation, True)
        self.output = EnsembleLinear(ensemble, size, 1, gain=1.0)
        self.register_buffer("frequency", math.pi * torch.arange(1, 65, dtype=torch.float32))
        middle = (torch.arange(midpoints, dtype=torch.float32) + 0.5) / midpoints
        self.register_buffer("fixed", middle)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """See `QNetwork`."""
        x = _joined(obs, action)
        for layer in self.below:
            x = layer(x)
        q = self._above(x, self._fractions(self.fixed)).mean(-1)
        return q.unflatten(1, action.shape[:-1])

    def with_gradient(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """See `QNetwork`."""
        x, pulls = _joined(obs, action), []
        for layer in self.below:
            assert isinstance(layer, EnsembleLayer)
            x, pull = layer.with_pullback(x)
            pulls.append(pull)
        share = self._fractions(self.fixed)  # [E, K, H]
        mixed, (members, rows, size) = x.unsqueeze(2) * share.unsqueeze(1), x.shape
        y, pull = self.above.with_pullback(mixed.flatten(1, 2))
        q: Tensor = self.output(y)
        back = pull(self.output.pull(torch.ones_like(q))).view(members, rows, -1, size)
        slope = (back * share.unsqueeze(1)).mean(2)
        for pull in reversed(pulls):
            slope = pull(slope)
        shape = action.shape[:-1]
        return (
            q.view(members, rows, -1).mean(-1).unflatten(1, shape),
            slope[..., -self.action_dim :].unflatten(1, shape),
        )

    def quantiles(self, obs: Tensor, action: Tensor, fraction: Tensor) -> Tensor:
        """Quantiles `[E, B, K]` of the return of actions `[B, A]` at fractions `[B, K]`."""
        x = _joined(obs, action)
        for layer in self.below:
            x = layer(x)
        members, rows, count = x.shape[0], *fraction.shape
        share = self._fractions(fraction.flatten()).view(members, rows, count, -1)
        y = self.above((x.unsqueeze(2) * share).flatten(1, 2))
        q: Tensor = self.output(y)[..., 0]
        return q.view(members, rows, count)

    def fractions(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random midpoints and widths `[rows, K]` of fractions: uniform plus 0.1, normalised."""
        u = 0.1 + torch.rand(rows, self.draws, generator=generator, device=self.fixed.device)
        width = u / u.sum(-1, keepdim=True)
        return width.cumsum(-1) - 0.5 * width, width

    def _above(self, x: Tensor, share: Tensor) -> Tensor:
        members, rows, _ = x.shape
        y = self.above((x.unsqueeze(2) * share.unsqueeze(1)).flatten(1, 2))
        q: Tensor = self.output(y)[..., 0]
        return q.view(members, rows, -1)

    def _fractions(self, fraction: Tensor) -> Tensor:
        """What fractions `[N]` multiply a state's features by `[E, N, H]`."""
        x: Tensor = self.embed(torch.cos(fraction.unsqueeze(-1) * self.frequency))
        return torch.sigmoid(nn.functional.layer_norm(x, x.shape[-1:], eps=EPS))


def quantile_huber(
    predicted: Tensor, target: Tensor, fraction: Tensor, width: Tensor, threshold: float = 1.0
) -> Tensor:
    """Quantile Huber loss `[...]` of quantiles `[..., K]` against quantiles `[..., K']`.

    Args:
        predicted: at `fraction`.
        target: quantiles of the target.
        fraction: of the predicted ones `[..., K]`.
        width: of the target's fractions `[..., K']`: what each of them weighs.
        threshold: of the Huber loss.
    """
    error = target.unsqueeze(-2) - predicted.unsqueeze(-1)  # [..., K, K']
    small = error.abs() <= threshold
    huber = torch.where(small, 0.5 * error.square(), threshold * (error.abs() - 0.5 * threshold))
    weight = (fraction.unsqueeze(-1) - (error.detach() < 0.0).to(error.dtype)).abs()
    return (weight * huber / threshold * width.unsqueeze(-2)).sum(-1).mean(-1)


def _joined(obs: Tensor, action: Tensor) -> Tensor:
    """State and action as one row each `[B (n), F + A]`."""
    if action.dim() == obs.dim():
        return torch.cat([obs, action], -1)
    wide = obs.unsqueeze(1).expand(-1, action.shape[1], -1)
    return torch.cat([wide, action], -1).flatten(0, 1)
