"""The kernels' gradient as a matrix product against PyTorch's own convolutions."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from torch import nn

from safe_o2o.nets import strided
from safe_o2o.nets.encoder import Decoder, StridedCNN
from safe_o2o.nets.strided import kernel_gradient


@pytest.mark.parametrize("columns", [1, 2000, 1 << 21])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_gradient_of_both_convolutions(
    columns: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strided, "_COLUMNS", columns)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    large, small = draw(7, 3, 8, 8), draw(7, 5, 4, 4)
    found = kernel_gradient(large.to(memory_format=layout), small.to(memory_format=layout))
    weight = torch.zeros(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    down = (nn.functional.conv2d(large, weight, None, 2, 1) * small).sum()
    up = (nn.functional.conv_transpose2d(small, weight, None, 2, 1) * large).sum()
    for total in (down, up):
        (expected,) = torch.autograd.grad(total, weight)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: StridedCNN(3, 8), lambda: Decoder(20, 3, 8)])
def test_an_encoder_and_a_decoder_learn_by_it_as_without(
    make: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = make()
    x = torch.randn(4, 3, 64, 64) if isinstance(net, StridedCNN) else torch.randn(4, 20)
    grads, product = [], Mock(wraps=strided.kernel_gradient)
    monkeypatch.setattr(strided, "kernel_gradient", product)
    for many in (1 << 30, 16):
        assert not product.called
        monkeypatch.setattr(strided, "_MANY", many)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = net(x).float()
        total = (out * torch.linspace(-1.0, 1.0, out.numel()).view(out.shape)).sum()
        grads.append(torch.autograd.grad(total, list(net.parameters())))
    assert product.call_count == 2  # of the layers with 16 and 32 channels
    for plain, by_product in zip(*grads, strict=True):
        scale = float(plain.norm())
        assert float((plain - by_product).norm()) < 0.02 * scale and scale > 0.0
