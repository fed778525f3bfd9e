"""What the RSSM's two hand-written passes share: weights, the GRU's gates, and their way back.

`rssm_scan` filters recorded sequences with it, `rssm_step` imagines.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


class RecurrenceWeights(NamedTuple):
    """Weights of a step; D deterministic, S = L * C stochastic, H hidden.

    Attributes:
        by_stoch: `[H, S]`, from the stochastic state to the layer before the GRU.
        in_scale: of that layer's LayerNorm `[H]`.
        in_shift: of that layer's LayerNorm `[H]`.
        gru: `[3D, D + H]`, from the old state and that layer to the gates.
        gru_scale: of the gates' LayerNorm `[3D]`.
        gru_shift: of the gates' LayerNorm `[3D]`.
        by_deter: `[H, D]`, from the new state to the layer before the logits.
        out_scale: of that layer's LayerNorm `[H]`.
        out_shift: of that layer's LayerNorm `[H]`.
        stats: `[S, H]`, from that layer to the logits, posterior's or prior's.
        stats_shift: `[S]`.
    """

    by_stoch: Tensor
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

    def products_in(self, dtype: torch.dtype) -> RecurrenceWeights:
        """The matrices in the arithmetic of the products."""
        return self._replace(
            by_stoch=self.by_stoch.to(dtype),
            gru=self.gru.to(dtype),
            by_deter=self.by_deter.to(dtype),
            stats=self.stats.to(dtype),
        )


class Gates(NamedTuple):
    """A GRU's, from normalised pre-activations `[N, 3D]`; each `[N, D]`."""

    reset: Tensor
    candidate: Tensor
    new: Tensor
    """tanh(reset * candidate), what the state is to move to"""
    update: Tensor

    @classmethod
    def of(cls, y: Tensor) -> Gates:
        """Read the pre-activations; the update's are shifted by -1 (DreamerV3)."""
        reset, candidate, update = y.chunk(3, -1)
        reset = torch.sigmoid(reset)
        return cls(reset, candidate, torch.tanh(reset * candidate), torch.sigmoid(update - 1.0))

    def back(self, grad: Tensor, old: Tensor) -> Tensor:
        """Gradient of the pre-activations `[N, 3D]`, from that of old + update (new - old)."""
        d_new = aten.tanh_backward(grad * self.update, self.new)
        return torch.cat(
            [
                aten.sigmoid_backward(d_new * self.candidate, self.reset),
                d_new * self.reset,
                aten.sigmoid_backward(grad * (self.new - old), self.update),
            ],
            -1,
        )


def norm_back(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    """Gradient of a LayerNorm's input `[N, C]`; mean and reciprocal deviation as it gave them."""
    out = aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, rstd, scale, shift, [True, False, False]
    )
    return out[0]  # type: ignore[no-any-return]
