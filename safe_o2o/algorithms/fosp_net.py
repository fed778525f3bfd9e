"""Every network of FOSP, and how an observation becomes what they read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.world_model import Perception, WorldModel
from safe_o2o.nets.critic import Critic
from safe_o2o.nets.distribution import categorical_mode
from safe_o2o.nets.policy import GaussianActor, MixtureActor
from safe_o2o.nets.rssm import Latent
from safe_o2o.spaces import ObservationSpec, Spec


def stack_vectors(spec: ObservationSpec, obs: Mapping[str, Tensor]) -> Tensor:
    """Concatenate the vectors of an observation in the spec's order, `[..., V]` float32.

    V is 0 where it has none.
    """
    if not spec.vector_names:
        image = obs[spec.image_names[0]]
        return image.new_zeros((*image.shape[:-3], 0), dtype=torch.float32)
    return torch.cat([obs[name].float() for name in spec.vector_names], -1)


def stack_images(spec: ObservationSpec, obs: Mapping[str, Tensor]) -> Tensor:
    """Images of an observation `[..., H, W, C]` uint8 -> `[..., C, H, W]` float32 around zero.

    C is 0 where it has none.
    """
    if not spec.image_names:
        vector = obs[spec.vector_names[0]]
        return vector.new_zeros((*vector.shape[:-1], 0, 64, 64))
    image = torch.cat([obs[name] for name in spec.image_names], -1)
    # In place: every further copy of a batch of images costs as much as a layer.
    return image.movedim(-1, -3).to(torch.float32).div_(255.0).sub_(0.5)


def cautious(kind: str, values: Tensor) -> Tensor:
    """Of an ensemble `[E, ...]` the member to believe: least reward, most cost, most risk."""
    return values.amin(0) if kind == "reward" else values.amax(0)


UNDECIDED = 1e-4
"""Log-probability by which a choice must lead: less than that may be the order of a sum."""


class Tracked(NamedTuple):
    """One moment as the world model takes it.

    Attributes:
        latent: the new state, with the posterior's mode `[N, ...]`.
        embed: what is seen now `[N, E]`.
        feature: what the heads read `[N, F]`.
        posterior: log-probabilities of the state's classes `[N, L, C]`.
    """

    latent: Latent
    embed: Tensor
    feature: Tensor
    posterior: Tensor

    @property
    def state(self) -> dict[str, Tensor]:
        """All of it by name, for those who look into the model's state; see `latents.STATE`."""
        return {"deter": self.latent.deter, "stoch": self.latent.stoch, "embed": self.embed}

    @property
    def undecided(self) -> Tensor:
        """Where a class of the state hangs on rounding `[N]`."""
        return undecided(self.posterior)


def undecided(scores: Tensor) -> Tensor:
    """Where the two best of scores `[N, ..., K]` are too close for another arithmetic, `[N]`."""
    two = scores.topk(2, -1).values
    return (two[..., 0] - two[..., 1] <= UNDECIDED).reshape(len(scores), -1).any(1)


class FospNet(nn.Module):
    """Every network of FOSP.

    Args:
        config: settings.
        spec: observation and action spec.
        vector_mean: dataset mean of the concatenated vectors `[V]`.
        vector_std: their standard deviation `[V]`.
    """

    def __init__(
        self, config: FospConfig, spec: Spec, vector_mean: Tensor, vector_std: Tensor
    ) -> None:
        super().__init__()
        self.config = config
        kind = WorldModel if config.model == "rssm" else Perception
        self.world_model: Perception = kind(config.world_model, spec, vector_mean, vector_std)
        embed_dim = self.world_model.encoder.out_dim
        self.feature_dim = {
            "embed": lambda: embed_dim,
            "latent": lambda: self.model.rssm.feature_dim,
            "stoch_embed": lambda: self.model.rssm.stoch_dim + embed_dim,
        }[config.head_input]()
        size, dim, hidden = self.feature_dim, spec.action.dim, config.hidden_dims
        output, members = config.critic_output, config.ensemble
        self.action_dim = dim
        self.actor = self.new_actor()
        outputs = {"reward": output, "cost": output, "reach": "probability"}
        outputs |= dict.fromkeys(config.budget.limits, output)
        self.critic = nn.ModuleDict(
            {kind: Critic(size, dim, hidden, out, members) for kind, out in outputs.items()}
        )
        # Of `reach`: the reachability estimation function p(s), probability of ever violating.
        self.value = nn.ModuleDict(
            {kind: Critic(size, 0, hidden, out) for kind, out in outputs.items()}
        )

    @property
    def model(self) -> WorldModel:
        """The world model, where there is one (`model` is `rssm`)."""
        assert isinstance(self.world_model, WorldModel)
        return self.world_model

    @property
    def remembers(self) -> bool:
        """Whether the policy has a state, the world model's; without one it sees the moment."""
        return isinstance(self.world_model, WorldModel)

    def new_actor(self) -> GaussianActor:
        """An actor that has learned nothing yet."""
        cfg = self.config
        sizes = self.feature_dim, self.action_dim, cfg.hidden_dims
        if cfg.actor_modes > 1:
            return MixtureActor(*sizes, cfg.actor_std, cfg.actor_modes)
        return GaussianActor(*sizes, cfg.actor_std or None)

    def feature(self, latent: Latent, embed: Tensor) -> Tensor:
        """What actor and critics read, `[..., F]`."""
        if self.config.head_input == "latent":
            return latent.feature
        if self.config.head_input == "embed":
            return embed
        return torch.cat([latent.stoch, embed], -1)

    def q_reward(self, feature: Tensor, action: Tensor) -> Tensor:
        """Smallest reward critic of the ensemble `[...]`."""
        return cautious("reward", self.critic["reward"](feature, action))

    def q_cost(self, feature: Tensor, action: Tensor) -> Tensor:
        """Largest cost critic of the ensemble `[...]`."""
        return cautious("cost", self.critic["cost"](feature, action))

    def q_reach(self, feature: Tensor, action: Tensor) -> Tensor:
        """Largest probability of a later violation over the ensemble `[...]`."""
        return cautious("reach", self.critic["reach"](feature, action))

    def track(
        self, seen: Tensor, vector: Tensor, latent: Latent, action: Tensor, is_first: Tensor
    ) -> Tracked:
        """One filtering step.

        Args:
            seen: what the world model's `look` made of the images.
            vector: `[N, V]` SI.
            latent: last state.
            action: last action `[N, A]`.
            is_first: `[N, 1]`, 1 at the start of an episode.
        """
        rssm = self.model.rssm
        embed = self.world_model.encode(seen, vector)
        latent, action = rssm.reset(latent, action, is_first)
        deter = rssm.advance(latent, action)
        log_p = rssm.posterior_log_p(deter, embed)
        latent = Latent(deter, categorical_mode(log_p).flatten(-2))
        return Tracked(latent, embed, self.feature(latent, embed), log_p)
