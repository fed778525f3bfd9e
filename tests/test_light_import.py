"""The filter stands alone: importing it brings no learning, robot or vision."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "scipy", "pybullet", "rclpy", "cv2", "onnxruntime", "matplotlib", "pink")
PROBE = f"""
import json, sys
import safe_o2o.safety.filter
print(json.dumps(sorted(set({HEAVY!r}) & sys.modules.keys())))
"""


def test_importing_the_filter_is_light() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
