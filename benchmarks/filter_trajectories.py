"""Is the filter in the way? A thousand smooth trajectories as a chunk policy sends them.

    python benchmarks/filter_trajectories.py [--arm panda] [--n 1000] [--seed 0]

Each trajectory is a quintic spline from rest to rest inside 90 % of the arm's speed, acceleration
and jerk (of the tool's published speed as well), inside the workspace and clear of itself by 2 cm.
The filter runs at 100 Hz and gets it as chunks of 16 positions at 10 Hz, every other one at 5 to 20
Hz, replaced in flight after one to four policy periods, each chunk as late as 10 to 80 ms of
inference make it. Against itself, workspace, obstacles and tool speed it is guarded all along.

**What "bit-exact" compares.** Between two policy steps somebody has to interpolate, filter or no
filter. `unfiltered` does what a driver without a filter would: it keeps a `JointPath` through the
rows of the newest chunk, begun where the last set-point left it, and plays it out tick by tick. It
has no guards, no constraints, no stop, no candidates, and it never looks at the filter: its clock,
its state and its chunks are its own. A tick counts as exact where the filter's set-point equals
this one's to the last bit. Once the filter is a tick late, all that follows differs, and counts.
Beside it the same player with infinite limits, whose curve cannot give way to the joints either.

Then what must be slowed: trajectories 1.2 to 2 times too fast, or that run into an obstacle or
through a wall of the workspace, as one chunk and replaced in flight. Deviation is how far
set-points lie from the path in progress: for one chunk the path that an arm without constraints
takes, planned here; in flight the filter's own. Where an obstacle or a wall made the arm stand, how
much of the way to the margin was left is measured by pinocchio and coal on the body's capsules.

Shares come with n and 95 % Wilson intervals; ticks of a trajectory depend on each other, therefore
also whole trajectories. Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from _motions import DT, ROOM, Distances, Motions, Trajectory
from rich.console import Console
from rich.progress import track

from safe_o2o.intervals import wilson
from safe_o2o.safety.filter import FilterConfig, SafetyFilter
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.obstacle import Obstacle, Obstacles
from safe_o2o.safety.path import JointPath
from safe_o2o.types import Array, Proposal, RobotState, Verdict

ROWS = 16
ARRIVED = 1e-4
"""Distance from the end of a trajectory, rad, at which an arm has arrived; slower than this, rad/s,
it stands."""
PATIENCE = 3.0
"""How many times its duration a trajectory may take."""
INSIST = 150
"""Ticks that a policy goes on wanting to go through what made the arm stand."""
TOO_MUCH = 0.02
"""Way to the margin, m, left over at a standstill that counts as a stop without need."""
BAR_PASS, BAR_TIME, BAR_DEVIATION, BAR_STOPS = 0.999, 0.02, 1e-9, 0.05

CONFIG = FilterConfig(max_proposal_age=30.0)
"""One chunk that is slowed down takes longer than it says."""
Schedule = list[tuple[int, int]]
"""Chunks: the tick at which each arrives and the tick of the observation behind it."""


def schedule(generator: np.random.Generator, period: float, ticks: int) -> Schedule:
    """When a chunk policy answers: after one to four periods a new chunk, 1 to 8 ticks late."""
    out, seen = [(0, 0)], 0.0
    while True:
        seen += float(generator.integers(1, 5)) * period / DT
        observed = round(seen)
        arrives = observed + int(generator.integers(1, 9))
        if arrives >= ticks:
            return out
        if arrives > out[-1][0]:
            out.append((arrives, observed))


def unfiltered(
    way: Trajectory, period: float, limits: RobotLimits, chunks: Schedule, ticks: int, bounded: bool
) -> Array:
    """Set-points `[ticks, n]` of a driver that only interpolates; see the module.

    Args:
        way: what the policy wants.
        period: policy period, s.
        limits: the arm's limits.
        chunks: when they arrive.
        ticks: how many.
        bounded: whether the curve may give way to the joints' limits.
    """
    still, ahead = np.zeros(len(limits.velocity)), np.arange(1, ROWS + 1) * period
    held = bool((limits.jerk * DT < 2.0 * limits.acceleration).any())  # acceleration may not jump
    wide = 1.0 if bounded else np.inf
    speed, acceleration, jerk = (
        wide * bound for bound in (limits.velocity, limits.acceleration, limits.jerk)
    )
    q, path, clock, seen = way.at(np.zeros(1))[0], None, 0.0, [0.0]
    left, out = deque(chunks), np.empty((ticks, len(still)))
    for k in range(ticks):
        while left and left[0][0] <= k:
            _, observed = left.popleft()
            target, done = way.at(observed * DT + ahead), clock - seen[observed]
            # Rows that are due within half a tick are over; the next one is due `lead` later than
            # a period from now.
            over = min(int((done + 0.5 * DT) / period), ROWS - 1)
            lead = (over * period - done) / DT if done > 0.0 else 0.0
            v, a = path.motion(path.time) if path is not None else (still, still)
            path = JointPath.fit(
                q, v, a if held else None, target[over:], period, DT,
                speed, acceleration, jerk, lead,
            )  # fmt: skip
        assert path is not None
        path.time = min(path.time + 1.0, path.end)
        q = out[k] = path.at(path.time)
        clock += DT
        seen.append(clock)
    return out


def arrival(q: Array, end: Array) -> int:
    """Ticks after which set-points `[K, n]` stay at `end` `[n]`; K where they never do."""
    away = np.flatnonzero(np.abs(q - end).max(axis=1) > ARRIVED)
    return int(away[-1]) + 1 if len(away) else 0


class Policy:
    """Sends chunks of a trajectory, from where along it the arm is.

    Its clock goes on by a tick with every tick that passes; where the filter slowed the arm down,
    it looks where along the trajectory the arm is, which is not farther than a tick on.
    """

    def __init__(self, way: Trajectory, period: float, chunks: Schedule, names: Any) -> None:
        self.way, self.period, self.names = way, period, names
        self._left, self._ticks = deque(chunks), [0.0]
        self._proposal: Proposal | None = None
        self._ahead = np.arange(1, ROWS + 1) * period

    def proposal(self, tick: int) -> Proposal | None:
        """The newest chunk that has arrived."""
        while self._left and self._left[0][0] <= tick:
            _, seen = self._left.popleft()
            rows, stamp = self.way.at(self._ticks[seen] * DT + self._ahead), max(seen, 1) * DT
            self._proposal = Proposal(rows, self.period, stamp, self.names)
        return self._proposal

    def saw(self, q: Array, passed: bool) -> None:
        """The arm was sent to q `[n]`."""
        along = self._ticks[-1]
        if not passed:
            near = along + np.linspace(0.0, 1.0, 11)
            along = float(near[np.square(self.way.at(near * DT) - q).sum(axis=1).argmin()])
        self._ticks.append(along + 1.0 if passed else along)


@dataclass
class Run:
    """What the filter made of a trajectory: set-points `[K, n]`, and why not as proposed."""

    q: Array
    passed: Array
    reasons: Counter[str] = field(default_factory=Counter)
    paths: list[tuple[JointPath | None, float]] = field(default_factory=list)  # and where on it
    stood: tuple[int, str] | None = None  # tick and reason of the first standstill


def filtered(safety: SafetyFilter, policy: Policy, ticks: int, insist: int | None = None) -> Run:
    """Drive the filter, at most so many ticks; with `insist` only so long after a standstill."""
    still, q = np.zeros(len(safety.limits.velocity)), policy.way.at(np.zeros(1))[0]
    end = policy.way.at(np.array([policy.way.duration]))[0]
    safety.reset(RobotState(q, still, q, 0.0))
    sent, passed, run = [], [], Run(q, q)
    for k in range(ticks):
        now = (k + 1) * DT
        decision = safety.certify(RobotState(q, still, q, now), policy.proposal(k), now)
        q = decision.command.q
        policy.saw(q, decision.verdict is Verdict.PASS)
        sent.append(q)
        passed.append(decision.verdict is Verdict.PASS)
        run.reasons[decision.reason] += 1
        path = safety._path  # a look inside: which path is in progress, and how far
        run.paths.append((path, path.time if path is not None else 0.0))
        if np.abs(decision.command.dq).max() > ARRIVED:
            continue
        if run.stood is None and decision.verdict is Verdict.STOPPED:
            run.stood = k, decision.reason
        if run.stood is not None and insist is not None and k >= run.stood[0] + insist:
            break
        if np.abs(q - end).max() <= ARRIVED and k * DT > 0.5 * policy.way.duration:
            break
    run.q, run.passed = np.array(sent), np.array(passed)
    return run


def off_path(path: JointPath, whole: Array, q: Array) -> float:
    """How far q `[n]` is from a path, rad, of which `whole` is every tick.

    Searched all along, ever finer about the four nearest ticks: no derivative, because a path may
    stand still, and no memory, because an arm may wait.
    """
    least = np.inf
    for tick in np.square(whole - q).sum(axis=1).argsort()[:4]:
        time, width = float(tick), 1.0
        while width > 1e-13:
            near = np.clip(time + np.linspace(-width, width, 11), 0.0, path.end)
            far = np.abs(path.positions(near) - q).max(axis=1)
            time, width = float(near[far.argmin()]), width / 4.0
        least = min(least, float(far.min()))
        if least <= 1e-15:
            break
    return least


def deviation(run: Run, known: JointPath | None) -> tuple[float, int]:
    """Farthest that set-points are from the path in progress, rad; ticks beside every path."""
    worst, beside, path, whole = 0.0, 0, known, np.empty(0)
    for k, (q, (own, time)) in enumerate(zip(run.q, run.paths, strict=True)):
        beside += own is None
        new = own if known is None and own is not None else path
        if new is not None and (new is not path or not len(whole)):
            path, whole = new, new.positions(np.arange(ceil(new.end) + 1.0))
        if path is None or (k and (q == run.q[k - 1]).all()):
            continue
        # Where the filter says it is, if that is right; else wherever the path comes nearest.
        far = float(np.abs(path.at(time) - q).max())
        worst = max(worst, far if far <= BAR_DEVIATION else off_path(path, whole, q))
    return worst, beside


def in_the_way(
    generator: np.random.Generator, motions: Motions, way: Trajectory
) -> list[Obstacle] | None:
    """Obstacles clear of the arm at the start, one of them where a link will be; None: no room."""
    t = np.array([0.0, generator.uniform(0.3, 0.9) * way.duration])
    start, later = motions.body.positions(way.at(t))[:, :, : motions.body.spheres]
    moved = np.flatnonzero(np.linalg.norm(later - start, axis=0) > 0.15)
    if not len(moved):
        return None
    middle = later[:, generator.choice(moved)]
    found: list[Obstacle] = []
    for k in range(4):
        if k:
            middle = generator.uniform((-0.2, -0.8, 0.0), (0.9, 0.8, 1.0))
        end = middle + generator.normal(0.0, 0.1, 3) if generator.random() < 0.5 else middle
        thing = Obstacle(
            f"thing {k}", tuple(middle), float(generator.uniform(0.03, 0.1)), tuple(end)
        )
        near = Obstacles(motions.body, [thing]).clearance(way.at(t[:1])).min() < ROOM
        if near and k == 0:
            return None
        if not near:
            found.append(thing)
    return found


def wall(generator: np.random.Generator, motions: Motions, way: Trajectory) -> Any:
    """The arm's box with one face moved into the way of the tool; None where it hardly moves."""
    t = np.array([0.0, generator.uniform(0.3, 0.9) * way.duration])
    start, later = motions.body.positions(way.at(t))[:, :, -2]
    axis = int(np.abs(later - start).argmax())
    if abs(later[axis] - start[axis]) < 0.1:
        return None
    box = [np.array(corner) for corner in motions.box]
    box[int(later[axis] > start[axis])][axis] = start[axis] + 0.7 * (later[axis] - start[axis])
    return tuple(box)


class Bench:
    """One arm, its random motions and the filters for them."""

    def __init__(self, arm: str, seed: int, knots: float) -> None:
        self.arm, self.motions = arm, Motions(arm, seed, knots=knots)
        self.limits = self.motions.limits
        self.generator = np.random.default_rng([seed, 1])
        self.distances = Distances(arm)
        self.missed: list[str] = []

    def safety(self, box: Any = None) -> SafetyFilter:
        """A filter that watches everything; obstacles come later."""
        return SafetyFilter.for_robot(
            self.arm, workspace=box or self.motions.box, self_collision=True, obstacles=(),
            tool_speed=self.limits.tool_velocity, period=DT, config=CONFIG,
        )  # fmt: skip

    def free(self, n: int) -> None:
        """What is in nobody's way."""
        safety = self.safety()
        counts: dict[float, Array] = {}
        reasons: Counter[str] = Counter()
        whole, later, all_ticks = 0, [], np.zeros(2)
        for way, period in progress(islice(self.motions, n), n, "in free space"):
            ticks = ceil(way.duration / DT) + 50
            chunks = schedule(self.generator, period, ceil(PATIENCE * ticks))
            end = way.at(np.array([way.duration]))[0]
            refs = [unfiltered(way, period, self.limits, chunks, ticks, b) for b in (True, False)]
            policy = Policy(way, period, chunks, self.limits.joint_names)
            run = filtered(safety, policy, ceil(PATIENCE * ticks))
            m = min(len(run.q), ticks)
            exact = [int((run.q[:m] == ref[:m]).all(axis=1).sum()) for ref in refs]
            passed = int(run.passed.sum())
            row = np.array([1, len(run.q), passed, *exact, passed == exact[0] == len(run.q)])
            counts[period] = counts.get(period, np.zeros(6, int)) + row
            reasons.update(run.reasons)
            took, would = arrival(run.q, end), arrival(refs[1], end)
            all_ticks += took, would
            later.append(took / would - 1.0)
        total = sum(counts.values(), np.zeros(6, int))
        whole = int(total[5])
        print(f"{total[0]} trajectories of {self.arm}, {total[1]} ticks, none in anybody's way")
        print("  policy rate   trajectories    ticks   pass %   exact %   whole trajectories %")
        for period, row in sorted(counts.items()):
            print(
                f"  {1 / period:8.1f} Hz {row[0]:13d} {row[1]:8d} {100 * row[2] / row[1]:8.3f} "
                f"{100 * row[3] / row[1]:9.3f} {100 * row[5] / row[0]:12.1f}"
            )
        self.bar("ticks that pass", total[2], total[1], BAR_PASS)
        self.bar("ticks equal to the last bit", total[3], total[1], BAR_PASS)
        print("    to a curve without limits: " + share(total[4], total[1]))
        print("  whole trajectories passed and exact: " + share(whole, total[0]))
        extra = float(all_ticks[0] / all_ticks[1]) - 1.0
        p50, p99, most = 100 * np.percentile(later, [50, 99, 100])
        print(f"  time: {100 * extra:+.3f} % over all", end="")
        print(f"; a trajectory p50 {p50:+.2f} %, p99 {p99:+.2f} %, most {most:+.2f} %")
        self.judge(extra <= BAR_TIME, f"{100 * extra:.2f} % more time")
        why = {k: v for k, v in reasons.items() if k}
        print(f"  why not as proposed, ticks: {why or 'nothing'}\n")

    def slowed(self, n: int) -> None:
        """What has to be slowed or stopped."""
        stops: dict[str, list[tuple[float, float]]] = {"obstacles": [], "workspace": []}
        for kind in ("too fast", "obstacle", "wall"):
            for flight in (False, True):
                self._slowed(kind, flight, n, stops)
        print()
        shorts = [first for found in stops.values() for first, _ in found]
        for name, found in stops.items():
            gap = 1e3 * np.array(found).reshape(-1, 2)
            for k, when in enumerate(("first standstill", f"{INSIST * DT:.1f} s later")):
                p50, p99, worst = np.percentile(gap[:, k], [50, 99, 100]) if len(gap) else [0.0] * 3
                print(
                    f"  {name}, {when}: least {gap[:, k].min(initial=np.inf):.3f}, p50 {p50:.2f}, "
                    f"p99 {p99:.2f}, most {worst:.2f} mm beyond the margin; over 20 mm "
                    + share(int((gap[:, k] > 1e3 * TOO_MUCH).sum()), len(gap))
                )
            self.judge(bool((gap >= -1e-6).all()), f"{name}: a stop inside the margin")
        many = sum(gap > TOO_MUCH for gap in shorts)
        self.judge(
            many <= BAR_STOPS * len(shorts), f"{many} of {len(shorts)} stops with over 20 mm to go"
        )

    def _slowed(
        self, kind: str, flight: bool, n: int, stops: dict[str, list[tuple[float, float]]]
    ) -> None:
        worst, beside, ticks, slow, stood, strange = 0.0, 0, 0, 0, 0, Counter[str]()
        label = f"{kind}, {'replaced in flight' if flight else 'one chunk'}"
        plain = self.safety()
        for way, period, box, obstacles in progress(self._hard(kind, n), n, label):
            safety = plain if box is None else self.safety(box)
            next(c for c in safety.constraints if isinstance(c, Obstacles)).update(obstacles)
            length = ceil(way.duration / DT) + 50
            names = safety.limits.joint_names
            if flight:
                chunks = schedule(self.generator, period, ceil(PATIENCE * length))
                policy, known = Policy(way, period, chunks, names), None
            else:
                policy = OneChunk(way, period, names)
                known = policy.path(safety.limits)
            run = filtered(safety, policy, ceil(PATIENCE * length), INSIST)
            far, off = deviation(run, known)
            worst, beside, ticks = max(worst, far), beside + off, ticks + len(run.q)
            slow += int((~run.passed).sum())
            if run.stood is None:
                continue
            tick, reason = run.stood
            stood += 1
            gaps = [self._left(run.q[k], reason, box, obstacles) for k in (tick, -1)]
            if reason in stops and kind != "too fast":
                stops[reason].append((gaps[0], gaps[1]))
            else:
                strange[reason] += 1
        print(
            f"  {label:30} n {n}, {slow} of {ticks} ticks not as proposed, {stood} stood, "
            f"deviation {worst:.1e} rad, {beside} ticks without a path"
            + (f", others {dict(strange)}" if strange else "")
        )
        self.judge(worst <= BAR_DEVIATION, f"{label}: {worst:.1e} rad from the path")

    def _hard(self, kind: str, n: int) -> Any:
        """So many trajectories that have to be slowed: way, period, box, obstacles."""
        found = 0
        for way, period in self.motions:
            if found == n:
                return
            box: Any = None
            obstacles: list[Obstacle] | None = []
            if kind == "too fast":
                way = way.faster(float(self.generator.uniform(1.2, 2.0)))
            elif kind == "wall":
                box = wall(self.generator, self.motions, way)
                if box is None:
                    continue
            else:
                obstacles = in_the_way(self.generator, self.motions, way)
                if obstacles is None:
                    continue
            found += 1
            yield way, period, box, obstacles

    def _left(self, q: Array, reason: str, box: Any, obstacles: list[Obstacle]) -> float:
        """Way to the margin, m."""
        if reason == "obstacles":
            return self.distances.to_obstacles(q, obstacles) - MARGIN
        return self.distances.to_walls(q, box or self.motions.box)

    def bar(self, what: str, count: int, n: int, least: float) -> None:
        """Print a share and note whether it is what was promised."""
        print(f"  {what}: {share(count, n)}, bar {100 * least:.1f} %")
        self.judge(count >= least * n, f"{what}: {100 * count / n:.3f} %")

    def judge(self, held: bool, what: str) -> None:
        """Note a bar that was missed."""
        if not held:
            self.missed.append(what)


MARGIN = 0.01
"""What `Obstacles` keeps from anything if not told otherwise, m."""


class OneChunk(Policy):
    """Sends the whole trajectory as one chunk and then insists."""

    def __init__(self, way: Trajectory, period: float, names: Any) -> None:
        super().__init__(way, period, [(0, 0)], names)
        self._ahead = np.arange(1, ceil(way.duration / period) + 1) * period

    def path(self, limits: RobotLimits) -> JointPath:
        """What an arm without constraints would move along."""
        start, rows = self.way.at(np.zeros(1))[0], self.way.at(self._ahead)
        held = (limits.jerk * DT < 2.0 * limits.acceleration).any()
        return JointPath.fit(
            start, np.zeros_like(start), np.zeros_like(start) if held else None, rows, self.period,
            DT, limits.velocity, limits.acceleration, limits.jerk,
        )  # fmt: skip


def share(count: int, n: int) -> str:
    """A share with n and its interval."""
    if not n:
        return "none of 0"
    low, high = wilson(int(count), int(n))
    return f"{100 * count / n:.3f} % of {n} [{100 * low:.3f}, {100 * high:.3f}]"


def progress(what: Any, n: int, name: str) -> Any:
    return track(what, description=name, total=n, console=Console(stderr=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", default="panda", help="a shipped arm")
    parser.add_argument("--n", type=int, default=1000, help="trajectories in free space")
    parser.add_argument("--slowed", type=int, default=None, help="of each hard kind (n / 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--knots", type=float, default=2.0, help="least policy periods between knots of the spline"
    )
    options = parser.parse_args()
    bench = Bench(options.arm, options.seed, options.knots)
    bench.free(options.n)
    hard = max(options.n // 5, 1) if options.slowed is None else options.slowed
    if hard:
        print("what has to be slowed or stopped")
        bench.slowed(hard)
    for what in bench.missed:
        print(f"MISSED: {what}")
    return 1 if bench.missed else 0


if __name__ == "__main__":
    sys.exit(main())
