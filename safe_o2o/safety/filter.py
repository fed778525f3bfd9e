"""The one door to the motors: a proposal in, one certified command a tick out.

Each tick the filter advances along the proposal's joint path as far as the limits allow, and lets
the command pass only if a full stop from it stays inside every limit as well. That stop is stored;
whatever goes wrong later, it is played. A robot at rest inside its limits therefore never leaves
them, for any proposal (online_safety.md 6.5), as long as it follows its set-points.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.interfaces import Constraint
from safe_o2o.safety.braking import synchronous_brake, synchronous_ticks
from safe_o2o.safety.guards import FilterConfig as FilterConfig
from safe_o2o.safety.guards import Guards, joint_vector
from safe_o2o.safety.joint_limits import JointLimits
from safe_o2o.safety.kinematics import Kinematics
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.path import JointPath
from safe_o2o.safety.workspace import Box, HalfPlane, Workspace
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


ROUNDING = 1e-12
"""Clearance, in a constraint's unit, that is lost to rounding and does not count."""


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
        self._guards = Guards(limits, period, self.config)
        self._speed = limits.velocity * (1.0 + SLACK)
        self._change = limits.acceleration * period * (1.0 + SLACK)
        # Until there is a finite pose: a driver refuses what is not finite, and stays still.
        self._ready, self._sent = False, False
        self._q, self._v = np.full(self._n, np.nan), np.zeros(self._n)
        self._stop = np.empty((0, self._n))
        self._stopped_for, self._margin = "", 0.0
        self._forget()

    @classmethod
    def for_robot(
        cls,
        robot: str = "panda",
        *,
        workspace: Box,
        table_height: float = 0.0,
        elbow_workspace: Box | None = None,
        half_planes: Sequence[HalfPlane] = (),
        period: float = 0.01,
        config: FilterConfig | None = None,
        velocity_scale: float = 1.0,
        acceleration_scale: float = 1.0,
    ) -> SafetyFilter:
        """The filter of a shipped arm.

        Args:
            robot: name of the arm.
            workspace: lowest and highest tool position, m, base frame.
            table_height: lowest z of tool and elbow, m.
            elbow_workspace: lowest and highest elbow position, m, if it has a box of its own.
            half_planes: further half-planes for tool and elbow: normal and offset, m.
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
        walls = Workspace(
            kinematics, *workspace, table_height, elbow=elbow_workspace, half_planes=half_planes
        )
        return cls(limits, (JointLimits(limits), walls), period, config)

    # ------------------------------------------------------------------ interface

    def reset(self, state: RobotState) -> None:
        """Start from the measured pose, at rest, with nothing to do.

        A pose that is not finite is none: a stop in progress is played to its end, and the filter
        starts from the first finite pose that follows.
        """
        self._forget()
        self._guards.restart()
        q = joint_vector(state.q, self._n)
        self._ready = q is not None
        if q is not None:
            self._sent = False
            self._q, self._v = q, np.zeros(self._n)
            self._stop = np.empty((0, self._n))
            self._stopped_for, self._margin = "", 0.0

    def _forget(self) -> None:
        self._path: JointPath | None = None
        self._proposal: Proposal | None = None
        self._fault = ""

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
        """What is wrong with clock or reading, `""` when nothing is."""
        if not self._ready:
            if len(self._stop):
                return "state_invalid"
            self.reset(state)
            if not self._ready:
                return "state_invalid"
        return self._guards.clock(now, len(self._stop) > 0) or self._guards.reading(
            state, self._q, self._sent, now
        )

    def _take(self, proposal: Proposal | None, now: float) -> str:
        """Look at the proposal; a new one becomes the path. What is wrong with it, or `""`."""
        if proposal is None:
            return "no_proposal"  # the last one is remembered: should it return, its rest is done
        if proposal is not self._proposal:
            # A path on time is taken over at its policy step, even between two ticks.
            path = self._path
            lead = path.phase if path is not None and path.rate == 1.0 and not path.late else 0.0
            self._proposal, self._path = proposal, None
            self._fault = "proposal_invalid"  # should looking at it raise
            fault, target = self._guards.proposal(proposal, self._q)
            if not fault:
                self._follow(target, proposal.period, lead)
            self._fault = fault
        return self._fault or self._guards.age(proposal, now)

    def _follow(self, target: Array, period: float, lead: float) -> None:
        self._target, self._reached = target, 0
        self._path = self._plan(target, lead)
        if not np.abs(target[0] - self._q).max() <= self.limits.velocity.min() * period:
            self._path.late = self._path.late or "first_target"

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
            path.rate = 0.0
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

    def _plan(self, target: Array, lead: float = 0.0) -> JointPath:
        self._first = self._reached
        assert self._proposal is not None
        speed, acceleration = self.limits.velocity, self.limits.acceleration
        period = self._proposal.period
        return JointPath.fit(
            self._q, self._v, target, period, self.period, speed, acceleration, lead
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
        swept, margin = np.array([self._q, q, end]), 1.0
        for constraint in self.constraints:
            lowest = lowest_clearance(constraint, swept)
            if lowest is None:
                return constraint.name, None
            margin = min(margin, lowest / constraint.range)
        return "", (v, synchronous_brake(q, v, n, self.period), margin)

    def _send(
        self,
        q: Array,
        found: tuple[Array, Array, float],
        verdict: Verdict,
        reason: str,
        now: float,
    ) -> Decision:
        v, self._stop, self._margin = found
        return self._emit(q, v, verdict, reason, self._margin, now)

    def _play_stop(self, reason: str, now: float, verdict: Verdict = Verdict.STOPPED) -> Decision:
        """The next set-point of the stored stop; when it is used up, hold."""
        if verdict is Verdict.STOPPED:
            self._path, self._stopped_for = None, reason
        q, v = self._q, np.zeros(self._n)
        if len(self._stop):
            q, self._stop = self._stop[0], self._stop[1:]
            v = (q - self._q) / self.period
        margin = self._margin if verdict is Verdict.PASS else 0.0
        return self._emit(q, v, verdict, reason, margin, now)

    def _emit(
        self, q: Array, v: Array, verdict: Verdict, reason: str, margin: float, now: float
    ) -> Decision:
        # They are the filter's memory as well: whoever gets them must not write into them.
        q.setflags(write=False)
        v.setflags(write=False)
        self._q, self._v, self._sent = q, v, True
        return Decision(CertifiedCommand(Command(q, v, now)), verdict, reason, margin)


def lowest_clearance(constraint: Constraint, swept: Array) -> float | None:
    """Least clearance of a motion along straight lines in joint space.

    Args:
        constraint: what to keep clear of.
        swept: configurations `[K, n]` that the motion passes, the one it starts from first.

    Returns:
        A lower bound >= 0 in the constraint's unit, or None where the motion is not proven to stay
        inside. From outside a limit (pushed by hand, bad start) a motion counts as inside as long
        as it leads no farther out of that limit, and no limit is left for another.
    """
    clearance = np.asarray(constraint.clearance(swept), np.float64)
    bulges = [float(constraint.bulge(b - a)) for a, b in pairwise(swept)]
    if clearance.ndim != 2 or len(clearance) != len(swept):
        return None
    # In the positive, and with NumPy's min, because Python's overlooks a NaN.
    if not all(bulge >= 0.0 for bulge in bulges):
        return None
    lowest = float(clearance.min() - max(bulges))
    if lowest >= 0.0:
        return lowest
    if not (clearance > -np.inf).all():
        return None
    # Nearer: the lowest point of line minus parabola (interfaces.Constraint.bulge) on each line.
    before, after, bulge = clearance[:-1], clearance[1:], np.array(bulges)[:, None]
    slope, divisor = after - before, np.where(bulge > 0.0, 16.0 * bulge, 1.0)
    deepest = 0.5 * (before + after) - bulge - slope**2 / divisor
    between = np.where(np.abs(slope) < 4.0 * bulge, deepest, np.minimum(before, after))
    if not (between >= np.minimum(clearance[0], -ROUNDING)).all():
        return None
    return max(0.0, float(between.min()))
