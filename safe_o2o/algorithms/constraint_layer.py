"""Budgets on average, between a policy and what it learns from: CVPO's constraint handling.

A critic for each cost, its limit in the critic's units, and the E-step over samples of any policy:
what comes out are weights, which a Gaussian, a mixture, a diffusion or a consistency policy is
fitted to alike (online_safety.md 1, 2.6, 8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from safe_o2o.algorithms.budgets import BUDGETS
from safe_o2o.algorithms.cost_profile import CostProfile
from safe_o2o.algorithms.expectation_step import expectation_step
from safe_o2o.algorithms.extraction import Ranked, by_softmax
from safe_o2o.algorithms.policy_value import PolicyValue
from safe_o2o.algorithms.read_out import Rule
from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.nets.q_network import QNetwork

if TYPE_CHECKING:
    from safe_o2o.algorithms.learner import LearnerConfig, Metrics, Sample

CONSTRAINED = ("cost", *BUDGETS)


@dataclass(frozen=True)
class ConstraintConfig:
    """Limits an episode; None leaves a cost without one."""

    cost: float | None = 1.0
    """sum of the task's costs"""
    intervention: float | None = None
    """decisions that the filter, or the gate above it, has to change"""
    force: float | None = None
    """sum over the decisions of the largest contact force in each, N"""
    discount: float = 0.99
    """of the cost critics"""
    kl: float = 0.1
    """eps of the E-step, nat; the smaller, the surer that the policy can follow (FSRL: 0.02)"""
    samples: int = 32
    """K, of each state"""
    recovery: float = 5.0
    """inverse temperature over risk where no sample is feasible"""

    def __post_init__(self) -> None:
        require_positive(self, "kl", "samples", "recovery")
        for name, limit in self.limits.items():
            if limit < 0.0:
                raise ConfigError(f"must be 0 or more, got {limit}", where=f"constraint.{name}")
        if not 0.0 <= self.discount < 1.0:
            raise ConfigError(f"must be in [0, 1), got {self.discount}", where="discount")
        if self.kl >= np.log(self.samples):
            raise ConfigError(
                f"no tilt of {self.samples} samples is {self.kl} nat away: must be below "
                f"{np.log(self.samples):.2f}",
                where="constraint.kl",
            )

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by cost."""
        found = {name: getattr(self, name) for name in CONSTRAINED}
        return {name: float(limit) for name, limit in found.items() if limit is not None}


class ConstraintLayer(nn.Module):
    """Critics of costs, their thresholds, and the last temperature and prices.

    Args:
        obs_dim: F.
        action_dim: A.
        config: limits.
        sizes: of the critics.
    """

    temperature: Tensor
    price: Tensor

    def __init__(
        self, obs_dim: int, action_dim: int, config: ConstraintConfig, sizes: LearnerConfig
    ) -> None:
        super().__init__()
        self.config = config
        self.names = tuple(config.limits)
        self.critics = nn.ModuleDict()
        self.profiles = nn.ModuleDict()
        for name in self.names:
            critic = QNetwork(
                *(obs_dim, action_dim, sizes.hidden_dims, sizes.ensemble),
                layer_norm=sizes.layer_norm,
            )
            self.critics[name] = PolicyValue(critic, worst="high")
            self.profiles[name] = CostProfile(config.discount)
        self.register_buffer("temperature", torch.zeros((), dtype=torch.float64))
        self.register_buffer("price", torch.zeros(len(self.names), dtype=torch.float64))

    def trained(self) -> Iterator[nn.Parameter]:
        """Parameters of the critics."""
        for critic in self.critics.values():
            yield from critic.critic.parameters()

    def costs(self, obs: Tensor, action: Tensor) -> Tensor:
        """Q_c to believe `[m, B, n]` of `[B, n, A]`."""
        found = [critic.believed(obs, action) for critic in self.critics.values()]
        return torch.stack(found) if found else action.new_zeros(0, *action.shape[:-1])

    def loss(self, x: Sample, next_action: Tensor) -> Tensor:
        """The critics' loss, towards what the policy does next `[B, 1, A]`; notes the profile.

        A time limit is no end; a task that ended costs nothing any more.
        """
        total = x.reward.new_zeros(())
        for number, (name, critic) in enumerate(self.critics.items()):
            with torch.no_grad():
                after = critic.believed(x.next_obs, next_action)[:, 0]
                target = x.costs[number] + self.config.discount * (1.0 - x.ended) * after
            total = total + critic.loss(x.obs, x.action, target)
            self.profiles[name].see(x.step, x.costs[number])
        return total

    @torch.no_grad()
    def thresholds(self) -> Tensor:
        """Limits in the critics' units `[m]`."""
        limits = self.config.limits
        found = [self.profiles[name].threshold(limits[name]) for name in self.names]
        return torch.stack(found) if found else self.price

    @torch.no_grad()
    def weigh(
        self, q_reward: Tensor, q_cost: Tensor, risk: Tensor | None, limit: float
    ) -> tuple[Tensor, Metrics]:
        """Weights of samples `[B, K]`, rows sum to 1, and what there is to say of them.

        In states where a safety critic allows a sample the others are left out, and the E-step is
        over the rest. Where it allows none, and nobody asks for reward there, weights go by
        exp(-alpha risk) (online_safety.md 8).

        Args:
            q_reward: of the samples `[B, K]`.
            q_cost: `[m, B, K]`.
            risk: of the samples `[B, K]`, or None.
            limit: risk of a feasible one.
        """
        prior, lost = feasible_prior(risk, limit)
        chosen = torch.ones(len(q_reward), dtype=torch.bool, device=q_reward.device) & ~lost
        weight = torch.empty_like(q_reward)
        if risk is not None:
            weight = torch.softmax(-self.config.recovery * risk, -1)
        metrics = {"constraint/lost": lost.float().mean()}
        if bool(chosen.any()):
            known = float(self.temperature)
            start = (known, self.price.cpu().numpy()) if known > 0.0 else None
            found = expectation_step(
                _host(q_reward[chosen]),
                _host(q_cost[:, chosen]),
                _host(self.thresholds()),
                self.config.kl,
                log_prior=None if prior is None else _host(prior[chosen]),
                start=start,
            )
            weight[chosen] = torch.as_tensor(found.weight, dtype=weight.dtype, device=weight.device)
            self.temperature.fill_(found.temperature)
            self.price.copy_(torch.as_tensor(found.price))
            said = {"kl": found.kl, "temperature": found.temperature}
            said["infeasible"] = float(not found.feasible)
            for number, name in enumerate(self.names):
                said[f"{name}_price"] = float(found.price[number])
                said[f"{name}_of_weighted"] = float(found.cost[number])
            metrics |= {f"constraint/{name}": weight.new_tensor(x) for name, x in said.items()}
        return weight, metrics


def feasible_prior(risk: Tensor | None, limit: float) -> tuple[Tensor | None, Tensor]:
    """Log-prior of samples `[B, K]` that leaves out what is not feasible, and lost states `[B]`.

    None where nothing is left out. A risk that is no number is not feasible.
    """
    if risk is None:
        return None, torch.zeros((), dtype=torch.bool)
    allowed = risk <= limit
    count = allowed.sum(-1, keepdim=True)
    prior = torch.where(allowed, -torch.log(count.to(risk.dtype)), risk.new_tensor(-torch.inf))
    return prior, count[:, 0] == 0


def _host(x: Tensor) -> np.ndarray:
    return x.double().cpu().numpy()


class Priced(Rule):
    """The best of Q less the costs at their prices; explores by a softmax of it.

    Args:
        layer: the prices and critics.
        temperature: see `by_softmax`.
    """

    def __init__(self, layer: ConstraintLayer, temperature: float = 0.1) -> None:
        super().__init__()
        self.layer, self.temperature = layer, temperature

    def forward(self, obs: Tensor, candidates: Tensor, q: Tensor) -> Ranked:
        """See `Rule`."""
        prices = self.layer.price.to(q.dtype).view(-1, 1, 1)
        priced = q - (prices * self.layer.costs(obs, candidates)).sum(0)
        return by_softmax(priced, self.temperature)
