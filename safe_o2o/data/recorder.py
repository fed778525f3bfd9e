"""From the control loop to an episode file, without ever holding up the loop.

`EpisodeRecorder` copies what it is given into a bounded queue that a writer thread empties; a full
queue drops the newest transition, counts it and stores where it is missing. `DirectRecorder` has
the same methods and no thread, for simulators whose clock waits. Either way a killed process loses
at most the episode in progress: files appear under their name only when complete.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.errors import DataError
from safe_o2o.types import Observation, Transition

# What a node needs to record, in one import.
__all__ = ["Dataset", "DirectRecorder", "EpisodeMeta", "EpisodeRecorder", "Recorder"]


class Recorder(Protocol):
    """What a rollout or a ROS node records into."""

    def start(self, meta: EpisodeMeta, index: int | None = None) -> None:
        """Begin an episode; `index` is its number in the dataset, None takes the next free one."""
        ...

    def append(self, transition: Transition) -> bool:
        """Add a transition; False when it had to be dropped (counted and stored)."""
        ...

    def commit(
        self, final_obs: Observation, final_stamp: float, *, success: bool | None = None
    ) -> Path | None:
        """Write the episode durably and return its file (None: it will be written later)."""
        ...

    def discard(self) -> None:
        """Forget the episode in progress, if any."""
        ...


@dataclass
class _Draft:
    """An episode in progress."""

    meta: EpisodeMeta
    index: int | None
    transitions: list[Transition] = field(default_factory=list)
    accepted: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)

    def drop(self) -> None:
        """Note that one transition is missing right before the next accepted one."""
        if self.gaps and self.gaps[-1][0] == self.accepted:
            self.gaps[-1] = (self.accepted, self.gaps[-1][1] + 1)
        else:
            self.gaps.append((self.accepted, 1))

    def commit(
        self, dataset: Dataset, obs: Observation, stamp: float, success: bool | None
    ) -> Path:
        return dataset.append(
            self.transitions,
            obs,
            stamp,
            self.meta,
            index=self.index,
            success=success,
            gaps=self.gaps,
        )


class DirectRecorder:
    """Records in the caller's thread: for simulation, where nobody waits for the loop.

    Args:
        dataset: where committed episodes go.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._draft: _Draft | None = None

    def start(self, meta: EpisodeMeta, index: int | None = None) -> None:
        """Begin an episode; one in progress is forgotten."""
        self._draft = _Draft(meta, index)

    def append(self, transition: Transition) -> bool:
        """Add a transition; always True."""
        draft = _started(self._draft)
        draft.transitions.append(_owned(transition))
        draft.accepted += 1
        return True

    def commit(
        self, final_obs: Observation, final_stamp: float, *, success: bool | None = None
    ) -> Path:
        """Write the episode durably.

        Raises:
            DataError, SpecMismatchError: the episode is malformed (see `write_episode`).
            StorageError: the disk refused; nothing half-written is left.
        """
        draft, self._draft = _started(self._draft), None
        return draft.commit(self.dataset, final_obs, final_stamp, success)

    def discard(self) -> None:
        """Forget the episode in progress, if any."""
        self._draft = None


@dataclass
class _Commit:
    """Asks the writer to write a draft; carries the answer back."""

    draft: _Draft
    obs: Observation
    stamp: float
    success: bool | None
    path: Path | None = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class EpisodeRecorder:
    """Records through a bounded queue and a writer thread; `append` never waits.

    Use as a context manager, or call `close`. SIGINT reaches the main thread only: a commit under
    way is finished by the writer, the episode in progress is discarded by `close`.

    Args:
        dataset: where committed episodes go.
        capacity: transitions that may wait while the writer is busy with the last episode.
    """

    def __init__(self, dataset: Dataset, capacity: int = 256) -> None:
        self.dataset = dataset
        self._capacity = capacity
        # Unbounded for the few control messages; transitions are bounded by the count below.
        self._queue: queue.SimpleQueue[tuple[_Draft, Transition] | _Commit | None] = (
            queue.SimpleQueue()
        )
        self._draft: _Draft | None = None
        self._pending: list[_Commit] = []
        self._thread = threading.Thread(target=self._write, name="episode-writer", daemon=True)
        self._thread.start()

    def start(self, meta: EpisodeMeta, index: int | None = None) -> None:
        """Begin an episode; one in progress is forgotten.

        Raises:
            StorageError, DataError: an earlier `commit(wait=False)` failed.
        """
        self._raise_late_errors()
        self._draft = _Draft(meta, index)

    def append(self, transition: Transition) -> bool:
        """Add a copy of a transition; takes microseconds, whatever the disk does.

        Returns:
            False when the queue was full: the transition is dropped, and the file will say where.
        """
        draft = _started(self._draft)
        if self._queue.qsize() >= self._capacity:
            draft.drop()
            return False
        self._queue.put((draft, _owned(transition)))
        draft.accepted += 1
        return True

    def commit(
        self,
        final_obs: Observation,
        final_stamp: float,
        *,
        success: bool | None = None,
        wait: bool = True,
    ) -> Path | None:
        """Write the episode durably.

        Args:
            final_obs: the observation after the last action.
            final_stamp: its stamp, s.
            success: whether the task was solved; None derives it (see `write_episode`).
            wait: False returns at once with None; an error then comes out of the next `start`,
                `flush` or `close`.

        Raises:
            DataError, SpecMismatchError: the episode is malformed (see `write_episode`).
            StorageError: the disk refused; nothing half-written is left.
        """
        draft, self._draft = _started(self._draft), None
        request = _Commit(draft, _copied(final_obs), final_stamp, success)
        self._queue.put(request)
        if not wait:
            self._pending.append(request)
            return None
        request.done.wait()
        if request.error is not None:
            raise request.error
        return request.path

    def discard(self) -> None:
        """Forget the episode in progress, if any."""
        self._draft = None

    def flush(self) -> None:
        """Wait until every commit is on disk; raises what `commit` would have raised."""
        for request in self._pending:
            request.done.wait()
        self._raise_late_errors()

    def close(self) -> None:
        """Discard the episode in progress, finish the commits, end the thread; idempotent."""
        self.discard()
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._raise_late_errors()

    def __enter__(self) -> EpisodeRecorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _raise_late_errors(self) -> None:
        for request in [request for request in self._pending if request.done.is_set()]:
            self._pending.remove(request)
            if request.error is not None:
                raise request.error

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, _Commit):
                try:
                    item.path = item.draft.commit(self.dataset, item.obs, item.stamp, item.success)
                except BaseException as error:  # handed to whoever waits, see commit
                    item.error = error
                item.draft.transitions.clear()
                item.done.set()
            else:
                draft, transition = item
                draft.transitions.append(transition)


def _started(draft: _Draft | None) -> _Draft:
    if draft is None:
        raise DataError("no episode was started", where="recorder", todo="call start(meta) first")
    return draft


def _copied(obs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.array(array) for name, array in obs.items()}


def _owned(transition: Transition) -> Transition:
    """A copy that shares no memory with the caller, who may reuse camera buffers."""
    return replace(
        transition,
        obs=_copied(transition.obs),
        action=np.array(transition.action, np.float32),
        proposed_action=np.array(transition.proposed_action, np.float32),
    )
