"""FOSP's objectives: everything that becomes a gradient in one update (fosp.md 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safe_o2o.algorithms import losses
from safe_o2o.algorithms.duals import AugmentedLagrangian
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.fosp_policy import FospNet, cautious, stack_images, stack_vectors
from safe_o2o.algorithms.world_model import Imagined, Observed
from safe_o2o.data.batch import Batch
from safe_o2o.nets.normalizer import PercentileNormalizer, RmsNormalizer
from safe_o2o.nets.rssm import Latent
from safe_o2o.spaces import Spec

KINDS = ("reward", "cost")


@contextmanager
def constant(*modules: nn.Module) -> Iterator[None]:
    """Treat the parameters of modules as constants; gradients still reach their inputs."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class Records:
    """A batch as FOSP reads it: `[B, T, ...]` float32, images around zero."""

    image: Tensor
    vector: Tensor
    action: Tensor
    x: dict[str, Tensor]
    terminated: Tensor
    is_first: Tensor
    mask: Tensor
    actor_mask: Tensor
    pairs: losses.Pairs


@dataclass(frozen=True)
class Estimates:
    """What the networks in training say of the recorded pairs, computed once for all losses.

    Attributes:
        feature: of the states of the pairs `[B, T-1, F]`.
        q: raw outputs of the critics by kind, `[E, B, T-1, K]`.
        v: raw outputs of the values by kind, `[1, B, T-1, K]`.
    """

    feature: Tensor
    q: dict[str, Tensor]
    v: dict[str, Tensor]


class Objectives:
    """The losses of one update, as sums that one backward pass trains everything with.

    Args:
        config: settings.
        spec: observation and action spec.
        net: the networks in training.
        slow: slow copies of critics and values, keys `critic` and `value`.
        lagrangian: the cost constraint's multiplier.
        scale: normaliser of the advantages by kind.
        generator: source of all samples.

    Attributes:
        online: whether the online objective applies.
    """

    def __init__(
        self,
        config: FospConfig,
        spec: Spec,
        net: FospNet,
        slow: nn.ModuleDict,
        lagrangian: AugmentedLagrangian,
        scale: nn.ModuleDict,
        generator: torch.Generator,
    ) -> None:
        self.config, self.spec, self.net, self.slow = config, spec, net, slow
        self.lagrangian, self.scale, self.generator = lagrangian, scale, generator
        self.device = generator.device
        self.online = False

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all losses of a batch of sequences, and detached metrics.

        Args:
            batch: from a sequence replay.
            step: number of the update.
        """
        cfg, net = self.config, self.net
        data = self.records(batch)
        seen = net.world_model.observe(
            data.image, data.vector, data.action, data.is_first, self.generator
        )
        decode = not self.online or cfg.finetune.decode
        model_loss, metrics = net.world_model.loss(
            seen,
            data.image,
            data.vector,
            data.x["reward"],
            data.x["cost"],
            data.terminated,
            data.mask,
            decode,
            step,
        )
        feature = net.feature(seen.latent, seen.embed)
        feature = feature.detach() if cfg.gradient == "stop" else feature

        imagined = self.imagine(seen, data) if self.imagines else None
        target = self.critic_targets(feature, data)
        said = self.estimates(feature, data)
        critic_loss = self.critic_loss(said, data, target, imagined, metrics)
        reach_loss = self.reach_loss(said, feature, data, imagined, metrics)
        actor_loss = self.actor_loss(said, feature, data, target, imagined, metrics)
        return model_loss + critic_loss + reach_loss + actor_loss, metrics

    @property
    def imagines(self) -> bool:
        """Whether any objective of this phase needs imagined rollouts."""
        cfg = self.config
        return "imagined" in (cfg.critic_target, cfg.penalty) or (
            self.online and cfg.finetune.actor == "imagined"
        )

    def records(self, batch: Batch) -> Records:
        """The batch as floats, images shifted at random where that is on."""
        observation = self.spec.observation
        obs = batch.obs
        if self.config.shift:
            obs = dict(obs)
            for name in observation.image_names:
                obs[name] = losses.random_shift(obs[name], self.config.shift, self.generator)
        image = stack_images(observation, obs)
        mask = batch.mask.float()
        actor_mask = batch.actor_mask if batch.actor_mask is not None else batch.action_mask
        return Records(
            image=image,
            vector=stack_vectors(observation, batch.obs),
            action=batch.action,
            x={"reward": batch.reward, "cost": batch.cost},
            terminated=batch.terminated.float(),
            is_first=batch.is_first.float(),
            mask=mask,
            actor_mask=actor_mask.float(),
            pairs=losses.transition_pairs(batch.is_first, batch.terminated, batch.mask),
        )

    def imagine(self, seen: Observed, data: Records) -> Imagined:
        """Rollouts of the actor from the posterior states, or from some of them."""
        latent = Latent(*(x.flatten(0, 1).detach() for x in seen.latent))
        alive = 1.0 - data.terminated.flatten()
        if 0 < self.config.imagination_starts < latent.deter.shape[0]:
            pick = torch.randperm(
                latent.deter.shape[0], generator=self.generator, device=self.device
            )[: self.config.imagination_starts]
            latent, alive = Latent(*(x[pick] for x in latent)), alive[pick]
        with constant(self.net.world_model):
            rollout = self.net.world_model.imagine(
                latent, self.net.actor, self.config.horizon, self.generator
            )
        cont = torch.cat([alive.unsqueeze(0), rollout.cont[1:]])
        return rollout._replace(cont=cont)

    def _discount(self, kind: str) -> float:
        return self.config.discount_reward if kind == "reward" else self.config.discount_cost

    def _imagined_return(self, imagined: Imagined, kind: str) -> Tensor:
        """X_h of fosp.md 3.1, `[H, N]`, differentiable in the actions."""
        with constant(self.net.value):
            value = self.net.value[kind](imagined.feature)[0]
        x = imagined.reward if kind == "reward" else imagined.cost
        return losses.imagined_lambda_return(
            x, value, imagined.cont, self._discount(kind), self.config.lambda_
        )

    @torch.no_grad()
    def critic_targets(self, feature: Tensor, data: Records) -> dict[str, Tensor]:
        """Targets of Q at the recorded pairs `[B, T-1]`, by kind."""
        cfg, target = self.config, {}
        for kind in KINDS:
            if cfg.critic_target == "recorded":
                value = self.slow["value"][kind](feature)[0]
                target[kind] = losses.recorded_lambda_return(
                    data.x[kind], data.pairs, value, self._discount(kind), cfg.lambda_
                )
            else:
                value = self.net.value[kind](feature)[0]
                target[kind] = losses.one_step_target(
                    data.x[kind], data.pairs, value, self._discount(kind)
                )
        return target

    def estimates(self, feature: Tensor, data: Records) -> Estimates:
        """Critics and values at the recorded pairs."""
        now, action, net = feature[:, :-1], data.action[:, :-1], self.net
        return Estimates(
            now,
            {kind: critic.raw(now, action) for kind, critic in net.critic.items()},
            {kind: value.raw(now) for kind, value in net.value.items()},
        )

    def critic_loss(
        self,
        said: Estimates,
        data: Records,
        target: dict[str, Tensor],
        imagined: Imagined | None,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """Q and V of reward and cost (fosp.md 3.2, 3.3)."""
        cfg, total = self.config, data.mask.new_zeros(())
        now, action = said.feature, data.action[:, :-1]
        for kind in KINDS:
            loss = self._q_loss(kind, said.q[kind], now, action, target[kind], data.pairs.valid)
            if cfg.critic_target == "imagined" and imagined is not None:
                state, move = imagined.feature[:-1].detach(), imagined.action.detach()
                returns = self._imagined_return(imagined, kind).detach()
                weight = losses.imagination_weight(imagined.cont[:-1], self._discount(kind))
                raw = self.net.critic[kind].raw(state, move)
                loss = loss + self._q_loss(kind, raw, state, move, returns, weight, mean=True)
            q = self._q(kind, said)
            goal = q if cfg.value_target == "q" else target[kind]
            value_loss = self._value_loss(kind, said.v[kind], goal, data.pairs.valid)
            metrics[f"critic/{kind}_loss"] = loss.detach()
            metrics[f"value/{kind}_loss"] = value_loss.detach()
            metrics[f"critic/{kind}"] = losses.masked_mean(q, data.pairs.valid)
            total = total + loss + value_loss
        return total

    def _q_loss(
        self,
        kind: str,
        raw: Tensor,
        state: Tensor,
        action: Tensor,
        target: Tensor,
        weight: Tensor,
        mean: bool = False,
    ) -> Tensor:
        critic = self.net.critic[kind]
        nll = critic.nll(raw, target)
        if self.config.critic_output == "two_hot" and self.config.slow_regularizer:
            with torch.no_grad():
                anchor = self.slow["critic"][kind](state, action).mean(0)
            nll = nll + self.config.slow_regularizer * critic.nll(raw, anchor)
        per_pair = nll.sum(0)
        return (per_pair * weight).mean() if mean else losses.masked_mean(per_pair, weight)

    def _value_loss(self, kind: str, raw: Tensor, goal: Tensor, valid: Tensor) -> Tensor:
        """Expectile of Q (or of the returns) in the likelihood of the output (T7, T7b)."""
        cfg, value = self.config, self.net.value[kind]
        expectile = cfg.expectile_reward if kind == "reward" else cfg.expectile_cost
        weight = losses.expectile_weight(goal - value.decode(raw)[0].detach(), expectile)
        return losses.masked_mean(weight * value.nll(raw, goal)[0], valid)

    def _q(self, kind: str, said: Estimates) -> Tensor:
        """The cautious one of the ensemble `[B, T-1]`, cut from the graph."""
        return cautious(kind, self.net.critic[kind].decode(said.q[kind].detach()))

    def _v(self, kind: str, said: Estimates) -> Tensor:
        return self.net.value[kind].decode(said.v[kind].detach())[0]

    def reach_loss(
        self,
        said: Estimates,
        feature: Tensor,
        data: Records,
        imagined: Imagined | None,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """REF p(s) on real and imagined labels, and its action-conditional twin on real pairs."""
        cfg, reach, critic = self.config, self.net.value["reach"], self.net.critic["reach"]
        violation = (data.x["cost"] > 0).float()
        pairs = data.pairs
        with torch.no_grad():
            p = torch.maximum(violation, self.slow["value"]["reach"](feature)[0])
            # The pair's target is P at s_{t+1}; a terminal state only has its own label.
            after: list[Tensor] = []
            following = p[:, -1]
            for t in range(p.shape[1] - 1, 0, -1):
                last, alive = pairs.last[:, t - 1], pairs.cont[:, t - 1]
                mixed = (1.0 - cfg.reach_lambda) * p[:, t] + cfg.reach_lambda * following
                ahead = last * p[:, t] + (1.0 - last) * mixed
                ahead = alive * ahead + (1.0 - alive) * violation[:, t]
                after.append(ahead)
                following = losses.reach_target(violation[:, t - 1], ahead, cfg.discount_reach)
            ahead = torch.stack(after[::-1], 1)
            target_p = losses.reach_target(violation[:, :-1], ahead, cfg.discount_reach)
        raw_p = said.v["reach"]
        tilt = losses.expectile_weight(
            target_p - reach.decode(raw_p)[0].detach(), cfg.expectile_reach
        )
        loss = losses.masked_mean(2.0 * tilt * reach.nll(raw_p, target_p)[0], pairs.valid)
        loss = loss + losses.masked_mean(critic.nll(said.q["reach"], ahead).sum(0), pairs.valid)
        if imagined is not None:
            state = imagined.feature.detach()
            label = (imagined.cost.detach() > 0.5).float()
            with torch.no_grad():
                p_last = self.slow["value"]["reach"](state[-1])[0]
                target_i = losses.imagined_reach_target(label, p_last, cfg.discount_reach)
            weight = losses.imagination_weight(imagined.cont, 1.0)
            loss = loss + (reach.nll(reach.raw(state), target_i)[0] * weight).mean()
        metrics["reach/loss"] = loss.detach()
        metrics["reach/p"] = losses.masked_mean(p, data.mask)
        return loss

    def actor_loss(
        self,
        said: Estimates,
        feature: Tensor,
        data: Records,
        target: dict[str, Tensor],
        imagined: Imagined | None,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """The policy's objective of this phase, with the cost penalty (fosp.md 3.5, 3.6, 4.2)."""
        cfg = self.config
        if self.online and cfg.finetune.actor == "imagined" and imagined is not None:
            loss = self._imagined_objective(imagined, metrics)
        else:
            loss = self._weighted_objective(said, feature, data, target, metrics)
        return loss + self._penalty(feature, data, imagined, metrics)

    def _weighted_objective(
        self,
        said: Estimates,
        feature: Tensor,
        data: Records,
        target: dict[str, Tensor],
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """-E_D[w log pi(a|s)] - eta H, gradient through log pi only (fosp.md 3.5)."""
        cfg, net = self.config, self.net
        now, action = feature[:, :-1], data.action[:, :-1]
        valid = data.pairs.valid * data.actor_mask[:, :-1]
        with torch.no_grad():
            advantage, q = {}, {}
            for kind in KINDS:
                q[kind] = self._q(kind, said)
                best = q[kind] if cfg.advantage == "q" else target[kind]
                advantage[kind] = best - self._v(kind, said)
                scale = self.scale[kind]
                if isinstance(scale, RmsNormalizer):
                    scale.update(advantage[kind], data.pairs.valid)
                else:
                    scale.update(q[kind][data.pairs.valid > 0])
                advantage[kind] = advantage[kind] / scale.divisor
            if cfg.weight == "sum":
                u = 1.0 - self._v("reach", said)
                weight = losses.offline_weight(u, advantage["reward"], advantage["cost"], cfg.beta)
                weight = weight.clamp(max=cfg.weight_clip)
            else:
                p = self._q("reach", said)
                weight = torch.exp(cfg.beta * advantage["reward"]).clamp(max=cfg.weight_clip)
                weight = weight * (1.0 - p).pow(cfg.gate_power)
                weight = weight / losses.masked_mean(weight, valid).clamp(min=1e-6)
        mean, std = net.actor(now)
        loss = -losses.masked_mean(weight * net.actor.log_prob(action, mean, std), valid)
        if cfg.entropy and not cfg.actor_std:
            loss = loss - cfg.entropy * losses.masked_mean(net.actor.entropy(std), valid)
        metrics["actor/loss"] = loss.detach()
        metrics["actor/weight_max"] = (weight * valid).amax()
        error = (mean.detach() - action).square().sum(-1)
        metrics["actor/weighted_error"] = losses.masked_mean(weight * error, valid)
        return loss

    def _imagined_objective(self, imagined: Imagined, metrics: dict[str, Tensor]) -> Tensor:
        """-E[u A^r - (1 - u) A^c] - eta H along imagined rollouts, pathwise (fosp.md 4.2)."""
        cfg, net = self.config, self.net
        state = imagined.feature[:-1]
        advantage = {}
        for kind in KINDS:
            returns = self._imagined_return(imagined, kind)
            with torch.no_grad():
                value = net.value[kind](state)[0]
                scale = self.scale[kind]
                if isinstance(scale, PercentileNormalizer):
                    scale.update(returns)
                else:
                    scale.update(returns - value, torch.ones_like(value))
            advantage[kind] = (returns - value) / scale.divisor
        with torch.no_grad():
            u = 1.0 - net.value["reach"](state)[0]
            weight = losses.imagination_weight(imagined.cont[:-1], cfg.discount_reward)
        gain = losses.online_weight(u, advantage["reward"], advantage["cost"], cfg.beta)
        _, std = net.actor(state.detach())
        loss = -(weight * (gain + cfg.entropy * net.actor.entropy(std))).mean()
        metrics["actor/loss"] = loss.detach()
        return loss

    def _penalty(
        self,
        feature: Tensor,
        data: Records,
        imagined: Imagined | None,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """Phi(u * cost measure), gradient into the actor alone (fosp.md 3.6)."""
        net = self.net
        if self.config.penalty == "imagined" and imagined is not None:
            returns = self._imagined_return(imagined, "cost").clamp(min=0.0)
            with torch.no_grad():
                u = 1.0 - net.value["reach"](imagined.feature[:-1])[0]
            cost = (u * returns).sum(0).mean()
        else:
            state = feature.detach()
            mean, _ = net.actor(state)
            with torch.no_grad():
                u = 1.0 - net.value["reach"](state)[0]
            with constant(net.critic):
                q_cost = net.q_cost(state, mean).clamp(min=0.0)
            cost = losses.masked_mean(u * q_cost, data.mask)
        loss = self.lagrangian(cost)
        self.lagrangian.update(cost.detach())
        metrics["actor/cost"] = cost.detach()
        metrics["lagrange/multiplier"] = self.lagrangian.lagrange_multiplier.clone()
        metrics["lagrange/penalty"] = self.lagrangian.penalty.clone()
        return loss
