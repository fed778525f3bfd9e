"""The one door to the motors: a proposal in, one certified command a tick out.

Each tick the filter advances along the proposal's joint path as far as the limits allow, and lets
the command pass only if a full stop from it stays inside every limit as well. That stop is stored;
whatever goes wrong later, it is played. A robot at rest inside its limits therefore never leaves
them, for any proposal (online_safety.md 6.5), as long as it follows its set-points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.interfaces import Constraint
from safe_o2o.safety.braking import synchronous_brake, synchronous_ticks
from safe_o2o.safety.joint_limits import JointLimits
from safe_o2o.safety.kinematics import Kinematics
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.path import JointPath
from safe_o2o.safety.workspace import Workspace
from safe_o2o.types import (
    Array,
    CertifiedCommand,
    Command,
    Decision,
    Proposal,
    RobotState,
    Verdict,
)

RATE_STEPS = (0.2, 0.05, 0.0, -0.05, -0.1, -0.2, -0.4, -0.7)
"""Changes of the rate along the path that are tried when full speed is refused."""
SLACK = 1e-9
"""Relative slack of speed and acceleration checks: rounding must not refuse the limit itself."""


@dataclass(frozen=True)
class FilterConfig:
    """Tolerances of the guards.

    Attributes:
        max_proposal_age: oldest observation behind a proposal, beyond the proposal's own length, s.
        max_future: how far a stamp may lie ahead of the clock, s.
        max_tick: longest time between two ticks, in control periods.
        tracking_tolerance: largest distance between commanded and measured joint position, rad.
        first_reject: a first target farther from the last command than this is refused, rad. One
            that is nearer, but out of reach within one policy period at the speed limit, is
            approached within the limits and counts as corrected.
    """

    max_proposal_age: float = 0.5
    max_future: float = 0.05
    max_tick: float = 5.0
    tracking_tolerance: float = 0.2
    first_reject: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (np.isfinite(value) and value > 0):
                raise ConfigError(f"must be positive, got {value}", where=name)


class SafetyFilter:
    """Certifies joint set-points tick by tick; see the module.

    Args:
        limits: the arm's limits.
        constraints: what must hold on the way and until standstill, joint limits included.
        period: control period, s.
        config: tolerances.

    Raises:
        ConfigError: the period is not positive or a constraint is missing.
    """

    def __init__(
        self,
        limits: RobotLimits,
        constraints: Sequence[Constraint],
        period: float = 0.01,
        config: FilterConfig | None = None,
    ) -> None:
        if not (np.isfinite(period) and period > 0):
            raise ConfigError(f"must be positive, got {period}", where="period")
        if not constraints:
            raise ConfigError("needs at least the joint limits", where="constraints")
        self.limits, self.constraints, self.period = limits, tuple(constraints), period
        self.config = config or FilterConfig()
        self._n = len(limits.joint_names)
        self._speed = limits.velocity * (1.0 + SLACK)
        self._change = limits.acceleration * period * (1.0 + SLACK)
        self._ready = False
        self.reset_count = 0

    @classmethod
    def for_robot(
        cls,
        robot: str = "panda",
        *,
        workspace: tuple[Sequence[float], Sequence[float]],
        table_height: float = 0.0,
        period: float = 0.01,
        config: FilterConfig | None = None,
        velocity_scale: float = 1.0,
        acceleration_scale: float = 1.0,
    ) -> SafetyFilter:
        """The filter of a shipped arm.

        Args:
            robot: name of the arm.
            workspace: lowest and highest tool position, m, base frame.
            table_height: lowest z of the elbow, m.
            period: control period, s.
            config: tolerances.
            velocity_scale: share of the arm's speed limits, in (0, 1].
            acceleration_scale: share of its acceleration limits, in (0, 1].

        Raises:
            UnknownNameError: no such arm.
            ConfigError: a number is out of range.
        """
        limits = RobotLimits.load(robot).scaled(velocity_scale, acceleration_scale)
        kinematics = Kinematics(robot, (limits.tool_frame, limits.elbow_frame))
        low, high = (np.asarray(corner, np.float64) for corner in workspace)
        walls = Workspace(kinematics, low, high, table_height)
        return cls(limits, (JointLimits(limits), walls), period, config)

    # ------------------------------------------------------------------ interface

    def reset(self, state: RobotState) -> None:
        """Start from the measured pose, at rest, with nothing to do.

        A pose that is not finite leaves the filter unready: it then holds whatever it held before.
        """
        self.reset_count += 1
        self._path: JointPath | None = None
        self._proposal: Proposal | None = None
        self._proposal_ok = ""
        self._last_now: float | None = None
        q = np.array(state.q, np.float64)
        self._ready = q.shape == (self._n,) and bool(np.isfinite(q).all())
        if self._ready:
            self._q, self._v = q, np.zeros(self._n)
            self._stop = np.empty((0, self._n))
            self._stopped_for, self._margin = "", 0.0

    def certify(self, state: RobotState, proposal: Proposal | None, now: float) -> Decision:
        """One control tick; never raises.

        Args:
            state: the newest reading.
            proposal: what to move along; the same object as long as it is in progress. None asks
                for a stop.
            now: the clock that `state.stamp` and `proposal.stamp` are read from, s.

        Returns:
            The command for this tick. When anything is wrong it is the next one of the stored stop.
        """
        try:
            reason = self._guard(state, now) or self._take(proposal, now)
            if reason:
                return self._play_stop(reason, now)
            return self._advance(now)
        except Exception as error:  # the loop must go on: the stored stop needs no computation
            return self._play_stop(f"exception:{type(error).__name__}", now)

    # ------------------------------------------------------------------ guards

    def _guard(self, state: RobotState, now: float) -> str:
        """What is wrong with reading or clock, `""` when nothing is."""
        if not self._ready:
            self.reset(state)
            if not self._ready:
                return "state_invalid"
        last, self._last_now = self._last_now, now
        q = np.asarray(state.q)
        if q.shape != (self._n,) or not np.isfinite(q).all():
            return "state_invalid"
        if not np.isfinite(now):
            self._last_now = last
            return "clock_invalid"
        if last is not None and not 0.0 < now - last <= self.config.max_tick * self.period:
            return "clock_jump"
        if not np.abs(q - self._q).max() <= self.config.tracking_tolerance:
            return "tracking_error"
        return ""

    def _take(self, proposal: Proposal | None, now: float) -> str:
        """Look at the proposal; a new one becomes the path. What is wrong with it, or `""`."""
        if proposal is None:
            self._proposal = None
            return "no_proposal"
        if proposal is not self._proposal:
            self._proposal, self._path = proposal, None
            self._proposal_ok = self._accept(proposal)
        if self._proposal_ok:
            return self._proposal_ok
        age = now - proposal.stamp
        length = len(proposal.q) * proposal.period
        if not -self.config.max_future <= age <= length + self.config.max_proposal_age:
            return "proposal_stale"
        return ""

    def _accept(self, proposal: Proposal) -> str:
        target = np.asarray(proposal.q, np.float64)
        if target.ndim != 2 or target.shape[0] < 1 or target.shape[1] != self._n:
            return "proposal_shape"
        if sorted(proposal.joint_names) != sorted(self.limits.joint_names):
            return "proposal_names"
        if not (np.isfinite(target).all() and np.isfinite(proposal.stamp)):
            return "proposal_not_finite"
        if not (np.isfinite(proposal.period) and proposal.period >= self.period):
            return "proposal_period"
        order = [proposal.joint_names.index(name) for name in self.limits.joint_names]
        target = target[:, order]
        if not np.abs(target[0] - self._q).max() <= self.config.first_reject:
            return "first_target_far"
        self._target, self._reached = target, 0
        self._path = self._plan(target)
        if not np.abs(target[0] - self._q).max() <= self.limits.velocity.min() * proposal.period:
            self._path.late = self._path.late or "first_target"
        return ""

    # ------------------------------------------------------------------ motion

    def _advance(self, now: float) -> Decision:
        """Full speed along the path if that passes, else slower, else the stored stop."""
        path = self._path
        if path is None:
            if len(self._stop):
                return self._play_stop(self._stopped_for, now)
            if self._reached == len(self._target):
                return self._play_stop("", now, Verdict.PASS)
            path = self._path = self._plan(self._target[self._reached :])
            # It was stopped on the way here: whatever follows is later than proposed.
            path.late, path.rate = path.late or self._stopped_for, 0.0
        if path.time >= path.ticks:
            return self._play_stop("", now, Verdict.PASS)  # all done: end the motion just beyond
        refusal = ""
        for rate in self._rates(path.rate):
            time = min(path.time + rate, path.ticks)
            q = path.at(time)
            reason, found = self._check(q)
            if found is not None:
                path.time, path.rate = time, rate
                self._reached = self._first + path.reached
                path.late = path.late or refusal
                verdict = Verdict.CORRECTED if path.late else Verdict.PASS
                return self._send(q, found, verdict, path.late, now)
            refusal = refusal or reason
        return self._play_stop(refusal, now)

    @staticmethod
    def _rates(rate: float) -> list[float]:
        """Path ticks to try in one control tick, fastest first."""
        return [1.0, *(r for step in RATE_STEPS if 0.0 < (r := rate + step) < 1.0)]

    def _plan(self, target: Array) -> JointPath:
        self._first = self._reached
        assert self._proposal is not None
        limits, period = self.limits, self._proposal.period
        return JointPath.fit(
            self._q, self._v, target, period, self.period, limits.velocity, limits.acceleration
        )

    def _check(self, q: Array) -> tuple[str, tuple[Array, Array, float] | None]:
        """Is it safe to send q and to stop after it?

        Returns:
            The limit that says no and None, or `""` and (velocity, stop, margin).
        """
        v = (q - self._q) / self.period
        if not (np.abs(v) <= self._speed).all():
            return "joint_velocity", None
        if not (np.abs(v - self._v) <= self._change).all():
            return "joint_acceleration", None
        n = synchronous_ticks(v, self.limits.acceleration, self.period)
        # The stop runs along a line in joint space: its ends and the bulge between bound it.
        end = q + v * (self.period * (n - 1) / 2.0) if n else q
        swept = np.array([self._q, q, end])
        margin = 1.0
        for constraint in self.constraints:
            clearance = np.asarray(constraint.clearance(swept), np.float64)
            bulges = np.array([constraint.bulge(q - self._q), constraint.bulge(end - q)])
            # In the positive, and before any min(): Python's min and max overlook a NaN.
            if clearance.shape != (3,) or not (
                (clearance > -np.inf).all() and (bulges >= 0.0).all()
            ):
                return constraint.name, None
            before, nearest = clearance[0], clearance[1:].min()
            lowest = nearest - bulges.max()
            # Outside already (pushed by hand, bad start): only what does not lead farther out.
            if not (lowest >= -1e-12 or (before < 0.0 and nearest >= before)):
                return constraint.name, None
            margin = min(margin, float(lowest) / constraint.range)
        return "", (v, synchronous_brake(q, v, n, self.period), max(0.0, float(margin)))

    def _send(
        self,
        q: Array,
        found: tuple[Array, Array, float],
        verdict: Verdict,
        reason: str,
        now: float,
    ) -> Decision:
        self._v, self._stop, self._margin = found
        self._q = q
        command = Command(q, self._v, now)
        return Decision(CertifiedCommand(command), verdict, reason, self._margin)

    def _play_stop(self, reason: str, now: float, verdict: Verdict = Verdict.STOPPED) -> Decision:
        """The next set-point of the stored stop; when it is used up, hold."""
        if not self._ready:
            # There never was a finite pose. A driver refuses what is not finite and stays still.
            nothing = Command(np.full(self._n, np.nan), np.zeros(self._n), now)
            return Decision(CertifiedCommand(nothing), verdict, reason, 0.0)
        if verdict is Verdict.STOPPED:
            self._path, self._stopped_for = None, reason
        if len(self._stop):
            q, self._stop = self._stop[0], self._stop[1:]
            self._v = (q - self._q) / self.period
            self._q = q
        else:
            self._v = np.zeros(self._n)
        margin = self._margin if verdict is Verdict.PASS else 0.0
        command = Command(self._q, self._v, now)
        return Decision(CertifiedCommand(command), verdict, reason, margin)
