"""An arm among obstacles, wild input, and a judge at 1 kHz that shares no code with the filter.

Used by tests/test_filter_invariance.py and, at length, by benchmarks/invariance.py.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pinocchio
import yaml

from safe_o2o.safety.filter import FilterConfig, SafetyFilter
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.obstacle import Obstacle, Obstacles
from safe_o2o.types import Array, Proposal, RobotState, Verdict

SAFETY = Path(__file__).parents[1] / "safe_o2o" / "safety"
DT = 0.01
FINE = 10
"""Looks of the judge in a tick."""
MEASURED: dict[str, dict[str, list[float]]] = {
    # What the makers do not publish; any number will do for a simulated arm.
    name: {"acceleration": [8.0] * 6, "jerk": [4000.0] * 6}
    for name in ("ur3e", "ur5e", "ur10e")
}
WORLDS: dict[str, dict[str, Any]] = {
    "panda": dict(home=(0.0, 0.06, 0.0, -2.35, 0.0, 2.41, 0.785),
                  box=((0.20, -0.45, 0.05), (0.75, 0.45, 0.75))),
    "ur5e": dict(home=(0.0, -1.6, 1.7, -1.7, -1.57, 0.0),
                 box=((-0.75, -0.75, 0.05), (0.75, 0.75, 0.90))),
}  # fmt: skip
MARGIN, NOISE = 0.01, 2e-3


@dataclass
class Mover:
    """A ball, or a capsule, that wanders with bounded speed and acceleration."""

    start: Array
    axis: Array
    radius: float
    max_speed: float
    max_acceleration: float
    velocity: Array = field(default_factory=lambda: np.zeros(3))
    heading: Array = field(default_factory=lambda: np.zeros(3))

    @property
    def end(self) -> Array:
        return self.start + self.axis


class Judge:
    """The maker's numbers, its own kinematics, its own distances."""

    def __init__(self, robot: str, box: Any, limits: RobotLimits) -> None:
        raw = yaml.safe_load((SAFETY / "robot_limits" / f"{robot}.yaml").read_text())
        shape = yaml.safe_load((SAFETY / "robot_geometry" / f"{robot}.yaml").read_text())
        self.low, self.high = np.array(raw["position_low"]), np.array(raw["position_high"])
        self.velocity = np.array(raw["velocity"])
        published = raw["acceleration"]
        self.acceleration = np.array(
            published if isinstance(published, list) else MEASURED[robot]["acceleration"]
        )
        self.box = np.array(box)
        self.model = pinocchio.buildModelFromUrdf(str(SAFETY / "robot_models" / f"{robot}.urdf"))
        self.data = self.model.createData()
        self.tool, self.elbow = (
            self.model.getFrameId(raw[name]) for name in ("tool_frame", "elbow_frame")
        )
        self.frames = [self.model.getFrameId(c["frame"]) for c in shape["capsules"]]
        self.names = [c["frame"] for c in shape["capsules"]]
        self.ends = np.array(
            [[c["start"], c.get("end", c["start"])] for c in shape["capsules"]], np.float64
        )
        self.radii = np.array([c["radius"] for c in shape["capsules"]])
        skip = {frozenset(pair) for pair in shape["skip"]}
        self.pairs = np.array(
            [
                (a, b)
                for a in range(len(self.names))
                for b in range(a + 1, len(self.names))
                if self.names[a] != self.names[b]
                and frozenset((self.names[a], self.names[b])) not in skip
            ]
        ).reshape(-1, 2)

    def place(self, q: Array) -> tuple[Array, Array, Array]:
        """Ends of all capsules `[C, 2, 3]`, tool and elbow `[3]`."""
        pinocchio.forwardKinematics(self.model, self.data, q)
        pinocchio.updateFramePlacements(self.model, self.data)
        frames = self.data.oMf
        out = np.empty_like(self.ends)
        for c, frame in enumerate(self.frames):
            placed = frames[frame]
            out[c] = self.ends[c] @ placed.rotation.T + placed.translation
        return out, frames[self.tool].translation, frames[self.elbow].translation

    def joints(self, before: Array, v: Array, q: Array) -> list[str]:
        """What is wrong with the set-point q after `before`, reached at velocity v."""
        if not np.isfinite(q).all():
            return ["not finite"]
        w, found = (q - before) / DT, []
        if (q < self.low - 1e-9).any() or (q > self.high + 1e-9).any():
            found.append("position")
        if (np.abs(w) > self.velocity * (1 + 1e-6)).any():
            found.append("velocity")
        if (np.abs(w - v) > self.acceleration * DT * (1 + 1e-6)).any():
            found.append("acceleration")
        return found

    def clearance(
        self, placed: tuple[Array, Array, Array], movers: list[Mover]
    ) -> tuple[float, float, float]:
        """Distance to the nearest obstacle, to itself, and to the workspace's walls, m."""
        ends, tool, elbow = placed
        walls = min((tool - self.box[0]).min(), (self.box[1] - tool).min(), elbow[2])
        apart = np.inf
        if movers:
            a = np.array([m.start for m in movers])
            b = np.array([m.end for m in movers])
            radii = np.array([m.radius for m in movers])
            lines = _line_distance(ends[:, None, 0], ends[:, None, 1], a[None], b[None])
            apart = float((lines - self.radii[:, None] - radii).min())
        first, second = self.pairs.T
        own = (
            _line_distance(ends[first, 0], ends[first, 1], ends[second, 0], ends[second, 1])
            - self.radii[first]
            - self.radii[second]
        )
        return apart, float(own.min()) if len(own) else np.inf, float(walls)


def _line_distance(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Distance of segments a-b from segments c-d `[..., 3]`: by alternating projection.

    Not the closed form that the filter uses. The squared distance is convex in the two shares, so
    stepping from one to the other and back comes down to the least.
    """
    u, w = b - a, d - c
    uu = np.maximum((u * u).sum(-1), 1e-18)
    ww = np.maximum((w * w).sum(-1), 1e-18)
    t = np.full(np.broadcast_shapes(a.shape, c.shape)[:-1], 0.5)
    for _ in range(12):
        s = np.clip(((c + t[..., None] * w - a) * u).sum(-1) / uu, 0.0, 1.0)
        t = np.clip(((a + s[..., None] * u - c) * w).sum(-1) / ww, 0.0, 1.0)
    gap = a + s[..., None] * u - c - t[..., None] * w
    return np.sqrt((gap * gap).sum(-1))


@dataclass
class Tally:
    """What happened over a run."""

    ticks: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    uncertified: int = 0
    fastest: float = 0.0
    nearest: float = np.inf
    deflected: int = 0

    def add(self, other: Tally) -> None:
        """Sum up."""
        self.ticks += other.ticks
        self.verdicts.update(other.verdicts)
        self.reasons.update(other.reasons)
        self.violations.update(other.violations)
        self.uncertified += other.uncertified
        self.fastest = max(self.fastest, other.fastest)
        self.nearest = min(self.nearest, other.nearest)


class World:
    """One arm, eight obstacles of which four move, and commands that take a while to arrive.

    Args:
        robot: `panda` or `ur5e`.
        seed: of everything.
        mode: the filter's.
    """

    def __init__(self, robot: str, seed: int, mode: str = "scale") -> None:
        world = WORLDS[robot]
        self.generator = np.random.default_rng(seed)
        self.home = np.array(world["home"])
        limits = RobotLimits.load(robot, measured=MEASURED.get(robot))
        self.latency = int(self.generator.integers(0, 11))
        config = FilterConfig(latency=self.latency, mode=mode)  # type: ignore[arg-type]
        self.filter = SafetyFilter.for_robot(
            robot, workspace=world["box"], obstacles=(), self_collision=True, tool_speed=None,
            period=DT, config=config, measured=MEASURED.get(robot),
        )  # fmt: skip
        self.watched = next(c for c in self.filter.constraints if isinstance(c, Obstacles))
        self.judge = Judge(robot, world["box"], limits)
        self.names, self.n = limits.joint_names, len(limits.joint_names)
        self.limits = limits
        self.movers = self._scatter()
        self.now = 0.0
        self.sent = deque([self.home] * (self.latency + 1))
        self.v = np.zeros(self.n)
        self.seen: deque[list[Obstacle]] = deque(maxlen=6)
        self.filter.reset(RobotState(self.home, np.zeros(self.n), self.home, 0.0))

    def _scatter(self) -> list[Mover]:
        """Obstacles around the arm at home, none of them touching it."""
        found: list[Mover] = []
        placed = self.judge.place(self.home)
        while len(found) < 8:
            generator = self.generator
            moving = len(found) < 4
            axis = generator.normal(0.0, 0.15, 3) * (generator.random() < 0.4)
            mover = Mover(
                generator.uniform((-0.7, -0.7, 0.0), (0.9, 0.7, 1.0)),
                axis,
                float(generator.uniform(0.03, 0.12)),
                float(generator.uniform(0.1, 0.8)) if moving else 0.0,
                float(generator.uniform(0.5, 4.0)),
            )
            if self.judge.clearance(placed, [mover])[0] > 0.08:
                found.append(mover)
        return found

    def _wander(self, arm: tuple[Array, Array, Array], moving: bool) -> None:
        """One millisecond of everything that moves; nothing runs into an arm that stands."""
        step = DT / FINE
        for mover in self.movers:
            if mover.max_speed == 0.0:
                continue
            if self.generator.random() < 0.005:
                heading = self.generator.normal(size=3)
                toward = arm[0].mean((0, 1)) - mover.start
                heading = toward if self.generator.random() < 0.5 else heading
                mover.heading = heading / max(float(np.linalg.norm(heading)), 1e-9)
            wish = mover.heading * mover.max_speed
            change = wish - mover.velocity
            size = float(np.linalg.norm(change))
            change *= min(1.0, mover.max_acceleration * step / max(size, 1e-9))
            velocity = mover.velocity + change
            velocity *= min(1.0, mover.max_speed / max(float(np.linalg.norm(velocity)), 1e-9))
            ahead = Mover(mover.start + velocity * step, mover.axis, mover.radius, 0.0, 0.0)
            apart = self.judge.clearance(arm, [ahead])[0]
            if not moving and apart < MARGIN + 0.02:
                velocity = np.zeros(3)  # it stops: whoever runs into a standing arm is to blame
            mover.start = mover.start + velocity * step
            mover.velocity = velocity

    def look(self) -> list[Obstacle]:
        """What a camera sees now, wrong by up to its noise."""
        out = []
        for k, mover in enumerate(self.movers):
            wrong = self.generator.normal(size=3)
            wrong *= NOISE * self.generator.random() / np.linalg.norm(wrong)
            start, end = mover.start + wrong, mover.end + wrong
            out.append(
                Obstacle(f"o{k}", tuple(start), mover.radius,
                         end=tuple(end) if mover.axis.any() else None, error=NOISE,
                         max_speed=mover.max_speed,
                         stamp=self.now if mover.max_speed else None)
            )  # fmt: skip
        return out

    def tick(self, proposal: Proposal | None, tally: Tally, jitter: float = 0.0) -> None:
        """One tick: see, certify, execute what arrives, judge."""
        generator = self.generator
        self.now += DT + jitter
        if jitter < 0.0:
            self.seen.clear()  # what was stamped by the clock before it jumped back says nothing
        self.seen.append(self.look())
        age = int(generator.integers(0, len(self.seen))) if generator.random() < 0.3 else 0
        self.watched.update(self.seen[-1 - age])
        arrived = self.sent[0]
        measured = arrived + generator.uniform(-5e-3, 5e-3, self.n)
        if generator.random() < 0.003:
            measured[generator.integers(self.n)] = generator.choice([np.nan, np.inf, 9.0])
        told = self.sent[-1]
        decision = self.filter.certify(
            RobotState(measured, np.zeros(self.n), told, self.now), proposal, self.now
        )
        q = decision.command.q
        tally.ticks += 1
        tally.verdicts[decision.verdict.name] += 1
        if decision.verdict is not Verdict.PASS:
            tally.reasons[decision.reason] += 1
        tally.uncertified += not np.isfinite(q).all()
        tally.violations.update(self.judge.joints(told, self.v, q))
        self.v = (q - told) / DT
        tally.fastest = max(tally.fastest, float(np.abs(self.v / self.judge.velocity).max()))
        self.sent.append(q)
        before = self.sent.popleft()
        self._execute(before, self.sent[0], tally)

    def _execute(self, before: Array, after: Array, tally: Tally) -> None:
        moving = bool((after != before).any())
        placed = self.judge.place(before)
        for k in range(1, FINE + 1):
            if moving:
                placed = self.judge.place(before + k / FINE * (after - before))
            self._wander(placed, moving)
            if moving:
                apart, own, walls = self.judge.clearance(placed, self.movers)
                tally.nearest = min(tally.nearest, apart)
                if apart < MARGIN - 1e-6:
                    tally.violations["obstacle"] += 1
                if own < 0.005 - 1e-6:
                    tally.violations["self-collision"] += 1
                if walls < -1e-6:
                    tally.violations["workspace"] += 1


def wild_proposal(world: World) -> Proposal | None:
    """Targets near, far, bang-bang, extreme, not finite, permuted, misnamed, old, of the future."""
    generator, n, told = world.generator, world.n, world.sent[-1]
    names, kind = world.names, generator.random()
    if kind < 0.02:
        return None
    steps = int(generator.integers(1, 8))
    if kind < 0.45:
        push = generator.choice([-1.0, 0.0, 1.0], n) * generator.uniform(0.02, 0.5, (steps, n))
        offset = np.cumsum(push, axis=0)
    elif kind < 0.60:
        offset = np.clip(world.home - told, -0.9, 0.9) * np.linspace(0.2, 1.0, steps)[:, None]
    else:
        scale = generator.choice([0.01, 0.1, 0.4])
        offset = np.cumsum(generator.normal(0.0, scale, (steps, n)), axis=0)
    target = told + offset
    if kind > 0.90:
        target[generator.integers(steps), generator.integers(n)] = generator.choice(
            [np.nan, np.inf, -np.inf, 1e300]
        )
    elif kind > 0.87:
        names = (*names[1:], names[0]) if kind > 0.885 else ("nobody", *names[1:])
    elif kind > 0.86:
        target = target[:, :-1]
    age = float(generator.choice([0.0, 0.0, 0.0, 0.05, 3.0, -3.0]))
    period = float(generator.choice([0.2, 0.2, 0.1, 0.033, 0.01, 0.0, np.nan]))
    return Proposal(target, period, world.now - age, names)


def wild_run(robot: str, ticks: int, seed: int, mode: str = "scale") -> Tally:
    """Drive the filter with garbage among moving obstacles, and judge all that is executed."""
    world, tally = World(robot, seed, mode), Tally()
    proposal = wild_proposal(world)
    generator = world.generator
    for _ in range(ticks):
        if generator.random() < 0.06:
            proposal = wild_proposal(world)
        strange = generator.random() < 0.01
        jitter = float(generator.choice([-DT, -0.1, 0.1, 0.009])) if strange else 0.0
        world.tick(proposal, tally, jitter)
    return tally
