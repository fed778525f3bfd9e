"""What flows through the control loop, one dataclass each. NumPy only; SI units; no behaviour.

A robot is read (`RobotState`), a policy proposes (`Proposal`), the filter certifies (`Decision`
with a `CertifiedCommand`), only that is written, and what was executed is recorded (`Transition`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, NewType

from numpy.typing import NDArray

Array = NDArray[Any]
Observation = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class RobotState:
    """One reading of an arm with n joints.

    Attributes:
        q: measured joint positions `[n]`, rad.
        dq: measured joint velocities `[n]`, rad/s.
        q_command: the last certified joint positions the driver was given `[n]`, rad; equal to `q`
            before the first command. The next proposal starts here, so that tracking lag never
            shrinks a step.
        stamp: time of the reading on the robot's clock, s.
        torque: measured joint torques `[n]`, Nm, where the robot reports them.
    """

    q: Array
    dq: Array
    q_command: Array
    stamp: float
    torque: Array | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """Joint set-point for one control tick: be at `q` moving at `dq` when the tick ends.

    Attributes:
        q: joint positions `[n]`, rad.
        dq: joint velocities `[n]`, rad/s.
        stamp: time at which the tick starts on the robot's clock, s.
    """

    q: Array
    dq: Array
    stamp: float


CertifiedCommand = NewType("CertifiedCommand", Command)
"""A command that the safety filter let pass. Only `safe_o2o/safety/filter.py` makes one."""


class Source(IntEnum):
    """Who proposed."""

    POLICY = 0
    SCRIPT = 1
    HUMAN = 2
    RECOVERY = 3


@dataclass(frozen=True, slots=True)
class Proposal:
    """What somebody would like the arm to do: H joint targets, one policy period apart.

    Attributes:
        q: joint targets `[H, n]`, rad; row h is wanted `(h + 1) * period` after the start.
        period: policy period, s.
        stamp: stamp of the observation behind the proposal, s.
        joint_names: names of the n columns; matched by name, never by index.
        source: who proposed.
    """

    q: Array
    period: float
    stamp: float
    joint_names: tuple[str, ...]
    source: Source = Source.POLICY

    @property
    def length(self) -> float:
        """How long it takes, s."""
        return len(self.q) * self.period

    def slowed(self, speed: float) -> Proposal:
        """The same motion at a share of its speed, in (0, 1]: it takes that much longer."""
        return self if speed == 1.0 else replace(self, period=self.period / speed)


class Verdict(IntEnum):
    """What the filter did with a proposal in one tick, from mild to strict."""

    PASS = 0
    CORRECTED = 1
    STOPPED = 2


class GateState(IntEnum):
    """What the reachability gate made of a policy's action, from mild to strict."""

    PASS = 0
    SHAPE = 1
    RECOVER = 2
    BRAKE = 3


STALLED = "gate_stalled"
"""Reason of the last step of an episode that was given up because the gate held it for too long."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The filter's answer for one tick.

    Attributes:
        command: the only thing a robot accepts.
        verdict: what was done to the proposal.
        reason: id of the limiting constraint or guard, `""` when the proposal passed.
        margin: smallest remaining margin of the returned motion over all constraints, as a share
            of each constraint's range (1 = far away, 0 = at the limit).
        rate: policy time per time in this tick; below 1 the arm is slower than proposed.
        stop_ticks: control ticks to a standstill, were the stored stop played from here.
        tried: motions that were checked in this tick.
        deflected: whether the arm left the path that was proposed to go round something.
    """

    command: CertifiedCommand
    verdict: Verdict
    reason: str
    margin: float
    rate: float = 1.0
    stop_ticks: int = 0
    tried: int = 0
    deflected: bool = False


@dataclass(frozen=True, slots=True)
class Transition:
    """One policy step as it happened; `action` is what was *executed*, in [-1, 1].

    Attributes:
        obs: observation before the action.
        action: executed action `[A]` in [-1, 1].
        proposed_action: what the policy asked for `[A]`.
        reward: reward that this action caused.
        cost: cost that this action caused, >= 0.
        terminated: the task ended (goal reached, ...); values do not bootstrap past it.
        truncated: time ran out or somebody stopped the episode; values do bootstrap.
        verdict: the strictest verdict over the control ticks of this step.
        reason: the filter's reason that belongs to `verdict`.
        margin: smallest filter margin over the control ticks of this step.
        source: who proposed.
        stamp: stamp of `obs`, s.
        force: largest contact force during the action, N; NaN where nobody measured it.
        clearance: distance of the arm from what it must not touch after the action, m, 0 if it
            was touched; NaN where nobody knows it. For training alone.
        gate: what the reachability gate made of `proposed_action`; None where there was none.
    """

    obs: Observation
    action: Array
    proposed_action: Array
    reward: float
    cost: float
    terminated: bool
    truncated: bool
    verdict: Verdict = Verdict.PASS
    reason: str = ""
    margin: float = 1.0
    source: Source = Source.POLICY
    stamp: float = 0.0
    force: float = math.nan
    clearance: float = math.nan
    gate: GateState | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What an environment answers to an action.

    Attributes:
        obs: the new observation.
        reward: reward caused by the action.
        cost: cost caused by the action, >= 0.
        terminated: the task ended.
        truncated: the episode was cut off.
        action: executed action `[A]` in [-1, 1], which the filter may have changed.
        verdict: the strictest verdict over the control ticks of this step.
        reason: the filter's reason for it.
        margin: smallest filter margin over the control ticks of this step.
        stamp: stamp of `obs`, s.
        force: largest contact force during the action, N; NaN where nobody measured it.
        clearance: distance of the arm from what it must not touch after the action, m, 0 if it
            was touched; NaN where nobody knows it. For training alone.
        info: extras for logs and reports, JSON-ready.
    """

    obs: Observation
    reward: float
    cost: float
    terminated: bool
    truncated: bool
    action: Array
    verdict: Verdict = Verdict.PASS
    reason: str = ""
    margin: float = 1.0
    stamp: float = 0.0
    force: float = math.nan
    clearance: float = math.nan
    info: Mapping[str, Any] = field(default_factory=dict)
