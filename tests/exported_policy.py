"""A small recurrent camera policy that keeps the export contract, and bundles made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from safe_o2o.export.onnx import BundleReport, export_bundle
from safe_o2o.types import Observation
from tests.synthetic import SPEC, STATISTICS


class SmallModule(nn.Module):
    """Best of 4 candidates around a GRU's mean; also a second noise that is zero by default."""

    def __init__(self, seed: int = 0, hidden: int = 16) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 8, 8, 8)
            self.cell = nn.GRUCell(8 * 8 * 8 + 5, hidden)
            self.mean = nn.Linear(hidden, 3)
            self.critic = nn.Linear(hidden + 3, 3)
            self.drop = nn.Dropout(0.5)  # shows whether the export is in evaluation mode
        self.input_names = ["image", "tcp_pose", "state", "count", "candidate_noise", "jitter"]
        self.output_names = ["action", "next_state", "next_count", "q_reward", "q_cost", "risk"]
        self.carry_names = {"state": "next_state", "count": "next_count"}
        self.noise_inputs = {"candidate_noise": (4, 3), "jitter": (3,)}
        self.deterministic_noise = {"candidate_noise": "fixed", "jitter": "zero"}

    def example_inputs(self) -> tuple[Tensor, ...]:
        return (
            torch.zeros(1, 64, 64, 3, dtype=torch.uint8),
            torch.zeros(1, 5),
            torch.zeros(1, self.cell.hidden_size),
            torch.zeros(1, 1),
            torch.zeros(1, 4, 3),
            torch.zeros(1, 3),
        )

    def forward(
        self, image: Tensor, pose: Tensor, state: Tensor, count: Tensor, noise: Tensor, jit: Tensor
    ) -> tuple[Tensor, ...]:
        x = torch.relu(self.conv(image.permute(0, 3, 1, 2).float() / 255.0 - 0.5)).flatten(1)
        state = self.cell(self.drop(torch.cat([x, pose], -1)), state)
        mean = torch.tanh(self.mean(state)).unsqueeze(1)
        options = torch.cat([mean, mean + 0.3 * noise], 1).clamp(-1.0, 1.0)
        wide = state.unsqueeze(1).expand(-1, options.shape[1], -1)
        q = self.critic(torch.cat([wide, options], -1))
        best = q[..., :1].argmax(1, keepdim=True)
        chosen = torch.gather(options, 1, best.expand(-1, -1, 3))[:, 0]
        q = torch.gather(q, 1, best.expand(-1, -1, 3))[:, 0]
        action = (chosen + 0.05 * jit).clamp(-1.0, 1.0)
        return action, state, count + 1.0, q[:, :1], q[:, 1:2], torch.sigmoid(q[:, 2:])


class SmallPolicy:
    def __init__(self, seed: int = 0, **changes: Any) -> None:
        self.module = SmallModule(seed)
        for name, value in changes.items():
            setattr(self.module, name, value)

    def export_module(self) -> nn.Module:
        return self.module


def observations(count: int, seed: int = 0) -> list[Observation]:
    """A stream as a camera gives it: what changes from step to step is small."""
    g = np.random.default_rng(seed)
    image, pose = g.integers(0, 256, (64, 64, 3)), g.uniform(-0.5, 0.5, 5)
    found: list[Observation] = []
    for _ in range(count):
        image = np.clip(image + g.integers(-20, 21, image.shape), 0, 255)
        pose = pose + g.normal(0, 0.02, 5)
        found.append({"image": image.astype(np.uint8), "tcp_pose": pose.astype(np.float32)})
    return found


def small_bundle(directory: Path, policy: Any = None, **changes: Any) -> BundleReport:
    values: dict[str, Any] = {
        "algorithm": "small",
        "parity_steps": observations(200),
        "statistics": STATISTICS,
        "provenance": {"dataset": "ab12", "step": 100, "seed": 0},
        "noise_seed": 5,
    }
    return export_bundle(policy or SmallPolicy(), SPEC, directory, **(values | changes))
