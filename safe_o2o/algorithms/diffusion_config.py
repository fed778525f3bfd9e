"""Settings of a diffusion policy, shared by those who have one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from safe_o2o.config import require_one_of, require_positive
from safe_o2o.nets.diffusion import DiffusionPolicy


@dataclass(frozen=True)
class DiffusionConfig:
    """A denoiser and its sampler (offline.md 1.3, 1.4)."""

    steps: int = 15
    """T; the papers: 5, of which a third of the samples lie between two modes (offline.md 1.5)"""
    network: Literal["residual", "mlp"] = "residual"
    """IDQL's residual network, or Diffusion-QL's MLP"""
    hidden_dim: int = 256
    sampler: Literal["posterior", "beta", "ddim"] = "posterior"
    """DiffCPS': posterior; IDQL's: beta"""
    clip: Literal["x0", "each", "none"] = "x0"
    """what is kept within [-1, 1] on the way: DiffCPS the clean action, IDQL each step's result"""

    schedule: Literal["vp", "cosine", "linear"] = "vp"
    """of the noise; DPMD's and SDAC's: linear. The last step of cosine makes a hundred
    times as much of rounding: its graph may be refused for that"""
    weighting: Literal["uniform", "elbo"] = "uniform"
    """of the steps in the loss; elbo: the bound of the likelihood, within a factor of 4 of it"""

    def __post_init__(self) -> None:
        require_positive(self, "steps", "hidden_dim")
        require_one_of(self, "network", ("residual", "mlp"))
        require_one_of(self, "schedule", ("vp", "cosine", "linear"))
        require_one_of(self, "weighting", ("uniform", "elbo"))

    def policy(self, obs_dim: int, action_dim: int) -> DiffusionPolicy:
        """A fresh policy."""
        return DiffusionPolicy(
            obs_dim,
            action_dim,
            steps=self.steps,
            network=self.network,
            hidden_dim=self.hidden_dim,
            sampler=self.sampler,
            clip=self.clip,
            schedule=self.schedule,
            weighting=self.weighting,
        )
