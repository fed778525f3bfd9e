"""The RSSM's recurrence over whole sequences, as one differentiable function.

Written out by hand because updates spend their time here: autograd notes some sixty small
operations a step and goes back through each of them. This way back takes half as many, and the
gradient of each weight is one matrix product over all steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from safe_o2o.nets.rssm_recurrence import Gates, RecurrenceWeights, norm_back

aten = torch.ops.aten
_LEAST = 1e-30  # of a probability without a uniform share: its logarithm, and 1 / p, stay finite


class _Norm(NamedTuple):
    """A LayerNorm's input, mean, reciprocal deviation and output."""

    x: Tensor
    mean: Tensor
    rstd: Tensor
    y: Tensor

    @classmethod
    def of(cls, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> _Norm:
        y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
        return cls(x, mean, rstd, y)

    def back(self, grad: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Gradient with respect to the input."""
        return norm_back(grad, self.x, self.mean, self.rstd, scale, shift)


class _Step(NamedTuple):
    """What the way back needs of one step."""

    stoch: Tensor  # before it, in the arithmetic of the products
    deter: Tensor  # before it
    before: _Norm
    both: Tensor  # what the GRU reads, in the arithmetic of the products
    gates: _Norm
    gru: Gates
    after: Tensor  # the state that it made, in the arithmetic of the products
    hidden: _Norm
    read: Tensor  # what the logits are read from, in the arithmetic of the products
    p: Tensor  # softmax of the logits
    mixed: Tensor  # with the uniform share


def scan(
    moved: Tensor,
    seen: Tensor,
    first: Tensor,
    noise: Tensor,
    deter: Tensor,
    stoch: Tensor,
    weights: RecurrenceWeights,
    *,
    mix: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Filter sequences. Time is on axis 0.

    Args:
        moved: `[T, B, H]`, what the actions add before the GRU.
        seen: `[T, B, H]`, what the embeddings add before the posterior.
        first: `[T, B, 1]`, 1 where an episode begins; record 0 counts as such.
        noise: `[T, B, L, C]`, Gumbel noise; zeros take the mode.
        deter: `[D]`, the initial state.
        stoch: `[S]`, the initial one-hots; they get no gradient.
        weights: see `RecurrenceWeights`; `stats` are the posterior's.
        mix: share of the uniform distribution in every categorical.
        eps: of the LayerNorms.

    Returns:
        States `[T, B, D]`, sampled one-hots `[T, B, S]` with the gradient of their probabilities
        (straight-through), and log-probabilities `[T, B, L, C]`. Matrix products are computed in
        autocast's dtype where that is on, all else in the inputs'. Differentiable once.
    """
    return _Scan.apply(moved, seen, first, noise, deter, stoch, mix, eps, *weights)  # type: ignore[no-any-return,no-untyped-call]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        moved: Tensor,
        seen: Tensor,
        first: Tensor,
        noise: Tensor,
        deter0: Tensor,
        stoch0: Tensor,
        mix: float,
        eps: float,
        *given: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kind, full = moved.device.type, moved.dtype
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else full
        w = RecurrenceWeights(*given)
        steps, batch = moved.shape[:2]
        made: list[_Step] = []
        deters, stochs, log_ps = [], [], []
        with torch.autocast(kind, enabled=False):
            low_w = w.products_in(low)
            by_stoch, gru = low_w.by_stoch.t(), low_w.gru.t()
            by_deter, stats = low_w.by_deter.t(), low_w.stats.t()
            deter, stoch = deter0.expand(batch, -1), stoch0.expand(batch, -1)
            for t in range(steps):
                if t > 0:
                    deter = torch.lerp(deter, deter0, first[t])
                    stoch = torch.lerp(stoch, stoch0, first[t])
                one_hot = stoch.to(low)
                before = _Norm.of(moved[t] + one_hot @ by_stoch, w.in_scale, w.in_shift, eps)
                both = torch.cat([deter, torch.nn.functional.silu(before.y)], -1).to(low)
                gates = _Norm.of((both @ gru).to(full), w.gru_scale, w.gru_shift, eps)
                of_gru = Gates.of(gates.y)
                old, deter = deter, torch.lerp(deter, of_gru.new, of_gru.update)
                after = deter.to(low)
                hidden = _Norm.of(seen[t] + after @ by_deter, w.out_scale, w.out_shift, eps)
                read = torch.nn.functional.silu(hidden.y).to(low)
                logits = w.stats_shift + read @ stats
                p = torch.softmax(logits.view(noise.shape[1:]), -1)
                mixed = (1.0 - mix) * p + mix / p.shape[-1] if mix else p.clamp(min=_LEAST)
                log_p = torch.log(mixed)
                choice = (log_p + noise[t]).argmax(-1, keepdim=True)
                stoch = torch.zeros_like(p).scatter_(-1, choice, 1.0).flatten(1)
                made.append(
                    _Step(one_hot, old, before, both, gates, of_gru, after, hidden, read, p, mixed)
                )
                deters.append(deter)
                stochs.append(stoch)
                log_ps.append(log_p)
        ctx.made, ctx.mix = made, mix
        ctx.save_for_backward(first, *given)
        return torch.stack(deters), torch.stack(stochs), torch.stack(log_ps)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_deter_out, by_stoch_out, by_log_p = grads
        first, *given = ctx.saved_tensors
        w, made = RecurrenceWeights(*given), ctx.made
        full, low = by_deter_out.dtype, made[0].both.dtype
        low_w = w.products_in(low)
        size = made[0].deter.shape[-1]
        keep = 1.0 - first
        d_deter, d_stoch = by_deter_out[-1], by_stoch_out[-1]
        back: list[_Back] = []
        for t in range(len(made) - 1, -1, -1):
            step: _Step = made[t]
            # Straight-through: the one-hots change as the probabilities, so d log p = d stoch * p.
            d_mixed = by_log_p[t] / step.mixed + d_stoch.view(step.p.shape)
            d_logits = aten._softmax_backward_data((1.0 - ctx.mix) * d_mixed, step.p, -1, full)
            d_logits = d_logits.flatten(1).to(low)
            d_hidden = aten.silu_backward((d_logits @ low_w.stats).to(full), step.hidden.y)
            d_seen = step.hidden.back(d_hidden, w.out_scale, w.out_shift)
            low_seen = d_seen.to(low)
            d_deter = d_deter + low_seen @ low_w.by_deter
            d_gates = step.gru.back(d_deter, step.deter)
            d_z = step.gates.back(d_gates, w.gru_scale, w.gru_shift).to(low)
            d_both = (d_z @ low_w.gru).to(full)
            d_old = torch.addcmul(d_deter, d_deter, step.gru.update, value=-1.0) + d_both[:, :size]
            d_before = aten.silu_backward(d_both[:, size:], step.before.y)
            d_moved = step.before.back(d_before, w.in_scale, w.in_shift)
            low_moved = d_moved.to(low)
            back.append(
                _Back(
                    d_moved, low_moved, d_before, d_z, d_gates, d_old, d_seen, low_seen, d_hidden,
                    d_logits,
                )
            )  # fmt: skip
            if t > 0:
                d_deter = by_deter_out[t - 1] + d_old * keep[t]
                d_stoch = by_stoch_out[t - 1] + (low_moved @ low_w.by_stoch).to(full) * keep[t]
        back.reverse()
        d_old = torch.stack([step.old for step in back])
        reset = torch.cat([torch.ones_like(first[:1]), first[1:]])
        return (
            torch.stack([step.moved for step in back]),
            torch.stack([step.seen for step in back]),
            None,
            None,
            (d_old * reset).sum((0, 1)),
            None,
            None,
            None,
            _product(back, "low_moved", made, "stoch", full),
            *_norms(back, "before", made, w.in_scale, w.in_shift),
            _product(back, "z", made, "both", full),
            *_norms(back, "gates", made, w.gru_scale, w.gru_shift),
            _product(back, "low_seen", made, "after", full),
            *_norms(back, "hidden", made, w.out_scale, w.out_shift),
            _product(back, "logits", made, "read", full),
            torch.cat([step.logits for step in back]).sum(0, dtype=full),
        )


class _Back(NamedTuple):
    """Gradients of one step; those of the norms are of their outputs."""

    moved: Tensor
    low_moved: Tensor
    before: Tensor
    z: Tensor
    gates: Tensor
    old: Tensor
    seen: Tensor
    low_seen: Tensor
    hidden: Tensor
    logits: Tensor


def _product(
    back: list[_Back], grad: str, made: list[_Step], read: str, dtype: torch.dtype
) -> Tensor:
    """Gradient of a weight over all steps at once."""
    d_y = torch.cat([getattr(step, grad) for step in back])
    x = torch.cat([getattr(step, read) for step in made])
    return (d_y.t() @ x).to(dtype)


def _norms(
    back: list[_Back], name: str, made: list[_Step], scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of a LayerNorm's scale and shift over all steps at once."""
    norms = [getattr(step, name) for step in made]
    x, mean, rstd = (torch.cat([norm[i] for norm in norms]) for i in range(3))
    grad = torch.cat([getattr(step, name) for step in back])
    _, d_scale, d_shift = aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, rstd, scale, shift, [False, True, True]
    )
    return d_scale, d_shift
