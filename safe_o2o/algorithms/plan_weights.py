"""What a sampling planner makes of its candidates: returns, weights, a refitted Gaussian.

ARC's posterior over plans, p exp(kappa R), by iterated importance sampling (Sikchi, Zhou, Held,
*Learning Off-Policy with Online Planning*, CoRL 2021), and SafeLOOP's worst case over the models
(online_safety.md 3). Returns are discounted and end in a value, which the released code leaves out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from safe_o2o.algorithms.extraction import ABSENT

KAPPA_MAX = 1e6


def discounted_return(reward: Tensor, ended: Tensor, value: Tensor, discount: float) -> Tensor:
    """sum_t gamma^t r_t + gamma^H V(s_H), up to where the task ends.

    Args:
        reward: `[..., H]`.
        ended: probability of an end on arrival `[..., H]`.
        value: of the last state `[...]`.
        discount: gamma.

    Returns:
        `[...]`.
    """
    total = torch.zeros_like(value)
    alive = torch.ones_like(value)
    # Step by step: a graph has no running product.
    for step in range(reward.shape[-1]):
        total = total + discount**step * alive * reward[..., step]
        alive = alive * (1.0 - ended[..., step])
    return total + discount ** reward.shape[-1] * alive * value


def effective_share(log_weight: Tensor) -> Tensor:
    """1 / (N sum w^2) of log-weights `[..., N]` -> `[..., 1]`, in (0, 1]."""
    weight = torch.softmax(log_weight, -1)
    return 1.0 / (weight.shape[-1] * weight.square().sum(-1, keepdim=True))


def temperature_for(score: Tensor, share: float, rounds: int = 30) -> Tensor:
    """Kappa at which so large a share of candidates counts, by bisection of its logarithm.

    A scale of rewards does not matter to it. With scores that are all alike every kappa leaves all
    of them: the largest is returned.

    Args:
        score: `[..., N]`; what is no number, or `ABSENT`, is not there and not asked for.
        share: of the effective candidates, in (0, 1).
        rounds: halvings.

    Returns:
        `[..., 1]`.
    """
    there = score.isfinite() & (score > ABSENT)
    top = score.masked_fill(~there, ABSENT).amax(-1, keepdim=True)
    bottom = score.masked_fill(~there, -ABSENT).amin(-1, keepdim=True)
    spread = (top - bottom).clamp(1e-12, 1e12)
    scaled = torch.where(there, (score - top) / spread, ABSENT)
    scaled = torch.where(there.any(-1, keepdim=True), scaled, 0.0)
    low = torch.full_like(top, math.log(1e-3))
    high = torch.full_like(top, math.log(KAPPA_MAX))
    for _ in range(rounds):
        middle = 0.5 * (low + high)
        wide = effective_share(middle.exp() * scaled) > share
        low, high = torch.where(wide, middle, low), torch.where(wide, high, middle)
    return low.exp() / spread


class Weights(NamedTuple):
    """Log-weights of candidates `[..., N]`, and whether enough are feasible `[..., 1]`."""

    log_weight: Tensor
    constrained: Tensor


def safe_weights(
    score: Tensor,
    danger: Tensor,
    kappa: Tensor | float,
    *,
    margin: float = 0.0,
    fewest: int = 1,
) -> Weights:
    """Kappa R over feasible candidates; by the least danger where there are too few.

    Args:
        score: R `[..., N]`.
        danger: the worst that any model sees along a candidate, its end included `[..., N]`;
            feasible at most -margin. One that is no number is never feasible.
        kappa: a number, or `[..., 1]`.
        margin: see `danger`.
        fewest: feasible candidates that are enough.
    """
    feasible = (danger <= -margin) & score.isfinite()
    enough = feasible.sum(-1, keepdim=True) >= fewest
    known = danger.isfinite()
    top = danger.masked_fill(~known, ABSENT).amax(-1, keepdim=True)
    bottom = danger.masked_fill(~known, -ABSENT).amin(-1, keepdim=True)
    spread = (top - bottom).clamp(1e-6, 1e12)
    by_danger = torch.where(known, -20.0 * (danger - bottom) / spread, ABSENT)
    # If every one of them is no number nobody knows anything: the first one, which is to brake.
    first = torch.full_like(score, ABSENT)
    first[..., 0] = 0.0
    by_danger = torch.where(known.any(-1, keepdim=True), by_danger, first)
    by_score = torch.where(feasible, kappa * score, ABSENT)
    return Weights(torch.where(enough, by_score, by_danger), enough)


class Plan(NamedTuple):
    """A Gaussian over action sequences: mean and variance `[..., H, A]`."""

    mean: Tensor
    variance: Tensor


def refit(action: Tensor, weight: Tensor, before: Plan, momentum: float, floor: float) -> Plan:
    """The weighted Gaussian of candidates; its variance remembers the one before.

    Args:
        action: `[..., N, H, A]`.
        weight: rows sum to 1 `[..., N]`.
        before: the plan that they were drawn from.
        momentum: share of its variance that stays.
        floor: smallest deviation.
    """
    w = weight[..., None, None]
    mean = (w * action).sum(-3)
    spread = (w * (action - mean.unsqueeze(-3)).square()).sum(-3)
    variance = momentum * before.variance + (1.0 - momentum) * spread
    return Plan(mean, variance.clamp(min=floor**2))


def drawn(plan: Plan, noise: Tensor) -> Tensor:
    """Candidates `[..., N, H, A]` in [-1, 1] of a plan, of standard normal numbers.

    Noise ends at two deviations, and a deviation at half of the way to the nearer bound.
    """
    room = 0.5 * torch.minimum(1.0 - plan.mean, plan.mean + 1.0).clamp(min=0.0)
    deviation = torch.minimum(plan.variance.sqrt(), room)
    mean, deviation = plan.mean.unsqueeze(-3), deviation.unsqueeze(-3)
    return (mean + deviation * noise.clamp(-2.0, 2.0)).clamp(-1.0, 1.0)


def shifted(plan: Tensor) -> Tensor:
    """A plan `[..., H, A]` one step later; its last action once more."""
    return torch.cat([plan[..., 1:, :], plan[..., -1:, :]], -2)
