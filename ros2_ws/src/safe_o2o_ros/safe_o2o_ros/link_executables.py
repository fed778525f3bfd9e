"""Let `ros2 run` and `ros2 launch` find nodes that pip installed.

Run `python -m safe_o2o_ros.link_executables` once after `pip install`: ROS looks for
`<prefix>/lib/<package>/<executable>`, pip puts console scripts in `<prefix>/bin`. Colcon needs none
of this.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path


def link(prefix: Path) -> list[Path]:
    """Link the package's console scripts to where ROS looks for them; returns the new links."""
    made: list[Path] = []
    folder = prefix / "lib" / "safe_o2o_ros"
    scripts = importlib.metadata.distribution("safe_o2o_ros").entry_points
    for script in scripts.select(group="console_scripts"):
        source, target = prefix / "bin" / script.name, folder / script.name
        if source.exists() and not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            target.symlink_to(os.path.relpath(source, folder))
            made.append(target)
    return made


if __name__ == "__main__":
    for path in link(Path(sys.prefix)):
        sys.stdout.write(f"{path}\n")
