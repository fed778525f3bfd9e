"""What FOSP's objectives read: a batch as floats, and what the networks say of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safe_o2o.algorithms import losses
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.fosp_policy import FospNet, cautious
from safe_o2o.algorithms.world_model import Imagined

KINDS = ("reward", "cost")


@contextmanager
def constant(*modules: nn.Module) -> Iterator[None]:
    """Treat the parameters of modules as constants; gradients still reach their inputs."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class Records:
    """A batch as FOSP reads it: `[B, T, ...]` float32, images around zero."""

    image: Tensor
    vector: Tensor
    action: Tensor
    x: dict[str, Tensor]
    terminated: Tensor
    is_first: Tensor
    mask: Tensor
    actor_mask: Tensor
    pairs: losses.Pairs


@dataclass(frozen=True)
class Estimates:
    """What the networks in training say of the recorded pairs, computed once for all losses.

    Attributes:
        feature: of the states of the pairs `[B, T-1, F]`.
        q: raw outputs of the critics by kind, `[E, B, T-1, K]`.
        v: raw outputs of the values by kind, `[1, B, T-1, K]`.
    """

    feature: Tensor
    q: dict[str, Tensor]
    v: dict[str, Tensor]


class Reading:
    """What the networks say, as the losses of one update need it.

    Args:
        config: settings.
        net: the networks in training.
    """

    def __init__(self, config: FospConfig, net: FospNet) -> None:
        self.config, self.net = config, net

    def discount(self, kind: str) -> float:
        """Per-step discount of reward, cost, or what has a budget."""
        if kind in self.config.budget.limits:
            return self.config.budget.discount
        return self.config.discount_reward if kind == "reward" else self.config.discount_cost

    def imagined_return(self, imagined: Imagined, kind: str) -> Tensor:
        """X_h of fosp.md 3.1, `[H, N]`, differentiable in the actions."""
        with constant(self.net.value):
            value = self.net.value[kind](imagined.feature)[0]
        x = imagined.reward if kind == "reward" else imagined.cost
        return losses.imagined_lambda_return(
            x, value, imagined.cont, self.discount(kind), self.config.lambda_
        )

    def estimates(self, feature: Tensor, data: Records) -> Estimates:
        """Critics and values at the recorded pairs."""
        now, action, net = feature[:, :-1], data.action[:, :-1], self.net
        return Estimates(
            now,
            {kind: critic.raw(now, action) for kind, critic in net.critic.items()},
            {kind: value.raw(now) for kind, value in net.value.items()},
        )

    def q(self, kind: str, said: Estimates) -> Tensor:
        """The cautious one of the ensemble `[B, T-1]`, cut from the graph."""
        return cautious(kind, self.net.critic[kind].decode(said.q[kind].detach()))

    def v(self, kind: str, said: Estimates) -> Tensor:
        """Value `[B, T-1]`, cut from the graph."""
        return self.net.value[kind].decode(said.v[kind].detach())[0]

    def u(self, p: Tensor) -> Tensor:
        """1 - p, the probability of no violation to come `[...]`; 1 without REF."""
        return 1.0 - p if self.config.feasibility == "reach" else torch.ones_like(p)

    @torch.no_grad()
    def feasible(self, feature: Tensor) -> Tensor:
        """The u of states `[...]`."""
        return self.u(self.net.value["reach"](feature)[0])
