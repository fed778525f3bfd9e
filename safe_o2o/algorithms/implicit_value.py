"""V and Q of IQL: the best value among the data's own actions, without a look at any other.

V(s) is an expectile of Q(s, a) over the actions of the data, Q(s, a) is r + gamma V(s') (Kostrikov
et al., ICLR 2022, eqs. 5 and 6; offline.md 2). With cost in the place of reward and an expectile
below one half it is the least cost among them: the same class under the name of a safety critic.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.losses import expectile_weight
from safe_o2o.nets.ensemble import EnsembleMLP
from safe_o2o.nets.q_network import QNetwork

if TYPE_CHECKING:
    from safe_o2o.algorithms.learner import Learner, LearnerConfig, Metrics, Sample


class ImplicitValue(nn.Module):
    """V, an ensemble of Q, and the Q's slow copy.

    Args:
        obs_dim: F.
        action_dim: A.
        config: sizes.
        worst: which of the ensemble to believe: `low` for rewards, `high` for costs.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: LearnerConfig,
        worst: Literal["low", "high"] = "low",
    ) -> None:
        super().__init__()
        sizes, norm = config.hidden_dims, config.layer_norm
        self.worst = worst
        self.state_value = EnsembleMLP(1, obs_dim, 1, sizes, layer_norm=norm)
        self.critic = QNetwork(obs_dim, action_dim, sizes, config.ensemble, layer_norm=norm)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)

    def trained(self) -> Iterator[nn.Parameter]:
        """Parameters of V and Q."""
        yield from self.state_value.parameters()
        yield from self.critic.parameters()

    def value(self, obs: Tensor) -> Tensor:
        """V `[B]` of `[B, F]`."""
        v: Tensor = self.state_value(obs)[0, :, 0]
        return v

    def believed(self, obs: Tensor, action: Tensor) -> Tensor:
        """Of the slow Q the one to believe `[B]` of actions `[B, A]`, or `[B, n]` of n each."""
        q: Tensor = self.target(obs, action)
        return q.amin(0) if self.worst == "low" else q.amax(0)

    def value_loss(self, obs: Tensor, q: Tensor, expectile: float) -> Tensor:
        """L_V (IQL eq. 5) for the slow Q of what was done `[B]`."""
        above = q - self.value(obs)
        with torch.no_grad():
            weight = expectile_weight(above, expectile)
        return torch.dot(weight * above, above) / len(above)

    def critic_loss(self, obs: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """Squared errors against a target `[B]`, summed over the ensemble (IQL eq. 6)."""
        q: Tensor = self.critic(obs, action)
        return len(q) * nn.functional.mse_loss(q, target.expand_as(q))


class Judged(NamedTuple):
    """What V and Q say of a batch after V's step.

    Attributes:
        q: the slow Q of what was done `[B]`.
        v: V `[B]`.
        target: r + gamma V(s') `[B]`.
        metrics: of V.
    """

    q: Tensor
    v: Tensor
    target: Tensor
    metrics: Metrics


def value_step(learner: Learner, x: Sample, expectile: float) -> Judged:
    """V's step, and what follows from the new V: the official order is V, policy, Q, targets."""
    value = learner.net["value"]
    assert isinstance(value, ImplicitValue)
    with torch.no_grad():
        q = value.believed(x.obs, x.action)
    loss = value.value_loss(x.obs, q, expectile)
    learner.optimize("value", loss)
    with torch.no_grad():
        v, after = value.value(torch.cat([x.obs, x.next_obs])).chunk(2)
        target = x.reward + learner.config.discount * (1.0 - x.ended) * after
    return Judged(q, v, target, {"value/loss": loss, "value/v": v.mean()})


def critic_step(learner: Learner, x: Sample, target: Tensor) -> Metrics:
    """Q's step and its slow copy's."""
    value = learner.net["value"]
    assert isinstance(value, ImplicitValue)
    loss = value.critic_loss(x.obs, x.action, target)
    learner.optimize("critic", loss)
    learner.follow(value.target, value.critic)
    return {"critic/loss": loss, "critic/q": target.mean()}
