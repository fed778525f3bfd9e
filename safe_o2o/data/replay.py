"""Random batches from datasets: windows of records, or single transitions.

Draws come from one NumPy generator whose state is part of `state_dict`, together with the list of
admitted episodes, so that a resumed run draws bit for bit what the uninterrupted one would have.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from safe_o2o.data.batch import Batch, Index
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import MEASURED
from safe_o2o.data.records import RecordStore
from safe_o2o.errors import ConfigError, DataError
from safe_o2o.spaces import Spec
from safe_o2o.types import Array

_COLUMNS = (
    "action",
    "proposed_action",
    "reward",
    "cost",
    "terminated",
    "truncated",
    "is_first",
    "action_mask",
    "verdict",
    "source",
    *MEASURED,
    "gate",
)


class Replay(ABC):
    """What the replays share: admission, draws, state. See the subclasses for what they sample.

    Args:
        datasets: one or more datasets of one spec; they may be empty and grow, see `refresh`.
        batch_size: rows B of a batch.
        seed: seed of the draws.
        cost_fraction: share of the rows that is drawn from those with a cost in them (0 turns this
            off); uniform while there is none.

    Raises:
        ConfigError: a number is out of range.
        SpecMismatchError: two datasets differ in spec.
        DataError: an episode is damaged.
    """

    wants: ClassVar[Literal["transitions", "sequences"]]

    def __init__(
        self,
        datasets: Dataset | Sequence[Dataset],
        *,
        batch_size: int,
        seed: int,
        cost_fraction: float = 0.0,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"must be at least 1, got {batch_size}", where="batch_size")
        if not 0.0 <= cost_fraction <= 1.0:
            raise ConfigError(f"must lie in [0, 1], got {cost_fraction}", where="cost_fraction")
        self.batch_size = batch_size
        self.cost_fraction = cost_fraction
        self._generator = np.random.default_rng(seed)
        self._store = RecordStore([datasets] if isinstance(datasets, Dataset) else datasets)
        self._rebuild()

    @property
    def spec(self) -> Spec:
        """Observation and action spec of every batch."""
        return self._store.spec

    @property
    def episode_count(self) -> int:
        """Number of episodes that `Index.episode` counts; one with drops counts once a stretch."""
        return len(self._store.sequences)

    @property
    def record_count(self) -> int:
        """Number of records R of all episodes: the length of a learner's own per-record array."""
        return len(self._store)

    @property
    def record_offset(self) -> Array:
        """Row of each episode's first record `[E]`: `record = record_offset[episode] + step`."""
        return self._store.offset

    @property
    def is_empty(self) -> bool:
        """True while there is nothing to draw."""
        return self._total == 0

    def episode_arrays(self, name: str) -> list[Array]:
        """One record array of every episode `[N]` or `[N, A]`, N = T + 1, as views in memory.

        Names: action, proposed_action, reward, cost, margin, terminated, truncated, is_first,
        action_mask, verdict, source, force, clearance, gate, obs.<vector>; in record alignment (see
        `batch`).
        The rows of episode e are `record_offset[e]` and following, so that a concatenation of what
        a learner computes from them is indexed by `Index.record`.

        Raises:
            DataError: no such array.
        """
        return self._store.rows(name)

    def refresh(self) -> int:
        """Admit episodes committed meanwhile; numbers of known episodes stay. Returns how many."""
        added = self._store.refresh()
        if added:
            self._rebuild()
        return added

    def sample(self, batch_size: int | None = None, rows: slice | None = None) -> Batch:
        """Draw a batch.

        Args:
            batch_size: rows, where another number than the usual is wanted.
            rows: those of the batch to read, for one of several processes that share it; all of
                them draw the same, so that their generators stay alike. None reads all.

        Raises:
            DataError: there is no episode yet, or a file changed since it was opened.
        """
        size = self.batch_size if batch_size is None else batch_size
        rows = slice(0, size) if rows is None else rows
        batch = self.allocate(rows.stop - rows.start)
        self.fill(batch, 0, size, rows=rows)
        return batch

    @abstractmethod
    def allocate(self, batch_size: int) -> Batch:
        """A batch of the right shapes whose rows `fill` has yet to write."""

    @abstractmethod
    def fill(
        self, batch: Batch, first: int, count: int, origin: int = 0, rows: slice | None = None
    ) -> None:
        """Draw `count` rows and write them, or `rows` of them, to `batch` from row `first` on."""

    @abstractmethod
    def _count_draws(self) -> tuple[Array, Array]:
        """Number of draws of each sequence `[E]`, and the flat numbers of draws with a cost."""

    def _rebuild(self) -> None:
        draws, self._cost_draws = self._count_draws()
        self._draw_offset = np.cumsum(draws) - draws
        self._total = int(draws.sum())

    def _draw(self, count: int, rows: slice | None = None) -> tuple[Array, Array]:
        """Sequence and position within its draws, `[count]` each, or `rows` of them."""
        if self._total == 0:
            raise DataError(
                "no episode to draw from yet",
                where=self._store.datasets[0].directory,
                todo="collect some episodes first",
            )
        costly = round(count * self.cost_fraction) if len(self._cost_draws) else 0
        flat = self._generator.integers(0, self._total, count)
        if costly:
            picks = self._generator.integers(0, len(self._cost_draws), costly)
            flat[:costly] = self._cost_draws[picks]
        flat = flat if rows is None else flat[rows]
        sequence = np.searchsorted(self._draw_offset, flat, side="right") - 1
        return sequence, flat - self._draw_offset[sequence]

    def state_dict(self) -> dict[str, Any]:
        """Generator state and admitted episodes, JSON-ready."""
        return {"generator": self._generator.bit_generator.state, "store": self._store.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; episodes committed since then wait for `refresh`.

        Raises:
            DataError: an admitted episode is gone or has another content.
        """
        self._store.load_state_dict(state["store"])
        self._generator.bit_generator.state = dict(state["generator"])
        self._rebuild()


@dataclass(frozen=True, slots=True)
class _Windows:
    """Where windows of L records start, drawn so that an episode's ends are reached."""

    length: int

    @property
    def edge(self) -> int:
        """Draws that fall on the first window, and on the last."""
        return (self.length + 1) // 2

    def count(self, records: Array) -> Array:
        """Draws of sequences of `records` records."""
        return np.asarray(np.maximum(records - self.length, 0) + 2 * self.edge - 1)

    def start(self, draw: Array, records: Array) -> Array:
        """First record of the window behind each draw."""
        last = np.maximum(records - self.length, 0)
        return np.asarray(np.clip(draw - (self.edge - 1), 0, last))


class SequenceReplay(Replay):
    """Windows `[B, T]` of consecutive records of one episode; shorter episodes are padded.

    With uniform starts the last record of an episode would lie in one window only, while an inner
    one lies in T of them, yet the reward of a sparse task sits exactly there. So (T + 1) // 2 draws
    fall on an episode's first window and on its last: its ends are seen at least half as often as
    any inner record. A window counts as costly when a cost and the action that caused it are both
    inside.

    Args:
        datasets: one or more datasets of one spec.
        length: records T of a window.
        batch_size: windows B of a batch.
        seed: seed of the draws.
        cost_fraction: share of windows drawn from the costly ones.
    """

    wants = "sequences"

    def __init__(
        self,
        datasets: Dataset | Sequence[Dataset],
        length: int,
        batch_size: int,
        seed: int,
        cost_fraction: float = 0.0,
    ) -> None:
        if length < 2:
            raise ConfigError(f"must be at least 2, got {length}", where="length")
        self.length = length
        self._windows = _Windows(length)
        super().__init__(datasets, batch_size=batch_size, seed=seed, cost_fraction=cost_fraction)

    def _count_draws(self) -> tuple[Array, Array]:
        lengths = self._store.lengths
        draws = self._windows.count(lengths)
        offset = np.cumsum(draws) - draws
        costly = [np.zeros(0, np.int64)]
        for number, cost in enumerate(self._store.rows("cost")):
            if cost.any():
                draw = np.arange(draws[number])
                start = self._windows.start(draw, lengths[number])
                stop = np.minimum(start + self.length, lengths[number])
                before = np.concatenate([[0], np.cumsum(cost > 0)])
                costly.append(offset[number] + draw[before[stop] > before[start + 1]])
        return draws, np.concatenate(costly)

    def allocate(self, batch_size: int) -> Batch:
        """See `Replay`."""
        return _allocate(self.spec, (batch_size, self.length), next_obs=False)

    def fill(
        self, batch: Batch, first: int, count: int, origin: int = 0, rows: slice | None = None
    ) -> None:
        """See `Replay`."""
        store = self._store
        sequence, draw = self._draw(count, rows)
        count = len(sequence)
        lengths = store.lengths[sequence]
        start = self._windows.start(draw, lengths)
        step = start[:, None] + np.arange(self.length)
        mask = step < lengths[:, None]
        step = np.minimum(step, lengths[:, None] - 1)
        record = store.offset[sequence][:, None] + step
        into = slice(first, first + count)
        padding = None if mask.all() else ~mask
        for name in _COLUMNS:
            _put(getattr(batch, name), into, store.arrays[name][record], padding)
        for name in self.spec.observation.vector_names:
            _put(batch.obs[name], into, store.arrays[f"obs.{name}"][record], padding)
        _put(batch.mask, into, mask)
        _put_index(
            batch, into, np.broadcast_to(sequence[:, None], step.shape), step, record, origin
        )
        real = mask.sum(1)
        for name in self.spec.observation.image_names:
            target = batch.obs[name].numpy()
            for row in range(count):
                window = target[first + row]
                store.copy_frames(name, int(sequence[row]), int(start[row]), int(real[row]), window)
                window[real[row] :] = 0


class TransitionReplay(Replay):
    """Single transitions `[B]`: `obs`, `action`, what it caused, `next_obs`, what was done there.

    Every transition is equally likely; `cost_fraction` of the rows comes from those with a cost.
    `Index.record` and `Index.step` are those of the record before the action.

    Args:
        datasets: one or more datasets of one spec.
        batch_size: transitions B of a batch.
        seed: seed of the draws.
        cost_fraction: share of transitions drawn from those that caused a cost.
    """

    wants = "transitions"

    def __init__(
        self,
        datasets: Dataset | Sequence[Dataset],
        batch_size: int,
        seed: int,
        cost_fraction: float = 0.0,
    ) -> None:
        super().__init__(datasets, batch_size=batch_size, seed=seed, cost_fraction=cost_fraction)

    def _count_draws(self) -> tuple[Array, Array]:
        draws = self._store.lengths - 1
        offset = np.cumsum(draws) - draws
        costly = [np.zeros(0, np.int64)]
        for number, cost in enumerate(self._store.rows("cost")):
            costly.append(offset[number] + np.flatnonzero(cost[1:] > 0))
        return draws, np.concatenate(costly)

    def allocate(self, batch_size: int) -> Batch:
        """See `Replay`."""
        return _allocate(self.spec, (batch_size,), next_obs=True)

    def fill(
        self, batch: Batch, first: int, count: int, origin: int = 0, rows: slice | None = None
    ) -> None:
        """See `Replay`."""
        store = self._store
        sequence, step = self._draw(count, rows)
        count = len(sequence)
        record = store.offset[sequence] + step
        into = slice(first, first + count)
        for name in _COLUMNS:
            arrival = name in ("reward", "cost", "terminated", "truncated")
            _put(getattr(batch, name), into, store.arrays[name][record + arrival])
        assert batch.next_action is not None and batch.next_action_mask is not None
        _put(batch.next_action, into, store.arrays["action"][record + 1])
        _put(batch.next_action_mask, into, store.arrays["action_mask"][record + 1])
        _put(batch.mask, into, np.ones(count, np.bool_))
        _put_index(batch, into, sequence, step, record, origin)
        next_obs = batch.next_obs or {}
        for name in self.spec.observation.vector_names:
            column = store.arrays[f"obs.{name}"]
            _put(batch.obs[name], into, column[record])
            _put(next_obs[name], into, column[record + 1])
        for name in self.spec.observation.image_names:
            here, there = batch.obs[name].numpy(), next_obs[name].numpy()
            for row in range(count):
                at, now = first + row, int(step[row])
                store.copy_frames(name, int(sequence[row]), now, 1, here[at : at + 1])
                store.copy_frames(name, int(sequence[row]), now + 1, 1, there[at : at + 1])


def _allocate(spec: Spec, shape: tuple[int, ...], *, next_obs: bool) -> Batch:
    def observation() -> dict[str, torch.Tensor]:
        return {
            name: torch.empty(shape + array.shape, dtype=getattr(torch, array.dtype))
            for name, array in spec.observation.arrays.items()
        }

    def numbers(*tail: int) -> torch.Tensor:
        return torch.empty(shape + tail, dtype=torch.float32)

    def of(dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    return Batch(
        obs=observation(),
        action=numbers(spec.action.dim),
        reward=numbers(),
        cost=numbers(),
        terminated=of(torch.bool),
        truncated=of(torch.bool),
        is_first=of(torch.bool),
        mask=of(torch.bool),
        action_mask=of(torch.bool),
        next_obs=observation() if next_obs else None,
        next_action=numbers(spec.action.dim) if next_obs else None,
        next_action_mask=of(torch.bool) if next_obs else None,
        proposed_action=numbers(spec.action.dim),
        verdict=of(torch.uint8),
        source=of(torch.uint8),
        force=numbers(),
        clearance=numbers(),
        gate=of(torch.uint8),
        index=Index(
            episode=of(torch.int64),
            step=of(torch.int64),
            record=of(torch.int64),
            origin=torch.empty(shape[:1], dtype=torch.int64),
        ),
    )


def _put(target: torch.Tensor, rows: slice, value: Array, padding: Array | None = None) -> None:
    if padding is not None:
        value[padding] = 0
    target.numpy()[rows] = value


def _put_index(
    batch: Batch, rows: slice, episode: Array, step: Array, record: Array, origin: int
) -> None:
    index = batch.index
    assert index is not None, "batches of a replay carry an index"
    _put(index.episode, rows, episode)
    _put(index.step, rows, step)
    _put(index.record, rows, record)
    index.origin.numpy()[rows] = origin
