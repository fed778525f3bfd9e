"""Is the task still done when a filter stands between a chunk policy and the arm?

    python benchmarks/success_kept.py [--n 200] [--seed 0] [--variant standard] [--alpha 5]
        [--modes none scale single cbf cbf_told cbf_limited deflect] [--inference 0.05]
        [--out success_kept.jsonl] [--workers 1]

ReachPlace on the twin: take a workpiece, carry it across, put it down, while a hand reaches in and
withdraws and somebody walks past. The same scripted policy (eight joint targets at 10 Hz, planned
anew every four, ready `inference` s after what it saw) on the same seeds, seven ways to the motors:

- `none`: its targets as they are, joined by straight lines, within the twin's servos;
- `scale`: the filter;
- `single`: the filter, one target at a time;
- `cbf`: the textbook velocity CBF-QP on the filter's own body, min |w - w_nominal|^2 over
  grad d . w - speed >= -alpha d, with one slack; it knows of the visitors what the filter knows;
- `cbf_told`: the same, told the visitors' velocities, which the filter is not;
- `cbf_limited`: that one behind a driver that keeps to the arm's accelerations, as a real one does;
- `deflect`: the filter, which may leave the path.

`success` is the workpiece put down within 20 s, whatever was hit on the way (as PACS counts it);
`safe` is success in an episode without a violation. A violation is a part of the arm's meshes in a
visitor while the arm moves (any joint faster than 5 mrad/s), looked at every millisecond of the
executed motion by a judge with its own copy of the meshes, PyBullet's distances and the visitors'
true places. Whoever runs into an arm that stands is not the arm's doing.

Each episode is a line of `--out`; what is in there already is not run again. The exit code is 1
when a filter's row has a violation, or `scale` keeps less than the unfiltered success - 5 points.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import qpsolvers
from rich.console import Console
from rich.progress import track

from safe_o2o.intervals import bootstrap_mean, wilson
from safe_o2o.runtime.cartesian import certified_box
from safe_o2o.safety.body import Body, Geometry
from safe_o2o.safety.filter import FilterConfig, SafetyFilter
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.types import Array, Command, Proposal, RobotState
from safe_o2o_sim.bullet import pybullet
from safe_o2o_sim.pybullet_twin import PybulletTwin
from safe_o2o_sim.scene import load_panda
from safe_o2o_sim.sensing import Watching
from safe_o2o_sim.tasks.reach_place import ReachPlace, ReachPlaceConfig
from safe_o2o_sim.tasks.reach_place_policy import ChunkPolicy, ChunkPolicyConfig
from safe_o2o_sim.visitor import Visitor

MODES = ("none", "scale", "single", "cbf", "cbf_told", "cbf_limited", "deflect")
FILTERED = ("scale", "single", "deflect")
HORIZON, REPLAN = 8, 4
"""Targets in a chunk, and policy steps from one plan to the next."""
LAG = 3
"""Control ticks that the twin's servos take to do what they are told, to within a few percent."""
FINE = 10
"""Looks of the judge in a control tick of 10 ms."""
MOVES = 5e-3
"""Speed of a joint, rad/s, from which on the arm moves: 4 mm/s at the tool's reach."""
ALPHA, SLACK_WEIGHT, TRACKING, MARGIN = 5.0, 1e3, 5.0, 0.01
"""Of the CBF-QP: 1/s, cost of the slack, gain of its tracking, 1/s, and distance to keep, m."""
SEEN_FROM = 0.6
"""Distance from which on the CBF-QP looks at a pair, m."""
PUBLISHED = {
    "none": "0.70 (shield off)",
    "scale": "0.72 (PACS)",
    "single": "0.44 (single action)",
    "cbf": "0.04 (reactive CBF)",
    "cbf_told": "",
    "cbf_limited": "",
    "deflect": "",
}


@dataclass(frozen=True)
class Setting:
    """What makes an episode beside mode and seed; lines of another setting are not mixed."""

    variant: str = "standard"
    inference: float = 0.05
    horizon: int = HORIZON
    replan: int = REPLAN
    alpha: float = ALPHA


class Executor(Protocol):
    """A way to the motors."""

    def reset(self, state: RobotState) -> None:
        """Start from a pose at rest."""

    def command(self, state: RobotState, proposal: Proposal | None, now: float) -> Command:
        """The set-point of one tick."""

    counts: Counter[str]


class Filtered:
    """Through the filter, told of the visitors before each tick."""

    def __init__(self, task: ReachPlace, period: float, deflect: bool) -> None:
        config = FilterConfig(mode="deflect" if deflect else "scale", latency=LAG)
        safety = SafetyFilter.for_robot(
            "panda",
            workspace=certified_box(task.config.workspace),
            tool_speed=task.config.tool_speed,
            obstacles=(),
            self_collision=True,
            period=period,
            config=config,
        )
        self.watching, self.counts = Watching(safety, task.seen), Counter[str]()

    def reset(self, state: RobotState) -> None:
        """See `Executor`."""
        self.counts = Counter()
        self.watching.reset(state)

    def command(self, state: RobotState, proposal: Proposal | None, now: float) -> Command:
        """See `Executor`."""
        decision = self.watching.certify(state, proposal, now)
        self.counts[f"{decision.verdict.name} {decision.reason}".strip()] += 1
        return decision.command


class Unfiltered:
    """Targets as they are, joined by straight lines; what is past when they come is left out."""

    def __init__(self, period: float) -> None:
        self.period, self.counts = period, Counter[str]()

    def reset(self, state: RobotState) -> None:
        """See `Executor`."""
        self._proposal: Proposal | None = None
        self._times, self._rows = np.zeros(1), state.q_command[None]

    def reference(self, state: RobotState, proposal: Proposal | None, when: float) -> Array:
        """Where the policy wants the arm `[7]`, rad, at a time, s."""
        if proposal is not None and proposal is not self._proposal:
            self._proposal = proposal
            due = proposal.stamp + proposal.period * np.arange(1, len(proposal.q) + 1)
            ahead = due > state.stamp + 1e-9
            self._times = np.concatenate([[state.stamp], due[ahead]])
            self._rows = np.vstack([state.q_command, proposal.q[ahead]])
        return np.array([np.interp(when, self._times, joint) for joint in self._rows.T])

    def command(self, state: RobotState, proposal: Proposal | None, now: float) -> Command:
        """See `Executor`."""
        q = self.reference(state, proposal, now + self.period)
        return Command(q, (q - state.q_command) / self.period, now)


class VelocityCbf(Unfiltered):
    """min |w - w_nominal|^2 + rho s^2 with w the joint velocity and s >= 0 a slack.

    Over -n . J w <= alpha d - c for each pair of sphere and visitor, n pointing from the visitor to
    the sphere, d the distance beyond the margin and c how fast the visitor may come nearer: its
    seen speed, or n . v where its velocity v is told. Joint speeds are bounds; joint limits and the
    table follow the same law.

    Args:
        task: tells what was seen.
        period: control period, s.
        alpha: gain of the barriers, 1/s.
        told: whether it is told velocities.
        limited: whether its velocity changes no faster than the arm's accelerations allow.
    """

    def __init__(
        self, task: ReachPlace, period: float, alpha: float, told: bool, limited: bool
    ) -> None:
        super().__init__(period)
        self.task, self.alpha, self.told, self.limited = task, alpha, told, limited
        self._w: Array = np.zeros(0)
        self.limits = RobotLimits.load("panda")
        self.body = Body("panda", Geometry.load("panda").capsules, (self.limits.tool_frame,))
        self.low = certified_box(task.config.workspace)[0][2]

    def command(self, state: RobotState, proposal: Proposal | None, now: float) -> Command:
        """See `Executor`."""
        q, dt, limits = state.q_command, self.period, self.limits
        here = self.reference(state, proposal, now)
        speed = (self.reference(state, proposal, now + dt) - here) / dt
        wanted = np.clip(speed + TRACKING * (here - q), -limits.velocity, limits.velocity)
        g, h = self._barriers(q, now)
        n = len(q)
        # One slack for all, so that the program always has a solution.
        g = np.hstack([g, -np.ones((len(g), 1))])
        weight = np.diag([*np.ones(n), SLACK_WEIGHT])
        low = np.maximum(-limits.velocity, self.alpha * (limits.q_low - q))
        high = np.minimum(limits.velocity, self.alpha * (limits.q_high - q))
        w = qpsolvers.solve_qp(
            weight, -weight @ np.append(wanted, 0.0), g, h,
            lb=np.append(low, 0.0), ub=np.append(high, 1e3), solver="daqp",
        )  # fmt: skip
        w = np.zeros(n) if w is None else w[:n]
        if self.limited:
            change = limits.acceleration * dt
            w = np.clip(w, self._w - change, self._w + change)
        self._w = w
        self.counts["corrected" if np.abs(w - wanted).max() > 1e-6 else "passed"] += 1
        return Command(q + w * dt, w, now)

    def reset(self, state: RobotState) -> None:
        """See `Executor`."""
        super().reset(state)
        self.counts, self._w = Counter(), np.zeros(len(state.q))

    def _barriers(self, q: Array, now: float) -> tuple[Array, Array]:
        spheres = self.body.spheres
        placed = self.body.positions(q[None])[0]
        rows, bounds, points = [], [], []
        tool = placed[:, spheres]
        rows.append(np.array([0.0, 0.0, 1.0]))
        bounds.append(self.alpha * (tool[2] - self.low))
        points.append(spheres)
        velocities = self.task.seen_velocity(now)
        for obstacle, velocity in zip(self.task.seen(now), velocities, strict=True):
            start = np.array(obstacle.centre)
            axis = np.array(obstacle.end or obstacle.centre) - start
            age = now - (obstacle.stamp or 0.0)
            speed = obstacle.max_speed if obstacle.speed is None else obstacle.speed
            if self.told:  # where it is by now
                start = start + velocity * age
            gap = placed[:, :spheres].T - start
            share = np.clip(gap @ axis / max(float(axis @ axis), 1e-12), 0.0, 1.0)
            gap = gap - share[:, None] * axis
            length = np.linalg.norm(gap, axis=1)
            apart = length - self.body.radius - obstacle.radius - obstacle.error - MARGIN
            apart = apart if self.told else apart - speed * age
            for k in np.flatnonzero(apart < SEEN_FROM):
                normal = gap[k] / max(float(length[k]), 1e-9)
                rows.append(normal)
                closing = float(normal @ velocity) if self.told else speed
                bounds.append(self.alpha * apart[k] - closing)
                points.append(int(k))
        jacobians = self.body.jacobians(q, np.array(points))
        return -np.einsum("mi,min->mn", np.array(rows), jacobians), np.array(bounds)


@dataclass
class Findings:
    """What the judge saw of an episode, ms and m."""

    violating: int = 0
    touched_standing: int = 0
    first: str = ""
    nearest: float = np.inf
    deepest: float = 0.0


class Judge:
    """Looks at the executed motion every millisecond; shares nothing with the filter.

    It skips looks as long as arm and visitors cannot have come together since the last one.
    """

    REACH = 1.2  # m: no part of the arm is farther from any of its joints' axes

    def __init__(self) -> None:
        self.client = pybullet.connect(pybullet.DIRECT)
        self.arm = load_panda(self.client, "collision")
        self.bodies: list[int] = []
        self.found = Findings()

    def begin(self, visitors: Sequence[Visitor]) -> None:
        """A new episode."""
        while self.bodies:
            pybullet.removeBody(self.bodies.pop(), physicsClientId=self.client)
        for visitor in visitors:
            shape = pybullet.createCollisionShape(
                pybullet.GEOM_CAPSULE,
                radius=visitor.radius,
                height=float(np.linalg.norm(visitor.axis)),
                physicsClientId=self.client,
            )
            self.bodies.append(
                pybullet.createMultiBody(0.0, shape, -1, physicsClientId=self.client)
            )
        self.found, self._left = Findings(), 0.0

    def tick(self, before: Array, after: Array, visitors: Sequence[Visitor], dt: float) -> None:
        """One tick of an arm that went from `before` to `after` `[7]`, rad."""
        turned = np.abs(after - before)
        moves = bool(turned.max() > MOVES * dt)
        speed = self.REACH * float(turned.sum()) / dt + max(
            (v.max_speed for v in visitors), default=0.0
        )
        for k in range(1, FINE + 1):
            self._left -= speed * dt / FINE
            if self._left > 0.0:
                continue
            gaps = self._look(before + k / FINE * (after - before), visitors, k * dt / FINE)
            least = min(gaps, default=1.0)
            self._left = max(least, 0.0)
            if moves:
                self.found.nearest = min(self.found.nearest, least)
            if least > 0.0:
                continue
            self.found.violating += moves
            self.found.touched_standing += not moves
            if moves:
                self.found.deepest = max(self.found.deepest, -least)
                fastest = float(turned.max()) / dt
                name = visitors[gaps.index(least)].name
                self.found.first = self.found.first or f"{name} at {fastest:.3f} rad/s"

    def _look(self, q: Array, visitors: Sequence[Visitor], late: float) -> list[float]:
        for joint, angle in enumerate(q.tolist()):
            pybullet.resetJointState(self.arm, joint, angle, 0.0, physicsClientId=self.client)
        gaps = []
        for visitor, body in zip(visitors, self.bodies, strict=True):
            place, velocity, acceleration = visitor.track
            middle = place + late * velocity + 0.5 * late**2 * acceleration + 0.5 * visitor.axis
            pybullet.resetBasePositionAndOrientation(
                body, middle.tolist(), _turned(visitor.axis), physicsClientId=self.client
            )
            points = pybullet.getClosestPoints(self.arm, body, 1.0, physicsClientId=self.client)
            gaps.append(min((point[8] for point in points), default=1.0))
        return gaps


def _turned(axis: Array) -> list[float]:
    """Quaternion `[4]` that turns z to an axis `[3]` by the shortest way."""
    x, y, z = (axis / np.linalg.norm(axis)).tolist()
    turn = np.array([-y, x, 0.0, 1.0 + z])
    return [float(part) for part in turn / np.linalg.norm(turn)]


class Runner:
    """One arm, one task, one judge; episode after episode."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.twin = PybulletTwin()
        self.twin.connect()
        self.twin.activate()
        self.task = ReachPlace(self.twin, None, ReachPlaceConfig(variant=setting.variant))
        self.judge, self.limits = Judge(), RobotLimits.load("panda")
        self._executors: dict[str, Executor] = {}

    def _executor(self, mode: str) -> Executor:
        if mode not in self._executors:
            period = self.twin.period
            made: Executor
            if mode == "none":
                made = Unfiltered(period)
            elif mode.startswith("cbf"):
                told, limited = mode != "cbf", mode == "cbf_limited"
                made = VelocityCbf(self.task, period, self.setting.alpha, told, limited)
            else:
                made = Filtered(self.task, period, mode == "deflect")
            self._executors[mode] = made
        return self._executors[mode]

    def episode(self, mode: str, seed: int) -> dict[str, Any]:
        """Play one; the line of the output file."""
        began, setting, twin, task = time.perf_counter(), self.setting, self.twin, self.task
        single = mode == "single"
        horizon, replan = (1, 1) if single else (setting.horizon, setting.replan)
        policy = ChunkPolicy(task.cartesian, ChunkPolicyConfig(horizon=horizon))
        executor = self._executor(mode)
        task.reset(seed)
        self.judge.begin(twin.visitors)
        state = twin.read()
        executor.reset(state)
        per_step = round(task.config.period / twin.period)
        delay = round(setting.inference / twin.period)
        proposal: Proposal | None = None
        coming: list[tuple[int, Proposal]] = []
        placed, tick, held_at = False, 0, None
        told, overdriven = np.zeros(len(state.q)), 0.0
        for tick in range(task.max_steps * per_step):
            if tick % (replan * per_step) == 0:
                rows = policy.act(task.observe(state), state.q_command)
                period, names = task.config.period, twin.joint_names
                coming.append((tick + delay, Proposal(rows, period, state.stamp, names)))
            while coming and coming[0][0] <= tick:
                proposal = coming.pop(0)[1]
            command = executor.command(state, proposal, state.stamp)
            change = np.abs(command.dq - told) / (self.limits.acceleration * twin.period)
            told, overdriven = command.dq, max(overdriven, float(change.max()))
            twin.write(command)  # type: ignore[arg-type]  # two rows are about what is not certified
            after = twin.read()
            self.judge.tick(state.q, after.q, twin.visitors, twin.period)
            state = after
            if (tick + 1) % per_step == 0:
                placed = task.outcome()[2]
                if task.holding and held_at is None:
                    held_at = state.stamp
                if placed:
                    break
        found = self.judge.found
        return {
            "mode": mode,
            "seed": seed,
            "setting": asdict(setting),
            "success": placed,
            "seconds": round((tick + 1) * twin.period, 3),
            "held_at": held_at,
            "violating_ms": found.violating,
            "touched_standing_ms": found.touched_standing,
            "first": found.first,
            "nearest": None if found.nearest == np.inf else round(found.nearest, 5),
            "deepest": round(found.deepest, 5),
            "overdriven": round(overdriven, 3),
            "counts": dict(executor.counts),
            "wall": round(time.perf_counter() - began, 3),
        }


_RUNNERS: dict[Setting, Runner] = {}


def play(job: tuple[Setting, str, int]) -> dict[str, Any]:
    """One episode, in whichever process."""
    setting, mode, seed = job
    if setting not in _RUNNERS:
        _RUNNERS[setting] = Runner(setting)
    return _RUNNERS[setting].episode(mode, seed)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """What was run before; a line that a killed run left unfinished is none."""
    if not path.exists():
        return
    for line in path.read_text("utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


@dataclass
class Row:
    """One mode's episodes."""

    mode: str
    episodes: list[dict[str, Any]] = field(default_factory=list)

    def count(self, what: str) -> int:
        """Episodes with success, safe success or violation."""
        return sum(_is(episode, what) for episode in self.episodes)

    def share(self, what: str) -> str:
        """Share with Wilson's 95 % interval."""
        n, count = len(self.episodes), self.count(what)
        low, high = wilson(count, n)
        return f"{count / n:.3f} [{low:.3f}, {high:.3f}]"

    def seconds(self) -> str:
        """Mean time of a success with its bootstrap interval, s."""
        times = [e["seconds"] for e in self.episodes if e["success"]]
        interval = bootstrap_mean(times)
        if interval is None:
            return "-"
        return f"{np.mean(times):.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _is(episode: dict[str, Any], what: str) -> bool:
    violated = bool(episode["violating_ms"] > 0)
    if what == "violation":
        return violated
    return bool(episode["success"]) and not (what == "safe" and violated)


def report(rows: dict[str, Row]) -> bool:
    """Print the table and the bars; whether they are met."""
    head = "mode, n, success, safe success, violated, ms violating, s a success, published"
    print("| " + head.replace(", ", " | ") + " |")
    print("|---" * 8 + "|")
    for row in rows.values():
        episodes = row.episodes
        time_violating = np.mean([e["violating_ms"] for e in episodes])
        print(
            f"| {row.mode} | {len(episodes)} | {row.share('success')} | {row.share('safe')} "
            f"| {row.share('violation')} | {time_violating:.0f} | {row.seconds()} "
            f"| {PUBLISHED[row.mode]} |"
        )
    for row in rows.values():
        nearest = [e["nearest"] for e in row.episodes if e["nearest"] is not None]
        walls = [e["wall"] for e in row.episodes]
        over = [e["overdriven"] for e in row.episodes]
        run_into = np.mean([e["touched_standing_ms"] > 0 for e in row.episodes])
        print(
            f"{row.mode}: nearest look while moving {1e3 * min(nearest, default=np.inf):.1f} mm; "
            f"run into while standing in {run_into:.3f} of the episodes; accelerations asked for "
            f"up to {max(over):.2f} of the limits; {np.mean(walls):.2f} s wall an episode"
        )
    met = True
    for mode in FILTERED:
        if mode in rows:
            violated = rows[mode].count("violation")
            met = met and violated == 0
            print(f"bar: no violation in {mode}: {'met' if violated == 0 else f'{violated}'}")
    if "none" in rows and "scale" in rows:
        kept, free = (rows[m].count("success") / len(rows[m].episodes) for m in ("scale", "none"))
        met = met and bool(kept >= free - 0.05)
        word = "met" if kept >= free - 0.05 else "missed"
        print(f"bar: success of scale {kept:.3f} >= unfiltered {free:.3f} - 0.05: {word}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="episodes a mode")
    parser.add_argument("--seed", type=int, default=0, help="the first one's")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--variant", default="standard", help="of ReachPlace")
    parser.add_argument("--inference", type=float, default=0.05, help="of the policy, s")
    parser.add_argument("--alpha", type=float, default=ALPHA, help="of the CBF-QP, 1/s")
    parser.add_argument("--out", type=Path, default=Path("success_kept.jsonl"))
    parser.add_argument("--workers", type=int, default=1, help="processes")
    options = parser.parse_args()
    setting = Setting(options.variant, options.inference, alpha=options.alpha)
    seeds = range(options.seed, options.seed + options.n)
    wanted = [(mode, seed) for seed in seeds for mode in options.modes]
    done = {
        (line["mode"], line["seed"]): line
        for line in lines(options.out)
        if line["setting"] == asdict(setting)
    }
    jobs = [(setting, mode, seed) for mode, seed in wanted if (mode, seed) not in done]
    with options.out.open("a", encoding="utf-8") as out:
        pool = None
        if options.workers > 1 and jobs:
            pool = multiprocessing.get_context("spawn").Pool(options.workers)
        results = pool.imap_unordered(play, jobs) if pool is not None else map(play, jobs)
        shown = track(results, "episodes", len(jobs), console=Console(stderr=True))
        for line in shown:
            out.write(json.dumps(line) + "\n")
            out.flush()
            done[(line["mode"], line["seed"])] = line
        if pool is not None:
            pool.close()
            pool.join()
    rows = {mode: Row(mode, [done[(mode, seed)] for seed in seeds]) for mode in options.modes}
    return 0 if report(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
