"""Dual variables: how a budget becomes a price."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from safe_o2o.errors import ConfigError


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


class DualVariable(nn.Module):
    """A price lambda >= 0 for a constraint C <= 0: it rises while C > 0 and falls while C < 0.

    Gradient ascent by Adam. The price is kept as its logarithm and projected after each step, so
    that it is positive by itself and never has to be wound back from beyond its range.

    Args:
        initial: first price.
        learning_rate: of Adam: the largest relative change an update.
        low: smallest price; the logarithm needs one above zero.
        high: largest price.
        raw: keep the price itself and bound only its use, as DiffCPS' released code does: beyond
            its range it winds up (offline.md 5.8).
    """

    parameter: Tensor
    moments: Tensor

    def __init__(
        self,
        initial: float = 1.0,
        learning_rate: float = 1e-3,
        low: float = 1e-4,
        high: float = 100.0,
        *,
        raw: bool = False,
    ) -> None:
        super().__init__()
        if not (initial > 0.0 and 0.0 <= low < high and (raw or low > 0.0)):
            raise ConfigError(
                f"a price needs 0 < low < high and a positive start, got {low}, {high}, {initial}",
                where="dual variable",
            )
        self.learning_rate, self.low, self.high, self.raw = learning_rate, low, high, raw
        start = torch.tensor(initial, dtype=torch.float64)
        self.register_buffer("parameter", start if raw else start.clamp(low, high).log())
        self.register_buffer("moments", torch.zeros(3, dtype=torch.float64))
        """Adam's: first and second moment, number of steps."""

    def forward(self) -> Tensor:
        """The price, a scalar without a gradient."""
        price = self.parameter if self.raw else self.parameter.exp()
        return price.clamp(self.low, self.high).float()

    @torch.no_grad()
    def update(self, violation: Tensor) -> None:
        """One step for a scalar C; without a host sync. A number that is none changes nothing."""
        c = violation.detach().double()
        slope = -c  # exponentiated gradient: a low price rises as fast as a high one
        first, second, count = self.moments.unbind()
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 1e-3 * slope**2
        count = count + 1
        step = first / (1.0 - 0.9**count) / ((second / (1.0 - 0.999**count)).sqrt() + 1e-8)
        after = self.parameter - self.learning_rate * step
        if not self.raw:
            after = after.clamp(math.log(self.low), math.log(self.high))
        good = c.isfinite()
        self.parameter.copy_(torch.where(good, after, self.parameter))
        self.moments.copy_(torch.where(good, torch.stack([first, second, count]), self.moments))
