"""What one tick of the safety filter costs, and whether it holds under a flood of wild input.

    python benchmarks/filter_tick.py [--ticks 20000] [--wild 100000]

First the time of `certify` for the Panda at 100 Hz, in free space and against the floor of its
workspace (where it slows down, stops and plans anew): smooth targets at 5 Hz, a new proposal every
twenty ticks, so that planning is in the tail. The ratio is to a bare copy of the
proposal into a command, which is what a loop without a filter does. Then so many ticks of wild
input (targets near, far, NaN, infinite, permuted; a jumping clock; noisy readings) and as many of
driving from wall to wall at full speed, judged by a checker of its own limits and kinematics; any
violation makes the exit code 1. One core.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.types import Command, Proposal, RobotState, Verdict
from tests.invariance import BOX, DT, HOME, Tally, bang_run, wild_run

STEP_TICKS = 20
SLICE = 5_000
"""Wild ticks a seed: small enough for a progress bar, long enough to meet every wall."""


DOWN = np.array([0.0, 0.35, 0.0, -0.2, 0.0, 0.2, 0.0])
"""From HOME through the floor of the workspace."""


def timed(
    ticks: int, push: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64], Counter[str]]:
    """Seconds of each `certify`, seconds of each bare copy, and the verdicts.

    Args:
        ticks: how many.
        push: how far the targets lead down and back up, 1 is beyond the floor.
    """
    filter_ = SafetyFilter.for_robot("panda", workspace=BOX, tool_speed=None, period=DT)
    names, still = filter_.limits.joint_names, np.zeros(7)
    spent, copied, verdicts = np.empty(ticks), np.empty(ticks), Counter[str]()
    filter_.reset(RobotState(HOME, still, HOME, 0.0))
    q = HOME
    for k in range(ticks):
        now = (k + 1) * DT
        if k % STEP_TICKS == 0:
            phase = 0.05 * (k // STEP_TICKS + 1)
            wave = 0.06 * np.sin(phase * np.arange(1, 8)) + push * np.sin(phase) ** 2 * DOWN
            proposal = Proposal((HOME + wave)[None], STEP_TICKS * DT, now - DT, names)
        state = RobotState(q, still, q, now)
        began = time.perf_counter()
        decision = filter_.certify(state, proposal, now)
        between = time.perf_counter()
        Command(np.array(proposal.q[0]), still, now)
        spent[k], copied[k] = between - began, time.perf_counter() - between
        verdicts[decision.verdict.name] += 1
        q = decision.command.q
    return spent, copied, verdicts


def flood(run: Callable[[int, int], Tally], ticks: int, name: str) -> Tally:
    """A judged run in slices with a progress bar."""
    total = Tally()
    for first in track(range(0, ticks, SLICE), description=name, console=Console(stderr=True)):
        tally = run(min(SLICE, ticks - first), first)
        total.ticks += tally.ticks
        total.verdicts.update(tally.verdicts)
        total.violations.update(tally.violations)
    print(f"{total.ticks} ticks {name}: {sum(total.violations.values())} violations", end=" ")
    print(dict(total.violations) or "", end="; ")
    print(", ".join(f"{v.name} {total.verdicts[v.name]}" for v in Verdict))
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ticks", type=int, default=20_000, help="timed ticks in free space")
    parser.add_argument("--wild", type=int, default=100_000, help="judged ticks of each kind")
    options = parser.parse_args()
    timed(min(1000, options.ticks))  # warm up
    for place, push in (("in free space", 0.0), ("near the walls", 1.2)):
        gc.disable()
        spent, copied, verdicts = timed(options.ticks, push)
        gc.enable()
        p50, p99, worst = 1e6 * np.percentile(spent, [50, 99, 100])
        bare = 1e6 * float(np.median(copied))
        print(f"certify, panda, {place}, {options.ticks} ticks: ", end="")
        print(f"p50 {p50:.0f} us, p99 {p99:.0f} us, max {worst:.0f} us")
        print(f"  a bare copy takes {bare:.1f} us: the filter costs {p50 / bare:.0f} times that")
        print("  " + ", ".join(f"{v.name} {verdicts[v.name]}" for v in Verdict))
    runs = (wild_run, "of wild input"), (bang_run, "from wall to wall")
    tallies = [flood(run, options.wild, name) for run, name in runs if options.wild > 0]
    return 1 if any(tally.violations for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
