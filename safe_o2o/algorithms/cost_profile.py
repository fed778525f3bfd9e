"""From a limit an episode to a limit on Q: what a budget is in a discounted critic's units."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CostProfile(nn.Module):
    """When in an episode costs come: d = L sum_t gamma^t c_t / sum_t c_t (online_safety.md 1.9).

    For a uniform cost over T steps it is the papers' L (1 - gamma^T) / ((1 - gamma) T), which is
    also what counts before any cost was seen.

    Args:
        discount: gamma of the critic.
        longest: steps of an episode that are told apart.
        memory: share of what is known that an update keeps.
    """

    cost: Tensor
    steps: Tensor

    def __init__(self, discount: float, longest: int = 2000, memory: float = 0.9995) -> None:
        super().__init__()
        self.discount, self.memory = discount, memory
        self.register_buffer("cost", torch.zeros(longest, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros(longest, dtype=torch.float64))

    @torch.no_grad()
    def see(self, step: Tensor, cost: Tensor) -> None:
        """Take in transitions: their steps in their episodes `[B]`, int64, and costs `[B]`."""
        at = step.clamp(max=len(self.cost) - 1)
        self.cost.mul_(self.memory).index_add_(0, at, cost.double().clamp(min=0.0))
        self.steps.mul_(self.memory).index_add_(0, at, torch.ones_like(cost, dtype=torch.float64))

    @torch.no_grad()
    def threshold(self, limit: float) -> Tensor:
        """D for a limit an episode, a scalar, float64."""
        paid = self.cost.sum()
        # Weights of how often a step was reached stand in until anything was paid.
        weight = torch.where(paid > 0.0, self.cost, self.steps)
        faded = self.discount ** torch.arange(len(weight), device=weight.device).double()
        total = weight.sum()
        share = (faded @ weight) / total.clamp(min=1e-12)
        return limit * torch.where(total > 0.0, share, torch.ones_like(share))
