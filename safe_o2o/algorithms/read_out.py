"""The decision of a policy that proposes candidates and a critic that chooses among them.

One module for all algorithms on transitions: observation, candidates, scores, the safety critic's
mask, one action. It is what is exported, with every draw as an input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.extraction import Ranked, below, final_score, nearest, own, take
from safe_o2o.algorithms.fosp_net import UNDECIDED
from safe_o2o.algorithms.module_policy import example_inputs
from safe_o2o.spaces import Spec

if TYPE_CHECKING:
    from safe_o2o.algorithms.implicit_value import ImplicitValue
    from safe_o2o.algorithms.learner import Reader
    from safe_o2o.nets.generative import GenerativePolicy


class Proposed(NamedTuple):
    """Candidates.

    Attributes:
        candidates: `[N, n, A]` in [-1, 1].
        preferred: `[N, n]` bool: the others only stand by for a mask that allows none of these.
            None prefers all alike.
    """

    candidates: Tensor
    preferred: Tensor | None = None


class Proposer(nn.Module, ABC):
    """Makes the candidates.

    Attributes:
        count: n.
        noise_inputs: standard normal numbers that it needs, shape without the batch by name.
        deterministic_noise: `fixed` or `zero` by name: what they are when nothing is explored.
    """

    count: int
    noise_inputs: dict[str, tuple[int, ...]]
    deterministic_noise: dict[str, str]

    @abstractmethod
    def forward(self, obs: Tensor, noise: Mapping[str, Tensor]) -> Proposed:
        """Candidates for observations `[N, F]`."""


class Samples(Proposer):
    """Samples of a generative policy.

    Args:
        actor: the policy.
        count: n.
    """

    def __init__(self, actor: GenerativePolicy, count: int) -> None:
        super().__init__()
        self.actor, self.count = actor, count
        self.noise_inputs = {"noise": (count, *actor.noise_shape)}
        self.deterministic_noise = {"noise": "fixed"}

    def forward(self, obs: Tensor, noise: Mapping[str, Tensor]) -> Proposed:
        """See `Proposer`."""
        return Proposed(self.actor.decode(obs, noise["noise"]))


class Explored(Proposer):
    """The action of a Gaussian policy: its mean, with its own noise when it explores.

    Args:
        actor: the policy.
        count: samples around the mean that stand by, for a mask to fall back on.
    """

    def __init__(self, actor: GenerativePolicy, count: int) -> None:
        super().__init__()
        self.actor, self.count = actor, 1 + count
        self.noise_inputs = {"explore": actor.noise_shape}
        self.deterministic_noise = {"explore": "zero"}
        if count:
            self.noise_inputs["noise"] = (count, *actor.noise_shape)
            self.deterministic_noise["noise"] = "fixed"

    def forward(self, obs: Tensor, noise: Mapping[str, Tensor]) -> Proposed:
        """See `Proposer`; the policy's own action is the first."""
        draws = noise["explore"].unsqueeze(1)
        if "noise" in noise:
            draws = torch.cat([draws, noise["noise"]], 1)
        return Proposed(self.actor.decode(obs, draws))


class Rule(nn.Module):
    """Ranks candidates; see `extraction`.

    Attributes:
        draws: whether it is sampled from when the policy explores.
        always: whether also when it does not, by the same draw at every step.
    """

    draws, always = True, False

    def forward(self, obs: Tensor, candidates: Tensor, q: Tensor) -> Ranked:
        """Of observations `[N, F]`, candidates `[N, n, A]` and their believed Q `[N, n]`."""
        raise NotImplementedError


class Nearest(Rule):
    """The policy's own action, and near it where the mask does not allow it."""

    draws = False

    def forward(self, obs: Tensor, candidates: Tensor, q: Tensor) -> Ranked:
        """See `Rule`."""
        return nearest(candidates)


class Own(Rule):
    """The policy's own action, and the best Q near it where the mask does not allow it.

    The nearest would do as little as the mask leaves: wait in front of what cannot be passed.
    """

    draws = False

    def forward(self, obs: Tensor, candidates: Tensor, q: Tensor) -> Ranked:
        """See `Rule`."""
        return own(q)


class ReadOutModule(nn.Module):
    """One decision with plain tensors in and out; see `export.onnx.Exportable`.

    Inputs, in order: the observation's arrays, the proposer's noise, `choice` where the rule draws.
    Outputs: `action`, with a critic `q_reward` of it, and with a safety critic `risk` of it and
    `mean_risk` of all candidates.

    Args:
        spec: observation and action spec.
        reader: from the observation's arrays to what networks read.
        proposer: makes candidates.
        rule: ranks them.
        critic: something whose `believed(obs, action)` is Q `[N, n]`; None where nobody has one.
        risk: the safety critic, or None.
        limit: risk of a feasible candidate.
    """

    def __init__(
        self,
        spec: Spec,
        reader: Reader,
        proposer: Proposer,
        rule: Rule,
        critic: nn.Module | None,
        risk: ImplicitValue | None,
        limit: float,
    ) -> None:
        super().__init__()
        self.spec, self.reader, self.proposer, self.rule = spec, reader, proposer, rule
        self.critic, self.risk, self.limit = critic, risk, limit
        self.noise_inputs = dict(proposer.noise_inputs)
        self.deterministic_noise = dict(proposer.deterministic_noise)
        if rule.draws:
            self.noise_inputs["choice"] = (proposer.count,)
            self.deterministic_noise["choice"] = "fixed" if rule.always else "zero"
        self.carry_names: dict[str, str] = {}
        self.carry_sizes: dict[str, int] = {}
        self.input_names = [*spec.observation.arrays, *self.noise_inputs]
        said = (["q_reward"] if critic else []) + (["risk", "mean_risk"] if risk else [])
        self.output_names = ["action", *said]

    def example_inputs(self) -> tuple[Tensor, ...]:
        """One valid input of every name, batch size 1."""
        return example_inputs(self, self.spec)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class; every tensor has a leading batch axis N."""
        candidates, q, risk, score = self._weighed(*inputs)
        action, index = take(candidates, score)
        chosen, outputs = index.unsqueeze(1), [action]
        if self.critic is not None:
            outputs.append(torch.gather(q, 1, chosen))
        if risk is not None:
            outputs += [torch.gather(risk, 1, chosen), risk.mean(1, keepdim=True)]
        return tuple(outputs)

    def undecided(self, *inputs: Tensor) -> Tensor:
        """Where the choice hangs on rounding, `[N]` bool: two are as good, or at the limit."""
        _, _, risk, score = self._weighed(*inputs)
        if score.shape[1] < 2:
            return torch.zeros(len(score), dtype=torch.bool)
        best = score.topk(2, -1).values
        close = best[:, 0] - best[:, 1] < UNDECIDED * best[:, 0].abs().clamp(min=1.0)
        if risk is not None:
            close = close | ((risk - self.limit).abs() < UNDECIDED).any(-1)
        return close

    def _weighed(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Candidates `[N, n, A]`, their Q, risk and final score `[N, n]`."""
        named = dict(zip(self.input_names, inputs, strict=True))
        obs = self.reader(named)
        noise = {name: named[name] for name in self.proposer.noise_inputs}
        candidates, preferred = self.proposer(obs, noise)
        q = torch.zeros_like(candidates[..., 0])
        if self.critic is not None:
            q = self.critic.believed(obs, candidates)
        risk = self.risk.believed(obs, candidates) if self.risk is not None else None
        ranked = self.rule(obs, candidates, q)
        if preferred is not None:
            ranked = Ranked(*(below(score, preferred) for score in ranked))
        draw = named.get("choice", torch.zeros_like(q))
        return candidates, q, risk, final_score(ranked, draw, risk, self.limit)
