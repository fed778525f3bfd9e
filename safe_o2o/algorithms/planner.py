"""A planner as one decision: candidates, a model's worst case, weights, a refitted plan, an action.

ARC and SafeLOOP (Sikchi, Zhou, Held, CoRL 2021; online_safety.md 3). All iterations are unrolled
into one graph, with every draw as an input and the last plan as its memory, so that it is exported,
checked and deployed as any other policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.extraction import ABSENT, gumbel, take
from safe_o2o.algorithms.fosp_net import UNDECIDED
from safe_o2o.algorithms.module_policy import example_inputs
from safe_o2o.algorithms.plan_weights import (
    Plan,
    discounted_return,
    drawn,
    refit,
    safe_weights,
    shifted,
    temperature_for,
)
from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.nets.dynamics import DynamicsEnsemble
from safe_o2o.spaces import Spec

if TYPE_CHECKING:
    from safe_o2o.algorithms.constraint_layer import ConstraintLayer
    from safe_o2o.algorithms.implicit_value import ImplicitValue
    from safe_o2o.algorithms.learner import Reader
    from safe_o2o.algorithms.policy_value import PolicyValue
    from safe_o2o.nets.generative import GenerativePolicy


@dataclass(frozen=True)
class PlannerConfig:
    """How far, how often and how boldly."""

    horizon: int = 8
    """H"""
    candidates: int = 150
    """drawn around the plan, in each iteration"""
    proposals: int = 48
    """of the policy, each through one of the models"""
    iterations: int = 3
    share: float = 0.15
    """of the candidates that count: sets kappa, whatever the scale of rewards"""
    momentum: float = 0.1
    floor: float = 0.1
    """smallest deviation, half of the range of an action is one"""
    pessimism: float = 1.0
    """deviations over the models that a return loses; offline 1, online down to 0"""
    violation: float = 0.5
    """probability of a violation that no model may see along a feasible candidate"""
    disagreement: float = 1.0
    """largest deviation over the models of where a candidate ends, mean over entries, in units of
    the data's own; a candidate beyond it is not feasible"""
    fewest: int = 4
    """feasible candidates that are enough to look at returns"""

    def __post_init__(self) -> None:
        names = ("horizon", "candidates", "proposals", "iterations", "floor", "disagreement")
        require_positive(self, *names, "fewest")
        for name in ("share", "violation"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"must be in (0, 1), got {getattr(self, name)}", where=name)
        if not 0.0 <= self.momentum < 1.0 or self.pessimism < 0.0:
            raise ConfigError("momentum must be in [0, 1), pessimism 0 or more", where="planner")


class Judged(NamedTuple):
    """Of candidates: return less pessimism, and danger, both `[B, N]`; feasible at most zero."""

    score: Tensor
    danger: Tensor


class PlannerModule(nn.Module):
    """One decision with plain tensors in and out; see `export.onnx.Exportable`.

    Inputs: the observation's arrays, `plan`, `began`, noise. Outputs: `action`, `next_plan`,
    `next_began`, `q_reward` of the action and, with a safety critic, its `risk` and the candidates'
    mean. The candidates always hold two that nobody drew: to brake, which is no action at all and
    comes first, and the plan from before.

    Args:
        spec: observation and action spec.
        reader: from the observation's arrays to vectors.
        model: the dynamics.
        actor: proposes.
        value: Q at the end.
        costs: budgets, whose prices the end pays; None has none.
        risk: the safety critic, or None.
        config: see `PlannerConfig`.
        discount: gamma.
        limit: risk of a feasible end.
    """

    parity_tolerance = 1e-3
    """Weights are exponentials of returns, summed up over the horizon and sharpened until few
    candidates count: what rounding does to a return, in its last digits, moves the plan by more
    than it moves any network's output."""

    def __init__(
        self,
        spec: Spec,
        reader: Reader,
        model: DynamicsEnsemble,
        actor: GenerativePolicy,
        value: PolicyValue,
        costs: ConstraintLayer | None,
        risk: ImplicitValue | None,
        config: PlannerConfig,
        discount: float,
        limit: float,
    ) -> None:
        super().__init__()
        self.spec, self.reader, self.model, self.actor = spec, reader, model, actor
        self.value, self.costs, self.risk = value, costs, risk
        self.config, self.discount, self.limit = config, discount, limit
        cfg, size = config, spec.action.dim
        self.noise_inputs = {
            "proposal": (cfg.horizon, cfg.proposals, *actor.noise_shape),
            "spread": (cfg.iterations, cfg.candidates, cfg.horizon, size),
            "end": (1, *actor.noise_shape),
            "choice": (2 + cfg.proposals + cfg.candidates,),
        }
        self.deterministic_noise = {
            "proposal": "fixed",
            "spread": "fixed",
            "end": "zero",
            "choice": "zero",
        }
        self.carry_sizes = {"plan": cfg.horizon * size, "began": 1}
        self.carry_names = {name: f"next_{name}" for name in self.carry_sizes}
        self.input_names = [*spec.observation.arrays, *self.carry_sizes, *self.noise_inputs]
        said = ["risk", "mean_risk"] if risk is not None else []
        self.output_names = ["action", *self.carry_names.values(), "q_reward", *said]

    def example_inputs(self) -> tuple[Tensor, ...]:
        """One valid input of every name, batch size 1."""
        return example_inputs(self, self.spec)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class; every tensor has a leading batch axis."""
        obs, plan, action, _ = self._decide(*inputs)
        outputs = [action, plan.flatten(1), torch.ones_like(plan[:, :1, 0])]
        outputs.append(self.value.believed(obs, action.unsqueeze(1)))
        if self.risk is not None:
            found = self.risk.believed(obs, action.unsqueeze(1))
            outputs += [found, found]
        return tuple(outputs)

    def undecided(self, *inputs: Tensor) -> Tensor:
        """Where the choice hangs on rounding, `[B]` bool."""
        close: Tensor = self._decide(*inputs)[3]
        return close

    def _decide(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What was read, the new plan's mean, the action, and whether it hangs on rounding."""
        named = dict(zip(self.input_names, inputs, strict=True))
        cfg, obs = self.config, self.reader(named)
        size = self.spec.action.dim
        before = shifted(named["plan"].unflatten(-1, (cfg.horizon, size)))
        brake = torch.zeros_like(before)
        proposed = self._proposed(obs, named["proposal"])
        # Who has no plan yet begins with what the policy would do.
        start = torch.where(named["began"].unsqueeze(-1) > 0.0, before, proposed.mean(1))
        plan = Plan(start, torch.full_like(start, 0.25))
        fixed = torch.cat([torch.stack([brake, before], 1), proposed], 1)
        end = named["end"]
        known = self._judge(obs, fixed, end)
        for number in range(cfg.iterations):
            fresh = drawn(plan, named["spread"][:, number])
            found = self._judge(obs, fresh, end)
            candidates = torch.cat([fixed, fresh], 1)
            judged = Judged(*(torch.cat(pair, 1) for pair in zip(known, found, strict=True)))
            kappa = temperature_for(_among(judged), cfg.share)
            weights = safe_weights(*judged, kappa, fewest=cfg.fewest)
            share = torch.softmax(weights.log_weight, -1)
            plan = refit(candidates, share, plan, cfg.momentum, cfg.floor)
        # The mean of feasible plans need not be one: to the left and to the right of something.
        mean = self._judge(obs, plan.mean.unsqueeze(1), end)
        fits = (mean.danger[:, 0] <= 0.0) & weights.constrained[:, 0]
        draw = named["choice"]
        explores = (draw != 0.0).any(-1)
        score = weights.log_weight + torch.where(explores.unsqueeze(-1), gumbel(draw), 0.0)
        chosen, _ = take(candidates.flatten(2), score)
        chosen = chosen.unflatten(-1, (cfg.horizon, size))
        settled = (fits & ~explores).view(-1, 1, 1)
        after = torch.where(settled, plan.mean, chosen)
        best = score.topk(2, -1).values
        tie = (best[:, 0] - best[:, 1]).abs() < 100.0 * UNDECIDED
        edge = mean.danger[:, 0].abs() < UNDECIDED
        near = (judged.danger.abs() < UNDECIDED).any(-1)
        return obs, after, after[:, 0], (tie & ~settled[:, 0, 0]) | edge | near

    def _proposed(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Action sequences of the policy, each in one model `[B, M, H, A]`."""
        cfg, members = self.config, self.model.members
        count, rows = cfg.proposals, len(obs)
        state = obs.repeat_interleave(count, 0)
        member = torch.arange(count, device=obs.device).remainder(members).repeat(rows)
        index = member.view(1, -1, 1).expand(1, -1, obs.shape[-1])
        actions = []
        for step in range(cfg.horizon):
            draws = noise[:, step].flatten(0, 1).unsqueeze(1)
            action = self.actor.decode(state, draws)[:, 0]
            actions.append(action.unflatten(0, (rows, count)))
            state = torch.gather(self.model(state, action).state, 0, index)[0]
        return torch.stack(actions, 2)

    def _judge(self, obs: Tensor, candidates: Tensor, end: Tensor) -> Judged:
        """Every candidate `[B, N, H, A]` through every model."""
        cfg, (rows, count) = self.config, candidates.shape[:2]
        members = self.model.members
        state = obs.repeat_interleave(count, 0).expand(members, -1, -1)
        rewards, ends, worst = [], [], []
        for step in range(cfg.horizon):
            found = self.model(state, candidates[:, :, step].flatten(0, 1))
            state = found.state
            rewards.append(found.reward)
            ends.append(torch.sigmoid(found.ended))
            worst.append(found.violated.amax(0))
        flat = state.flatten(0, 1)
        draws = end.repeat_interleave(count, 0).repeat(members, 1, 1)
        last = self.actor.decode(flat, draws)
        value = self.value.believed(flat, last)[:, 0]
        if self.costs is not None and len(self.costs.names):
            prices = self.costs.price.to(value.dtype).view(-1, 1)
            value = value - (prices * self.costs.costs(flat, last)[..., 0]).sum(0)
        ended = torch.stack(ends, -1)
        returns = discounted_return(
            torch.stack(rewards, -1), ended, value.unflatten(0, (members, -1)), self.discount
        )
        score = returns.mean(0) - cfg.pessimism * returns.std(0, correction=0)
        # As log-odds: probabilities of one are all alike, and some are nearer to a way out.
        edge = math.log(cfg.violation / (1.0 - cfg.violation))
        danger = torch.stack(worst, -1).amax(-1) - edge
        if self.risk is not None:  # of what is done now, and of an end, as far as it is reached
            alive = ended.new_ones(())
            for chance in ends:
                alive = alive * (1.0 - chance)
            risk = self.risk.believed(flat, last)[:, 0].unflatten(0, (members, -1))
            danger = torch.maximum(danger, (alive * (risk - self.limit)).amax(0))
            first = self.risk.believed(obs, candidates[:, :, 0]).flatten() - self.limit
            danger = torch.maximum(danger, first)
        apart = state.std(0, correction=0).mean(-1)
        danger = torch.maximum(danger, apart - cfg.disagreement)
        return Judged(score.unflatten(0, (rows, count)), danger.unflatten(0, (rows, count)))


def _among(judged: Judged) -> Tensor:
    """Returns of what is feasible, nothing of the others."""
    return torch.where(judged.danger <= 0.0, judged.score, ABSENT)
