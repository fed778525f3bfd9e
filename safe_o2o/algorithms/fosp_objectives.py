"""FOSP's objectives: everything that becomes a gradient in one update (fosp.md 3 and 4)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from safe_o2o.algorithms import losses
from safe_o2o.algorithms.budgets import budget_cost
from safe_o2o.algorithms.fosp_actor import ActorObjectives, Duals
from safe_o2o.algorithms.fosp_config import IMAGINED, FospConfig
from safe_o2o.algorithms.fosp_net import FospNet, cautious, stack_images, stack_vectors
from safe_o2o.algorithms.fosp_reading import KINDS, Estimates, Reading, Records
from safe_o2o.algorithms.world_model import Imagined, Observed
from safe_o2o.data.batch import Batch
from safe_o2o.nets.parallel import Draws, own, world
from safe_o2o.nets.precision import training_arithmetic
from safe_o2o.nets.rssm import Latent
from safe_o2o.spaces import Spec


class Objectives:
    """The losses of one update, as sums that one backward pass trains everything with.

    Args:
        config: settings.
        spec: observation and action spec.
        net: the networks in training.
        slow: slow copies of critics and values, keys `critic` and `value`.
        duals: multipliers of the cost constraint and of the budgets.
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
        duals: Duals,
        scale: nn.ModuleDict,
        generator: torch.Generator,
    ) -> None:
        self.config, self.spec, self.net, self.slow = config, spec, net, slow
        self.generator, self.device = generator, generator.device
        self.read = Reading(config, net)
        self.actor = ActorObjectives(config, net, duals, scale)
        self.kinds = (*KINDS, *config.budget.limits)
        self.online = False

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all losses of a batch of sequences, and detached metrics.

        Args:
            batch: from a sequence replay.
            step: number of the update.
        """
        with training_arithmetic(self.config.world_model.precision, self.device):
            return self._sum(batch, step)

    def _sum(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        data = self.records(batch)
        if self.config.model == "none":
            metrics: dict[str, Tensor] = {}
            feature = self.net.world_model.embed(data.image, data.vector)
            return self.behavior(feature, None, data, metrics), metrics
        seen, model_loss, metrics = self.model(data, step)
        feature = self.net.feature(seen.latent, seen.embed)
        feature = feature.detach() if self.config.gradient == "stop" else feature
        return model_loss + self.behavior(feature, seen, data, metrics), metrics

    def model(self, data: Records, step: int) -> tuple[Observed, Tensor, dict[str, Tensor]]:
        """The world model's part: a batch seen through it, its loss, and detached metrics."""
        model = self.net.model
        seen = model.observe(
            data.image,
            data.vector,
            data.action,
            data.is_first,
            Draws.batch(self.generator, len(data.image)),
        )
        loss, metrics = model.loss(
            seen,
            data.image,
            data.vector,
            data.x["reward"],
            data.x["cost"],
            data.terminated,
            data.mask,
            not self.online or self.config.finetune.decode,
            step,
        )
        return seen, loss, metrics

    def behavior(
        self, feature: Tensor, seen: Observed | None, data: Records, metrics: dict[str, Tensor]
    ) -> Tensor:
        """The rest: critics, REF and actor, on records and along imagined rollouts.

        Args:
            feature: what the heads read of the recorded states `[B, T, F]`.
            seen: the batch seen through the world model; None without one.
            data: the batch.
            metrics: where to note what came out.
        """
        imagined = self.imagine(seen, data) if seen is not None and self.imagines else None
        target = self.critic_targets(feature, data)
        said = self.read.estimates(feature, data)
        critic_loss = self.critic_loss(said, data, target, imagined, metrics)
        p, p_now, target["reach"] = self.reach_targets(feature, data)
        metrics["reach/p"] = losses.masked_mean(p, data.mask)
        reach_loss = self.reach_loss(said, p_now, target["reach"], data, imagined, metrics)
        actor_loss = self.actor(
            self.actor_objective, said, feature, data, target, imagined, metrics
        )
        return critic_loss + reach_loss + actor_loss

    @property
    def actor_objective(self) -> str:
        """What trains the actor in this phase."""
        return self.config.finetune.actor if self.online else self.config.actor

    @property
    def imagines(self) -> bool:
        """Whether any objective of this phase needs imagined rollouts."""
        cfg = self.config
        return (
            "imagined" in (cfg.critic_target, cfg.penalty)
            or cfg.value_data != "replay"
            or self.actor_objective in IMAGINED
        )

    def records(self, batch: Batch) -> Records:
        """The batch as floats, images shifted and recoloured at random where that is on."""
        observation = self.spec.observation
        obs = batch.obs
        if self.config.shift:
            obs = dict(obs)
            for name in observation.image_names:
                obs[name] = losses.random_shift(obs[name], self.config.shift, self.generator)
        image = stack_images(observation, obs)
        if observation.image_names:
            share, keep = self.config.recolour, self.config.recolour_keep
            image = losses.random_colours(image, share, self.generator, keep)
        mask, terminated = batch.mask.float(), batch.terminated
        if self.config.timeout_terminates:
            terminated = terminated | batch.truncated
        actor_mask = batch.actor_mask if batch.actor_mask is not None else batch.action_mask
        return Records(
            image=image,
            vector=stack_vectors(observation, batch.obs),
            action=batch.action,
            x={"reward": batch.reward, "cost": batch.cost} | self._budgeted(batch),
            terminated=terminated.float(),
            is_first=batch.is_first.float(),
            mask=mask,
            actor_mask=actor_mask.float(),
            reach_mask=mask if batch.reach_mask is None else batch.reach_mask.float(),
            pairs=losses.transition_pairs(batch.is_first, terminated, batch.mask),
        )

    def _budgeted(self, batch: Batch) -> dict[str, Tensor]:
        """What has a budget, on arrival `[B, T]`, as reward and cost are."""
        found: dict[str, Tensor] = {}
        for name in self.config.budget.limits:
            found[name] = nn.functional.pad(budget_cost(batch, name)[:, :-1], (1, 0))
        return found

    def imagine(self, seen: Observed, data: Records) -> Imagined:
        """Rollouts of the actor from the posterior states, or from some of them."""
        latent = Latent(*(x.flatten(0, 1).detach() for x in seen.latent))
        alive = 1.0 - data.terminated.flatten()
        draws = Draws.batch(self.generator, len(alive))
        total, starts = world() * len(alive), self.config.imagination_starts
        if 0 < starts < total:
            pick = torch.randperm(total, generator=self.generator, device=self.device)[:starts]
            if world() > 1:
                rows = own(total)
                mine = torch.nonzero((pick >= rows.start) & (pick < rows.stop))[:, 0]
                pick, draws = pick[mine] - rows.start, Draws(self.generator, starts, mine)
            latent, alive = Latent(*(x[pick] for x in latent)), alive[pick]
        paths = self.actor.paths(self.actor_objective)
        with torch.set_grad_enabled(bool(paths) or self.actor_objective in IMAGINED):
            rollout = self.net.model.imagine(
                latent, self.net.actor, self.config.horizon, draws, paths
            )
        return replace(rollout, cont=torch.cat([alive.unsqueeze(0), rollout.cont[1:]]))

    @torch.no_grad()
    def critic_targets(self, feature: Tensor, data: Records) -> dict[str, Tensor]:
        """Targets of Q at the recorded pairs `[B, T-1]`, by kind."""
        cfg, target = self.config, {}
        for kind in self.kinds:
            x, pairs = data.x[kind], data.pairs
            if kind == "reward" and cfg.violation_ends:
                clean = (data.x["cost"] <= 0).float()
                x, pairs = x * clean, pairs._replace(cont=pairs.cont * clean[:, 1:])
            discount = self.read.discount(kind)
            if cfg.critic_target == "recorded":
                value = self.slow["value"][kind](feature)[0]
                target[kind] = losses.recorded_lambda_return(x, pairs, value, discount, cfg.lambda_)
            else:
                value = self.net.value[kind](feature)[0]
                target[kind] = losses.one_step_target(x, pairs, value, discount)
        return target

    def critic_loss(
        self,
        said: Estimates,
        data: Records,
        target: dict[str, Tensor],
        imagined: Imagined | None,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """Q and V of reward and cost (fosp.md 3.2, 3.3)."""
        cfg, read, zero = self.config, self.read, data.mask.new_zeros(())
        now, action, valid = said.feature, data.action[:, :-1], data.pairs.valid
        total = zero
        for kind in self.kinds:
            q = read.q(kind, said)
            q_loss = value_loss = zero
            dreamt = kind in KINDS  # the model predicts reward and cost, nothing that has a budget
            if self.replays or not dreamt:
                q_loss = self._q_loss(kind, said.q[kind], now, action, target[kind], valid)
            if cfg.value_data != "imagined" or not dreamt:
                goal = q if cfg.value_target == "q" else target[kind]
                nll = self._value_nll(kind, said.v[kind], goal)
                value_loss = losses.masked_mean(nll, valid)
            if imagined is not None and dreamt:
                more = self._imagined_critics(kind, imagined)
                q_loss, value_loss = q_loss + more[0], value_loss + more[1]
            metrics[f"critic/{kind}_loss"] = q_loss.detach()
            metrics[f"value/{kind}_loss"] = value_loss.detach()
            metrics[f"critic/{kind}"] = losses.masked_mean(q, valid)
            total = total + q_loss + value_loss
        return total

    def _imagined_critics(self, kind: str, imagined: Imagined) -> tuple[Tensor, Tensor]:
        """Losses of Q (L1 of fosp.md 3.3) and V on imagined pairs, 0 for what learns elsewhere."""
        cfg, read = self.config, self.read
        zero = imagined.cont.new_zeros(())
        on_q, on_v = cfg.critic_target == "imagined", cfg.value_data != "replay"
        if not (on_q or on_v):
            return zero, zero
        returns = read.imagined_return(imagined, kind).detach()
        weight = losses.imagination_weight(imagined.cont[:-1], read.discount(kind))
        critic, q_loss, value_loss = self.net.critic[kind], zero, zero
        raw = None
        if on_q or cfg.value_target == "q":
            pair = read.imagined_pair(imagined)
            with torch.set_grad_enabled(on_q):
                raw = critic.raw(pair)
        if raw is not None and on_q:
            q_loss = self._q_loss(kind, raw, pair, None, returns, weight, mean=True)
        if on_v:
            goal = returns
            if raw is not None and cfg.value_target == "q":
                goal = cautious(kind, critic.decode(raw.detach()))
            nll = self._value_nll(kind, read.imagined_value_raw(imagined, kind)[:, :-1], goal)
            value_loss = losses.mean(weight * nll)
        return q_loss, value_loss

    @property
    def replays(self) -> bool:
        """Whether Q learns from recorded pairs in this phase (L2 of fosp.md 3.3)."""
        when = self.config.critic_replay
        return when == "always" or (when == "offline" and not self.online)

    def _q_loss(
        self,
        kind: str,
        raw: Tensor,
        state: Tensor,
        action: Tensor | None,
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
        if mean:
            return losses.mean(per_pair * weight)
        return losses.masked_mean(per_pair, weight)

    def _value_nll(self, kind: str, raw: Tensor, goal: Tensor) -> Tensor:
        """Expectile of Q (or of the returns) in the likelihood of the output (T7, T7b)."""
        cfg, value = self.config, self.net.value[kind]
        # What is tolerable on average is judged by its mean.
        expectile = {"reward": cfg.expectile_reward, "cost": cfg.expectile_cost}.get(kind, 0.5)
        weight = losses.expectile_weight(goal - value.decode(raw)[0].detach(), expectile)
        return weight * value.nll(raw, goal)[0]

    @torch.no_grad()
    def reach_targets(self, feature: Tensor, data: Records) -> tuple[Tensor, Tensor, Tensor]:
        """Labels of REF, lambda-mixed along the record (fosp.md 3.4).

        Args:
            feature: what the heads read `[B, T, F]`.
            data: the batch.

        Returns:
            P of every record `[B, T]`, the target of p(s) and that of a pair, P of what follows it,
            both `[B, T-1]`.
        """
        cfg, pairs = self.config, data.pairs
        violation = (data.x["cost"] > 0).float()
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
        of_pair = torch.stack(after[::-1], 1)
        return p, losses.reach_target(violation[:, :-1], of_pair, cfg.discount_reach), of_pair

    def reach_loss(
        self,
        said: Estimates,
        target_p: Tensor,
        ahead: Tensor,
        data: Records,
        imagined: Imagined | None,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        """REF p(s) on real and imagined labels, and its action-conditional twin on real pairs."""
        cfg, reach, critic = self.config, self.net.value["reach"], self.net.critic["reach"]
        raw_p, valid = said.v["reach"], data.pairs.valid * data.reach_mask[:, :-1]
        tilt = losses.expectile_weight(
            target_p - reach.decode(raw_p)[0].detach(), cfg.expectile_reach
        )
        loss = losses.masked_mean(2.0 * tilt * reach.nll(raw_p, target_p)[0], valid)
        loss = loss + losses.masked_mean(critic.nll(said.q["reach"], ahead).sum(0), valid)
        if imagined is not None and cfg.reach_labels == "both":
            label = (imagined.x["cost"].detach() > 0.5).float()
            with torch.no_grad():
                p_last = self.slow["value"]["reach"](imagined.feature[-1].detach())[0]
                target_i = losses.imagined_reach_target(label, p_last, cfg.discount_reach)
            weight = losses.imagination_weight(imagined.cont, 1.0)
            raw_i = self.read.imagined_value_raw(imagined, "reach")
            loss = loss + losses.mean(reach.nll(raw_i, target_i)[0] * weight)
        metrics["reach/loss"] = loss.detach()
        return loss
