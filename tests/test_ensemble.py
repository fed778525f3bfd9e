"""Ensembles of MLPs: members on their own, gradients by hand, and what bfloat16 may cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_o2o.nets.ensemble import EnsembleMLP
from safe_o2o.nets.ensemble_grad import mish
from safe_o2o.nets.q_network import QNetwork, QuantileQNetwork, quantile_huber

ACTIVATIONS = ("relu", "silu", "mish")


def made(activation: Any, norm: bool) -> EnsembleMLP:
    torch.manual_seed(0)
    mlp = EnsembleMLP(2, 5, 3, (128, 96), activation, layer_norm=norm)
    for parameter in mlp.parameters():  # biases and norms that are not what they began as
        parameter.data += 0.1 * torch.randn_like(parameter)
    return mlp


def by_layers(mlp: EnsembleMLP, x: Tensor) -> Tensor:
    for layer in mlp.hidden:
        x = layer(x)
    out: Tensor = mlp.output(x)
    return out


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("shape", [(32, 5), (2, 32, 5)])
def test_one_node_of_autograd_is_all_of_its_layers(
    activation: str, norm: bool, shape: tuple[int, ...]
) -> None:
    mlp = made(activation, norm).double()
    x = torch.randn(*shape).double().requires_grad_()
    wanted, weights = [x, *mlp.parameters()], torch.randn(2, 32, 3).double()
    expected, found = by_layers(mlp, x), mlp(x)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad((found * weights).sum(), wanted)
    theirs = torch.autograd.grad((expected * weights).sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("norm", [False, True])
def test_members_have_nothing_in_common(norm: bool) -> None:
    mlp, x = made("relu", norm), torch.randn(16, 5)
    changed = made("relu", norm)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter[1] += 1.0
    torch.testing.assert_close(mlp(x)[0], changed(x)[0])
    assert not torch.allclose(mlp(x)[1], changed(x)[1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_rounds_products_and_nothing_else(activation: str) -> None:
    mlp, x = made(activation, True), torch.randn(256, 5)
    plain = mlp(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = mlp(x)
    assert rounded.dtype == torch.float32
    assert float((rounded - plain).norm() / plain.norm()) < 0.02
    rounded.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in mlp.parameters())


def test_what_needs_no_gradient_gets_none() -> None:
    mlp, x = made("relu", False), torch.randn(8, 5, requires_grad=True)
    mlp.requires_grad_(False)
    mlp(x).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in mlp.parameters())


def test_mish_and_its_slope() -> None:
    x = torch.linspace(-60, 60, 4001, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.mish(x)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    value, found = mish(x.detach(), True)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(found, slope)
    value, found = mish(torch.linspace(-1e4, 1e4, 101), True)
    assert torch.isfinite(value).all() and torch.isfinite(found).all()


@pytest.mark.parametrize("kind", ["plain", "normed", "quantile"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(7, 3), (7, 4, 3)])
def test_gradients_by_hand_are_those_of_autograd(
    kind: str, activation: Any, shape: tuple[int, ...]
) -> None:
    """A graph has no autograd, and a policy that steps along dQ/da needs it there."""
    torch.manual_seed(1)
    sizes = (5, 3, (16, 16, 16), 2, activation)
    made = QuantileQNetwork(*sizes) if kind == "quantile" else None
    q: nn.Module = (made or QNetwork(*sizes, layer_norm=kind == "normed")).double()
    obs, action = torch.randn(7, 5).double(), torch.randn(*shape).double().requires_grad_()
    value, slope = q.with_gradient(obs, action)
    expected = q(obs, action)
    torch.testing.assert_close(value, expected)
    for member in range(2):
        (found,) = torch.autograd.grad(expected[member].sum(), action, retain_graph=True)
        torch.testing.assert_close(slope[member], found, rtol=1e-8, atol=1e-10)


def test_quantiles_of_a_known_distribution_are_learned() -> None:
    """Of uniform returns the quantile at t is t; the mean over fixed fractions is one half."""
    torch.manual_seed(0)
    q = QuantileQNetwork(1, 1, (32, 32), 1)
    optimizer = torch.optim.Adam(q.parameters(), 3e-3)
    g, ones = torch.Generator().manual_seed(0), torch.ones(128, 1)
    for _ in range(400):
        at, _ = q.fractions(128, g)
        target = torch.rand(1, 128, 8, generator=g)
        width = torch.full((128, 8), 1.0 / 8.0)
        loss = quantile_huber(q.quantiles(ones, ones, at), target, at, width, 0.05).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    levels = torch.tensor([[0.1, 0.3, 0.5, 0.7, 0.9]])
    found = q.quantiles(ones[:1], ones[:1], levels)[0]
    torch.testing.assert_close(found, levels, rtol=0, atol=0.06)
    assert float(q(ones[:1], ones[:1])) == pytest.approx(0.5, abs=0.04)


def test_random_fractions_are_midpoints_of_shares_of_one() -> None:
    q = QuantileQNetwork(1, 1, (8, 8), 1)
    middle, width = q.fractions(1000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(width.sum(-1), torch.ones(1000))
    assert (width > 0).all() and (middle.diff(dim=-1) > 0).all()
    assert float(middle.min()) > 0 and float(middle.max()) < 1
