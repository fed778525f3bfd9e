"""What stands around the filter in a loop that may move a real arm.

Watchdogs, the stall monitor and the first-command guard say what is wrong; the supervisor says who
may move; the shadow report counts what would have been done. The control loop asks `before` each
tick what the filter may look at, and `after` it whether to write. Nothing here makes a command: it
hands on what it was given, less of it, or a slower version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.safety.codes import Kind, decision_codes, kind
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.first_command import FirstCommand, FirstCommandConfig
from safe_o2o.safety.shadow import ShadowReport
from safe_o2o.safety.stall import StallConfig, StallMonitor
from safe_o2o.safety.supervisor import Mode, Supervisor, SupervisorConfig
from safe_o2o.safety.watchdog import COMMAND, JOINT_STATE, SourceLimits, Watchdog
from safe_o2o.types import Array, Decision, Proposal, RobotState


@dataclass(frozen=True)
class SupervisionConfig:
    """Thresholds of everything around the filter.

    Attributes:
        command: how long after the end of a proposal the next one may come.
        joint_state: how old the arm's reading may be.
        sources: further sources to watch by name, `image:wrist` say; `Supervision.watchdog` is fed.
        stall: tolerances of tracking; its period is the loop's.
        first_command: bands of the first target after a stop.
        ramp_speed: how fast a first target in the ramp band is approached, rad/s.
        max_future: how far a proposal's stamp may lie ahead of the reading's, s. Farther is a stamp
            of another clock: the reading's own stands in for it.
        supervisor: its times.

    Raises:
        ConfigError: the ramp speed is not positive.
    """

    command: SourceLimits = COMMAND
    joint_state: SourceLimits = JOINT_STATE
    sources: Mapping[str, SourceLimits] = field(default_factory=dict)
    stall: StallConfig = field(default_factory=StallConfig)
    first_command: FirstCommandConfig = field(default_factory=FirstCommandConfig)
    ramp_speed: float = 0.2
    max_future: float = 0.05
    supervisor: SupervisorConfig = field(default_factory=SupervisorConfig)

    def __post_init__(self) -> None:
        if not 0.0 < self.ramp_speed < np.inf:
            raise ConfigError(f"must be positive, got {self.ramp_speed}", where="ramp_speed")
        if not 0.0 <= self.max_future < np.inf:
            raise ConfigError(f"must not be negative, got {self.max_future}", where="max_future")


class Supervision:
    """One arm's supervisor and all that reports to it.

    All calls belong on the loop's thread. `now` is a monotonic clock, not the robot's own: a robot
    whose time stands still is what a watchdog is for.

    Args:
        filter: the arm's filter; it is set to the measured pose for as long as nothing may be sent.
        joint_names: names of the arm's n joints, in the filter's order.
        period: control period, s.
        config: thresholds.
    """

    def __init__(
        self,
        filter: SafetyFilter,
        joint_names: tuple[str, ...],
        period: float,
        config: SupervisionConfig | None = None,
    ) -> None:
        self.filter, self.config = filter, config or SupervisionConfig()
        config = self.config
        self._names, self._zero = joint_names, np.zeros(len(joint_names))
        self.first_command = FirstCommand(len(joint_names), config.first_command)
        self.supervisor = Supervisor(config.supervisor, self.first_command)
        self.stall = StallMonitor(len(joint_names), replace(config.stall, period=period))
        self.watchdog = Watchdog({"joint_state": config.joint_state, **config.sources})
        self.shadow_report = ShadowReport()
        self.detail = ""
        """One line about what the newest tick found, `""` without."""
        self._faults: list[str] = []
        self._state: RobotState | None = None  # the newest reading
        self._newest: Proposal | None = None
        self._given: Proposal | None = None  # the newest with a stamp of this clock
        self._end = 0.0  # of the newest proposal on the monotonic clock, s
        self._dropped: Proposal | None = None
        self._slow: tuple[Proposal, Proposal] | None = None  # a far first one, and its stand-in
        self._pretended: RobotState | None = None  # of the arm that shadow mode moves

    # ------------------------------------------------------------------ requests

    @property
    def mode(self) -> Mode:
        """The supervisor's mode."""
        return self.supervisor.mode

    def stop(self, code: str, now: float, detail: str = "") -> str:
        """Stop; accepted in every mode, begun in the next tick."""
        return self.supervisor.stop(code, now, detail)

    def gone(self, source: str, now: float, detail: str = "") -> str:
        """A source has said goodbye or was seen to die: there is nothing to wait for."""
        return self.supervisor.stop(f"lost_{source}", now, detail)

    def reset(self, now: float) -> str:
        """STOPPED -> DISARMED; `""`, or why not."""
        return self.supervisor.reset(now)

    def arm(self, now: float) -> str:
        """DISARMED or SHADOW -> ARMED; `""`, or why not.

        Needs a tick in DISARMED or SHADOW before it: nobody arms what was not read.
        """
        if not now <= self._end + self.config.command.degrade:
            self.idle()  # whoever proposed before a stop is expected again from its next proposal
        if self.mode in (Mode.DISARMED, Mode.SHADOW) and self._state is not None:
            self._resync(self._state)  # what the filter said in the last tick was not written
            if self.mode is Mode.SHADOW:
                self.supervisor.resynced(now)
        return self.supervisor.arm(now, self.watchdog.check(now, armed=True))

    def shadow(self, now: float) -> str:
        """DISARMED -> SHADOW; `""`, or why not."""
        return self.supervisor.shadow(now)

    def disarm(self, now: float) -> str:
        """Any mode but STOPPED -> DISARMED, once the arm stands; `""`, or why not."""
        return self.supervisor.disarm(now)

    @property
    def faults(self) -> tuple[str, ...]:
        """Codes that watchdogs, monitor and guards found in the newest tick."""
        return tuple(self._faults)

    def idle(self) -> None:
        """Nobody is expected to propose: an episode is over, the policy was sent home."""
        self._dropped = self._newest or self._dropped  # it may still be handed in
        self._newest = self._given = None
        self._end = 0.0
        self._slow = None

    @property
    def expects(self) -> bool:
        """Whether somebody proposes, and would be missed."""
        return self._newest is not None

    def placed(self, state: RobotState, now: float) -> None:
        """The arm was put to rest somewhere, as simulated ones are: what it was doing is over."""
        self._state = state
        self.watchdog.feed("joint_state", now)
        self.idle()
        self._resync(state)
        self.supervisor.placed(now)

    # ------------------------------------------------------------------ a tick

    def before(
        self, state: RobotState, proposal: Proposal | None, now: float
    ) -> tuple[RobotState, Proposal | None]:
        """What the filter may look at in this tick: a reading, and what is left of a proposal.

        Args:
            state: the newest reading.
            proposal: what somebody would like.
            now: the monotonic clock, s.
        """
        supervisor, before = self.supervisor, self._state
        self._state = state
        if proposal is self._dropped:
            proposal = None
        if before is None or state.stamp != before.stamp:
            self.watchdog.feed("joint_state", now)
        shadow = supervisor.mode is Mode.SHADOW
        if not (supervisor.may_write or shadow):
            self._resync(state)
            supervisor.resynced(now)
        new = proposal is not None and proposal is not self._newest
        if new and proposal is not None:
            self._newest, self._end = proposal, now + _length(proposal)
            self._given = self._restamped(proposal, state)
        self._faults = self._look(state, now)
        if proposal is not None and self._given is not proposal:
            self._faults.append("stamp_future")
        given = None if proposal is None else self._given
        if shadow:
            return self._pretend(state, new), given
        self._pretended = None
        if given is None or not supervisor.may_move:
            return state, None
        if any(kind(code) >= Kind.SOFT for code in self._faults):
            return state, None
        return state, self._first(given, state, now)

    def after(
        self, decision: Decision, proposal: Proposal | None, now: float, seconds: float
    ) -> bool:
        """Take in what the filter decided; returns whether its command may be written.

        Args:
            decision: the filter's.
            proposal: what somebody wanted, as it was given to `before`.
            now: the monotonic clock, s.
            seconds: how long the tick has taken so far.
        """
        supervisor = self.supervisor
        if supervisor.mode is Mode.SHADOW:
            self._note(decision, proposal, now, seconds)
        codes = [*self._faults, *decision_codes(decision)]
        supervisor.after_tick(codes, now, standing=decision.stop_ticks == 0, detail=self.detail)
        if supervisor.drop_proposal():
            self._dropped = self._newest or self._dropped
        return supervisor.may_write

    # ------------------------------------------------------------------ what is wrong

    def _resync(self, state: RobotState) -> None:
        self.filter.reset(state)
        self.stall.reset()
        self._pretended = None

    def _look(self, state: RobotState, now: float) -> list[str]:
        """Codes of watchdogs and monitor."""
        moving, limits = self.supervisor.may_write, self.config.command
        found, self.detail = self.watchdog.check(now, armed=moving), ""
        if self._newest is not None and (moving or self.mode is Mode.SHADOW):
            late = now - self._end
            if not late <= limits.degrade:
                found.append("stale_command" if late <= limits.latch else "lost_command")
        if moving:
            found += self.stall.update(state.q_command, state.q)
            self.detail = self.stall.detail
        return found

    def _restamped(self, proposal: Proposal, state: RobotState) -> Proposal:
        """A proposal from the future rests on what is known now, for all that anybody can tell."""
        try:
            ahead = float(proposal.stamp) - state.stamp
        except (TypeError, ValueError):
            return proposal
        future = self.config.max_future < ahead < np.inf
        return replace(proposal, stamp=state.stamp) if future else proposal

    def _first(self, proposal: Proposal, state: RobotState, now: float) -> Proposal | None:
        """The proposal, a slow way to its first target, or None, by the band that it lies in."""
        if not self.first_command.armed:
            return proposal
        if self._slow is not None and self._slow[0] is proposal:
            return self._slow[1]  # on its way there
        fault, rows = self.filter.look(proposal)
        if fault:
            return proposal  # the filter refuses it; nothing stands in for what is no proposal
        target = rows[0]
        band, self.detail = self.first_command.judge(target, state.q)
        if band == "pass":
            return proposal
        if band == "reject":
            self._faults.append("first_command")
            return None
        gap = float(np.abs(target - state.q).max())
        period = max(proposal.period, gap / self.config.ramp_speed)
        self._end = now + period
        slow = Proposal(target[None], period, proposal.stamp, self._names, proposal.source)
        self._slow = (proposal, slow)
        return slow

    # ------------------------------------------------------------------ shadow

    def _pretend(self, state: RobotState, new: bool) -> RobotState:
        """A reading of an arm that does what the filter says, from the real pose at each proposal.

        The real one is moved by somebody else, or not at all.
        """
        if new or self._pretended is None:
            self._resync(state)
            self._pretended = RobotState(state.q, self._zero, state.q, state.stamp)
        return replace(self._pretended, stamp=state.stamp)

    def _note(
        self, decision: Decision, proposal: Proposal | None, now: float, seconds: float
    ) -> None:
        """One tick of shadow mode: count it, and move the arm that is not there."""
        pretended, real = self._pretended, self._state
        if pretended is None or real is None:
            return
        target: Array | None = None
        if proposal is not None and now <= self._end:
            # A motion that passed goes where it was meant to go, on whichever curve.
            target = decision.command.q
            if decision.verdict:
                target = self._wanted(proposal, now)
        self.shadow_report.add(target, decision, self.mode, seconds, real.q_command)
        q = np.asarray(decision.command.q)
        self._pretended = RobotState(q, self._zero, q, pretended.stamp)

    def _wanted(self, proposal: Proposal, now: float) -> Array:
        """The row of a proposal that is being gone to `[n]`; all NaN where it has none."""
        fault, rows = self.filter.look(proposal)
        if fault:
            return np.full(len(self._names), np.nan)
        ahead = int(min((self._end - now) / proposal.period, float(len(rows))))
        return np.asarray(rows[max(len(rows) - 1 - ahead, 0)])


def _length(proposal: Proposal) -> float:
    """How long a proposal lasts, s; 0 where it does not say."""
    try:
        length = float(proposal.length)
    except (TypeError, ValueError):
        return 0.0
    return length if 0.0 <= length < np.inf else 0.0
