"""CVPO's M-step for Gaussians: weighted likelihood, mean and deviation within a KL each.

max sum_k q_k [log N(u_k; mu, S_old) + log N(u_k; mu_old, S)] subject to C_mu <= eps_mu and
C_S <= eps_S (Liu et al., ICML 2022, M-step; decoupled as in MPO; online_safety.md 1.3). All of it
before the squash, where the policy is a Gaussian. Diagonal deviations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.duals import DualVariable
from safe_o2o.nets.distribution import normal_log_prob


class Gaussians(NamedTuple):
    """One a state: mean and deviation `[B, A]`."""

    mean: Tensor
    std: Tensor


class Fit(NamedTuple):
    """Scalars: the weighted log-likelihood, and both KLs from the old policy."""

    likelihood: Tensor
    kl_mean: Tensor
    kl_std: Tensor


def decoupled_fit(new: Gaussians, old: Gaussians, raw: Tensor, weight: Tensor) -> Fit:
    """What the M-step weighs up.

    Args:
        new: the policy, with gradients.
        old: the policy that it may not leave.
        raw: samples before the squash `[B, K, A]`.
        weight: of the samples, rows sum to 1 `[B, K]`.
    """
    u = raw.unsqueeze(-2)
    old_mean, old_std = (x.unsqueeze(1).unsqueeze(2) for x in old)
    new_mean, new_std = (x.unsqueeze(1).unsqueeze(2) for x in new)
    each = normal_log_prob(u, new_mean, old_std) + normal_log_prob(u, old_mean, new_std)
    likelihood = (weight * each[..., 0]).sum(-1).mean()
    off = (new.mean - old.mean) / old.std
    ratio = (old.std / new.std).square()
    kl_std = 0.5 * (ratio - 1.0 - torch.log(ratio)).sum(-1).mean()
    return Fit(likelihood, 0.5 * off.square().sum(-1).mean(), kl_std)


class TrustRegion(nn.Module):
    """Both bounds and their prices.

    Args:
        mean: eps_mu, nat.
        std: eps_S, nat.
        rate: of the prices' logarithms.
        price: both start at this.
        price_max: largest one.
    """

    def __init__(
        self,
        mean: float,
        std: float,
        rate: float = 0.01,
        price: float = 1.0,
        price_max: float = 1e4,
    ) -> None:
        super().__init__()
        self.bounds = mean, std
        self.mean_price = DualVariable(price, rate, 1e-3, price_max)
        self.std_price = DualVariable(price, rate, 1e-3, price_max)

    def loss(self, fit: Fit) -> Tensor:
        """The Lagrangian, to be made small."""
        mean, std = self.bounds
        over_mean = self.mean_price() * (fit.kl_mean - mean)
        return over_mean + self.std_price() * (fit.kl_std - std) - fit.likelihood

    def update(self, fit: Fit) -> None:
        """A step of both prices, in units of their bounds."""
        mean, std = self.bounds
        self.mean_price.update(fit.kl_mean.detach() / mean - 1.0)
        self.std_price.update(fit.kl_std.detach() / std - 1.0)

    def left(self, fit: Fit) -> Tensor:
        """Whether a KL is beyond twice its bound, a scalar bool."""
        mean, std = self.bounds
        return (fit.kl_mean > 2.0 * mean) | (fit.kl_std > 2.0 * std)
