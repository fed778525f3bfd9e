"""DiffCPS: constrained policy search with a diffusion policy (He et al., 2023; offline.md 5).

max Q subject to how far the policy is from the data, by its own denoising error: the price of that
constraint is a dual variable.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.diffusion_config import DiffusionConfig
from safe_o2o.algorithms.duals import DualVariable
from safe_o2o.algorithms.extraction import Ranked, by_softmax
from safe_o2o.algorithms.learner import Learner, LearnerConfig, Metrics, Sample
from safe_o2o.algorithms.learner_presets import preset
from safe_o2o.algorithms.policy_value import PolicyValue, policy_critic_step
from safe_o2o.algorithms.read_out import ReadOutModule, Rule, Samples
from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.nets.q_network import QNetwork


@dataclass(frozen=True)
class ActorCriticConfig(LearnerConfig):
    """What the two actor-critics with sampled actions share (offline.md 5.2, 7.4)."""

    backup_samples: int = 1
    """actions whose best counts in the target; 10 is the papers' max-Q backup"""
    average_rate: float = 0.005
    average_every: int = 5
    """updates between steps of the policy's average"""
    average_start: int = 1000
    """updates before its first step"""
    scale_rate: float = 0.01
    """of the running mean of |Q| that the climb is divided by; 0: the released codes' other head"""
    candidates: int = 50
    """when acting"""
    temperature: float = 0.1
    """of the softmax over them when it explores, in units of their spread"""
    raw_softmax: bool = False
    """take Q as it is there, as the released codes do: its scale then decides how greedy it is"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "backup_samples", "average_every", "candidates", "temperature")


@dataclass(frozen=True)
class DiffCpsConfig(ActorCriticConfig):
    """DiffCPS; where the defaults depart from the paper, the field says so."""

    diffusion: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(5, "mlp"))
    """the paper's T = 5: training goes back through all of them"""
    kappa: float = 0.0
    """largest denoising error; the paper: 0.03 to 0.3 by task. 0 measures it: `slack` times what
    imitation alone comes to. Below what noise in the data costs, no price could be high enough"""
    slack: float = 1.1
    calibration: float = 0.1
    """share of the updates that imitate alone, to measure kappa"""
    price: float = 1.0
    """first lambda"""
    price_lr: float = 1e-3
    """of its logarithm; the released code: 3e-5 on lambda itself"""
    price_min: float = 0.01
    price_max: float = 100.0
    raw_price: bool = False
    """keep lambda unprojected, as the released code does"""
    policy_every: int = 2
    """critic updates for one of the policy"""
    kappa_online: float = 1.5
    """factor on kappa while fine-tuning: what is new has to be allowed"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "slack", "price", "price_lr", "policy_every", "kappa_online")
        if self.kappa < 0.0 or (self.kappa == 0.0 and not 0.0 < self.calibration < 1.0):
            raise ConfigError(
                f"kappa must be positive, or 0 with a share in (0, 1) to measure it in, got "
                f"{self.kappa} and {self.calibration}"
            )


class Softmax(Rule):
    """The best Q of the samples; when it explores, one of them by a softmax.

    Args:
        temperature: see `ActorCriticConfig`.
        raw: see `ActorCriticConfig`.
    """

    def __init__(self, temperature: float, raw: bool) -> None:
        super().__init__()
        self.temperature, self.raw = (1.0 if raw else temperature), raw
        self.always = raw  # the released codes draw when they evaluate, too

    def forward(self, obs: Tensor, candidates: Tensor, q: Tensor) -> Ranked:
        """See `Rule`."""
        return by_softmax(q, self.temperature, raw=self.raw)


class DiffCps(Learner):
    """Twin Q of the policy's average, a diffusion policy that climbs it, a price for leaving."""

    Config = DiffCpsConfig
    config: DiffCpsConfig

    @staticmethod
    def preset(name: str) -> DiffCpsConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        small = {"diffusion": DiffusionConfig(3, "mlp", 32), "candidates": 4, "average_start": 2}
        paper = {"kappa": 0.05, "price_lr": 3e-5, "price_min": 0.0, "scale_rate": 0.0}
        more = {"hidden_dims": (256, 256, 256), "raw_softmax": True, "raw_price": True, "clip": 9.0}
        return preset(DiffCpsConfig, name, tiny=small, total_updates=2_000_000, **paper, **more)

    def build(self) -> None:
        """Q, policy, its average, the price."""
        cfg, sizes = self.config, (self.obs_dim, self.action_dim)
        critic = QNetwork(*sizes, cfg.hidden_dims, cfg.ensemble, layer_norm=cfg.layer_norm)
        self.net["value"] = PolicyValue(critic, cfg.scale_rate)
        self.net["actor"] = cfg.diffusion.policy(*sizes)
        self.net["average"] = copy.deepcopy(self.net["actor"]).requires_grad_(False)
        bounds = (cfg.price, cfg.price_lr, cfg.price_min, cfg.price_max)
        self.net["price"] = DualVariable(*bounds, raw=cfg.raw_price)
        self.net["bound"] = Bound(cfg.kappa, cfg.slack)

    def groups(self) -> dict[str, tuple[Iterable[nn.Parameter], float]]:
        """One optimiser each."""
        cfg = self.config
        return {
            "critic": (self.net["value"].critic.parameters(), cfg.learning_rate),
            "actor": (self.net["actor"].parameters(), cfg.actor_lr),
        }

    def learn(self, x: Sample) -> Metrics:
        """Q; every other update the policy and its price; averages."""
        cfg, bound = self.config, self.net["bound"]
        metrics = policy_critic_step(self, x)
        if self.step % cfg.policy_every == 0:
            self._improve(x)
        average_step(self)
        last = dict(zip(("actor/error", "actor/climb"), bound.last.clone(), strict=True))
        return metrics | last | {"actor/price": self.net["price"](), "actor/kappa": bound()}

    def _improve(self, x: Sample) -> None:
        """The policy's step on lambda L_c - Q, then the price's."""
        cfg, bound, price = self.config, self.net["bound"], self.net["price"]
        actor = self.net["actor"]
        error = actor.loss(x.obs, x.action, self.generator).mean()
        if self.imitates:
            self.optimize("actor", error)
            bound.see(error)
            return
        action = actor.sample(x.obs, 1, self.generator)[:, 0]
        climb = self.net["value"].climb(x.obs, action, self.generator)
        self.optimize("actor", price() * error + climb)
        price.update(error - bound() * (cfg.kappa_online if self.online else 1.0))
        bound.last.copy_(torch.stack([error, climb]).detach())

    @property
    def imitates(self) -> bool:
        """Whether this update still measures what imitation comes to."""
        cfg = self.config
        return cfg.kappa == 0.0 and self.step < cfg.calibration * cfg.total_updates

    def read_out(self) -> ReadOutModule:
        """The best of the policy's samples."""
        cfg = self.config
        rule = Softmax(cfg.temperature, cfg.raw_softmax)
        return self.decision(Samples(self.net["actor"], cfg.candidates), rule, self.net["value"])


class Bound(nn.Module):
    """kappa: as it is given, or what imitation comes to.

    Args:
        kappa: 0 measures it.
        slack: factor on what was measured.
    """

    seen: Tensor
    last: Tensor

    def __init__(self, kappa: float, slack: float) -> None:
        super().__init__()
        self.kappa, self.slack = kappa, slack
        self.register_buffer("seen", torch.zeros(2))
        """Running mean of the error, and its weight."""
        self.register_buffer("last", torch.zeros(2))
        """Error and climb of the policy's last step."""

    def see(self, error: Tensor) -> None:
        """Take in an error of imitation."""
        with torch.no_grad():
            self.seen.lerp_(torch.stack([error, torch.ones_like(error)]), 0.01)
            self.last.copy_(torch.stack([error, torch.zeros_like(error)]))

    def forward(self) -> Tensor:
        """kappa, a scalar."""
        if self.kappa > 0.0:
            return torch.full_like(self.seen[0], self.kappa)
        return self.slack * self.seen[0] / self.seen[1].clamp(min=1e-6)


def average_step(learner: Learner) -> None:
    """The policy's average follows it, every few updates, after some."""
    cfg = learner.config
    if learner.step % cfg.average_every:
        return
    # Until then the average is the random start: it had better be the policy itself.
    late = learner.step >= cfg.average_start or learner.online
    rate = cfg.average_rate if late else 1.0
    learner.follow(learner.net["average"], learner.net["actor"], rate)
