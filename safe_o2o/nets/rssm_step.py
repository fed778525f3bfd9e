"""One imagined step of the RSSM as one differentiable function, the model itself held constant.

Imagination takes fifteen such steps from hundreds of states: after the convolutions this is where
an update spends its time. Gradients reach state and action, never the model's weights, and what the
way back needs is kept in the arithmetic of the products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from safe_o2o.nets.rssm_recurrence import Gates, RecurrenceWeights, norm_back

aten = torch.ops.aten


def step(
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    uniform: Tensor,
    by_action: Tensor,
    weights: RecurrenceWeights,
    *,
    classes: int,
    mix: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The next state, sampled from the prior.

    Args:
        deter: `[N, D]`.
        stoch: one-hots `[N, S]` in the arithmetic of the products.
        action: `[N, A]`, scaled into [-1, 1].
        uniform: `[N, L]` in [0, 1), which class each categorical takes.
        by_action: `[H, A]`, from the action to the layer before the GRU; constant.
        weights: of the prior, constant, with the products' arithmetic.
        classes: C.
        mix: share of the uniform distribution in every categorical.
        eps: of the LayerNorms.

    Returns:
        `[N, D]`, and one-hots `[N, S]` with the gradient of their probabilities (straight-through).
        Differentiable once, in `deter`, `stoch` and `action`.
    """
    return _Step.apply(deter, stoch, action, uniform, classes, mix, eps, by_action, *weights)  # type: ignore[no-any-return,no-untyped-call]


def choose(p: Tensor, uniform: Tensor, mix: float) -> Tensor:
    """Classes `[...]` drawn from `(1 - mix) * p + mix / C`, `p` being `[..., C]`.

    One number of [0, 1) a draw: below `mix` it says which class of the uniform share, above it is
    put through the inverse of the distribution function.
    """
    classes = p.shape[-1]
    rest = (uniform - mix) / (1.0 - mix)
    by_p = (p.cumsum(-1) <= rest.unsqueeze(-1)).sum(-1)
    chosen = by_p if mix == 0.0 else torch.where(rest < 0, (uniform * (classes / mix)).long(), by_p)
    return chosen.clamp_(max=classes - 1)  # the sum of all probabilities may round to below one


def _norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        deter: Tensor,
        stoch: Tensor,
        action: Tensor,
        uniform: Tensor,
        classes: int,
        mix: float,
        eps: float,
        by_action: Tensor,
        *given: Tensor,
    ) -> tuple[Tensor, Tensor]:
        w = RecurrenceWeights(*given)
        full, low = deter.dtype, stoch.dtype
        with torch.autocast(deter.device.type, enabled=False):
            moved = action @ by_action.t() + stoch @ w.by_stoch.t()
            y, *before = _norm(moved, w.in_scale, w.in_shift, eps)
            both = torch.cat([deter.to(low), aten.silu_(y).to(low)], -1)
            gates = both @ w.gru.t()
            y, *gate = _norm(gates.to(full), w.gru_scale, w.gru_shift, eps)
            gru = Gates.of(y)
            after = torch.lerp(deter, gru.new, gru.update)
            hidden = after.to(low) @ w.by_deter.t()
            y, *out = _norm(hidden.to(full), w.out_scale, w.out_shift, eps)
            logits = aten.silu_(y).to(low) @ w.stats.t() + w.stats_shift
            p = torch.softmax(logits.unflatten(-1, (-1, classes)), -1)
            index = choose(p, uniform, mix)
            one_hot = torch.zeros(p.shape, dtype=low, device=p.device)
            first = torch.arange(0, p.numel(), classes, device=p.device)
            one_hot.view(-1).index_fill_(0, index.flatten() + first, 1.0)
        ctx.moments, ctx.mix, ctx.eps = (before, gate, out), mix, eps
        ctx.save_for_backward(deter, moved, gates, hidden, p, by_action, *given)
        return after, one_hot.flatten(1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_after: Tensor, d_stoch: Tensor) -> tuple[Tensor | None, ...]:
        deter, moved, gates, hidden, p, by_action, *given = ctx.saved_tensors
        w, eps = RecurrenceWeights(*given), ctx.eps
        before, gate, out = ctx.moments
        full, low, size = deter.dtype, w.gru.dtype, deter.shape[-1]
        d_p = (1.0 - ctx.mix) * d_stoch.view(p.shape).to(full)
        d_logits = aten._softmax_backward_data(d_p, p, -1, full).flatten(1).to(low)
        x = hidden.to(full)
        y = _norm(x, w.out_scale, w.out_shift, eps)[0]
        d_y = aten.silu_backward((d_logits @ w.stats).to(full), y)
        d_hidden = norm_back(d_y, x, *out, w.out_scale, w.out_shift).to(low)
        d_after = d_after + d_hidden @ w.by_deter
        x = gates.to(full)
        gru = Gates.of(_norm(x, w.gru_scale, w.gru_shift, eps)[0])
        d_y = gru.back(d_after, deter)
        d_gates = norm_back(d_y, x, *gate, w.gru_scale, w.gru_shift).to(low)
        d_both = d_gates @ w.gru
        d_deter = torch.addcmul(d_after, d_after, gru.update, value=-1.0) + d_both[:, :size]
        y = _norm(moved, w.in_scale, w.in_shift, eps)[0]
        d_y = aten.silu_backward(d_both[:, size:].to(full), y)
        d_moved = norm_back(d_y, moved, *before, w.in_scale, w.in_shift)
        d_action = d_moved @ by_action
        return d_deter, d_moved.to(low) @ w.by_stoch, d_action, *(None for _ in range(16))
