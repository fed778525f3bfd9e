"""A network that somebody else designed, and perhaps trained, as the world model's eyes.

The trunk of a convolutional classifier looks at each camera's image by itself; a small head of ours
turns what it sees into a vector. A frozen trunk never changes; a tuned one learns along, slowly.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from safe_o2o import catalog
from safe_o2o.errors import CheckpointError, ConfigError
from safe_o2o.nets.keypoints import expected_positions, position_moments
from safe_o2o.nets.mlp import LAYER_NORM_EPS

HEADS = ("fc.", "classifier.", "head.", "AuxLogits.", "aux1.", "aux2.")
"""What names of a classifier's own outputs begin with: a weights file may have them or not."""
COUNTER = "num_batches_tracked"
"""Counts batches while BatchNorm trains; nothing here reads it, and some files leave it out."""


class Source(Protocol):
    """What a line of `catalog.backbones` makes of a model's name.

    Attributes:
        trunk: `[N, 3, S, S]`, normalised, to a map `[N, C, h, w]` or to features `[N, C]`; its
            state has the names that published weights have.
        mean: of each colour over the images it was made for, in [0, 1].
        std: their standard deviation.
    """

    trunk: nn.Module
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class BackboneConfig:
    """Which network, whose weights, and what is read from it."""

    model: str = "torchvision:resnet18"
    """source and name, `torchvision:resnet18` or `timm:resnet18`; sources are in the catalogue"""
    weights: str = ""
    """local file that a run starts from, .safetensors or a state dict in .pth; empty starts at
    random. Read once: checkpoints hold the weights from then on."""
    frozen: bool = True
    """never train the trunk, only what stands behind it"""
    lr_factor: float = 0.1
    """learning rate of a trunk that is tuned, relative to that of the world model"""
    size: int = 128
    """side that images are resized to, pixels"""
    pool: Literal["keypoints", "mean"] = "keypoints"
    """what is read from the last map: expected positions (spatial softmax), or channels' means"""

    def __post_init__(self) -> None:
        source, _, name = self.model.partition(":")
        if not source or not name:
            raise ConfigError(
                f"must be SOURCE:NAME, got {self.model!r}",
                where="backbone.model",
                todo="torchvision:resnet18, for example",
            )
        if self.size < 32:
            raise ConfigError(f"must be at least 32, got {self.size}", where="backbone.size")
        if not 0.0 < self.lr_factor <= 1.0:
            raise ConfigError(
                f"must be in (0, 1], got {self.lr_factor}", where="backbone.lr_factor"
            )


class Backbone(nn.Module):
    """Trunk, the same for every camera, and head.

    The trunk is in evaluation mode always, tuned or not: BatchNorm divides by the statistics that
    came with the weights. Those of a batch of ours would make what is seen in one frame hang on the
    other frames (sixty-four almost equal ones in a row), on padding and on the number of processes,
    and would not be what the deployed policy divides by.

    Copies of a frozen trunk share its memory.

    Args:
        config: which network.
        channels: image channels, 3 a camera.
        keypoints: positions read a camera, with `pool` keypoints.

    Raises:
        UnknownNameError: no such source or model; names the near miss.
        MissingDependencyError: the source's package is missing or does not import.
        ConfigError: the model does not fit the settings or the images.
    """

    mean: Tensor
    std: Tensor
    moments: Tensor

    def __init__(self, config: BackboneConfig, channels: int, keypoints: int) -> None:
        super().__init__()
        if channels % 3:
            raise ConfigError(
                f"a backbone needs 3 channels a camera, got {channels} in all",
                where="observation spec",
                todo="use encoder strided or keypoint",
            )
        name, _, model = config.model.partition(":")
        source: Source = catalog.load("backbone", name)(model)
        self.config, self.cameras = config, channels // 3
        self.trunk = source.trunk.eval().requires_grad_(not config.frozen)
        for key, values in (("mean", source.mean), ("std", source.std)):
            self.register_buffer(key, torch.tensor(values).view(3, 1, 1), persistent=False)
        # Until the file is read: a run that forgot to must not train on noise for hours.
        self.unread = config.weights
        self.register_load_state_dict_post_hook(_was_read)
        shape = self._probe()
        wide, self.log_sharpness = shape[1], None
        # Trunks differ in scale a hundredfold. Over the whole map, for what stands out to stay so.
        self.norm = nn.GroupNorm(1, wide, eps=LAYER_NORM_EPS)
        if config.pool == "keypoints":
            self.heat = nn.Linear(wide, keypoints, bias=False)
            nn.init.kaiming_normal_(self.heat.weight, nonlinearity="linear")
            self.log_sharpness = nn.Parameter(torch.zeros(keypoints))
            self.register_buffer("moments", position_moments(*shape[2:]), persistent=False)
        self.out_dim = self.cameras * (2 * keypoints if config.pool == "keypoints" else wide)

    def _probe(self) -> torch.Size:
        """Shape of what the trunk sees in one image.

        Raises:
            ConfigError: nothing that the head can read.
        """
        cfg = self.config
        try:
            with torch.no_grad():
                shape = self.trunk(torch.zeros(1, 3, cfg.size, cfg.size)).shape
        except (RuntimeError, ValueError, AssertionError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"{cfg.model} takes no images of {cfg.size} x {cfg.size} ({why})",
                where="backbone.size",
            ) from error
        if len(shape) not in (2, 4):
            raise ConfigError(
                f"{cfg.model} gives {list(shape)}, neither a map nor features",
                where="backbone.model",
                todo="take a convolutional one",
            )
        if cfg.pool == "keypoints" and (len(shape) == 2 or min(shape[2:]) < 2):
            raise ConfigError(
                f"{cfg.model} gives {list(shape)} at {cfg.size} pixels, which has no places",
                where="backbone.pool",
                todo="take pool mean, or larger images",
            )
        return shape

    def train(self, mode: bool = True) -> Backbone:
        """As of any module, but the trunk stays in evaluation mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    def look(self, image: Tensor) -> Tensor:
        """Images `[N, 3 k, H, W]` in [-0.5, 0.5] to what the trunk sees, `[N, k, C, ...]` float32.

        Raises:
            ConfigError: the weights that the settings name were never read.
        """
        if self.unread:
            raise ConfigError(
                "these weights were never read",
                where=self.unread,
                todo="safe_o2o.training.pretrained.start(algorithm) reads them",
            )
        size = (self.config.size, self.config.size)
        each = image.unflatten(1, (self.cameras, 3)).flatten(0, 1)
        if each.shape[-2:] != size:
            each = nn.functional.interpolate(each, size, mode="bilinear", align_corners=False)
        seen = self.trunk((each + 0.5 - self.mean) / self.std)
        return seen.float().unflatten(0, (-1, self.cameras))

    def read(self, seen: Tensor) -> Tensor:
        """What `look` gave to a vector `[N, out_dim]`, camera by camera."""
        places = seen.flatten(0, 1).flatten(2) if seen.dim() == 5 else seen.flatten(0, 1)[..., None]
        places = self.norm(places)  # [N k, C, h w]
        if self.log_sharpness is None:
            out = places.mean(-1)
        else:
            heat = self.heat(places.transpose(1, 2)).float() * self.log_sharpness.exp()
            out = expected_positions(heat, self.moments)
        return out.unflatten(0, (-1, self.cameras)).flatten(1)

    def forward(self, image: Tensor) -> Tensor:
        """Images `[N, 3 k, H, W]` in [-0.5, 0.5] -> `[N, out_dim]`."""
        return self.read(self.look(image))

    @torch.no_grad()
    def fill(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Take over weights as they were published; a classifier's own outputs are left out.

        Args:
            weights: tensors by name.
            where: the file, for messages.

        Raises:
            CheckpointError: a name is missing or unknown, a shape is another one, a number is not
                finite; nothing was changed.
        """
        own = self.trunk.state_dict()
        lacking = [k for k in own if k not in weights and not k.endswith(COUNTER)]
        unknown = [k for k in weights if k not in own and not k.startswith(HEADS)]
        shared = [k for k in own if k in weights]
        other = [k for k in shared if weights[k].shape != own[k].shape]
        broken = [k for k in shared if not torch.isfinite(weights[k]).all()]
        for names, what in (
            (lacking, "lacks"),
            (other, "has another shape of"),
            (unknown, "has, unlike the model,"),
            (broken, "is not finite in"),
        ):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise CheckpointError(
                    f"is no weights file of {self.config.model}: {what} {names[0]!r}{more}",
                    where=where,
                    todo="name the model that it was made for",
                )
        for key in shared:
            own[key].copy_(weights[key])
        self.unread = ""

    def __deepcopy__(self, memo: dict[int, Any]) -> Backbone:
        """A frozen trunk is large and never changes: copies have tensors of their own on it."""
        if self.config.frozen:
            for p in self.trunk.parameters():
                memo[id(p)] = nn.Parameter(p.detach(), requires_grad=False)
            for buffer in self.trunk.buffers():
                memo[id(buffer)] = buffer.detach()
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


def _was_read(module: nn.Module, _: Any) -> None:
    """A state that was loaded brought the weights with it."""
    assert isinstance(module, Backbone)
    module.unread = ""


def frozen_names(module: nn.Module) -> set[str]:
    """Names of everything of a module's state that belongs to a frozen trunk."""
    return {
        f"{name}.trunk.{key}" if name else f"trunk.{key}"
        for name, part in module.named_modules()
        if isinstance(part, Backbone) and part.config.frozen
        for key in part.trunk.state_dict()
    }
