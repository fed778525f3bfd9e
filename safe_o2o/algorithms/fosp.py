"""FOSP: fine-tuning an offline safe policy through a world model (Cao et al., ICLR 2025).

One `update` is the algorithm box of fosp.md 3.8 (offline) and 4 (online): model, targets, critics
and REF, actor with the augmented Lagrangian, averages. `FospConfig` says where it departs from the
paper.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.budgets import Budgets
from safe_o2o.algorithms.duals import AugmentedLagrangian
from safe_o2o.algorithms.fosp_actor import Duals
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.fosp_net import FospNet
from safe_o2o.algorithms.fosp_objectives import Objectives
from safe_o2o.algorithms.fosp_policy import FospPolicy
from safe_o2o.algorithms.fosp_presets import preset
from safe_o2o.algorithms.fosp_reading import KINDS
from safe_o2o.algorithms.latents import Tracker, What
from safe_o2o.data.batch import Batch
from safe_o2o.nets.backbone import frozen_names
from safe_o2o.nets.critic import ema_update
from safe_o2o.nets.normalizer import PercentileNormalizer, RmsNormalizer
from safe_o2o.nets.parallel import add_up, everywhere, share
from safe_o2o.spaces import Spec


class Fosp:
    """World model, in-sample critics, REF, weighted actor; safe policy expansion online.

    Args:
        config: settings.
        spec: observation and action spec of the data.
        statistics: mean and std of each vector of the observation by name, as
            `Statistics.to_json` gives them; None does not scale.
        device: where to train.
    """

    wants: Literal["transitions", "sequences"] = "sequences"
    Config = FospConfig
    preset = staticmethod(preset)

    def __init__(
        self,
        config: FospConfig,
        spec: Spec,
        statistics: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.spec, self.device = config, spec, torch.device(device)
        names = spec.observation.vector_names
        size = sum(spec.observation.arrays[name].shape[0] for name in names)
        mean, std = torch.zeros(size), torch.ones(size)
        if statistics is not None:
            mean = torch.tensor([x for name in names for x in statistics[name]["mean"]])
            std = torch.tensor([x for name in names for x in statistics[name]["std"]])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.net = FospNet(config, spec, mean, std).to(self.device)
        self.slow = nn.ModuleDict({"critic": self.net.critic, "value": self.net.value})
        self.slow = copy.deepcopy(self.slow).requires_grad_(False)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.base: FospNet | None = None
        self.lagrangian = AugmentedLagrangian(
            config.cost_limit,
            config.lagrange_multiplier,
            config.penalty_coefficient,
            config.penalty_growth,
            multiplier_max=config.lagrange_multiplier_max,
        ).to(self.device)
        self.scale = nn.ModuleDict(
            {
                kind: PercentileNormalizer()
                if config.advantage_normalizer == "percentile"
                else RmsNormalizer()
                for kind in KINDS
            }
        ).to(self.device)
        self.budgets = Budgets(config.budget).to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.objectives = Objectives(
            config,
            spec,
            self.net,
            self.slow,
            Duals(self.lagrangian, self.budgets),
            self.scale,
            self.generator,
        )
        self.step, self.online_step = 0, 0
        self._build_optimizers()

    # ------------------------------------------------------------------ what a run sees

    @property
    def online(self) -> bool:
        """True after `start_online`."""
        return self.objectives.online

    @property
    def policy(self) -> FospPolicy:
        """The policy to deploy: averaged weights where averaging is on."""
        rate = self.config.finetune.average_rate if self.online else self.config.average_rate
        net = self.average if rate > 0 else self.net
        expands = self.config.finetune.expansion
        return FospPolicy(net, self.base, self.spec, self.config.seed, expands=expands)

    def tracker(self, what: What = "features") -> Tracker | None:
        """The deployed policy's world model as an encoder; None where it has none."""
        net = self.policy.module.net
        return Tracker(net, self.spec, what) if net.remembers else None

    @property
    def pretrained(self) -> str:
        """The weights file that a fresh run starts from; `""` without one."""
        model = self.config.world_model
        return model.backbone.weights if model.encoder == "backbone" else ""

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Start from the tensors of that file; a state that is loaded has them already.

        Raises:
            CheckpointError: they do not fit; see `Backbone.fill`.
        """
        self.net.world_model.load_backbone(weights, self.pretrained)
        self.average.load_state_dict(self.net.state_dict())

    def start_online(self) -> None:
        """Freeze the policy as it is deployed now; online objective from here on (fosp.md 4)."""
        if self.online:
            return
        if self.config.average_rate > 0:
            # Training goes on from the weights that were deployed and tested.
            self.net.load_state_dict(self.average.state_dict())
            ema_update(self.slow["critic"], self.net.critic, 1.0)
            ema_update(self.slow["value"], self.net.value, 1.0)
        self.base = copy.deepcopy(self.net).requires_grad_(False)
        if self.config.finetune.fresh:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed + 1)
                self.net.actor.load_state_dict(self.net.new_actor().state_dict())
        self.average.load_state_dict(self.net.state_dict())
        self.objectives.online, self.online_step = True, 0
        self._build_optimizers()

    def update(self, batch: Batch) -> dict[str, float]:
        """One gradient step on a batch of sequences; returns metrics.

        In a group of processes `batch` is this one's share, and all of them call this together.
        """
        loss, metrics = self.objectives(batch, self.step)
        loss.backward()
        add_up(self.net.parameters())
        for name in self.optimizer:
            self.optimize(name, metrics)
        self.step += 1
        self.online_step += int(self.online)
        self._average()
        shares = torch.stack([value.detach().float() for value in metrics.values()])
        return dict(zip(metrics, everywhere(shares).tolist(), strict=True))

    # ------------------------------------------------------------------ optimisation

    def _build_optimizers(self) -> None:
        cfg, net, rate = self.config, self.net, self.config.finetune.learning_rate
        online = self.online and rate > 0
        critics = nn.ModuleList([net.critic, *(net.value[k] for k in net.value if k != "reach")])
        groups = {
            "model": (net.world_model.parameter_groups(), cfg.model_lr, cfg.model_eps),
            "actor": (list(net.actor.parameters()), cfg.actor_lr, cfg.policy_eps),
            "critic": (list(critics.parameters()), cfg.critic_lr, cfg.policy_eps),
            "reach": (list(net.value["reach"].parameters()), cfg.reach_lr, cfg.policy_eps),
        }
        self.optimizer = {
            name: torch.optim.Adam(parameters, lr=rate if online else lr, eps=eps, fused=True)
            for name, (parameters, lr, eps) in groups.items()
        }
        self._rate = {name: rate if online else lr for name, (_, lr, _) in groups.items()}

    def _schedule(self) -> float:
        """Factor on every learning rate."""
        cfg = self.config
        if self.online:
            return 0.0 if self.online_step < cfg.finetune.warmup else 1.0
        if cfg.decay_start >= 1.0:
            return 1.0
        left = 1.0 - self.step / cfg.total_updates
        return min(1.0, max(0.0, left / (1.0 - cfg.decay_start)))

    def optimize(self, name: str, metrics: dict[str, Tensor]) -> None:
        """Step one of the optimisers on the gradients that are there, and drop them.

        Args:
            name: `model`, `actor`, `critic` or `reach`.
            metrics: where to note this process's share of the gradient's norm.
        """
        optimizer, factor = self.optimizer[name], self._schedule()
        clip = self.config.model_clip if name == "model" else self.config.policy_clip
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        metrics[f"grad/{name}"] = share(nn.utils.clip_grad_norm_(parameters, clip))
        for group in optimizer.param_groups:
            group["lr"] = self._rate[name] * factor * group.get("factor", 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _average(self) -> None:
        cfg = self.config
        first = self.step == 1 and not self.online
        ema_update(self.slow["critic"], self.net.critic, 1.0 if first else cfg.slow_rate)
        ema_update(self.slow["value"], self.net.value, 1.0 if first else cfg.slow_rate)
        rate = cfg.finetune.average_rate if self.online else cfg.average_rate
        if rate > 0:
            # A short memory at first, or the random start would be averaged in for long. Online
            # the start is the best there is: the average leaves it slowly.
            ramp = 0.0 if self.online else 9.0 / (10.0 + self.step)
            ema_update(self.average, self.net, max(rate, ramp))

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on bit for bit; a frozen backbone once."""
        shared = frozen_names(self.net)

        def own(net: FospNet) -> OrderedDict[str, Tensor]:
            state = net.state_dict().items()
            return OrderedDict((name, x) for name, x in state if name not in shared)

        return {
            "net": self.net.state_dict(),
            "slow": self.slow.state_dict(),
            "average": own(self.average),
            "base": own(self.base) if self.base is not None else None,
            "lagrangian": self.lagrangian.state_dict(),
            "budgets": self.budgets.state_dict(),
            "scale": self.scale.state_dict(),
            "optimizer": {name: o.state_dict() for name, o in self.optimizer.items()},
            "generator": self.generator.get_state(),
            "step": self.step,
            "online_step": self.online_step,
            "online": self.online,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.objectives.online = bool(state["online"])
        self.net.load_state_dict(state["net"])
        self.slow.load_state_dict(state["slow"])
        shared = {name: state["net"][name] for name in frozen_names(self.net)}
        self.average.load_state_dict({**shared, **state["average"]})
        self.base = None
        if state["base"] is not None:
            self.base = copy.deepcopy(self.net).requires_grad_(False)
            self.base.load_state_dict({**shared, **state["base"]})
        self._build_optimizers()
        for name, optimizer in self.optimizer.items():
            optimizer.load_state_dict(state["optimizer"][name])
        self.lagrangian.load_state_dict(state["lagrangian"])
        self.budgets.load_state_dict(state.get("budgets", {}))
        self.scale.load_state_dict(state["scale"])
        self.generator.set_state(state["generator"])
        self.step, self.online_step = int(state["step"]), int(state["online_step"])
