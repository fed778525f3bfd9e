"""Any camera or video that OpenCV opens, as the small square pictures that policies see."""

from __future__ import annotations

import threading
import time

import cv2
import numpy as np

from safe_o2o.errors import ConfigError, RobotStateError
from safe_o2o.types import Array


class OpenCVCamera:
    """USB camera, stream or video file; the newest frame, cropped to a square and shrunk.

    A thread empties the driver's buffer all the time, so that `read` never returns an old frame and
    never waits for the sensor.

    Args:
        source: device number, file or URL.
        size: height and width of the returned picture, pixels.
        timeout: longest wait for the first frame, and oldest frame that `read` returns, s.

    Raises:
        ConfigError: size or timeout is not positive.
    """

    def __init__(self, source: int | str = 0, size: int = 64, timeout: float = 1.0) -> None:
        if size < 1 or not timeout > 0:
            raise ConfigError(f"needs size and timeout > 0, got {size}, {timeout}", where="camera")
        self.source, self.size, self.timeout = source, size, timeout
        self._capture: cv2.VideoCapture | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._fresh = threading.Condition()
        self._frame: tuple[Array, float] | None = None

    def connect(self) -> None:
        """Open the device and wait for the first frame.

        Raises:
            RobotStateError: it does not open, or delivers nothing in time.
        """
        if self._capture is not None:
            return
        capture = cv2.VideoCapture(self.source)
        if not capture.isOpened():
            capture.release()
            raise RobotStateError(
                "does not open",
                where=f"camera {self.source}",
                todo="check cable, number and rights",
            )
        self._capture = capture
        self._stop.clear()
        self._thread = threading.Thread(target=self._grab, name="camera", daemon=True)
        self._thread.start()
        with self._fresh:
            if not self._fresh.wait_for(lambda: self._frame is not None, self.timeout):
                self.close()
                raise RobotStateError(
                    f"delivered nothing for {self.timeout} s", where=f"camera {self.source}"
                )

    def read(self) -> tuple[Array, float]:
        """Newest picture `[size, size, 3]` uint8 RGB and its time on the monotonic clock, s.

        Raises:
            RobotStateError: not connected, or the newest frame is older than `timeout`.
        """
        with self._fresh:
            frame = self._frame
        if self._capture is None or frame is None:
            raise RobotStateError("is not connected", where=f"camera {self.source}")
        picture, stamp = frame
        age = time.monotonic() - stamp
        if not age <= self.timeout:
            raise RobotStateError(f"froze {age:.1f} s ago", where=f"camera {self.source}")
        return shrink(picture, self.size), stamp

    def close(self) -> None:
        """Release the device; idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)
        if self._capture is not None:
            self._capture.release()
        self._capture = self._thread = self._frame = None

    def _grab(self) -> None:
        capture = self._capture
        assert capture is not None
        while not self._stop.is_set():
            ok, picture = capture.read()
            stamp = time.monotonic()
            if not ok:
                self._stop.wait(0.01)  # a video file has ended, or a device fell silent
                continue
            with self._fresh:
                self._frame = (picture, stamp)
                self._fresh.notify_all()


def shrink(picture: Array, size: int) -> Array:
    """Middle square of a BGR frame `[H, W, 3]`, averaged down to `[size, size, 3]` RGB."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    small = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
