"""The policy bundle: a folder with `policy.onnx` and `manifest.json`, and which one may go live.

Export writes bundles, the runtime loads them, promotion compares them: this is what they agree on.
Bundles of a run are versions `v000001`, `v000002`, ... in one folder, beside `current.json`, the
only thing that says which version an actor may load. NumPy only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from safe_o2o.errors import BundleError, SafeO2OError
from safe_o2o.files import write_atomic
from safe_o2o.spaces import Spec

SCHEMA_VERSION = 1
GRAPH, MANIFEST, POINTER = "policy.onnx", "manifest.json", "current.json"
ACTION = "action"
_VERSION = re.compile(r"^v(\d{6,})$")
_TODO = "export the policy again"

Role = Literal["observation", "carry", "noise", "action", "diagnostic"]


@dataclass(frozen=True)
class Port:
    """One input or output of the graph.

    Attributes:
        name: its name in the graph.
        shape: with a leading batch axis of 1.
        dtype: NumPy dtype name.
        role: what it is for.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about its graph.

    Attributes:
        algorithm: catalogue name of what trained it.
        spec: observation and action spec; units, bounds and the policy period are in it.
        inputs: the graph's inputs, in order.
        outputs: the graph's outputs, in order.
        carry: output that becomes the next step's input, by the input's name; zeros start an
            episode.
        noise: what each noise input (standard normal) gets in deterministic mode: `zero`, or
            `fixed`, the same draw at every step.
        fixed_noise_seed: seed of that draw.
        fixed_noise: the draw itself by name, nested lists without the batch axis. Kept because
            NumPy does not promise the same normals from the same seed in every version.
        graph_sha256: of `policy.onnx`.
        parity: how far the graph is from the network it came from, and over how many steps.
        statistics: mean and spread of the training data (they are inside the graph as well).
        provenance: dataset hash, checkpoint step, seed, ...
        versions: of the packages that made it.
    """

    algorithm: str
    spec: Spec
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    carry: Mapping[str, str]
    noise: Mapping[str, str]
    fixed_noise_seed: int
    fixed_noise: Mapping[str, Any]
    graph_sha256: str
    parity: Mapping[str, Any]
    statistics: Mapping[str, Any]
    provenance: Mapping[str, Any]
    versions: Mapping[str, str]

    def ports(self, role: Role, *, output: bool = False) -> tuple[Port, ...]:
        """Inputs (or outputs) of one role, in order."""
        return tuple(p for p in (self.outputs if output else self.inputs) if p.role == role)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready description; units and rates of the spec stand at the top for readers."""
        action = self.spec.action
        units = {name: array.unit for name, array in self.spec.observation.arrays.items()}
        return {
            "schema_version": SCHEMA_VERSION,
            "algorithm": self.algorithm,
            "spec": self.spec.to_json(),
            "units": units | {ACTION: f"1 (-1 to 1 spans the spec's low to high in {action.unit})"},
            "rates": {"policy_period_s": action.period, "policy_rate_hz": 1.0 / action.period},
            "inputs": [asdict(port) | {"shape": list(port.shape)} for port in self.inputs],
            "outputs": [asdict(port) | {"shape": list(port.shape)} for port in self.outputs],
            "carry": dict(self.carry),
            "noise": dict(self.noise),
            "fixed_noise_seed": self.fixed_noise_seed,
            "fixed_noise": dict(self.fixed_noise),
            "graph_sha256": self.graph_sha256,
            "parity": dict(self.parity),
            "statistics": dict(self.statistics),
            "provenance": dict(self.provenance),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Inverse of `to_json`.

        Raises:
            BundleError: another schema version, a field that is missing, unknown or of the wrong
                kind, or fields that contradict each other.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"has bundle schema {version!r}, this version reads {SCHEMA_VERSION}", todo=_TODO
            )
        plain = (
            *("algorithm", "carry", "noise", "fixed_noise_seed", "fixed_noise", "graph_sha256"),
            *("parity", "statistics", "provenance", "versions"),
        )
        try:
            manifest = cls(
                spec=Spec.from_json(data["spec"]),
                inputs=tuple(Port(**p | {"shape": tuple(p["shape"])}) for p in data["inputs"]),
                outputs=tuple(Port(**p | {"shape": tuple(p["shape"])}) for p in data["outputs"]),
                **{name: data[name] for name in plain},
            )
            again = manifest.to_json()
            manifest.check()
        except BundleError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, SafeO2OError) as error:
            raise BundleError(f"is no manifest of a bundle ({error!r})", todo=_TODO) from error
        for name in sorted(again.keys() | data.keys()):
            if again.get(name) != data.get(name):
                raise BundleError(f"field {name!r} contradicts the others", todo=_TODO)
        return manifest

    def check(self) -> None:
        """Refuse fields that contradict each other.

        Raises:
            BundleError: naming the first port that does not fit.
        """
        for side in (self.inputs, self.outputs):
            names = [port.name for port in side]
            if len(set(names)) != len(names):
                raise BundleError(f"names of ports repeat: {names}", todo=_TODO)
        self._check_observation()
        self._check_carry()
        self._check_noise()
        actions = self.ports("action", output=True)
        dim = self.spec.action.dim
        if (
            [port.name for port in actions] != [ACTION]
            or actions[0].dtype != "float32"
            or len(actions[0].shape) not in (2, 3)
            or (actions[0].shape[0], actions[0].shape[-1]) != (1, dim)
        ):
            raise BundleError(
                f"needs one output {ACTION!r}, float32 [1, {dim}] or [1, H, {dim}]", todo=_TODO
            )

    def _check_observation(self) -> None:
        found = {p.name: (p.dtype, p.shape) for p in self.ports("observation")}
        wanted = {n: (a.dtype, (1, *a.shape)) for n, a in self.spec.observation.arrays.items()}
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                raise BundleError(
                    f"input {name!r} is {found.get(name)}, the spec says {wanted.get(name)}",
                    todo=_TODO,
                )

    def _check_carry(self) -> None:
        before = {p.name: (p.dtype, p.shape) for p in self.ports("carry")}
        after = {p.name: (p.dtype, p.shape) for p in self.ports("carry", output=True)}
        if before.keys() != set(self.carry) or set(after) != set(self.carry.values()):
            raise BundleError("carry does not pair the carry inputs and outputs", todo=_TODO)
        for name, target in self.carry.items():
            if before[name] != after[target]:
                raise BundleError(
                    f"carry {name!r} is {before[name]}, its output {target!r} is {after[target]}",
                    todo=_TODO,
                )

    def _check_noise(self) -> None:
        ports = self.ports("noise")
        modes = [self.noise.get(port.name) for port in ports]
        if len(self.noise) != len(ports) or not all(mode in ("fixed", "zero") for mode in modes):
            raise BundleError("noise does not name every noise input fixed or zero", todo=_TODO)
        fixed = {port.name: port.shape for port in ports if self.noise[port.name] == "fixed"}
        for name in sorted(fixed.keys() | self.fixed_noise.keys()):
            draw = np.asarray(self.fixed_noise.get(name, np.nan), np.float64)
            if name not in fixed or not (
                (1, *draw.shape) == fixed[name] and np.isfinite(draw).all()
            ):
                raise BundleError(f"fixed noise {name!r} does not fit its input", todo=_TODO)


def read_manifest(directory: str | Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        BundleError: the folder or one of its two files is missing, or the manifest is damaged.
    """
    directory = Path(directory)
    for path in (directory, directory / MANIFEST, directory / GRAPH):
        if not path.exists():
            raise BundleError("does not exist", where=path, todo=_TODO)
    path = directory / MANIFEST
    try:
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot be read ({error})", where=path, todo=_TODO) from error
    try:
        return Manifest.from_json(data)
    except BundleError as error:
        raise BundleError(error.what, where=path, todo=error.todo) from error


def read_graph(directory: str | Path, manifest: Manifest) -> bytes:
    """The graph of a bundle.

    Raises:
        BundleError: it cannot be read, or is not the one that the manifest was written for.
    """
    path = Path(directory) / GRAPH
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot be read ({error.strerror})", where=path, todo=_TODO) from error
    if hashlib.sha256(data).hexdigest() != manifest.graph_sha256:
        raise BundleError("is not the graph that its manifest names", where=path, todo=_TODO)
    return data


def next_version(bundles_dir: str | Path) -> Path:
    """Folder for the next bundle of a run: one past the highest version there."""
    bundles_dir = Path(bundles_dir)
    entries = bundles_dir.iterdir() if bundles_dir.is_dir() else ()
    found = [int(match[1]) for match in (_VERSION.match(path.name) for path in entries) if match]
    return bundles_dir / f"v{max(found, default=0) + 1:06d}"


@dataclass(frozen=True)
class Pointer:
    """Which bundle is live.

    Attributes:
        directory: its folder.
        sha256: of its manifest, which in turn names the graph's.
    """

    directory: Path
    sha256: str

    @property
    def version(self) -> str:
        """Name of the folder, `v000001`."""
        return self.directory.name


def current(bundles_dir: str | Path) -> Pointer | None:
    """The bundle that an actor may load, None before the first promotion.

    Raises:
        BundleError: the pointer is damaged, or its bundle is gone or was changed since.
    """
    found = _read_pointer(Path(bundles_dir)).get("current")
    return None if found is None else _verify(Path(bundles_dir), found)


def set_current(bundles_dir: str | Path, version: str) -> Pointer:
    """Let a bundle go live, atomically; the one that was live is kept for `rollback`.

    Args:
        bundles_dir: the folder of versions.
        version: the name of a folder in it.

    Raises:
        BundleError: there is no such bundle, or the pointer is damaged.
        StorageError: the disk refused; the pointer is as it was.
    """
    bundles_dir = Path(bundles_dir)
    if not _VERSION.match(version):
        raise BundleError(
            f"has no version {version!r}", where=bundles_dir, todo="name one such as v000001"
        )
    state = _read_pointer(bundles_dir)
    entry = {"version": version, "sha256": _manifest_sha256(bundles_dir / version)}
    if state.get("current") != entry:
        _write_pointer(bundles_dir, {"current": entry, "previous": state.get("current")})
    return Pointer(bundles_dir / version, entry["sha256"])


def rollback(bundles_dir: str | Path) -> Pointer:
    """Go back to the bundle that was live before; once, since only one is remembered.

    Raises:
        BundleError: none was live before, or it is gone or was changed since.
        StorageError: the disk refused; the pointer is as it was.
    """
    bundles_dir = Path(bundles_dir)
    previous = _read_pointer(bundles_dir).get("previous")
    if previous is None:
        raise BundleError("has no earlier bundle to go back to", where=bundles_dir / POINTER)
    pointer = _verify(bundles_dir, previous)
    _write_pointer(bundles_dir, {"current": previous, "previous": None})
    return pointer


def _verify(bundles_dir: Path, entry: Mapping[str, str]) -> Pointer:
    directory = bundles_dir / entry["version"]
    if _manifest_sha256(directory) != entry["sha256"]:
        raise BundleError("was changed after it was promoted", where=directory / MANIFEST)
    return Pointer(directory, entry["sha256"])


def _manifest_sha256(directory: Path) -> str:
    try:
        return hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError("is no bundle", where=directory, todo=_TODO) from error


def _read_pointer(bundles_dir: Path) -> dict[str, Any]:
    path = bundles_dir / POINTER
    try:
        data = json.loads(path.read_bytes())
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema {data['schema_version']!r}")
        for entry in (data["current"], data["previous"]):
            if entry is not None and not _VERSION.match(entry["version"]):
                raise ValueError(f"version {entry['version']!r}")
        return dict(data)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"is damaged ({error})", where=path, todo="remove it and promote a bundle again"
        ) from error


def _write_pointer(bundles_dir: Path, state: Mapping[str, Any]) -> None:
    text = json.dumps({"schema_version": SCHEMA_VERSION, **state}, indent=2) + "\n"
    write_atomic(bundles_dir / POINTER, text.encode())
