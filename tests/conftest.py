"""What every test shares: one thread per process, no stray ROS settings."""

from __future__ import annotations

import os

# Before NumPy, torch or OpenCV are imported: several workers share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A graph started by a test must not see the graphs of a neighbour, nor leave this machine.
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
