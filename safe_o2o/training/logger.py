"""Metrics of a training run: one JSON object a line, flushed at each, consistent with checkpoints.

A run that is killed and resumed leaves the same file as one that was not: entries past the
checkpoint it resumes from are cut off first, together with a last line that was torn by the kill.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from safe_o2o.errors import DataError
from safe_o2o.files import storage_error, write_atomic
from safe_o2o.types import Array


class MetricLog:
    """Appends lines `{"step": n, "critic/loss": 0.1, ...}` to a file.

    Numbers that are not finite stand as NaN and Infinity, as Python's json module reads and writes
    them: a log that hides a divergence is of no use.

    Args:
        path: the file; its folder is made when missing.
        resume_at: step of the checkpoint that training goes on from. Entries of later steps are
            removed; 0 starts afresh.

    Raises:
        DataError: a line other than the last one is damaged.
        StorageError: the file cannot be written.
    """

    def __init__(self, path: str | Path, *, resume_at: int = 0) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.path) from error
        rows = _rows(self.path) if resume_at else []
        kept = [line for line, row in rows if row["step"] <= resume_at]
        write_atomic(self.path, b"".join(kept))
        try:
            self._file: IO[bytes] = open(self.path, "ab")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise storage_error(error, self.path) from error

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line and hand it to the operating system, so that a kill cannot lose it.

        Raises:
            StorageError: the disk is full.
        """
        row = {"step": int(step), **{key: float(value) for key, value in metrics.items()}}
        try:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise storage_error(error, self.path) from error

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> dict[str, Array]:
    """A log as columns.

    Args:
        path: the file; a torn last line is left out.

    Returns:
        `step` `[N]` int64, and each metric `[N]` float64 with NaN where a line does not have it.

    Raises:
        DataError: the file is missing, or a line other than the last one is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise DataError("does not exist", where=path, todo="train first")
    rows = [row for _, row in _rows(path)]
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    columns: dict[str, Array] = {"step": np.asarray([row["step"] for row in rows], np.int64)}
    for name in names:
        columns[name] = np.asarray([row.get(name, np.nan) for row in rows], np.float64)
    return columns


def _rows(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Whole lines with their content; none when there is no file."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path) from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("no step")
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(
                "is no line of metrics", where=f"{path}:{number}", todo="remove the line"
            ) from error
        if not line.endswith(b"\n"):
            break  # torn right before its line break: the step is not known to be complete
        found.append((line, row))
    return found
