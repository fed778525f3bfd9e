"""Find, explain and repair what is wrong with a dataset folder. Nothing is ever deleted.

`diagnose` reads every byte of every episode (hashes) and changes nothing; `repair` moves damaged
files into `quarantine/` beside the episodes and rebuilds `dataset.json` from what is left.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safe_o2o.data.dataset import HEADER, episode_index, make_header, read_header
from safe_o2o.data.episode import Episode, SchemaVersionError
from safe_o2o.errors import DataError, SafeO2OError
from safe_o2o.files import storage_error, temporary_owner, write_atomic

QUARANTINE = "quarantine"
_NO_REMEDY = "repair leaves it alone: read it with the version that wrote it"
_STALE_AFTER = 3600.0
"""Age at which a temporary file is left over whoever has its process id now, s."""

Kind = Literal["header", "episode", "mismatch", "leftover", "version"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: "header" (`dataset.json` missing or damaged), "episode" (truncated or damaged),
            "mismatch" (a sound episode of another spec or task), "leftover" (temporary file of a
            killed process), "version" (sound, but of another version of the package).
        path: the file.
        what: what is wrong with it, one clause.
        remedy: what `repair` does about it.
    """

    kind: Kind
    path: Path
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.remedy}"


def diagnose(directory: str | Path, progress: Progress | None = None) -> list[Finding]:
    """Look at every file of a dataset; changes nothing.

    Args:
        directory: the dataset's folder.
        progress: called with (files done, files in all).

    Returns:
        What is wrong, header first, then by file name; empty for a sound dataset.

    Raises:
        DataError: the folder does not exist or cannot be listed.
    """
    return _examine(Path(directory), progress)[0]


def repair(directory: str | Path, progress: Progress | None = None) -> list[Finding]:
    """Set aside what `diagnose` finds and rebuild `dataset.json` where it is missing or damaged.

    Files of another version of the package stay where they are.

    Returns:
        What was found and has been dealt with.

    Raises:
        DataError: the folder does not exist, or `dataset.json` cannot be rebuilt because no sound
            episode is left.
        StorageError: the disk refused.
    """
    directory = Path(directory)
    findings, healthy = _examine(directory, progress)
    header = next((finding for finding in findings if finding.kind == "header"), None)
    if header is not None and not healthy:
        raise DataError(
            f"{HEADER} cannot be rebuilt: there is no sound episode",
            where=directory,
            todo="collect into a new folder",
        )
    for finding in findings:
        if finding.kind != "version" and finding.path.exists():
            _quarantine(finding.path)
    if header is not None:
        example = healthy[0]
        provenance = {"rebuilt_by": "doctor", "rebuilt_from": len(healthy)}
        write_atomic(directory / HEADER, make_header(example.spec, example.meta.task, provenance))
    return findings


def _examine(directory: Path, progress: Progress | None) -> tuple[list[Finding], list[Episode]]:
    """The findings, and the episodes that are sound and agree with the header or the majority."""
    if not directory.is_dir():
        raise DataError("no such dataset folder", where=directory, todo="check the path")
    try:
        files = sorted(path for path in directory.iterdir() if path.is_file())
    except OSError as error:
        raise storage_error(error, directory) from error
    findings, sound = [], []
    for done, path in enumerate(files):
        if temporary_owner(path) is not None:
            if _is_left_over(path):
                findings.append(_set_aside("leftover", path, "was left by a killed process"))
        elif episode_index(path.name) is not None:
            try:
                episode = Episode(path)
                episode.verify()
                sound.append(episode)
            except SchemaVersionError as error:
                findings.append(Finding("version", path, error.what, _NO_REMEDY))
            except SafeO2OError as error:
                findings.append(_set_aside("episode", path, error.what))
        if progress is not None:
            progress(done + 1, len(files))
    try:
        wanted: str | None = _identity(read_header(directory))
    except SchemaVersionError as error:
        findings.insert(0, Finding("version", directory / HEADER, error.what, _NO_REMEDY))
        wanted = None
    except DataError as error:
        remedy = f"repair rebuilds {HEADER} from the episodes"
        findings.insert(0, Finding("header", directory / HEADER, error.what, remedy))
        counts = Counter(_identity(episode.metadata) for episode in sound)
        wanted = counts.most_common(1)[0][0] if counts else None
    healthy = []
    for episode in sound:
        if wanted is None or _identity(episode.metadata) == wanted:
            healthy.append(episode)
        else:
            what = "has another task or spec than the dataset"
            findings.append(_set_aside("mismatch", episode.path, what))
    return findings, healthy


def _identity(metadata: Mapping[str, Any]) -> str:
    """What all episodes of a dataset share; `dataset.json` and episodes name it alike."""
    return json.dumps([metadata["task"], metadata["spec"]], sort_keys=True)


def _set_aside(kind: Kind, path: Path, what: str) -> Finding:
    return Finding(kind, path, what, f"repair moves it to {QUARANTINE}/")


def _is_left_over(path: Path) -> bool:
    """Whether nobody can still be writing a temporary file."""
    owner = temporary_owner(path)
    try:
        old = time.time() - path.stat().st_mtime > _STALE_AFTER
        os.kill(owner or 0, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's process
        return old
    except FileNotFoundError:  # finished meanwhile
        return False
    return old


def _quarantine(path: Path) -> None:
    """Move a file aside under a name that is free."""
    folder = path.parent / QUARANTINE
    try:
        folder.mkdir(exist_ok=True)
        target, number = folder / path.name, 1
        while target.exists():
            target, number = folder / f"{path.name}.{number}", number + 1
        path.rename(target)
    except OSError as error:
        raise storage_error(error, path) from error
