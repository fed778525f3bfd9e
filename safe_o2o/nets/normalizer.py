"""Running normalisers that travel in checkpoints and graphs as buffers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from safe_o2o.nets.parallel import everywhere, gathered


class PercentileNormalizer(nn.Module):
    """Divisor max(1, EMA of the 95th minus EMA of the 5th percentile) (fosp.md 3.5).

    The averages start at 0 without bias correction, as DreamerV3 does.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self, decay: float = 0.99, percentiles: tuple[float, float] = (0.05, 0.95), floor: float = 1
    ) -> None:
        super().__init__()
        self.decay, self.percentiles, self.floor = decay, percentiles, floor
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Move the averages towards the percentiles of `x` (any shape)."""
        levels = torch.tensor(self.percentiles, dtype=x.dtype, device=x.device)
        low, high = torch.quantile(gathered(x.float()), levels.float())
        self.low.lerp_(low, 1.0 - self.decay)
        self.high.lerp_(high, 1.0 - self.decay)

    @property
    def divisor(self) -> Tensor:
        """The scale to divide by, a scalar tensor."""
        return torch.clamp(self.high - self.low, min=self.floor)


class RmsNormalizer(nn.Module):
    """Divisor sqrt(EMA of the mean square), bias-corrected, for advantages of tiny scale."""

    mean_square: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99, floor: float = 1e-4) -> None:
        super().__init__()
        self.decay, self.floor = decay, floor
        self.register_buffer("mean_square", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor) -> None:
        """Move the average towards the mean square of `x` where `mask` is one (same shapes)."""
        total, count = everywhere(torch.stack([(x.square() * mask).sum(), mask.sum()]))
        mean = total / count.clamp(min=1.0)
        self.mean_square.lerp_(mean, 1.0 - self.decay)
        self.weight.lerp_(torch.ones_like(self.weight), 1.0 - self.decay)

    @property
    def divisor(self) -> Tensor:
        """The scale to divide by, a scalar tensor."""
        mean = self.mean_square / self.weight.clamp(min=1e-8)
        return torch.sqrt(mean).clamp(min=self.floor)


class VectorNormalizer(nn.Module):
    """(x - mean) / std with constants from dataset statistics."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.to(torch.float32))
        # An entry that never moved in the data must not blow up when it moves on the robot.
        self.register_buffer("std", std.to(torch.float32).clamp(min=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D] -> [..., D]`."""
        return (x - self.mean) / self.std
