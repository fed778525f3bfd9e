"""Does a graph do what its network does? Side by side over recorded observations.

Each side carries its own state. Where the network chooses (a class of a latent, one of several
candidates) and the choice hangs on less than rounding, either side is right, and from there on the
two would see different things: such a step is not compared, and the network's state is taken over.

A policy that remembers what it did may also amplify rounding from step to step, until two right
answers differ by more than the tolerance. Such a step is compared once more with the network's own
state on both sides, what is carried on included; from there on the two go together again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from safe_o2o.bundle import ACTION, Manifest
from safe_o2o.errors import BundleError
from safe_o2o.types import Array, Observation

PARITY_STEPS = 200
"""Steps that have to be compared."""
SPARE_STEPS = 4
"""Steps of a pass that may be left out, and as many of which the graph may have come from a state
that had drifted; where there are more of them, something else is wrong."""
TOLERANCE = 1e-5
"""Largest difference of an action entry, in [-1, 1], between network and graph. A module may have a
`parity_tolerance` of its own, with its reason."""
DIAGNOSTIC_TOLERANCE = 1e-3
"""The same for values and risks, relative to max(1, |value|)."""


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch with one thread, for work as small as one decision.

    Beside other processes several threads wait for each other, for twenty times as long as one
    alone takes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass
class Parity:
    """What one pass over the recorded steps came to.

    Attributes:
        worst: largest absolute difference of each output.
        steps: steps that were compared.
        undecided: steps that were not.
        drifted: steps that were compared from the network's state, because the graph's own had come
            too far from it.
    """

    worst: dict[str, float]
    steps: int = 0
    undecided: int = 0
    drifted: int = 0


class Comparison:
    """Network and graph side by side.

    Args:
        module: the network, as `export.onnx.Exportable` says.
        graph: ONNX bytes.
        manifest: of the graph.
        directory: the bundle's folder, for messages.
        tolerance: of actions.
    """

    def __init__(
        self,
        module: nn.Module,
        graph: bytes,
        manifest: Manifest,
        directory: Path,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.module, self.manifest, self.directory = module, manifest, directory
        self.tolerance = tolerance
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.names = [port.name for port in manifest.outputs]

    @one_thread()
    def run(
        self, steps: Sequence[Observation], generators: Sequence[np.random.Generator | None]
    ) -> list[Parity]:
        """Compare some passes over the steps; the network takes them as one batch.

        Args:
            steps: recorded observations, in order.
            generators: source of fresh noise of each pass, the same for both sides; None for the
                deterministic mode.

        Raises:
            BundleError: a difference above the tolerance, an output that is not finite, or too many
                steps on which nothing can be said.
        """
        zeros = {p.name: np.zeros(p.shape, p.dtype) for p in self.manifest.ports("carry")}
        torch_carry, graph_carry = ([zeros] * len(generators) for _ in range(2))
        found = [Parity(dict.fromkeys(self.names, 0.0)) for _ in generators]
        for step, obs in enumerate(steps):
            seen = {name: array[None] for name, array in obs.items()}
            shared = [seen | self._noise(generator) for generator in generators]
            inputs = self._tensors([a | b for a, b in zip(shared, torch_carry, strict=True)])
            ours = self._outputs(inputs)
            theirs = [self._graph(a | b) for a, b in zip(shared, graph_carry, strict=True)]
            before, torch_carry = torch_carry, [self._carried(mine) for mine in ours]
            for i, parity in enumerate(found):
                gaps, beyond = self._differences(step, ours[i], theirs[i])
                if beyond and self._undecided(inputs, i):
                    parity.undecided += 1
                    graph_carry[i] = torch_carry[i]
                    continue
                # What is carried on shows in the actions if it matters.
                if not set(self.manifest.carry.values()).issuperset(beyond):
                    again = self._graph(shared[i] | before[i])
                    gaps, beyond = self._differences(step, ours[i], again)
                    self._require(step, gaps, beyond)
                    parity.drifted += 1
                    theirs[i] = ours[i]
                parity.steps += 1
                parity.worst = {name: max(most, gaps[name]) for name, most in parity.worst.items()}
                graph_carry[i] = self._carried(theirs[i])
        for parity in found:
            if parity.drifted > SPARE_STEPS:
                raise BundleError(
                    f"network and graph drift apart on {parity.drifted} of {len(steps)} recorded "
                    f"steps, may on {SPARE_STEPS}",
                    where=self.directory,
                    todo="nothing was written; export a later checkpoint, or report this policy",
                )
            if parity.steps < PARITY_STEPS or parity.undecided > SPARE_STEPS:
                raise BundleError(
                    f"{parity.undecided} of {len(steps)} recorded steps hang on rounding: needs "
                    f"{PARITY_STEPS} others, and at most {SPARE_STEPS} of them",
                    where=self.directory,
                    todo="nothing was written; give more recorded steps, or train on",
                )
        return found

    def _graph(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self.names, self.session.run(self.names, dict(inputs)), strict=True))

    def _carried(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: outputs[after] for name, after in self.manifest.carry.items()}

    def _noise(self, generator: np.random.Generator | None) -> dict[str, Array]:
        out = {}
        for port in self.manifest.ports("noise"):
            if generator is not None:
                out[port.name] = generator.standard_normal(port.shape, np.float32)
            elif port.name in self.manifest.fixed_noise:
                out[port.name] = np.asarray(self.manifest.fixed_noise[port.name], np.float32)[None]
            else:
                out[port.name] = np.zeros(port.shape, np.float32)
        return out

    def _tensors(self, passes: Sequence[Mapping[str, Array]]) -> list[Tensor]:
        """The network's inputs. Copies: arrays of an episode are read-only views of its file."""
        return [
            torch.from_numpy(np.concatenate([named[port.name] for named in passes]))
            for port in self.manifest.inputs
        ]

    def _outputs(self, inputs: Sequence[Tensor]) -> list[dict[str, Array]]:
        """The network's outputs, for each pass."""
        with torch.inference_mode():
            out = [tensor.numpy() for tensor in self.module(*inputs)]
        return [
            {name: array[i : i + 1] for name, array in zip(self.names, out, strict=True)}
            for i in range(len(inputs[0]))
        ]

    def _undecided(self, inputs: Sequence[Tensor], i: int) -> bool:
        """Whether a choice of the network hangs on less than rounding, in pass i."""
        ask = getattr(self.module, "undecided", None)
        if ask is None:
            return False
        with torch.inference_mode():
            return bool(ask(*inputs)[i])

    def _differences(
        self, step: int, ours: Mapping[str, Array], theirs: Mapping[str, Array]
    ) -> tuple[dict[str, float], list[str]]:
        """Largest absolute difference of each output, and which of them are beyond tolerance."""
        gaps, beyond = {}, []
        for name in self.names:
            a, b = ours[name].astype(np.float64), theirs[name].astype(np.float64)
            for side, array in (("network", a), ("graph", b)):
                if not np.isfinite(array).all():
                    raise BundleError(
                        f"output {name!r} of the {side} is not finite at recorded step {step}",
                        where=self.directory,
                        todo="train again; nothing was written",
                    )
            gap = np.abs(a - b)
            relative = DIAGNOSTIC_TOLERANCE * np.maximum(1, np.abs(a))
            if not (gap <= (self.tolerance if name == ACTION else relative)).all():
                beyond.append(name)
            gaps[name] = float(gap.max(initial=0.0))
        return gaps, beyond

    def _require(self, step: int, gaps: Mapping[str, float], beyond: Sequence[str]) -> None:
        """Refuse what is beyond tolerance."""
        if beyond:
            name = beyond[0]
            raise BundleError(
                f"network and graph differ by {gaps[name]:.1e} in {name!r} at recorded step {step}",
                where=self.directory,
                todo="nothing was written; export a later checkpoint, or report this policy",
            )
