"""How the C library hands out the memory of a training process."""

from __future__ import annotations

import ctypes

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_KEEP = 2**31 - 1  # the largest that mallopt takes
_GROW = 64 * 1024 * 1024


def keep_freed_memory() -> bool:
    """Let freed tensors stay with this process instead of going back to the system.

    An update makes the same few dozen tensors of some megabytes again and again; by default glibc
    maps and unmaps every one of them, and the page faults cost up to a fifth of an update
    (`benchmarks/update_time.py`). What an update needs at its peak stays resident between updates,
    up to 2 GiB of it.

    Returns:
        Whether the settings took: False without glibc, where nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # No block is mapped by itself, however large: the heap keeps them all.
    wanted = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _KEEP, _M_TOP_PAD: _GROW}
    return all([mallopt(name, value) == 1 for name, value in wanted.items()])
