"""LOOP: learning off-policy with online planning, ARC and SafeLOOP (Sikchi, Zhou, Held, CoRL 2021).

What acts is H steps of lookahead through a learned ensemble, from the proposals of an actor that is
learned without a model, ending in its critic, its prices and its safety critic (online_safety.md
3). The actor-critic below is CVPO: the planner pays the same prices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from safe_o2o.algorithms.constraint_layer import ConstraintConfig
from safe_o2o.algorithms.cvpo import Cvpo, CvpoConfig
from safe_o2o.algorithms.diffusion_config import DiffusionConfig
from safe_o2o.algorithms.learner import Metrics, Sample
from safe_o2o.algorithms.learner_presets import preset
from safe_o2o.algorithms.planner import PlannerConfig, PlannerModule
from safe_o2o.config import require_positive
from safe_o2o.nets.dynamics import DynamicsEnsemble


@dataclass(frozen=True)
class LoopConfig(CvpoConfig):
    """LOOP; the actor-critic's settings are CVPO's."""

    planner: PlannerConfig = field(default_factory=PlannerConfig)
    models: int = 5
    model_dims: tuple[int, ...] = (200, 200)
    """hidden layers of each model; the paper: four of 200"""
    model_lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "models", "model_lr")


class Loop(Cvpo):
    """CVPO's actor-critic, an ensemble of models, and a planner between them and the arm."""

    Config = LoopConfig
    config: LoopConfig

    @staticmethod
    def preset(name: str) -> LoopConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        tiny = {
            "candidates": 4,
            "constraint": ConstraintConfig(samples=8),
            "diffusion": DiffusionConfig(3, "mlp", 32),
            "planner": PlannerConfig(horizon=3, candidates=12, proposals=5, iterations=2),
            "models": 3,
            "model_dims": (32, 32),
        }
        paper = {"model_dims": (200, 200, 200, 200), "models": 7}
        return preset(LoopConfig, name, tiny=tiny, **paper)

    def build(self) -> None:
        """See `Cvpo`; and the models."""
        super().build()
        cfg = self.config
        self.net["model"] = DynamicsEnsemble(
            self.obs_dim, self.action_dim, cfg.model_dims, cfg.models
        )

    def groups(self) -> dict[str, tuple[Iterable[nn.Parameter], float]]:
        """One optimiser each."""
        return super().groups() | {"model": (self.net["model"].parameters(), self.config.model_lr)}

    def learn(self, x: Sample) -> Metrics:
        """The actor-critic's update, and the models'."""
        metrics = super().learn(x)
        violated = (x.cost > 0.0).float()
        loss = self.net["model"].loss(
            x.obs, x.action, x.reward, x.next_obs, x.ended, violated, self.generator
        )
        self.optimize("model", loss)
        return metrics | {"model/loss": loss}

    def read_out(self) -> PlannerModule:  # type: ignore[override]
        """The planner."""
        cfg, net = self.config, self.net
        risk = dict(net.items()).get("risk") if self.masked else None
        return PlannerModule(
            *(self.spec, net["reader"], net["model"], net["actor"], net["value"]),
            net["constraint"] if self.masked else None,
            risk,
            cfg.planner,
            cfg.discount,
            cfg.safety.limit,
        )
