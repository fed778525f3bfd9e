"""Episodes as rows of records, shared by the replays: small arrays in memory, frames on disk.

Everything but the images takes some 50 bytes a record and is kept in flat arrays `[R, ...]`, so
that a batch is one gather; images stay in the episode files and are copied from their memory maps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safe_o2o.data.dataset import Dataset, episode_name
from safe_o2o.data.episode import MEASURED, Episode
from safe_o2o.errors import ConfigError, DataError
from safe_o2o.spaces import Spec
from safe_o2o.types import Array

_WITH_ACTION = ("action", "proposed_action", "verdict", "source", "margin")


def align(episode: Episode, start: int, stop: int) -> dict[str, Array]:
    """Turn transitions `start..stop-1` into `stop - start + 1` records (images left out).

    Record t holds the reward, cost and flags that action t-1 caused, and action t; the first record
    has reward and cost 0, the last one a zero action with `action_mask` False. A stretch that does
    not end with `terminated` ends with `truncated`: values bootstrap there.

    Returns:
        `obs.<vector>`, action, proposed_action, reward, cost, margin, terminated, truncated,
        is_first, action_mask, verdict, source, force, clearance, gate, each `[N, ...]`.
    """
    count = stop - start + 1
    records: dict[str, Array] = {
        f"obs.{name}": np.array(episode.array(f"obs.{name}")[start : stop + 1])
        for name in episode.spec.observation.vector_names
    }
    columns = {name: episode.array(name) for name in _WITH_ACTION}
    columns |= {name: episode.measured(name) for name in MEASURED} | {"gate": episode.gate}
    for name, column in columns.items():
        records[name] = np.zeros((count, *column.shape[1:]), column.dtype)
        records[name][:-1] = column[start:stop]
    for name in ("reward", "cost", "terminated", "truncated"):
        column = episode.array(name)
        records[name] = np.zeros(count, column.dtype)
        records[name][1:] = column[start:stop]
    records["truncated"][-1] |= not records["terminated"][-1]
    records["is_first"] = np.arange(count) == 0
    records["action_mask"] = np.arange(count) < count - 1
    return records


@dataclass(frozen=True, slots=True)
class _Sequence:
    """One stretch of records without a loss: an episode, or a part of one that had drops."""

    episode: Episode
    start: int


class RecordStore:
    """Records of the episodes of some datasets, in the order in which they were admitted.

    Args:
        datasets: datasets of one spec.

    Raises:
        SpecMismatchError: two datasets differ in spec.
        DataError: an episode is damaged.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        if not datasets:
            raise ConfigError("needs at least one dataset", where="replay")
        self.datasets = list(datasets)
        self.spec: Spec = datasets[0].spec
        for other in datasets[1:]:
            self.spec.require_same(
                other.spec,
                mine=f"dataset {datasets[0].directory}",
                theirs=f"dataset {other.directory}",
            )
        self._clear()
        self.refresh()

    def _clear(self) -> None:
        self.sequences: list[_Sequence] = []
        self.lengths = np.zeros(0, np.int64)
        self.offset = np.zeros(0, np.int64)
        self.arrays: dict[str, Array] = {}
        self._admitted: list[tuple[int, int]] = []
        self._digest = hashlib.sha256()

    def __len__(self) -> int:
        """Number of records R."""
        return int(self.lengths.sum())

    def refresh(self) -> int:
        """Admit the episodes committed since the last call; returns the number of new sequences."""
        known = set(self._admitted)
        found: list[tuple[int, int]] = []
        for number, dataset in enumerate(self.datasets):
            dataset.refresh()
            found += [(number, index) for index in sorted(dataset.indices())]
        return self._admit([key for key in found if key not in known])

    def _admit(self, keys: Sequence[tuple[int, int]]) -> int:
        parts: list[Mapping[str, Array]] = []
        added: list[_Sequence] = []
        for number, index in keys:
            episode = self.datasets[number].open(episode_name(index))
            for start, stop in episode.segments():
                added.append(_Sequence(episode, start))
                parts.append(align(episode, start, stop))
            self._digest.update(f"{number} {index} {episode.content_hash}\n".encode())
        self._admitted += keys
        if added:
            self.sequences += added
            lengths = [len(part["reward"]) for part in parts]
            self.lengths = np.concatenate([self.lengths, np.asarray(lengths, np.int64)])
            self.offset = np.cumsum(self.lengths) - self.lengths
            old = [self.arrays] if self.arrays else []
            self.arrays = {
                name: np.concatenate([part[name] for part in [*old, *parts]]) for name in parts[0]
            }
        return len(added)

    def rows(self, name: str) -> list[Array]:
        """One array of every sequence, views `[N, ...]`.

        Raises:
            DataError: no such array.
        """
        if not self.sequences:
            return []
        if name not in self.arrays:
            raise DataError(f"no record array {name!r}, only {sorted(self.arrays)}", where="replay")
        return np.split(self.arrays[name], self.offset[1:])

    def copy_frames(self, name: str, sequence: int, first: int, count: int, target: Array) -> None:
        """Copy `count` frames of one image array into `target[:count]`, from the file's map."""
        entry = self.sequences[sequence]
        begin = entry.start + first
        target[:count] = entry.episode.array(f"obs.{name}")[begin : begin + count]

    def state_dict(self) -> dict[str, Any]:
        """Which episodes were admitted, in order, and a digest of their contents; JSON-ready."""
        return {
            "admitted": [list(key) for key in self._admitted],
            "digest": self._digest.hexdigest(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Admit exactly the episodes of a saved state, in its order; `refresh` admits the others.

        Raises:
            DataError: an episode is gone, or another one has its number.
        """
        keys = [(int(number), int(index)) for number, index in state["admitted"]]
        for number, index in keys:
            if number >= len(self.datasets):
                raise DataError(
                    f"was saved with {number + 1} or more datasets, not {len(self.datasets)}",
                    where="replay state",
                )
            dataset = self.datasets[number]
            if index not in dataset.indices():
                raise DataError(
                    f"the saved replay holds {episode_name(index)}, which is gone",
                    where=dataset.directory,
                    todo="put the file back or start training again",
                )
        if keys != self._admitted:
            self._clear()
            self._admit(keys)
        if self._digest.hexdigest() != state["digest"]:
            raise DataError(
                "episodes differ from those that the replay was saved with",
                where=self.datasets[0].directory,
                todo="put the old files back or start training again",
            )
