"""How fast the twin is: observed policy steps per second, and who takes the time.

    python benchmarks/twin_speed.py [--steps 1500] [--processes 1 2] [--tasks safe_reach ...]

One observed step is a whole policy step of the environment as it is used everywhere: differential
IK, twenty control ticks each read, certified and written (one physics step each), and one rendered
picture. Resets are part of the rate. Figures are wall time and mean something on an idle machine;
the rate per second of processor time is the one to compare on a busy one.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import multiprocessing
import time
from collections import Counter

STAGES = {
    "observe": "renderer",
    "certify": "filter",
    "write": "physics",
    "propose": "inverse kinematics",
    "reset": "resets",
    "read": "reading the state",
}


def run(task: str, steps: int, first_seed: int) -> Counter[str]:
    """The seconds that an observed step takes in each stage, in one process."""
    from safe_o2o_sim.make import make_env
    from safe_o2o_sim.tasks.safe_reach_behaviors import Expert

    env = make_env(task)
    expert = Expert(env.task)  # type: ignore[arg-type]
    env.reset(first_seed)  # the first episode builds the world and is not what is measured
    seconds: Counter[str] = Counter()
    done, seed, began, worked = 0, first_seed, time.perf_counter(), time.process_time()
    while done < steps:
        seed += 1
        start = time.perf_counter()
        step = env.reset(seed)
        expert.reset(seed)
        seconds["reset"] += time.perf_counter() - start
        while not (step.terminated or step.truncated):
            step = env.step(expert.act(step.obs))
            for stage, spent in step.info["timings"].items():
                seconds[stage] += spent
            done += 1
    seconds["total"] = time.perf_counter() - began
    seconds["processor"] = time.process_time() - worked
    env.close()
    return Counter({stage: spent / done for stage, spent in seconds.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500, help="observed steps a process")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tasks", nargs="+", default=["safe_reach", "safe_reach_2"])
    options = parser.parse_args()
    for task in options.tasks:
        for processes in options.processes:
            measure(task, options.steps, processes)


def measure(task: str, steps: int, processes: int) -> None:
    """Print the rate of so many processes at once, and where a step's time goes."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        jobs = [(task, steps, 100_000 * (i + 1)) for i in range(processes)]
        results = pool.starmap(run, jobs)
    rate = sum(1.0 / seconds["total"] for seconds in results)
    spent = Counter[str]()
    for seconds in results:
        spent.update({stage: value / processes for stage, value in seconds.items()})
    total, processor = spent.pop("total"), spent.pop("processor")
    print(f"{task}, {processes} process(es): {rate:.0f} observed policy steps/s", end=", ")
    print(f"{1.0 / processor:.0f} per second of processor time")
    for stage, name in STAGES.items():
        print(f"  {name:20s} {1e3 * spent[stage]:6.2f} ms  {spent[stage] / total:5.1%}")
    rest = total - sum(spent.values())
    print(f"  {'the rest':20s} {1e3 * rest:6.2f} ms  {rest / total:5.1%}")


if __name__ == "__main__":
    main()
