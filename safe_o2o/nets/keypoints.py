"""Where things are: the expected position of each channel of a heat map (spatial softmax)."""

from __future__ import annotations

import torch
from torch import Tensor


def position_moments(height: int, width: int) -> Tensor:
    """Rows x, y (each from -1 to 1) and ones, of every place of a map `[3, height * width]`."""
    y, x = torch.meshgrid(
        torch.linspace(-1.0, 1.0, height), torch.linspace(-1.0, 1.0, width), indexing="ij"
    )
    return torch.stack([x, y, torch.ones(height, width)]).flatten(1)


def expected_positions(heat: Tensor, moments: Tensor) -> Tensor:
    """Heat `[B, places, K]` to the mean (x, y) of each channel's softmax, in turn: `[B, 2 K]`.

    `moments` as `position_moments` gives them. In float32 also under autocast: bfloat16 would round
    positions to 1 %.
    """
    with torch.autocast(heat.device.type, enabled=False):
        heat = heat.float()
        # A softmax that is never normalised: its mean is a quotient of two sums, and the maps,
        # channels last as the convolution leaves them, are gone through once instead of thrice.
        p = torch.exp(heat - heat.detach().amax(1, keepdim=True))
        sums = moments @ p  # [B, 3, K]
        return (sums[:, :2] / sums[:, 2:]).transpose(1, 2).flatten(1)
