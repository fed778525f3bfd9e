r"""A recorded episode once more, open loop and through the filter.

    ros2 launch safe_o2o_ros replay.launch.py run_dir:=/abs/run first_seed:=3 \
        episode:=/abs/run/dataset/episode_000003.safetensors

What happens goes to RUN_DIR/replays. A twin lays out the scene of `first_seed` and `variant`: give
the recording's (`safe-o2o data show`). All arguments of twin.launch.py, or with `hardware:=real`
of real.launch.py, can be given as well.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from from_graph import another


def generate_launch_description():
    # One run through it, unless more are asked for.
    arguments = {"episodes": ("1", "how often")}
    return another(arguments, {"drive": "replay", "folder": "replays"})
