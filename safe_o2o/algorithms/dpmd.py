"""DPMD: diffusion policy mirror descent (Ma et al., ICML 2025; online_safety.md 2).

pi_new is pi_old exp(Q / lambda), without a sample of pi_new and without a gradient through a chain:
the denoising error of pi_old's samples, weighed by exp(Q / lambda), has its score as the minimum.
`cvpo --algo.policy diffusion` is the same with the dual's temperature, and with budgets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from safe_o2o.algorithms.constraint_layer import ConstraintConfig, feasible_prior
from safe_o2o.algorithms.cvpo import Cvpo, CvpoConfig
from safe_o2o.algorithms.diffusion_config import DiffusionConfig
from safe_o2o.algorithms.learner import Metrics
from safe_o2o.algorithms.learner_presets import preset
from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError


@dataclass(frozen=True)
class DpmdConfig(CvpoConfig):
    """DPMD; where a default departs from the paper, the field says so."""

    policy: str = "diffusion"
    constraint: ConstraintConfig = field(default_factory=lambda: ConstraintConfig(cost=None))
    diffusion: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(steps=20))
    temperature: tuple[float, float] = (5.0, 0.9838)
    """lambda at first and at last, of a Q in units of its spread; the released code's tuning of it
    knows nothing of the policy, so that it is this schedule"""
    temperature_updates: int = 58_000
    """over which the one becomes the other, geometrically; offline it is the last one"""
    clip_q: float = 3.0
    """of the normalised Q"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature_updates", "clip_q")
        if not min(self.temperature) > 0.0:
            raise ConfigError(f"must be positive, got {self.temperature}", where="temperature")


class Dpmd(Cvpo):
    """Twin Q, and a diffusion policy that climbs it by weights on its own samples."""

    Config = DpmdConfig
    config: DpmdConfig

    @staticmethod
    def preset(name: str) -> DpmdConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        tiny = {
            "candidates": 4,
            "constraint": ConstraintConfig(cost=None, samples=8),
            "diffusion": DiffusionConfig(3, "mlp", 32),
        }
        network = DiffusionConfig(20, "mlp", schedule="linear")
        paper = {"diffusion": network, "hidden_dims": (256, 256, 256)}
        return preset(DpmdConfig, name, tiny=tiny, **paper)

    def build(self) -> None:
        """See `Cvpo`; the running variance of Q within a state, and its weight."""
        super().build()
        self.net.register_buffer("q_spread", torch.zeros(2))

    @property
    def temperature(self) -> float:
        """Lambda now."""
        first, last = self.config.temperature
        if not self.online:
            return last
        share = min(1.0, self.online_step / self.config.temperature_updates)
        return float(first * (last / first) ** share)

    def weigh(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Metrics]:
        """Exp(Q / lambda) over each state's samples `[B, K, A]` -> `[B, K]`, rows sum to 1."""
        weight = torch.softmax(self.log_weight(obs, action), -1)
        left = 1.0 / weight.square().sum(-1)
        return weight, {"actor/effective_samples": left.mean()}

    def log_weight(self, obs: Tensor, action: Tensor) -> Tensor:
        """Q / lambda of actions `[B, K, A]` -> `[B, K]`; what is not feasible has none.

        Q is in units of what an action changes of it, clipped. The released code has the spread of
        all states' in its place, which leaves an action little to change, and divides the mean
        alone by it, so that all weigh alike (online_safety.md 2.5).
        """
        cfg, q = self.config, self.net["value"].believed(obs, action)
        known = self.net.q_spread
        known.lerp_(torch.stack([q.var(-1).mean(), q.new_ones(())]), 1e-2)
        spread = (known[0] / known[1]).clamp(min=1e-12).sqrt()
        off = (q - q.mean(-1, keepdim=True)) / spread
        score = off.clamp(-cfg.clip_q, cfg.clip_q) / self.temperature
        if "risk" not in self.net:
            return score
        risk = self.net["risk"].believed(obs, action)
        prior, lost = feasible_prior(risk, cfg.safety.limit)
        assert prior is not None
        return torch.where(lost.unsqueeze(1), -cfg.constraint.recovery * risk, score + prior)
