"""Weights of somebody else's training, from a local file into a run that starts.

Only a run's first start reads the file. From then on its checkpoints hold the weights: resuming,
fine-tuning and export ask for it no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from safe_o2o.errors import CheckpointError

STATE_DICTS = (".pth", ".pt", ".bin")
NESTED = ("state_dict", "model")
"""Under which of its names the file of a training script may hold the weights."""


def start(algorithm: Any) -> None:
    """Give a fresh algorithm the weights that its settings name, if they name any.

    Raises:
        CheckpointError: the file cannot be read, or is none of the model.
    """
    path = getattr(algorithm, "pretrained", "")
    if path:
        algorithm.load_pretrained(read(path))


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU; nothing in it is ever executed.

    Args:
        path: safetensors, or a state dict that `torch.save` wrote.

    Raises:
        CheckpointError: missing, damaged, of another kind, or with more in it than tensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors" and path.suffix not in STATE_DICTS:
        raise CheckpointError(
            "is no weights file",
            where=path,
            todo=f"they end in .safetensors or {', '.join(STATE_DICTS)}",
        )
    if not path.is_file():
        raise CheckpointError("no such weights file", where=path, todo="check the path")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file of this kind may raise anything
        raise _unreadable(path, error) from error
    for name in NESTED:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping) or not all(isinstance(x, Tensor) for x in held.values()):
        raise CheckpointError(
            "holds more than tensors by name", where=path, todo="save model.state_dict() alone"
        )
    return {str(name): tensor for name, tensor in held.items()}


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    why = " ".join(str(error).split())[:120] or type(error).__name__
    return CheckpointError(
        f"cannot be read as plain tensors ({why})", where=path, todo="convert it to safetensors"
    )
