"""CFPI: closed-form policy improvement (Li et al., ICML 2023; offline.md 6).

A density of the data's actions, a critic, and one step along its gradient whose length is a formula
(`closed_form`). No policy is trained after the density.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.closed_form import gaussian_shift, jensen_moments, jensen_shift, lse_shift
from safe_o2o.algorithms.extraction import Ranked, by_softmax
from safe_o2o.algorithms.learner import Learner, LearnerConfig, Metrics, Sample
from safe_o2o.algorithms.learner_presets import preset
from safe_o2o.algorithms.quantile_value import QuantileValue
from safe_o2o.algorithms.read_out import Proposed, Proposer, ReadOutModule, Rule
from safe_o2o.config import require_one_of, require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.nets.ensemble import Activation
from safe_o2o.nets.generative import GaussianPolicy, MixturePolicy


@dataclass(frozen=True)
class CfpiConfig(LearnerConfig):
    """CFPI; where the defaults depart from the paper, the field says so."""

    hidden_dims: tuple[int, ...] = (256, 256, 256)
    components: int = 4
    """Gaussians of the density; 1 is the paper's SG, more its MG"""
    log_tau: float = 0.5
    """how far below its peak the density may fall; the shift is sqrt(2 log tau) deviations. 0 is
    imitation, 0.5 about best-of-4, 1.5 best-of-16"""
    log_tau_online: float = 1.0
    """the same while fine-tuning, which refits the density to what is new"""
    bound: Literal["both", "lse", "jensen"] = "both"
    """of a mixture's density"""
    min_share: float = 0.05
    """xi: components with less do not count"""
    released: bool = False
    """shift components by sqrt(2) more, as the released code does"""
    variant: Literal["one_step", "multi_step", "iterative"] = "one_step"
    """whom the critic judges: the data, the improved policy of the last round, or of this update"""
    rounds: int = 5
    """of multi_step"""
    sarsa: float = 0.02
    """share of the updates that judge the data first, before iterative improves"""
    target_noise: float = 0.1
    target_noise_max: float = 0.5
    """noise on improved actions in targets, and its bound"""
    critic: Literal["quantile", "mean"] = "quantile"
    """implicit quantiles, as the paper's; or a number each"""
    activation: Activation = "silu"
    """of the critic; the paper: relu, whose gradient jumps"""
    actor_lr: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "components", "rounds")
        require_one_of(self, "bound", ("both", "lse", "jensen"))
        require_one_of(self, "variant", ("one_step", "multi_step", "iterative"))
        require_one_of(self, "critic", ("quantile", "mean"))
        if self.log_tau < 0.0 or self.log_tau_online < 0.0:
            raise ConfigError(f"must be 0 or more, got {self.log_tau}", where="log_tau")
        if self.components == 1 and self.bound == "jensen":
            raise ConfigError("one Gaussian has no Jensen bound", where="bound")


class Improved(Proposer):
    """Closed-form improvements of a density; samples of it stand by for a mask to fall back on.

    Args:
        actor: the density, squashed by tanh; everything is worked out before that.
        critic: something with `slope(obs, action)`, the gradient of the believed Q.
        config: bounds.
        log_tau: see `CfpiConfig`.
        standing_by: samples.
    """

    def __init__(
        self,
        actor: GaussianPolicy | MixturePolicy,
        critic: QuantileValue,
        config: CfpiConfig,
        log_tau: float,
        standing_by: int = 0,
    ) -> None:
        super().__init__()
        self.actor, self.critic, self.config, self.log_tau = actor, critic, config, log_tau
        self.noise_inputs, self.deterministic_noise = {}, {}
        if standing_by:
            self.noise_inputs = {"noise": (standing_by, *actor.noise_shape)}
            self.deterministic_noise = {"noise": "fixed"}
        lse = config.components if config.bound != "jensen" else 0
        self.count = lse + int(self._jensen or not lse) + standing_by

    @property
    def _jensen(self) -> bool:
        return self.config.components > 1 and self.config.bound != "lse"

    def forward(self, obs: Tensor, noise: Mapping[str, Tensor]) -> Proposed:
        """See `Proposer`."""
        cfg = self.config
        log_weight, mean, std = self.actor.moments(obs)
        var = std.square()
        parts, allowed = [], []
        if cfg.bound != "jensen":
            slope = self._slope(obs, mean)
            if cfg.components == 1:
                found = gaussian_shift(mean, var, slope, self.log_tau)
            else:
                factor = 4.0 if cfg.released else 2.0
                found = lse_shift(log_weight, mean, var, slope, self.log_tau, factor=factor)
            parts.append(found.action)
            # One below the bound stays where it is: its mean is an action of the data as well.
            allowed.append(log_weight.exp() > min(cfg.min_share, 0.5 / cfg.components))
        if self._jensen:
            centre, _ = jensen_moments(log_weight, mean, var)
            slope = self._slope(obs, centre.unsqueeze(1))[:, 0]
            shifted = jensen_shift(log_weight, mean, var, slope, self.log_tau)
            likely = log_weight.argmax(-1).view(-1, 1, 1).expand(-1, 1, mean.shape[-1])
            # What is not feasible may lie between the modes: nobody is to take it, whatever else.
            instead = torch.gather(mean, 1, likely)[:, 0]
            part = torch.where(shifted.feasible.unsqueeze(-1), shifted.action, instead)
            parts.append(part.unsqueeze(1))
            alone = torch.full_like(shifted.feasible, cfg.bound == "jensen")
            allowed.append((shifted.feasible | alone).unsqueeze(1))
        candidates, preferred = torch.tanh(torch.cat(parts, 1)), torch.cat(allowed, 1)
        if "noise" in noise:
            samples = self.actor.decode(obs, noise["noise"])
            candidates = torch.cat([candidates, samples], 1)
            preferred = torch.cat([preferred, torch.zeros_like(samples[..., 0]).bool()], 1)
        return Proposed(candidates, preferred)

    def _slope(self, obs: Tensor, raw: Tensor) -> Tensor:
        """dQ/du `[B, n, A]` at a = tanh(u), of u `[B, n, A]`."""
        action = torch.tanh(raw)
        return self.critic.slope(obs, action) * (1.0 - action.square())


class BestImproved(Rule):
    """The best Q of the improved actions."""

    def forward(self, obs: Tensor, candidates: Tensor, q: Tensor) -> Ranked:
        """See `Rule`; it explores by a softmax."""
        return by_softmax(q, 0.1)


class Cfpi(Learner):
    """A density of the data's actions, twin Q, and no policy beside them."""

    Config = CfpiConfig
    config: CfpiConfig

    @staticmethod
    def preset(name: str) -> CfpiConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        small = {"hidden_dims": (32, 32), "components": 2}
        paper = {"normalize": True, "activation": "relu", "layer_norm": True, "actor_decay": False}
        return preset(CfpiConfig, name, tiny=small, **paper)

    def build(self) -> None:
        """Density, Q, and who the critic judges in multi_step."""
        cfg, sizes = self.config, (self.obs_dim, self.action_dim)
        kind = {"hidden_dims": cfg.hidden_dims, "squash": "tanh"}
        self.net["actor"] = (
            GaussianPolicy(*sizes, **kind, state_std=True)
            if cfg.components == 1
            else MixturePolicy(*sizes, **kind, components=cfg.components)
        )
        self.net["value"] = QuantileValue.of(cfg, *sizes)
        if cfg.variant == "multi_step":
            self.net["judged"] = copy.deepcopy(self.net).requires_grad_(False)

    def groups(self) -> dict[str, tuple[Iterable[nn.Parameter], float]]:
        """One optimiser each."""
        cfg = self.config
        return {
            "actor": (self.net["actor"].parameters(), cfg.actor_lr),
            "critic": (self.net["value"].critic.parameters(), cfg.learning_rate),
        }

    def learn(self, x: Sample) -> Metrics:
        """The density's likelihood; Q of whom this variant judges; targets."""
        cfg, value = self.config, self.net["value"]
        assert isinstance(value, QuantileValue)
        loss = self.net["actor"].loss(x.obs, x.action, self.generator).mean()
        self.optimize("actor", loss)
        action, known = self._next(x)
        critic_loss, q = value.loss(x, action, known, cfg.discount, self.generator)
        self.optimize("critic", critic_loss)
        self.follow(value.target, value.critic)
        return {"actor/loss": loss, "critic/loss": critic_loss, "critic/q": q}

    def _next(self, x: Sample) -> tuple[Tensor, Tensor]:
        """What is done next in the targets `[B, A]`, and where that is known `[B]`."""
        cfg, done = self.config, self.step / self.config.total_updates
        if cfg.variant == "multi_step":
            each = max(1, cfg.total_updates // cfg.rounds)
            if self.step % each == 0:  # the policy that this round judges, fixed for all of it
                self.follow(self.net["judged"]["actor"], self.net["actor"], 1.0)
                self.follow(self.net["judged"]["value"], self.net["value"], 1.0)
            if self.step >= each:
                return self._improved(self.net["judged"], x), torch.ones_like(x.ended)
        elif cfg.variant == "iterative" and done >= cfg.sarsa:
            return self._improved(self.net, x), torch.ones_like(x.ended)
        # A recorded action, where there is one; where the task ended nobody asks for it.
        return x.next_action, torch.maximum(x.has_next, x.ended)

    @torch.no_grad()
    def _improved(self, net: nn.ModuleDict, x: Sample) -> Tensor:
        """The improved action in the next state, with noise."""
        cfg = self.config
        value = net["value"]
        candidates, preferred = Improved(net["actor"], value, cfg, self.log_tau)(x.next_obs, {})
        q = value.believed(x.next_obs, candidates).masked_fill(~preferred, -torch.inf)
        best = q.argmax(-1).view(-1, 1, 1).expand(-1, 1, self.action_dim)
        action = torch.gather(candidates, 1, best)[:, 0]
        noise = torch.randn(action.shape, generator=self.generator, device=action.device)
        bound = cfg.target_noise_max
        return (action + (cfg.target_noise * noise).clamp(-bound, bound)).clamp(-1.0, 1.0)

    @property
    def log_tau(self) -> float:
        """How far the density may fall now."""
        return self.config.log_tau_online if self.online else self.config.log_tau

    def read_out(self) -> ReadOutModule:
        """The best improved action, and samples of the data's where the mask forbids them all."""
        standing_by = self.config.safety.candidates if self.config.safety.mask else 0
        value = self.net["value"]
        proposer = Improved(self.net["actor"], value, self.config, self.log_tau, standing_by)
        return self.decision(proposer, BestImproved(), value)
