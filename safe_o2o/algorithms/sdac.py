"""SDAC: soft diffusion actor-critic by reverse sampling (Ma et al., ICML 2025; online_safety.md 2).

pi is exp(Q / lambda) on the whole box: for a noisy action a_t the clean ones behind it are drawn
from a Gaussian, and weighed. The draws are truncated to the box: clipped ones, as in the released
code, stand for a target that goes on outside of it (2.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from safe_o2o.algorithms.cvpo import POLICIES
from safe_o2o.algorithms.diffusion_config import DiffusionConfig
from safe_o2o.algorithms.dpmd import Dpmd, DpmdConfig
from safe_o2o.algorithms.learner import Metrics, Sample
from safe_o2o.algorithms.learner_presets import preset
from safe_o2o.config import require_one_of, require_positive
from safe_o2o.nets.diffusion import DiffusionPolicy


@dataclass(frozen=True)
class SdacConfig(DpmdConfig):
    """SDAC; where a default departs from the paper, the field says so."""

    draws: int = 64
    """K clean actions behind a noisy one"""
    effective: float = 4.0
    """fewest effective draws: below, the temperature of that state rises; the paper has no bound"""
    imitation: float = 1.0
    """weight of the data's denoising error when training goes on online"""
    imitation_half_life: float = 2000.0
    """online updates after which it counts half; 0 drops it at once"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "draws", "effective")
        require_one_of(self, "policy", [name for name in POLICIES if name == "diffusion"])


def reverse_noise(x: Tensor, kept: Tensor, uniform: Tensor) -> Tensor:
    """Noise eps whose clean action x / sqrt(k) - sqrt(1/k - 1) eps lies in [-1, 1].

    Standard normal, truncated per entry to [(x - sqrt k) / sqrt(1 - k), (x + sqrt k) / sqrt(1 - k)]
    (online_safety.md 2.5), by its inverse distribution in the tail where both ends are small.

    Args:
        x: noisy actions, `[..., A]`.
        kept: alpha_bar, of a shape that fits.
        uniform: in (0, 1), of the shape that is wanted.
    """
    root, spread = kept.double().sqrt(), (1.0 - kept.double()).sqrt()
    low, high = (x - root) / spread, (x + root) / spread
    # In the upper tail a distribution function has no digits left: there, of the mirror image.
    flip = low > 0.0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    below, above = torch.special.ndtr(low), torch.special.ndtr(high)
    found = torch.special.ndtri(below + (above - below) * uniform.double())
    # Further out than any distribution function reaches the nearer end is all there is.
    found = torch.where(found.isfinite(), found, high).clamp(low, high)
    return torch.where(flip, -found, found)


def tempered(score: Tensor, effective: float, rounds: int = 12) -> Tensor:
    """Softmax `[..., K]`, its temperature doubled where fewer than so many samples count."""
    weight = torch.softmax(score, -1)
    for _ in range(rounds):
        few = weight.square().sum(-1, keepdim=True) > 1.0 / effective
        score = torch.where(few, 0.5 * score, score)
        weight = torch.softmax(score, -1)
    return weight


class Sdac(Dpmd):
    """Twin Q, and a diffusion policy that is fitted to exp(Q / lambda) by reverse sampling."""

    Config = SdacConfig
    config: SdacConfig

    @staticmethod
    def preset(name: str) -> SdacConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        network = DiffusionConfig(20, "mlp", schedule="linear")
        paper = {"diffusion": network, "hidden_dims": (256, 256, 256), "imitation": 0.0}
        tiny = {"candidates": 4, "draws": 8, "diffusion": DiffusionConfig(3, "mlp", 32)}
        return preset(SdacConfig, name, tiny=tiny, **paper)

    def build(self) -> None:
        """See `Dpmd`, without a density of the data beside the policy."""
        super().build()
        del self.net["behavior"]

    def learn(self, x: Sample) -> Metrics:
        """Critics; the policy imitates offline and is fitted to Q online; averages.

        exp(Q / lambda) asks for Q of any action: what the data say nothing about is for a robot to
        find out, not for a critic to guess.
        """
        metrics = self._critics(x)
        actor = self.net["actor"]
        loss = x.reward.new_zeros(())
        if self.imitation_weight > 0.0:
            imitation = actor.loss(x.obs, x.action, self.generator).mean()
            loss = loss + self.imitation_weight * imitation
            metrics["actor/imitation"] = imitation
        if self.online:
            fitted, more = self._reverse(x.obs)
            loss = loss + fitted
            metrics |= more
        self.optimize("actor", loss)
        self.follow(self.net["average"], actor, self.config.average_rate)
        return metrics

    @property
    def imitation_weight(self) -> float:
        """How much the data's denoising error counts."""
        cfg = self.config
        if not self.online:
            return 1.0
        if cfg.imitation_half_life <= 0.0:
            return 0.0
        return float(cfg.imitation * 0.5 ** (self.online_step / cfg.imitation_half_life))

    def _reverse(self, obs: Tensor) -> tuple[Tensor, Metrics]:
        """The denoising error against the weighed noise behind noisy actions.

        All draws of a state share its noisy action, so that their mean is what is regressed on.
        """
        cfg, actor = self.config, self.net["actor"]
        assert isinstance(actor, DiffusionPolicy)
        schedule, rows, device = actor.schedule, len(obs), obs.device
        with torch.no_grad():
            clean = self.net["average"].sample(obs, 1, self.generator)[:, 0]
            index = torch.randint(schedule.steps, (rows,), generator=self.generator, device=device)
            noise = torch.randn(clean.shape, generator=self.generator, device=device)
            x = schedule.noised(clean, index, noise)
            kept = schedule.alpha_bar[index].view(-1, 1, 1)
            shape = (rows, cfg.draws, self.action_dim)
            uniform = torch.rand(shape, generator=self.generator, device=device)
            behind = reverse_noise(x.unsqueeze(1), kept, uniform)
            action = x.unsqueeze(1) / kept.sqrt() - (1.0 / kept - 1.0).sqrt() * behind
            action = action.to(x.dtype).clamp(-1.0, 1.0)
            weight = tempered(self.log_weight(obs, action), cfg.effective)
            target = (weight.unsqueeze(-1) * behind).sum(1).to(x.dtype)
        error = actor.noise_in(x, index, obs) - target
        loss = error.square().mean(-1).mean()
        left = (1.0 / weight.square().sum(-1)).mean()
        return loss, {"actor/loss": loss, "actor/effective_samples": left}
