"""From pixels and poses to one vector, and back.

Image encoders behind one interface: the paper's strided CNN (fosp.md 2.1), two small ones that
learn from little data on a CPU, of which one ends in keypoints (spatial softmax, simulators.md 8.2)
and one keeps a map, and somebody else's pretrained network (`nets.backbone`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from safe_o2o.nets.backbone import Backbone
from safe_o2o.nets.keypoints import expected_positions, position_moments
from safe_o2o.nets.mlp import LAYER_NORM_EPS, MLP, NormLinear, init_hidden, init_output
from safe_o2o.nets.norm_silu import norm_silu
from safe_o2o.nets.strided import Doubling, Halving


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of `[B, C, H, W]`, and SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, C, H, W]`."""
        x, norm = x.permute(0, 2, 3, 1), self.norm
        return norm_silu(x, norm.weight, norm.bias, norm.eps).permute(0, 3, 1, 2)


def _numbered(stages: Sequence[Sequence[nn.Module]]) -> nn.Sequential:
    """Stages of convolution and norm; every third number was SiLU's, and checkpoints keep it."""
    layers = nn.Sequential()
    for i, stage in enumerate(stages):
        for j, layer in enumerate(stage):
            layers.add_module(str(3 * i + j), layer)
    return layers


class StridedCNN(nn.Module):
    """Four convolutions, kernel 4, stride 2: 64x64 -> 4x4 (the paper's encoder).

    Args:
        channels: image channels (3 a camera).
        depth: channels of the first layer; doubled at each.
    """

    def __init__(self, channels: int, depth: int = 32) -> None:
        super().__init__()
        dims = [channels, depth, 2 * depth, 4 * depth, 8 * depth]
        layers: list[list[nn.Module]] = []
        for a, b in pairwise(dims):
            conv = Halving(a, b)
            init_hidden(conv)
            layers.append([conv, ChannelNorm(b)])
        self.layers = _numbered(layers)
        self.out_dim = dims[-1] * 4 * 4

    def forward(self, image: Tensor) -> Tensor:
        """`[B, C, 64, 64]` around zero -> `[B, out_dim]`."""
        return self.layers(image).flatten(1)


def patches(image: Tensor) -> Tensor:
    """`[B, C, S, S] -> [B, 16 C, S/4, S/4]`, channels last in memory as the camera delivers."""
    n, channels, height, width = image.shape
    rows = image.permute(0, 2, 3, 1).reshape(n, height // 4, 4, width // 4, 4, channels)
    cells = rows.permute(0, 1, 3, 2, 4, 5).reshape(n, height // 4, width // 4, 16 * channels)
    return cells.permute(0, 3, 1, 2)


def keep_signal(layers: nn.Sequential) -> None:
    """Start convolutions so that ReLUs leave a signal its size, which PyTorch's default shrinks."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


class KeypointCNN(nn.Module):
    """Embeds 4x4 patches, two dense convolutions, then the expected position of each channel.

    Patches instead of strided convolutions, and the first layer on each by itself, for speed on a
    CPU. A channel sees 20 pixels at a time.

    Args:
        channels: image channels.
        keypoints: number of channels that become (x, y) positions.
        size: image side, pixels; a multiple of 4.
    """

    moments: Tensor

    def __init__(self, channels: int, keypoints: int = 32, size: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(16 * channels, keypoints, 1),
            nn.ReLU(),
            nn.Conv2d(keypoints, keypoints, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(keypoints, keypoints, 3, 1, 1),
        )
        # Else the softmax below would start uniform, every keypoint in the middle, and hardly any
        # gradient would come back.
        keep_signal(self.layers)
        side = size // 4
        self.register_buffer("moments", position_moments(side, side), persistent=False)
        # Sharp from the start: with e^0 behaviour cloning took twice the updates.
        self.log_sharpness = nn.Parameter(torch.full((keypoints, 1), 2.0))
        self.out_dim = 2 * keypoints

    def forward(self, image: Tensor) -> Tensor:
        """`[B, C, S, S]` around zero -> `[B, 2 * keypoints]` in [-1, 1]."""
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        # Sharpness times heat, with the factor in the weights: the map is 50 times their size.
        sharpness = self.log_sharpness.exp()
        weight = last.weight * sharpness[..., None, None]
        bias = last.bias * sharpness[:, 0]
        x = self.layers[:-1](patches(image))
        heat = nn.functional.conv2d(x, weight, bias, padding=1)
        return expected_positions(heat.permute(0, 2, 3, 1).flatten(1, 2), self.moments)


class PatchCNN(nn.Module):
    """Embeds 4x4 patches, a dense and a strided convolution, and keeps the whole map.

    As cheap as `KeypointCNN`, but a channel can say that something is not there, or there twice.

    Args:
        channels: image channels.
        depth: channels of the first layers.
        size: image side, pixels; a multiple of 8.
    """

    def __init__(self, channels: int, depth: int = 32, size: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(16 * channels, depth, 1),
            nn.ReLU(),
            nn.Conv2d(depth, depth, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(depth, 2 * depth, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(2 * depth, depth // 2, 1),
            nn.ReLU(),
        )
        keep_signal(self.layers)
        self.out_dim = depth // 2 * (size // 8) ** 2

    def forward(self, image: Tensor) -> Tensor:
        """`[B, C, S, S]` around zero -> `[B, out_dim]`."""
        out: Tensor = self.layers(patches(image))
        return out.flatten(1)


class Encoder(nn.Module):
    """Images and vectors of an observation to one embedding.

    Args:
        image: a CNN or a `Backbone`, with `out_dim`; None without cameras.
        vector_dim: total size of the vectors, 0 without.
        embed_dim: size of a joint embedding; None concatenates CNN and vector features.
    """

    def __init__(self, image: nn.Module | None, vector_dim: int, embed_dim: int | None) -> None:
        super().__init__()
        self.image = image
        self.vector = NormLinear(vector_dim, 128) if vector_dim else None
        raw = (int(image.out_dim) if image is not None else 0) + (128 if vector_dim else 0)
        self.joint = NormLinear(raw, embed_dim) if embed_dim else None
        self.out_dim = embed_dim or raw

    @property
    def frozen(self) -> Backbone | None:
        """The backbone, if there is one and it never learns."""
        found = isinstance(self.image, Backbone) and self.image.config.frozen
        return self.image if found else None

    def look(self, image: Tensor) -> Tensor:
        """What a frozen backbone makes of images; the images themselves where there is none."""
        frozen = self.frozen
        return image if frozen is None else frozen.look(image)

    def forward(self, seen: Tensor, vector: Tensor) -> Tensor:
        """What `look` made of images `[B, C, H, W]` in [-0.5, 0.5], and vector `[B, V]`.

        Returns:
            `[B, out_dim]`
        """
        parts: list[Tensor] = []
        if self.image is not None:
            frozen = self.frozen
            parts.append(self.image(seen) if frozen is None else frozen.read(seen))
        if self.vector is not None:
            parts.append(self.vector(vector))
        raw = torch.cat(parts, -1)
        return raw if self.joint is None else self.joint(raw)


class Decoder(nn.Module):
    """Latent feature to an image around zero; 64x64 (the paper's) or 32x32.

    Args:
        feature_dim: size of the latent feature.
        channels: image channels.
        depth: channels of the last hidden layer; doubled at each earlier one.
        size: image side, 64 or 32 pixels.
    """

    def __init__(self, feature_dim: int, channels: int, depth: int = 32, size: int = 64) -> None:
        super().__init__()
        stages = {64: 4, 32: 3}[size]
        dims = [depth * 2 ** (stages - 1 - i) for i in range(stages)]
        self.first = dims[0]
        self.input = nn.Linear(feature_dim, dims[0] * 4 * 4)
        init_output(self.input, 1.0)
        layers: list[list[nn.Module]] = []
        for a, b in zip(dims, [*dims[1:], channels], strict=True):
            last = len(layers) == stages - 1
            conv = Doubling(a, b, bias=last)
            if last:
                init_output(conv, 1.0)
                layers.append([conv])
            else:
                init_hidden(conv)
                layers.append([conv, ChannelNorm(b)])
        self.layers = _numbered(layers)

    def forward(self, feature: Tensor) -> Tensor:
        """`[B, F] -> [B, C, S, S]` around zero."""
        x = self.input(feature).unflatten(-1, (self.first, 4, 4))
        if self.first >= 128:
            # Channels last in memory, as the norms read them; few channels are faster without.
            x = x.contiguous(memory_format=torch.channels_last)
        return self.layers(x)


class VectorDecoder(MLP):
    """Latent feature to the (normalised) vectors of the observation."""

    def __init__(self, feature_dim: int, vector_dim: int, hidden_dims: Sequence[int]) -> None:
        super().__init__(feature_dim, vector_dim, hidden_dims)
