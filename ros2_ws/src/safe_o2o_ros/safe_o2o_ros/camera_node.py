"""A real camera in a process of its own: no picture ever holds up the control loop.

`image` has one picture for every instant at which the robot asks for a decision (each task status),
stamped like it, so that policy and recorder know what belongs together; the picture is the newest
one, and one that is too old is not sent. `image_stream` is what the camera sees at a steady rate,
for human eyes and for whoever watches the camera.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image

from safe_o2o import catalog
from safe_o2o.config import require_given, require_positive
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import TaskStatus, image_to_msg, record_from_msg
from safe_o2o_ros.node import ERROR, OK, WARN, GuardedNode, Health, run_node
from safe_o2o_ros.parameters import setting


@dataclass(frozen=True)
class CameraNodeConfig:
    """Parameters of the camera node."""

    camera: str = setting("opencv", "catalogue name of the camera")
    source: str = setting("0", "device number, file or URL")
    size: int = setting(64, "height and width of the pictures, pixels")
    stream_rate: float = setting(10.0, "pictures a second on image_stream, Hz")
    oldest: float = setting(0.1, "oldest picture that shows an instant, s")

    def __post_init__(self) -> None:
        require_given(self, "camera", "source")
        require_positive(self, "size", "stream_rate", "oldest")


class CameraNode(GuardedNode):
    """Subscribes to task status; publishes `image` and `image_stream`."""

    def __init__(self, **options: Any) -> None:
        super().__init__("camera_node", CameraNodeConfig, **options)
        self.camera: Any = None
        self.pictures = self.too_old = 0
        self._broken = ""

    def on_start(self) -> None:
        """Open the camera; subscribe."""
        config: CameraNodeConfig = self.config
        source = int(config.source) if config.source.isdecimal() else config.source
        self.camera = catalog.load("camera", config.camera)(source, config.size)
        self.camera.connect()
        self._publisher = self.create_publisher(Image, "image", qos.STREAM)
        self._stream = self.create_publisher(Image, "image_stream", qos.STREAM)
        self.create_subscription(
            DiagnosticArray, "task_status", self.guarded(self._on_status), qos.STREAM
        )
        period = 1.0 / config.stream_rate
        self.create_timer(period, self.guarded(self._show), clock=self.steady)

    def on_free(self) -> None:
        """Release the device."""
        if self.camera is not None:
            self.camera.close()
            self.camera = None

    def health(self) -> Health:
        """Pictures so far, and why there are none."""
        values = {"pictures": self.pictures, "too old": self.too_old}
        if self.camera is None:
            return WARN, "no camera", values
        if self._broken:
            return ERROR, self._broken, values
        return OK, f"{self.pictures} pictures", values

    def _read(self) -> tuple[Any, float] | None:
        """The newest picture and when it was taken on the monotonic clock, s; None without one."""
        try:
            with self.latency.time("camera_read"):
                found: tuple[Any, float] = self.camera.read()
        except Exception as error:  # a camera that is frozen or gone: who needs it will stop
            self._broken = " ".join(str(error).split())
            return None
        self._broken = ""
        return found

    def _on_status(self, msg: DiagnosticArray) -> None:
        """The picture of one instant; none is better than one of another."""
        status = record_from_msg(TaskStatus, msg)
        found = self._read()
        if found is None:
            return
        image, taken = found
        age = status.read_at - taken
        if age <= self.config.oldest:
            self.latency.add("picture_age", max(0.0, age))
            self._publisher.publish(image_to_msg(image, status.stamp))
            self.pictures += 1
        else:
            self.too_old += 1

    def _show(self) -> None:
        if self.camera is None or not self._stream.get_subscription_count():
            return
        found = self._read()
        if found is not None and time.monotonic() - found[1] <= 1.0 / self.config.stream_rate:
            now = self.get_clock().now().nanoseconds * 1e-9
            self._stream.publish(image_to_msg(found[0], now))


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(CameraNode, argv)


if __name__ == "__main__":
    sys.exit(main())
