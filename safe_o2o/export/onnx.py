"""Torch policy to policy bundle: one ONNX graph, its manifest, and the proof that they agree.

The graph gets the recorded observations that the network gets, both carrying their own state; a
bundle whose actions differ is not written.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from safe_o2o.bundle import ACTION, GRAPH, MANIFEST, Manifest, Port, Role
from safe_o2o.data.episode import Episode
from safe_o2o.errors import BundleError
from safe_o2o.export.graph import Graphs
from safe_o2o.export.parity import PARITY_STEPS, SPARE_STEPS, TOLERANCE, Comparison, Parity
from safe_o2o.files import atomic_directory, write_atomic
from safe_o2o.spaces import Spec
from safe_o2o.types import Observation

_PACKAGES = ("safe_o2o", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


class Exportable(Protocol):
    """A policy that can be exported.

    `export_module()` returns a `torch.nn.Module` whose forward takes tensors (the arrays of the
    observation, the carry, the noise; batch axis first, of any size) and returns a tuple (the
    action, the new carry, diagnostics), with the attributes

        input_names, output_names: list[str], in that order; the action is called `action`
        carry_names: dict, output by the input that it becomes; zeros start an episode
        noise_inputs: dict, shape without the batch axis by name; standard normal
        deterministic_noise: dict, `fixed` (one draw for all steps) or `zero` by name
        example_inputs() -> tuple[Tensor, ...], of batch size 1

    and, where it chooses among things (a class of a latent, a candidate), the method

        undecided(*inputs) -> Tensor `[N]` bool: whether some choice hangs on less than rounding

    and, where rounding is amplified by what it does, `parity_tolerance`: float.
    """

    def export_module(self) -> nn.Module:
        """The decision with plain tensors in and out."""
        ...


@dataclass(frozen=True)
class BundleReport:
    """What an export came to.

    Attributes:
        directory: the bundle.
        graph_sha256: of its graph.
        parity: largest absolute difference of an action entry between network and graph.
        parity_deterministic: the same over the deterministic pass.
        parity_sampled: the same over the pass with fresh noise.
        steps: recorded steps compared in each pass.
        undecided: steps left out, of both passes: a choice hung on less than rounding there.
        drifted: steps compared from the network's own state, because rounding had added up.
        differences: largest difference of every output over both passes.
        graph_bytes: size of the graph.
    """

    directory: Path
    graph_sha256: str
    parity: float
    parity_deterministic: float
    parity_sampled: float
    steps: int
    undecided: int
    drifted: int
    differences: Mapping[str, float]
    graph_bytes: int


def recorded_steps(
    episodes: Iterable[Episode], count: int = PARITY_STEPS + SPARE_STEPS
) -> list[Observation]:
    """The first `count` observations of episodes, in order; fewer when there are no more."""
    found: list[Observation] = []
    for episode in episodes:
        obs = episode.obs
        for t in range(min(len(episode) + 1, count - len(found))):
            found.append({name: array[t] for name, array in obs.items()})
        if len(found) == count:
            break
    return found


def exported(policy: Exportable) -> nn.Module:
    """A policy's decision, ready to be traced.

    A copy: the learner's own networks stay in training mode and on their device.
    """
    return copy.deepcopy(policy.export_module()).cpu().eval().requires_grad_(False)


def export_bundle(
    policy: Exportable,
    spec: Spec,
    directory: str | Path,
    *,
    algorithm: str,
    parity_steps: Sequence[Observation],
    statistics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    noise_seed: int = 0,
    graphs: Graphs | None = None,
) -> BundleReport:
    """Write a bundle, or refuse to.

    Args:
        policy: what to export.
        spec: its observation and action spec.
        directory: the bundle's folder; must not exist.
        algorithm: catalogue name of what trained it.
        parity_steps: at least `PARITY_STEPS` recorded observations, in order; the carry goes
            through all of them.
        statistics: mean and spread of the training data, JSON-ready.
        provenance: dataset hash, checkpoint step, seed, JSON-ready.
        noise_seed: seed of the draw behind noise inputs that are fixed in deterministic mode.
        graphs: graphs of earlier exports of policies like this one, to save the tracing.

    Raises:
        BundleError: too few steps, an output that is not finite, a difference above the tolerance,
            or a graph that cannot be exported; nothing is written.
        SpecMismatchError: a recorded observation does not fit the spec.
        StorageError: the folder exists, or the disk refused.
    """
    directory = Path(directory)
    if len(parity_steps) < PARITY_STEPS:
        raise BundleError(
            f"needs {PARITY_STEPS} recorded steps to compare with, got {len(parity_steps)}",
            where=directory,
            todo="collect more episodes",
        )
    for obs in parity_steps:
        spec.observation.check(obs)
    module = exported(policy)
    graphs = graphs or Graphs()
    tolerance = float(getattr(module, "parity_tolerance", TOLERANCE))

    def compared(graph: bytes) -> tuple[bytes, Manifest, Parity, Parity]:
        manifest = _manifest(module, spec, algorithm, graph, statistics, provenance, noise_seed)
        comparison = Comparison(module, graph, manifest, directory, tolerance)
        draw = np.random.Generator(np.random.PCG64(noise_seed + 1))
        fixed, sampled = comparison.run(parity_steps, [None, draw])
        return graph, manifest, fixed, sampled

    filled = graphs.fill(module)
    try:
        found = compared(filled if filled is not None else graphs.trace(module, directory))
    except BundleError:
        if filled is None:
            raise
        found = compared(graphs.trace(module, directory))
    graph, manifest, fixed, sampled = found
    report = BundleReport(
        directory=directory,
        graph_sha256=manifest.graph_sha256,
        parity=max(fixed.worst[ACTION], sampled.worst[ACTION]),
        parity_deterministic=fixed.worst[ACTION],
        parity_sampled=sampled.worst[ACTION],
        steps=min(fixed.steps, sampled.steps),
        undecided=fixed.undecided + sampled.undecided,
        drifted=fixed.drifted + sampled.drifted,
        differences={name: max(fixed.worst[name], sampled.worst[name]) for name in fixed.worst},
        graph_bytes=len(graph),
    )
    parity = {
        "max_abs_action_difference": report.parity,
        "deterministic": report.parity_deterministic,
        "sampled": report.parity_sampled,
        "steps": report.steps,
        "undecided": report.undecided,
        "drifted": report.drifted,
        "tolerance": tolerance,
        "outputs": dict(report.differences),
    }
    text = json.dumps(manifest.to_json() | {"parity": parity}, indent=2, allow_nan=False) + "\n"
    Manifest.from_json(json.loads(text))  # what is written can be read
    with atomic_directory(directory) as folder:
        write_atomic(folder / GRAPH, graph)
        write_atomic(folder / MANIFEST, text.encode())
    return report


def _manifest(
    module: nn.Module,
    spec: Spec,
    algorithm: str,
    graph: bytes,
    statistics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    noise_seed: int,
) -> Manifest:
    example = module.example_inputs()
    with torch.inference_mode():
        result = module(*example)
    carry, noise = dict(module.carry_names), dict(module.deterministic_noise)
    roles: dict[str, Role] = {name: "carry" for name in carry}
    roles |= {name: "noise" for name in module.noise_inputs}
    after: dict[str, Role] = {name: "carry" for name in carry.values()}
    generator = np.random.Generator(np.random.PCG64(noise_seed))
    fixed = {
        name: generator.standard_normal(tuple(shape), np.float32).tolist()
        for name, shape in module.noise_inputs.items()
        if noise.get(name) == "fixed"
    }
    manifest = Manifest(
        algorithm=algorithm,
        spec=spec,
        inputs=tuple(
            _port(name, tensor, roles.get(name, "observation"))
            for name, tensor in zip(module.input_names, example, strict=True)
        ),
        outputs=tuple(
            _port(name, tensor, "action" if name == ACTION else after.get(name, "diagnostic"))
            for name, tensor in zip(module.output_names, result, strict=True)
        ),
        carry=carry,
        noise=noise,
        fixed_noise_seed=noise_seed,
        fixed_noise=fixed,
        graph_sha256=hashlib.sha256(graph).hexdigest(),
        parity={},
        statistics=statistics,
        provenance=provenance,
        versions={name: importlib.metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
    )
    manifest.check()
    return manifest


def _port(name: str, tensor: Tensor, role: Role) -> Port:
    return Port(name, tuple(tensor.shape), str(tensor.numpy().dtype), role)
