"""PyBullet without the banner that it prints when it is imported, which would tear progress bars.

The banner comes from C and bypasses `sys.stdout`; so the file descriptor itself looks away.
"""

from __future__ import annotations

import ctypes
import os
import sys

if "pybullet" not in sys.modules:
    sys.stdout.flush()
    _stdout, _nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(_nowhere, 1)
    try:
        import pybullet

        ctypes.CDLL(None).fflush(None)
    finally:
        os.dup2(_stdout, 1)
        os.close(_stdout)
        os.close(_nowhere)

import pybullet

__all__ = ["pybullet"]
