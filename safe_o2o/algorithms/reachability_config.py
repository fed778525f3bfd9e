"""Settings of the reachability gate's heads."""

from __future__ import annotations

from dataclasses import dataclass

from safe_o2o.algorithms.latents import STATE
from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.nets.precision import Precision


@dataclass(frozen=True)
class ReachabilityConfig:
    """Settings; the defaults fit the states of preset `small` and ten minutes of two CPU cores."""

    seed: int = 0
    total_updates: int = 8_000
    batch_size: int = 256
    reads: tuple[str, ...] = STATE
    """arrays of the state that the heads read; without `embed` they are trained on imagined states
    as well"""
    hidden_dims: tuple[int, ...] = (256, 256)
    critics: int = 3
    predictors: int = 5
    predictor_share: float = 0.8
    """share of the episodes that each predictor sees"""
    discount: float = 0.99
    """where the schedule ends; an approach of K steps without a way out is seen for
    K = ln 2 / -ln discount, 69 steps (spec 6.2)"""
    discount_start: float = 0.85
    warmup: float = 0.025
    """share of the updates with discount 0: the critic learns the margin"""
    stages: int = 50
    """steps of the discount's schedule"""
    tau: float = 0.005
    critic_lr: float = 3e-4
    actor_lr: float = 1e-4
    predictor_lr: float = 3e-4
    margin_lr: float = 1e-4
    action_penalty: float = 1e-2
    safe_distance: float = 0.01
    """m: nearer than this is dangerous, where the data say distances; contact is 1 in any case"""
    distance_scale: float = 0.08
    """m: so much farther away is as safe as can be"""
    novelty: bool = True
    """whether not to know what happens counts as dangerous"""
    imagined: int = 16
    """starts of imagined rollouts an update; 0, or a feature with `embed`, imagines nothing"""
    horizon: int = 15
    reach: float = 2.0
    """weight of the policy's own reachability critic (REF) beside the safety critic, where it has
    one: the one says what this policy will come to, the other whether there is a way out"""
    reconstruct: bool = False
    """whether the gate also decodes the picture and scores how unlikely it is: a decoder's pass a
    decision"""
    precision: Precision = "auto"
    """arithmetic of critics, margin and recovery policy while training; the predictors, whose small
    differences count, are computed in fp32"""
    explore: float = 0.1
    """noise on the recovery policy in half of the imagined rollouts"""

    def __post_init__(self) -> None:
        require_positive(self, "total_updates", "batch_size", "critics", "predictors", "stages")
        require_positive(self, "critic_lr", "actor_lr", "predictor_lr", "margin_lr", "horizon")
        require_positive(self, "distance_scale")
        if self.reads != tuple(name for name in STATE if name in self.reads) or not self.reads:
            raise ConfigError(
                f"must be some of {', '.join(STATE)} in this order, got {', '.join(self.reads)}",
                where="reads",
            )
        if "deter" not in self.reads:
            raise ConfigError("needs deter: that is what is predicted", where="reads")
        if not 0.0 <= self.discount_start <= self.discount < 1.0:
            raise ConfigError(
                f"must lie between discount_start ({self.discount_start}) and 1, "
                f"got {self.discount}",
                where="discount",
            )
        if not 0.0 < self.predictor_share <= 1.0:
            raise ConfigError(f"must lie in (0, 1], got {self.predictor_share}",
                              where="predictor_share")  # fmt: skip


PRESETS = {
    "small": ReachabilityConfig(),
    "tiny": ReachabilityConfig(
        total_updates=200, batch_size=32, hidden_dims=(32, 32), critics=2, predictors=3, imagined=4,
        horizon=3,
    ),
    "paper": ReachabilityConfig(
        total_updates=200_000, batch_size=512, reads=("deter", "stoch"), hidden_dims=(512, 512),
        imagined=32,
    ),
}  # fmt: skip
