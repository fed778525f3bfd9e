"""One imagined step of the RSSM as one differentiable function, the model itself held constant.

Imagination takes fifteen such steps from hundreds of states: after the convolutions this is where
an update spends its time. Gradients reach state and action, never the model's weights, and what the
way back needs is kept in the arithmetic of the products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten


class StepWeights(NamedTuple):
    """Weights of the prior's step; D deterministic, S = L * C stochastic, H hidden, A action.

    Attributes:
        by_stoch: `[H, S]`, from the stochastic state to the layer before the GRU.
        by_action: `[H, A]`, from the action to that layer.
        in_scale: of that layer's LayerNorm `[H]`.
        in_shift: of that layer's LayerNorm `[H]`.
        gru: `[3D, D + H]`, from the old state and that layer to the gates.
        gru_scale: of the gates' LayerNorm `[3D]`.
        gru_shift: of the gates' LayerNorm `[3D]`.
        by_deter: `[H, D]`, from the new state to the layer before the prior.
        out_scale: of that layer's LayerNorm `[H]`.
        out_shift: of that layer's LayerNorm `[H]`.
        stats: `[S, H]`, from that layer to the logits.
        stats_shift: `[S]`.
    """

    by_stoch: Tensor
    by_action: Tensor
    in_scale: Tensor
    in_shift: Tensor
    gru: Tensor
    gru_scale: Tensor
    gru_shift: Tensor
    by_deter: Tensor
    out_scale: Tensor
    out_shift: Tensor
    stats: Tensor
    stats_shift: Tensor

    def constant(self, dtype: torch.dtype) -> StepWeights:
        """Cut from the graph, the matrices in the arithmetic of the products."""
        w = StepWeights(*(tensor.detach() for tensor in self))
        return w._replace(
            by_stoch=w.by_stoch.to(dtype),
            gru=w.gru.to(dtype),
            by_deter=w.by_deter.to(dtype),
            stats=w.stats.to(dtype),
        )


def step(
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    uniform: Tensor,
    weights: StepWeights,
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
        weights: from `StepWeights.constant`.
        classes: C.
        mix: share of the uniform distribution in every categorical.
        eps: of the LayerNorms.

    Returns:
        `[N, D]`, and one-hots `[N, S]` with the gradient of their probabilities (straight-through).
        Differentiable once, in `deter`, `stoch` and `action`.
    """
    return _Step.apply(deter, stoch, action, uniform, classes, mix, eps, *weights)  # type: ignore[no-any-return,no-untyped-call]


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


def _norm_back(
    grad: Tensor, x: Tensor, moments: tuple[Tensor, Tensor], scale: Tensor, shift: Tensor
) -> Tensor:
    out = aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], *moments, scale, shift, [True, False, False]
    )
    return out[0]  # type: ignore[no-any-return]


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
        *given: Tensor,
    ) -> tuple[Tensor, Tensor]:
        w = StepWeights(*given)
        full, low = deter.dtype, stoch.dtype
        with torch.autocast(deter.device.type, enabled=False):
            moved = action @ w.by_action.t() + stoch @ w.by_stoch.t()
            y, *before = _norm(moved, w.in_scale, w.in_shift, eps)
            both = torch.cat([deter.to(low), aten.silu_(y).to(low)], -1)
            gates = both @ w.gru.t()
            y, *gate = _norm(gates.to(full), w.gru_scale, w.gru_shift, eps)
            new, u = _gates(y)[2:]
            after = torch.lerp(deter, new, u)
            hidden = after.to(low) @ w.by_deter.t()
            y, *out = _norm(hidden.to(full), w.out_scale, w.out_shift, eps)
            logits = aten.silu_(y).to(low) @ w.stats.t() + w.stats_shift
            p = torch.softmax(logits.unflatten(-1, (-1, classes)), -1)
            index = choose(p, uniform, mix)
            one_hot = torch.zeros(p.shape, dtype=low, device=p.device)
            first = torch.arange(0, p.numel(), classes, device=p.device)
            one_hot.view(-1).index_fill_(0, index.flatten() + first, 1.0)
        ctx.moments, ctx.mix, ctx.eps = (before, gate, out), mix, eps
        ctx.save_for_backward(deter, moved, gates, hidden, p, *given)
        return after, one_hot.flatten(1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_after: Tensor, d_stoch: Tensor) -> tuple[Tensor | None, ...]:
        deter, moved, gates, hidden, p, *given = ctx.saved_tensors
        w, eps = StepWeights(*given), ctx.eps
        before, gate, out = ctx.moments
        full, low, size = deter.dtype, w.gru.dtype, deter.shape[-1]
        d_p = (1.0 - ctx.mix) * d_stoch.view(p.shape).to(full)
        d_logits = aten._softmax_backward_data(d_p, p, -1, full).flatten(1).to(low)
        x = hidden.to(full)
        y = _norm(x, w.out_scale, w.out_shift, eps)[0]
        d_y = aten.silu_backward((d_logits @ w.stats).to(full), y)
        d_hidden = _norm_back(d_y, x, out, w.out_scale, w.out_shift).to(low)
        d_after = d_after + d_hidden @ w.by_deter
        # after = deter + u (new - deter), new = tanh(reset * candidate).
        x = gates.to(full)
        y = _norm(x, w.gru_scale, w.gru_shift, eps)[0]
        reset, candidate, new, u = _gates(y)
        d_new = aten.tanh_backward(d_after * u, new)
        d_y = torch.cat(
            [
                aten.sigmoid_backward(d_new * candidate, reset),
                d_new * reset,
                aten.sigmoid_backward(d_after * (new - deter), u),
            ],
            -1,
        )
        d_gates = _norm_back(d_y, x, gate, w.gru_scale, w.gru_shift).to(low)
        d_both = d_gates @ w.gru
        d_deter = torch.addcmul(d_after, d_after, u, value=-1.0) + d_both[:, :size]
        y = _norm(moved, w.in_scale, w.in_shift, eps)[0]
        d_y = aten.silu_backward(d_both[:, size:].to(full), y)
        d_moved = _norm_back(d_y, moved, before, w.in_scale, w.in_shift)
        d_action = d_moved @ w.by_action
        return d_deter, d_moved.to(low) @ w.by_stoch, d_action, *(None for _ in range(16))


def _gates(y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reset, candidate, proposal and update of normalised pre-activations `[N, 3D]`."""
    reset, candidate, update = y.chunk(3, -1)
    reset = torch.sigmoid(reset)
    return reset, candidate, torch.tanh(reset * candidate), torch.sigmoid(update - 1.0)
