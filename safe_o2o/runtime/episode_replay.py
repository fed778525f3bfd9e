"""What a filter would have made of a recorded episode: passed, slowed, stopped, and why.

The recorded proposals go through the filter of any shipped arm's limits once more, on an arm with
perfect servos that starts where the recorded one did. Each target is where the recorded tool was
plus what was proposed there, so that a correction in one step does not bend all that follow.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from safe_o2o.data.episode import Episode
from safe_o2o.errors import ConfigError, DataError
from safe_o2o.interfaces import Filter
from safe_o2o.runtime.cartesian import CartesianDelta
from safe_o2o.runtime.control_loop import ControlLoop
from safe_o2o.runtime.mock_robot import MockRobot
from safe_o2o.safety.limits import tool_frame
from safe_o2o.types import Array, Proposal, Verdict

POSE = "tcp_pose"


@dataclass(frozen=True)
class ReplayedStep:
    """One policy step whose proposal did not pass as it was.

    Attributes:
        step: its number in the episode.
        stamp: recorded time, s.
        verdict: the strictest over its control ticks.
        reason: the first reason that came with it.
        behind: how far the arm was from the step's target when the next one was proposed, m.
    """

    step: int
    stamp: float
    verdict: Verdict
    reason: str
    behind: float


@dataclass
class ReplayReport:
    """What the filter would have done.

    Attributes:
        steps: policy steps.
        ticks: control ticks by verdict.
        reasons: control ticks by reason, those that passed left out.
        changed: steps that did not pass as they were, in order.
        margin: smallest margin.
    """

    steps: int = 0
    ticks: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    changed: list[ReplayedStep] = field(default_factory=list)
    margin: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        names = {Verdict.PASS: "passed", Verdict.CORRECTED: "slowed", Verdict.STOPPED: "stopped"}
        return {
            "steps": self.steps,
            "ticks": {names[verdict]: self.ticks[verdict.name] for verdict in Verdict},
            "reasons": dict(self.reasons.most_common()),
            "margin": self.margin,
            "changed": [
                {
                    "step": entry.step,
                    "stamp": entry.stamp,
                    "verdict": names[entry.verdict],
                    "reason": entry.reason,
                    "behind_m": entry.behind,
                }
                for entry in self.changed
            ],
        }


def replay_episode(episode: Episode, filter: Filter, robot: str = "panda") -> ReplayReport:
    """Send an episode's proposals through a filter.

    Args:
        episode: with an observation `tcp_pose` and actions (dx, dy, dz) in m.
        filter: what certifies; it is reset.
        robot: the arm that the filter is for; one with a posture.

    Raises:
        DataError: the episode has no `tcp_pose`.
        ConfigError: its actions are of another kind, or the arm has no posture.
    """
    spec = episode.spec
    if POSE not in spec.observation.arrays:
        raise DataError("has no tool poses to start from", where=episode.path)
    try:
        frame = tool_frame(robot)
        cartesian = CartesianDelta(spec.action, robot, frame=frame)
    except ConfigError as error:
        raise ConfigError(f"cannot be replayed: {error}", where=episode.path) from error
    tool: Array = np.asarray(episode.array(f"obs.{POSE}"), np.float64)[:, :3]
    proposed, stamps = episode.array("proposed_action"), episode.array("stamp")
    body = MockRobot(robot, q=cartesian.solve(tool[0], cartesian.posture, iterations=60))
    report = ReplayReport(steps=len(episode))
    with body:
        body.activate()
        loop = ControlLoop(body, filter)
        loop.reset()
        ticks = max(1, round(spec.action.period / body.period))
        for step, action in enumerate(proposed):
            state = body.read()
            delta = spec.action.to_si(action)
            goal = tool[step] + delta
            finite = bool(np.isfinite(goal).all())
            target = cartesian.solve(goal, state.q_command) if finite else state.q * np.nan
            proposal = Proposal(
                target[None], spec.action.period, state.stamp, cartesian.joint_names
            )
            worst, reason = Verdict.PASS, ""
            for _ in range(ticks):
                decision = loop.tick(proposal)
                report.ticks[decision.verdict.name] += 1
                report.margin = min(report.margin, decision.margin)
                if decision.verdict is not Verdict.PASS:
                    report.reasons[decision.reason or "held"] += 1
                if decision.verdict > worst:
                    worst, reason = decision.verdict, decision.reason
            if worst is not Verdict.PASS:
                here = cartesian.position(body.read().q_command)
                behind = float(np.linalg.norm(goal - here)) if finite else float("nan")
                stamp = float(stamps[step])
                report.changed.append(ReplayedStep(step, stamp, worst, reason, round(behind, 6)))
    return report
