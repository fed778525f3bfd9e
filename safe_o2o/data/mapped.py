"""A safetensors file behind a memory map: arrays as views, pages read when touched.

The library's own reader copies each array; the format is made to be mapped, so this maps it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import resource
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from safe_o2o.errors import DataError
from safe_o2o.types import Array

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


class MappedTensors:
    """Header of a file, read at once, and its arrays, mapped when asked for.

    Args:
        path: a safetensors file.

    Attributes:
        layout: dtype, shape and position in the file by name.
        metadata: the file's own strings.

    Raises:
        DataError: the file cannot be read.
        ValueError, KeyError, TypeError, AttributeError: it is cut off or not of this format.
    """

    def __init__(self, path: Path) -> None:
        try:
            with open(path, "rb") as file:
                stat = os.fstat(file.fileno())
                head = file.read(8)
                length = int.from_bytes(head, "little") if len(head) == 8 else stat.st_size
                raw = file.read(length) if 8 + length <= stat.st_size else b""
        except OSError as error:
            raise DataError(
                f"cannot be read: {(error.strerror or str(error)).lower()}",
                where=path,
                todo="check the path and the permissions",
            ) from error
        self.path = path
        self._identity = (str(path), stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if not raw:
            raise ValueError("the file is cut off inside its header, or is no safetensors file")
        header = json.loads(raw)
        self.metadata: dict[str, str] = header.pop("__metadata__")
        self.layout: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}
        end = data = 8 + len(raw)
        for name, entry in header.items():
            dtype, shape = _DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
            begin, stop = entry["data_offsets"]
            if stop - begin != dtype.itemsize * math.prod(shape) or begin < 0:
                raise ValueError(f"array {name!r} has an impossible size")
            self.layout[name] = (dtype, shape, data + begin)
            end = max(end, data + stop)
        if end != stat.st_size:
            raise ValueError(f"the file has {stat.st_size} bytes, its header says {end}")

    def array(self, name: str) -> Array:
        """One array as a read-only view of the file.

        Raises:
            DataError: no such array, or the file changed or vanished since its header was read.
        """
        if name not in self.layout:
            raise DataError(f"has no array {name!r}, only {sorted(self.layout)}", where=self.path)
        dtype, shape, offset = self.layout[name]
        mapping = _mapping(*self._identity)
        return np.frombuffer(mapping, dtype, math.prod(shape), offset).reshape(shape)


def _map_limit() -> int:
    """How many maps to keep: each holds a file descriptor, and half of those are for others."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else max(16, min(4096, soft // 2))


@lru_cache(maxsize=_map_limit())
def _mapping(path: str, inode: int, mtime_ns: int, size: int) -> mmap.mmap:
    """Map a file, provided that it is still the one whose header was read."""
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            if (stat.st_ino, stat.st_mtime_ns, stat.st_size) == (inode, mtime_ns, size):
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(
            f"cannot be read any more: {(error.strerror or str(error)).lower()}", where=path
        ) from error
    raise DataError("changed after it was opened", where=path, todo="open the dataset again")
