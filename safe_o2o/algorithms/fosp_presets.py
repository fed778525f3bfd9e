"""Named settings of FOSP, and of what it is compared with: sizes, and what is exchanged in them.

`small` is the recipe that was measured to work in minutes on two CPU cores: gradients of actor and
critics reach the encoder, advantages are lambda-returns along the recorded episode, and weights are
clipped and gated by the probability of a later violation.

`cluttered` is as large, for scenes that have to be seen to be passed (docs/safe_reach.md, level 2),
and wants more data and several times the updates: an encoder that keeps a map and is trained by
prediction more than by the critics, an actor of several modes, and weights and returns that go by
whether a violation followed this very action, as no critic is right about that for a long time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from safe_o2o.algorithms.fosp_config import (
    IMAGINED,
    FineTuneConfig,
    FospConfig,
    SelectionConfig,
)
from safe_o2o.algorithms.world_model import WorldModelConfig
from safe_o2o.errors import UnknownNameError

SMALL = FospConfig(
    world_model=WorldModelConfig(
        encoder="keypoint",
        embed_dim=256,
        deter_dim=256,
        latents=16,
        classes=16,
        hidden_dim=256,
        head_layers=1,
        head_units=256,
        decoder_size=32,
        decoder_depth=16,
        decode_every=8,
        number_output="scalar",
        image_scale=0.02,
        reward_scale=1.0,
        cost_scale=1.0,
    ),
    hidden_dims=(256, 256),
    head_input="stoch_embed",
    gradient="joint",
    critic_output="scalar",
    discount_reward=0.95,
    discount_cost=0.9,
    expectile_reach=0.35,
    critic_target="recorded",
    value_target="lambda_return",
    advantage="lambda_return",
    advantage_normalizer="rms",
    weight="gated",
    beta=6.0,
    weight_clip=10.0,
    actor_std=0.25,
    entropy=0.0,
    penalty="critic",
    penalty_coefficient=1e-3,
    lagrange_multiplier_max=0.05,
    reach_lambda=0.95,
    imagination_starts=128,
    shift=2,
    batch_size=48,
    sequence_length=8,
    model_lr=8e-4,
    actor_lr=8e-4,
    critic_lr=8e-4,
    reach_lr=8e-4,
    policy_eps=1e-8,
    model_clip=100.0,
    decay_start=0.5,
    total_updates=1100,
    average_rate=0.003,
    selection=SelectionConfig(rule="reach", samples=32, sample_std=0.5),
    finetune=FineTuneConfig(
        actor="weighted",
        learning_rate=3e-4,
        warmup=20,
        average_rate=0.03,
    ),
)

SIZES: dict[str, FospConfig] = {
    "small": SMALL,
    "cluttered": replace(
        SMALL,
        world_model=replace(SMALL.world_model, encoder="patch", image_scale=0.3),
        gate="recorded",
        violation_ends=True,
        actor_modes=4,
        reach_lambda=0.8,
        total_updates=6000,
    ),
    "tiny": replace(
        SMALL,
        world_model=replace(
            SMALL.world_model, depth=16, embed_dim=64, deter_dim=64, latents=8, classes=8,
            hidden_dim=64, head_units=64, decoder_depth=8,
        ),
        hidden_dims=(64, 64),
        batch_size=8,
        total_updates=200,
    ),
    "paper": FospConfig(),
}  # fmt: skip


def dreamer(config: FospConfig) -> FospConfig:
    """DreamerV3 with a cost head that nobody listens to: V and actor from imagined rollouts."""
    return replace(
        config,
        actor="reward",
        critic_target="imagined",
        critic_replay="never",
        value_target="lambda_return",
        value_data="imagined",
        expectile_reward=0.5,
        expectile_cost=0.5,
        feasibility="none",
        penalty="none",
        beta=1.0,
        advantage_normalizer="percentile",
        actor_std=0.0,
        actor_modes=1,
        entropy=3e-4,
        head_input="latent",
        selection=SelectionConfig(rule="mean"),
        finetune=replace(config.finetune, actor="reward", expansion=False),
    )


def safedreamer(config: FospConfig) -> FospConfig:
    """SafeDreamer, BSRP-Lag: Dreamer with the augmented Lagrangian on imagined costs.

    Cost limit 2 as in its own settings (fosp.md 5); V only, no REF, no policy expansion.
    """
    paper = FospConfig()
    return replace(
        dreamer(config),
        penalty="imagined",
        cost_limit=2.0,
        penalty_coefficient=paper.penalty_coefficient,
        lagrange_multiplier_max=paper.lagrange_multiplier_max,
    )


def behavior_cloning(config: FospConfig) -> FospConfig:
    """The actor imitates all data alike, on the same encoder and world model."""
    return replace(
        config,
        actor="clone",
        penalty="none",
        selection=SelectionConfig(rule="mean"),
        finetune=replace(config.finetune, actor="clone", expansion=False),
    )


def without_in_sample(config: FospConfig) -> FospConfig:
    """V as the mean of imagined returns, not as an expectile over the data's actions."""
    return replace(
        config,
        value_target="lambda_return",
        value_data="imagined",
        expectile_reward=0.5,
        expectile_cost=0.5,
        head_input="latent",
    )


def without_expansion(config: FospConfig) -> FospConfig:
    """Online the frozen policy is no candidate any more."""
    rule = "mean" if config.selection.rule == "expansion" else config.selection.rule
    return replace(
        config,
        selection=replace(config.selection, rule=rule),
        finetune=replace(config.finetune, expansion=False),
    )


def without_reach(config: FospConfig) -> FospConfig:
    """Every state counts as feasible, u = 1, and no action is chosen for its reach probability."""
    rule = "mean" if config.selection.rule == "reach" else config.selection.rule
    return replace(config, feasibility="none", selection=replace(config.selection, rule=rule))


def without_lagrangian(config: FospConfig) -> FospConfig:
    """Safety from REF and the cost advantage alone."""
    return replace(config, penalty="none")


def without_model(config: FospConfig) -> FospConfig:
    """The same losses on recorded data without a world model: what is seen now is the state."""
    tuned = "weighted" if config.finetune.actor in IMAGINED else config.finetune.actor
    return replace(
        config,
        model="none",
        head_input="embed",
        gradient="joint",
        critic_target="recorded",
        value_data="replay",
        penalty="critic" if config.penalty == "imagined" else config.penalty,
        finetune=replace(config.finetune, actor=tuned),
    )


def recoloured(config: FospConfig) -> FospConfig:
    """With random colours in each window: what is learned does not rest on those of the data."""
    return replace(config, recolour=0.5)


def recoloured_but_red(config: FospConfig) -> FospConfig:
    """The same where red means something: in SafeReach it is the goal's."""
    return replace(recoloured(config), recolour_keep=("red",))


def recoloured_cloning(config: FospConfig) -> FospConfig:
    """Behaviour cloning with that: as unsafe as the data, on an encoder that is not fooled."""
    return recoloured_but_red(behavior_cloning(config))


def released(config: FospConfig) -> FospConfig:
    """What the released code computes, by reading and running it (fosp.md 8.1 and 8.2).

    The actor climbs A^r through imagined rollouts; the weight with the cost advantage is dead code.
    Q never sees recorded pairs; V is the mirrored expectile of Q on imagined ones. REF sees no cost
    and after normalisation drops out of the penalty: u = 1. The two policies of the expansion share
    their weights, so that there is one. The end of time is taken for the end of the task.
    """
    return replace(
        dreamer(config),
        value_target="q",
        expectile_reward=0.2,
        expectile_cost=0.2,
        penalty="imagined",
        timeout_terminates=True,
    )


VARIANTS: dict[str, Callable[[FospConfig], FospConfig]] = {
    "without_in_sample": without_in_sample,
    "without_expansion": without_expansion,
    "without_reach": without_reach,
    "without_lagrangian": without_lagrangian,
    "without_model": without_model,
    "recoloured": recoloured,
    "recoloured_but_red": recoloured_but_red,
    "recoloured_cloning": recoloured_cloning,
    "released": released,
}
PRESETS: dict[str, FospConfig] = SIZES | {
    f"{size}_{name}": variant(config)
    for size, config in SIZES.items()
    for name, variant in VARIANTS.items()
}


def preset(name: str) -> FospConfig:
    """A named set of settings: `tiny` (tests), `small` and `cluttered` (CPU), `paper`, variants.

    `small_without_reach` is `small` without REF; so for each of the parts and each size.
    `paper_released` is what the released code computes.

    Raises:
        UnknownNameError: no such preset; names the near miss.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]


def sized(name: str) -> FospConfig:
    """One of `SIZES`, for algorithms that exchange parts themselves.

    Raises:
        UnknownNameError: no such preset; names the near miss.
    """
    if name not in SIZES:
        raise UnknownNameError("preset", name, SIZES)
    return SIZES[name]
