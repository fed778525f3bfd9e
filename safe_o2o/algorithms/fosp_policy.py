"""What FOSP deploys: encoder, recurrent state, actor and critics as one step function.

`FospNet` holds every network. `FospPolicy` is the `Policy` behind `act`; `DecisionModule` is the
same step with plain tensors in and out, which is what becomes the ONNX graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from safe_o2o.algorithms import losses
from safe_o2o.algorithms.fosp_config import FospConfig, SelectionConfig
from safe_o2o.algorithms.world_model import Perception, WorldModel
from safe_o2o.nets.critic import Critic
from safe_o2o.nets.distribution import categorical_mode
from safe_o2o.nets.policy import GaussianActor, MixtureActor
from safe_o2o.nets.rssm import Latent
from safe_o2o.spaces import ObservationSpec, Spec

UNDECIDED = 1e-4
"""Log-probability by which a choice must lead: less than that may be the order of a sum."""


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
    ) -> tuple[Latent, Tensor, Tensor]:
        """One filtering step with the posterior's mode.

        Args:
            seen: what the world model's `look` made of the images.
            vector: `[N, V]` SI.
            latent: last state.
            action: last action `[N, A]`.
            is_first: `[N, 1]`, 1 at the start of an episode.

        Returns:
            new state, the feature that the heads read, and the log-probabilities of the state's
            classes.
        """
        rssm = self.model.rssm
        embed = self.world_model.encode(seen, vector)
        latent, action = rssm.reset(latent, action, is_first)
        deter = rssm.advance(latent, action)
        log_p = rssm.posterior_log_p(deter, embed)
        latent = Latent(deter, categorical_mode(log_p).flatten(-2))
        return latent, self.feature(latent, embed), log_p


class DecisionModule(nn.Module):
    """One decision with plain tensors in and out: the graph that is exported.

    Inputs, in order: the observation's arrays, the carry, the noise. Outputs: action, new carry,
    diagnostics. A carry of zeros starts an episode.

    Args:
        net: networks of the deployed policy.
        base: networks of the frozen offline policy (safe policy expansion), or None. A copy of
            `net` from earlier: a frozen backbone looks once for both.
        spec: observation and action spec.
    """

    def __init__(self, net: FospNet, base: FospNet | None, spec: Spec) -> None:
        super().__init__()
        self.net, self.base, self.spec = net, base, spec
        self.selection: SelectionConfig = net.config.selection
        sizes: dict[str, int] = {}
        if net.remembers:
            sizes = {"started": 1, "previous_action": spec.action.dim} | _state_sizes(net, "")
            sizes |= _state_sizes(base, "base_") if base is not None else {}
        self.carry_sizes = sizes
        self.carry_names = {name: f"next_{name}" for name in sizes}
        # The same draw at every step makes a deterministic policy of a sampled choice; without
        # exploration the first candidate is the mean action.
        choice = {"noise": (max(2, self.selection.samples), spec.action.dim)}
        explore = {"explore": (spec.action.dim,)}
        self.noise_inputs: dict[str, tuple[int, ...]] = {
            "expansion": choice,
            "reach": choice | explore,
            "mean": explore,
        }[self.selection.rule]
        self.deterministic_noise = {
            name: "zero" if name == "explore" else "fixed" for name in self.noise_inputs
        }
        self.input_names = [*spec.observation.arrays, *sizes, *self.noise_inputs]
        diagnostics = ["mean_action", "q_reward", "q_cost", "risk", "mean_risk", "reach"]
        self.output_names = ["action", *self.carry_names.values(), *diagnostics]

    def example_inputs(self) -> tuple[Tensor, ...]:
        """One valid input of every name, batch size 1."""
        dtype = {"uint8": torch.uint8, "float32": torch.float32}
        obs = [
            torch.zeros(1, *array.shape, dtype=dtype[array.dtype])
            for array in self.spec.observation.arrays.values()
        ]
        carry = [torch.zeros(1, size) for size in self.carry_sizes.values()]
        noise = [torch.zeros(1, *shape) for shape in self.noise_inputs.values()]
        return (*obs, *carry, *noise)

    def candidates(
        self, mean: Tensor, std: Tensor, base: Tensor | None, noise: Mapping[str, Tensor]
    ) -> Tensor:
        """Actions to choose from `[N, K, A]`, the policy's own first.

        Args:
            mean: of the policy `[N, A]`.
            std: of the policy `[N, A]`.
            base: action of the frozen offline policy `[N, A]`, or None.
            noise: `noise` `[N, K', A]`, `explore` `[N, A]`: those that the rule has.
        """
        rule = self.selection.rule
        draw = noise["noise"][:, 0] if rule == "expansion" else noise["explore"]
        parts = [(mean + std * draw).unsqueeze(1)]
        if base is not None and rule != "mean":
            parts.append(base.unsqueeze(1))
        if rule == "reach":
            parts.append(mean.unsqueeze(1) + self.selection.sample_std * noise["noise"])
        return torch.cat(parts, 1).clamp(-1.0, 1.0)

    def choose(
        self,
        action: Tensor,
        q_reward: Tensor,
        q_cost: Tensor,
        risk: Tensor,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """The action `[N, A]` out of candidates `[N, K, A]` and their critics `[N, K]`.

        Rule `reach` is continuous in the risks; a risk that is not a number makes an action that is
        none either, which no runtime lets pass.
        """
        if self.selection.rule == "mean":
            return action[:, 0]
        if self.selection.rule == "reach":
            weight = torch.softmax(-risk / self.selection.risk_temperature, -1)
            safest = (weight.unsqueeze(-1) * action).sum(1)
            excess = (risk[:, :1] - self.selection.threshold) / self.selection.blend
            return torch.lerp(action[:, 0], safest, excess.clamp(0.0, 1.0))
        index = self.expansion_score(q_reward, q_cost, noise).argmax(-1).view(-1, 1, 1)
        return torch.gather(action, 1, index.expand(-1, -1, action.shape[-1]))[:, 0]

    def expansion_score(
        self, q_reward: Tensor, q_cost: Tensor, noise: Mapping[str, Tensor]
    ) -> Tensor:
        """What rule `expansion` takes the largest of `[N, K]`: log-weights and Gumbel noise."""
        score = losses.expansion_log_weight(
            q_reward, q_cost, self.selection.cost_coefficient, self.selection.inverse_temperature
        )
        # Gumbel-max from normal noise through its distribution function.
        uniform = 0.5 * (1.0 + torch.erf(noise["noise"][:, : score.shape[1], -1] / 2.0**0.5))
        return score - torch.log(-torch.log(uniform.clamp(1e-6, 1.0 - 1e-6)))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class; every tensor has a leading batch axis N."""
        return self._decide(*inputs)[0]

    def undecided(self, *inputs: Tensor) -> Tensor:
        """Where a class of a latent, or a candidate, is ahead by less than rounding, `[N]` bool.

        Two right implementations may choose differently there; `export.parity` asks.
        """
        close = [
            (two[..., 0] - two[..., 1] <= UNDECIDED).flatten(1).any(1)
            for two in (scores.topk(2, -1).values for scores in self._decide(*inputs)[1])
        ]
        if not close:  # nothing is chosen: no state, and candidates are blended
            return torch.zeros(len(inputs[0]), dtype=torch.bool)
        return torch.stack(close).any(0)

    def _decide(self, *inputs: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """The outputs, and the scores `[N, ..., K]` of which the largest was taken."""
        named = dict(zip(self.input_names, inputs, strict=True))
        noise = {name: named[name] for name in self.noise_inputs}
        carry: list[Tensor] = []
        scores: list[Tensor] = []
        seen = self.net.world_model.look(stack_images(self.spec.observation, named))
        feature = self._track(self.net, "", seen, named, carry, scores)
        base_action = None
        sampled = self.selection.rule == "expansion"
        if self.base is not None:
            base_feature = self._track(self.base, "base_", seen, named, carry, scores)
            base_mean, base_std = self._intended(self.base, base_feature, scores)
            base_action = base_mean + base_std * noise["noise"][:, 1] if sampled else base_mean
        mean, std = self._intended(self.net, feature, scores)
        action = self.candidates(mean, std, base_action, noise)
        wide = feature.unsqueeze(1).expand(-1, action.shape[1], -1)
        q_reward, q_cost = self.net.q_reward(wide, action), self.net.q_cost(wide, action)
        risk = self.net.q_reach(wide, action)
        chosen = self.choose(action, q_reward, q_cost, risk, noise)
        if sampled and action.shape[1] > 1:
            scores.append(self.expansion_score(q_reward, q_cost, noise))
        q_reward, q_cost = self.net.q_reward(feature, chosen), self.net.q_cost(feature, chosen)
        chosen_risk = self.net.q_reach(feature, chosen)
        reach = self.net.value["reach"](feature)[0].unsqueeze(-1)
        began = [torch.ones_like(named["started"]), chosen] if carry else []
        outputs = (
            chosen,
            *began,
            *carry,
            mean,
            q_reward.unsqueeze(-1),
            q_cost.unsqueeze(-1),
            chosen_risk.unsqueeze(-1),
            risk[:, :1],
            reach,
        )
        return outputs, scores

    def _intended(
        self, net: FospNet, feature: Tensor, scores: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Mean and std `[N, A]` of a policy: of several Gaussians a likely one of low risk."""
        actor = net.actor
        if not isinstance(actor, MixtureActor):
            mean, std = actor(feature)
            return mean, std
        share, means = actor.modes(feature)
        wide = feature.unsqueeze(1).expand(-1, means.shape[1], -1)
        risk = net.q_reach(wide, means)
        scores.append(share - risk / self.selection.risk_temperature)
        return actor.taking(scores[-1], means)

    def _track(
        self,
        net: FospNet,
        prefix: str,
        seen: Tensor,
        named: Mapping[str, Tensor],
        carry: list[Tensor],
        scores: list[Tensor],
    ) -> Tensor:
        """The feature that the heads read `[N, F]`; adds the new state and what it chose among."""
        vector = stack_vectors(self.spec.observation, named)
        if not net.remembers:
            return net.world_model.encode(seen, vector)
        state = Latent(named[f"{prefix}deter"], named[f"{prefix}stoch"])
        first, previous = 1.0 - named["started"], named["previous_action"]
        latent, feature, log_p = net.track(seen, vector, state, previous, first)
        carry += [latent.deter, latent.stoch]
        scores.append(log_p)
        return feature


def _state_sizes(net: FospNet, prefix: str) -> dict[str, int]:
    rssm = net.model.rssm
    return {f"{prefix}deter": rssm.deter_dim, f"{prefix}stoch": rssm.stoch_dim}


def _tensor(array: Any) -> Tensor:
    """A tensor of its own: frames from a file are read-only, which PyTorch cannot share."""
    return array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))


class FospPolicy(nn.Module):
    """The `Policy` of FOSP; see `safe_o2o.interfaces.Policy`."""

    def __init__(self, net: FospNet, base: FospNet | None, spec: Spec, seed: int = 0) -> None:
        super().__init__()
        self.module = DecisionModule(net, base, spec)
        self.spec = spec
        self.last_output: dict[str, Tensor] = {}
        # Drawn as the exported bundle draws it: both choose among the same candidates.
        generator = np.random.Generator(np.random.PCG64(seed))
        still = {
            name: generator.standard_normal(shape, np.float32)
            if self.module.deterministic_noise[name] == "fixed"
            else np.zeros(shape, np.float32)
            for name, shape in self.module.noise_inputs.items()
        }
        self._still = {name: torch.from_numpy(draw).unsqueeze(0) for name, draw in still.items()}
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Seed the noise of `act(..., deterministic=False)`."""
        self._generator = torch.Generator().manual_seed(seed + 1)

    def export_module(self) -> DecisionModule:
        """The same decision with plain tensors in and out."""
        return self.module

    def initial_carry(self, n: int = 1) -> dict[str, Tensor]:
        """Zeros: the graph resets itself when `started` is 0."""
        return {name: torch.zeros(n, size) for name, size in self.module.carry_sizes.items()}

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], carry: dict[str, Tensor], deterministic: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose actions `[n, A]` for observations `[n, ...]`."""
        arrays = [_tensor(obs[name]) for name in self.spec.observation.arrays]
        n = arrays[0].shape[0]
        noise = [
            still.expand(n, *still.shape[1:])
            if deterministic
            else torch.randn(n, *still.shape[1:], generator=self._generator)
            for still in self._still.values()
        ]
        device = next(self.module.parameters()).device
        inputs = [x.to(device) for x in (*arrays, *carry.values(), *noise)]
        out = dict(zip(self.module.output_names, self.module(*inputs), strict=True))
        names = self.module.carry_names
        self.last_output = {k: v for k, v in out.items() if k not in names.values()}
        return out["action"], {name: out[after] for name, after in names.items()}
