"""Convolutions with kernel 4 and stride 2 whose kernels' gradient is a plain matrix product.

PyTorch's own is a quarter as fast in bfloat16 on a CPU where images are small and channels many:
half of a world model's way back at DreamerV3's sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
_MANY = 64  # channels of the larger images from which on the product is faster
_COLUMNS = 1 << 21  # numbers in the patches of a block of images: 4 MiB of bfloat16


def kernel_gradient(large: Tensor, small: Tensor) -> Tensor:
    """Sum over images and positions of what a kernel saw times what came of it.

    Args:
        large: images `[N, C, 2S, 2S]`.
        small: `[N, O, S, S]`; entry (i, j) belongs to the 4x4 patch from (2i - 1, 2j - 1).

    Returns:
        `[O, C, 4, 4]` in the dtype of `large`, blocks of images summed in float32 or better.
    """
    count, channels, _, _ = large.shape
    outputs, side = small.shape[1:3]
    image, grad = large.permute(0, 2, 3, 1), small.permute(0, 2, 3, 1).reshape(-1, outputs)
    rows, width = side * side, 16 * channels
    block = max(1, _COLUMNS // (rows * width))
    full = torch.promote_types(large.dtype, torch.float32)
    total = torch.zeros(outputs, width, dtype=full, device=large.device)
    for start in range(0, count, block):
        part = nn.functional.pad(image[start : start + block], (0, 0, 1, 1, 1, 1))
        images, down, across, step = part.stride()
        size = (len(part), side, side, 4, 4, channels)
        stride = (images, 2 * down, 2 * across, down, across, step)
        patches = part.as_strided(size, stride).reshape(-1, width)
        total += grad[start * rows : (start + len(part)) * rows].t() @ patches
    return total.view(outputs, 4, 4, channels).permute(0, 3, 1, 2).to(large.dtype)


class _Convolution(torch.autograd.Function):
    """Either way: `transposed` makes images larger, as a decoder does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.transposed = transposed
        made = nn.functional.conv_transpose2d if transposed else nn.functional.conv2d
        return made(x, weight, None, 2, 1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        d_x = d_weight = None
        if ctx.needs_input_grad[0]:
            d_x = aten.convolution_backward(
                grad, x, weight, None, [2, 2], [1, 1], [1, 1], ctx.transposed, [0, 0], 1,
                [True, False, False],
            )[0]  # fmt: skip
        if ctx.needs_input_grad[1]:
            d_weight = kernel_gradient(grad, x) if ctx.transposed else kernel_gradient(x, grad)
        return d_x, d_weight, None


def _by_product(x: Tensor, weight: Tensor, channels: int) -> bool:
    """Whether this layer computes in bfloat16 on a CPU, learns, and has channels enough."""
    if x.device.type != "cpu" or channels < _MANY:
        return False
    on = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if on else x.dtype
    return dtype == torch.bfloat16 and torch.is_grad_enabled() and weight.requires_grad


def _convolved(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    low = torch.bfloat16
    out: Tensor = _Convolution.apply(x.to(low), weight.to(low), transposed)  # type: ignore[no-untyped-call]
    return out


class Halving(nn.Conv2d):
    """Convolution `[B, C, 2S, 2S] -> [B, O, S, S]`, kernel 4, no bias."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs, 4, 2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if _by_product(x, self.weight, self.in_channels):
            return _convolved(x, self.weight, False)
        return super().forward(x)


class Doubling(nn.ConvTranspose2d):
    """Transposed convolution `[B, C, S, S] -> [B, O, 2S, 2S]`, kernel 4.

    Args:
        channels: C.
        outputs: O.
        bias: whether there is one.
    """

    def __init__(self, channels: int, outputs: int, bias: bool) -> None:
        super().__init__(channels, outputs, 4, 2, padding=1, bias=bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """See the class."""
        if self.bias is None and _by_product(x, self.weight, self.out_channels):
            return _convolved(x, self.weight, True)
        return super().forward(x, output_size)
