"""Wild input for the filter, and a judge that shares no code with it.

Used by tests/test_filter_fuzz.py and, at length, by benchmarks/filter_tick.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.types import Array, Proposal, RobotState
from tests.judge import DT, Judge

BOX = ((0.30, -0.26, 0.01), (0.70, 0.26, 0.28))
HOME = np.array([0.0, 0.06, 0.0, -2.35, 0.0, 2.41, 0.785])


@dataclass
class Tally:
    """What happened over a run; `fastest` is the largest share of a joint's speed limit."""

    ticks: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    fastest: float = 0.0


def wild_run(ticks: int, seed: int) -> Tally:
    """Drive the filter with garbage, jitter and noise; judge every command it returns."""
    generator, judge, tally = np.random.default_rng(seed), Judge("panda", BOX), Tally()
    filter_ = SafetyFilter.for_robot("panda", workspace=BOX, tool_speed=None, period=DT)
    q, v, now = HOME.copy(), np.zeros(7), 0.0
    filter_.reset(RobotState(q, v, q, now))
    proposal: Proposal | None = None
    for _ in range(ticks):
        jitter = generator.random()
        now += DT if jitter < 0.97 else float(generator.choice([0.0, -0.1, 0.1, 0.021]))
        if generator.random() < 0.08:
            proposal = wild_proposal(generator, judge.names, q, now)
        measured = q + generator.normal(0.0, 5e-3, 7)
        if generator.random() < 0.01:
            measured[generator.integers(7)] = generator.choice([np.nan, np.inf, 9.0])
        decision = filter_.certify(RobotState(measured, v, q, now), proposal, now)
        tally.verdicts[decision.verdict.name] += 1
        tally.violations.update(judge.violations(q, v, decision.command.q))
        v, q = (decision.command.q - q) / DT, decision.command.q
        tally.ticks += 1
    return tally


def bang_run(ticks: int, seed: int) -> Tally:
    """Drive the arm as fast as it goes from wall to wall: far targets, new ones at odd times."""
    generator, judge, tally = np.random.default_rng(seed), Judge("panda", BOX), Tally()
    filter_ = SafetyFilter.for_robot("panda", workspace=BOX, tool_speed=None, period=DT)
    q, v, now, left = HOME.copy(), np.zeros(7), 0.0, 0
    filter_.reset(RobotState(q, v, q, now))
    for _ in range(ticks):
        if left == 0:
            left, period = int(generator.integers(3, 25)), float(generator.choice([0.05, 0.2, 0.4]))
            push = generator.choice([-1.0, 0.0, 1.0], 7) * generator.uniform(0.1, 0.9, (3, 7))
            home = np.clip(HOME - q, -0.9, 0.9)[None]  # else it ends up in a corner for good
            offset = np.cumsum(push, axis=0) if generator.random() < 0.7 else home
            proposal = Proposal(q + offset, period, now, judge.names)
        left -= 1
        now += DT
        decision = filter_.certify(RobotState(q, v, q, now), proposal, now)
        tally.verdicts[decision.verdict.name] += 1
        tally.violations.update(judge.violations(q, v, decision.command.q))
        v, q = (decision.command.q - q) / DT, decision.command.q
        tally.ticks += 1
        tally.fastest = max(tally.fastest, float(np.abs(v / judge.velocity).max()))
    return tally


def wild_proposal(
    generator: np.random.Generator, names: tuple[str, ...], q: Array, now: float
) -> Proposal | None:
    """Targets near, far, extreme, not finite, permuted, misnamed, old or from the future."""
    kind = generator.random()
    if kind < 0.03:
        return None
    target = q + generator.normal(
        0.0, generator.choice([0.01, 0.1, 0.4]), (generator.integers(1, 5), 7)
    )
    if kind < 0.08:
        target[0, generator.integers(7)] = generator.choice([np.nan, np.inf, -np.inf, 1e300])
    if kind > 0.95:
        names = tuple(generator.permutation(names)) if kind > 0.97 else ("nobody", *names[1:])
    if kind > 0.99:
        target = target[:, :5]
    age = float(generator.choice([0.0, 0.0, 0.0, 0.05, 3.0, -3.0]))
    period = float(generator.choice([0.2, 0.2, 0.1, 0.033, 0.01, 0.0, np.nan]))
    return Proposal(target, period, now - age, names)
