"""Small made-up specs and batches for tests that need no simulator."""

from __future__ import annotations

import torch

from safe_o2o.data.batch import Batch, Index
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec

SPEC = Spec(
    ObservationSpec(
        {
            "image": ArraySpec((64, 64, 3), "uint8", "intensity", (), 0.0, 255.0),
            "tcp_pose": ArraySpec((5,), "float32", "m", ("x", "y", "z", "sin_yaw", "cos_yaw")),
        }
    ),
    ActionSpec(("dx", "dy", "dz"), "m", (-0.02,) * 3, (0.02,) * 3, 0.2),
)
STATISTICS = {"tcp_pose": {"mean": [0.5, 0.0, 0.2, 0.0, 1.0], "std": [0.1, 0.1, 0.1, 0.0, 0.0]}}


def sequence_batch(seed: int, batch: int = 4, steps: int = 6, origin: int = 0) -> Batch:
    """Random windows; the last one ends early (padding) and terminates."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, steps, dtype=torch.bool)
    mask[-1, steps - 2 :] = False
    is_first = torch.zeros(batch, steps, dtype=torch.bool)
    is_first[:, 0] = True
    terminated = torch.zeros_like(mask)
    terminated[-1, steps - 3] = True
    action_mask = mask & ~terminated
    number = torch.arange(batch).unsqueeze(1).expand(batch, steps)
    step = torch.arange(steps).expand(batch, steps)
    return Batch(
        obs={
            "image": torch.randint(0, 256, (batch, steps, 64, 64, 3), generator=g).to(torch.uint8),
            "tcp_pose": torch.rand(batch, steps, 5, generator=g),
        },
        action=(torch.rand(batch, steps, 3, generator=g) * 2 - 1) * action_mask.unsqueeze(-1),
        reward=terminated.float(),
        cost=(torch.rand(batch, steps, generator=g) > 0.8).float() * mask,
        terminated=terminated,
        truncated=torch.zeros_like(mask),
        is_first=is_first,
        mask=mask,
        action_mask=action_mask,
        index=Index(
            episode=number,
            step=step,
            record=number * steps + step,
            origin=torch.full((batch,), origin, dtype=torch.int64),
        ),
    )
