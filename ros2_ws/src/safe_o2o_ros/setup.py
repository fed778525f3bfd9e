"""Build file for colcon (ament_python) and pip alike."""

import glob
import os

from setuptools import setup

PACKAGE = "safe_o2o_ros"
NODES = (
    "robot_node",
    "real_robot_node",
    "safety_filter_node",
    "mock_driver_node",
    "twin_camera_node",
    "camera_node",
    "policy_node",
    "demonstration_node",
    "replay_node",
    "takeover_node",
    "recorder_node",
    "bag_node",
    "learner_node",
)

# The launch files live at the top of the repository, beside the robots and tasks that they start.
# Colcon and pip both run this file from its own folder; an sdist of this folder alone has no launch
# files to install.
LAUNCH = os.path.join("..", "..", "..", "launch")


def launch_files(*parts):
    """Files below the repository's launch folder, as paths relative to this file."""
    return sorted(glob.glob(os.path.join(LAUNCH, *parts)))


setup(
    name=PACKAGE,
    version="0.1.0",
    packages=[PACKAGE],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", launch_files("*.py")),
        (f"share/{PACKAGE}/launch/graphs", launch_files("graphs", "*.yaml")),
        (f"share/{PACKAGE}/launch/dds", launch_files("dds", "*.xml")),
        (f"share/{PACKAGE}/launch/params", launch_files("params", "*.yaml")),
        (f"share/{PACKAGE}/launch/security", launch_files("security", "*.xml")),
    ],
    install_requires=["setuptools"],
    extras_require={"test": ["pytest"]},
    zip_safe=True,
    maintainer="The safe_o2o developers",
    maintainer_email="maintainers@safe-o2o.invalid",
    description="ROS 2 nodes of safe_o2o: robot and filter, camera, policy, recorder, learner.",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"{node} = {PACKAGE}.{node}:main" for node in NODES]},
)
