"""The heads of the reachability gate: margin, predictors, safety critic, recovery policy.

All of them read the state of a trained world model and are small beside it. House signs: a risk
above 0 is a violation to come. Spec: `specs/reachability_gate.md` 6.1 to 6.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.safety_value import disagreement
from safe_o2o.nets.mlp import MLP, StateActionMLP


class Heads(nn.Module):
    """Every network of the gate.

    Args:
        sizes: of the arrays of the state that are read, by name, in order: `deter`, and where they
            are read, `stoch` and last `embed`.
        action_dim: A.
        hidden_dims: of each network.
        critics: members of the safety critic, with nothing in common.
        predictors: members of the ensemble.
    """

    next_mean: Tensor
    next_var: Tensor
    residual_var: Tensor

    def __init__(
        self,
        sizes: Mapping[str, int],
        action_dim: int,
        hidden_dims: Sequence[int],
        critics: int,
        predictors: int,
    ) -> None:
        super().__init__()
        self.names, self.action_dim = tuple(sizes), action_dim
        feature_dim, deter_dim = sum(sizes.values()), sizes["deter"]
        # The next deter follows from the state alone; the embedding would only be noise to it.
        self.known_dim = feature_dim - sizes.get("embed", 0)
        self.margin_net = MLP(feature_dim, 1, hidden_dims)
        self.critic = nn.ModuleList(
            StateActionMLP(feature_dim, action_dim, 1, hidden_dims) for _ in range(critics)
        )
        self.predictor = nn.ModuleList(
            StateActionMLP(self.known_dim, action_dim, deter_dim, hidden_dims)
            for _ in range(predictors)
        )
        self.recovery_net = MLP(feature_dim, action_dim, hidden_dims, out_scale=0.0)
        self.register_buffer("next_mean", torch.zeros(deter_dim))
        self.register_buffer("next_var", torch.ones(deter_dim))
        self.register_buffer("residual_var", torch.ones(deter_dim))

    def feature(self, state: Mapping[str, Tensor]) -> Tensor:
        """What the networks read `[..., F]` of a state's arrays by name."""
        return torch.cat([state[name] for name in self.names], -1)

    def margin(self, feature: Tensor) -> Tensor:
        """The literature's margin `[...]`, positive is safe."""
        return self.margin_net(feature)[..., 0]

    def risks(self, feature: Tensor, action: Tensor) -> Tensor:
        """What each member of the safety critic says `[E, ...]` of actions `[..., (K,) A]`."""
        return torch.stack([member(feature, action)[..., 0] for member in self.critic])

    def predicted(self, feature: Tensor, action: Tensor) -> Tensor:
        """Each member's next deter `[M, ..., D]`, after actions `[..., (K,) A]`."""
        std, known = self.next_var.sqrt(), feature[..., : self.known_dim]
        return torch.stack(
            [self.next_mean + std * member(known, action) for member in self.predictor]
        )

    def disagreement(self, feature: Tensor, action: Tensor) -> Tensor:
        """Score s1 `[...]` of actions `[..., (K,) A]`."""
        return self.spread(self.predicted(feature, action))

    def spread(self, predicted: Tensor) -> Tensor:
        """Score s1 `[...]` of what the members predicted `[M, ..., D]`."""
        return disagreement(predicted, self.residual_var.sqrt())

    def recovery(self, feature: Tensor) -> Tensor:
        """The least risky action that it knows `[..., A]`, in (-1, 1)."""
        return torch.tanh(self.recovery_net(feature))


class RecoveryModule(nn.Module):
    """The recovery policy on a state, as a decision of its own; see `export.onnx.Exportable`.

    Args:
        heads: the networks.
        names: the observation's arrays in order.
        sizes: their sizes.
    """

    def __init__(self, heads: Heads, names: Sequence[str], sizes: Sequence[int]) -> None:
        super().__init__()
        self.heads, self._sizes = heads, tuple(sizes)
        self.input_names = list(names)
        self.output_names = ["action", "risk", "disagreement"]
        self.carry_names: dict[str, str] = {}
        self.carry_sizes: dict[str, int] = {}
        self.noise_inputs: dict[str, tuple[int, ...]] = {}
        self.deterministic_noise: dict[str, str] = {}

    def example_inputs(self) -> tuple[Tensor, ...]:
        """One valid input of every name, batch size 1."""
        return tuple(torch.zeros(1, size) for size in self._sizes)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The action, its risk and the ensemble's disagreement about it `[N, ...]`."""
        feature = self.heads.feature(dict(zip(self.input_names, inputs, strict=True)))
        action = self.heads.recovery(feature)
        risk = self.heads.risks(feature, action).amax(0)
        novelty = self.heads.disagreement(feature, action)
        return action, risk.unsqueeze(-1), novelty.unsqueeze(-1)
