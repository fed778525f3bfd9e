"""A trained behaviour on disk: one safetensors file with a small network, read and run by NumPy.

    mean, std              [D] float32    of the observations it was trained on
    weight.<i>, bias.<i>   of layer i: `[out, in]` and `[out]` float32; tanh between layers
    log_std                [A] float32    of its own noise

The metadata key `behavior` is JSON: schema version, name, task, spec and what is known of how it
came about, with a SHA-256 over all of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from safe_o2o.errors import DataError
from safe_o2o.files import write_atomic
from safe_o2o.spaces import Spec
from safe_o2o.types import Array

SCHEMA_VERSION = 1
FILE = "behavior.safetensors"
"""Its name in the folder of its training."""
_TODO = "train it again with `safe-o2o behaviors`"
_CLIP = 10.0


@dataclass(frozen=True)
class TrainedBehavior:
    """A Gaussian policy over one vector, as numbers.

    Attributes:
        name: "safe", "unsafe", ...
        task: catalogue name of the task.
        spec: one vector of observation, and the actions.
        arrays: see the module's docstring.
        provenance: settings and figures of its training, JSON-ready.
    """

    name: str
    task: str
    spec: Spec
    arrays: Mapping[str, Array]
    provenance: Mapping[str, Any]

    @property
    def observation(self) -> str:
        """Name of its one vector."""
        return self.spec.observation.vector_names[0]

    def act(self, vector: Array, noise: Array | None = None) -> Array:
        """Action `[A]` float32 in [-1, 1] for an observation `[D]`.

        Args:
            vector: the observation.
            noise: standard normal draws `[A]`; None takes the mean.
        """
        x = np.clip((vector - self.arrays["mean"]) / self.arrays["std"], -_CLIP, _CLIP)
        layers = sum(name.startswith("weight.") for name in self.arrays)
        for i in range(layers):
            x = self.arrays[f"weight.{i}"] @ x + self.arrays[f"bias.{i}"]
            x = np.tanh(x) if i < layers - 1 else x
        if noise is not None:
            x = x + np.exp(self.arrays["log_std"]) * noise
        return np.asarray(np.clip(x, -1.0, 1.0), np.float32)


def write_behavior(path: str | Path, behavior: TrainedBehavior) -> None:
    """Write a behaviour, atomically; one that is there is replaced.

    Raises:
        StorageError: the disk refused.
    """
    arrays = {name: np.ascontiguousarray(a, np.float32) for name, a in behavior.arrays.items()}
    header: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": behavior.name,
        "task": behavior.task,
        "spec": behavior.spec.to_json(),
        "provenance": dict(behavior.provenance),
    }
    header["sha256"] = _digest(header, arrays)
    write_atomic(path, save(arrays, {"behavior": json.dumps(header, sort_keys=True)}))


def read_behavior(path: str | Path) -> TrainedBehavior:
    """Read a behaviour back.

    Args:
        path: the file, or the folder of its training.

    Raises:
        DataError: missing, damaged, or of another schema version.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.exists():
        raise DataError("holds no trained behaviour", where=path, todo=_TODO)
    try:
        with safe_open(str(path), "np") as file:
            header = json.loads(file.metadata()["behavior"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["schema_version"] != SCHEMA_VERSION:
            raise DataError(
                f"has behaviour schema {header['schema_version']}, this version reads "
                f"{SCHEMA_VERSION}",
                where=path,
                todo=_TODO,
            )
        if _digest(header, arrays) != header["sha256"]:
            raise ValueError("its content does not match its hash")
        return TrainedBehavior(
            header["name"],
            header["task"],
            Spec.from_json(header["spec"]),
            arrays,
            header["provenance"],
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"is no readable behaviour ({error})", where=path, todo=_TODO) from error


def _digest(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    kept = {key: value for key, value in header.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} {list(arrays[name].shape)}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name], "<f4").tobytes())
    return digest.hexdigest()
