"""Budgets: costs that are tolerable on average, each with a limit and a price of its own.

What CVPO's E-step does for one constraint or several (online_safety.md 1.2): a sample's weight is
exp(reward advantage - sum_j lambda_j cost advantage_j), and each lambda_j grows while the weighted
mean of Q_j lies above its threshold. It comes on top of FOSP's own weights: REF and the augmented
Lagrangian, which know no average, stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safe_o2o.data.batch import Batch
from safe_o2o.data.episode import NO_GATE
from safe_o2o.errors import ConfigError, DataError
from safe_o2o.nets.normalizer import RmsNormalizer
from safe_o2o.nets.parallel import everywhere, share

BUDGETS = ("intervention", "force")
"""Extra costs of a decision: 1 where the filter or the reachability gate changed or stopped it;
the largest contact force in it, N."""


def budget_cost(batch: Batch, name: str) -> Tensor:
    """What an action cost by one of `BUDGETS`, shaped as `batch.reward`, on the action's record.

    Raises:
        DataError: the batch does not say.
    """
    column = batch.verdict if name == "intervention" else batch.force
    if column is None:
        raise DataError(f"the batch does not say what budget.{name} limits", where="batch")
    if name == "force":
        return column
    changed = column > 0  # by the filter, or by the gate above it
    if batch.gate is not None:
        changed = changed | ((batch.gate > 0) & (batch.gate < NO_GATE))
    return changed.float()


@dataclass(frozen=True)
class BudgetConfig:
    """Limits on the mean an action may cost; None leaves a cost without a budget."""

    intervention: float | None = None
    """share of the decisions that the filter, or the gate above it, may have to change"""
    force: float | None = None
    """mean over the decisions of the largest contact force in each, N"""
    discount: float = 0.9
    """of their critics"""
    dual_rate: float = 0.01
    """step of the multipliers an update, per standard deviation of the advantage over the limit"""
    multiplier_max: float = 10.0

    def __post_init__(self) -> None:
        for name in BUDGETS:
            limit = getattr(self, name)
            if limit is not None and not limit >= 0.0:
                raise ConfigError(f"must be 0 or more, got {limit}", where=f"budget.{name}")
        if not 0.0 <= self.discount < 1.0:
            raise ConfigError(f"must be in [0, 1), got {self.discount}", where="budget.discount")
        if not (self.dual_rate > 0.0 and self.multiplier_max > 0.0):
            raise ConfigError("dual_rate and multiplier_max must be positive", where="budget")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by cost."""
        found = {name: getattr(self, name) for name in BUDGETS}
        return {name: float(limit) for name, limit in found.items() if limit is not None}


class Budget(nn.Module):
    """The dual variable of E_q[Q] <= d, where q weighs the samples.

    A limit is a mean an action, Q a discounted sum; d is the limit times what the data says a unit
    of the one is in the other, E_D[Q] / E_D[x]: the threshold from the logged cost profile
    (online_safety.md 1.9), which for a uniform cost without end is limit / (1 - discount).

    Args:
        limit: on the mean an action.
        rate: dual step.
        maximum: largest multiplier.
        decay: of the running means over updates.
    """

    lagrange_multiplier: Tensor
    mean_cost: Tensor
    mean_q: Tensor

    def __init__(self, limit: float, rate: float, maximum: float, decay: float = 0.99) -> None:
        super().__init__()
        self.limit, self.rate, self.maximum, self.decay = limit, rate, maximum, decay
        self.scale = RmsNormalizer()
        for name in ("lagrange_multiplier", "mean_cost", "mean_q"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    def price(self, advantage: Tensor) -> Tensor:
        """The multiplier times A, in units of A's own spread; any shape."""
        return self.lagrange_multiplier.to(advantage.dtype) * advantage / self.scale.divisor

    @torch.no_grad()
    def update(self, cost: Tensor, q_data: Tensor, q_weighted: Tensor) -> Tensor:
        """One step of the multiplier.

        Args:
            cost: mean cost of an action in the data.
            q_data: mean of Q over the data.
            q_weighted: mean of Q over the weighted samples.

        Returns:
            The mean cost an action of the weighted samples, in the limit's unit.
        """
        cost, q_data, q_weighted = (x.double().clamp(min=0.0) for x in (cost, q_data, q_weighted))
        first = (self.mean_cost == 0) & (self.mean_q == 0)
        keep = torch.where(first, torch.zeros_like(cost), torch.full_like(cost, self.decay))
        self.mean_cost.copy_(keep * self.mean_cost + (1.0 - keep) * cost)
        self.mean_q.copy_(keep * self.mean_q + (1.0 - keep) * q_data)
        # Where nothing was ever paid, nothing is known of the unit, and nothing has to be paid.
        known = (self.mean_cost > 1e-9) & (self.mean_q > 1e-9)
        unit = torch.where(
            known, self.mean_q / self.mean_cost.clamp(min=1e-9), torch.ones_like(cost)
        )
        over = (q_weighted - self.limit * unit) / self.scale.divisor
        # A young critic may be off by any number of spreads: no step is larger than one of them.
        over = torch.where(known, over.clamp(-1.0, 1.0), -torch.ones_like(over))
        self.lagrange_multiplier.copy_(
            (self.lagrange_multiplier + self.rate * over).clamp(0.0, self.maximum)
        )
        return torch.where(known, q_weighted / unit, cost)


class Budgets(nn.ModuleDict):
    """The budgets of a config by cost; empty without any."""

    def __init__(self, config: BudgetConfig) -> None:
        super().__init__(
            {
                name: Budget(limit, config.dual_rate, config.multiplier_max)
                for name, limit in config.limits.items()
            }
        )

    def price(self, advantage: Mapping[str, Tensor]) -> Tensor:
        """Sum of the prices of all budgets, of advantages by cost."""
        parts = [budget.price(advantage[name]) for name, budget in self.items()]
        return torch.stack(parts).sum(0)

    @torch.no_grad()
    def settle(
        self,
        cost: Mapping[str, Tensor],
        q: Mapping[str, Tensor],
        weighted: Mapping[str, Tensor],
        metrics: dict[str, Tensor],
    ) -> None:
        """Update every budget; the means are this process's shares of theirs.

        Args:
            cost: mean cost of an action in the data, by cost.
            q: mean of Q over the data.
            weighted: mean of Q over the weighted samples.
            metrics: where to note what came out.
        """
        for name, budget in self.items():
            means = torch.stack([cost[name], q[name], weighted[name]])
            spent = budget.update(*everywhere(means))
            metrics[f"budget/{name}"] = share(spent.float())
            metrics[f"budget/{name}_multiplier"] = share(budget.lagrange_multiplier.clone())
