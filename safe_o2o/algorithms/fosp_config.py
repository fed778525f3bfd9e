"""Settings of FOSP. Every deviation from the paper is a flag; its default is the paper's value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from safe_o2o.algorithms.budgets import BudgetConfig
from safe_o2o.algorithms.losses import PURE_COLOURS
from safe_o2o.algorithms.world_model import WorldModelConfig
from safe_o2o.errors import ConfigError

IMAGINED = ("imagined", "score", "reward")
"""Objectives of the actor that need imagined rollouts."""


@dataclass(frozen=True)
class SelectionConfig:
    """How the deployed policy picks among candidate actions."""

    rule: Literal["expansion", "reach", "mean"] = "expansion"
    """paper: expansion (softmax over the frozen and the new policy, fosp.md 4.1; offline there is
    only one policy). `reach`: the mean action as long as its reach probability is below the
    threshold, beyond it more and more the candidates with small ones. `mean`: the mean action."""
    samples: int = 16
    """candidates around the mean (rule `reach`)"""
    sample_std: float = 0.25
    """their standard deviation, in action units"""
    threshold: float = 0.1
    """reach probability up to which the mean action is taken unchanged"""
    blend: float = 0.1
    """from threshold to threshold + blend the action moves over to the safest candidates: without a
    jump, so that a rounding error never decides between two actions"""
    risk_temperature: float = 0.02
    """candidates count by exp(-risk / risk_temperature): how strict "safest" is"""
    cost_coefficient: float = 0.1
    """k_c of the expansion score Q^r - k_c Q^c"""
    inverse_temperature: float = 5.0
    """1 / alpha of the expansion's softmax"""


@dataclass(frozen=True)
class FineTuneConfig:
    """What changes when training goes on with online data."""

    actor: Literal["imagined", "score", "reward", "weighted", "clone"] = "imagined"
    """paper: imagined, pathwise u A^r - (1 - u) A^c on imagined actions (fosp.md 4.2). `score`: the
    same by the score function. `reward`: pathwise A^r (Dreamer, SafeDreamer). `weighted`: the
    offline weighted regression, on online records only where reward still follows. `clone`: that
    regression with weight one."""
    learning_rate: float = 0.0
    """one rate for every network; 0 keeps the offline rates (paper)"""
    warmup: int = 0
    """updates at rate 0 that only fill the optimiser's moments; paper: 0"""
    decode: bool = True
    """train the image decoder too; paper: yes"""
    average_rate: float = 0.0
    """rate of the weight average that is deployed; 0 deploys the raw weights (paper)"""
    expansion: bool = True
    """keep the frozen offline policy as a candidate (safe policy expansion, fosp.md 4.1)"""
    fresh: bool = False
    """start the new policy anew (policy expansion) instead of as a copy of the frozen one"""


@dataclass(frozen=True)
class FospConfig:
    """FOSP (Cao et al., ICLR 2025). Defaults are the paper's values (fosp.md 5, 10)."""

    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    model: Literal["rssm", "none"] = "rssm"
    """paper: rssm. `none` leaves the world model out: actor and critics see the moment, and train
    the encoder by their own losses alone"""
    hidden_dims: tuple[int, ...] = (512, 512)
    """hidden layers of actor, critics and REF"""
    head_input: Literal["latent", "stoch_embed", "embed"] = "latent"
    """what actor and critics read; paper: latent (deter + stoch). `embed` is what is seen now."""
    gradient: Literal["stop", "joint"] = "stop"
    """paper: stop. `joint` lets actor and critics train the encoder and the RSSM's posterior."""
    critic_output: Literal["two_hot", "scalar"] = "two_hot"
    ensemble: int = 1
    """members a critic; reward takes the minimum, cost the maximum"""
    discount_reward: float = 1.0 - 1.0 / 333.0
    discount_cost: float = 1.0 - 1.0 / 333.0
    discount_reach: float = 0.99
    lambda_: float = 0.95
    expectile_reward: float = 0.8
    expectile_cost: float = 0.8
    """paper: the same as reward, an upper expectile (conservative)"""
    expectile_reach: float = 0.5
    """expectile of REF over the actions in the data; paper: 0.5, the mean, the risk of going on as
    the data did. Lower values ask for the risk of going on carefully, so that a state is not called
    lost because most of the data was careless there."""
    actor: Literal["weighted", "clone", "reward"] = "weighted"
    """offline objective of the actor; paper: weighted regression on the data's actions. `clone`:
    with weight one (behaviour cloning). `reward`: pathwise A^r along imagined rollouts (Dreamer,
    SafeDreamer, FOSP's released code)."""
    critic_target: Literal["imagined", "recorded"] = "imagined"
    """paper: imagined lambda-returns (L1) plus one-step targets on data (L2). `recorded`:
    lambda-returns along the recorded sequence."""
    critic_replay: Literal["always", "offline", "never"] = "always"
    """when Q learns from recorded pairs too (L2); paper: always"""
    value_target: Literal["q", "lambda_return"] = "q"
    """what V is the expectile of; paper: q"""
    value_data: Literal["replay", "imagined", "both"] = "replay"
    """which states and actions V learns from; in-sample means those of the data"""
    advantage: Literal["q", "lambda_return"] = "q"
    """A = Q - V (paper) or lambda-return - V"""
    advantage_normalizer: Literal["percentile", "rms"] = "percentile"
    weight: Literal["sum", "gated"] = "sum"
    """paper: sum, u exp(A^r) + (1 - u) exp(-A^c). `gated`: exp(A^r) (1 - p)^power, mean one."""
    gate: Literal["critic", "recorded"] = "critic"
    """the gate's p: Q^p(s, a), or the target it learns from, what came of this very action. Where a
    picture does not say which of two alike actions will hit something, the record does."""
    beta: float = 1.0
    """inverse temperature of the exponential weights"""
    weight_clip: float = 100.0
    """largest exponential weight (not in the paper)"""
    gate_power: float = 4.0
    """power of (1 - p) in the gated weight"""
    actor_std: float = 0.0
    """constant standard deviation of the actor; 0 learns it (paper)"""
    actor_modes: int = 1
    """Gaussians of the actor; paper: 1. One takes the mean of those who go left and those who go
    right. Of several (with a constant std) the likeliest of low risk acts."""
    entropy: float = 3e-4
    feasibility: Literal["reach", "none"] = "reach"
    """where u comes from; paper: REF. `none` takes every state for feasible, u = 1; REF is still
    learned, as a monitor."""
    penalty: Literal["imagined", "critic", "none"] = "imagined"
    """cost measure of the augmented Lagrangian: imagined cost returns (paper) or Q^c at the actor's
    action on recorded states; `none` leaves the constraint out"""
    penalty_reduction: Literal["sum", "mean"] = "sum"
    """imagined cost returns over the horizon: their sum (paper, "pessimistic") or their mean"""
    cost_limit: float = 0.0
    lagrange_multiplier: float = 1e-6
    penalty_coefficient: float = 5e-9
    penalty_growth: float = 1e-5
    lagrange_multiplier_max: float = 1e3
    horizon: int = 15
    imagination_starts: int = 0
    """posterior states that start rollouts; 0 takes all of the batch (paper)"""
    slow_rate: float = 0.02
    slow_regularizer: float = 1.0
    reach_lambda: float = 0.0
    """lambda of the reach targets along the recorded sequence; paper: 0 (one step)"""
    reach_labels: Literal["both", "replay"] = "both"
    """what REF learns from: real costs and those of the cost head in imagination, or real ones"""
    violation_ends: bool = False
    """recorded rewards count up to the first violation only, as if it ended the episode: else a
    quick way through an obstacle is what a careful way around it is compared with"""
    timeout_terminates: bool = False
    """take the end of time for an end of the task, as the released code does"""
    shift: int = 0
    """random image shift, pixels; paper: none"""
    recolour: float = 0.0
    """probability with which a colour of a window becomes another one: what the data show in one
    colour is learned in others; paper: none"""
    recolour_keep: tuple[str, ...] = ()
    """of red, green, blue, cyan, magenta, yellow, those that stay: they mean something"""
    batch_size: int = 16
    sequence_length: int = 64
    model_lr: float = 1e-4
    actor_lr: float = 3e-5
    critic_lr: float = 3e-5
    reach_lr: float = 1e-5
    """REF must learn slower than the actor (RESPO)"""
    model_eps: float = 1e-8
    policy_eps: float = 1e-5
    model_clip: float = 1000.0
    policy_clip: float = 100.0
    decay_start: float = 1.0
    """share of `total_updates` after which the rates fall linearly to zero; 1 never (paper)"""
    total_updates: int = 125_000
    average_rate: float = 0.0
    """rate of the weight average that is deployed; 0 deploys the raw weights (paper)"""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """limits on filter interventions and contact force (not in the paper)"""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    finetune: FineTuneConfig = field(default_factory=FineTuneConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("discount_reward", "discount_cost", "discount_reach", "lambda_", "recolour"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"must be in [0, 1], got {getattr(self, name)}", where=name)
        if unknown := [name for name in self.recolour_keep if name not in PURE_COLOURS]:
            raise ConfigError(
                f"has {unknown[0]!r}, knows {', '.join(PURE_COLOURS)}", where="recolour_keep"
            )
        for name in ("expectile_reward", "expectile_cost", "expectile_reach"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"must be in (0, 1), got {getattr(self, name)}", where=name)
        if self.cost_limit < 0 or self.penalty_coefficient <= 0:
            raise ConfigError("cost_limit must be >= 0 and penalty_coefficient > 0", where="fosp")
        if self.actor_modes < 1 or (self.actor_modes > 1 and not self.actor_std):
            raise ConfigError("several modes need a constant actor_std", where="actor_modes")
        if self.batch_size < 1 or self.sequence_length < 2 or self.total_updates < 1:
            raise ConfigError("batch_size, sequence_length - 1, total_updates must be >= 1")
        imagines = (
            "imagined" in (self.critic_target, self.penalty)
            or self.value_data != "replay"
            or {self.actor, self.finetune.actor} & set(IMAGINED)
        )
        if self.model == "none" and (self.head_input, self.gradient) != ("embed", "joint"):
            raise ConfigError(
                "without a world model the heads read the embedding and train it",
                where="model",
                todo="use head_input embed and gradient joint, or a preset without_model",
            )
        if imagines and self.head_input != "latent":
            raise ConfigError(
                "imagined states have no image embedding",
                where="head_input",
                todo="use head_input latent, or recorded targets, critic penalty, weighted tuning",
            )
