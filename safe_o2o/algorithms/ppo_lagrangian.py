"""PPO with a Lagrangian on the episode's cost: a small learner of behaviours, for low observations.

It makes the behaviours that offline data are recorded with (fosp.md 1.4): without a limit it is
after reward alone, with a limit near zero it keeps out of costs.

Sources: Schulman, Wolski, Dhariwal, Radford, Klimov, *Proximal Policy Optimization Algorithms*,
2017 (the clipped objective, eq. 7); Schulman, Moritz, Levine, Jordan, Abbeel, *High-Dimensional
Continuous Control Using Generalized Advantage Estimation*, 2016 (eq. 16); Ray, Achiam, Amodei,
*Benchmarking Safe Exploration in Deep Reinforcement Learning*, 2019 (PPO-Lagrangian):

    max_pi min_{lam >= 0}  J_r(pi) - lam (J_c(pi) - d)

The policy climbs the clipped objective of the advantage (A_r - lam A_c) / (1 + lam), so that the
size of a step does not grow with lam. Plain dual ascent on the mean cost of whole episodes is slow
to begin and, driven by an untrained policy's costs, slow to come back; Stooke, Achiam, Abbeel,
*Responsive Safety in Reinforcement Learning by PID Lagrangian Methods*, 2020 (algorithm 2), add a
proportional term. Here both, without a derivative:

    I <- clip(I + rate (J_c - d), 0, lam_max)
    lam = clip(I + gain (average of late J_c - d), 0, lam_max)

The proportional part counts only after `gain_after` updates (ours): with it from the first update
on, a policy that knows no way to the reward yet learns to stand still (PointGoal1). To learn
without any price first is no way either: 120 updates with lam up to 10 then moved costs from 50 to
40 only.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.nets.distribution import normal_entropy, normal_log_prob
from safe_o2o.nets.tanh_mlp import RunningNormalizer, tanh_mlp

_COST_FLOOR = 0.05
"""Standard deviation below which cost advantages are the critic's noise, not to be blown up."""


@dataclass(frozen=True)
class PpoLagrangianConfig:
    """Settings of PPO-Lagrangian; one update is one batch of whole episodes."""

    seed: int = 0
    total_updates: int = 200
    """batches of episodes; the learning rates fall linearly to a tenth over them"""
    cost_limit: float | None = None
    """d, mean cost of an episode that is tolerated; None is after reward alone"""
    discount: float = 0.99
    """of reward and cost alike"""
    gae_lambda: float = 0.95
    clip: float = 0.2
    """epsilon of the clipped objective"""
    epochs: int = 10
    """passes over a batch, fewer where the policy has moved by `target_kl` before"""
    minibatch_size: int = 256
    target_kl: float = 0.03
    entropy_weight: float = 1e-3
    actor_rate: float = 3e-4
    critic_rate: float = 1e-3
    max_grad_norm: float = 0.5
    hidden_dims: tuple[int, ...] = (128, 128)
    initial_log_std: float = -0.5
    gain_after: int = 30
    """updates before the proportional part counts"""
    multiplier_rate: float = 0.002
    """rise of lambda's integral part an update for each cost an episode above the limit"""
    multiplier_gain: float = 0.1
    """lambda's proportional part for each cost an episode above the limit; 0: plain dual ascent"""
    cost_decay: float = 0.7
    """of the average over updates that the proportional part looks at: a batch is few episodes"""
    multiplier_max: float = 10.0

    def __post_init__(self) -> None:
        require_positive(
            self,
            *("total_updates", "clip", "epochs", "minibatch_size", "target_kl", "actor_rate"),
            *("critic_rate", "max_grad_norm", "multiplier_max"),
        )
        if not 0.0 <= self.cost_decay < 1.0:
            raise ConfigError(f"must lie in [0, 1), got {self.cost_decay}", where="cost_decay")
        for name in ("discount", "gae_lambda"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(f"must lie in (0, 1], got {getattr(self, name)}", where=name)
        for name in (
            *("cost_limit", "entropy_weight"),
            *("gain_after", "multiplier_rate", "multiplier_gain"),
        ):
            value = getattr(self, name)
            if value is not None and not value >= 0.0:
                raise ConfigError(f"must not be negative, got {value}", where=name)


@dataclass(frozen=True)
class Episodes:
    """N whole episodes side by side, padded to the longest one's T steps.

    Attributes:
        obs: `[T + 1, N, D]`; of an episode of length L, entries 0 to L count.
        action: what the policy drew, before any clipping `[T, N, A]`.
        reward: `[T, N]`.
        cost: `[T, N]`, >= 0.
        terminated: `[T, N]`: no value beyond.
        valid: `[T, N]`: the step happened.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    cost: Tensor
    terminated: Tensor
    valid: Tensor


def generalized_advantage(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    valid: Tensor,
    discount: float,
    gae_lambda: float,
) -> Tensor:
    """A_t = sum_k (discount lambda)^k delta_{t+k} within each episode (GAE, 2016, eq. 16).

    With delta_t = r_t + discount (1 - terminated_t) V_{t+1} - V_t. Where time runs out the value of
    the last observation stands for what would have followed.

    Args:
        reward: `[T, N]`.
        value: `[T + 1, N]`.
        terminated: `[T, N]`.
        valid: `[T, N]`; the advantage elsewhere is 0.
        discount: gamma.
        gae_lambda: lambda.
    """
    delta = reward + discount * value[1:] * (~terminated) - value[:-1]
    advantage, later = torch.zeros_like(reward), torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        later = (delta[t] + discount * gae_lambda * later * (~terminated[t])) * valid[t]
        advantage[t] = later
    return advantage


class BehaviorPolicy(nn.Module):
    """Normal(mu(obs), sigma) with a sigma that does not depend on the observation; see `Policy`."""

    log_std: Tensor

    def __init__(self, name: str, obs_dim: int, action_dim: int, config: Any) -> None:
        super().__init__()
        self.name = name
        self.normalizer = RunningNormalizer(obs_dim)
        self.mean = tanh_mlp(obs_dim, action_dim, config.hidden_dims, 0.01)
        self.log_std = nn.Parameter(torch.full((action_dim,), config.initial_log_std))
        self.generator = torch.Generator().manual_seed(config.seed)

    def initial_carry(self, n: int = 1) -> tuple[()]:
        """It has no memory."""
        return ()

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], carry: Any, deterministic: bool = True
    ) -> tuple[Tensor, Any]:
        """Actions `[n, A]`, not clipped, for observations `[n, D]` under the policy's own name."""
        mean = self.mean(self.normalizer(torch.as_tensor(obs[self.name], dtype=torch.float32)))
        if deterministic:
            return mean, carry
        noise = torch.randn(mean.shape, generator=self.generator)
        return mean + self.log_std.exp() * noise, carry

    def log_prob(self, x: Tensor, action: Tensor) -> Tensor:
        """Log-density `[B]` of actions `[B, A]` at normalised observations `[B, D]`."""
        return normal_log_prob(action, self.mean(x), self.log_std.exp().expand_as(action))


class PpoLagrangian:
    """PPO-Lagrangian; `update` takes a batch of `Episodes`. See the module's docstring.

    Args:
        config: see `PpoLagrangianConfig`.
        name: name of the observation's one vector.
        obs_dim: its size D.
        action_dim: A.
    """

    def __init__(
        self, config: PpoLagrangianConfig, name: str, obs_dim: int, action_dim: int
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.policy = BehaviorPolicy(name, obs_dim, action_dim, config)
            self.critic = tanh_mlp(obs_dim, 1, config.hidden_dims, 1.0)
            self.cost_critic = tanh_mlp(obs_dim, 1, config.hidden_dims, 1.0)
        self.config, self.step = config, 0
        self.lagrange_multiplier, self._integral = 0.0, 0.0
        self._cost: float | None = None  # average over late updates
        critics = [*self.critic.parameters(), *self.cost_critic.parameters()]
        self.actor_optimizer = torch.optim.Adam(self.policy.parameters(), config.actor_rate)
        self.critic_optimizer = torch.optim.Adam(critics, config.critic_rate)
        self.generator = torch.Generator().manual_seed(config.seed + 1)

    def update(self, episodes: Episodes) -> dict[str, float]:
        """One batch: advantages, epochs of minibatches, the multiplier; then the normaliser."""
        self._decay_rates()
        x = self.policy.normalizer(episodes.obs)  # [T + 1, N, D]
        valid = episodes.valid
        with torch.no_grad():
            gain, reward_target = self._estimate(self.critic, x, episodes.reward, episodes)
            price, cost_target = self._estimate(self.cost_critic, x, episodes.cost, episodes)
            lam = self.lagrange_multiplier
            advantage = standardized(gain) - lam * standardized(price, floor=_COST_FLOOR)
            advantage = advantage / (1.0 + lam)
            x, action = x[:-1][valid], episodes.action[valid]
            before = self.policy.log_prob(x, action)
        metrics = self._epochs(x, action, before, advantage, reward_target, cost_target)
        episode_cost = float(episodes.cost.mul(valid).sum(0).mean())
        episode_reward = float(episodes.reward.mul(valid).sum(0).mean())
        if self.config.cost_limit is not None:
            self._control(episode_cost, self.config.cost_limit)
        self.policy.normalizer.update(episodes.obs[:-1][valid])
        self.step += 1
        return {
            "episode/reward": episode_reward,
            "episode/cost": episode_cost,
            "dual/multiplier": self.lagrange_multiplier,
            "actor/std": float(self.policy.log_std.detach().exp().mean()),
            **metrics,
        }

    def _control(self, cost: float, limit: float) -> None:
        """The multiplier after a batch of episodes with this mean cost."""
        config = self.config
        before = cost if self._cost is None else self._cost
        self._cost = config.cost_decay * before + (1.0 - config.cost_decay) * cost
        risen = self._integral + config.multiplier_rate * (cost - limit)
        self._integral = min(max(risen, 0.0), config.multiplier_max)
        gain = config.multiplier_gain if self.step >= config.gain_after else 0.0
        wanted = self._integral + gain * (self._cost - limit)
        self.lagrange_multiplier = min(max(wanted, 0.0), config.multiplier_max)

    def _estimate(
        self, critic: nn.Module, x: Tensor, signal: Tensor, episodes: Episodes
    ) -> tuple[Tensor, Tensor]:
        """Advantages and targets of the critic `[B]` over the steps that happened."""
        value = critic(x).squeeze(-1)
        advantage = generalized_advantage(
            signal,
            value,
            episodes.terminated,
            episodes.valid,
            self.config.discount,
            self.config.gae_lambda,
        )
        return advantage[episodes.valid], (advantage + value[:-1])[episodes.valid]

    def _epochs(
        self,
        x: Tensor,
        action: Tensor,
        before: Tensor,
        advantage: Tensor,
        reward_target: Tensor,
        cost_target: Tensor,
    ) -> dict[str, float]:
        config, policy = self.config, self.policy
        sums: dict[str, float] = {}
        epochs, kl, moving = 0, 0.0, True
        for _ in range(config.epochs):
            order = torch.randperm(len(x), generator=self.generator)
            for rows in order.split(config.minibatch_size):
                value_loss = mean_square(self.critic(x[rows]), reward_target[rows])
                cost_loss = mean_square(self.cost_critic(x[rows]), cost_target[rows])
                self._step(self.critic_optimizer, value_loss + cost_loss)
                losses = {"critic/loss": value_loss, "cost_critic/loss": cost_loss}
                if moving:
                    ratio = (policy.log_prob(x[rows], action[rows]) - before[rows]).exp()
                    objective = clipped_objective(ratio, advantage[rows], config.clip)
                    entropy = normal_entropy(policy.log_std.exp())
                    self._step(
                        self.actor_optimizer, -objective.mean() - config.entropy_weight * entropy
                    )
                    losses["actor/loss"] = -objective.mean()
                for name, loss in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(loss.detach()) * len(rows) / len(x)
            if moving:
                epochs += 1
                with torch.no_grad():
                    change = policy.log_prob(x, action) - before
                    kl = float((change.exp() - 1.0 - change).mean())  # Schulman's estimate, >= 0
                moving = kl <= config.target_kl
        return {
            "critic/loss": sums["critic/loss"] / config.epochs,
            "cost_critic/loss": sums["cost_critic/loss"] / config.epochs,
            "actor/loss": sums["actor/loss"] / epochs,
            "actor/kl": kl,
            "actor/epochs": float(epochs),
        }

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm)
        optimizer.step()

    def _decay_rates(self) -> None:
        left = max(0.1, 1.0 - self.step / self.config.total_updates)
        for optimizer, rate in (
            (self.actor_optimizer, self.config.actor_rate),
            (self.critic_optimizer, self.config.critic_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * left

    def state_dict(self) -> dict[str, Any]:
        """Everything: networks, normaliser, optimisers, multiplier, step, generators."""
        return {
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            "cost_critic": self.cost_critic.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "lagrange_multiplier": self.lagrange_multiplier,
            "integral": self._integral,
            "cost": self._cost,
            "step": self.step,
            "generator": self.generator.get_state(),
            "noise": self.policy.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`; afterwards training goes on bit for bit."""
        self.policy.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        self.cost_critic.load_state_dict(state["cost_critic"])
        # Copies: PyTorch's optimisers would go on with the very tensors they are given.
        self.actor_optimizer.load_state_dict(deepcopy(state["actor_optimizer"]))
        self.critic_optimizer.load_state_dict(deepcopy(state["critic_optimizer"]))
        self.lagrange_multiplier, self.step = state["lagrange_multiplier"], state["step"]
        self._integral, self._cost = state["integral"], state["cost"]
        self.generator.set_state(state["generator"])
        self.policy.generator.set_state(state["noise"])


def clipped_objective(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(ratio A, clip(ratio, 1 - clip, 1 + clip) A), same shapes (PPO, 2017, eq. 7)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)


def mean_square(value: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of a critic's `[B, 1]` against targets `[B]`."""
    return (value.squeeze(-1) - target).square().mean()


def standardized(x: Tensor, floor: float = 1e-6) -> Tensor:
    """(x - mean) / max(std, floor) of a batch `[B]`."""
    return (x - x.mean()) / x.std(unbiased=False).clamp(min=floor)
