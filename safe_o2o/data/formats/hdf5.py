"""HDF5 files in the layout of D4RL and DSRL into episodes (offline.md 1.2).

Flat arrays with a row a transition: observations, actions, rewards, terminals; timeouts and
next_observations where there are any, costs in DSRL's. An episode ends at a terminal, at a timeout,
where the next row does not go on from this one, and at the end of the file. A timeout is no end of
the task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.errors import DataError, MissingDependencyError
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.types import Array, Source, Transition

NEEDED = ("observations", "actions", "rewards", "terminals")
KNOWN = (*NEEDED, "timeouts", "next_observations", "costs")
STATE = "state"
ROWS = 100_000
"""Rows that are looked at together."""
SAME = 1e-6
"""Difference of a row's next observation from the next row's up to which the two are one way."""
Progress = Callable[[int, int], None]


@dataclass
class Hdf5Report:
    """What became of a file.

    Attributes:
        episodes: episodes that were written.
        known: episodes of it that the dataset has already.
        steps: transitions that were written.
        dropped: transitions without a next observation: the last before a timeout, where the file
            has no `next_observations`.
        clipped: entries of actions beyond -1 or 1, cut to that.
        costs: whether the file says costs.
    """

    episodes: int = 0
    known: int = 0
    steps: int = 0
    dropped: int = 0
    clipped: int = 0
    costs: bool = False


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file's arrays by name.

    Raises:
        MissingDependencyError: `h5py` is not installed.
        DataError: the file is missing, damaged, lacks an array, or arrays differ in length.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "HDF5 files need the package 'h5py'", where=path, todo="pip install h5py"
        ) from error
    if not path.is_file():
        raise DataError("no such file", where=path, todo="check the path")
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: file[name] for name in KNOWN if name in file}
            _check(path, arrays)
            yield arrays
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"cannot be read ({' '.join(str(error).split())[:200]})",
            where=path,
            todo="it may be damaged or cut off: download it again",
        ) from error


def _check(path: Path, arrays: dict[str, Any]) -> None:
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise DataError(
            f"has no array {', '.join(missing)}", where=path, todo="is it in D4RL's layout?"
        )
    rows = arrays["observations"].shape[0]
    for name, array in arrays.items():
        wide = name in ("observations", "actions", "next_observations")
        if len(array.shape) != (2 if wide else 1) or array.shape[0] != rows:
            raise DataError(
                f"{name} has shape {tuple(array.shape)} beside {rows} observations", where=path
            )
    if not rows:
        raise DataError("has no transition", where=path)


def spec_of(path: Path, period: float) -> Spec:
    """What a file's transitions see and do: one vector `state`, actions in [-1, 1].

    Args:
        path: the file.
        period: of a step, s; the file does not say it.
    """
    with opened(path) as arrays:
        size, dim = arrays["observations"].shape[1], arrays["actions"].shape[1]
    names = tuple(f"a{i}" for i in range(dim))
    action = ActionSpec(names, "1", (-1.0,) * dim, (1.0,) * dim, period)
    return Spec(ObservationSpec({STATE: ArraySpec((size,), "float32", "1")}), action)


def import_hdf5(
    path: Path, dataset: Dataset, *, behavior: str = "", progress: Progress | None = None
) -> Hdf5Report:
    """Add a file's episodes to a dataset; those that are in there already are left out.

    The whole file is looked at before the first episode is written.

    Args:
        path: the file.
        dataset: of `spec_of(path, ...)`.
        behavior: who acted, for the episodes' metadata.
        progress: called with (rows done, in all), over both passes.

    Raises:
        DataError: see `opened`; a number is not finite, or a cost negative.
        SpecMismatchError: the dataset is of something else.
    """
    digest = _digest(path)
    known = {
        entry.meta.provenance.get("part")
        for entry in dataset
        if entry.meta.provenance.get("hdf5_sha256") == digest
    }
    with opened(path) as arrays:
        rows = arrays["observations"].shape[0]
        report = Hdf5Report(costs="costs" in arrays)

        def done(count: int) -> None:
            if progress is not None:
                progress(count, 2 * rows)

        ends = _ends(path, arrays, done)
        start = 0
        for part, end in enumerate(ends):
            begin, start = start, int(end) + 1
            if part in known:
                report.known += 1
                continue
            provenance = {"hdf5": path.name, "hdf5_sha256": digest, "part": part}
            meta = EpisodeMeta(dataset.task, behavior=behavior, provenance=provenance)
            _append(dataset, arrays, begin, start, meta, report)
            done(rows + start)
    if not report.episodes and not report.known:
        raise DataError("has no whole transition", where=path)
    return report


def _append(
    dataset: Dataset,
    arrays: dict[str, Any],
    begin: int,
    stop: int,
    meta: EpisodeMeta,
    report: Hdf5Report,
) -> None:
    """One episode, of rows begin to stop - 1."""
    part = {name: np.asarray(array[begin:stop]) for name, array in arrays.items()}
    ended = bool(part["terminals"][-1])
    obs = part["observations"].astype(np.float32)
    last, count = obs[-1], len(obs)
    if "next_observations" in part:
        last = part["next_observations"][-1].astype(np.float32)
    elif not ended:  # what came after it is not in the file; where the task ended nobody asks
        report.dropped += 1
        count -= 1
    if not count:
        return
    wish = part["actions"].astype(np.float32)
    action = np.clip(wish, -1.0, 1.0)
    report.clipped += int((action[:count] != wish[:count]).sum())
    costs = part.get("costs", np.zeros(len(obs)))
    period = dataset.spec.action.period
    steps = [
        Transition(
            obs={STATE: obs[t]},
            action=action[t],
            proposed_action=action[t],
            reward=float(part["rewards"][t]),
            cost=float(costs[t]),
            terminated=ended and t == count - 1,
            truncated=not ended and t == count - 1,
            source=Source.SCRIPT,
            stamp=round(t * period, 9),
        )
        for t in range(count)
    ]
    dataset.append(steps, {STATE: last}, round(count * period, 9), meta)
    report.episodes, report.steps = report.episodes + 1, report.steps + count


def _ends(path: Path, arrays: dict[str, Any], done: Callable[[int], None]) -> Array:
    """Rows that an episode ends with; every number of the file has been looked at."""
    rows, found = arrays["observations"].shape[0], []
    for first in range(0, rows, ROWS):
        stop = min(first + ROWS, rows)
        part = {name: np.asarray(array[first:stop]) for name, array in arrays.items()}
        for name, array in part.items():
            good = np.isfinite(array).reshape(len(array), -1).all(1)
            if name == "costs":
                good &= array >= 0
            if not good.all():
                row = first + int(np.flatnonzero(~good)[0])
                raise DataError(f"row {row} of {name} is not a number that it can be", where=path)
        end = part["terminals"].astype(bool)
        if "timeouts" in part:
            end = end | part["timeouts"].astype(bool)
        if "next_observations" in part:
            after = np.asarray(arrays["observations"][first + 1 : stop + 1])
            apart = np.abs(after - part["next_observations"][: len(after)]).max(1) > SAME
            end[: len(after)] |= apart
        found.append(first + np.flatnonzero(end))
        done(stop)
    ends = np.concatenate(found)
    whole = len(ends) and ends[-1] == rows - 1
    return ends if whole else np.append(ends, rows - 1)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path) from error
    return digest.hexdigest()
