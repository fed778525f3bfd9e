"""What the encoders of small cameras keep of a picture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from safe_o2o.nets.encoder import KeypointCNN, PatchCNN, StridedCNN


@pytest.mark.parametrize("make", [StridedCNN, KeypointCNN, PatchCNN])
@pytest.mark.parametrize("channels", [3, 6])
def test_out_dim_is_what_comes_out_and_every_layer_learns(
    make: type[nn.Module], channels: int
) -> None:
    torch.manual_seed(0)
    encoder = make(channels, 8)
    out = encoder(torch.rand(5, channels, 64, 64) - 0.5)
    assert out.shape == (5, encoder.out_dim)
    out.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in encoder.parameters())


def test_patches_can_say_that_nothing_is_there_or_that_it_is_there_twice() -> None:
    torch.manual_seed(0)
    encoder = PatchCNN(3, 8)
    pictures = torch.zeros(3, 3, 64, 64)
    pictures[1:, :, 8:16, 8:16] = 0.5
    pictures[2, :, 40:48, 40:48] = 0.5
    with torch.no_grad():
        none, one, two = (encoder(pictures) - encoder(pictures[:1])).unflatten(1, (-1, 8, 8))
    assert not none.any()
    touched = [(x.abs().sum(0) > 0).float() for x in (one, two)]
    assert touched[0][:3, :3].any() and not touched[0][4:, 4:].any()
    assert touched[1][:3, :3].any() and touched[1][4:, 4:].any()
