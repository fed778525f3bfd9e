"""Consistency-AC: an actor-critic whose policy denoises in one or two evaluations.

Ding and Jin, "Consistency models as a rich and efficient policy class", ICLR 2024 (offline.md 7).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from safe_o2o.algorithms.diffcps import ActorCriticConfig, Softmax, average_step
from safe_o2o.algorithms.learner import Learner, Metrics, Sample
from safe_o2o.algorithms.learner_presets import preset
from safe_o2o.algorithms.policy_value import PolicyValue, policy_critic_step
from safe_o2o.algorithms.read_out import ReadOutModule, Samples
from safe_o2o.config import require_one_of, require_positive
from safe_o2o.nets.consistency import ConsistencyPolicy
from safe_o2o.nets.q_network import QNetwork


@dataclass(frozen=True)
class ConsistencyAcConfig(ActorCriticConfig):
    """Consistency-AC; where the defaults depart from the paper, the field says so."""

    eta: float = 1.0
    """weight of Q; the paper: 0.01 to 4.5 by task"""
    levels: tuple[float, ...] = (80.0, 0.5)
    """noise levels of a sample; the paper: 80 and 2, of which the second forgets the first"""
    network: Literal["residual", "mlp"] = "mlp"
    network_dim: int = 256
    released: bool = False
    """the released code's network inputs and weights of the loss"""
    clone_half_life: float = 2000.0
    """online updates after which imitation counts half; 0 drops it at once, as the paper does"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "eta", "network_dim")
        require_one_of(self, "network", ("residual", "mlp"))


class ConsistencyAc(Learner):
    """Twin Q of the policy's average, a consistency policy that climbs it and imitates."""

    Config = ConsistencyAcConfig
    config: ConsistencyAcConfig

    @staticmethod
    def preset(name: str) -> ConsistencyAcConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        small = {"network_dim": 32, "candidates": 4, "average_start": 2}
        paper = {"levels": (80.0, 2.0), "released": True, "clone_half_life": 0.0}
        more = {"hidden_dims": (256, 256, 256), "raw_softmax": True, "scale_rate": 0.0, "clip": 9.0}
        return preset(
            ConsistencyAcConfig, name, tiny=small, total_updates=2_000_000, **paper, **more
        )

    def build(self) -> None:
        """Q, policy, and its average, which is the teacher as well."""
        cfg, sizes = self.config, (self.obs_dim, self.action_dim)
        critic = QNetwork(*sizes, cfg.hidden_dims, cfg.ensemble, layer_norm=cfg.layer_norm)
        self.net["value"] = PolicyValue(critic, cfg.scale_rate)
        self.net["actor"] = ConsistencyPolicy(
            *sizes,
            levels=cfg.levels,
            network=cfg.network,
            hidden_dim=cfg.network_dim,
            released=cfg.released,
        )
        self.net["average"] = copy.deepcopy(self.net["actor"]).requires_grad_(False)

    def groups(self) -> dict[str, tuple[Iterable[nn.Parameter], float]]:
        """One optimiser each."""
        cfg = self.config
        return {
            "critic": (self.net["value"].critic.parameters(), cfg.learning_rate),
            "actor": (self.net["actor"].parameters(), cfg.actor_lr),
        }

    def learn(self, x: Sample) -> Metrics:
        """Q; the policy on imitation and -Q through its whole chain; averages."""
        cfg, actor = self.config, self.net["actor"]
        assert isinstance(actor, ConsistencyPolicy)
        metrics = policy_critic_step(self, x)
        # Of all offline updates: a curriculum that starts anew would never leave its beginning.
        progress = min(1.0, self.step / cfg.total_updates)
        teacher = self.net["average"]
        error = actor.loss(
            x.obs, x.action, self.generator, teacher=teacher, progress=progress
        ).mean()
        action = actor.sample(x.obs, 1, self.generator)[:, 0]
        climb = self.net["value"].climb(x.obs, action, self.generator)
        self.optimize("actor", self.clone_weight * error + cfg.eta * climb)
        average_step(self)
        return metrics | {"actor/error": error, "actor/climb": climb}

    @property
    def clone_weight(self) -> float:
        """How much imitation counts."""
        if not self.online:
            return 1.0
        half = self.config.clone_half_life
        return 0.5 ** (self.online_step / half) if half > 0.0 else 0.0

    def read_out(self) -> ReadOutModule:
        """The best of the policy's samples."""
        cfg = self.config
        rule = Softmax(cfg.temperature, cfg.raw_softmax)
        return self.decision(Samples(self.net["actor"], cfg.candidates), rule, self.net["value"])
