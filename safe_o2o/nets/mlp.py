"""Dense building blocks with DreamerV3's initialisation (fosp.md 2.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from safe_o2o.nets.norm_silu import norm_silu

LAYER_NORM_EPS = 1e-3


def init_hidden(module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Truncated normal (+-2 sigma), std = sqrt(1 / mean(fan_in, fan_out)) / 0.8796."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
    std = math.sqrt(2.0 / (fan_in + fan_out)) / 0.87962566103423978
    nn.init.trunc_normal_(module.weight, std=std, a=-2.0 * std, b=2.0 * std)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def init_output(module: nn.Linear | nn.ConvTranspose2d, scale: float) -> None:
    """Uniform +-sqrt(3 * scale / mean(fan_in, fan_out)); scale 0 starts at exactly zero."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
    limit = math.sqrt(3.0 * scale * 2.0 / (fan_in + fan_out))
    nn.init.uniform_(module.weight, -limit, limit)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


class NormLinear(nn.Module):
    """Linear without bias, LayerNorm, SiLU."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim, eps=LAYER_NORM_EPS)
        init_hidden(self.linear)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_dim] -> [..., out_dim]`, in the arithmetic of the product."""
        return norm_silu(self.linear(x), self.norm.weight, self.norm.bias, self.norm.eps)


class MLP(nn.Module):
    """Hidden `NormLinear` layers and a biased linear output.

    Args:
        in_dim: size of the last axis of the input.
        out_dim: size of the last axis of the output.
        hidden_dims: one size a hidden layer.
        out_scale: scale of the output's initialisation (0: the net starts at zero).
    """

    def __init__(
        self, in_dim: int, out_dim: int, hidden_dims: Sequence[int], out_scale: float = 1.0
    ) -> None:
        super().__init__()
        dims = [in_dim, *hidden_dims]
        self.hidden = nn.Sequential(*(NormLinear(a, b) for a, b in pairwise(dims)))
        self.output = nn.Linear(dims[-1], out_dim)
        init_output(self.output, out_scale)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_dim] -> [..., out_dim]`."""
        return self.output(self.hidden(x)).float()


def count_parameters(module: nn.Module) -> int:
    """Number of trainable numbers in a module."""
    return sum(p.numel() for p in module.parameters())


@contextmanager
def constant(*modules: nn.Module) -> Iterator[None]:
    """Treat the parameters of modules as constants; gradients still reach their inputs."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class StateActionMLP(nn.Module):
    """An MLP of a state and one or many actions there; the state's share is computed once.

    Args:
        feature_dim: size of the state F.
        action_dim: A.
        out_dim: size of the last axis of the output.
        hidden_dims: at least one size.
    """

    def __init__(
        self, feature_dim: int, action_dim: int, out_dim: int, hidden_dims: Sequence[int]
    ) -> None:
        super().__init__()
        first, *rest = hidden_dims
        self.by_state = nn.Linear(feature_dim, first, bias=False)
        self.by_action = nn.Linear(action_dim, first, bias=False)
        self.norm = nn.LayerNorm(first, eps=LAYER_NORM_EPS)
        self.rest = MLP(first, out_dim, rest)
        # As one layer over both would be: else few actions would count as much as all of a state.
        whole = nn.Linear(feature_dim + action_dim, first, bias=False)
        init_hidden(whole)
        with torch.no_grad():
            for part, weight in zip(
                (self.by_state, self.by_action),
                whole.weight.split([feature_dim, action_dim], 1),
                strict=True,
            ):
                part.weight.copy_(weight)

    def forward(self, feature: Tensor, action: Tensor) -> Tensor:
        """`[..., F]` and `[..., A]` or `[..., K, A]` -> `[..., out]` or `[..., K, out]`."""
        state = self.by_state(feature)
        if action.dim() > feature.dim():
            state = state.unsqueeze(-2)
        x = norm_silu(
            state + self.by_action(action), self.norm.weight, self.norm.bias, self.norm.eps
        )
        return self.rest(x)
