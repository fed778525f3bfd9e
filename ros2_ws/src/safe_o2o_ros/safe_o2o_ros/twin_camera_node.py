"""The twin's camera in a process of its own: no picture ever holds up the control loop.

It has its own copy of the scene and follows the published joint states. `image` has one picture for
every instant at which the robot asks for a decision (each task status), stamped like the joint
state it shows. `image_stream` is for human eyes: pictures at a steady rate, rendered only while
somebody looks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from safe_o2o.errors import ConfigError
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import (
    Scene,
    TaskStatus,
    image_to_msg,
    joints_from_msg,
    record_from_msg,
    record_from_text,
    stamp_from_msg,
    stamp_key,
)
from safe_o2o_ros.matching import StampMatcher
from safe_o2o_ros.node import OK, WARN, GuardedNode, Health, run_node
from safe_o2o_ros.parameters import setting
from safe_o2o_sim.pybullet_twin import PybulletTwin
from safe_o2o_sim.scene import SceneLayout
from safe_o2o_sim.twin_camera import TwinCamera


@dataclass(frozen=True)
class TwinCameraNodeConfig:
    """Parameters of the twin's camera node."""

    size: int = setting(64, "height and width of the pictures, pixels")
    stream_rate: float = setting(10.0, "pictures a second of robot time on image_stream, Hz")

    def __post_init__(self) -> None:
        if not self.stream_rate > 0:
            raise ConfigError(f"must be positive, got {self.stream_rate}", where="stream_rate")


class TwinCameraNode(GuardedNode):
    """Subscribes to scene, joint states and task status; publishes `image` and `image_stream`."""

    def __init__(self) -> None:
        super().__init__("camera_node", TwinCameraNodeConfig)
        self.camera: TwinCamera | None = None
        self.pictures = 0
        self.late_scenes = 0

    def on_start(self) -> None:
        """Build the scene's copy; subscribe."""
        self.camera = TwinCamera(self.config.size)
        self.camera.connect()
        self.camera.read()  # the first picture loads the meshes
        self._episode = -1
        self._streamed = -1.0
        self._early: tuple[JointState, TaskStatus] | None = None
        self._matcher = StampMatcher(("joints", "status"), anchor="status")
        self._publisher = self.create_publisher(Image, "image", qos.STREAM)
        self._stream = self.create_publisher(Image, "image_stream", qos.COMMAND)
        for kind, topic, callback, profile in (
            (String, "scene", self._on_scene, qos.LATCHED),
            (JointState, "joint_states", self._on_joints, qos.STREAM),
            (DiagnosticArray, "task_status", self._on_status, qos.STREAM),
        ):
            self.create_subscription(kind, topic, self.guarded(callback), profile)

    def on_free(self) -> None:
        """Release the scene."""
        if self.camera is not None:
            self.camera.close()
            self.camera = None

    def health(self) -> Health:
        """Pictures so far, and how often a question came before its scene."""
        values = {"pictures": self.pictures, "late scenes": self.late_scenes}
        if self.camera is None or self._episode < 0:
            return WARN, "no scene yet", values
        return OK, f"{self.pictures} pictures", values

    def _on_scene(self, msg: String) -> None:
        scene = record_from_text(Scene, msg)
        assert self.camera is not None
        self.camera.set_scene(SceneLayout.from_json(scene.layout), scene.began)
        self._episode = scene.episode
        early, self._early = self._early, None
        if early is not None:
            self._show(*early)

    def _on_joints(self, msg: JointState) -> None:
        self._on_part("joints", stamp_key(msg.header.stamp), msg)
        stamp = stamp_from_msg(msg.header.stamp)
        due = stamp < self._streamed or stamp - self._streamed >= 1.0 / self.config.stream_rate
        if due and self._stream.get_subscription_count() > 0:
            self._streamed = stamp
            self._stream.publish(self._render(msg))

    def _on_status(self, msg: DiagnosticArray) -> None:
        status = record_from_msg(TaskStatus, msg)
        self._on_part("status", stamp_key(msg.header.stamp), status)

    def _on_part(self, name: str, key: int, value: JointState | TaskStatus) -> None:
        parts = self._matcher.add(name, key, value)
        if parts is not None:
            self._show(parts["joints"], parts["status"])

    def _show(self, joints: JointState, status: TaskStatus) -> None:
        """Publish the picture of one instant; a picture of the wrong scene must never go out."""
        if status.episode > self._episode:  # topics overtake each other: the scene is on its way
            self._early, self.late_scenes = (joints, status), self.late_scenes + 1
        elif status.episode == self._episode:
            self._publisher.publish(self._render(joints))
            self.pictures += 1

    def _render(self, joints: JointState) -> Image:
        assert self.camera is not None
        with self.latency.time("camera_render"):
            q, _ = joints_from_msg(joints, PybulletTwin.joint_names)
            self.camera.follow(q, stamp_from_msg(joints.header.stamp))
            image, stamp = self.camera.read()
            return image_to_msg(image, stamp)


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(TwinCameraNode, argv)


if __name__ == "__main__":
    sys.exit(main())
