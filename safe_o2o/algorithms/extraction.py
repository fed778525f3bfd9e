"""How a policy is read out of candidates and a critic: scores, weights, one choice.

Every rule is a pair of numbers a candidate: a score, of which the largest is taken when the policy
is deployed, and a log-weight, which it is sampled by when it explores. A safety critic's mask
stands above both: the one hook that safety needs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ABSENT = -3e38
"""The score of what is not to be taken: finite, since a graph keeps it among its weights, where
promotion accepts nothing that is not."""


class Ranked(NamedTuple):
    """What a rule makes of candidates.

    Attributes:
        score: `[B, n]`; the largest is taken.
        log_weight: `[B, n]` up to a constant; candidates are sampled by it.
    """

    score: Tensor
    log_weight: Tensor


def expectile_weight(q: Tensor, v: Tensor, expectile: float) -> Tensor:
    """|tau - 1(Q < V)|: what an expectile's implicit policy has over the behaviour (IDQL)."""
    return torch.where(q < v, 1.0 - expectile, expectile).to(q.dtype)


def quantile_weight(q: Tensor, v: Tensor, quantile: float, floor: float = 1e-2) -> Tensor:
    """|tau - 1(Q < V)| / |Q - V|, which has a pole at Q = V: the distance has a floor (IDQL)."""
    return expectile_weight(q, v, quantile) / (q - v).abs().clamp(min=floor)


def linex_weight(q: Tensor, v: Tensor, alpha: float) -> Tensor:
    """Alpha |exp(alpha (Q - V)) - 1| / |Q - V|, alpha^2 at Q = V (IDQL)."""
    u = q - v
    near = u.abs() < 1e-6
    far = alpha * torch.expm1(alpha * u).abs() / torch.where(near, torch.ones_like(u), u.abs())
    return torch.where(near, torch.full_like(u, alpha * alpha), far)


def by_value(q: Tensor, weight: Tensor) -> Ranked:
    """The largest Q is taken, candidates are sampled by weights `[B, n]` (IDQL)."""
    return Ranked(q, torch.log(weight))


def by_alignment(q: Tensor, v: Tensor, eta: float | Tensor) -> Ranked:
    """-eta (Q - V)^2: AlignIQL's soft policy; the released code sampled by its inverse."""
    score = -eta * (q - v).square()
    return Ranked(score, score)


def by_multiplier(q: Tensor, beta: Tensor) -> Ranked:
    """-beta Q: AlignIQL-hard, beta its alignment multiplier `[B, 1]`.

    Where beta < 0, which an exact one is for an expectile of at least one half, the best of these
    is the best Q: only sampling by them is another algorithm.
    """
    score = -beta * q
    return Ranked(score, score)


def by_softmax(q: Tensor, temperature: float, *, raw: bool = False) -> Ranked:
    """Softmax of Q over the candidates, its temperature in units of their spread.

    Args:
        q: `[B, n]`.
        temperature: of the softmax.
        raw: take Q as it is, as the released codes of Diffusion-QL and its children do: with small
            values that is uniform, with large ones the maximum.
    """
    if raw:
        return Ranked(q, q / temperature)
    spread = q.std(-1, keepdim=True, correction=0).clamp(min=1e-6)
    return Ranked(q, (q - q.amax(-1, keepdim=True)) / (temperature * spread))


def nearest(candidates: Tensor) -> Ranked:
    """The first candidate `[B, n, A]`, and after it the others by their distance from it."""
    distance = (candidates - candidates[:, :1]).square().mean(-1)
    return Ranked(-distance, -distance)


def own(q: Tensor) -> Ranked:
    """The first candidate, and after it the others by their Q `[B, n]`."""
    first = torch.zeros_like(q, dtype=torch.bool)
    first[:, 0] = True
    score = below(q, first)
    return Ranked(score, score)


def below(score: Tensor, preferred: Tensor) -> Tensor:
    """Scores `[B, n]` with those that are not preferred `[B, n]` all below those that are."""
    span = score.amax(-1, keepdim=True) - score.amin(-1, keepdim=True)
    return torch.where(preferred, score, score - 2.0 * span - 20.0)


def gumbel(normal: Tensor) -> Tensor:
    """Standard Gumbel numbers from standard normal ones, of the same shape."""
    uniform = 0.5 * (1.0 + torch.erf(normal / 2.0**0.5))
    return -torch.log(-torch.log(uniform.clamp(1e-6, 1.0 - 1e-6)))


def final_score(
    ranked: Ranked, draw: Tensor, risk: Tensor | None = None, limit: float = 0.0
) -> Tensor:
    """What the largest is taken of `[B, n]`.

    Args:
        ranked: see `Ranked`.
        draw: standard normal numbers `[B, n]`; zeros say that nothing is drawn.
        risk: of the candidates `[B, n]`; None has no mask.
        limit: a candidate is feasible where its risk is at most this; where none is, the one of the
            least risk counts. A risk that is no number is not feasible.
    """
    drawn = (draw != 0.0).any(-1, keepdim=True)
    score = torch.where(drawn, ranked.log_weight + gumbel(draw), ranked.score)
    if risk is None:
        return score
    feasible = risk <= limit
    worst = torch.full_like(score, ABSENT)
    masked = torch.where(feasible, score, worst)
    least = torch.where(risk.isnan(), worst, -risk)
    return torch.where(feasible.any(-1, keepdim=True), masked, least)


def take(candidates: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """The candidate `[B, A]` of `[B, n, A]` with the largest score `[B, n]`, and its number."""
    index = score.argmax(-1)
    wide = index.view(-1, 1, 1).expand(-1, 1, candidates.shape[-1])
    return torch.gather(candidates, 1, wide)[:, 0], index
