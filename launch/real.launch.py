"""A real arm behind its own driver, its camera, policy, recorder and learner.

    ros2 launch safe_o2o_ros real.launch.py bundles:=/abs/bundles params_file:=/abs/your_cell.yaml

Begins in shadow: everything is judged and nothing is sent until a person calls
`/safe_o2o/robot_node/arm`. With `use_mock_hardware:=true` neither arm nor camera is needed. Two
arms are two launches, with namespaces `left` and `right` and a parameter file each.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from from_graph import DDS, describe, value
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = {
    "robot_type": ("panda", "the arm: panda, fr3, ur3e, ur5e, ur10e, xarm6, xarm7"),
    "use_mock_hardware": ("false", "no arm and no camera: a mock driver and a mock camera"),
    "camera": ("opencv", "catalogue name of the camera"),
    "camera_source": ("0", "device number, file or URL of the camera"),
    "shadow": ("true", "begin in SHADOW: everything is judged, nothing is sent"),
    "use_sim_time": ("false", "take time from /clock"),
}


def generate_launch_description():
    mock = LaunchConfiguration("use_mock_hardware")
    camera = PythonExpression(
        ["'mock' if '", mock, "'.lower() == 'true' else '", LaunchConfiguration("camera"), "'"]
    )
    overrides = {
        "robot_node": {"arm": value("robot_type"), "shadow": value("shadow", bool)},
        "mock_driver_node": {"arm": value("robot_type")},
        "camera_node": {
            "camera": ParameterValue(camera, value_type=str),
            "source": value("camera_source"),
        },
        "": {"use_sim_time": value("use_sim_time", bool)},
    }
    return describe("real", ARGUMENTS, overrides, DDS, namespace="safe_o2o")
