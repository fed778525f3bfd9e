"""AlignIQL and AlignIQL-hard: a policy whose value is the learned V (He et al., offline.md 4).

IDQL in everything but what is taken of the candidates: those whose Q is near V (soft), or a sample
of the policy nearest to the data's whose mean Q is V (hard).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.extraction import Ranked, by_alignment, by_multiplier
from safe_o2o.algorithms.idql import PAPER, TINY, Idql, IdqlConfig
from safe_o2o.algorithms.implicit_value import ImplicitValue
from safe_o2o.algorithms.learner import Metrics, Sample
from safe_o2o.algorithms.learner_presets import preset
from safe_o2o.algorithms.read_out import Rule
from safe_o2o.config import require_one_of, require_positive
from safe_o2o.nets.ensemble import EnsembleMLP


@dataclass(frozen=True)
class AlignIqlConfig(IdqlConfig):
    """AlignIQL; defaults are IDQL's."""

    eta: float = 0.0
    """weight of (Q - V)^2; the paper: 1. 0 is one over the variance of the candidates' Q, so that
    the scale of rewards does not matter"""
    multiplier_lr: float = 3e-5
    """of the hard version's alpha(s) and beta(s)"""
    multiplier_clip: float = 1.0
    """largest norm of their gradients"""
    divergence: Literal["kl", "chi2"] = "kl"
    """in which the hard version's policy is nearest to the data's"""
    beta_max: float = 10.0
    """bound of |beta| over the spread of Q: beyond the range of Q's the dual has no minimum"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "multiplier_lr", "multiplier_clip", "beta_max")
        require_one_of(self, "divergence", ("kl", "chi2"))


class Alignment(Rule):
    """-eta (Q - V)^2 (AlignIQL's soft policy).

    Args:
        value: V.
        eta: see `AlignIqlConfig`.
    """

    def __init__(self, value: ImplicitValue, eta: float) -> None:
        super().__init__()
        self.value, self.eta = value, eta

    def forward(self, obs: Tensor, candidates: Tensor, q: Tensor) -> Ranked:
        """See `Rule`."""
        v = self.value.value(obs).unsqueeze(1)
        eta = self.eta or 1.0 / q.var(-1, keepdim=True, correction=0).clamp(min=1e-8)
        return by_alignment(q, v, eta)


class AlignIql(Idql):
    """The candidate whose Q is nearest to V; when it explores, samples by exp(-eta (Q - V)^2)."""

    Config = AlignIqlConfig
    config: AlignIqlConfig

    @staticmethod
    def preset(name: str) -> AlignIqlConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        return preset(AlignIqlConfig, name, tiny=TINY, eta=1.0, **PAPER)

    def rule(self) -> Rule:
        """See `Idql`."""
        return Alignment(self.net["value"], self.config.eta)


def share(alpha: Tensor, beta: Tensor, q: Tensor, divergence: str) -> Tensor:
    """What the policy has over the data, pi / mu, in the hard version (offline.md 4.2)."""
    if divergence == "chi2":
        return 0.5 * (-alpha - beta * q).relu()
    return torch.exp(-1.0 - alpha - beta * q)


def dual_losses(
    alpha: Tensor, beta: Tensor, q: Tensor, v: Tensor, divergence: str = "kl"
) -> tuple[Tensor, Tensor]:
    """L_alpha and L_beta: partial gradients of one convex dual (AlignIQL eqs. 16 and 17).

    At their joint minimum mu times `share` is the policy nearest to mu whose mean Q is V. Beyond an
    exponent of 5 the exponential goes on as a line: it neither overflows nor loses its slope.

    Args:
        alpha: `[B]`; a gradient flows to it in the first loss alone.
        beta: `[B]`; in the second alone.
        q: of actions of the data `[B]`.
        v: `[B]`.
        divergence: see `AlignIqlConfig`.
    """

    def density(a: Tensor, b: Tensor) -> Tensor:
        if divergence == "chi2":
            return share(a, b, q, divergence).square()
        x = -1.0 - a - b * q
        top = x.clamp(max=5.0)
        return torch.exp(top) * (1.0 + (x - top))

    by_alpha = density(alpha, beta.detach()) + alpha
    by_beta = density(alpha.detach(), beta) + beta * v
    return by_alpha.mean(), by_beta.mean()


class Multipliers(nn.Module):
    """alpha(s) and beta(s) of AlignIQL-hard, for Q in units of its spread around V.

    Args:
        obs_dim: F.
        hidden_dims: of both nets.
        beta_max: bound of |beta|.
        divergence: see `AlignIqlConfig`.
    """

    spread: Tensor

    def __init__(
        self, obs_dim: int, hidden_dims: tuple[int, ...], beta_max: float, divergence: str
    ) -> None:
        super().__init__()
        self.divergence = divergence
        self.alpha_net = EnsembleMLP(1, obs_dim, 1, hidden_dims)
        self.beta_net = EnsembleMLP(1, obs_dim, 1, hidden_dims)
        self.beta_max = beta_max
        self.register_buffer("spread", torch.tensor([0.0, 1e-8]))
        """Running mean square of Q - V, and its weight."""

    @property
    def unit(self) -> Tensor:
        """Spread of Q around V, a scalar."""
        return (self.spread[0] / self.spread[1]).clamp(min=1e-12).sqrt()

    def alpha(self, obs: Tensor) -> Tensor:
        """`[B]`."""
        found: Tensor = self.alpha_net(obs)[0, :, 0]
        # Where a policy is the data's, beta = 0 and alpha is this.
        return found - (2.0 if self.divergence == "chi2" else 1.0)

    def beta(self, obs: Tensor) -> Tensor:
        """`[B]`, for Q in units of `unit`."""
        raw: Tensor = self.beta_net(obs)[0, :, 0]
        return self.beta_max * torch.tanh(raw / self.beta_max)


class Hard(Rule):
    """By pi / mu, exp(-beta(s) Q): always sampled, since the best of it would be the best Q.

    Args:
        value: V.
        multipliers: alpha(s), beta(s).
    """

    always = True

    def __init__(self, value: ImplicitValue, multipliers: Multipliers) -> None:
        super().__init__()
        self.value, self.multipliers = value, multipliers

    def forward(self, obs: Tensor, candidates: Tensor, q: Tensor) -> Ranked:
        """See `Rule`."""
        nets = self.multipliers
        if nets.divergence == "chi2":
            above = (q - self.value.value(obs).unsqueeze(1)) / nets.unit
            alpha, beta = nets.alpha(obs).unsqueeze(1), nets.beta(obs).unsqueeze(1)
            weight = torch.log(share(alpha, beta, above, "chi2").clamp(min=1e-6))
            return Ranked(weight, weight)
        beta = nets.beta(obs).unsqueeze(1) / nets.unit
        return by_multiplier(q - q.amax(-1, keepdim=True), beta)


class AlignIqlHard(AlignIql):
    """A sample of the policy nearest to the data's whose mean Q is V."""

    def build(self) -> None:
        """See `Idql`; and the two multipliers."""
        super().build()
        cfg = self.config
        self.net["multipliers"] = Multipliers(
            self.obs_dim, cfg.hidden_dims, cfg.beta_max, cfg.divergence
        )

    def groups(self) -> dict[str, tuple[Iterable[nn.Parameter], float]]:
        """See `Idql`."""
        nets, rate = self.net["multipliers"], self.config.multiplier_lr
        return super().groups() | {
            "alpha": (nets.alpha_net.parameters(), rate),
            "beta": (nets.beta_net.parameters(), rate),
        }

    def judge(self, x: Sample, q: Tensor, v: Tensor) -> Metrics:
        """A step of each multiplier; beta's reads the alpha from before alpha's."""
        nets = self.net["multipliers"]
        assert isinstance(nets, Multipliers)
        above = q - v
        with torch.no_grad():
            nets.spread.lerp_(torch.stack([above.square().mean(), above.new_ones(())]), 0.01)
        alpha, beta = nets.alpha(x.obs), nets.beta(x.obs)
        by_alpha, by_beta = dual_losses(
            alpha, beta, above / nets.unit, torch.zeros_like(above), nets.divergence
        )
        self.optimize("alpha", by_alpha, clip=self.config.multiplier_clip)
        self.optimize("beta", by_beta, clip=self.config.multiplier_clip)
        return {"align/alpha": alpha.mean(), "align/beta": beta.mean()}

    def rule(self) -> Rule:
        """See `Idql`."""
        return Hard(self.net["value"], self.net["multipliers"])
