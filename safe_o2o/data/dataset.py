"""A dataset: a folder with `dataset.json` and committed episodes `episode_000000.safetensors`.

Nothing here imports torch: actors write datasets, learners read them, in different processes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safe_o2o.data.episode import Episode, EpisodeMeta, SchemaVersionError, write_episode
from safe_o2o.errors import DataError, SafeO2OError, StorageError
from safe_o2o.files import storage_error, write_atomic
from safe_o2o.spaces import Spec
from safe_o2o.types import Observation, Transition

SCHEMA_VERSION = 1
HEADER = "dataset.json"
KIND = "safe_o2o.dataset"
_EPISODE = re.compile(r"^episode_(\d{6,})\.safetensors$")


def episode_name(index: int) -> str:
    """File name of episode `index`."""
    return f"episode_{index:06d}.safetensors"


def episode_index(name: str) -> int | None:
    """Inverse of `episode_name`; None for any other file."""
    match = _EPISODE.match(name)
    return int(match[1]) if match else None


class Dataset:
    """An existing dataset. Use `Dataset.create` to start one.

    Args:
        directory: the folder.

    Raises:
        DataError: the folder or its `dataset.json` is missing, damaged, or of another version.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.header = read_header(self.directory)
        self.spec = Spec.from_json(self.header["spec"])
        self.task = str(self.header["task"])
        self._keep: Callable[[int], bool] | None = None
        self._names: list[str] = []
        self._opened: dict[str, Episode] = {}
        self.refresh()

    @classmethod
    def create(
        cls,
        directory: str | Path,
        spec: Spec,
        *,
        task: str,
        provenance: Mapping[str, Any] | None = None,
        exist_ok: bool = False,
    ) -> Dataset:
        """Start a dataset, or with `exist_ok` go on with one of the same task and spec.

        Args:
            directory: the folder; made when missing.
            spec: both specs of every episode to come.
            task: catalogue name of the task.
            provenance: JSON-ready facts on how it was made; outside `content_hash`, so that times
                may go here.
            exist_ok: open an existing dataset instead of refusing it.

        Raises:
            DataError: there is a dataset already (without `exist_ok`), or one of another task.
            SpecMismatchError: the existing dataset has another spec.
            StorageError: the folder cannot be written.
        """
        directory = Path(directory)
        if (directory / HEADER).exists():
            if not exist_ok:
                raise DataError(
                    "holds a dataset already",
                    where=directory,
                    todo="choose another folder or go on with this one",
                )
            dataset = cls(directory)
            dataset.require(spec, task)
            return dataset
        header = make_header(spec, task, provenance)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, directory) from error
        write_atomic(directory / HEADER, header)
        return cls(directory)

    def part(self, keep: Callable[[int], bool]) -> Dataset:
        """A view for reading: only the episodes whose number `keep` accepts, later ones included.

        Splits by number are the same however a dataset has grown.
        """
        view = Dataset(self.directory)
        view._keep = keep
        view.refresh()
        return view

    def require(self, spec: Spec, task: str | None = None) -> None:
        """Refuse another spec or task.

        Raises:
            SpecMismatchError: the spec differs, by name.
            DataError: the task differs.
        """
        self.spec.require_same(spec, mine=f"dataset {self.directory}", theirs="the caller")
        if task is not None and task != self.task:
            raise DataError(
                f"holds episodes of task {self.task!r}, not of {task!r}", where=self.directory
            )

    def refresh(self) -> list[str]:
        """Look for episodes committed or set aside since the last look; returns the new names."""
        try:
            found = [entry.name for entry in self.directory.iterdir()]
        except OSError as error:
            raise DataError(
                f"cannot be listed: {(error.strerror or str(error)).lower()}", where=self.directory
            ) from error
        # By number, not by name, so that episode 1000000 follows 999999.
        numbered = {index: name for name in found if (index := episode_index(name)) is not None}
        if self._keep is not None:
            numbered = {index: name for index, name in numbered.items() if self._keep(index)}
        before = set(self._names)
        self._names = [numbered[index] for index in sorted(numbered)]
        for name in before.difference(self._names):
            self._opened.pop(name, None)
        return [name for name in self._names if name not in before]

    def __len__(self) -> int:
        """Number of episodes at the last `refresh`."""
        return len(self._names)

    def __getitem__(self, position: int) -> Episode:
        """The episode at a position of the sorted list, opened once.

        Raises:
            DataError: the file is damaged.
            SpecMismatchError: the file has another spec than the dataset.
        """
        return self.open(self._names[position])

    def __iter__(self) -> Iterator[Episode]:
        """Episodes in order of their numbers."""
        return (self.open(name) for name in list(self._names))

    @property
    def names(self) -> tuple[str, ...]:
        """File names in order of their numbers."""
        return tuple(self._names)

    def open(self, name: str) -> Episode:
        """The episode of a file name; see `__getitem__`."""
        if name not in self._opened:
            episode = Episode(self.directory / name)
            if episode.metadata["spec"] != self.header["spec"]:
                theirs = f"episode {name}"
                self.spec.require_same(
                    episode.spec, mine=f"dataset {self.directory}", theirs=theirs
                )
            self._opened[name] = episode
        return self._opened[name]

    def indices(self) -> set[int]:
        """Numbers of the committed episodes, to resume a collection."""
        return {index for name in self._names if (index := episode_index(name)) is not None}

    def append(
        self,
        transitions: Sequence[Transition],
        final_obs: Observation,
        final_stamp: float,
        meta: EpisodeMeta,
        *,
        index: int | None = None,
        success: bool | None = None,
        gaps: Sequence[tuple[int, int]] = (),
    ) -> Path:
        """Commit an episode. The arguments are those of `write_episode`.

        `index` is the episode's number; None takes the next free one, also beside other writers.

        Raises:
            DataError: the episode is malformed, of another task, or the number is taken.
            SpecMismatchError: an observation or action does not fit.
            StorageError: the disk refused.
        """
        if meta.task != self.task:
            raise DataError(
                f"holds episodes of task {self.task!r}, not of {meta.task!r}", where=self.directory
            )
        if self._keep is not None:
            raise DataError("is a part, which is for reading", where=self.directory)
        while True:
            number = self._next_index() if index is None else index
            path = self.directory / episode_name(number)
            if not path.exists():
                try:
                    write_episode(
                        path,
                        transitions,
                        final_obs,
                        final_stamp,
                        spec=self.spec,
                        meta=meta,
                        success=success,
                        gaps=gaps,
                    )
                except StorageError as error:
                    if not isinstance(error.__cause__, FileExistsError):
                        raise
                else:
                    self.refresh()
                    return path
            if index is not None:
                raise DataError(
                    "is committed already; an episode is never replaced",
                    where=path,
                    todo="choose another number or move the old file away",
                )

    def _next_index(self) -> int:
        self.refresh()
        return max(self.indices(), default=-1) + 1

    def content_hash(self) -> str:
        """SHA-256 over names and contents of the episodes: same seeds, same hash.

        Reads the stored hash of each episode (`Episode.verify` and the doctor check it against the
        content); independent of times, of the writing order and of `dataset.json`'s provenance.
        """
        digest = hashlib.sha256(json.dumps(self.header["spec"], sort_keys=True).encode())
        for episode in self:
            digest.update(f"{episode.path.name} {episode.content_hash}\n".encode())
        return digest.hexdigest()


def make_header(spec: Spec, task: str, provenance: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of a `dataset.json`."""
    header = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "task": task,
        "spec": spec.to_json(),
        "provenance": dict(provenance or {}),
    }
    return (json.dumps(header, indent=2, allow_nan=False) + "\n").encode()


def read_header(directory: Path) -> dict[str, Any]:
    """Read and check `dataset.json`.

    Raises:
        DataError: folder or file missing, not JSON, another kind, no valid spec.
        SchemaVersionError: another version of the package wrote it.
    """
    path = directory / HEADER
    if not directory.is_dir():
        raise DataError(
            "no such dataset folder",
            where=directory,
            todo="check the path, or make it with `safe-o2o collect`",
        )
    try:
        header = json.loads(path.read_bytes())
        kind, version = header["kind"], header["schema_version"]
    except FileNotFoundError as error:
        raise DataError(
            f"is no dataset: it has no {HEADER}",
            where=directory,
            todo="check the path; `safe-o2o doctor` can rebuild it from episodes",
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot be read: {(error.strerror or str(error)).lower()}", where=path
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged_header(path, error) from error
    if kind != KIND:
        raise _damaged_header(path, ValueError(f"kind is {kind!r}, not {KIND!r}"))
    if version != SCHEMA_VERSION:
        raise SchemaVersionError(
            f"has dataset schema {version}, this version reads {SCHEMA_VERSION}",
            where=path,
            todo="read it with the version that wrote it, or collect again",
        )
    try:
        Spec.from_json(header["spec"])
        str(header["task"])
    except (SafeO2OError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged_header(path, error) from error
    return dict(header)


def _damaged_header(path: Path, error: Exception) -> DataError:
    return DataError(
        f"is damaged ({type(error).__name__}: {error})",
        where=path,
        todo="`safe-o2o doctor` can rebuild it from the episodes",
    )
