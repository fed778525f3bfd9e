"""IDQL: IQL's critic as an actor-critic with a diffusion policy (Hansen-Estruch et al., 2023).

offline.md 3. The critic never sees the policy, the policy never sees the critic: they meet when an
action is taken, as the best of N samples of what the data did.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from safe_o2o.algorithms.diffusion_config import DiffusionConfig
from safe_o2o.algorithms.extraction import (
    Ranked,
    by_value,
    expectile_weight,
    linex_weight,
    quantile_weight,
)
from safe_o2o.algorithms.implicit_value import ImplicitValue, critic_step, value_step
from safe_o2o.algorithms.learner import Learner, LearnerConfig, Metrics, Sample
from safe_o2o.algorithms.learner_presets import preset
from safe_o2o.algorithms.read_out import ReadOutModule, Rule, Samples
from safe_o2o.config import require_one_of, require_positive

WEIGHTS = ("expectile", "quantile", "linex")


@dataclass(frozen=True)
class IdqlConfig(LearnerConfig):
    """IDQL; where the defaults depart from the paper, the field says so."""

    expectile: float = 0.7
    """of V; antmaze 0.9"""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    average_rate: float = 0.001
    """of the policy that acts"""
    candidates: int = 32
    """N; the paper: 32 to 128, tuned per suite"""
    weight: str = "expectile"
    """what the implicit policy that explores weighs candidates by: expectile, quantile, linex"""
    linex_alpha: float = 1.0
    actor_online: bool = True
    """train the policy on online data too; the released code does not: its support never grows"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "candidates", "linex_alpha", "average_rate")
        require_one_of(self, "weight", WEIGHTS)


class Implicit(Rule):
    """The best Q; sampled by what V's loss makes of Q (IDQL eq. 9).

    Args:
        value: V.
        kind: see `IdqlConfig.weight`.
        level: the expectile, which is also the quantile.
        alpha: of linex.
    """

    def __init__(self, value: ImplicitValue, kind: str, level: float, alpha: float) -> None:
        super().__init__()
        self.value, self.kind, self.level, self.alpha = value, kind, level, alpha

    def forward(self, obs: Tensor, candidates: Tensor, q: Tensor) -> Ranked:
        """See `Rule`."""
        v = self.value.value(obs).unsqueeze(1)
        if self.kind == "linex":
            return by_value(q, linex_weight(q, v, self.alpha))
        weigh = expectile_weight if self.kind == "expectile" else quantile_weight
        return by_value(q, weigh(q, v, self.level))


class Idql(Learner):
    """Expectile V, twin Q, and a diffusion model of the data's actions."""

    Config: type[IdqlConfig] = IdqlConfig
    config: IdqlConfig

    @staticmethod
    def preset(name: str) -> IdqlConfig:
        """Its settings at a size: `tiny`, `small` or `paper`."""
        return preset(IdqlConfig, name, tiny=TINY, **PAPER)

    def build(self) -> None:
        """V, Q, policy and the average of it that acts."""
        sizes = (self.obs_dim, self.action_dim)
        self.net["value"] = ImplicitValue(*sizes, self.config)
        self.net["actor"] = self.config.diffusion.policy(*sizes)
        self.net["average"] = copy.deepcopy(self.net["actor"]).requires_grad_(False)

    def groups(self) -> dict[str, tuple[Iterable[nn.Parameter], float]]:
        """One optimiser each."""
        cfg, value = self.config, self.net["value"]
        return {
            "actor": (self.net["actor"].parameters(), cfg.actor_lr),
            "value": (value.state_value.parameters(), cfg.learning_rate),
            "critic": (value.critic.parameters(), cfg.learning_rate),
        }

    def learn(self, x: Sample) -> Metrics:
        """The policy imitates, whatever Q says; V; Q with the new V(s'); targets."""
        cfg, actor = self.config, self.net["actor"]
        loss = actor.loss(x.obs, x.action, self.generator).mean()
        if not self.online or cfg.actor_online:
            self.optimize("actor", loss)
            # A short memory at first, or the random start would be averaged in for long.
            rate = cfg.average_rate if self.online else 9.0 / (10.0 + self.step)
            self.follow(self.net["average"], actor, max(cfg.average_rate, rate))
        judged = value_step(self, x, cfg.expectile)
        more = self.judge(x, judged.q, judged.v)
        steps = critic_step(self, x, judged.target)
        return {"actor/loss": loss, **judged.metrics, **more, **steps}

    def judge(self, x: Sample, q: Tensor, v: Tensor) -> Metrics:
        """What else is learned from the slow Q and V of a batch; nothing here."""
        return {}

    def rule(self) -> Rule:
        """Who is taken of the candidates."""
        cfg, value = self.config, self.net["value"]
        return Implicit(value, cfg.weight, cfg.expectile, cfg.linex_alpha)

    def read_out(self) -> ReadOutModule:
        """The best of N samples; when it explores one sample of the implicit policy."""
        proposer = Samples(self.net["average"], self.config.candidates)
        return self.decision(proposer, self.rule(), self.net["value"])


TINY = {
    "candidates": 4,
    "diffusion": DiffusionConfig(steps=3, hidden_dim=32, network="mlp"),
}
PAPER = {
    "reward": "return_range",
    "batch_size": 512,
    "candidates": 64,
    "total_updates": 3_000_000,
    "diffusion": DiffusionConfig(steps=5, sampler="beta", clip="each"),
}
