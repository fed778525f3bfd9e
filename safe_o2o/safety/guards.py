"""What is looked at before anything is computed: the clock, the reading, the proposal.

Each guard answers with the id of what is wrong, `""` when nothing is. Comparisons are in the
positive, so that what is not a number is refused.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.types import Array, Proposal, RobotState

DRIFT = 1e-3
"""Share by which the ticks may run ahead of the clock for ever: no two clocks agree, and without it
the smallest drift would add up to a stop."""
CALM = 0.05
"""The same for an arm that stands, which gets nowhere early: a burst is forgotten in a second."""


@dataclass(frozen=True)
class FilterConfig:
    """Tolerances of the guards.

    Attributes:
        max_proposal_age: oldest observation behind a proposal, beyond the proposal's own length, s.
        max_state_age: oldest reading, s.
        max_future: how far a stamp may lie ahead of the clock, s.
        max_tick: longest time between two ticks, in control periods.
        max_lead: how far the ticks may run ahead of the clock, in control periods: jitter is fine,
            but a loop that ticks too often makes the arm faster than certified.
        tracking_tolerance: largest distance between commanded and measured joint position, rad.
        command_tolerance: largest distance between the last command and the one that the driver
            remembers, rad: beyond it somebody else writes to the arm, or a command was lost.
        first_reject: a first target farther from the last command than this is refused, rad, and so
            is a later one farther from the one before. A first one that is nearer, but out of
            reach within one policy period at the speed limit, is approached within the limits and
            counts as corrected.
        max_length: longest proposal, s.
        candidates: most motions that are checked in a tick before the stored stop is played.
        mode: `scale` only ever slows down along the path; `deflect` may leave it to go round what
            is in the way, for tasks that allow it.
        latency: commands that were sent and not executed yet, in control periods: as long after
            the present the arm begins with what is sent now.
    """

    max_proposal_age: float = 0.5
    max_state_age: float = 0.1
    max_future: float = 0.05
    max_tick: float = 5.0
    max_lead: float = 2.0
    tracking_tolerance: float = 0.2
    command_tolerance: float = 1e-4
    first_reject: float = 1.0
    max_length: float = 60.0
    candidates: int = 5
    mode: Literal["scale", "deflect"] = "scale"
    latency: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("scale", "deflect"):
            raise ConfigError(f"is scale or deflect, got {self.mode!r}", where="mode")
        for name, value in vars(self).items():
            if name == "mode":
                continue
            if not (np.isfinite(value) and (value > 0 or (name == "latency" and value == 0))):
                raise ConfigError(f"must be positive, got {value}", where=name)


def joint_vector(value: Any, n: int) -> Array | None:
    """A copy of finite joint positions `[n]`, or None where `value` is something else."""
    try:
        q = np.array(value, np.float64)
    except (TypeError, ValueError):
        return None
    return q if q.shape == (n,) and np.isfinite(q).all() else None


class Guards:
    """The guards of an arm with n joints.

    Args:
        limits: the arm's limits.
        period: control period, s.
        config: tolerances.
    """

    def __init__(self, limits: RobotLimits, period: float, config: FilterConfig) -> None:
        self.limits, self.period, self.config = limits, period, config
        self._n = len(limits.joint_names)
        self._names = sorted(limits.joint_names)
        self.restart()

    def restart(self) -> None:
        """Forget the clock and what was told."""
        self._last: float | None = None
        self._lead = 0.0
        self._told: deque[Array] = deque(maxlen=self.config.latency + 1)

    def clock(self, now: float, moving: bool) -> str:
        """Does time pass as it should since the last call?

        Args:
            now: the clock, s.
            moving: whether the last command left the arm moving.
        """
        if not isfinite(now):
            return "clock_invalid"
        last, self._last = self._last, now
        if last is None:
            return ""
        ticks, config = (now - last) / self.period, self.config
        # A leaky bucket: what a tick comes too early adds up, what it comes too late does not.
        gain = 1.0 - max(ticks, 0.0) - (DRIFT if moving else CALM)
        self._lead = min(max(0.0, self._lead + gain), config.max_lead + 1.0)
        if not 0.0 < ticks <= config.max_tick:
            return "clock_jump"
        # Setting off asks for less of it than going on, so that the arm does not stutter.
        allowed = config.max_lead if moving else 0.5 * config.max_lead
        return "" if self._lead <= allowed else "clock_fast"

    def told(self, q: Array) -> None:
        """Note the command q `[n]` of this tick."""
        self._told.append(q)

    def reading(self, state: RobotState, q: Array, sent: bool, now: float) -> str:
        """Is the reading whole, fresh, and near the command q `[n]` that is executed by now?

        Args:
            state: the reading.
            q: the last command.
            sent: whether q was sent; else it is the pose of the reset.
            now: the clock, s.
        """
        config, shape = self.config, (self._n,)
        measured, dq = np.asarray(state.q), np.asarray(state.dq)
        if measured.shape != shape or dq.shape != shape or not np.abs(dq).max() < inf:
            return "state_invalid"
        # With commands on their way the arm is where it was told to be so many ticks ago.
        due = self._told[0] if self._told else q
        if not np.abs(measured - due).max() <= config.tracking_tolerance:
            return "tracking_error" if np.isfinite(measured).all() else "state_invalid"
        if not -config.max_future <= now - state.stamp <= config.max_state_age:
            return "state_stale"
        if sent:
            told = np.asarray(state.q_command)
            if told.shape != shape or not np.abs(told - q).max() <= config.command_tolerance:
                return "command_mismatch"
        return ""

    def proposal(self, proposal: Proposal, q: Array) -> tuple[str, Array]:
        """Does a new proposal make sense from the last command q `[n]`? Once per proposal.

        Returns:
            What is wrong, and the targets `[H, n]` in the filter's order of joints.
        """
        raw = np.asarray(proposal.q)
        if raw.dtype.kind not in "fiu":  # NumPy would drop an imaginary part and read a text
            return "proposal_not_numbers", raw
        target = np.array(raw, np.float64)  # a copy: the caller may write into its own
        if target.ndim != 2 or target.shape[0] < 1 or target.shape[1] != self._n:
            return "proposal_shape", target
        if sorted(proposal.joint_names) != self._names:
            return "proposal_names", target
        if not (np.isfinite(target).all() and isfinite(proposal.stamp)):
            return "proposal_not_finite", target
        length = len(target) * proposal.period
        shortest = self.period * (1.0 - 1e-9)  # 0.29 / 29 is a little less than 0.01
        if not (proposal.period >= shortest and length <= self.config.max_length):
            return "proposal_period", target
        order = [proposal.joint_names.index(name) for name in self.limits.joint_names]
        target, far = target[:, order], self.config.first_reject
        if not np.abs(target[0] - q).max() <= far:
            return "first_target_far", target
        # Bounded before they are subtracted from each other: huge targets would overflow.
        bounded = (target >= self.limits.q_low - far) & (target <= self.limits.q_high + far)
        if not (bounded.all() and (np.abs(target[1:] - target[:-1]) <= far).all()):
            return "target_far", target
        return "", target

    def age(self, proposal: Proposal, now: float) -> str:
        """Is a proposal still, or already, in its time?"""
        config, age = self.config, now - proposal.stamp
        fresh = -config.max_future <= age <= proposal.length + config.max_proposal_age
        return "" if fresh else "proposal_stale"
