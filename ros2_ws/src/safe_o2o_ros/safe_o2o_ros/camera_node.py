"""The twin's camera in a process of its own: no picture ever holds up the control loop.

It has its own copy of the scene, follows the published joint states, and stamps each picture with
the stamp of the joint state that it shows. It renders what the robot asks a decision for (each task
status), and in between at its own rate.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from safe_o2o import catalog
from safe_o2o.errors import ConfigError
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import (
    Scene,
    TaskStatus,
    image_to_msg,
    joints_from_msg,
    record_from_msg,
    stamp_from_msg,
    stamp_key,
    record_from_text,
)
from safe_o2o_ros.matching import StampMatcher
from safe_o2o_ros.node import OK, WARN, GuardedNode, Health, run_node
from safe_o2o_ros.parameters import setting


@dataclass(frozen=True)
class CameraNodeConfig:
    """Parameters of the camera node."""

    camera: str = setting("twin_camera", "catalogue name of the camera")
    rate: float = setting(10.0, "pictures a second of robot time, besides those asked for; Hz")

    def __post_init__(self) -> None:
        if not self.rate >= 0:
            raise ConfigError(f"must be 0 or more, got {self.rate}", where="rate")
