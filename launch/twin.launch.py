"""The twin's whole graph: `ros2 launch safe_o2o_ros twin.launch.py bundles:=/abs/path/to/bundles`.

Reads the graph from graphs/twin.yaml and the parameters from params/twin.yaml, the same files that
`safe-o2o deploy` reads; imports nothing of safe_o2o.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from from_graph import DDS, HERE_ONLY, describe, value

ARGUMENTS = {
    "task": ("safe_reach", "catalogue name of the task"),
    "variant": ("standard", "scene variant of the task"),
    "speed": ("1.0", "twin time per wall time"),
    "first_seed": ("0", "seed of the first layout"),
}


def generate_launch_description():
    overrides = {
        "robot_node": {
            "task": value("task"),
            "variant": value("variant"),
            "speed": value("speed", float),
            "first_seed": value("first_seed", int),
        }
    }
    return describe("twin", ARGUMENTS, overrides, {**DDS, **HERE_ONLY})
