"""The discounted safety Bellman equation, its labels, and how unsure a prediction is.

House signs: h > 0 and a value > 0 are dangerous; the literature has l = -h and V = -value. Sources:
Fisac et al., *Bridging Hamilton-Jacobi Safety Analysis and Reinforcement Learning*, ICRA 2019 (the
discounted equation); Nakamura, Peters, Bajcsy, *Latent Safety Filters*, RSS 2025 (on a world
model's states); Nakamura et al., *LatentCBF*, L4DC 2026 (the smooth margin); Seo, Nakamura, Bajcsy,
*UNISafe*, CoRL 2025 (novelty as a failure, the schedule). Equations: `specs/reachability_gate.md`
6.1 to 6.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

MARGIN_WEIGHTS = (0.1, 1.0, 10.0)
"""Of the margin's three terms: distance of the two kinds, sign, slope."""
MARGIN_SLOPE = 0.1
_FLOOR = 1e-6


def safety_target(
    h: Tensor,
    next_value: Tensor,
    violated: Tensor,
    terminated: Tensor,
    discount: Tensor | float,
    danger: float = 1.0,
) -> Tensor:
    """(1 - g) h + g max(h, next value); violations absorb, a task that ended has nothing to come.

    A time limit is no end: its `terminated` is 0 and the value after it counts.

    Args:
        h: danger on arrival `[...]`, in [-1, danger].
        next_value: of the state arrived at `[...]`.
        violated: 1 where the arrival was a violation `[...]`: the target is `danger` there.
        terminated: 1 where the task ended on arrival `[...]`.
        discount: g.
        danger: value of a violation.
    """
    later = torch.where(terminated > 0, h, torch.maximum(h, next_value))
    value = (1.0 - discount) * h + discount * later
    return torch.where(violated > 0, torch.full_like(h, danger), value)


def warning_steps(discount: float, danger: float) -> float:
    """How many steps before a certain violation a discounted value with h of -1 is above zero.

    ln(danger + 1) / -ln g (online_safety.md 5.1): what is further off is called safe. Twice the
    longest stop should be within it.
    """
    if discount >= 1.0:
        return math.inf
    return math.log(danger + 1.0) / -math.log(discount) if discount > 0.0 else 0.0


def safety_discount(update: int, highest: float, stage: int, lowest: float = 0.85) -> float:
    """G after so many updates: highest - (highest - lowest) 0.95^floor(update / stage)."""
    return float(highest - (highest - lowest) * 0.95 ** (update // stage))


def novelty_label(novelty: Tensor, threshold: Tensor, width: Tensor) -> Tensor:
    """How dangerous it is not to know what happens: clip((s - threshold) / width, -1, 1)."""
    return ((novelty - threshold) / width).clamp(-1.0, 1.0)


def distance_label(clearance: Tensor, safe: float, scale: float) -> Tensor:
    """How dangerous a distance is: clip((safe - clearance) / scale, -1, 1); NaN stays NaN (6.1)."""
    return ((safe - clearance) / scale).clamp(-1.0, 1.0)


def margin_loss(
    margin: Callable[[Tensor], Tensor], safe: Tensor, failed: Tensor, mix: Tensor
) -> Tensor:
    """Wasserstein-like loss of LatentCBF (section 3): a margin that is steep nowhere.

    Without the last term a classifier saturates, and with it every value learned from it: then
    all actions look alike but at the border.

    Args:
        margin: state `[N, F]` -> literature's margin `[N]`, positive is safe.
        safe: states without a violation `[N, F]`.
        failed: states with one `[N, F]`; as many, repeat the rarer kind.
        mix: share of each pair's safe state where the slope is looked at, in [0, 1] `[N]`.

    Returns:
        Scalar.
    """
    good, bad = margin(safe), margin(failed)
    between = torch.lerp(failed, safe, mix.unsqueeze(-1)).requires_grad_(True)
    (slope,) = torch.autograd.grad(margin(between).sum(), between, create_graph=True)
    apart = bad.mean() - good.mean()
    sign = bad.relu().mean() + (-good).relu().mean()
    steep = (slope.norm(dim=-1) - MARGIN_SLOPE).square().mean()
    far, wrong, slopes = MARGIN_WEIGHTS
    return far * apart + wrong * sign + slopes * steep


def disagreement(predicted: Tensor, residual_std: Tensor) -> Tensor:
    """Log of the members' variance as a share of what the ensemble is wrong by anyway (6.3, s1).

    Unlike a divergence of Gaussians (UNISafe's JRD) it is neither bounded by the number of members
    nor moved by their own spread, and linear in the square of what they differ by.

    Args:
        predicted: means of the members `[M, ..., D]`.
        residual_std: of the ensemble's mean, by dimension `[D]`.
    """
    # Not `var`: over a first axis of a few members PyTorch takes ten times as long for it.
    variance = (predicted - predicted.mean(0)).square().mean(0)
    share = variance / residual_std.square()
    return torch.log(_FLOOR + share.mean(-1))


def surprise(posterior: Tensor, prior: Tensor) -> Tensor:
    """KL(posterior || prior) of log-probabilities `[..., L, C]`, summed over latents (s2), nat."""
    return (posterior.exp() * (posterior - prior)).sum((-2, -1))
