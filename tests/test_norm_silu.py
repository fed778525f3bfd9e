"""LayerNorm and SiLU in blocks against autograd through the plain layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from safe_o2o.nets import norm_silu as module
from safe_o2o.nets.norm_silu import norm_silu

EPS = 1e-3


def _inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    made = (
        torch.randn(size, generator=generator, dtype=dtype)
        for size in (shape, shape[-1:], shape[-1:])
    )
    x, scale, shift = (tensor.requires_grad_() for tensor in made)
    return x, scale, shift


def _plain(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return nn.functional.silu(nn.functional.layer_norm(x, x.shape[-1:], scale, shift, EPS))


@pytest.mark.parametrize("shape", [(5, 7, 6), (11, 160)])
@pytest.mark.parametrize("block", [1, 20, 1 << 18])
def test_blocks_have_the_gradients_of_autograd(
    shape: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    inputs = _inputs(shape, torch.float64)
    want, got = _plain(*inputs), norm_silu(*inputs, EPS)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    weight = torch.linspace(-1.0, 2.0, want.numel(), dtype=torch.float64).view(shape)
    expected = torch.autograd.grad((want * weight).sum(), inputs)
    found = torch.autograd.grad((got * weight).sum(), inputs)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("channels", [8, 160])
@pytest.mark.parametrize("block", [20, 1 << 18])
def test_only_the_output_is_rounded(
    channels: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bfloat16 input is worked on in float32: the error is that of one rounding, 2^-9."""
    monkeypatch.setattr(module, "_BLOCK", block)
    x, scale, shift = _inputs((40, channels), torch.float32)
    low = x.detach().bfloat16().requires_grad_()
    got = norm_silu(low, scale, shift, EPS)
    exact = _plain(low.detach().float(), scale, shift)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), exact, rtol=2.0**-8, atol=1e-6)
    got.sum().backward()
    assert low.grad is not None and low.grad.dtype == torch.bfloat16
    assert scale.grad is not None and scale.grad.dtype == torch.float32


def test_a_layout_that_is_not_contiguous_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 20)
    x, scale, shift = _inputs((3, 4, 5, 6), torch.float64)
    turned = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)  # channels first in memory
    assert not turned.is_contiguous()
    (expected,) = torch.autograd.grad(norm_silu(x, scale, shift, EPS).square().sum(), x)
    (found,) = torch.autograd.grad(norm_silu(turned, scale, shift, EPS).square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_without_gradients_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 20)
    inputs = _inputs((9, 12), torch.float32)
    with torch.no_grad():
        alone = norm_silu(*inputs, EPS)
    torch.testing.assert_close(alone, norm_silu(*inputs, EPS))
