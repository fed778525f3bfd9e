"""What all learners on single transitions share: reading a batch, optimisers, safety critic, state.

An algorithm says which networks it has (`build`), who optimises what (`groups`) and what one update
is (`learn`), which then reads like the paper's box (offline.md 9.2).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.budgets import budget_cost
from safe_o2o.algorithms.implicit_value import ImplicitValue
from safe_o2o.algorithms.module_policy import ModulePolicy
from safe_o2o.algorithms.read_out import Proposer, ReadOutModule, Rule
from safe_o2o.algorithms.safety_value import safety_target
from safe_o2o.config import require_one_of, require_positive
from safe_o2o.data.batch import Batch
from safe_o2o.errors import ConfigError, SpecMismatchError
from safe_o2o.nets.critic import ema_update
from safe_o2o.nets.normalizer import VectorNormalizer
from safe_o2o.nets.precision import Precision, training_arithmetic
from safe_o2o.spaces import ObservationSpec, Spec

Metrics = dict[str, Tensor]
REWARDS = ("as_is", "minus_one", "return_range", "cql_antmaze", "standardized")


class Sample(NamedTuple):
    """A batch of transitions as networks read it.

    Attributes:
        obs: normalised `[B, F]`.
        action: `[B, A]`, a hair inside its bounds.
        reward: transformed `[B]`.
        cost: `[B]`.
        ended: 1 where the task ended `[B]`: values do not bootstrap past it. A time limit does not.
        next_obs: normalised `[B, F]`.
        next_action: the one recorded next `[B, A]`.
        has_next: 1 where there is one `[B]`.
        costs: of the budgets that the learner asks for `[m, B]`.
        step: number of the action in its episode `[B]`, int64.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    cost: Tensor
    ended: Tensor
    next_obs: Tensor
    next_action: Tensor
    has_next: Tensor
    costs: Tensor
    step: Tensor


@dataclass(frozen=True)
class SafetyConfig:
    """A critic of cost, and the candidates that it leaves to choose among."""

    mask: bool = True
    """candidates above the limit are not taken while there are others; False: no cost critic"""
    label: Literal["reach", "cost", "feasible"] = "reach"
    """what it predicts: the discounted probability that a violation comes, the discounted sum of
    costs, or FISOR's value, -1 where nothing ever comes and `danger` where it is there: feasible
    below zero"""
    limit: float = 0.1
    """of that: what a candidate may have; of FISOR's value 0 less a margin"""
    danger: float = 25.0
    """FISOR's value of a violation. With the discount it says how early one is seen to come:
    ln(danger + 1) / -ln(discount) steps, which should be twice the longest stop"""
    expectile: float = 0.02
    """of the state's value: below one half it is what careful actions of the data come to"""
    discount: float = 0.9
    candidates: int = 32
    """candidates around the action of a policy that has no others"""

    def __post_init__(self) -> None:
        require_one_of(self, "label", ("reach", "cost", "feasible"))
        require_positive(self, "candidates", "danger")
        if self.label == "feasible":
            if not -1.0 < self.limit < self.danger:
                raise ConfigError(f"must be in (-1, {self.danger}), got {self.limit}")
        else:
            require_positive(self, "limit")
        if not 0.0 < self.expectile < 1.0 or not 0.0 <= self.discount < 1.0:
            raise ConfigError(
                f"expectile must be in (0, 1) and discount in [0, 1), got {self.expectile} and "
                f"{self.discount}"
            )


@dataclass(frozen=True)
class OnlineConfig:
    """What changes when training goes on with online data."""

    warmup: int = 0
    """updates at learning rate 0 that only fill the optimiser's moments"""
    learning_rate: float = 0.0
    """one rate for every network; 0 keeps the offline ones"""


@dataclass(frozen=True)
class LearnerConfig:
    """What every algorithm on transitions has."""

    hidden_dims: tuple[int, ...] = (256, 256)
    """hidden layers of critics, values and Gaussian policies"""
    layer_norm: bool = True
    """LayerNorm in the hidden layers of critics and values; the papers: only CFPI"""
    ensemble: int = 2
    """critics"""
    discount: float = 0.99
    tau: float = 0.005
    """rate of the target networks"""
    learning_rate: float = 3e-4
    """of critics and values"""
    actor_lr: float = 3e-4
    actor_decay: bool = True
    """cosine to zero over the offline updates; never online"""
    clip: float = 0.0
    """largest norm of a gradient; 0 does not clip"""
    normalize: bool = True
    """z-score observations with the dataset's statistics, which travel in checkpoint and graph"""
    reward: str = "as_is"
    """what becomes of rewards, offline and online alike (offline.md 1.2): as_is, minus_one (sparse
    tasks: every step costs), return_range (times 1000 over the range of returns), cql_antmaze
    (4 (r - 0.5)), standardized"""
    batch_size: int = 256
    total_updates: int = 100_000
    seed: int = 0
    precision: Precision = "auto"
    """of products in training: `bf16`, `fp32`, or whichever is faster here"""
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    finetune: OnlineConfig = field(default_factory=OnlineConfig)

    def __post_init__(self) -> None:
        require_positive(self, "ensemble", "learning_rate", "actor_lr", "batch_size")
        require_positive(self, "total_updates")
        require_one_of(self, "reward", REWARDS)
        if not 0.0 <= self.discount < 1.0 or not 0.0 < self.tau <= 1.0:
            raise ConfigError(
                f"discount must be in [0, 1) and tau in (0, 1], got {self.discount}, {self.tau}"
            )


class Reader(nn.Module):
    """The vectors of an observation as one, z-scored `[B, F]`.

    Args:
        spec: of the observation.
        statistics: as `Statistics.to_json`; None does not scale.

    Raises:
        SpecMismatchError: there are pictures in it, or nothing.
    """

    def __init__(self, spec: ObservationSpec, statistics: Mapping[str, Any] | None) -> None:
        super().__init__()
        if spec.image_names or not spec.vector_names:
            raise SpecMismatchError(
                "learns from vectors, the data have "
                + (f"pictures ({', '.join(spec.image_names)})" if spec.image_names else "none"),
                where="algorithm",
                todo="encode them with a world model: safe-o2o encode CHECKPOINT --data DATASET",
            )
        self.names = spec.vector_names
        self.size = sum(spec.arrays[name].shape[0] for name in self.names)
        mean, std = torch.zeros(self.size), torch.ones(self.size)
        if statistics is not None:
            mean = torch.tensor([x for name in self.names for x in statistics[name]["mean"]])
            std = torch.tensor([x for name in self.names for x in statistics[name]["std"]])
        self.scale = VectorNormalizer(mean, std)

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Arrays by name -> `[B, F]`."""
        parts = [obs[name].float() for name in self.names]
        x: Tensor = self.scale(parts[0] if len(parts) == 1 else torch.cat(parts, -1))
        return x


class Learner(ABC):
    """A learner on transitions of vectors; see `interfaces.Algorithm`.

    Args:
        config: settings.
        spec: observation and action spec of the data.
        statistics: as `Statistics.to_json` gives them; None does not scale anything.
        device: where to train.

    Raises:
        SpecMismatchError: the observation has pictures.
    """

    wants: Literal["transitions", "sequences"] = "transitions"
    Config: ClassVar[type[LearnerConfig]]
    budgets: tuple[str, ...] = ()
    """Costs that it wants to see of every action: `cost`, or one of `budgets.BUDGETS`."""

    def __init__(
        self,
        config: Any,
        spec: Spec,
        statistics: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.spec, self.device = config, spec, torch.device(device)
        cfg: LearnerConfig = config
        self.obs_dim, self.action_dim = 0, spec.action.dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            self.net = nn.ModuleDict()
            reader = Reader(spec.observation, statistics if cfg.normalize else None)
            self.obs_dim = reader.size
            self.build()
            if cfg.safety.mask:
                self.net["risk"] = ImplicitValue(self.obs_dim, self.action_dim, cfg, worst="high")
            self.net["reader"] = reader
            self.net.register_buffer("reward", _reward(cfg.reward, statistics))
        self.net.to(self.device).eval()
        self.generator = torch.Generator(self.device).manual_seed(cfg.seed)
        self.step, self.online_step, self.online = 0, 0, False
        self.masked = True
        """False reads the policy out as if nothing had a risk: for comparison alone."""
        self._build_optimizers()

    # ------------------------------------------------------------------ what an algorithm says

    @abstractmethod
    def build(self) -> None:
        """Put the networks into `self.net`; sizes are `obs_dim` and `action_dim`."""

    @abstractmethod
    def groups(self) -> dict[str, tuple[Iterable[nn.Parameter], float]]:
        """Who is optimised together, and at which rate; `actor` is the one that decays."""

    @abstractmethod
    def learn(self, x: Sample) -> Metrics:
        """One update."""

    @abstractmethod
    def read_out(self) -> ReadOutModule:
        """The decision that is deployed."""

    # ------------------------------------------------------------------ what a run sees

    @property
    def policy(self) -> ModulePolicy:
        """The policy to deploy."""
        return ModulePolicy(self.read_out(), self.spec, self.config.seed)

    def start_online(self) -> None:
        """From here on data come from this policy too: rates do not decay any more."""
        if not self.online:
            self.online, self.online_step = True, 0
            self._build_optimizers()

    def update(self, batch: Batch) -> dict[str, float]:
        """One update on a batch of transitions; returns metrics."""
        x = self.read(batch)
        self.net["actor"].train()  # it alone has dropout; nobody acts or judges with it
        with training_arithmetic(self.config.precision, self.device):
            metrics = self.learn(x)
            if "risk" in self.net:
                metrics |= self._learn_risk(x)
        self.net["actor"].eval()
        self.step += 1
        self.online_step += int(self.online)
        values = torch.stack([value.detach() for value in metrics.values()])
        return dict(zip(metrics, values.tolist(), strict=True))

    def read(self, batch: Batch) -> Sample:
        """What networks read of a batch.

        Raises:
            ConfigError: a batch of windows.
        """
        if batch.next_obs is None:
            raise ConfigError("learns from transitions, not from windows", where="batch")
        scale, shift = self.net.reward.unbind()
        edge = 1.0 - 1e-5  # where a squashed density still is one
        after, known = batch.next_action, batch.next_action_mask
        return Sample(
            self.net["reader"](batch.obs),
            batch.action.clamp(-edge, edge),
            batch.reward * scale + shift,
            batch.cost,
            batch.terminated.float(),
            self.net["reader"](batch.next_obs),
            torch.zeros_like(batch.action) if after is None else after.clamp(-edge, edge),
            torch.zeros_like(batch.reward) if known is None else known.float(),
            self._costs(batch),
            torch.zeros_like(batch.reward).long() if batch.index is None else batch.index.step,
        )

    def _costs(self, batch: Batch) -> Tensor:
        found = [
            batch.cost if name == "cost" else budget_cost(batch, name) for name in self.budgets
        ]
        return torch.stack(found) if found else batch.cost.new_zeros(0, len(batch.cost))

    def decision(self, proposer: Proposer, rule: Rule, critic: nn.Module | None) -> ReadOutModule:
        """A read-out under this algorithm's safety critic, where it has one."""
        risk: Any = dict(self.net.items()).get("risk") if self.masked else None
        limit = self.config.safety.limit
        return ReadOutModule(self.spec, self.net["reader"], proposer, rule, critic, risk, limit)

    # ------------------------------------------------------------------ optimisation

    def optimize(self, name: str, loss: Tensor, clip: float = 0.0) -> None:
        """One step of an optimiser; `clip` is the gradient's norm at most, 0 the config's."""
        optimizer, clip = self.optimizer[name], clip or self.config.clip
        for parameter in self._parameters[name]:
            parameter.grad = None
        with torch.autocast(self.device.type, enabled=False):  # gradients are of what was computed
            loss.backward()
        if clip > 0.0:
            nn.utils.clip_grad_norm_(self._parameters[name], clip, foreach=True)
        for group in optimizer.param_groups:
            group["lr"] = self._rate(name)
        optimizer.step()

    def follow(self, target: nn.Module, online: nn.Module, rate: float | None = None) -> None:
        """Move a target network towards its own."""
        ema_update(target, online, self.config.tau if rate is None else rate)

    def _rate(self, name: str) -> float:
        cfg, rate = self.config, self._rates[name]
        if self.online:
            return 0.0 if self.online_step < cfg.finetune.warmup else rate
        if name != "actor" or not cfg.actor_decay:
            return rate
        return 0.5 * rate * (1.0 + math.cos(math.pi * min(1.0, self.step / cfg.total_updates)))

    def _build_optimizers(self) -> None:
        cfg: LearnerConfig = self.config
        groups = self.groups()
        if "risk" in self.net:
            groups["risk"] = (self.net["risk"].trained(), cfg.learning_rate)
        rate = cfg.finetune.learning_rate if self.online else 0.0
        self._rates = {name: rate or lr for name, (_, lr) in groups.items()}
        self._parameters = {name: list(parameters) for name, (parameters, _) in groups.items()}
        self.optimizer = {
            name: torch.optim.Adam(parameters, lr=self._rates[name], fused=True)
            for name, parameters in self._parameters.items()
        }

    def _learn_risk(self, x: Sample) -> Metrics:
        """The safety critic's step; the same for every algorithm, on actions of the data alone."""
        cfg, risk = self.config.safety, self.net["risk"]
        assert isinstance(risk, ImplicitValue)
        with torch.no_grad():
            later = cfg.discount * (1.0 - x.ended) * risk.value(x.next_obs)
            violated = (x.cost > 0).float()
            target = x.cost + later
            if cfg.label == "reach":
                target = torch.where(violated > 0, violated, later).clamp(0.0, 1.0)
            elif cfg.label == "feasible":
                h = torch.where(violated > 0, cfg.danger, -1.0)
                after = risk.value(x.next_obs)
                target = safety_target(h, after, violated, x.ended, cfg.discount, cfg.danger)
            q = risk.believed(x.obs, x.action)
        value_loss = risk.value_loss(x.obs, q, cfg.expectile)
        critic_loss = risk.critic_loss(x.obs, x.action, target)
        self.optimize("risk", value_loss + critic_loss)
        self.follow(risk.target, risk.critic)
        return {"risk/loss": critic_loss, "risk/target": target.mean()}

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on bit for bit: targets, averages, prices too."""
        return {
            "net": self.net.state_dict(),
            "optimizer": {name: o.state_dict() for name, o in self.optimizer.items()},
            "generator": self.generator.get_state(),
            "step": self.step,
            "online_step": self.online_step,
            "online": self.online,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.online = bool(state["online"])
        self.net.load_state_dict(state["net"])
        self._build_optimizers()
        for name, optimizer in self.optimizer.items():
            optimizer.load_state_dict(state["optimizer"][name])
        self.generator.set_state(state["generator"])
        self.step, self.online_step = int(state["step"]), int(state["online_step"])


def _reward(kind: str, statistics: Mapping[str, Any] | None) -> Tensor:
    """Scale and shift of rewards `[2]` (offline.md 1.2)."""
    fixed = {"as_is": (1.0, 0.0), "minus_one": (1.0, -1.0), "cql_antmaze": (4.0, -2.0)}
    if kind in fixed:
        return torch.tensor(fixed[kind])
    if statistics is None:  # a state that is loaded has it already
        return torch.tensor((1.0, 0.0))
    if kind == "return_range":
        low, high = statistics["return"]["low"][0], statistics["return"]["high"][0]
        return torch.tensor((1000.0 / max(high - low, 1e-3), 0.0))
    mean, std = statistics["reward"]["mean"][0], max(statistics["reward"]["std"][0], 1e-3)
    return torch.tensor((1.0 / std, -mean / std))
