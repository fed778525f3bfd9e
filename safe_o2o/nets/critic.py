"""Value functions: one class under the names reward, cost and reachability critic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from safe_o2o.nets.distribution import TwoHot
from safe_o2o.nets.mlp import MLP

Output = Literal["two_hot", "scalar", "probability"]


class NumberHead(nn.Module):
    """MLP that predicts a number, with the likelihood that goes with its output.

    Args:
        in_dim: size of the input feature.
        hidden_dims: hidden layers.
        output: `two_hot` (255 symlog bins, cross entropy), `scalar` (squared error) or
            `probability` (one logit, binary cross entropy).
        out_scale: scale of the output's initialisation.
        bins: bins of the two-hot output.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        output: Output,
        out_scale: float = 0.0,
        bins: int = 255,
    ) -> None:
        super().__init__()
        self.kind = output
        self.two_hot = TwoHot(bins) if output == "two_hot" else None
        self.mlp = MLP(in_dim, bins if output == "two_hot" else 1, hidden_dims, out_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Raw output `[..., bins]` or `[..., 1]`."""
        return self.mlp(x)

    def decode(self, raw: Tensor) -> Tensor:
        """Raw output to the predicted number `[...]`."""
        if self.two_hot is not None:
            return self.two_hot.decode(raw)
        return torch.sigmoid(raw[..., 0]) if self.kind == "probability" else raw[..., 0]

    def nll(self, raw: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood `[...]` of targets `[...]`, up to a constant."""
        if self.two_hot is not None:
            return self.two_hot.nll(raw, target)
        if self.kind == "probability":
            return nn.functional.binary_cross_entropy_with_logits(
                raw[..., 0], target, reduction="none"
            )
        return 0.5 * (raw[..., 0] - target).square()

    def predict(self, x: Tensor) -> Tensor:
        """`decode(forward(x))`."""
        return self.decode(self(x))


class Critic(nn.Module):
    """Ensemble of Q(s, a), or of V(s) when `action_dim` is 0.

    Args:
        feature_dim: size of the state feature.
        action_dim: A, or 0 for a state value.
        hidden_dims: hidden layers of each member.
        output: see `NumberHead`.
        ensemble: number of members E.
        bins: bins of the two-hot output.
    """

    def __init__(
        self,
        feature_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        output: Output = "two_hot",
        ensemble: int = 1,
        bins: int = 255,
    ) -> None:
        super().__init__()
        self.member = nn.ModuleList(
            NumberHead(feature_dim + action_dim, hidden_dims, output, 0.0, bins)
            for _ in range(ensemble)
        )

    def raw(self, feature: Tensor, action: Tensor | None = None) -> Tensor:
        """Raw outputs `[E, ..., K]`."""
        x = feature if action is None else torch.cat([feature, action], -1)
        return torch.stack([member(x) for member in self.member])

    def decode(self, raw: Tensor) -> Tensor:
        """Raw outputs to numbers `[E, ...]`."""
        head = self.member[0]
        assert isinstance(head, NumberHead)
        return head.decode(raw)

    def forward(self, feature: Tensor, action: Tensor | None = None) -> Tensor:
        """Values `[E, ...]`."""
        return self.decode(self.raw(feature, action))

    def nll(self, raw: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood `[E, ...]` of targets `[...]`."""
        head = self.member[0]
        assert isinstance(head, NumberHead)
        return head.nll(raw, target.expand(raw.shape[:-1]))


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    """Target += rate * (online - target), buffers copied; rate 1 copies.

    Parameters that are not trained are the same in both and left alone.
    """
    pairs = zip(target.parameters(), online.parameters(), strict=True)
    trained = [(old, new) for old, new in pairs if new.requires_grad]
    torch._foreach_lerp_([old for old, _ in trained], [new for _, new in trained], rate)
    for old, new in zip(target.buffers(), online.buffers(), strict=True):
        old.copy_(new)
