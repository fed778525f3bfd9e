"""A real arm behind its own driver, its camera, policy, recorder and learner.

    ros2 launch safe_o2o_ros real.launch.py bundles:=/abs/bundles params_file:=/abs/your_cell.yaml

Begins in shadow: everything is judged and nothing is sent until a person calls
`/safe_o2o/robot_node/arm`. With `use_mock_hardware:=true` neither arm nor camera is needed. Two
arms are two launches, with namespaces `left` and `right` and a parameter file each.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from from_graph import DDS, Given, describe, value
from launch.substitutions import LaunchConfiguration

ARGUMENTS = {
    "robot_type": ("", "the arm: panda, fr3, ur3e, ur5e, ur10e, xarm6, xarm7; else params_file's"),
    "controller": ("", "name of its controller, whose topic is the usual one; else params_file's"),
    "use_mock_hardware": ("false", "no arm and no camera: a mock driver and a mock camera"),
    "camera": ("", "catalogue name of the camera; else params_file's"),
    "camera_source": ("", "device number, file or URL of the camera; else params_file's"),
    "shadow": ("true", "begin in SHADOW: everything is judged, nothing is sent"),
    "use_sim_time": ("false", "take time from /clock"),
}


class Camera(Given):
    """The mock one wherever the arm is mock hardware."""

    def text(self, context):
        """See `Given`."""
        mock = LaunchConfiguration("use_mock_hardware").perform(context)
        return "mock" if mock.lower() == "true" else super().text(context)


def generate_launch_description():
    arm = {"arm": Given("robot_type"), "controller": Given("controller")}
    overrides = {
        "robot_node": {**arm, "shadow": value("shadow", bool)},
        "mock_driver_node": arm,
        "camera_node": {"camera": Camera("camera"), "source": Given("camera_source")},
        "": {"use_sim_time": value("use_sim_time", bool)},
    }
    return describe("real", ARGUMENTS, overrides, DDS, namespace="safe_o2o")
