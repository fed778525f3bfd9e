"""What FOSP deploys: encoder, recurrent state, actor and critics as one step function.

`FospPolicy` is the `Policy` behind `act`; `DecisionModule` is the same step with plain tensors in
and out, which is what becomes the ONNX graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from safe_o2o.algorithms import losses
from safe_o2o.algorithms.fosp_config import SelectionConfig
from safe_o2o.algorithms.fosp_net import FospNet, Tracked, stack_images, stack_vectors, undecided
from safe_o2o.algorithms.module_policy import ModulePolicy, example_inputs
from safe_o2o.nets.policy import MixtureActor
from safe_o2o.nets.rssm import Latent
from safe_o2o.spaces import Spec


class Decided(NamedTuple):
    """One decision and what it came from.

    Attributes:
        outputs: the graph's outputs, in order.
        scores: of all that was chosen among `[N, ..., K]`: the largest was taken.
        watched: the moment as the frozen offline policy's world model takes it, where there is
            one, else as the policy's own; None without a world model.
        feature: what the deciding networks read `[N, F]`; None where they are others' to tell.
    """

    outputs: tuple[Tensor, ...]
    scores: list[Tensor]
    watched: Tracked | None
    feature: Tensor | None = None


class DecisionModule(nn.Module):
    """One decision with plain tensors in and out: the graph that is exported.

    Inputs, in order: the observation's arrays, the carry, the noise. Outputs: action, new carry,
    diagnostics. A carry of zeros starts an episode.

    Args:
        net: networks of the deployed policy.
        base: networks of the frozen offline policy (safe policy expansion), or None. A copy of
            `net` from earlier: a frozen backbone looks once for both.
        spec: observation and action spec.
        expands: False takes no action of `base`, whose world model a gate goes on reading.
    """

    def __init__(
        self, net: FospNet, base: FospNet | None, spec: Spec, *, expands: bool = True
    ) -> None:
        super().__init__()
        self.net, self.base, self.spec, self.expands = net, base, spec, expands
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
        return example_inputs(self, self.spec)

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
            mixed = torch.lerp(action[:, 0], safest, excess.clamp(0.0, 1.0))
            # Weights may sum to a little more than one. Not `clamp`: no runtime has to keep a NaN.
            return torch.where(mixed.abs() > 1.0, mixed.sign(), mixed)
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

    @property
    def watching(self) -> FospNet | None:
        """The networks whose world model `Decided.watched` is of."""
        net = self.net if self.base is None else self.base
        return net if net.remembers else None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class; every tensor has a leading batch axis N."""
        return self.decide(*inputs).outputs

    def undecided(self, *inputs: Tensor) -> Tensor:
        """Where a class of a latent, or a candidate, is ahead by less than rounding, `[N]` bool.

        Two right implementations may choose differently there; `export.parity` asks.
        """
        close = [undecided(scores) for scores in self.decide(*inputs).scores]
        if not close:  # nothing is chosen: no state, and candidates are blended
            return torch.zeros(len(inputs[0]), dtype=torch.bool)
        return torch.stack(close).any(0)

    def decide(self, *inputs: Tensor) -> Decided:
        """`forward`, and what it came from."""
        named = dict(zip(self.input_names, inputs, strict=True))
        noise = {name: named[name] for name in self.noise_inputs}
        carry: list[Tensor] = []
        scores: list[Tensor] = []
        seen = self.net.world_model.look(stack_images(self.spec.observation, named))
        feature, watched = self._track(self.net, "", seen, named, carry, scores)
        base_action = None
        sampled = self.selection.rule == "expansion"
        if self.base is not None:
            base_feature, watched = self._track(self.base, "base_", seen, named, carry, scores)
            if self.expands:
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
        return Decided(outputs, scores, watched, feature)

    def reach_risk(self, feature: Tensor, action: Tensor) -> Tensor:
        """What the policy's own reachability critic says `[N, K]` of actions `[N, K, A]`."""
        wide = feature.unsqueeze(1).expand(-1, action.shape[1], -1)
        return self.net.q_reach(wide, action)

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
    ) -> tuple[Tensor, Tracked | None]:
        """The feature that the heads read `[N, F]`; adds the new state and what it chose among."""
        vector = stack_vectors(self.spec.observation, named)
        if not net.remembers:
            return net.world_model.encode(seen, vector), None
        state = Latent(named[f"{prefix}deter"], named[f"{prefix}stoch"])
        first, previous = 1.0 - named["started"], named["previous_action"]
        found = net.track(seen, vector, state, previous, first)
        carry += [found.latent.deter, found.latent.stoch]
        scores.append(found.posterior)
        return found.feature, found


def _state_sizes(net: FospNet, prefix: str) -> dict[str, int]:
    rssm = net.model.rssm
    return {f"{prefix}deter": rssm.deter_dim, f"{prefix}stoch": rssm.stoch_dim}


class FospPolicy(ModulePolicy):
    """The `Policy` of FOSP; see `safe_o2o.interfaces.Policy`.

    Args:
        net: networks of the deployed policy.
        base: those of the frozen offline policy, or None before there is one.
        spec: observation and action spec.
        seed: of the noise.
        expands: whether the frozen policy's action is a candidate.
    """

    module: DecisionModule

    def __init__(
        self,
        net: FospNet,
        base: FospNet | None,
        spec: Spec,
        seed: int = 0,
        *,
        expands: bool = True,
    ) -> None:
        super().__init__(DecisionModule(net, base if expands else None, spec), spec, seed)
        self._beside = None if expands or base is None else (net, base)

    def watching_module(self) -> DecisionModule:
        """`export_module` for a gate: the frozen world model is in it, come what may.

        The gate's heads were trained on its states, and fine-tuning moves the other one.
        """
        if self._beside is None:
            return self.module
        return DecisionModule(*self._beside, self.spec, expands=False)
