"""The arithmetic of `EnsembleMLP` in training: one node of autograd for all of its layers.

Small networks spend their time between the products. Here hidden products run in bfloat16 where
autocast says so; what goes in, what comes out and every gradient of a weight is in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
WIDE = 64
"""Products narrower than this are not quicker in bfloat16."""
PARTS = {False: 2, True: 4}
"""Tensors of a hidden layer: weight and bias, with LayerNorm its scale and shift too."""


class Stack(torch.autograd.Function):
    """Hidden layers and an output layer on `[B, in]` or `[E, B, in]`; see `EnsembleMLP`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, activation: str, norm: bool, low: bool, eps: float, *weights: Tensor
    ) -> Tensor:
        """Weights are those of the hidden layers in order, then of the output: weight, bias."""
        learns = any(ctx.needs_input_grad)
        y, kept = run(x, activation, norm, low, eps, weights, learns=learns)
        ctx.shared, ctx.activation, ctx.norm = x.dim() == 2, activation, norm
        ctx.save_for_backward(*kept, *weights)
        ctx.kept = len(kept)
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what asks for them, layer by layer."""
        saved = ctx.saved_tensors
        kept, weights = saved[: ctx.kept], saved[ctx.kept :]
        wanted = ctx.needs_input_grad[5:]
        found: list[Tensor | None] = [None] * len(weights)
        full = weights[0].dtype
        below, narrow = kept[-1], weights[-2].shape[-1] == 1
        if wanted[-2]:
            if narrow:
                found[-2] = (below * gradient).sum(1).unsqueeze(-1)
            else:
                found[-2] = torch.bmm(below.transpose(1, 2), gradient)
        if wanted[-1]:
            found[-1] = gradient.sum(1, keepdim=True)
        back = weights[-2].transpose(1, 2)
        g = gradient * back if narrow else torch.bmm(gradient, back)
        size, per = PARTS[ctx.norm], 7 if ctx.norm else 3
        for layer in reversed(range((len(weights) - 2) // size)):
            x, w, before, *rest = kept[layer * per : (layer + 1) * per]
            first = layer * size
            g = _inactive(ctx.activation, g.to(before.dtype), before)
            if ctx.norm:
                raw, normal, mean, rstd = rest
                if wanted[first + 2]:
                    found[first + 2] = (g * normal).sum(1, keepdim=True, dtype=full)
                if wanted[first + 3]:
                    found[first + 3] = g.sum(1, keepdim=True, dtype=full)
                g = g * weights[first + 2].to(g.dtype)
                ends = [raw.shape[-1]]
                g = aten.native_layer_norm_backward(
                    g, raw, ends, mean, rstd, None, None, [True, False, False]
                )[0]
            if wanted[first]:
                found[first] = torch.bmm(x.transpose(1, 2), g.to(x.dtype)).to(full)
            if wanted[first + 1]:
                found[first + 1] = g.sum(1, keepdim=True, dtype=full)
            if layer or ctx.needs_input_grad[0]:
                g = torch.bmm(g.to(w.dtype), w.transpose(1, 2))
        to_input = None
        if ctx.needs_input_grad[0]:
            to_input = g.to(full).sum(0) if ctx.shared else g.to(full)
        return (to_input, None, None, None, None, *found)


def run(
    x: Tensor,
    activation: str,
    norm: bool,
    low: bool,
    eps: float,
    weights: Sequence[Tensor],
    *,
    learns: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """The output `[E, B, out]`, and what the way back needs where somebody learns."""
    kept: list[Tensor] = []
    full, size = weights[0].dtype, PARTS[norm]
    h = x.to(full)
    h = h.expand(len(weights[0]), *h.shape) if h.dim() == 2 else h
    for first in range(0, len(weights) - 2, size):
        w, b = weights[first], weights[first + 1]
        fast = low and min(w.shape[1:]) >= WIDE
        if fast:
            w, b = w.bfloat16(), b.bfloat16()
        h = h.to(w.dtype)
        raw = _affine(b, h, w)
        kept += [h, w]
        before = raw
        if norm:
            normal, mean, rstd = aten.native_layer_norm(raw, [raw.shape[-1]], None, None, eps)
            scale, shift = (weights[first + i].to(raw.dtype) for i in (2, 3))
            before = torch.addcmul(shift, normal, scale)
        if activation == "mish":
            h, before = mish(before, learns)
        else:
            h = ACTIVATIONS[activation](before)
        kept.append(h if activation == "relu" else before)
        if norm:
            kept += [raw, normal, mean, rstd]
        if low:
            h = h.bfloat16()
    h = h.to(full)
    kept.append(h)
    w, b = weights[-2:]
    if w.shape[-1] == 1:  # a product with a vector takes longer than its sum
        return (h * w.transpose(1, 2)).sum(-1, keepdim=True) + b, kept
    return _affine(b, h, w), kept


def plain(x: Tensor, low: bool, weights: Sequence[Tensor]) -> Tensor:
    """The output of a ReLU network without LayerNorm, by autograd's own nodes.

    With so little between the products they are quicker than one node in Python.
    """
    full = weights[0].dtype
    h = x.expand(len(weights[0]), *x.shape) if x.dim() == 2 else x
    for w, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        kind = torch.bfloat16 if low and min(w.shape[1:]) >= WIDE else full
        h = _affine(b.to(kind), h.to(kind), w.to(kind)).relu()
    h, (w, b) = h.to(full), weights[-2:]
    if w.shape[-1] == 1:
        return (h * w.transpose(1, 2)).sum(-1, keepdim=True) + b
    return _affine(b, h, w)


def _affine(b: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """X w + b of `[E, B, in]`; a single product adds its bias by itself."""
    if len(w) == 1:
        return torch.addmm(b[0], x[0], w[0]).unsqueeze(0)
    return torch.baddbmm(b, x, w)


def _inactive(activation: str, gradient: Tensor, kept: Tensor) -> Tensor:
    """A gradient before an activation, of the one behind it."""
    if activation == "relu":
        return aten.threshold_backward(gradient, kept, 0)  # type: ignore[no-any-return]
    if activation == "mish":
        return gradient * kept
    return aten.silu_backward(gradient, kept)  # type: ignore[no-any-return]


def mish(x: Tensor, learns: bool) -> tuple[Tensor, Tensor]:
    """X tanh(softplus(x)), and its slope where somebody learns, else x.

    By one exponential: with e = exp(x) and n = e^2 + 2 e the tanh is n / (n + 2), and the slope
    n / (n + 2) + 4 x e (1 + e) / (n + 2)^2. The library's own takes three to four times as long.
    """
    full = x.float() if x.dtype == torch.bfloat16 else x
    e = full.clamp(max=20.0).exp_()
    n = torch.addcmul(2.0 * e, e, e)
    below = n + 2.0
    t = n.div_(below)
    y = full * t
    if not learns:
        return y.to(x.dtype), x
    rise = torch.addcmul(e, e, e).mul_(full).mul_(4.0)
    return y.to(x.dtype), t.addcdiv_(rise, below.square_()).to(x.dtype)


ACTIVATIONS = {
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "mish": torch.nn.functional.mish,
}
