"""Noise schedules of diffusion policies (offline.md 1.4, online_safety.md 2.3)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

BETA_MIN, BETA_MAX = 0.1, 10.0
Kind = Literal["vp", "cosine", "linear"]


def forward_variance(kind: Kind, steps: int) -> Tensor:
    """Variance added in steps 1..T `[T]`, float64.

    Variance-preserving as in the papers here (the last alpha_bar is exp(-5.05) for every T); cosine
    (Nichol and Dhariwal, 2021); a line from 8e-5 to 0.8 at the 20 steps of
    DPMD and SDAC, as much noise in all at other numbers of steps.
    """
    i = torch.arange(1, steps + 1, dtype=torch.float64)
    if kind == "linear":
        line = torch.linspace(1e-4, 0.999, steps, dtype=torch.float64)
        return (0.8 * 20.0 / steps * line).clamp(max=0.999)
    if kind == "cosine":
        level = torch.cos((torch.arange(steps + 1).double() / steps + 0.008) / 1.008 * math.pi / 2)
        return (1.0 - (level[1:] / level[:-1]).square()).clamp(max=0.999)
    growth = (BETA_MAX - BETA_MIN) * (2.0 * i - 1.0) / (2.0 * steps**2)
    return -torch.expm1(-BETA_MIN / steps - growth)


class NoiseSchedule(nn.Module):
    """Tables over steps i = 1..T; index 0 is step 1.

    Attributes:
        alpha, beta, alpha_bar: `[T]`, beta = 1 - alpha, alpha_bar their running product.
        before: alpha_bar of the step below `[T]`, 1 below the first.
        posterior_var: variance of x_{i-1} given x_i and the clean action `[T]`.
        clean, noisy: weights of the clean action and of x_i in its mean `[T]`.

    Args:
        steps: T.
        kind: see `forward_variance`.
    """

    alpha: Tensor
    beta: Tensor
    alpha_bar: Tensor
    before: Tensor
    posterior_var: Tensor
    clean: Tensor
    noisy: Tensor

    def __init__(self, steps: int, kind: Kind = "vp") -> None:
        super().__init__()
        beta = forward_variance(kind, steps)
        alpha = 1.0 - beta
        alpha_bar = alpha.cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        tables = {
            "alpha": alpha,
            "beta": beta,
            "alpha_bar": alpha_bar,
            "before": before,
            "posterior_var": beta * (1.0 - before) / (1.0 - alpha_bar),
            "clean": beta * before.sqrt() / (1.0 - alpha_bar),
            "noisy": (1.0 - before) * alpha.sqrt() / (1.0 - alpha_bar),
        }
        self.steps = steps
        self.numbers = {name: table.tolist() for name, table in tables.items()}
        """The same as plain numbers, for a chain of single steps."""
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def noised(self, action: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        """x_i of clean actions `[B, A]` at steps `[B]` (index), of noise `[B, A]`."""
        kept = self.alpha_bar[index].unsqueeze(-1)
        return kept.sqrt() * action + (1.0 - kept).sqrt() * noise

    def clean_of(self, x: Tensor, index: int, noise: Tensor) -> Tensor:
        """The clean action behind x_i and its noise, of any shape."""
        kept = self.numbers["alpha_bar"][index]
        return (x / math.sqrt(kept)).sub(noise, alpha=math.sqrt((1.0 - kept) / kept))
