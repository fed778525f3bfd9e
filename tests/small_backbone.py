"""A small network with everything that a published one has: BatchNorm, skips, a classifier."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from safe_o2o import catalog
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.fosp_presets import preset
from safe_o2o.errors import UnknownNameError
from safe_o2o.nets.backbone import BackboneConfig

LINE = "tests.small_backbone:Small"
MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 2.0)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn(self.conv(x)))


def classifier(width: int) -> nn.Sequential:
    """The whole network, as somebody trained it: 1/8 of the size, `width` channels, 10 classes."""
    parts: dict[str, nn.Module] = {
        "stem": nn.Conv2d(3, width, 8, 8, bias=False),
        "bn1": nn.BatchNorm2d(width),
        "layer1": Block(width),
        "drop": nn.Dropout(0.5),
        "layer2": Block(width),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(width, 10),
    }
    return nn.Sequential(OrderedDict(parts))


class Small:
    """Trunks of `classifier`: `w8` gives maps, `pooled` features; `same` gives the image back."""

    mean, std = MEAN, STD

    def __init__(self, name: str) -> None:
        if name == "same":
            self.trunk: nn.Module = nn.Identity()
            return
        kept = {"w8": 5, "pooled": 7, "tokens": 5}
        if name not in kept:
            raise UnknownNameError("small model", name, kept)
        self.trunk = classifier(8)[: kept[name]]
        if name == "tokens":
            self.trunk.add_module("tokens", nn.Flatten(2))


def weights(seed: int = 0) -> dict[str, Tensor]:
    """As of a training: statistics of BatchNorm that are not those of the start."""
    generator = torch.Generator().manual_seed(seed)
    state = classifier(8).state_dict()
    for name, x in state.items():
        if x.is_floating_point():
            noise = torch.randn(x.shape, generator=generator)
            state[name] = 1.0 + 0.2 * noise.abs() if x.dim() == 1 else 0.3 * noise
    return dict(state)


def weights_file(folder: Path, seed: int = 0) -> Path:
    path = folder / f"weights_{seed}.safetensors"
    save_file({name: x.contiguous() for name, x in weights(seed).items()}, path)
    return path


def config(path: Path | str = "", name: str = "tiny", **changes: Any) -> FospConfig:
    """A preset that sees with the small network, and moves from the first online update on."""
    values = {"model": "tests:w8", "weights": str(path), "frozen": bool(str(path)), "size": 64}
    made = preset(name)
    backbone = BackboneConfig(**(values | changes))
    model = replace(made.world_model, encoder="backbone", backbone=backbone)
    return replace(made, world_model=model, finetune=replace(made.finetune, warmup=0))


@contextmanager
def registered() -> Iterator[None]:
    """A line in the catalogue, where there is no fixture."""
    catalog.backbones["tests"] = LINE
    try:
        yield
    finally:
        del catalog.backbones["tests"]
