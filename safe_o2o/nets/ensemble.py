"""Ensembles of MLPs as one: a product a layer for all members, and gradients without autograd.

What is exported has no autograd: a policy that steps along a critic's gradient needs it as an
ordinary function, `EnsembleMLP.with_gradient`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from safe_o2o.nets.ensemble_grad import ACTIVATIONS, Stack, plain

Activation = Literal["relu", "silu", "mish"]
Pullback = Callable[[Tensor], Tensor]
"""From a gradient with respect to a result to the one with respect to what it was made of."""
EPS = 1e-5


class EnsembleLinear(nn.Module):
    """E linear layers: `[E, B, in]`, or `[B, in]` for all of them, -> `[E, B, out]`.

    Args:
        members: E.
        in_dim: size of the last axis of the input.
        out_dim: size of the last axis of the output.
        gain: of the orthogonal weights; 0 starts at zero.
    """

    def __init__(self, members: int, in_dim: int, out_dim: int, gain: float = math.sqrt(2)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(members, in_dim, out_dim))
        self.bias = nn.Parameter(torch.zeros(members, 1, out_dim))
        if gain > 0.0:
            for weight in self.weight:
                nn.init.orthogonal_(weight.data, gain)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        members, in_dim, out_dim = self.weight.shape
        if x.dim() == 3:
            return torch.baddbmm(self.bias, x, self.weight)
        if members == 1:
            return torch.addmm(self.bias[0], x, self.weight[0]).unsqueeze(0)
        # One input for all: a single wide product.
        wide = self.weight.transpose(0, 1).reshape(in_dim, members * out_dim)
        y = x @ wide
        return y.view(len(x), members, out_dim).transpose(0, 1) + self.bias

    def pull(self, gradient: Tensor) -> Tensor:
        """`[E, B, out]` -> `[E, B, in]`."""
        return torch.bmm(gradient, self.weight.transpose(1, 2))


class EnsembleLayer(nn.Module):
    """E linear layers, each with LayerNorm where asked for, and an activation."""

    def __init__(
        self, members: int, in_dim: int, out_dim: int, activation: Activation, layer_norm: bool
    ) -> None:
        super().__init__()
        self.linear = EnsembleLinear(members, in_dim, out_dim)
        self.activation = activation
        if layer_norm:
            self.scale = nn.Parameter(torch.ones(members, 1, out_dim))
            self.shift = nn.Parameter(torch.zeros(members, 1, out_dim))
        self.layer_norm = layer_norm

    def forward(self, x: Tensor) -> Tensor:
        """`[E, B, in]` or `[B, in]` -> `[E, B, out]`."""
        return self.activated(self.linear(x))

    def activated(self, x: Tensor) -> Tensor:
        """What follows the products `[E, B, out]`."""
        if self.layer_norm:
            x = nn.functional.layer_norm(x, x.shape[-1:], eps=EPS)
            x = torch.addcmul(self.shift, x, self.scale)
        return ACTIVATIONS[self.activation](x)

    def weights(self) -> list[nn.Parameter]:
        """Weight and bias, with LayerNorm its scale and shift."""
        own = [self.linear.weight, self.linear.bias]
        return [*own, self.scale, self.shift] if self.layer_norm else own

    def with_pullback(self, x: Tensor) -> tuple[Tensor, Pullback]:
        """`forward`, and how a gradient goes back to `x` `[E, B, in]`."""
        raw = self.linear(x)
        normal, spread = raw, torch.ones_like(raw[..., :1])
        if self.layer_norm:
            centred = raw - raw.mean(-1, keepdim=True)
            spread = (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
            normal = centred / spread
        before = torch.addcmul(self.shift, normal, self.scale) if self.layer_norm else normal
        slope = _slope(self.activation, before)

        def pull(gradient: Tensor) -> Tensor:
            g = gradient * slope
            if self.layer_norm:
                g = g * self.scale
                along = normal * (g * normal).mean(-1, keepdim=True)
                g = (g - g.mean(-1, keepdim=True) - along) / spread
            return self.linear.pull(g)

        return ACTIVATIONS[self.activation](before), pull


class EnsembleMLP(nn.Module):
    """E MLPs of one shape.

    Args:
        members: E.
        in_dim: size of the last axis of the input.
        out_dim: size of the last axis of the output.
        hidden_dims: one size a hidden layer.
        activation: of the hidden layers.
        layer_norm: LayerNorm in the hidden layers.
        dropout: after each of them.
    """

    def __init__(
        self,
        members: int,
        in_dim: int,
        out_dim: int,
        hidden_dims: Sequence[int],
        activation: Activation = "relu",
        *,
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        dims = [in_dim, *hidden_dims]
        self.activation, self.layer_norm = activation, layer_norm
        self.hidden = nn.ModuleList(
            EnsembleLayer(members, a, b, activation, layer_norm) for a, b in pairwise(dims)
        )
        self.dropout = nn.Dropout(dropout)
        self.output = EnsembleLinear(members, dims[-1], out_dim, gain=1.0)
        # As a list: to look them up takes as long as a small product.
        self._weights = [weight for layer in self.hidden for weight in layer.weights()]
        self._weights += [self.output.weight, self.output.bias]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in]` or `[E, B, in]` -> `[E, B, out]`."""
        if self.dropout.p > 0.0 and self.training:
            for layer in self.hidden:
                x = self.dropout(layer(x))
            out: Tensor = self.output(x)
            return out
        if torch.compiler.is_compiling():  # a graph takes the layers one by one
            for layer in self.hidden:
                x = layer(x)
            out = self.output(x)
            return out
        return self.stacked(x)

    def above(self, x: Tensor) -> Tensor:
        """What comes of the first layer's products, bias included, `[..., H]`; one member alone."""
        shape, first = x.shape, self.hidden[0]
        assert isinstance(first, EnsembleLayer) and len(self.output.weight) == 1
        x = first.activated(x.reshape(1, -1, shape[-1]))
        for layer in self.hidden[1:]:
            x = layer(x)
        return self.output(x).reshape(*shape[:-1], -1)

    def stacked(self, x: Tensor) -> Tensor:
        """`forward` in training: see `ensemble_grad`."""
        low = torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False):  # it says itself what is rounded
            if self.activation == "relu" and not self.layer_norm:
                return plain(x, low, self._weights)
            settings = (self.activation, self.layer_norm, low, EPS)
            out: Tensor = Stack.apply(x, *settings, *self._weights)
        return out

    def with_pullback(self, x: Tensor) -> tuple[Tensor, Pullback]:
        """`forward`, and how a gradient `[E, B, out]` goes back to `x` `[E, B, in]`."""
        pulls: list[Pullback] = []
        for layer in self.hidden:
            assert isinstance(layer, EnsembleLayer)
            x, pull = layer.with_pullback(x)
            pulls.append(pull)

        def back(gradient: Tensor) -> Tensor:
            gradient = self.output.pull(gradient)
            for pull in reversed(pulls):
                gradient = pull(gradient)
            return gradient

        return self.output(x), back


def _slope(activation: Activation, x: Tensor) -> Tensor:
    """Derivative of an activation, elementwise."""
    if activation == "relu":
        return (x > 0.0).to(x.dtype)
    s = torch.sigmoid(x)
    if activation == "silu":
        return s * (1.0 + x * (1.0 - s))
    t = torch.tanh(nn.functional.softplus(x))
    return t + x * s * (1.0 - t.square())
