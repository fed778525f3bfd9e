"""Errors that a user can act on: each carries what went wrong, where, and what to do.

The command line prints `str(error)` as one line and exits with `SafeO2OError.exit_code`; a
traceback is for our own mistakes only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class SafeO2OError(Exception):
    """Base of every error that is the input's fault and not the program's.

    Args:
        what: what is wrong, one clause.
        where: the file, flag or field that is wrong.
        todo: what the user can do about it.
    """

    exit_code = 2

    def __init__(
        self, what: str, *, where: str | Path | None = None, todo: str | None = None
    ) -> None:
        self.what, self.where, self.todo = what, where, todo
        text = what if where is None else f"{where}: {what}"
        super().__init__(text if todo is None else f"{text}; {todo}")


class ConfigError(SafeO2OError):
    """A setting is unknown, of the wrong type, or out of range (negative limit, swapped bounds)."""


class UnknownNameError(SafeO2OError):
    """A name is not in its catalogue table; the message names the near miss."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        todo = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self.known)}"
        super().__init__(f"unknown {kind} {name!r}", todo=todo)

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str]]]:
        # Errors cross process borders, and the default passes the message alone.
        return type(self), (self.kind, self.name, self.known)


class SpecMismatchError(SafeO2OError):
    """Two artefacts disagree about observation or action names, shapes, units or bounds."""


class DataError(SafeO2OError):
    """A dataset or an episode file is missing, damaged or of another schema version."""


class BundleError(SafeO2OError):
    """A policy bundle is missing, incomplete, or its manifest disagrees with its graph."""


class CheckpointError(SafeO2OError):
    """A checkpoint is missing, damaged, or belongs to another algorithm, config or spec."""


class StorageError(SafeO2OError):
    """The disk refused a write (full, read-only); nothing half-written was left behind."""


class RobotStateError(SafeO2OError):
    """A robot or camera was used in a state that does not allow it (write before activate, ...)."""


class MissingDependencyError(SafeO2OError):
    """An optional package or system library is missing; the message says which and what to do."""
