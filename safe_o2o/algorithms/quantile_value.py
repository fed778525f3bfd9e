"""The critic of CFPI: each member judges for itself, by quantiles or a number (offline.md 6.6)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from safe_o2o.nets.q_network import QNetwork, QuantileQNetwork, quantile_huber

if TYPE_CHECKING:
    from safe_o2o.algorithms.cfpi import CfpiConfig
    from safe_o2o.algorithms.learner import Sample


class QuantileValue(nn.Module):
    """An ensemble of Q, and its slow copy.

    Args:
        critic: of the ensemble.
    """

    def __init__(self, critic: QNetwork | QuantileQNetwork) -> None:
        super().__init__()
        self.critic = critic
        self.target = copy.deepcopy(critic).requires_grad_(False)

    @classmethod
    def of(cls, config: CfpiConfig, obs_dim: int, action_dim: int) -> QuantileValue:
        """A fresh one of the kind that is asked for."""
        sizes = (obs_dim, action_dim, config.hidden_dims, config.ensemble, config.activation)
        if config.critic == "quantile":
            return cls(QuantileQNetwork(*sizes))
        return cls(QNetwork(*sizes, layer_norm=config.layer_norm))

    def believed(self, obs: Tensor, action: Tensor) -> Tensor:
        """The least of the slow Q `[B]` or `[B, n]`."""
        q: Tensor = self.target(obs, action)
        return q.amin(0)

    def slope(self, obs: Tensor, action: Tensor) -> Tensor:
        """Gradient of `believed` `[B, n, A]` with respect to actions `[B, n, A]`."""
        q, gradient = self.target.with_gradient(obs, action)
        least = q.argmin(0, keepdim=True).unsqueeze(-1).expand(1, *action.shape)
        return torch.gather(gradient, 0, least)[0]

    def loss(
        self,
        x: Sample,
        next_action: Tensor,
        known: Tensor,
        discount: float,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Loss of the ensemble, and its mean Q.

        Args:
            x: the batch.
            next_action: `[B, A]`.
            known: 1 where it is to be learned from `[B]`.
            discount: gamma.
            generator: of random fractions.
        """
        left = discount * (1.0 - x.ended)
        rows = known.sum().clamp(min=1.0)
        if isinstance(self.critic, QNetwork):
            with torch.no_grad():
                target = x.reward + left * self.target(x.next_obs, next_action)
            q = self.critic(x.obs, x.action)
            loss = (q - target).square().mul(known).sum() / rows
            return loss, q.detach().mean()
        assert isinstance(self.target, QuantileQNetwork)
        with torch.no_grad():
            middle, width = self.critic.fractions(len(x.obs), generator)
            after = self.target.quantiles(x.next_obs, next_action, middle)
            aim = x.reward.unsqueeze(-1) + left.unsqueeze(-1) * after
        at, _ = self.critic.fractions(len(x.obs), generator)
        found = self.critic.quantiles(x.obs, x.action, at)
        each = quantile_huber(found, aim, at, width)
        return (each * known).sum() / rows, found.detach().mean()
