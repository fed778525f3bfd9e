"""A policy bundle behind the same `act()` as the network it came from; onnxruntime, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from safe_o2o.bundle import ACTION, Manifest, Port, read_graph, read_manifest
from safe_o2o.errors import BundleError, SpecMismatchError
from safe_o2o.spaces import Spec
from safe_o2o.types import Array, Observation

Carry = dict[str, Array]
_TODO = "export the policy again"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OnnxPolicy:
    """The `Policy` of a bundle; see `safe_o2o.interfaces.Policy`. Make one with `OnnxPolicy.load`.

    Attributes:
        manifest: what the bundle says about itself.
        spec: its observation and action spec.
        directory: its folder; the name is its version.
        last_outputs: the diagnostics of the last `act` by name (q_reward, risk, ...), `[n, ...]`.
    """

    def __init__(
        self, session: ort.InferenceSession, manifest: Manifest, directory: Path, seed: int = 0
    ) -> None:
        self.manifest, self.spec, self.directory = manifest, manifest.spec, directory
        self.last_outputs: dict[str, Array] = {}
        self._session = session
        self._carry = manifest.ports("carry")
        self._noise = manifest.ports("noise")
        self._diagnostics = [port.name for port in manifest.ports("diagnostic", output=True)]
        self._names = [port.name for port in manifest.outputs]
        self._still = {port.name: np.zeros(port.shape, port.dtype) for port in self._noise}
        for name, draw in manifest.fixed_noise.items():
            self._still[name] = np.asarray(draw, self._still[name].dtype)[None]
        self.seed(seed)

    @classmethod
    def load(
        cls, directory: str | Path, expect: Spec | None = None, *, seed: int = 0
    ) -> OnnxPolicy:
        """Open a bundle, and refuse it unless everything agrees with everything.

        Args:
            directory: the bundle.
            expect: the spec of the robot and task it is to drive; None accepts any.
            seed: seed of the noise of `act(..., deterministic=False)`.

        Raises:
            BundleError: a file is missing or damaged, the graph is not the manifest's, their inputs
                or outputs differ, the spec is another one, or two steps from zeros are not finite.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        graph = read_graph(directory, manifest)
        if expect is not None:
            try:
                manifest.spec.require_same(expect, mine="the bundle", theirs="this robot's task")
            except SpecMismatchError as error:
                raise BundleError(error.what, where=directory, todo=error.todo) from error
        try:
            session = _session(graph)
        except Exception as error:  # onnxruntime has no base class of its own errors
            what = " ".join(str(error).split())
            raise BundleError(f"graph cannot be loaded ({what})", where=directory) from error
        _require_ports(directory, "input", session.get_inputs(), manifest.inputs)
        _require_ports(directory, "output", session.get_outputs(), manifest.outputs)
        policy = cls(session, manifest, directory, seed)
        carry = policy.initial_carry()
        zeros = {p.name: np.zeros(p.shape, p.dtype) for p in manifest.ports("observation")}
        for _ in range(2):  # the second step starts from a carry that the graph itself made
            _, carry = policy.act(zeros, carry)
        return policy

    @property
    def version(self) -> str:
        """Name of the bundle's folder, `v000001`."""
        return self.directory.name

    def seed(self, seed: int) -> None:
        """Restart the noise of `act(..., deterministic=False)`; the same seed, the same draws."""
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def initial_carry(self, n: int = 1) -> Carry:
        """The state at the start of an episode, `[n, ...]` by name: zeros."""
        return {p.name: np.zeros((n, *p.shape[1:]), p.dtype) for p in self._carry}

    def act(
        self, obs: Observation, carry: Carry, deterministic: bool = True
    ) -> tuple[Array, Carry]:
        """Choose actions; also fills `last_outputs`.

        Args:
            obs: arrays `[n, ...]` by name; checked against the spec.
            carry: from `initial_carry` or the last call.
            deterministic: False draws the policy's noise anew.

        Returns:
            action `[n, A]` (a chunk: `[n, H, A]`) float32 in [-1, 1], and the new carry.

        Raises:
            SpecMismatchError: the observation does not fit the spec, or is not finite.
            BundleError: the graph gave something that is not finite.
        """
        rows = []
        for i in range(len(next(iter(obs.values())))):
            row = {name: array[i : i + 1] for name, array in obs.items()}
            self.spec.observation.check({name: array[0] for name, array in row.items()})
            for port in self._carry:
                row[port.name] = carry[port.name][i : i + 1]
            rows.append(self._run(row | (self._still if deterministic else self._draw())))
        out = {name: np.concatenate([row[name] for row in rows]) for name in self._names}
        self.last_outputs = {name: out[name] for name in self._diagnostics}
        return out[ACTION], {name: out[after] for name, after in self.manifest.carry.items()}

    def _draw(self) -> dict[str, Array]:
        return {
            port.name: self._generator.standard_normal(port.shape, np.float32)
            for port in self._noise
        }

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        out = dict(zip(self._names, self._session.run(self._names, inputs), strict=True))
        for name, array in out.items():
            if not np.isfinite(array).all():
                raise BundleError(f"output {name!r} is not finite", where=self.directory)
        return out


def _session(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # One core and no thread pool: a pool's wake-ups cost more than they give at this size, and the
    # other cores belong to the control loop and the camera.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _require_ports(
    directory: Path, side: str, found: list[ort.NodeArg], wanted: tuple[Port, ...]
) -> None:
    """Refuse a graph whose inputs or outputs are not the manifest's, in order."""
    there = [(arg.name, tuple(arg.shape), _DTYPES.get(arg.type, arg.type)) for arg in found]
    here = [(port.name, port.shape, port.dtype) for port in wanted]
    if len(there) != len(here):
        raise BundleError(
            f"graph has {len(there)} {side}s, the manifest says {len(here)}",
            where=directory,
            todo=_TODO,
        )
    for graph, manifest in zip(there, here, strict=True):
        if graph != manifest:
            raise BundleError(
                f"graph has {side} {graph}, the manifest says {manifest}",
                where=directory,
                todo=_TODO,
            )
