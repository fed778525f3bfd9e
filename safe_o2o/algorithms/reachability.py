"""Reachability on a world model's states: which action still has a way out, and who would know.

One `update` is `specs/reachability_gate.md` 6.2: margin, ensemble of one-step predictors, safety
critic on the discounted safety Bellman equation with its schedule, recovery policy. It trains on
the states of a world model that were computed once (`safe-o2o encode --what state`); the model
itself is not touched. Sources: see `safety_value`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.gated import fingerprint
from safe_o2o.algorithms.latents import Tracker
from safe_o2o.algorithms.module_policy import ModulePolicy
from safe_o2o.algorithms.reachability_config import PRESETS, ReachabilityConfig
from safe_o2o.algorithms.reachability_nets import Heads, RecoveryModule
from safe_o2o.algorithms.safety_value import (
    distance_label,
    margin_loss,
    novelty_label,
    safety_discount,
    safety_target,
)
from safe_o2o.data.batch import Batch
from safe_o2o.errors import CheckpointError, SpecMismatchError, UnknownNameError
from safe_o2o.nets.critic import ema_update
from safe_o2o.nets.mlp import constant
from safe_o2o.nets.precision import training_arithmetic
from safe_o2o.nets.rssm import Latent
from safe_o2o.spaces import Spec

_QUANTILES = (0.25, 0.75, 0.995)


class Reachability:
    """Margin, predictors, safety critic and recovery policy; see `Fosp` for the arguments."""

    wants: Literal["transitions", "sequences"] = "transitions"
    Config = ReachabilityConfig

    def __init__(
        self,
        config: ReachabilityConfig,
        spec: Spec,
        statistics: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.spec, self.device = config, spec, torch.device(device)
        arrays = spec.observation.arrays
        if not set(config.reads) <= arrays.keys():
            raise SpecMismatchError(
                f"reads {', '.join(config.reads)} of a world model, the data have "
                f"{', '.join(arrays)}",
                where="algorithm reachability",
                todo="encode them: safe-o2o encode CHECKPOINT --what state",
            )
        sizes = {name: arrays[name].shape[0] for name in config.reads}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.heads = Heads(
                sizes, spec.action.dim, config.hidden_dims, config.critics, config.predictors
            ).to(self.device)
        self.slow = copy.deepcopy(self.heads.critic).requires_grad_(False)
        self.novelty = torch.tensor([0.0, 1.0, 2.0], device=self.device)
        """Running quantiles of the disagreement about recorded actions: see `_QUANTILES`."""
        self.tracker: Tracker | None = None
        self.encoder = b""
        """Fingerprint of the world model whose states these are; empty while nobody said."""
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.step = 0
        cfg, heads = config, self.heads
        rates = {
            "margin": (heads.margin_net, cfg.margin_lr),
            "predictor": (heads.predictor, cfg.predictor_lr),
            "critic": (heads.critic, cfg.critic_lr),
            "actor": (heads.recovery_net, cfg.actor_lr),
        }
        self.optimizer = {
            name: torch.optim.Adam(net.parameters(), lr=lr, fused=True)
            for name, (net, lr) in rates.items()
        }

    @staticmethod
    def preset(name: str) -> ReachabilityConfig:
        """Settings at a size: `tiny` (tests), `small` (CPU), `paper` (the spec's)."""
        if name not in PRESETS:
            raise UnknownNameError("preset", name, PRESETS)
        return PRESETS[name]

    @property
    def policy(self) -> ModulePolicy:
        """The recovery policy, on states; what is deployed is a gate around another policy."""
        arrays = self.spec.observation.arrays
        sizes = [array.shape[0] for array in arrays.values()]
        return ModulePolicy(RecoveryModule(self.heads, list(arrays), sizes), self.spec)

    @property
    def imagines(self) -> bool:
        """Whether imagined states can be learned from: those have no embedding."""
        return self.config.imagined > 0 and "embed" not in self.config.reads

    def use_model(self, tracker: Tracker) -> None:
        """The world model whose states these are, to imagine with; a constant."""
        self.tracker = tracker.to(self.device).eval().requires_grad_(False)
        self.encoder = fingerprint(tracker.net)

    # ------------------------------------------------------------------ learning

    def update(self, batch: Batch) -> dict[str, float]:
        """One step of every head on transitions of states; returns metrics."""
        assert batch.next_obs is not None
        heads, metrics = self.heads, {}
        feature, after = heads.feature(batch.obs), heads.feature(batch.next_obs)
        violated = (batch.cost > 0).float()
        seen = self._predict(feature, batch, metrics)
        told = self._told(batch, violated)
        parts = [(feature, batch.action, after, violated, batch.terminated.float(), seen, told)]
        if self.imagines and self.tracker is not None:
            parts.append(self._imagined(batch))
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        with training_arithmetic(self.config.precision, self.device):
            if batch.clearance is not None and bool(batch.clearance.isfinite().any()):
                self._measure(after, told, metrics)
            else:
                self._separate(columns[2], columns[3], metrics)
            feature, action, target = columns[0], columns[1], self._target(*columns)
            risk = heads.risks(feature, action)
            loss = nn.functional.huber_loss(risk, target.expand_as(risk))
            self._optimize("critic", loss)
            with constant(heads.critic):
                chosen = heads.recovery(feature)
                worst = heads.risks(feature, chosen).amax(0).mean()
                effort = chosen.square().sum(-1).mean()
                self._optimize("actor", worst + self.config.action_penalty * effort)
        ema_update(self.slow, heads.critic, self.config.tau)
        self.step += 1
        metrics |= {
            "critic/loss": loss,
            "critic/risk": risk.mean(),
            "critic/target": target.mean(),
            "critic/discount": torch.tensor(self.discount),
            "actor/risk": worst,
            "novelty/mean": seen.mean(),
            "novelty/high": self.novelty[2],
        }
        values = torch.stack([value.detach().float() for value in metrics.values()])
        return dict(zip(metrics, values.tolist(), strict=True))

    @property
    def discount(self) -> float:
        """The discount at this update."""
        cfg = self.config
        done = self.step - int(cfg.warmup * cfg.total_updates)
        if done < 0:
            return 0.0
        stage = max(1, cfg.total_updates // cfg.stages)
        return safety_discount(done, cfg.discount, stage, cfg.discount_start)

    def _optimize(self, name: str, loss: Tensor) -> None:
        self.optimizer[name].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer[name].step()

    def _predict(self, feature: Tensor, batch: Batch, metrics: dict[str, Tensor]) -> Tensor:
        """The ensemble's step; returns its disagreement about what was recorded `[B]`."""
        assert batch.next_obs is not None
        heads, target = self.heads, batch.next_obs["deter"]
        rate = max(0.001, 1.0 / (self.step + 1))
        with torch.no_grad():
            heads.next_mean.lerp_(target.mean(0), rate)
            heads.next_var.lerp_((target - heads.next_mean).square().mean(0) + 1e-6, rate)
        predicted = heads.predicted(feature, batch.action)
        error = ((predicted - target).square() / heads.next_var).mean(-1)
        mine = self._sees(batch)
        loss = (error * mine).sum() / mine.sum().clamp(min=1.0)
        self._optimize("predictor", loss)
        with torch.no_grad():
            predicted = predicted.detach()
            wrong = (predicted.mean(0) - target).square().mean(0)
            heads.residual_var.lerp_(wrong + 1e-8, rate)
            seen = heads.spread(predicted)
            levels = torch.quantile(seen, torch.tensor(_QUANTILES, device=seen.device))
            self.novelty.lerp_(levels, max(0.01, 1.0 / (self.step + 1)))
        metrics["predictor/loss"] = loss
        return seen

    def _sees(self, batch: Batch) -> Tensor:
        """Which rows each predictor learns from `[M, B]`: its own share of the episodes."""
        members = torch.arange(self.config.predictors, device=self.device).unsqueeze(1)
        if batch.index is None:
            return torch.ones(self.config.predictors, len(batch), device=self.device)
        number = (batch.index.episode + 7919 * batch.index.origin).to(self.device)
        mixed = number * self.config.predictors + members
        for _ in range(3):  # an integer hash: neighbours have nothing in common
            mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
        return (mixed < self.config.predictor_share * 0xFFFFFFFF).float()

    def _told(self, batch: Batch, violated: Tensor) -> Tensor:
        """Danger on arrival as the data tell it `[B]`: 1 in contact, else by distance, or NaN."""
        label, cfg = torch.full_like(violated, torch.nan), self.config
        if batch.clearance is not None:
            label = distance_label(batch.clearance, cfg.safe_distance, cfg.distance_scale)
        return torch.where(violated > 0, torch.ones_like(label), label)

    def _measure(self, after: Tensor, told: Tensor, metrics: dict[str, Tensor]) -> None:
        """The margin's step where distances are known: it is what they say."""
        known = told.isfinite()
        error = -torch.tanh(self.heads.margin(after)) - torch.where(known, told, 0.0)
        loss = (error.square() * known).sum() / known.sum()
        self._optimize("margin", loss)
        metrics["margin/error"] = loss

    def _separate(self, after: Tensor, violated: Tensor, metrics: dict[str, Tensor]) -> None:
        """The margin's step, on as many safe states as failed ones."""
        size = len(after)
        both = violated.any() & (violated < 1).any()
        rows = [
            torch.multinomial(kind + 1e-12, size, replacement=True, generator=self.generator)
            for kind in (1.0 - violated, violated)
        ]
        mix = torch.rand(size, generator=self.generator, device=self.device)
        loss = margin_loss(self.heads.margin, after[rows[0]], after[rows[1]], mix)
        self._optimize("margin", loss * both)  # with one kind alone there is nothing to separate
        metrics["margin/loss"] = loss * both

    @torch.no_grad()
    def _target(
        self,
        feature: Tensor,
        action: Tensor,
        after: Tensor,
        violated: Tensor,
        ended: Tensor,
        novelty: Tensor,
        told: Tensor,
    ) -> Tensor:
        """What the critic is to say of transitions `[N]`.

        `novelty` is the score of the actions, `told` the danger that the data tell, NaN where the
        margin has to.
        """
        heads = self.heads
        h = torch.where(told.isfinite(), told, -torch.tanh(heads.margin(after)))
        then = heads.recovery(after)
        later = torch.stack([member(after, then)[..., 0] for member in self.slow]).amax(0)
        if self.config.novelty:
            h = torch.maximum(h, self._unknown(novelty))
            with torch.autocast(self.device.type, enabled=False):
                strange = heads.disagreement(after, then.float())
            later = torch.maximum(later, self._unknown(strange))
        return safety_target(h, later, violated, ended, self.discount)

    def _unknown(self, score: Tensor) -> Tensor:
        """How dangerous it is that nobody has seen this `[...]`; nothing to go by at first."""
        low, high, most = self.novelty
        label = novelty_label(score, most, (high - low).clamp(min=1e-3))
        return label if self.discount > 0.0 else torch.full_like(label, -1.0)

    @torch.no_grad()
    def _imagined(self, batch: Batch) -> tuple[Tensor, ...]:
        """Transitions of rollouts from recorded states: the cost head says what is a violation.

        Half of them follow the recovery policy with noise, half a steady random action. One ends
        where the cost head sees a violation, or where the ensemble does not know: that counts as
        one.
        """
        assert self.tracker is not None
        cfg, model, heads = self.config, self.tracker.net.model, self.heads
        draws: Any = {"generator": self.generator, "device": self.device}
        rows = torch.randint(len(batch), (cfg.imagined,), **draws)
        latent = Latent(batch.obs["deter"][rows], batch.obs["stoch"][rows])
        shape = (cfg.imagined, self.spec.action.dim)
        steady = torch.rand(shape, **draws) * 2.0 - 1.0
        follows = torch.arange(cfg.imagined, device=self.device) < cfg.imagined // 2
        weights = model.rssm.step_weights(latent.deter.dtype)
        alive, columns = torch.ones_like(follows), []
        for _ in range(cfg.horizon):
            feature = heads.feature(latent._asdict())
            noise = cfg.explore * torch.randn(shape, **draws)
            own = (heads.recovery(feature) + noise).clamp(-1.0, 1.0)
            action = torch.where(follows.unsqueeze(1), own, steady)
            uniform = torch.rand((cfg.imagined, model.rssm.latents), **draws)
            latent = model.rssm.img_step(latent, action, uniform, weights)
            after = heads.feature(latent._asdict())
            bad = model.cost.predict(latent.feature) > 0.5
            novelty = heads.disagreement(feature, action)
            if cfg.novelty and self.discount > 0.0:
                bad |= novelty > self.novelty[2]
            ended = model.cont(latent.feature)[..., 0] <= 0
            told = torch.where(bad, torch.ones_like(novelty), torch.nan)
            row = (feature, action, after, bad.float(), ended.float(), novelty, told)
            columns.append(tuple(column[alive] for column in row))
            alive = alive & ~bad & ~ended
        return tuple(torch.cat(parts) for parts in zip(*columns, strict=True))

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on bit for bit."""
        return {
            "heads": self.heads.state_dict(),
            "slow": self.slow.state_dict(),
            "novelty": self.novelty.clone(),
            "optimizer": {name: o.state_dict() for name, o in self.optimizer.items()},
            "generator": self.generator.get_state(),
            "encoder": torch.tensor(list(self.encoder), dtype=torch.uint8),
            "step": self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            CheckpointError: it was trained on the states of another world model.
        """
        encoder = bytes(state["encoder"].tolist())
        if self.encoder and encoder != self.encoder:
            raise CheckpointError(
                "was trained on the states of another world model",
                where="algorithm reachability",
                todo="train it anew on these",
            )
        self.encoder = encoder
        self.heads.load_state_dict(state["heads"])
        self.slow.load_state_dict(state["slow"])
        self.novelty.copy_(state["novelty"])
        for name, optimizer in self.optimizer.items():
            optimizer.load_state_dict(state["optimizer"][name])
        self.generator.set_state(state["generator"])
        self.step = int(state["step"])
