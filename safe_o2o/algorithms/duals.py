"""Dual variables: how a budget becomes a price."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AugmentedLagrangian(nn.Module):
    """Penalty of LAMBDA/SafeDreamer for a constraint C <= limit (fosp.md 3.6).

    With g = C - limit: where lam + c g > 0, Phi = lam g + (c / 2) g^2 and lam <- lam + c g;
    otherwise Phi = -lam^2 / (2 c) and lam <- 0. Then c <- min(c (1 + growth), c_max).

    Args:
        limit: d.
        multiplier: lam_0.
        penalty: c_0.
        growth: relative growth of c an update.
        penalty_max: largest c.
        multiplier_max: cap on lam; with d = 0 and costs >= 0 it never shrinks.
    """

    lagrange_multiplier: Tensor
    penalty: Tensor

    def __init__(
        self,
        limit: float = 0.0,
        multiplier: float = 1e-6,
        penalty: float = 5e-9,
        growth: float = 1e-5,
        penalty_max: float = 1.0,
        multiplier_max: float = 1e3,
    ) -> None:
        super().__init__()
        self.limit, self.growth = limit, growth
        self.penalty_max, self.multiplier_max = penalty_max, multiplier_max
        # float64: the paper's constants (5e-9, growth 1e-5) vanish in float32.
        self.register_buffer("lagrange_multiplier", torch.tensor(multiplier, dtype=torch.float64))
        self.register_buffer("penalty", torch.tensor(penalty, dtype=torch.float64))

    def forward(self, cost: Tensor) -> Tensor:
        """Phi of a scalar cost measure C, differentiable in C; uses the current lam and c."""
        g = cost.double() - self.limit
        # Clones: `update` may run before the backward pass of this value.
        lam, c = self.lagrange_multiplier.clone(), self.penalty.clone()
        active = lam + c * g > 0
        phi = torch.where(active, lam * g + 0.5 * c * g.square(), -lam.square() / (2.0 * c))
        return phi.to(cost.dtype)

    @torch.no_grad()
    def update(self, cost: Tensor) -> None:
        """One step of lam and c after the policy's step on `forward(cost)`."""
        lam = self.lagrange_multiplier + self.penalty * (cost.double() - self.limit)
        self.lagrange_multiplier.copy_(lam.clamp(0.0, self.multiplier_max))
        self.penalty.copy_((self.penalty * (1.0 + self.growth)).clamp(max=self.penalty_max))
