"""A decision with plain tensors in and out as a `Policy`: the side of torch of what is exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from safe_o2o.spaces import Spec


def example_inputs(module: nn.Module, spec: Spec) -> tuple[Tensor, ...]:
    """One valid input of every name of a decision, batch size 1; see `export.onnx.Exportable`."""
    dtype = {"uint8": torch.uint8, "float32": torch.float32}
    obs = [
        torch.zeros(1, *array.shape, dtype=dtype[array.dtype])
        for array in spec.observation.arrays.values()
    ]
    carry = [torch.zeros(1, size) for size in module.carry_sizes.values()]
    noise = [torch.zeros(1, *shape) for shape in module.noise_inputs.values()]
    return (*obs, *carry, *noise)


class ModulePolicy(nn.Module):
    """The `Policy` of a decision module; see `safe_o2o.interfaces.Policy`.

    Args:
        module: the decision, with the attributes of `export.onnx.Exportable` and `carry_sizes`,
            size of each carried vector by name.
        spec: observation and action spec.
        seed: of the noise.
    """

    def __init__(self, module: nn.Module, spec: Spec, seed: int = 0) -> None:
        super().__init__()
        self.module: Any = module
        self.spec = spec
        self.last_output: dict[str, Tensor] = {}
        # Drawn as the exported bundle draws it: both choose among the same candidates.
        generator = np.random.Generator(np.random.PCG64(seed))
        still = {
            name: generator.standard_normal(shape, np.float32)
            if self.module.deterministic_noise[name] == "fixed"
            else np.zeros(shape, np.float32)
            for name, shape in self.module.noise_inputs.items()
        }
        self._still = {name: torch.from_numpy(draw).unsqueeze(0) for name, draw in still.items()}
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Seed the noise of `act(..., deterministic=False)`."""
        self._generator = torch.Generator().manual_seed(seed + 1)

    def export_module(self) -> Any:
        """The same decision with plain tensors in and out."""
        return self.module

    def initial_carry(self, n: int = 1) -> dict[str, Tensor]:
        """Zeros: what remembers resets itself when `started` is 0."""
        return {name: torch.zeros(n, size) for name, size in self.module.carry_sizes.items()}

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], carry: dict[str, Tensor], deterministic: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose actions `[n, A]` for observations `[n, ...]`."""
        arrays = [_tensor(obs[name]) for name in self.spec.observation.arrays]
        n = arrays[0].shape[0]
        noise = [
            still.expand(n, *still.shape[1:])
            if deterministic
            else torch.randn(n, *still.shape[1:], generator=self._generator)
            for still in self._still.values()
        ]
        device = next(self.module.parameters()).device
        inputs = [x.to(device) for x in (*arrays, *carry.values(), *noise)]
        out = dict(zip(self.module.output_names, self.module(*inputs), strict=True))
        names = self.module.carry_names
        self.last_output = {k: v for k, v in out.items() if k not in names.values()}
        return out["action"], {name: out[after] for name, after in names.items()}


def _tensor(array: Any) -> Tensor:
    """A tensor of its own: frames from a file are read-only, which PyTorch cannot share."""
    return array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
