"""A policy that needs no training: finds the red goal in the picture and flies there. For tests.

It solves SafeReach only if picture, pose and commands belong together, which is what the deployment
tests want to know. Where the arm hides the goal it goes by memory, so its carry matters as well.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from safe_o2o import bundle, catalog
from safe_o2o.export.onnx import export_bundle
from safe_o2o.spaces import Spec

# Middle of the red pixels (u, v in [-1, 1]) to the goal's x, y on the table: least squares of
# [1, u, v, u v, v v] over 150 layouts, at most 9 mm off.
TABLE = (
    (0.50734, 0.0),
    (0.0, 0.28141),
    (0.33844, 0.0),
    (-0.00050, -0.05484),
    (-0.06367, -0.00176),
)
CRUISE, ARRIVE = 0.20, 0.08
"""Height of the flight, and of the tool at the goal, m."""


class Standin(nn.Module):
    """The graph. `told` repeats what it was told that its last action became."""

    def __init__(self) -> None:
        super().__init__()
        self.input_names = ["image", "tcp_pose", "memory", "previous_action"]
        self.output_names = ["action", "memory_after", "action_after", "risk", "told"]
        self.carry_names = {"memory": "memory_after", "previous_action": "action_after"}
        self.noise_inputs: dict[str, tuple[int, ...]] = {}
        self.deterministic_noise: dict[str, str] = {}
        self.register_buffer("table", torch.tensor(TABLE))
        axis = torch.arange(64) / 32.0 - 1.0
        self.register_buffer("u", axis.view(1, 1, 64))
        self.register_buffer("v", axis.view(1, 64, 1))

    def example_inputs(self) -> tuple[Tensor, ...]:
        return (
            torch.zeros(1, 64, 64, 3, dtype=torch.uint8),
            torch.zeros(1, 5),
            torch.zeros(1, 3),
            torch.zeros(1, 3),
        )

    def forward(
        self, image: Tensor, pose: Tensor, memory: Tensor, previous: Tensor
    ) -> tuple[Tensor, ...]:
        red, green, blue = image.float().unbind(-1)
        mask = ((red > 90) & (red > 2 * green) & (red > 2 * blue)).float()  # [1, 64, 64]
        count = mask.sum((1, 2))
        u = (mask * self.u).sum((1, 2)) / count.clamp(min=1.0)
        v = (mask * self.v).sum((1, 2)) / count.clamp(min=1.0)
        features = torch.stack([torch.ones_like(u), u, v, u * v, v * v], 1)
        seen = torch.cat([features @ self.table, torch.ones_like(u).unsqueeze(1)], 1)
        # A goal half hidden by the arm would look as if it had moved.
        clear = ((count > 40) | ((memory[:, 2] == 0) & (count > 4))).float().unsqueeze(1)
        memory = clear * seen + (1.0 - clear) * memory
        gap = memory[:, :2] - pose[:, :2]
        near = (gap.abs().amax(1, keepdim=True) < 0.03).float()
        height = near * ARRIVE + (1.0 - near) * CRUISE
        known = memory[:, 2:]
        delta = torch.cat([gap * known, height - pose[:, 2:3]], 1)
        risk = (pose[:, 2:3] < 0.05).float()
        action = (delta / 0.02).clamp(-1.0, 1.0)
        return action, memory, 1.0 * action, risk, 1.0 * previous


class StandinPolicy:
    """What `export_bundle` wants."""

    def export_module(self) -> nn.Module:
        return Standin()


@functools.lru_cache
def standin_bundles() -> Path:
    """A folder with one promoted stand-in for SafeReach; copy it before changing it."""
    folder = Path(tempfile.mkdtemp(prefix="safe_o2o_standin_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_standin(folder, catalog.load("task", "safe_reach").config_class().spec())
    return folder


def write_standin(bundles: Path, spec: Spec, *, promote: bool = True) -> Path:
    """Export the stand-in as the next version of a folder of bundles."""
    rng = np.random.default_rng(0)
    steps = [
        {
            "image": rng.integers(0, 256, (64, 64, 3), np.uint8),
            "tcp_pose": rng.uniform(-0.5, 0.5, 5).astype(np.float32),
        }
        for _ in range(200)
    ]
    path = bundle.next_version(bundles)
    export_bundle(
        StandinPolicy(),
        spec,
        path,
        algorithm="fosp",
        parity_steps=steps,
        statistics={},
        provenance={"standin": True},
    )
    if promote:
        bundle.set_current(bundles, path.name)
    return path
