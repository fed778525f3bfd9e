"""PyBullet without the banner that it prints when it is imported, which would tear progress bars.

The banner comes from C and bypasses `sys.stderr`; so the file descriptors themselves look away.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _unheard() -> Iterator[None]:
    """Nothing that C code prints meanwhile is seen."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
        ctypes.CDLL(None).fflush(None)
    finally:
        for descriptor, old in zip((1, 2), kept, strict=True):
            os.dup2(old, descriptor)
            os.close(old)
        os.close(nowhere)


with _unheard():
    import pybullet

__all__ = ["pybullet"]
