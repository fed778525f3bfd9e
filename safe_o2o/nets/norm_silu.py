"""LayerNorm and SiLU as one differentiable function that keeps little and stays in the cache.

By themselves they go through memory eight times a layer, forward and back, and autograd keeps two
float32 tensors of each. Here blocks of rows that fit into a core's cache go through both at once,
and what is kept is the input, in the arithmetic it came in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
_WIDE = 128
_BLOCK = (
    1 << 18
)  # numbers of a block on a CPU: 1 MiB of float32, half of a usual second-level cache


def norm_silu(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """SiLU of LayerNorm over the last axis, computed in float32, returned in the dtype of `x`.

    Args:
        x: `[..., C]`, float64, float32 or bfloat16.
        scale: of the LayerNorm `[C]`, float32 (float64 for a float64 `x`).
        shift: of the LayerNorm `[C]`.
        eps: of the LayerNorm.

    Returns:
        `[..., C]`. Differentiable once.
    """
    learns = torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad)
    if not learns or x.numel() <= _BLOCK:
        # What fits into the cache anyway, and what becomes the graph of a deployed policy.
        y = torch.nn.functional.layer_norm(x.to(scale.dtype), x.shape[-1:], scale, shift, eps)
        return torch.nn.functional.silu(y).to(x.dtype)
    return _NormSiLU.apply(x, scale, shift, eps)  # type: ignore[no-any-return,no-untyped-call]


def _blocks(x: Tensor) -> Iterator[slice]:
    """Of the rows of `[N, C]`: all at once on a GPU, where a launch costs more than memory."""
    rows = max(1, _BLOCK // x.shape[1]) if x.device.type == "cpu" else max(1, x.shape[0])
    for start in range(0, x.shape[0], rows):
        yield slice(start, start + rows)


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        flat, full = x.reshape(-1, x.shape[-1]), scale.dtype
        out = torch.empty_like(flat)
        # Short rows cost PyTorch's LayerNorm several times as much: then its output is kept.
        keeps = flat.shape[1] < _WIDE
        moments: list[tuple[Tensor, Tensor]] = []
        normed: list[Tensor | None] = []
        for rows in _blocks(flat):
            block = flat[rows].to(full)
            y, mean, rstd = torch.native_layer_norm(block, block.shape[-1:], scale, shift, eps)
            normed.append(y.to(x.dtype) if keeps else None)
            if flat.dtype == full:
                aten.silu.out(y, out=out[rows])
            else:
                out[rows] = aten.silu_(y)
            moments.append((mean, rstd))
        ctx.made, ctx.eps = list(zip(moments, normed, strict=True)), eps
        ctx.save_for_backward(x, scale, shift)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, scale, shift = ctx.saved_tensors
        flat, full = x.reshape(-1, x.shape[-1]), scale.dtype
        d_out = grad.reshape(flat.shape)
        d_x = torch.empty_like(flat)
        d_scale, d_shift = torch.zeros_like(scale), torch.zeros_like(shift)
        learns = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        wanted = [True, learns, learns]
        for rows, ((mean, rstd), y) in zip(_blocks(flat), ctx.made, strict=True):
            block, size = flat[rows].to(full), flat.shape[-1:]
            if y is None:  # once more: cheaper than to keep it and fetch it
                y = torch.native_layer_norm(block, size, scale, shift, ctx.eps)[0]
            d_y = aten.silu_backward(d_out[rows].to(full), y.to(full))
            parts = aten.native_layer_norm_backward(
                d_y, block, size, mean, rstd, scale, shift, wanted
            )
            d_x[rows] = parts[0]
            if learns:
                d_scale += parts[1]
                d_shift += parts[2]
        return d_x.view(x.shape), d_scale, d_shift, None
