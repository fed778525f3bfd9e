"""Imitation of all data alike, by any of the generative policies: what the others have to beat."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from safe_o2o.algorithms.diffusion_config import DiffusionConfig
from safe_o2o.algorithms.learner import Learner, LearnerConfig, Metrics, Sample
from safe_o2o.algorithms.learner_presets import preset
from safe_o2o.algorithms.read_out import Explored, Nearest, ReadOutModule, Samples
from safe_o2o.config import require_one_of, require_positive
from safe_o2o.nets.consistency import ConsistencyPolicy
from safe_o2o.nets.generative import GaussianPolicy, MixturePolicy

POLICIES = ("gaussian", "mixture", "diffusion", "consistency")


@dataclass(frozen=True)
class CloningConfig(LearnerConfig):
    """Imitation."""

    kind: str = "gaussian"
    """of the policy: gaussian, mixture, diffusion, consistency"""
    components: int = 4
    """of a mixture"""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    average_rate: float = 0.001
    """of the policy that acts"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "kind", POLICIES)
        require_positive(self, "components", "average_rate")


class Cloning(Learner):
    """A density of the data's actions; what is unlikely to be safe is masked as anywhere else."""

    Config = CloningConfig
    config: CloningConfig

    @staticmethod
    def preset(name: str) -> CloningConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        return preset(CloningConfig, name)

    def build(self) -> None:
        """The policy, and the average of it that acts."""
        cfg, sizes = self.config, (self.obs_dim, self.action_dim)
        self.net["actor"] = {
            "gaussian": lambda: GaussianPolicy(*sizes, cfg.hidden_dims),
            "mixture": lambda: MixturePolicy(*sizes, cfg.hidden_dims, components=cfg.components),
            "diffusion": lambda: cfg.diffusion.policy(*sizes),
            "consistency": lambda: ConsistencyPolicy(*sizes),
        }[cfg.kind]()
        self.net["average"] = copy.deepcopy(self.net["actor"]).requires_grad_(False)

    def groups(self) -> dict[str, tuple[Iterable[nn.Parameter], float]]:
        """One optimiser."""
        return {"actor": (self.net["actor"].parameters(), self.config.actor_lr)}

    def learn(self, x: Sample) -> Metrics:
        """Likelihood, or what stands for it."""
        actor, average = self.net["actor"], self.net["average"]
        if isinstance(actor, ConsistencyPolicy):
            progress = min(1.0, self.step / self.config.total_updates)
            each = actor.loss(x.obs, x.action, self.generator, teacher=average, progress=progress)
        else:
            each = actor.loss(x.obs, x.action, self.generator)
        loss = each.mean()
        self.optimize("actor", loss)
        rate = self.config.average_rate if self.online else 9.0 / (10.0 + self.step)
        self.follow(average, actor, max(self.config.average_rate, rate))
        return {"actor/loss": loss}

    def read_out(self) -> ReadOutModule:
        """The mean of a Gaussian, a sample of the others; what is near it where that is masked."""
        count = self.config.safety.candidates if self.config.safety.mask else 0
        own = self.config.kind == "gaussian"
        actor = self.net["average"]
        proposer = Explored(actor, count) if own else Samples(actor, 1 + count)
        return self.decision(proposer, Nearest(), None)
