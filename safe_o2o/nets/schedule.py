"""The variance-preserving noise schedule of diffusion policies (offline.md 1.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

BETA_MIN, BETA_MAX = 0.1, 10.0


class NoiseSchedule(nn.Module):
    """Tables over steps i = 1..T; index 0 is step 1.

    Attributes:
        alpha, beta, alpha_bar: `[T]`, beta = 1 - alpha, alpha_bar their running product.
        before: alpha_bar of the step below `[T]`, 1 below the first.
        posterior_var: variance of x_{i-1} given x_i and the clean action `[T]`.
        clean, noisy: weights of the clean action and of x_i in its mean `[T]`.

    Args:
        steps: T.
    """

    alpha: Tensor
    beta: Tensor
    alpha_bar: Tensor
    before: Tensor
    posterior_var: Tensor
    clean: Tensor
    noisy: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        i = torch.arange(1, steps + 1, dtype=torch.float64)
        growth = (BETA_MAX - BETA_MIN) * (2.0 * i - 1.0) / (2.0 * steps**2)
        alpha = torch.exp(-BETA_MIN / steps - growth)
        beta, alpha_bar = 1.0 - alpha, alpha.cumprod(0)
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
