"""The filter stands alone: importing it costs little and brings no learning, robot or vision."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "scipy", "pybullet", "rclpy", "cv2", "onnxruntime", "matplotlib", "pink")
PROBE = f"""
import json, sys, time
import numpy, pinocchio
began = time.perf_counter()
import safe_o2o.safety.filter
spent = time.perf_counter() - began
print(json.dumps([spent, sorted(set({HEAVY!r}) & sys.modules.keys())]))
"""


def test_importing_the_filter_is_light() -> None:
    best = 1e9
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True
        )
        spent, heavy = json.loads(done.stdout)
        assert heavy == []
        best = min(best, spent)
    # Beyond NumPy and pinocchio. About 0.05 s; ten times that is room for a busy machine.
    assert best < 0.5
