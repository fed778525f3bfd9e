"""CVPO: constrained variational policy optimization (Liu et al., ICML 2022; online_safety.md 1).

Offline the E-step's prior is a density of the data's actions, so that nothing is weighed that the
data do not do; online it is the policy's own average. With a diffusion policy this is constrained
DPMD: the dual's temperature and prices in the place of hand-tuned ones (2.6).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.constraint_layer import ConstraintConfig, ConstraintLayer, Priced
from safe_o2o.algorithms.diffusion_config import DiffusionConfig
from safe_o2o.algorithms.learner import Learner, LearnerConfig, Metrics, Sample
from safe_o2o.algorithms.learner_presets import preset
from safe_o2o.algorithms.policy_value import PolicyValue
from safe_o2o.algorithms.read_out import Explored, Own, ReadOutModule, Samples
from safe_o2o.algorithms.trust_region import Gaussians, TrustRegion, decoupled_fit
from safe_o2o.config import require_one_of, require_positive
from safe_o2o.nets.consistency import ConsistencyPolicy
from safe_o2o.nets.generative import GaussianPolicy, GenerativePolicy, MixturePolicy
from safe_o2o.nets.q_network import QNetwork

POLICIES = ("gaussian", "mixture", "diffusion", "consistency")


@dataclass(frozen=True)
class CvpoConfig(LearnerConfig):
    """CVPO; where a default departs from the paper, the field says so."""

    constraint: ConstraintConfig = field(default_factory=ConstraintConfig)
    policy: str = "gaussian"
    """gaussian, as in the paper; mixture, diffusion and consistency are fitted to the same
    weights"""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    candidates: int = 32
    """of the policies that are no Gaussian: actions to choose among"""
    kl_mean: float = 5e-3
    """eps_mu of the M-step; the paper: 1e-3"""
    kl_std: float = 5e-4
    """eps_Sigma; the paper: 1e-4 to 1e-3"""
    m_steps: int = 1
    """steps of the M-step on one batch; the paper: 6. They end where a KL is twice its bound"""
    average_rate: float = 0.005
    """of the policy's average, which is the E-step's prior online"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "policy", POLICIES)
        require_positive(self, "candidates", "kl_mean", "kl_std", "m_steps", "average_rate")


class Cvpo(Learner):
    """Twin Q of reward and of each cost, an E-step between them and the policy, an M-step."""

    Config = CvpoConfig
    config: CvpoConfig

    @staticmethod
    def preset(name: str) -> CvpoConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        small = {
            "candidates": 4,
            "constraint": ConstraintConfig(samples=8),
            "diffusion": DiffusionConfig(3, "mlp", 32),
        }
        paper = {"kl_mean": 1e-3, "kl_std": 1e-3, "m_steps": 6, "clip": 0.01, "batch_size": 300}
        return preset(CvpoConfig, name, tiny=small, **paper)

    def build(self) -> None:
        """Q, cost critics, policy, its average, the data's density, the M-step's prices."""
        cfg, sizes = self.config, (self.obs_dim, self.action_dim)
        self.budgets = tuple(cfg.constraint.limits)
        critic = QNetwork(*sizes, cfg.hidden_dims, cfg.ensemble, layer_norm=cfg.layer_norm)
        self.net["value"] = PolicyValue(critic)
        self.net["constraint"] = ConstraintLayer(*sizes, cfg.constraint, cfg)
        self.net["actor"] = self._policy()
        self.net["average"] = copy.deepcopy(self.net["actor"]).requires_grad_(False)
        self.net["behavior"] = copy.deepcopy(self.net["actor"])
        self.net["region"] = TrustRegion(cfg.kl_mean, cfg.kl_std)

    def _policy(self) -> GenerativePolicy:
        cfg, sizes = self.config, (self.obs_dim, self.action_dim)
        if cfg.policy == "diffusion":
            return cfg.diffusion.policy(*sizes)
        if cfg.policy == "consistency":
            return ConsistencyPolicy(*sizes)
        if cfg.policy == "mixture":
            return MixturePolicy(*sizes, cfg.hidden_dims, squash="tanh")
        return GaussianPolicy(*sizes, cfg.hidden_dims, state_std=True, squash="tanh")

    def groups(self) -> dict[str, tuple[Iterable[nn.Parameter], float]]:
        """One optimiser each."""
        cfg = self.config
        costs = list(self.net["constraint"].trained())
        found: dict[str, tuple[Iterable[nn.Parameter], float]] = {
            "critic": ([*self.net["value"].critic.parameters(), *costs], cfg.learning_rate),
            "actor": (self.net["actor"].parameters(), cfg.actor_lr),
        }
        if "behavior" in self.net:
            found["behavior"] = (self.net["behavior"].parameters(), cfg.actor_lr)
        return found

    def learn(self, x: Sample) -> Metrics:
        """Critics; the data's density; the E-step's weights; the M-step; averages."""
        metrics = self._critics(x)
        prior = self.net["average"]
        if not self.online:
            density = self._imitation(self.net["behavior"], x.obs, x.action.unsqueeze(1)).mean()
            self.optimize("behavior", density)
            metrics["actor/density"] = density
            prior = self.net["behavior"]
        with torch.no_grad():
            action, raw = self._sampled(prior, x.obs)
            weight, more = self.weigh(x.obs, action)
        metrics |= more | self._fit(x.obs, action, raw, weight)
        self.follow(self.net["average"], self.net["actor"], self.config.average_rate)
        return metrics

    def _critics(self, x: Sample) -> Metrics:
        cfg, value, layer = self.config, self.net["value"], self.net["constraint"]
        with torch.no_grad():
            action = self.net["average"].sample(x.next_obs, 1, self.generator)
            after = value.bootstrap(x.next_obs, action)
            target = x.reward + cfg.discount * (1.0 - x.ended) * after
        loss = value.loss(x.obs, x.action, target)
        cost_loss = layer.loss(x, action)
        self.optimize("critic", loss + cost_loss)
        self.follow(value.target, value.critic)
        for critic in layer.critics.values():
            self.follow(critic.target, critic.critic)
        return {"critic/loss": loss, "critic/q": target.mean(), "critic/cost_loss": cost_loss}

    def _sampled(self, policy: nn.Module, obs: Tensor) -> tuple[Tensor, Tensor | None]:
        """K actions each `[B, K, A]`; of Gaussians before the squash as well."""
        count = self.config.constraint.samples
        if not isinstance(policy, GaussianPolicy):
            return policy.sample(obs, count, self.generator), None
        _, mean, std = policy.moments(obs)
        shape = (len(obs), count, self.action_dim)
        noise = torch.randn(shape, generator=self.generator, device=obs.device)
        raw = mean + std * noise
        return policy.bounded(raw), raw

    def weigh(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Metrics]:
        """The E-step on samples `[B, K, A]`: weights `[B, K]`."""
        layer, risk = self.net["constraint"], None
        if "risk" in self.net:
            risk = self.net["risk"].believed(obs, action)
        q = self.net["value"].believed(obs, action)
        found: tuple[Tensor, Metrics] = layer.weigh(
            q, layer.costs(obs, action), risk, self.config.safety.limit
        )
        return found

    def _fit(self, obs: Tensor, action: Tensor, raw: Tensor | None, weight: Tensor) -> Metrics:
        """The M-step: weighted imitation; for a Gaussian online within the trust region.

        Offline the tilt of the data's density is within its KL of the data by itself, and the
        policy's own past, which begins with a random network, is nothing to stay near to.
        """
        actor, region, average = self.net["actor"], self.net["region"], self.net["average"]
        if raw is None or not self.online:
            loss = (weight * self._imitation(actor, obs, action)).sum(-1).mean()
            self.optimize("actor", loss)
            return {"actor/loss": loss}
        with torch.no_grad():
            _, *old = average.moments(obs)
            before = Gaussians(*(x[:, 0] for x in old))
        for number in range(self.config.m_steps):
            _, *new = actor.moments(obs)
            fit = decoupled_fit(Gaussians(*(x[:, 0] for x in new)), before, raw, weight)
            if number and bool(region.left(fit)):
                break
            region.update(fit)
            loss = region.loss(fit)
            self.optimize("actor", loss)
        return {"actor/loss": loss, "actor/kl_mean": fit.kl_mean, "actor/kl_std": fit.kl_std}

    def _imitation(self, actor: nn.Module, obs: Tensor, action: Tensor) -> Tensor:
        """What imitation of samples `[B, K, A]` comes to `[B, K]`."""
        rows, count = action.shape[:2]
        wide = obs.unsqueeze(1).expand(-1, count, -1).reshape(rows * count, -1)
        flat = action.reshape(rows * count, -1).clamp(-1.0 + 1e-5, 1.0 - 1e-5)
        if isinstance(actor, ConsistencyPolicy):
            progress = min(1.0, self.step / self.config.total_updates)
            teacher = self.net["average"]
            each = actor.loss(wide, flat, self.generator, teacher=teacher, progress=progress)
        else:
            each = actor.loss(wide, flat, self.generator)
        return each.view(rows, count)

    def read_out(self) -> ReadOutModule:
        """A Gaussian's mean; of the others' samples the best at the last prices."""
        cfg, value = self.config, self.net["value"]
        if cfg.policy == "gaussian":
            standing_by = cfg.safety.candidates if cfg.safety.mask else 0
            return self.decision(Explored(self.net["actor"], standing_by), Own(), value)
        proposer = Samples(self.net["average"], cfg.candidates)
        return self.decision(proposer, Priced(self.net["constraint"]), value)
