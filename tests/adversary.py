"""An arm among obstacles that come and go, wild input, and a judge at 1 kHz.

Used by tests/test_filter_invariance.py and, at length, by benchmarks/invariance.py.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from safe_o2o.safety.filter import FilterConfig, SafetyFilter
from safe_o2o.safety.obstacle import Obstacle
from safe_o2o.types import Array, Proposal, RobotState, Verdict
from tests.judge import DT, MEASURED, Judge

FINE = 10
"""Looks of the judge in a tick."""
WORLDS: dict[str, dict[str, Any]] = {
    "panda": dict(home=(0.0, 0.06, 0.0, -2.35, 0.0, 2.41, 0.785),
                  box=((0.20, -0.45, 0.05), (0.75, 0.45, 0.75))),
    "ur5e": dict(home=(0.0, -1.6, 1.7, -1.7, -1.57, 0.0),
                 box=((-0.75, -0.75, 0.05), (0.75, 0.75, 0.90))),
}  # fmt: skip
MARGIN, NOISE = 0.01, 2e-3
"""What the filter keeps from obstacles, and how wrong it sees them, m."""
OWN_MARGIN = 0.005
SOCIAL = 0.02
"""So near, beyond the margin, does an obstacle come to an arm that stands, m."""
ROOM = 1.4
"""How far obstacles wander from the arm's base, m."""


class Movers:
    """Balls and capsules; the first half wanders with bounded speed and acceleration.

    Args:
        generator: of everything.
        clear: says whether a capsule (ends `[2, 3]`, radius) may be where it is.
        count: how many.
    """

    def __init__(self, generator: np.random.Generator, clear: Any, count: int = 8) -> None:
        self.generator = generator
        self.ends, self.radii = np.empty((count, 2, 3)), np.empty(count)
        self.moving = np.arange(count) < count // 2
        placed = 0
        while placed < count:
            start = generator.uniform((-1.0, -1.0, 0.0), (1.0, 1.0, 1.1))
            axis = generator.normal(0.0, 0.15, 3) * (generator.random() < 0.4)
            ends, radius = np.array([start, start + axis]), float(generator.uniform(0.03, 0.10))
            if clear(ends, radius):
                self.ends[placed], self.radii[placed] = ends, radius
                placed += 1
        self.max_speed = np.where(self.moving, generator.uniform(0.05, 0.6, count), 0.0)
        self.max_acceleration = generator.uniform(0.5, 4.0, count)
        self.velocity, self.heading = np.zeros((count, 3)), np.zeros((count, 3))

    def plan(self, arm: Array) -> tuple[Array, Array]:
        """Ends `[FINE + 1, M, 2, 3]` and velocities over the next tick, as they would like it."""
        for k in np.nonzero(self.moving & (self.generator.random(len(self.moving)) < 0.02))[0]:
            middle = self.ends[k].mean(0)
            if np.linalg.norm(middle) > ROOM:
                heading = -middle
            elif self.generator.random() < 0.15:
                heading = arm - middle
            else:
                heading = self.generator.normal(size=3)
            self.heading[k] = heading / max(float(np.linalg.norm(heading)), 1e-9)
        step = DT / FINE
        ways, velocity = [self.ends], self.velocity
        wish = self.heading * self.max_speed[:, None]
        for _ in range(FINE):
            change = wish - velocity
            size = np.linalg.norm(change, axis=-1, keepdims=True)
            most = self.max_acceleration[:, None] * step
            before = velocity
            velocity = velocity + change * np.minimum(1.0, most / np.maximum(size, 1e-12))
            ways.append(ways[-1] + (0.5 * (before + velocity) * step)[:, None])
        return np.array(ways), velocity


@dataclass
class Tally:
    """What happened over a run."""

    ticks: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    uncertified: int = 0
    deflected: int = 0
    moving: int = 0
    fastest: float = 0.0
    nearest: float = np.inf

    def add(self, other: Tally) -> None:
        """Sum up."""
        self.ticks += other.ticks
        self.verdicts.update(other.verdicts)
        self.reasons.update(other.reasons)
        self.violations.update(other.violations)
        self.uncertified += other.uncertified
        self.deflected += other.deflected
        self.moving += other.moving
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
        self.generator = generator = np.random.default_rng(seed)
        self.home = np.array(world["home"])
        self.latency = int(generator.integers(0, 11))
        config = FilterConfig(latency=self.latency, mode=mode)  # type: ignore[arg-type]
        self.filter = SafetyFilter.for_robot(
            robot, workspace=world["box"], obstacles=(), self_collision=True, tool_speed=None,
            period=DT, config=config, measured=MEASURED.get(robot),
        )  # fmt: skip
        self.judge = Judge(robot, world["box"])
        self.names, self.n = self.judge.names, len(self.judge.names)
        at_home = self.judge.place([self.home])[0]
        self.movers = Movers(
            generator,
            lambda ends, radius: (
                self.judge.to_others(at_home, ends[None, None], np.array([radius]), 1.0)[0] > 0.15
            ),
        )
        self.tells_speed = generator.random() < 0.5
        self.now = 0.0
        self.sent = deque([self.home] * (self.latency + 1))
        self.v = np.zeros(self.n)
        self.seen: deque[list[Obstacle]] = deque(maxlen=6)
        self.filter.reset(RobotState(self.home, np.zeros(self.n), self.home, 0.0))

    def look(self) -> list[Obstacle]:
        """What a camera sees now, wrong by up to its noise."""
        movers, out = self.movers, []
        wrong = self.generator.normal(size=(len(movers.radii), 3))
        size = self.generator.random((len(wrong), 1)) * NOISE
        seen = movers.ends + (wrong * size / np.linalg.norm(wrong, axis=-1, keepdims=True))[:, None]
        for k, (start, end) in enumerate(seen.tolist()):
            moves = bool(movers.moving[k])
            known = moves and self.tells_speed
            out.append(
                Obstacle(
                    f"o{k}", tuple(start), float(movers.radii[k]),
                    end=tuple(end) if start != end else None, error=NOISE,
                    speed=float(np.linalg.norm(movers.velocity[k])) if known else None,
                    max_speed=float(movers.max_speed[k]),
                    max_acceleration=float(movers.max_acceleration[k]) if known else np.inf,
                    stamp=self.now if moves else None,
                )
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
        self.filter.see(self.seen[-1 - age])
        measured = self.sent[0] + generator.uniform(-5e-3, 5e-3, self.n)
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
        tally.deflected += decision.deflected
        tally.uncertified += not np.isfinite(q).all()
        tally.violations.update(self.judge.joints(told, self.v, q))
        self.v = (q - told) / DT
        tally.moving += bool((q != told).any())
        tally.fastest = max(tally.fastest, float(np.abs(self.v / self.judge.velocity).max()))
        self.sent.append(q)
        before = self.sent.popleft()
        self._execute(before, self.sent[0], tally)

    def _execute(self, before: Array, after: Array, tally: Tally) -> None:
        """Ten milliseconds of everything that moves; nothing runs into an arm that stands."""
        movers, judge = self.movers, self.judge
        moving = bool((after != before).any())
        shares = np.linspace(0.0, 1.0, FINE + 1) if moving else np.zeros(1)
        ends, tool, elbow = judge.place([before + share * (after - before) for share in shares])
        ways, velocity = movers.plan(ends[0].mean((0, 1)))
        if not moving:
            here = judge.to_others(ends, ways[:1], movers.radii, 0.1)
            there = judge.to_others(ends, ways[-1:], movers.radii, 0.1)
            waits = (there < MARGIN + SOCIAL) & (there < here)
            ways[:, waits], velocity[waits] = ways[0, waits], 0.0
        else:
            apart = judge.to_others(ends, ways, movers.radii, 0.1)
            tally.nearest = min(tally.nearest, float(apart.min()))
            tally.violations.update(judge.walls(tool, elbow))
            tally.violations["obstacle"] += bool(apart.min() < MARGIN - 1e-6)
            if judge.to_itself(ends, 0.1) < OWN_MARGIN - 1e-6:
                tally.violations["self-collision"] += 1
        movers.ends, movers.velocity = ways[-1], velocity


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
    age = float(generator.choice([0.0, 0.05, 3.0, -3.0], p=[0.74, 0.2, 0.03, 0.03]))
    wrong = generator.random() < 0.05
    period = float(
        generator.choice([0.0, np.nan, -0.1, 1e300] if wrong else [0.2, 0.1, 0.033, 0.01])
    )
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
