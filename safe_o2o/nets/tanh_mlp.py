"""The small networks of on-policy learners: tanh layers, orthogonal weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def tanh_mlp(in_dim: int, out_dim: int, hidden_dims: Sequence[int], gain: float) -> nn.Sequential:
    """Linear layers with tanh between them, biases zero.

    Args:
        in_dim: size of the last axis of the input.
        out_dim: size of the last axis of the output.
        hidden_dims: one size a hidden layer; their weights are orthogonal with gain sqrt(2).
        gain: gain of the output layer's orthogonal weights (0.01: a policy starts at its mean).
    """
    layers: list[nn.Module] = []
    for a, b in pairwise([in_dim, *hidden_dims]):
        layers += [_linear(a, b, math.sqrt(2.0)), nn.Tanh()]
    return nn.Sequential(*layers, _linear([in_dim, *hidden_dims][-1], out_dim, gain))


def _linear(in_dim: int, out_dim: int, gain: float) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class RunningNormalizer(nn.Module):
    """(x - mean) / std over everything seen so far, clipped to +-10 (Welford, by batches)."""

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(dim, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in rows `[B, D]`; mean and variance are then those of all rows so far."""
        x = x.double()
        n, mean, variance = float(len(x)), x.mean(0), x.var(0, unbiased=False)
        total, delta = self.count + n, mean - self.mean
        spread = self.variance * self.count + variance * n
        self.variance.copy_((spread + delta.square() * self.count * n / total) / total)
        self.mean.add_(delta * n / total)
        self.count.copy_(total)

    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `[D]` float32; an entry that never moves counts as 1e-3."""
        return self.mean.float(), self.variance.sqrt().clamp(min=1e-3).float()

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D] -> [..., D]`."""
        mean, std = self.scale()
        return ((x - mean) / std).clamp(-10.0, 10.0)
