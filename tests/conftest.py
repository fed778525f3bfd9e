"""What every test shares: one thread per process, no stray ROS settings."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# Before NumPy, torch or OpenCV are imported: several workers share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A graph started by a test must not see the graphs of a neighbour, nor leave this machine.
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
# A shell that starts a job in the background lets it ignore Ctrl-C, and its children inherit that:
# tests that send SIGINT to a process of theirs would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The gate tries the same examples every time, so that a red one is due to the change. New ones:
# HYPOTHESIS_PROFILE=default pytest tests/test_watchdog.py
settings.register_profile("gate", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))
