"""What a tick of the filter costs among obstacles, beside a plain CBF-QP and OSCBF, on one core.

    python benchmarks/filter_speed.py [--ticks 3000] [--motions 10] [--oscbf PATH_TO_PYTHON]

Three things of ours: one candidate of 31 configurations verified against 21 spheres by 50
obstacles, as clutter on a table, as a crowd 1 to 10 cm about the arm, and, without a bar, with none
of the 1050 pairs left out for being far away; a whole `certify` tick
with 8 obstacles, 4 of them moving, self-collision, workspace and tool speed; ticks among 50
obstacles in which five candidates were tried.

Then three filters on the same 21 spheres of OSCBF's Panda and the same obstacles, with 42, 168 and
420 rows: ours, path first; ours, with deflection; a CBF-QP on joint velocities as in the textbook,
solved by the fastest solver that qpsolvers finds; and OSCBF in velocity mode with its own objective
and solver. Both of the latter with alpha = 10, as OSCBF has it. They are timed on the same states;
ours on the ticks of the same motions, because it has a memory. Then each carries out motions that
lead into an obstacle, on an arm that keeps to its accelerations, integrated at 1 kHz: the velocity
filters asked a hundred and a thousand times a second, ours a hundred times. The least clearance is
told, in mm; below zero the arm has touched. No filter keeps a margin here.

Times are of the wall clock; next to them the processor's, which others on the machine do not
lengthen, and the ratio to a fixed piece of work timed in the same run. Best of three runs, and the
worst. Exit code 1 where a bar of ours is missed.

OSCBF lives in an environment of its own (Python 3.11):

    python -m venv oscbf-venv
    oscbf-venv/bin/pip install "jax==0.4.30" "jaxlib==0.4.30" "numpy<2" "scipy<1.14" \
        "cbfpy==0.0.1" qpax networkx lxml trimesh pillow six matplotlib
    git clone --depth 1 https://github.com/StanfordASL/oscbf
    oscbf-venv/bin/pip install --no-deps -e ./oscbf
    python benchmarks/filter_speed.py --oscbf oscbf-venv/bin/python
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import numpy as np
from _motions import DT, ROOM, Motions, reference_ms
from _oscbf_peer import execute
from _velocity_cbf import Scene, SphereModel, VelocityCbf, carried_out, scenes, sphere_body, states
from filter_trajectories import Policy, schedule
from rich.console import Console
from rich.progress import track

from safe_o2o.safety.body import Body
from safe_o2o.safety.filter import FilterConfig, SafetyFilter
from safe_o2o.safety.joint_limits import JointLimits
from safe_o2o.safety.motion import Motion
from safe_o2o.safety.obstacle import Obstacle, Obstacles
from safe_o2o.safety.sweep import JointDifferences, lowest_clearance
from safe_o2o.types import Array, RobotState

RUNS = 3
COUNTS = (2, 8, 20)
"""Obstacles, of which each makes 21 rows: 42, 168 and 420."""
EVERY = (10, 1)
"""Milliseconds between two commands of a velocity filter."""
OURS = "ours, path first"


@dataclass
class Timing:
    """Seconds `[k, 2]` of runs, on the wall clock and of the processor."""

    name: str
    runs: list[Array] = field(default_factory=list)

    def best(self, percentile: float, clock: int = 0) -> float:
        """Of the best run, ms."""
        return min(self._each(percentile, clock))

    def _each(self, percentile: float, clock: int) -> list[float]:
        return [1e3 * float(np.percentile(run[:, clock], percentile)) for run in self.runs]

    def row(self, reference: float) -> str:
        """One line of a table: best and worst run."""
        cells = []
        for percentile, clock in ((50, 0), (99, 0), (100, 0), (50, 1), (99, 1)):
            each = self._each(percentile, clock)
            cells.append(f"{min(each):7.3f} ..{max(each):7.3f}")
        count = min(len(run) for run in self.runs)
        return f"  {self.name:34} {count:6d} {' '.join(cells)} {self.best(50) / reference:7.2f}"


HEADER = f"  {'ms, best .. worst of runs':34} {'n':>6} " + " ".join(
    f"{name:^16}" for name in ("p50", "p99", "max", "p50 of CPU", "p99 of CPU")
)


class Stopwatch:
    """Times calls on both clocks."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []

    def __call__(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What the call answers."""
        wall, cpu = time.perf_counter(), time.process_time()
        out = call(*arguments)
        cpu = time.process_time() - cpu
        self._samples.append((time.perf_counter() - wall, cpu))
        return out

    def samples(self) -> Array:
        """`[k, 2]`, s."""
        return np.array(self._samples).reshape(-1, 2)


def clutter(generator: np.random.Generator, count: int) -> list[Obstacle]:
    """Spheres on a table, as in OSCBF's example."""
    places = generator.uniform((0.2, -0.4, 0.1), (0.8, 0.4, 0.3), (count, 3))
    radii = generator.uniform(0.01, 0.1, count)
    return [
        Obstacle(f"o{k}", tuple(place), float(radius))
        for k, (place, radius) in enumerate(zip(places, radii, strict=True))
    ]


def candidates(motions: Motions, count: int) -> Iterator[Motion]:
    """Motions of 31 configurations from the middle of random trajectories."""
    for way, _ in islice(motions, count):
        t = 0.4 * way.duration + DT * np.arange(31)
        q = way.at(t)
        yield Motion(q, DT, (q[1] - q[0]) / DT)


def crowd(generator: np.random.Generator, body: Body, q: Array, count: int) -> list[Obstacle]:
    """Spheres all around the arm at `[n]`, each 1 to 10 cm from one of its own."""
    places = body.positions(q[None])[0][:, : body.spheres]
    which = generator.integers(0, body.spheres, count)
    ways = generator.normal(0.0, 1.0, (count, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    radii, gaps = generator.uniform(0.01, 0.1, count), generator.uniform(0.01, 0.1, count)
    far = radii + gaps + body.radius[which]
    return [
        Obstacle(f"o{k}", tuple(places[:, which[k]] + far[k] * ways[k]), float(radii[k]))
        for k in range(count)
    ]


def one_candidate(ticks: int, where: str) -> Array:
    """Seconds to verify one candidate of 31 configurations, 21 spheres and 50 obstacles.

    Args:
        ticks: how many.
        where: `clutter` on a table; a `crowd` about the arm; or `all` 1050 pairs looked at between
            the ticks, however far apart.
    """
    motions, watch, generator = Motions("panda", 3), Stopwatch(), np.random.default_rng(4)
    obstacles = Obstacles(sphere_body(), clutter(generator, 50))
    if where == "all":
        obstacles.range = 1e3  # what is farther than this is left out
    joints = JointLimits(motions.limits)
    differences = JointDifferences(motions.limits, DT)

    def verify(given: Motion) -> None:
        motion = Motion(given.q, DT, given.velocity[0])
        differences.refusal(motion.q, motion.velocity[0], np.zeros(7))
        lowest_clearance(joints, motion)
        lowest_clearance(obstacles, motion)

    drawn = list(candidates(motions, 200))
    for k in range(20):
        verify(drawn[k])
    for k in range(ticks):
        motion = drawn[k % len(drawn)]
        if where == "crowd":
            obstacles.update(crowd(generator, obstacles.body, motion.q[15], 50))
        watch(verify, motion)
    return watch.samples()


def moving(generator: np.random.Generator, count: int) -> Callable[[float], list[Obstacle]]:
    """Obstacles around the arm by time, every other one on its way with up to 0.2 m/s."""
    angle = generator.uniform(-np.pi, np.pi, count)
    far = generator.uniform(0.5, 0.9, count)
    places = np.stack([far * np.cos(angle), far * np.sin(angle), generator.uniform(0, 0.8, count)])
    ways = generator.uniform(-1.0, 1.0, (3, count)) * 0.1 * (np.arange(count) % 2)

    def seen(now: float) -> list[Obstacle]:
        at = (places + ways * np.sin(now)).T
        return [
            Obstacle(f"o{k}", tuple(place), 0.06, max_speed=0.2, speed=0.1, max_acceleration=2.0,
                     stamp=now)
            if k % 2 else Obstacle(f"o{k}", tuple(place), 0.06)
            for k, place in enumerate(at)
        ]  # fmt: skip

    return seen


def standing(found: list[Obstacle]) -> Callable[[float], list[Obstacle]]:
    """The same obstacles at all times."""
    return lambda now: found


def drive(
    safety: SafetyFilter,
    policy: Policy,
    ticks: int,
    watch: Stopwatch,
    before: Callable[[float], None] | None = None,
) -> tuple[Array, list[Any]]:
    """Set-points `[ticks + 1, n]` and decisions."""
    q, still = policy.way.at(np.zeros(1))[0], np.zeros(7)
    safety.reset(RobotState(q, still, q, 0.0))
    out, decisions = [q], []
    for k in range(ticks):
        now = (k + 1) * DT
        if before is not None:
            before(now)
        state, proposal = RobotState(q, still, q, now), policy.proposal(k)
        decision = watch(safety.certify, state, proposal, now)
        q = decision.command.q
        policy.saw(q, decision.verdict.name == "PASS")
        out.append(q)
        decisions.append(decision)
    return np.array(out), decisions


def ticks_among(
    ticks: int, obstacles: Callable[[np.random.Generator], Any], tried: int
) -> tuple[Array, Counter[str], Array]:
    """Seconds of `certify` with everything watched, verdicts, and seconds of `Obstacles.update`.

    Args:
        ticks: how many.
        obstacles: from a generator to obstacles by time.
        tried: only ticks with at least so many candidates.
    """
    motions, generator = Motions("panda", 5), np.random.default_rng(6)
    safety = SafetyFilter.for_robot(
        "panda", workspace=motions.box, obstacles=(), self_collision=True,
        tool_speed=motions.limits.tool_velocity,
    )  # fmt: skip
    watched = next(c for c in safety.constraints if isinstance(c, Obstacles))
    kept: list[Array] = []
    verdicts, updates = Counter[str](), Stopwatch()
    for way, period in motions:
        seen, start = obstacles(generator), way.at(np.zeros(1))
        if Obstacles(motions.body, seen(0.0)).clearance(start).min() < ROOM:
            continue
        length = ceil(way.duration / DT)
        policy = Policy(way, period, schedule(generator, period, length), safety.limits.joint_names)
        watch = Stopwatch()

        def look(now: float, seen: Any = seen) -> None:
            if round(now / DT) % 3 == 1:  # perception at 33 Hz
                things = seen(now)
                updates(watched.update, things)

        _, decisions = drive(safety, policy, length, watch, look)
        use = np.array([decision.tried >= tried for decision in decisions])
        kept.append(watch.samples()[use])
        verdicts.update(
            decision.verdict.name for decision, u in zip(decisions, use, strict=True) if u
        )
        if sum(map(len, kept)) >= ticks:
            return np.concatenate(kept), verdicts, updates.samples()
    raise AssertionError("random motions do not end")


class Peers:
    """Three filters on the same spheres."""

    def __init__(self, motions: int, samples: int) -> None:
        self.body, self.spheres = sphere_body(), SphereModel()
        self.limits = Motions("panda", 0).limits
        self.samples = samples
        self.scenes = {count: scenes(self.body, count, motions) for count in COUNTS}
        self.states = {
            count: states(self.spheres, found, samples) for count, found in self.scenes.items()
        }
        self.times: dict[tuple[str, int], Timing] = {}
        self.clearance: dict[tuple[str, int], list[float]] = {}

    def ours(self, mode: Any, name: str) -> None:
        """Drive our filter through all scenes, three times."""
        for count, found in self.scenes.items():
            timing = self.times[name, count] = Timing(name)
            for run in range(RUNS):
                watch = Stopwatch()
                for scene in progress(found, len(found), f"{name}, {21 * count} rows"):
                    near = Obstacles(self.body, scene.obstacles(), margin=0.0)
                    safety = SafetyFilter(
                        self.limits, [JointLimits(self.limits), near], DT, FilterConfig(mode=mode)
                    )
                    ticks = round(scene.times[-1] / DT)
                    chunks = schedule(np.random.default_rng(9), scene.period, ticks)
                    policy = Policy(scene.way, scene.period, chunks, self.limits.joint_names)
                    q, _ = drive(safety, policy, ticks, watch)
                    if run == 0:
                        least = self.spheres.least(carried_out(q), scene)
                        self.clearance.setdefault((name, count), []).append(least)
                timing.runs.append(watch.samples())

    def cbf(self) -> str:
        """The textbook's, with the fastest solver there is; its name."""
        import qpsolvers

        scene_of, speed = self.scenes[8], self.limits.velocity
        q, u, which = (part[:200] for part in self.states[8])
        taken = {}
        for solver in qpsolvers.available_solvers:
            watch, tried = Stopwatch(), VelocityCbf(self.spheres, speed, solver)
            for state, wish, k in zip(q, u, which, strict=True):
                watch(tried, state, wish, scene_of[k])
            taken[solver] = float(np.median(watch.samples()[:, 1]))
        solver = min(taken, key=lambda name: taken[name])
        for count, found in self.scenes.items():
            name, failures = f"CBF-QP, {solver}", 0
            timing = self.times[name, count] = Timing(name)
            for _ in progress(range(RUNS), RUNS, f"{name}, {21 * count} rows"):
                watch, cbf = Stopwatch(), VelocityCbf(self.spheres, speed, solver)
                for state, wish, k in zip(*self.states[count], strict=True):
                    watch(cbf, state, wish, found[k])
                timing.runs.append(watch.samples())
            for every in EVERY:
                for scene in progress(found, len(found), f"{name}, every {every} ms"):
                    cbf = VelocityCbf(self.spheres, speed, solver)
                    q = self._execute(cbf, scene, every)
                    failures += cbf.failures
                    self.clearance.setdefault((f"{name} {every}", count), []).append(
                        self.spheres.least(q, scene)
                    )
            if failures:
                print(
                    f"  {name}, {21 * count} rows: {failures} times no solution, arm told to rest"
                )
        print("  solvers, p50 of CPU, 168 rows: ", end="")
        print(", ".join(f"{k} {1e3 * v:.3f} ms" for k, v in sorted(taken.items())))
        return f"CBF-QP, {solver}"

    def _execute(self, cbf: VelocityCbf, scene: Scene, every: int) -> Array:
        t, limits = scene.times, self.limits

        def command(q: Array, u: Array) -> Array:
            return cbf(q, u, scene)

        return np.asarray(
            execute(command, scene.way.at(t), scene.way.at(t, 1), limits.velocity,
                    limits.acceleration, every)
        )  # fmt: skip

    def oscbf(self, python: str) -> None:
        """Ask the other environment."""
        asked: dict[str, Any] = dict(
            counts=COUNTS, every=EVERY, runs=RUNS, speed=self.limits.velocity,
            acceleration=self.limits.acceleration,
        )  # fmt: skip
        for count, found in self.scenes.items():
            parts = zip(("states", "wishes", "which"), self.states[count], strict=True)
            asked |= {f"{name}_{count}": part for name, part in parts}
            asked[f"centres_{count}"] = np.array([scene.centres for scene in found])
            asked[f"radii_{count}"] = np.array([scene.radii for scene in found])
            for k, scene in enumerate(found):
                asked[f"q_{count}_{k}"] = scene.way.at(scene.times)
                asked[f"dq_{count}_{k}"] = scene.way.at(scene.times, 1)
        with tempfile.TemporaryDirectory() as folder:
            question, answer = Path(folder) / "question.npz", Path(folder) / "answer.npz"
            np.savez(question, **asked)
            script = Path(__file__).with_name("_oscbf_peer.py")
            child = subprocess.Popen(
                [python, str(script), str(question), str(answer)],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert child.stdout is not None
            for _ in progress(child.stdout, len(COUNTS), "OSCBF"):
                pass
            if child.wait():
                raise SystemExit(f"OSCBF failed with exit code {child.returncode}")
            found_ = np.load(answer)
            for count, scene_list in self.scenes.items():
                self.times["OSCBF", count] = Timing("OSCBF", list(found_[f"times_{count}"]))
                for every in EVERY:
                    self.clearance[f"OSCBF {every}", count] = [
                        self.spheres.least(found_[f"q_{count}_{every}_{k}"], scene)
                        for k, scene in enumerate(scene_list)
                    ]

    def report(self, reference: float) -> None:
        """Both tables."""
        for count in COUNTS:
            print(f"\n{21 * count} rows, {len(self.scenes[count])} motions into an obstacle")
            print(HEADER)
            for (_, n), timing in self.times.items():
                if n == count:
                    print(timing.row(reference))
            for (name, n), least in self.clearance.items():
                if n != count:
                    continue
                mm = 1e3 * np.array(least)
                kind, _, every = name.rpartition(" ")
                label = f"{kind}, every {every} ms" if every in ("1", "10") else name
                print(
                    f"  least clearance, {label:30} {mm.min():8.2f} mm, median {np.median(mm):7.2f}"
                    f", touched in {int((mm < -1e-3).sum())} of {len(mm)}"
                )


def progress(what: Any, n: int, name: str) -> Any:
    return track(what, description=name, total=n, console=Console(stderr=True), transient=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ticks", type=int, default=3000, help="timed ticks of each kind and run")
    parser.add_argument("--motions", type=int, default=10, help="motions into an obstacle")
    parser.add_argument("--oscbf", default="", help="Python of an environment with oscbf in it")
    parser.add_argument("--core", type=int, default=0, help="the one core to run on")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    warnings.filterwarnings("ignore", category=UserWarning, module="qpsolvers")
    ticks = options.ticks
    names = ("31 x 21 x 50, clutter", "31 x 21 x 50, crowded", "31 x 21 x 50, all pairs",
             "certify, 8 obstacles", "certify, 50 obstacles, 5 tried")  # fmt: skip
    rows = {name: Timing(name) for name in (*names, "Obstacles.update, 8")}
    busy, verdicts = [], {}
    calls: list[Callable[[], Any]] = [
        *(lambda where=where: one_candidate(ticks, where) for where in ("clutter", "crowd", "all")),
        lambda: ticks_among(ticks, lambda g: moving(g, 8), 0),
        lambda: ticks_among(ticks, lambda g: standing(clutter(g, 50)), 5),
    ]
    gc.disable()
    for _ in range(RUNS):
        for name, call in progress(list(zip(names, calls, strict=True)), 5, "our ticks"):
            busy.append(reference_ms())
            found = call()
            if isinstance(found, tuple):
                found, verdicts[name], updates = found
                if "8" in name:
                    rows["Obstacles.update, 8"].runs.append(updates)
            rows[name].runs.append(found)
            gc.collect()
    gc.enable()
    reference = float(np.min([np.median(b) for b in busy]))
    p99 = [float(np.percentile(b, 99)) for b in busy]
    print(f"{HEADER} {'ratio':>9}")
    for timing in rows.values():
        print(timing.row(reference))
    for name, counted in verdicts.items():
        print(f"  {name}: {', '.join(f'{k} {v}' for k, v in sorted(counted.items()))}")
    medians = [float(np.median(b)) for b in busy]
    print(f"  fixed work: p50 {reference:.3f} .. {max(medians):.3f}, ", end="")
    print(f"p99 {min(p99):.3f} .. {max(p99):.3f} ms, ", end="")
    print(f"{min(p99) / reference:.1f} .. {max(p99) / reference:.1f} times its p50 (quiet: 1)")
    bars = dict(
        zip(names, ((1.0, 2.0), (1.0, 2.0), (9e9, 9e9), (0.5, 1.5), (9e9, 5.0)), strict=True)
    )
    missed = 0
    for name, limits in bars.items():
        for percentile, limit in zip((50, 99), limits, strict=True):
            took, cpu = (rows[name].best(percentile, clock) for clock in (0, 1))
            if not took <= limit:
                missed += 1
                print(
                    f"MISSED: {name}: p{percentile} {took:.2f} ms (CPU {cpu:.2f}), bar {limit} ms"
                )
    if options.motions:
        print("\nbeside others")
        peers = Peers(options.motions, min(ticks, 2000))
        peers.ours("scale", OURS)
        peers.ours("deflect", "ours, with deflection")
        peers.cbf()
        if options.oscbf:
            peers.oscbf(options.oscbf)
        peers.report(reference)
        if not options.oscbf:
            print("\n  OSCBF: pass --oscbf; how to get it is at the top of this file")
        for (name, count), least in peers.clearance.items():
            if name.startswith("ours") and not min(least) >= -1e-6:
                missed += 1
                print(f"MISSED: {name}, {21 * count} rows: touched, {1e3 * min(least):.3f} mm")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
