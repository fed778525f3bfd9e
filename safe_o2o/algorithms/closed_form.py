"""Closed-form policy improvement: where a step along the critic's gradient leads (CFPI).

max_a g^T a subject to log density(a) >= log density(mode) - log tau, for the densities for which
that has a solution: one Gaussian, and two lower bounds of a mixture's (Li et al., CFPI, ICML 2023,
eqs. 7 to 11). All of it in the space where the density is Gaussian. Diagonal covariances.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Shifted(NamedTuple):
    """Improved actions and which of them the constraint allows.

    Attributes:
        action: `[..., A]`; where not feasible what was shifted from.
        feasible: `[...]` bool: whether any action meets the constraint.
        radius: Mahalanobis distance of the shift `[...]`, 0 where not feasible.
    """

    action: Tensor
    feasible: Tensor
    radius: Tensor


def shifted(mean: Tensor, var: Tensor, gradient: Tensor, radius_squared: Tensor) -> Shifted:
    """Mean + k S g / sqrt(g^T S g), k^2 given; where k^2 < 0 nothing is feasible.

    Only the direction of g matters. Without one (g = 0) the mean stays.

    Args:
        mean: `[..., A]`.
        var: diagonal of S `[..., A]`.
        gradient: of the critic at the mean `[..., A]`.
        radius_squared: k^2 `[...]`.
    """
    # By the largest entry first: squares of a tiny gradient would vanish.
    scale = gradient.abs().amax(-1, keepdim=True)
    direction = gradient / scale.clamp(min=torch.finfo(gradient.dtype).tiny)
    length = (direction.square() * var).sum(-1, keepdim=True).sqrt()
    feasible = radius_squared >= -1e-6  # the best component's own peak is, whatever is rounded
    radius = radius_squared.clamp(min=0.0).sqrt()
    step = var * direction / length.clamp(min=1e-30)
    moves = (feasible & (scale[..., 0] > 0.0)).unsqueeze(-1)
    action = torch.where(moves, mean + radius.unsqueeze(-1) * step, mean)
    return Shifted(action, feasible, radius)


def gaussian_shift(mean: Tensor, var: Tensor, gradient: Tensor, log_tau: float) -> Shifted:
    """The improvement of one Gaussian: k^2 = 2 log tau (CFPI eq. 8)."""
    return shifted(mean, var, gradient, mean.new_full(mean.shape[:-1], 2.0 * log_tau))


def half_log_det(var: Tensor) -> Tensor:
    """0.5 log det(2 pi S) of diagonals `[..., A] -> [...]`, as a sum of logarithms."""
    return 0.5 * (torch.log(var) + math.log(2.0 * math.pi)).sum(-1)


def lse_shift(
    log_weight: Tensor,
    mean: Tensor,
    var: Tensor,
    gradient: Tensor,
    log_tau: float,
    *,
    factor: float = 2.0,
) -> Shifted:
    """One improved action a component, from log sum >= max (CFPI eq. 10; its A.2 has a sign typo).

    Args:
        log_weight: log-shares of the components `[..., K]`.
        mean: `[..., K, A]`.
        var: `[..., K, A]`.
        gradient: of the critic at each mean `[..., K, A]`.
        log_tau: how far below the best component's weighted peak the density may be.
        factor: k^2 over (delta - peak); 2 is the paper's, the released code has 4.

    Returns:
        Actions `[..., K, A]`; a component whose peak is lower than allowed is not feasible.
    """
    peak = half_log_det(var) - log_weight
    delta = peak.amin(-1, keepdim=True) + log_tau
    return shifted(mean, var, gradient, factor * (delta - peak))


def jensen_moments(log_weight: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and diagonal `[..., A]` of the Gaussian in Jensen's bound, of K components."""
    precision = log_weight.exp().unsqueeze(-1) / var
    total = 1.0 / precision.sum(-2)
    return total * (precision * mean).sum(-2), total


def jensen_shift(
    log_weight: Tensor, mean: Tensor, var: Tensor, gradient: Tensor, log_tau: float
) -> Shifted:
    """The improvement of a mixture from log sum >= sum of logs (CFPI eq. 11).

    Meant for modes that lie close together; others have no feasible action.

    Args:
        log_weight: log-shares `[..., K]`.
        mean: `[..., K, A]`.
        var: `[..., K, A]`.
        gradient: of the critic at `jensen_moments`' mean `[..., A]`.
        log_tau: see `lse_shift`.
    """
    centre, total = jensen_moments(log_weight, mean, var)
    share = log_weight.exp().unsqueeze(-1)
    inner = (share * mean.square() / var).sum((-2, -1))
    return shifted(
        centre, total, gradient, 2.0 * log_tau - inner + (centre.square() / total).sum(-1)
    )
