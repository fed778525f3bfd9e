"""Distributions of DreamerV3 and FOSP as plain tensor functions (fosp.md 2.1, 2.2, 3.7).

No `torch.distributions` objects: they cost more than the arithmetic at these sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from safe_o2o.nets.parallel import Draws


def symlog(x: Tensor) -> Tensor:
    """sign(x) * ln(1 + |x|)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


class TwoHot(nn.Module):
    """A number as a categorical over evenly spaced bins in symlog space.

    Args:
        bins: number of bins (255).
        low: symlog value of the first bin (-20).
        high: symlog value of the last bin (20).
    """

    bin: Tensor

    def __init__(self, bins: int = 255, low: float = -20.0, high: float = 20.0) -> None:
        super().__init__()
        self.size, self.low, self.high = bins, low, high
        self.width = (high - low) / (bins - 1)
        # float64 first: the middle bin must be exactly zero.
        grid = torch.linspace(low, high, bins, dtype=torch.float64)
        self.register_buffer("bin", grid.to(torch.float32), persistent=False)

    def place(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bin at or below numbers `[...]`, and the share of the next one."""
        y = torch.clamp(symlog(x), self.low, self.high)
        position = (y - self.low) / self.width
        below = torch.clamp(position.floor(), 0, self.size - 2)
        return below.long(), position - below

    def encode(self, x: Tensor) -> Tensor:
        """Two-hot target `[..., bins]` of numbers `[...]`; off the grid they clamp to its ends."""
        below, weight = self.place(x)
        index, weight = below.unsqueeze(-1), weight.unsqueeze(-1)
        target = torch.zeros(*x.shape, self.size, dtype=weight.dtype, device=x.device)
        target.scatter_(-1, index, 1.0 - weight)
        return target.scatter_add_(-1, index + 1, weight)

    def decode(self, logits: Tensor) -> Tensor:
        """Symexp of the mean bin, `[..., bins] -> [...]` (mean first, then symexp)."""
        with torch.autocast(logits.device.type, enabled=False):
            return symexp(torch.softmax(logits, -1) @ self.bin.to(logits.dtype))

    def nll(self, logits: Tensor, x: Tensor) -> Tensor:
        """Cross entropy `[...]` of logits `[..., bins]` against numbers `[...]`.

        Only two bins of a target are not zero: nothing as large as the logits is made for it.
        """
        below, weight = self.place(x)
        index = torch.stack([below, below + 1], -1)
        share = torch.stack([1.0 - weight, weight], -1)
        return _CrossEntropy.apply(logits, index, share)  # type: ignore[no-any-return,no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    """Of logits `[..., K]` against targets that are zero but for shares `[..., 2]` at indices."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, share: Tensor) -> Tensor:
        p = torch.softmax(logits, -1)
        # The largest probability is no less than 1 / K: its logarithm is exact, and gives the sum.
        total = logits.amax(-1) - p.amax(-1).log_()
        ctx.save_for_backward(p, index, share)
        return total - (logits.gather(-1, index) * share).sum(-1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        p, index, share = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        return (p * grad).scatter_add_(-1, index, -share * grad), None, None


def unimix(logits: Tensor, mix: float) -> Tensor:
    """Log-probabilities of `(1 - mix) * softmax + mix / classes` over the last axis."""
    if mix == 0.0:
        return torch.log_softmax(logits, -1)
    p = torch.softmax(logits, -1)
    return torch.log((1.0 - mix) * p + mix / logits.shape[-1])


def categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) `[...]` summed over the last two axes (latents, classes)."""
    return (log_p.exp() * (log_p - log_q)).sum((-2, -1))


def categorical_mode(log_p: Tensor) -> Tensor:
    """One-hot argmax over the last axis."""
    return torch.nn.functional.one_hot(log_p.argmax(-1), log_p.shape[-1]).to(log_p.dtype)


def gumbel_noise(
    shape: Sequence[int], source: Draws | torch.Generator | None, like: Tensor, axis: int = 0
) -> Tensor:
    """Standard Gumbel noise with device and dtype of `like`; the batch is along `axis`."""
    draws = source if isinstance(source, Draws) else Draws(source)
    uniform = draws.draw(torch.rand, shape, like, axis)
    return uniform.clamp_(1e-20, 1.0 - 1e-7).log_().neg_().log_().neg_()


def straight_through_sample(log_p: Tensor, gumbel: Tensor) -> Tensor:
    """One-hot sample whose gradient is that of the probabilities; zero noise gives the mode."""
    # Gumbel-max: the choice is detached, so that only the straight-through path carries gradient.
    sample = categorical_mode(log_p.detach() + gumbel)
    p = log_p.exp()
    return sample + p - p.detach()


def normal_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of a diagonal normal, summed over the last axis."""
    z = (x - mean) / std
    return (-0.5 * z.square() - torch.log(std) - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def normal_entropy(std: Tensor) -> Tensor:
    """Entropy of a diagonal normal, summed over the last axis."""
    return (torch.log(std) + 0.5 * math.log(2.0 * math.pi * math.e)).sum(-1)
