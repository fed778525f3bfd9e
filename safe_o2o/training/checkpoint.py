"""Checkpoints: everything that training needs to go on bit for bit, in one safetensors file.

Tensors and arrays are entries of the file; the rest of the state (nesting, numbers, texts, where
each tensor belongs) is JSON under the metadata key `checkpoint`, together with whose state it is
and a SHA-256 over all of it. Names are `step_000001000.safetensors`; a file is whole or not there,
so that a kill at any byte leaves the last checkpoint as it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from safe_o2o.errors import CheckpointError
from safe_o2o.files import storage_error, temporary_owner, write_atomic

SCHEMA_VERSION = 1
_NAME = re.compile(r"^step_(\d{9,})\.safetensors$")
_TODO = "remove it to go on from an older checkpoint, or train again"


@dataclass(frozen=True)
class Meta:
    """Whose state a checkpoint holds.

    Attributes:
        algorithm: catalogue name.
        config: its settings, JSON-ready.
        spec: `Spec.to_json()` of its data.
    """

    algorithm: str
    config: Mapping[str, Any]
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Header:
    """What a checkpoint says about itself.

    Attributes:
        meta: whose state it is.
        step: gradient steps behind it.
    """

    meta: Meta
    step: int


def save(
    directory: str | Path, state: Mapping[str, Any], meta: Meta, *, step: int, keep: int = 3
) -> Path:
    """Write a checkpoint atomically, then remove all but the newest `keep`.

    Args:
        directory: the folder; made when missing. One process writes into it at a time.
        state: nested dicts, lists and tuples of tensors, NumPy arrays and scalars, numbers, texts,
            booleans and None: `Algorithm.state_dict()`, optimisers and generators included.
        meta: whose state it is.
        step: gradient steps so far; a checkpoint of the same step is replaced.
        keep: newest checkpoints to keep, at least 1.

    Returns:
        The file.

    Raises:
        CheckpointError: the state holds something else (by its path), or `keep` is below 1.
        StorageError: the disk refused; older checkpoints are as they were.
    """
    directory = Path(directory)
    if keep < 1:
        raise CheckpointError(f"keep must be at least 1, got {keep}", where=directory)
    path = directory / f"step_{step:09d}.safetensors"
    tensors: dict[str, torch.Tensor] = {}
    header: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "step": int(step),
        **asdict(meta),
        "state": _encode(dict(state), tensors, "state"),
    }
    header["sha256"] = _digest(header, tensors)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, directory) from error
    try:
        data = save_tensors(tensors, {"checkpoint": _canonical(header)})
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"state cannot be written ({error})", where=path) from error
    _sweep(directory)
    write_atomic(path, data)
    _prune(directory, keep, path)
    return path


def load(
    path: str | Path, expect: Meta | None = None, defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Read a checkpoint back: same types, same bits; tensors on the CPU.

    Args:
        path: a checkpoint, or a folder for its newest one.
        expect: whose state it has to be; None accepts any.
        defaults: what a setting counts as that the checkpoint's version did not have yet.

    Raises:
        CheckpointError: missing, damaged, of another schema version, algorithm, config or spec.
    """
    path = _resolve(path)
    data = _read(path)
    raw = _header(path, data)
    if expect is not None:
        known = {**raw, "config": _filled(raw["config"], defaults or {})}
        _require_same(path, known, asdict(expect))
    try:
        tensors = load_tensors(data)
        if _digest(raw, tensors) != raw["sha256"]:
            raise ValueError("its content does not match its hash")
        state = _decode(raw["state"], tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise _damaged(path, error) from error
    if not isinstance(state, dict):
        raise _damaged(path, "it holds no state")
    return state


def read_header(path: str | Path) -> Header:
    """Whose checkpoint it is and of which step, without reading the tensors.

    Args:
        path: a checkpoint, or a folder for its newest one.

    Raises:
        CheckpointError: missing, damaged, or of another schema version.
    """
    path = _resolve(path)
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            # A damaged length must not ask for all of the memory.
            data = b"" if size > path.stat().st_size else size.to_bytes(8, "little")
            data += file.read(size) if data else b""
    except OSError as error:
        raise _missing(path, error) from error
    raw = _header(path, data)
    return Header(Meta(raw["algorithm"], raw["config"], raw["spec"]), int(raw["step"]))


def latest(directory: str | Path) -> Path | None:
    """The checkpoint of the highest step in a folder, None where there is none."""
    found = _checkpoints(Path(directory))
    return found[-1][1] if found else None


# ------------------------------------------------------------------ state to JSON and back


def _encode(value: Any, tensors: dict[str, torch.Tensor], path: str) -> Any:
    """JSON form of a value; every JSON object has one key that says what it stands for."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if kind is list:
        return [_encode(item, tensors, f"{path}[{i}]") for i, item in enumerate(value)]
    if kind is tuple:
        return {"tuple": [_encode(item, tensors, f"{path}[{i}]") for i, item in enumerate(value)]}
    if kind in (dict, OrderedDict):
        pairs = []
        for key, item in value.items():
            if type(key) not in (str, int, bool, type(None)):
                raise CheckpointError(f"has a key {key!r}, not a text or a number", where=path)
            pairs.append([key, _encode(item, tensors, f"{path}.{key}")])
        return {"dict" if kind is dict else "ordered_dict": pairs}
    if isinstance(value, torch.Tensor):
        return {"tensor": _put(tensors, _own(value), path)}
    if isinstance(value, np.ndarray | np.generic):
        name = "array" if isinstance(value, np.ndarray) else "scalar"
        return {name: _put(tensors, _from_numpy(value, path), path)}
    raise CheckpointError(f"holds a {kind.__name__}, which a checkpoint cannot", where=path)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A plain copy on the CPU: entries of a file share no memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _from_numpy(value: Any, path: str) -> torch.Tensor:
    array = np.array(value, order="C", copy=True)
    try:
        tensor = torch.from_numpy(array)
        # Insist on a round trip: what PyTorch would read as another type is refused.
        if tensor.numpy().dtype == array.dtype:
            return tensor
    except (TypeError, ValueError):
        pass
    raise CheckpointError(f"holds an array of {array.dtype}, which it cannot", where=path)


def _put(tensors: dict[str, torch.Tensor], tensor: torch.Tensor, path: str) -> str:
    name = f"{len(tensors):06d} {path}"  # the number keeps names apart, the path is for readers
    tensors[name] = tensor
    return name


def _decode(node: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "float":
        return float(value)
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in value)
    if kind in ("dict", "ordered_dict"):
        pairs = [(key, _decode(item, tensors)) for key, item in value]
        return dict(pairs) if kind == "dict" else OrderedDict(pairs)
    tensor = tensors[value].clone()  # memory of its own, aligned, not a view of the file's bytes
    if kind == "tensor":
        return tensor
    if kind == "array":
        return tensor.numpy()
    if kind == "scalar":
        return tensor.numpy()[()]
    raise ValueError(f"unknown kind {kind!r}")


# ------------------------------------------------------------------ files


def _canonical(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _digest(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the header (its own entry left out) and every tensor's type, shape and bytes."""
    digest = hashlib.sha256()
    digest.update(_canonical({k: v for k, v in header.items() if k != "sha256"}).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _missing(path, error) from error


def _header(path: Path, data: bytes) -> dict[str, Any]:
    """Our JSON from the start of a file."""
    try:
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 or len(data) < 8 + size:
            raise ValueError("it is cut off")
        raw = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["checkpoint"])
        version = raw["schema_version"]
        missing = {"step", "algorithm", "config", "spec", "state", "sha256"} - raw.keys()
        if missing:
            raise ValueError(f"it lacks {sorted(missing)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"has checkpoint schema {version}, this version reads {SCHEMA_VERSION}",
            where=path,
            todo="go on with the version that wrote it, or train again",
        )
    return dict(raw)


def _require_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for field in ("algorithm", "spec", "config"):
        # Through JSON: tuples and lists are the same setting.
        difference = _difference(found[field], json.loads(_canonical(wanted[field])), field)
        if difference is not None:
            name, there, here = difference
            raise CheckpointError(
                f"was made with {name} {there!r}, this run has {here!r}",
                where=path,
                todo="train into another folder, or use the same settings and data",
            )


def _filled(settings: Any, defaults: Any) -> Any:
    """Settings with those that are missing, at any depth."""
    if not (isinstance(settings, dict) and isinstance(defaults, Mapping)):
        return settings
    added = {name: value for name, value in defaults.items() if name not in settings}
    kept = {name: _filled(value, defaults.get(name)) for name, value in settings.items()}
    return {**kept, **json.loads(_canonical(added))}


def _difference(there: Any, here: Any, path: str) -> tuple[str, Any, Any] | None:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there)]:
            found = _difference(there.get(key), here.get(key), f"{path}.{key}")
            if found is not None:
                return found
        return None
    return None if there == here else (path, there, here)


def _resolve(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        return path
    newest = latest(path)
    if newest is None:
        raise CheckpointError("holds no checkpoint", where=path, todo="train first")
    return newest


def _checkpoints(directory: Path) -> list[tuple[int, Path]]:
    if not directory.is_dir():
        return []
    found = ((_NAME.match(path.name), path) for path in directory.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def _prune(directory: Path, keep: int, newest: Path) -> None:
    """Remove old checkpoints, and those of later steps than one that was written just now.

    Later ones are of a run that was resumed from an older checkpoint: were they kept, the next
    resume would jump into that other run.
    """
    found = [path for _, path in _checkpoints(directory)]
    past = found[found.index(newest) + 1 :]
    for path in [*found[: found.index(newest) + 1][:-keep], *past]:
        with suppress(FileNotFoundError):
            path.unlink()


def _sweep(directory: Path) -> None:
    """Remove temporary files of writers that were killed: each is as large as a checkpoint."""
    for path in directory.iterdir():
        owner = temporary_owner(path)
        if owner is None or owner == os.getpid():
            continue
        try:
            os.kill(owner, 0)
        except ProcessLookupError:
            with suppress(OSError):
                path.unlink()
        except PermissionError:
            continue  # somebody else's, and alive


def _missing(path: Path, error: OSError) -> CheckpointError:
    what = f"cannot be read: {(error.strerror or str(error)).lower()}"
    return CheckpointError(what, where=path, todo="check the path")


def _damaged(path: Path, why: object) -> CheckpointError:
    return CheckpointError(f"is damaged ({why})", where=path, todo=_TODO)
