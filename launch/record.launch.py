r"""A person demonstrates through `takeover_node`; training data come of it, in RUN_DIR/dataset.

    ros2 launch safe_o2o_ros record.launch.py run_dir:=/abs/run episodes:=50
    ros2 launch safe_o2o_ros record.launch.py hardware:=real run_dir:=/abs/run \
        params_file:=/abs/cell.yaml

All arguments of twin.launch.py, or of real.launch.py, can be given as well.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from from_graph import another


def generate_launch_description():
    return another({}, {"drive": "demonstrate", "folder": "dataset", "takeover": "true"})
