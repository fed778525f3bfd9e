"""A camera without a device: a grey room with a dot that goes round, for dry runs and tests."""

from __future__ import annotations

import time

import numpy as np

from safe_o2o.config import require_positive
from safe_o2o.errors import RobotStateError
from safe_o2o.types import Array

GREY, DOT = 90, (230, 60, 40)
TURN = 4.0
"""Time in which the dot goes round once, s: no two pictures are the same, as of a real camera."""


class MockCamera:
    """Its pictures say nothing of any arm.

    Args:
        source: not used; where a camera is would be said here.
        size: height and width of the pictures, pixels.

    Raises:
        ConfigError: size is not positive.
    """

    def __init__(self, source: int | str = 0, size: int = 64) -> None:
        self.source, self.size = source, size
        require_positive(self, "size")
        self._open = False

    def connect(self) -> None:
        """Open nothing."""
        self._open = True

    def read(self) -> tuple[Array, float]:
        """The picture of now `[size, size, 3]` uint8 RGB, and now on the monotonic clock, s.

        Raises:
            RobotStateError: not connected.
        """
        if not self._open:
            raise RobotStateError("is not connected", where="mock camera")
        now, size = time.monotonic(), self.size
        angle = 2.0 * np.pi * (now / TURN % 1.0)
        centre = 0.5 * size + 0.35 * size * np.array([np.sin(angle), np.cos(angle)])
        row, column = np.mgrid[0:size, 0:size] + 0.5
        distance = np.hypot(row - centre[0], column - centre[1])
        cover = np.clip(0.08 * size + 0.5 - distance, 0.0, 1.0)[..., None]  # a soft edge
        picture = (1.0 - cover) * GREY + cover * np.array(DOT)
        return np.round(picture).astype(np.uint8), now

    def close(self) -> None:
        """Close nothing; idempotent."""
        self._open = False
