"""Files that are either whole or not there: temporary name, fsync, rename, fsync of the folder.

A process killed at any instant leaves the old state or the new one, plus at worst a temporary file
that `safe_o2o.data.doctor` recognises by its name.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safe_o2o.errors import StorageError

_TODO = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "raise the quota or free some space, then run the same command again",
    errno.EFBIG: "raise the file size limit (ulimit -f) and run the same command again",
    errno.EROFS: "choose a folder on a writable file system",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EEXIST: "choose another name or move the old one away",
    errno.EIO: "check the disk",
}
_DISK_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_TEMPORARY = re.compile(r"^\..+\.(?P<pid>\d+)-[0-9a-f]{8}\.tmp$")


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that carries our process id, unique among all calls."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def temporary_owner(path: Path) -> int | None:
    """The process id in a name made by `temporary_name`, None for any other name."""
    match = _TEMPORARY.match(path.name)
    return int(match["pid"]) if match else None


def storage_error(error: OSError, path: Path) -> StorageError:
    """The one-line form of what the operating system said about a write."""
    what = f"cannot be written: {(error.strerror or str(error)).lower()}"
    return StorageError(what, where=path, todo=_TODO.get(error.errno or 0))


def write_atomic(path: str | Path, data: bytes, *, overwrite: bool = True) -> None:
    """Write a file so that it is either complete and durable or not there at all.

    Args:
        path: the file; its folder must exist.
        data: the whole content.
        overwrite: False refuses to replace an existing file, atomically.

    Raises:
        StorageError: disk full, read-only, not allowed, or (`overwrite=False`) already there; the
            temporary file is gone and `path` is as it was.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        try:
            _write_durably(temporary, data)
            if overwrite:
                os.replace(temporary, path)
            else:
                _publish_new(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Fill a folder that appears under its name complete and durable, or not at all.

    Use as `with atomic_directory(target) as folder: write files into folder`. An exception in the
    body removes the folder and goes on; `target` must not exist yet, its parent is created.

    Raises:
        StorageError: the target exists, or a write failed because the disk refused it (full,
            read-only, quota); nothing is left behind.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        temporary.mkdir()
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync_file(Path(folder, name))
            _sync_folder(Path(folder))
        os.rename(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # A library that writes into the folder reports a full disk as a plain OSError.
        if isinstance(error, OSError) and error.errno in _DISK_REFUSED:
            raise storage_error(error, path) from error
        raise


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _publish_new(temporary: Path, path: Path) -> None:
    """Give a finished file its name, failing when the name is taken."""
    try:
        os.link(temporary, path)  # unlike rename, link refuses an existing name
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # FAT and some network mounts know no hard links: check, then rename.
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        os.rename(temporary, path)
    else:
        temporary.unlink()


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
