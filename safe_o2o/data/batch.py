"""What a learner eats: one typed container of tensors, windows of records or single transitions.

Record alignment of windows: record t holds the observation o_t, the reward r_t and cost c_t that
the action a_{t-1} *caused* (they belong to the arrival at o_t), the flags on arrival, and the
action a_t chosen at o_t. An episode of T transitions therefore gives T + 1 records; the last one
chose no action: its `action` is zero and its `action_mask` False. A critic's transition is
(o_t, a_t, r_{t+1}, c_{t+1}, terminated_{t+1}, o_{t+1}).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Index:
    """Where each record of a batch came from, to gather a learner's own per-record arrays.

    Attributes:
        episode: the replay's episode number `[B, T]` (transitions: `[B]`), int64.
        step: record number within the episode, same shape, int64.
        record: row in the replay's record arrays, `replay.record_offset[episode] + step`, same
            shape, int64.
        origin: which replay of a mixture the row came from `[B]`, int64; 0 outside a mixture.

    Padding points at the last real record of its row, so that a gather never fails.
    """

    episode: Tensor
    step: Tensor
    record: Tensor
    origin: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Index:
        """Apply a function to every tensor."""
        return Index(**{field.name: function(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B windows of T records (`[B, T, ...]`), or B transitions (`[B, ...]`, `next_obs` filled).

    Attributes:
        obs: observation arrays by name `[B, T, *shape]`; images stay uint8.
        action: executed action in [-1, 1] `[B, T, A]` float32; zero where `action_mask` is False.
        reward: reward on arrival at this record `[B, T]` float32; 0 at an episode's first record.
            For transitions: caused by `action`, as are `cost` and the flags.
        cost: cost on arrival `[B, T]` float32, >= 0.
        terminated: the task ended on arrival `[B, T]` bool; values do not bootstrap past it.
        truncated: the episode was cut off on arrival `[B, T]` bool; values do bootstrap.
        is_first: first record of an episode `[B, T]` bool. A window that starts later starts with
            an initial carry all the same; this flag says only what the data says.
        mask: True for real records, False for padding `[B, T]` bool.
        action_mask: True where an action was chosen `[B, T]` bool: real and not the last record
            of an episode.
        next_obs: observation after the action, transitions only; None for windows.
        next_action: action chosen there `[B, A]`, transitions only; zero where none was.
        next_action_mask: whether one was `[B]` bool, transitions only: not where the episode ends.
        proposed_action: what the policy asked for `[B, T, A]` float32, aligned with `action`.
        verdict: the filter's strictest verdict on the action `[B, T]` uint8, aligned with `action`.
        source: who proposed the action `[B, T]` uint8, aligned with `action`.
        force: largest contact force during the action, N, `[B, T]` float32, aligned with `action`;
            NaN where nobody measured it.
        clearance: distance to what must not be touched after the action, m, `[B, T]` float32,
            aligned with `action`; NaN where nobody knows it.
        gate: what the reachability gate made of the action `[B, T]` uint8 (`GateState`), aligned
            with `action`; 255 where there was none.
        index: where each record came from; None for a batch that no replay made.
        actor_mask: records whose action a policy may imitate `[B, T]` bool; None allows every one
            of `action_mask`.
        reach_mask: records that reachability learns from `[B, T]` bool; None allows all of `mask`.
    """

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    cost: Tensor
    terminated: Tensor
    truncated: Tensor
    is_first: Tensor
    mask: Tensor
    action_mask: Tensor
    next_obs: dict[str, Tensor] | None = None
    next_action: Tensor | None = None
    next_action_mask: Tensor | None = None
    proposed_action: Tensor | None = None
    verdict: Tensor | None = None
    source: Tensor | None = None
    force: Tensor | None = None
    clearance: Tensor | None = None
    gate: Tensor | None = None
    index: Index | None = None
    actor_mask: Tensor | None = None
    reach_mask: Tensor | None = None

    def __len__(self) -> int:
        """Number of rows B."""
        return int(self.reward.shape[0])

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply a function to every tensor, index included."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                changed[field.name] = {name: function(tensor) for name, tensor in value.items()}
            elif isinstance(value, Index):
                changed[field.name] = value.map(function)
            elif isinstance(value, Tensor):
                changed[field.name] = function(value)
        return replace(self, **changed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move every tensor to a device; `non_blocking` overlaps the copy of a pinned batch."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Copy every tensor to page-locked memory, from where a GPU copies asynchronously."""
        return self.map(lambda tensor: tensor.pin_memory())
