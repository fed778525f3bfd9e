"""What FOSP's objectives read: a batch as floats, and what the networks say of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from safe_o2o.algorithms import losses
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.fosp_net import FospNet, cautious
from safe_o2o.algorithms.world_model import Imagined
from safe_o2o.nets.mlp import constant

KINDS = ("reward", "cost")


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
    reach_mask: Tensor
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


class Reading:
    """What the networks say, as the losses of one update need it.

    Args:
        config: settings.
        net: the networks in training.
    """

    def __init__(self, config: FospConfig, net: FospNet) -> None:
        self.config, self.net = config, net

    def discount(self, kind: str) -> float:
        """Per-step discount of reward, cost, or what has a budget."""
        if kind in self.config.budget.limits:
            return self.config.budget.discount
        return self.config.discount_reward if kind == "reward" else self.config.discount_cost

    def imagined_value(self, imagined: Imagined, kind: str) -> Tensor:
        """V of states 0..H `[H+1, N]`, differentiable in the actions as the prediction of `kind`.

        The values' own parameters are constants.
        """
        known = f"value/{kind}"
        if known not in imagined.said:
            if imagined.x[kind].requires_grad:
                with constant(self.net.value), torch.enable_grad():
                    found = self.net.value[kind](imagined.feature)[0]
            else:
                raw = self.imagined_value_raw(imagined, kind).detach()
                found = self.net.value[kind].decode(raw)[0]
            imagined.said[known] = found
        return imagined.said[known]

    def imagined_value_raw(self, imagined: Imagined, kind: str) -> Tensor:
        """Raw output of V at states 0..H `[1, H+1, N, K]`, for V to learn from."""
        known = f"raw value/{kind}"
        if known not in imagined.said:
            cfg = self.config
            learns = cfg.reach_labels == "both" if kind == "reach" else cfg.value_data != "replay"
            with torch.set_grad_enabled(learns):
                imagined.said[known] = self.net.value[kind].raw(imagined.feature.detach())
        return imagined.said[known]

    def imagined_pair(self, imagined: Imagined) -> Tensor:
        """What Q reads of states and actions 0..H-1 `[H, N, F + A]`, cut from the graph."""
        if "pair" not in imagined.said:
            state = imagined.feature[:-1].detach()
            action = imagined.action.detach().to(state.dtype)
            imagined.said["pair"] = torch.cat([state, action], -1)
        return imagined.said["pair"]

    def imagined_return(self, imagined: Imagined, kind: str) -> Tensor:
        """X_h of fosp.md 3.1, `[H, N]`, differentiable in the actions where the prediction is."""
        known = f"return/{kind}"
        if known not in imagined.said:
            imagined.said[known] = losses.imagined_lambda_return(
                imagined.x[kind],
                self.imagined_value(imagined, kind),
                imagined.cont,
                self.discount(kind),
                self.config.lambda_,
            )
        return imagined.said[known]

    def estimates(self, feature: Tensor, data: Records) -> Estimates:
        """Critics and values at the recorded pairs."""
        now, action, net = feature[:, :-1], data.action[:, :-1], self.net
        return Estimates(
            now,
            {kind: critic.raw(now, action) for kind, critic in net.critic.items()},
            {kind: value.raw(now) for kind, value in net.value.items()},
        )

    def q(self, kind: str, said: Estimates) -> Tensor:
        """The cautious one of the ensemble `[B, T-1]`, cut from the graph."""
        return cautious(kind, self.net.critic[kind].decode(said.q[kind].detach()))

    def v(self, kind: str, said: Estimates) -> Tensor:
        """Value `[B, T-1]`, cut from the graph."""
        return self.net.value[kind].decode(said.v[kind].detach())[0]

    def u(self, p: Tensor) -> Tensor:
        """1 - p, the probability of no violation to come `[...]`; 1 without REF."""
        return 1.0 - p if self.config.feasibility == "reach" else torch.ones_like(p)

    @torch.no_grad()
    def imagined_feasible(self, imagined: Imagined) -> Tensor:
        """The u of states 0..H-1 of rollouts `[H, N]`."""
        raw = self.imagined_value_raw(imagined, "reach")[0, :-1]
        return self.u(self.net.value["reach"].decode(raw.detach()))

    @torch.no_grad()
    def feasible(self, feature: Tensor) -> Tensor:
        """The u of states `[...]`."""
        return self.u(self.net.value["reach"](feature)[0])
