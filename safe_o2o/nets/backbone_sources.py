"""Where backbones come from: optional packages, imported only when one of their models is named.

Nothing is ever downloaded: models are built without weights, which come from a file.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from safe_o2o.errors import ConfigError, MissingDependencyError, UnknownNameError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Torchvision:
    """Convolutional networks of torchvision, `torchvision:resnet18`.

    Args:
        name: of the model.

    Raises:
        MissingDependencyError: torchvision is missing, or made for another torch.
        UnknownNameError: it has no such model.
        ConfigError: the model is none whose last map can be read off.
    """

    FAMILIES = (
        *("ResNet", "RegNet", "EfficientNet", "ConvNeXt", "VGG"),
        *("MobileNetV2", "MobileNetV3", "ShuffleNetV2", "MNASNet"),
    )
    """Those that are, up to their outputs, one part after the other."""
    OUTPUTS = ("avgpool", "fc", "classifier")
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __init__(self, name: str) -> None:
        models = _package("torchvision").models
        known = models.list_models(module=models)
        if name not in known:
            raise UnknownNameError("torchvision model", name, known)
        whole = models.get_model(name, weights=None)
        if type(whole).__name__ not in self.FAMILIES:
            raise ConfigError(
                f"torchvision:{name} has no last map that could be read off",
                where="backbone.model",
                todo=f"take a {', '.join(self.FAMILIES)}, or a model of timm",
            )
        parts = {key: part for key, part in whole.named_children() if key not in self.OUTPUTS}
        self.trunk = nn.Sequential(OrderedDict(parts))


class Timm:
    """Convolutional networks of timm, `timm:resnet18`.

    Args:
        name: of the model, with or without a tag.

    Raises:
        MissingDependencyError: timm (or torchvision, which it needs) is missing or does not import.
        UnknownNameError: it has no such model.
        ConfigError: the model's map is not [N, C, h, w].
    """

    def __init__(self, name: str) -> None:
        timm = _package("timm")
        if name.partition(".")[0] not in (known := timm.list_models()):
            raise UnknownNameError("timm model", name, known)
        self.trunk = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
        if getattr(self.trunk, "output_fmt", "NCHW") != "NCHW":
            raise ConfigError(
                f"timm:{name} gives no map of the form [N, C, h, w]",
                where="backbone.model",
                todo="take a convolutional one",
            )
        cfg = self.trunk.pretrained_cfg
        self.mean: Sequence[float] = cfg.get("mean", IMAGENET_MEAN)
        self.std: Sequence[float] = cfg.get("std", IMAGENET_STD)


def _package(name: str) -> Any:
    """An optional package, imported.

    Raises:
        MissingDependencyError: it is not there, or does not import.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"needs the package {error.name!r}",
            where=f"backbone {name}",
            todo="pip install timm torchvision, in the build for your torch: docs/encoders.md",
        ) from error
    except (ImportError, RuntimeError, OSError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingDependencyError(
            f"does not import ({why})",
            where=f"backbone {name}",
            todo=f"torchvision must be made for torch {torch.__version__} (docs/encoders.md)",
        ) from error
