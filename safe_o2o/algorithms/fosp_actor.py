"""What trains FOSP's actor, and its baselines': one objective a phase, and the cost penalty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safe_o2o.algorithms import losses
from safe_o2o.algorithms.budgets import Budgets
from safe_o2o.algorithms.duals import AugmentedLagrangian
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.fosp_net import FospNet, cautious
from safe_o2o.algorithms.fosp_reading import KINDS, Estimates, Reading, Records, constant
from safe_o2o.algorithms.world_model import Imagined
from safe_o2o.nets.normalizer import PercentileNormalizer, RmsNormalizer
from safe_o2o.nets.parallel import everywhere, largest, share, with_others


@dataclass(frozen=True)
class Duals:
    """The multipliers that price costs.

    Attributes:
        lagrangian: of the cost constraint.
        budgets: of what is tolerable on average.
    """

    lagrangian: AugmentedLagrangian
    budgets: Budgets


class ActorObjectives:
    """The policy's loss, as a sum that trains the actor alone.

    Args:
        config: settings.
        net: the networks in training.
        duals: multipliers of the cost constraint and of the budgets.
        scale: normaliser of the advantages by kind.
    """

    def __init__(
        self,
        config: FospConfig,
        net: FospNet,
        duals: Duals,
        scale: nn.ModuleDict,
    ) -> None:
        self.config, self.net, self.scale = config, net, scale
        self.lagrangian, self.budgets = duals.lagrangian, duals.budgets
        self.read = Reading(config, net)

    def __call__(
        self,
        which: str,
        said: Estimates,
        feature: Tensor,
        data: Records,
        target: dict[str, Tensor],
        imagined: Imagined | None,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """The objective of this phase and the penalty (fosp.md 3.5, 3.6, 4.2).

        Args:
            which: `weighted`, `clone`, `imagined`, `score` or `reward`.
            said: what the networks say of the recorded pairs.
            feature: of the recorded states `[B, T, F]`.
            data: the batch.
            target: of Q at the recorded pairs `[B, T-1]`, by kind.
            imagined: rollouts, where the objective or the penalty needs them.
            metrics: where to note what came out.
        """
        if which in ("weighted", "clone"):
            loss = self._regression(which, said, feature, data, target, metrics)
        else:
            assert imagined is not None
            price = self._price_ahead(imagined, said, data, metrics) if self.budgets else None
            loss = self._imagined(which, imagined, metrics, price)
        if self.config.penalty == "none":
            return loss
        return loss + self._penalty(feature, data, imagined, metrics)

    def paths(self, which: str) -> frozenset[str]:
        """Predictions along imagined rollouts that the actor is trained through.

        Args:
            which: objective of the phase.
        """
        through = {"imagined": {"reward", "cost"}, "reward": {"reward"}}.get(which, set())
        penalty = {"cost"} if self.config.penalty == "imagined" else set()
        return frozenset(through | penalty)

    def _regression(
        self,
        which: str,
        said: Estimates,
        feature: Tensor,
        data: Records,
        target: dict[str, Tensor],
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """-E_D[w log pi(a|s)] - eta H, gradient through log pi only (fosp.md 3.5)."""
        cfg, actor = self.config, self.net.actor
        now, action = feature[:, :-1], data.action[:, :-1]
        valid = data.pairs.valid * data.actor_mask[:, :-1]
        weight = (
            self._weight(said, data, target, valid, metrics)
            if which == "weighted"
            else torch.ones_like(valid)
        )
        likelihood, mean, std = actor.likelihood(now, action)
        loss = -losses.masked_mean(weight * likelihood, valid)
        if cfg.entropy and not cfg.actor_std:
            loss = loss - cfg.entropy * losses.masked_mean(actor.entropy(std), valid)
        metrics["actor/loss"] = loss.detach()
        metrics["actor/weight_max"] = share(largest((weight * valid).amax()))
        error = (mean.detach() - action).square().sum(-1)
        metrics["actor/weighted_error"] = losses.masked_mean(weight * error, valid)
        return loss

    @torch.no_grad()
    def _weight(
        self,
        said: Estimates,
        data: Records,
        target: dict[str, Tensor],
        valid: Tensor,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """Weights of the recorded pairs `[B, T-1]`."""
        cfg, read = self.config, self.read
        advantage = {}
        for kind in KINDS:
            q = read.q(kind, said)
            advantage[kind] = (q if cfg.advantage == "q" else target[kind]) - read.v(kind, said)
            scale = self.scale[kind]
            if isinstance(scale, RmsNormalizer):
                scale.update(advantage[kind], data.pairs.valid)
            else:
                scale.update(q[data.pairs.valid > 0])
            advantage[kind] = advantage[kind] / scale.divisor
        if cfg.weight == "sum":
            u = read.u(read.v("reach", said))
            weight = losses.offline_weight(u, advantage["reward"], advantage["cost"], cfg.beta)
            weight = self._within_budget(weight, said, data, target, valid, metrics)
            return weight.clamp(max=cfg.weight_clip)
        weight = torch.exp(cfg.beta * advantage["reward"]).clamp(max=cfg.weight_clip)
        risk = read.q("reach", said) if cfg.gate == "critic" else target["reach"]
        weight = weight * read.u(risk).pow(cfg.gate_power)
        weight = self._within_budget(weight, said, data, target, valid, metrics)
        return weight / everywhere(losses.masked_mean(weight, valid)).clamp(min=1e-6)

    @torch.no_grad()
    def _within_budget(
        self,
        weight: Tensor,
        said: Estimates,
        data: Records,
        target: dict[str, Tensor],
        valid: Tensor,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """Weights `[B, T-1]` with the price of every budget on them, and a step of the prices."""
        if not self.budgets:
            return weight
        read, q, advantage = self.read, {}, {}
        for kind, budget in self.budgets.items():
            q[kind] = read.q(kind, said)
            said_of_it = q[kind] if self.config.advantage == "q" else target[kind]
            advantage[kind] = said_of_it - read.v(kind, said)
            budget.scale.update(advantage[kind], data.pairs.valid)
        weight = weight * torch.exp(-self.budgets.price(advantage)).clamp(
            max=self.config.weight_clip
        )
        total = everywhere(losses.masked_mean(weight, valid)).clamp(min=1e-6)
        weighted = {kind: losses.masked_mean(weight * x, valid) / total for kind, x in q.items()}
        self.budgets.settle(*self._logged(q, data), weighted, metrics)
        return weight

    def _logged(
        self, q: dict[str, Tensor], data: Records
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Means over the data of what has a budget and of its critics, this process's shares."""
        valid = data.pairs.valid
        cost = {kind: losses.masked_mean(data.x[kind][:, 1:], valid) for kind in q}
        return cost, {kind: losses.masked_mean(x, valid) for kind, x in q.items()}

    def _price_ahead(
        self, imagined: Imagined, said: Estimates, data: Records, metrics: dict[str, Tensor]
    ) -> Tensor:
        """Price of the imagined actions `[H, N]`, differentiable in them; a step of all prices."""
        state = imagined.feature[:-1]
        cont = imagined.cont[:-1]
        ahead: dict[str, Tensor] = {}
        advantage: dict[str, Tensor] = {}
        for kind, budget in self.budgets.items():
            with constant(self.net.critic[kind]):
                action = imagined.action.to(state.dtype)
                ahead[kind] = cautious(kind, self.net.critic[kind](state, action))
            with torch.no_grad():
                value = self.net.value[kind](state)[0]
                budget.scale.update(ahead[kind] - value, torch.ones_like(value))
            advantage[kind] = ahead[kind] - value
        price = self.budgets.price(advantage)
        with torch.no_grad():
            q = {kind: self.read.q(kind, said) for kind in self.budgets}
            weight = losses.imagination_weight(cont, self.config.budget.discount)
            total = everywhere(losses.mean(weight)).clamp(min=1e-6)
            weighted = {kind: losses.mean(weight * x.detach()) / total for kind, x in ahead.items()}
            self.budgets.settle(*self._logged(q, data), weighted, metrics)
        return price

    def _imagined(
        self,
        which: str,
        imagined: Imagined,
        metrics: dict[str, Tensor],
        price: Tensor | None = None,
    ) -> Tensor:
        """-E[gain] - eta H along imagined rollouts (fosp.md 4.2).

        `imagined`: u A^r - (1 - u) A^c, pathwise; `score`: the same as a weight of log pi;
        `reward`: A^r, pathwise, as Dreamer and SafeDreamer have it. `price` `[H, N]` is what the
        budgets ask for the actions.
        """
        cfg, actor = self.config, self.net.actor
        gain = self._advantage(imagined, "reward")
        if which != "reward":
            u = self.read.imagined_feasible(imagined)
            gain = losses.online_weight(u, gain, self._advantage(imagined, "cost"), cfg.beta)
        if price is not None:
            gain = gain - price
        with torch.no_grad():
            weight = losses.imagination_weight(imagined.cont[:-1], cfg.discount_reward)
        if which == "score":
            move = imagined.action.detach()
            gain = gain.detach() * actor.log_prob(move, imagined.mean, imagined.std)
        loss = -losses.mean(weight * (gain + cfg.entropy * actor.entropy(imagined.std)))
        metrics["actor/loss"] = loss.detach()
        return loss

    def _advantage(self, imagined: Imagined, kind: str) -> Tensor:
        """Imagined return minus value, normalised, `[H, N]`."""
        returns, scale = self.read.imagined_return(imagined, kind), self.scale[kind]
        with torch.no_grad():
            value = self.read.imagined_value(imagined, kind)[:-1].detach()
            if isinstance(scale, PercentileNormalizer):
                scale.update(returns)
            else:
                scale.update(returns - value, torch.ones_like(value))
        return (returns - value) / scale.divisor

    def _penalty(
        self,
        feature: Tensor,
        data: Records,
        imagined: Imagined | None,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """Phi(u * cost measure), gradient into the actor alone (fosp.md 3.6)."""
        net, read = self.net, self.read
        if self.config.penalty == "imagined" and imagined is not None:
            returns = read.imagined_return(imagined, "cost").clamp(min=0.0)
            returns = read.imagined_feasible(imagined) * returns
            pessimistic = self.config.penalty_reduction == "sum"
            cost = losses.mean(returns.sum(0) if pessimistic else returns)
        else:
            state = feature.detach()
            mean, _ = net.actor(state)
            with constant(net.critic):
                q_cost = net.q_cost(state, mean).clamp(min=0.0)
            cost = losses.masked_mean(read.feasible(state) * q_cost, data.mask)
        loss = self.lagrangian(with_others(cost))
        self.lagrangian.update(everywhere(cost))
        metrics["actor/cost"] = cost.detach()
        metrics["lagrange/multiplier"] = share(self.lagrangian.lagrange_multiplier.clone())
        metrics["lagrange/penalty"] = share(self.lagrangian.penalty.clone())
        return loss
