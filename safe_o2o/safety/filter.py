"""The one door to the motors: a proposal in, one certified command a tick out.

Each tick the filter tries to go on along the intended path at full speed, then more slowly. What it
sends is the first set-point of a motion that comes to a standstill and whose every tick, and the
way between the ticks, was found inside every limit. The rest of that motion is stored; whatever
goes wrong later, it is played. A robot at rest inside its limits therefore never leaves them, for
any proposal (online_safety.md 6.5, path_filter.md 7), as long as it follows its set-points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.interfaces import Constraint, RefusedByEnds
from safe_o2o.safety.arm import Arm
from safe_o2o.safety.body import Capsule
from safe_o2o.safety.deflection import Deflection
from safe_o2o.safety.guards import FilterConfig as FilterConfig
from safe_o2o.safety.guards import Guards, joint_vector
from safe_o2o.safety.joint_limits import JointLimits
from safe_o2o.safety.joint_speed import JointSpeed
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.motion import Motion
from safe_o2o.safety.obstacle import MARGIN, Obstacle, Obstacles
from safe_o2o.safety.path import JointPath
from safe_o2o.safety.policy_clock import PolicyClock
from safe_o2o.safety.precheck import PathCheck, PathConstraints
from safe_o2o.safety.self_collision import OWN_MARGIN, SelfCollision
from safe_o2o.safety.stop import Stop
from safe_o2o.safety.stopping import Stopping
from safe_o2o.safety.sweep import SLACK, JointDifferences, lowest_clearance
from safe_o2o.safety.tightening import Tightening
from safe_o2o.safety.tool_speed import REDUCED_SPEED, ToolSpeed
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

FASTER = (0.98, 0.7, 0.4, 0.1)
"""Shares of the rate that could be gained along the path, tried where full speed is refused."""
ASIDE = (1.0, 0.5, 0.25)
"""Shares of the way from the brake to the quadratic program's velocity that are tried."""
SLOWER = (0.25, 0.5, 0.75)
"""Shares of the way from the present rate to the stored stop's, tried where going on is refused."""


@dataclass(slots=True)
class _Candidate:
    """A motion within the joints' limits that could be sent."""

    path: JointPath
    time: float  # on the path, of its first set-point
    rate: float
    stop: Stop


class SafetyFilter:
    """Certifies joint set-points tick by tick; see the module.

    Args:
        limits: the arm's limits.
        constraints: what must hold on the way and until standstill, joint limits included.
        period: control period, s.
        config: tolerances.

    Raises:
        ConfigError: the period is not positive or a constraint is missing.
        MissingDependencyError: the mode is `deflect` and no QP solver is installed.
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
        self._by_path = PathConstraints(self.constraints)
        self.config = config or FilterConfig()
        self._n = len(limits.joint_names)
        self._clock = PolicyClock(int(self.config.max_proposal_age / period) + 1)
        self._guards = Guards(limits, period, self.config)
        self._differences = JointDifferences(limits, period)
        self._stopping = Stopping(limits, period, self._differences)
        self._deflection: Deflection | None = None
        if self.config.mode == "deflect":
            self._deflection = Deflection(limits, self.constraints, period)
        # Until there is a finite pose: a driver refuses what is not finite, and stays still.
        self._ready, self._sent = False, False
        self._q = np.full(self._n, np.nan)
        self._rest()
        self._forget()

    @classmethod
    def for_robot(
        cls,
        robot: str | Arm = "panda",
        *,
        workspace: Box,
        table_height: float = 0.0,
        elbow_workspace: Box | None = None,
        half_planes: Sequence[HalfPlane] = (),
        obstacles: Sequence[Obstacle] | None = None,
        self_collision: bool = False,
        load: Sequence[Capsule] = (),
        tool_speed: float | None = REDUCED_SPEED,
        period: float = 0.01,
        config: FilterConfig | None = None,
        velocity_scale: float = 1.0,
        acceleration_scale: float = 1.0,
        tracking_error: float | Sequence[float] = 0.0,
        measured: Mapping[str, Sequence[float]] | None = None,
    ) -> SafetyFilter:
        """The filter of an arm.

        Args:
            robot: name of a shipped arm, or the user's own.
            workspace: lowest and highest tool position, m, base frame.
            table_height: lowest z of tool and elbow, m.
            elbow_workspace: lowest and highest elbow position, m, if it has a box of its own.
            half_planes: further half-planes for tool and elbow: normal and offset, m.
            obstacles: what stands or moves in the arm's way; give an empty sequence where
                `see` will tell later, None where nothing ever will.
            self_collision: whether the arm is kept from touching itself.
            load: what the arm carries or has mounted, in the frames of its links or tool; counts
                for obstacles and self-collision.
            tool_speed: largest speed of the tool, m/s, the reduced speed of ISO 10218 unless told
                otherwise; None for what the joints' limits allow.
            period: control period, s.
            config: tolerances.
            velocity_scale: share of the arm's speed limits, in (0, 1].
            acceleration_scale: share of its acceleration limits, in (0, 1]: what the arm can brake
                with at worst, its load in the hand.
            tracking_error: how far a joint may be from its set-point, rad, one number or one a
                joint: ranges, walls and margins are tightened by what that moves the arm.
            measured: of a shipped arm, limits that its maker does not publish, by name
                (`acceleration`, `jerk`).

        Raises:
            UnknownNameError: no such arm.
            ConfigError: a number is out of range.
        """
        arm = Arm.load(robot, measured) if isinstance(robot, str) else robot
        limits = arm.limits.scaled(velocity_scale, acceleration_scale)
        watched = self_collision or obstacles is not None
        body, skip = arm.body(load, spheres=watched)
        room = Tightening.of(tracking_error, limits, body)
        limits = room.limits(limits)
        low, high = room.box(workspace, room.tool)
        constraints: list[Constraint] = [
            JointLimits(limits),
            Workspace(
                body,
                low,
                high,
                table_height + room.ends,
                elbow=None if elbow_workspace is None else room.box(elbow_workspace, room.elbow),
                half_planes=room.half_planes(half_planes),
            ),
        ]
        if limits.velocity_offset is not None:
            constraints.append(JointSpeed(limits))
        if tool_speed is not None:
            constraints.append(ToolSpeed(body, limits.tool_frame, tool_speed))
        if self_collision:
            margin = OWN_MARGIN + 2.0 * room.body  # both parts may be off
            constraints.append(SelfCollision(body, skip, margin=margin))
        if obstacles is not None:
            constraints.append(Obstacles(body, obstacles, margin=MARGIN + room.body))
        return cls(limits, constraints, period, config)

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
            self._sent, self._q = False, q
            self._guards.told(q)
            self._rest()

    def _rest(self) -> None:
        self._v, self._change = np.zeros(self._n), np.zeros(self._n)
        self._stop = Stop.none(self._n)
        self._margin = 0.0

    def _forget(self) -> None:
        self._path: JointPath | None = None
        self._next: JointPath | None = None  # planned, and nothing on it verified yet
        self._proposal: Proposal | None = None
        self._fault, self._held_for = "", ""
        self._lead = 0.0  # of the plan after a deflection
        self._current = False  # whether the path in progress is the proposal's
        self._waits = False  # at rest, and a constraint was in the way at the last tick
        self._clock.restart()
        self._tried = 0

    @property
    def stop_ahead(self) -> Array:
        """The stored stop: what would follow the newest command, one a tick `[K, n]`, rad.

        K is 0 where that command is at rest.
        """
        return self._stop.q

    @property
    def exemptions(self) -> tuple[str, ...]:
        """What the constraints were told not to hold, one line each: worth a log at the start."""
        return tuple(
            f"{constraint.name}: {line}"
            for constraint in self.constraints
            for line in getattr(constraint, "exemptions", ())
        )

    def see(self, obstacles: Sequence[Obstacle]) -> None:
        """What stands or moves in the arm's way from now on; replaces what was seen before.

        Raises:
            ConfigError: the filter was made without obstacles, or two have the same name.
        """
        watching = [c for c in self.constraints if isinstance(c, Obstacles)]
        if not watching:
            raise ConfigError(
                "watches no obstacles", where="filter", todo="give it obstacles, none will do: ()"
            )
        for constraint in watching:
            constraint.update(obstacles)

    def look(self, proposal: Proposal) -> tuple[str, Array]:
        """What the guards say of a proposal, without taking it up; never raises.

        Returns:
            The id of what is wrong, `""` when nothing is, and the targets `[H, n]` in the order of
            `limits.joint_names`, rad.
        """
        try:
            return self._guards.proposal(proposal, self._q)
        except Exception:  # whatever it is, it is no proposal
            return "proposal_invalid", np.empty((0, self._n))

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
        self._tried = 0
        try:
            reason = self._guard(state, now) or self._take(proposal, now)
            if reason:
                return self._play_stop(reason, now)
            return self._advance(now)
        except Exception as error:  # the loop must go on: the stored stop needs no computation
            return self._play_stop(f"exception:{type(error).__name__}", now)

    # ------------------------------------------------------------------ guards

    def _guard(self, state: RobotState, now: float) -> str:
        """What is wrong with clock, reading or a constraint's data, `""` when nothing is."""
        if not self._ready:
            if len(self._stop.q):
                return "state_invalid"
            self.reset(state)
            if not self._ready:
                return "state_invalid"
        fault = self._guards.clock(now, bool(self._v.any())) or self._guards.reading(
            state, self._q, self._sent, now
        )
        for constraint in self.constraints:
            if fault:
                break
            fault = constraint.fault(now)
        return fault

    def _take(self, proposal: Proposal | None, now: float) -> str:
        """Look at the proposal; a new one is planned. What is wrong with it, or `""`."""
        if proposal is None:
            return "no_proposal"  # the last one is remembered: should it return, its rest is done
        if proposal is not self._proposal:
            self._proposal, self._next = proposal, None
            self._fault = "proposal_invalid"  # should looking at it raise
            fault, target = self._guards.proposal(proposal, self._q)
            if not fault:
                self._follow(target, proposal)
            self._fault = fault
        return self._fault or self._guards.age(proposal, now)

    def _follow(self, target: Array, proposal: Proposal) -> None:
        """Plan a new proposal from the last command; what was done of it meanwhile is left out."""
        period, path = proposal.period, self._path
        # A path on time is taken over at its policy step, even between two ticks.
        lead = path.phase if path is not None and path.rate == 1.0 and not path.late else 0.0
        done = self._clock.since(proposal.stamp)
        # A row that is due within half a tick is done: its path would be no path.
        skipped = min(int((done + 0.5 * self.period) / period), len(target) - 1)
        if len(target) > 1 and done > 0.0:
            lead = (skipped * period - done) / self.period
        self._target, self._reached, self._current = target[skipped:], 0, False
        self._next = self._plan(lead)
        reach = self.limits.velocity * (period + lead * self.period) * (1.0 + SLACK)
        if not (np.abs(self._target[0] - self._q) <= reach).all():
            self._next.late = self._next.late or "first_target"

    # ------------------------------------------------------------------ motion

    def _advance(self, now: float) -> Decision:
        """Full speed along the path if that passes, else slower, else the stored stop."""
        joints = wall = ""  # which limit said no first: the joints' own, or a constraint
        paths = self._paths()
        if not paths:
            return self._play_stop("", now, Verdict.PASS)  # all done, if not where it was proposed
        for path in paths:
            if path.time >= path.end:
                if not (wall or joints):
                    path.rate = 0.0
                    return self._play_stop("", now, Verdict.PASS)  # all done
                continue  # a new path was refused, and the old one leads no farther
            for rate in self._rates(path):
                found, why = self._candidate(path, rate)
                if found is None:
                    joints = joints or why
                    continue
                why, margin = self._clear(found, now)
                if not why:
                    return self._send(found, margin, wall or joints, now)
                wall = wall or why
                if self._deflection is not None and self._tried == 1:
                    aside = self._go_round(self._deflection, path, wall, now)
                    if aside is not None:
                        return aside
                if self._tried >= self.config.candidates:
                    return self._wait(wall, now)
        return self._wait(wall, now) if wall else self._play_stop(joints, now)

    def _wait(self, wall: str, now: float) -> Decision:
        """A constraint is in the way of every candidate."""
        self._waits = not self._v.any()
        return self._play_stop(wall, now)

    def _go_round(
        self, deflection: Deflection, path: JointPath, wall: str, now: float
    ) -> Decision | None:
        """Leave the path for what the quadratic program proposes, if that passes the same check."""
        time = min(path.time + 1.0, path.end)
        # Towards where it should be a policy period from now: the next tick alone says too little.
        ahead = min(path.time + path.per_step, path.end)
        wanted = (path.at(ahead) - self._q) / ((ahead - path.time) * self.period)
        w, brake = deflection.propose(self._q, self._v, wanted), deflection.brake(self._v)
        for share in ASIDE if w is not None else ():
            first = self._q + (brake + share * (w - brake)) * self.period
            stop, _ = self._stopping.straight(first, time, self._q, self._v, self._change)
            if stop is None:
                continue
            found = _Candidate(path, time, 1.0, stop)
            refused, margin = self._clear(found, now)
            if not refused:
                decision = self._send(found, margin, wall, now)
                # Never back to the old path: what is left of the targets is planned from here.
                self._lead, self._held_for = path.lead_to_next, path.late
                self._path = None
                return replace(decision, deflected=True)
        return None

    def _paths(self) -> list[JointPath]:
        """What to try to go along: the new path, and the old one until that was verified once."""
        if self._next is None and self._path is None:
            if self._reached == len(self._target):
                return []
            lead, self._lead = self._lead, 0.0
            self._next = self._plan(lead)
            # It left its path or was stopped on the way here: what follows is not as proposed.
            self._next.late = self._next.late or self._held_for
        elif self._next is not None and not np.array_equal(self._next.start, self._q):
            late = self._next.late  # refused before, and the arm has moved on since
            self._next = self._plan()
            self._next.late = late or self._next.late or self._held_for
        if self._waits and self._next is not None:
            return [self._next]  # an arm at rest has nothing to lose by leaving the old one
        return [path for path in (self._next, self._path) if path is not None]

    def _rates(self, path: JointPath) -> Iterator[float]:
        """Path ticks to try in one control tick, fastest first."""
        now = path.rate
        yield 1.0
        if now < 1.0:
            # Of what the joints' accelerations allow; the check has the last word.
            full = np.abs(path.motion(path.time)[0])
            most = float((self.limits.acceleration * self.period / np.maximum(full, 1e-9)).min())
            # What stood in the way of an arm at rest a tick ago mostly still does: then only as
            # fast as can be, should that lead away from it, and as slowly as can be.
            gains = (FASTER[0], FASTER[-1]) if self._waits else FASTER
            yield from (now + most * gain for gain in gains if now < now + most * gain < 1.0)
            if now > 0.0:
                yield now
        floor = self._stop.rate if path is self._path else 0.0
        for share in SLOWER:
            rate = now + share * (floor - now)
            if 1e-3 < rate < now:
                yield rate

    def _plan(self, lead: float = 0.0) -> JointPath:
        assert self._proposal is not None
        self._first = self._reached
        limits, dt, path = self.limits, self.period, self._path
        if path is not None:  # as it moves now, which differences show half a tick late
            v, a = path.motion(path.time)
            v, a = v * path.rate, a * path.rate**2
        else:
            v, a = self._v, self._change / dt
        planned = JointPath.fit(
            self._q, v, a if self._differences.jerk_binds else None, self._target[self._reached :],
            self._proposal.period, dt, limits.velocity, limits.acceleration, limits.jerk, lead,
        )  # fmt: skip
        planned.before = self._v
        return planned

    def _candidate(self, path: JointPath, rate: float) -> tuple[_Candidate | None, str]:
        """One tick at this rate and the stop after it, if the joints can do both."""
        time = min(path.time + rate, path.end)
        # On its path an arm stops on its path; at rest, or beside it, what the joints can do goes.
        aside = len(self._stop.q) > 0 and self._stop.times is None
        leave = aside or not self._v.any()
        stop, refusal = self._stopping.after(
            path, time, rate, self._q, self._v, self._change, leave
        )
        if stop is None:
            return None, refusal
        return _Candidate(path, time, rate, stop), ""

    def _clear(self, found: _Candidate, now: float) -> tuple[str, float]:
        """The constraint that says no to a motion, or `""` and its margin."""
        self._tried += 1
        path, stop, margin = found.path, found.stop, 1.0
        left: Sequence[Constraint] = self._by_path.all
        # The tick that planned a path has done enough: it looks at what it would send alone, and
        # the next one at the path.
        fresh = path is self._next and path.check is None and self._tried == 1
        if stop.times is not None and not fresh:  # all of it on the path
            if path.check is None:
                path.check = PathCheck(path, self._by_path, self.period, path.before)
            times = np.concatenate([[found.time], stop.times])
            refused, margin, left = path.check.look(path.time, times)
            if refused:
                return refused, 0.0
        if not left:
            return "", margin
        delay = self.config.latency * self.period
        q = np.concatenate([self._q[None], stop.first[None], stop.q])
        motion = Motion(q, self.period, self._v, now=now, delay=delay)
        for constraint in left:
            # Where the first candidate was refused, the next ones mostly are.
            if (
                self._tried > 1
                and isinstance(constraint, RefusedByEnds)
                and constraint.refuses(motion)
            ):
                return constraint.name, 0.0
            lowest = lowest_clearance(constraint, motion)
            if lowest is None:
                return constraint.name, 0.0
            margin = min(margin, lowest / constraint.range)
        return "", margin

    def _send(self, found: _Candidate, margin: float, refusal: str, now: float) -> Decision:
        path = found.path
        if path is self._next:
            self._path, self._next, self._current = path, None, True
        moved = found.time - path.time
        path.time, path.rate, self._waits = found.time, found.rate, False
        path.late = path.late or refusal
        self._passed(path, moved, now)
        self._stop, self._margin = found.stop, margin
        verdict = Verdict.CORRECTED if path.late else Verdict.PASS
        return self._emit(found.stop.first, verdict, path.late, margin, now)

    def _passed(self, path: JointPath, moved: float, now: float) -> None:
        """The policy's clock follows the path, not the wall: what is slowed skips no action."""
        if self._current:
            self._reached = self._first + path.reached
        done = moved * self.period / path.stretch if path.time - moved < path.ticks else 0.0
        self._clock.tick(done, now)

    def _play_stop(self, reason: str, now: float, verdict: Verdict = Verdict.STOPPED) -> Decision:
        """The next set-point of the stored stop; when it is used up, hold."""
        stopped, path, stop, q = verdict is Verdict.STOPPED, self._path, self._stop, self._q
        if stopped:
            self._held_for = reason
        if stopped and path is not None:
            path.late, path.rate = path.late or reason, 0.0
        if len(stop.q):
            q, self._stop = stop.q[0], stop.rest()
            if stop.times is None:
                self._path = None  # it has left the path: what is left is planned anew
            elif stopped and path is not None:
                moved = path.rate = float(stop.times[0]) - path.time
                path.time += moved
                self._passed(path, moved, now)
        margin = self._margin if verdict is Verdict.PASS else 0.0
        return self._emit(q, verdict, reason, margin, now)

    def _emit(self, q: Array, verdict: Verdict, reason: str, margin: float, now: float) -> Decision:
        v = (q - self._q) / self.period
        # They are the filter's memory as well: whoever gets them must not write into them.
        q.setflags(write=False)
        v.setflags(write=False)
        self._q, self._change, self._v, self._sent = q, v - self._v, v, True
        self._guards.told(q)
        rate = self._path.rate if self._path is not None else 0.0
        return Decision(
            CertifiedCommand(Command(q, v, now)), verdict, reason, margin,
            rate=rate, stop_ticks=len(self._stop.q), tried=self._tried,
        )  # fmt: skip
