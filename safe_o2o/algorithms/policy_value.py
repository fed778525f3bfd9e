"""Q of a policy: temporal differences towards actions that are sampled, or towards recorded ones.

What DiffCPS and Consistency-AC learn (a' from a slow copy of the policy, clipped double Q) and what
their policies climb (offline.md 5.2, 7.4).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from safe_o2o.nets.mlp import constant
from safe_o2o.nets.q_network import QNetwork

if TYPE_CHECKING:
    from safe_o2o.algorithms.learner import Learner, Metrics, Sample


class PolicyValue(nn.Module):
    """An ensemble of Q, and its slow copy.

    Args:
        critic: of the ensemble, `[B, F]`, `[B, (n,) A]` -> `[E, B, (n)]`.
        rate: of the running mean of |Q| that a policy's climb is divided by; 0 divides by the other
            member's mean over the batch, as the released codes do.
        worst: which member to believe: `low` for rewards, `high` for costs.
    """

    scale: Tensor

    def __init__(
        self, critic: QNetwork, rate: float = 0.01, worst: Literal["low", "high"] = "low"
    ) -> None:
        super().__init__()
        self.critic, self.rate, self.worst = critic, rate, worst
        self.target = copy.deepcopy(critic).requires_grad_(False)
        self.register_buffer("scale", torch.zeros(2))
        """Running mean of |Q|, and its weight."""

    def believed(self, obs: Tensor, action: Tensor) -> Tensor:
        """Of the slow Q the one to believe `[B]` or `[B, n]`."""
        q: Tensor = self.target(obs, action)
        return q.amin(0) if self.worst == "low" else q.amax(0)

    def bootstrap(self, obs: Tensor, action: Tensor) -> Tensor:
        """Value `[B]` of sampled actions `[B, n, A]`: of each member the best, of these the least.

        With one sample the usual clipped double Q; with ten the max-Q backup.
        """
        q: Tensor = self.target(obs, action)
        return q.amax(-1).amin(0)

    def loss(self, obs: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """Squared errors against a target `[B]`, summed over members."""
        q: Tensor = self.critic(obs, action)
        return len(q) * nn.functional.mse_loss(q, target.expand_as(q))

    def climb(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """-Q of actions `[B, A]` of a policy, by one member at random, over the size of Q."""
        with constant(self.critic):
            q = self.critic(obs, action)
        first = torch.randint(len(q), (1,), generator=generator, device=generator.device)
        chosen = q.index_select(0, first)[0]
        if self.rate > 0.0:
            with torch.no_grad():
                now = torch.stack([q.abs().mean(), q.new_ones(())])
                self.scale.lerp_(now, self.rate)
            size = self.scale[0] / self.scale[1]
        else:
            size = q.detach().index_select(0, (first + 1) % len(q)).abs().mean()
        return -chosen.mean() / size.clamp(min=1e-6)


def policy_critic_step(learner: Learner, x: Sample) -> Metrics:
    """Q's step towards sampled actions of the policy's average, and its slow copy's."""
    cfg, value = learner.config, learner.net["value"]
    assert isinstance(value, PolicyValue)
    with torch.no_grad():
        action = learner.net["average"].sample(x.next_obs, cfg.backup_samples, learner.generator)
        after = value.bootstrap(x.next_obs, action)
        target = x.reward + cfg.discount * (1.0 - x.ended) * after
    loss = value.loss(x.obs, x.action, target)
    learner.optimize("critic", loss)
    learner.follow(value.target, value.critic)
    return {"critic/loss": loss, "critic/q": target.mean()}
