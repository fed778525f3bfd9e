"""IQL: implicit Q-learning (Kostrikov et al., ICLR 2022; offline.md 2)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.implicit_value import ImplicitValue, critic_step, value_step
from safe_o2o.algorithms.learner import Learner, LearnerConfig, Metrics, Sample
from safe_o2o.algorithms.learner_presets import preset
from safe_o2o.algorithms.read_out import Explored, Own, ReadOutModule
from safe_o2o.config import require_positive
from safe_o2o.nets.generative import GaussianPolicy


@dataclass(frozen=True)
class IqlConfig(LearnerConfig):
    """IQL; defaults are the paper's for locomotion, with LayerNorm and z-scores."""

    expectile: float = 0.7
    """of V; antmaze 0.9"""
    inverse_temperature: float = 3.0
    """beta of the weights exp(beta (Q - V)); antmaze 10, adroit and kitchen 0.5"""
    weight_max: float = 100.0
    dropout: float = 0.0
    """of the policy; adroit and kitchen 0.1"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "expectile", "inverse_temperature", "weight_max")


def advantage_weight(advantage: Tensor, inverse_temperature: float, most: float) -> Tensor:
    """min(exp(beta A), most), without overflow (IQL eq. 7)."""
    return torch.exp((inverse_temperature * advantage).clamp(max=math.log(most)))


class Iql(Learner):
    """Expectile V, twin Q, and a Gaussian policy by advantage-weighted regression."""

    Config = IqlConfig
    config: IqlConfig

    @staticmethod
    def preset(name: str) -> IqlConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        return preset(IqlConfig, name, reward="return_range")

    def build(self) -> None:
        """V, Q, policy."""
        cfg, sizes = self.config, (self.obs_dim, self.action_dim)
        self.net["value"] = ImplicitValue(*sizes, cfg)
        self.net["actor"] = GaussianPolicy(*sizes, cfg.hidden_dims, dropout=cfg.dropout)

    def groups(self) -> dict[str, tuple[Iterable[nn.Parameter], float]]:
        """One optimiser each."""
        cfg, value = self.config, self.net["value"]
        return {
            "value": (value.state_value.parameters(), cfg.learning_rate),
            "actor": (self.net["actor"].parameters(), cfg.actor_lr),
            "critic": (value.critic.parameters(), cfg.learning_rate),
        }

    def learn(self, x: Sample) -> Metrics:
        """V; the policy with the new V; Q with the new V(s'); targets."""
        cfg = self.config
        judged = value_step(self, x, cfg.expectile)
        weight = advantage_weight(judged.q - judged.v, cfg.inverse_temperature, cfg.weight_max)
        loss = (weight * self.net["actor"].loss(x.obs, x.action, self.generator)).mean()
        self.optimize("actor", loss)
        return {
            **judged.metrics,
            "actor/loss": loss,
            "actor/weight": weight.mean(),
            **critic_step(self, x, judged.target),
        }

    def read_out(self) -> ReadOutModule:
        """The policy's mean, and the best Q around it where the mask forbids that."""
        standing_by = self.config.safety.candidates if self.config.safety.mask else 0
        return self.decision(Explored(self.net["actor"], standing_by), Own(), self.net["value"])
