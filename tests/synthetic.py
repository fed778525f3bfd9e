"""Small made-up specs and batches for tests that need no simulator."""

from __future__ import annotations

from typing import Any

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
STATISTICS = {
    "tcp_pose": {"mean": [0.5, 0.0, 0.2, 0.0, 1.0], "std": [0.1, 0.1, 0.1, 0.0, 0.0]},
    **{
        name: {"mean": [0.1] * size, "std": [0.8] * size}
        for name, size in (("deter", 12), ("stoch", 8), ("embed", 6))
    },
    "reward": {"mean": [0.5], "std": [0.3]},
    "return": {"low": [1.0], "high": [5.0]},
}


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


STATE_SPEC = Spec(
    ObservationSpec(
        {
            name: ArraySpec((size,), "float32", "1")
            for name, size in (("deter", 12), ("stoch", 8), ("embed", 6))
        }
    ),
    SPEC.action,
)
"""What a world model makes of an observation, for those who learn on its states."""


def transition_batch(seed: int, batch: int = 16) -> Batch:
    """Random transitions of states, some into a violation, some at the end of the task."""
    g = torch.Generator().manual_seed(seed)

    def state() -> dict[str, torch.Tensor]:
        arrays = STATE_SPEC.observation.arrays.items()
        return {name: torch.randn(batch, *a.shape, generator=g).tanh() for name, a in arrays}

    number = torch.randint(0, 9, (batch,), generator=g)
    flag = torch.zeros(batch, dtype=torch.bool)
    more = torch.Generator().manual_seed(seed + 10_000)
    terminated = torch.rand(batch, generator=g) > 0.9
    truncated = ~terminated & (torch.rand(batch, generator=g) > 0.9)
    return Batch(
        obs=state(),
        action=torch.rand(batch, 3, generator=g) * 2 - 1,
        reward=torch.rand(batch, generator=g),
        cost=(torch.rand(batch, generator=g) > 0.7).float(),
        terminated=terminated,
        truncated=truncated,
        is_first=flag,
        mask=~flag,
        action_mask=~flag,
        next_obs=state(),
        next_action=torch.rand(batch, 3, generator=g) * 2 - 1,
        next_action_mask=~(terminated | truncated),
        verdict=(torch.rand(batch, generator=more) > 0.8).to(torch.uint8),
        force=5.0 * torch.rand(batch, generator=more),
        index=Index(
            episode=number, step=number, record=number, origin=torch.zeros(batch, dtype=torch.int64)
        ),
    )


def spec_of(algorithm: type) -> Spec:
    """What an algorithm of the catalogue is fed: pictures, or a world model's states."""
    return STATE_SPEC if algorithm.wants == "transitions" else SPEC  # type: ignore[attr-defined]


def batch_of(algorithm: object, seed: int) -> Batch:
    """A batch of what it wants."""
    if algorithm.wants == "transitions":  # type: ignore[attr-defined]
        return transition_batch(seed)
    return sequence_batch(seed)


def observations_of(algorithm: object, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Single observations of its spec, as recorded ones are."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        batch = batch_of(algorithm, seed := seed + 1)
        flat = {
            name: x if batch.next_obs is not None else x.flatten(0, 1)
            for name, x in batch.obs.items()
        }
        rows = len(next(iter(flat.values())))
        found += [{name: x[i].numpy() for name, x in flat.items()} for i in range(rows)]
    return found[:count]
