"""A probabilistic ensemble of one-step dynamics: next vector, reward, end, violation.

PETS (Chua et al., NeurIPS 2018) as LOOP uses it (online_safety.md 3.2), with a probability of a
violation in the place of a cost that is known as a function of the observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from safe_o2o.nets.ensemble import EnsembleMLP

LOG_VAR = -10.0, 0.5


class Predicted(NamedTuple):
    """What each member says comes of an action.

    Attributes:
        state: `[E, B, F]`.
        reward: `[E, B]`.
        ended: log-odds of the task's end `[E, B]`.
        violated: log-odds of a violation `[E, B]`.
    """

    state: Tensor
    reward: Tensor
    ended: Tensor
    violated: Tensor


class DynamicsEnsemble(nn.Module):
    """E members; states are normalised vectors, or a world model's latents.

    Changes of the state and rewards are predicted in units of their own spread, which is learned on
    the way and stays in the graph.

    Args:
        obs_dim: F.
        action_dim: A.
        hidden_dims: of each member.
        members: E.
    """

    scale: Tensor
    middle: Tensor

    def __init__(
        self, obs_dim: int, action_dim: int, hidden_dims: Sequence[int], members: int = 5
    ) -> None:
        super().__init__()
        self.members, self.obs_dim = members, obs_dim
        outputs = 2 * (obs_dim + 1) + 2
        self.mlp = EnsembleMLP(members, obs_dim + action_dim, outputs, hidden_dims, "silu")
        self.register_buffer("middle", torch.zeros(2, obs_dim + 1))
        """Running mean of the targets, and of their squares."""
        self.register_buffer("scale", torch.zeros(()))
        """Weight of both."""

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the targets `[F + 1]`."""
        mean, square = self.middle / self.scale.clamp(min=1e-6)
        return mean, (square - mean.square()).clamp(min=1e-8).sqrt()

    def _raw(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.mlp(torch.cat([state, action.expand(*state.shape[:-1], -1)], -1))
        size = self.obs_dim + 1
        low, high = LOG_VAR
        raw = out[..., size : 2 * size]
        log_var = high - nn.functional.softplus(high - raw)
        log_var = low + nn.functional.softplus(log_var - low)
        return out[..., :size], log_var, out[..., 2 * size :]

    def forward(self, state: Tensor, action: Tensor) -> Predicted:
        """Means of `[E, B, F]` (or `[B, F]`) and actions `[B, A]`, `[E, B, A]` of each member."""
        if state.dim() == 2:
            state = state.expand(self.members, *state.shape)
        mean, _, odds = self._raw(state, action)
        centre, spread = self.units
        change = mean * spread + centre
        return Predicted(state + change[..., :-1], change[..., -1], odds[..., 0], odds[..., 1])

    def loss(
        self,
        state: Tensor,
        action: Tensor,
        reward: Tensor,
        after: Tensor,
        ended: Tensor,
        violated: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Negative log-likelihood of transitions `[B, ...]`, a bootstrap sample for each member."""
        rows = torch.randint(
            len(state), (self.members, len(state)), generator=generator, device=state.device
        )
        target = torch.cat([after - state, reward.unsqueeze(-1)], -1)
        with torch.no_grad():
            now = torch.stack([target.mean(0), target.square().mean(0)])
            self.middle.lerp_(now, 1e-2)
            self.scale.lerp_(torch.ones_like(self.scale), 1e-2)
        centre, spread = self.units
        mean, log_var, odds = self._raw(state[rows], action[rows])
        off = (target[rows] - centre) / spread - mean
        likelihood = 0.5 * (off.square() * torch.exp(-log_var) + log_var).sum(-1).mean()
        labels = torch.stack([ended, violated], -1)[rows]
        judged = nn.functional.binary_cross_entropy_with_logits(odds, labels)
        return likelihood + 2.0 * judged
