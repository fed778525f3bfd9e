"""How fast Safety-Gymnasium's tasks are: decisions per second with and without pictures, resets.

    python benchmarks/safety_gymnasium_speed.py [--task safety_point_goal1 ...] [--steps 200]

A decision is one action for four frames, with both pictures drawn (64 x 64 each). Figures are
wall time and mean something on an idle machine; those per second of processor time are the ones to
compare on a busy one. A reset lays out and compiles a new scene; the first one of a process also
uploads its textures and is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import numpy as np

TASKS = (
    "safety_point_goal1",
    "safety_point_goal2",
    "safety_point_button1",
    "safety_point_push1",
    "safety_car_goal2",
)


def run(task: str, camera: bool, steps: int) -> tuple[float, float, float, float]:
    """Median seconds of a decision and of a reset: wall, processor; wall, processor."""
    from safe_o2o_sim.make import make_env

    env = make_env(task, camera=camera)
    env.reset(0)
    generator = np.random.default_rng(0)
    decisions, resets = [], []
    seed = 0
    while len(decisions) < steps:
        seed += 1
        start = time.perf_counter(), time.process_time()
        step = env.reset(seed)
        resets.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        for _ in range(min(40, steps - len(decisions))):
            action = generator.uniform(-1.0, 1.0, env.spec.action.dim)
            start = time.perf_counter(), time.process_time()
            step = env.step(action)
            decisions.append((time.perf_counter() - start[0], time.process_time() - start[1]))
            assert not step.truncated
    env.close()
    return (
        statistics.median(wall for wall, _ in decisions),
        statistics.median(cpu for _, cpu in decisions),
        statistics.median(wall for wall, _ in resets),
        statistics.median(cpu for _, cpu in resets),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", nargs="+", default=list(TASKS))
    parser.add_argument("--steps", type=int, default=200, help="decisions a line")
    options = parser.parse_args()
    print("task, decisions/s (per second of processor time), reset in ms (of processor time)")
    for task in options.task:
        for camera in (True, False):
            wall, cpu, reset, reset_cpu = run(task, camera, options.steps)
            eyes = "two cameras" if camera else "lidar"
            print(
                f"{task:22s} {eyes:12s} {1 / wall:6.0f} ({1 / cpu:6.0f})   "
                f"{1e3 * reset:7.1f} ({1e3 * reset_cpu:7.1f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
