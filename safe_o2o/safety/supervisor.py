"""Who may move the arm, and who may only watch: five modes, and the way between them.

The supervisor is pure logic. A loop tells it once a tick what guards, watchdogs and monitors found,
and asks it what may be sent. It only restricts: nothing here makes a command. It goes from STOPPED
to ARMED by two requests of a person, never by itself. A stop is accepted from every mode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import inf, isfinite
from typing import Any

from safe_o2o.errors import ConfigError
from safe_o2o.safety.codes import Kind, kind
from safe_o2o.safety.first_command import FirstCommand


class Mode(IntEnum):
    """DISARMED: nothing is sent. SHADOW: everything runs, nothing is sent. ARMED: the arm may move.

    DEGRADED: the filter plays its verified stop, and goes on by itself. STOPPED: the same, latched.
    """

    DISARMED = 0
    SHADOW = 1
    ARMED = 2
    DEGRADED = 3
    STOPPED = 4


@dataclass(frozen=True, slots=True)
class Cause:
    """Why the arm was stopped or degraded.

    Attributes:
        code: id of what was wrong.
        stamp: when that was found, s; NaN where the clock was broken.
        detail: one line for a person, `""` where there is no more to say.
    """

    code: str
    stamp: float
    detail: str


@dataclass(frozen=True)
class SupervisorConfig:
    """Times of the supervisor, s.

    Attributes:
        clear_after: DEGRADED ends when no soft code was reported for so long.
        blocked_after: held by the filter for longer than this is blocked.
        resync_age: oldest resync that arming accepts; an arm at rest can be moved by hand.
        history: transitions that are remembered.

    Raises:
        ConfigError: a number is not finite or out of range.
    """

    clear_after: float = 0.5
    blocked_after: float = 1.0
    resync_age: float = 0.5
    history: int = 256

    def __post_init__(self) -> None:
        if not 0.0 <= self.clear_after < inf:
            raise ConfigError(f"must not be negative, got {self.clear_after}", where="clear_after")
        for name in ("blocked_after", "resync_age"):
            if not 0.0 < (value := getattr(self, name)) < inf:
                raise ConfigError(f"must be positive, got {value}", where=name)
        if not 1 <= self.history < inf:
            raise ConfigError(f"must be at least 1, got {self.history}", where="history")


class Supervisor:
    """The mode, what leads to it, and what it allows; see the module.

    Every request answers with `""` where it is accepted, else with the reason in one line. All
    calls belong on the loop's thread: it takes the requests of others in at its next tick, so that
    no stop is lost between two of them.

    Args:
        config: times.
        first_command: a guard that is armed again whenever the arm may not move any more.
    """

    def __init__(
        self, config: SupervisorConfig | None = None, first_command: FirstCommand | None = None
    ) -> None:
        self.config = config or SupervisorConfig()
        self.first_command = first_command
        self.mode = Mode.DISARMED
        self.cause: Cause | None = None
        """Of the last stop or degradation; of the first one, where several came together."""
        self.present: tuple[str, ...] = ()
        """Soft and latched codes of the last tick."""
        self.blocked = False
        """Whether the arm has been held by the filter for too long."""
        self.history: deque[dict[str, Any]] = deque(maxlen=int(self.config.history))
        """The newest transitions and reports, JSON-ready."""
        self._resync: float | None = None
        self._last = -inf  # the newest tick
        self._quiet: float | None = None  # since when no soft code was reported
        self._held: float | None = None  # since when the filter has held the arm
        self._drop = False
        self._resting = True  # told in the last tick: the last set-point leaves the arm at rest
        self._playing = 0  # ticks at rest until a stop has been played to its end

    # ------------------------------------------------------------------ what is allowed

    @property
    def may_move(self) -> bool:
        """Whether the filter may be given a proposal; else it gets None and plays its stop."""
        return self.mode is Mode.ARMED

    @property
    def may_write(self) -> bool:
        """Whether commands may be sent: a stop is played to its end, and then the arm is let be."""
        return self.mode in (Mode.ARMED, Mode.DEGRADED) or self._playing > 0

    def drop_proposal(self) -> bool:
        """Whether to drop the proposal in progress and ask the policy again; True once."""
        drop, self._drop = self._drop, False
        return drop

    # ------------------------------------------------------------------ requests

    def stop(self, code: str, now: float, detail: str = "") -> str:
        """Stop; accepted in every mode, at any `now`.

        Args:
            code: what is wrong, or who asked.
            now: the clock, s.
            detail: one line for a person.
        """
        self._resync = None
        if self.mode is not Mode.STOPPED:  # else the first cause is the one to know
            sent = self.may_write
            self._go(Mode.STOPPED, code, now, detail)
            self._playing = 2 if sent else 0
        return ""

    def reset(self, now: float) -> str:
        """STOPPED -> DISARMED, once the arm stands and nothing latched is reported any more."""
        if self.mode is not Mode.STOPPED:
            return f"cannot reset while {self.mode.name}"
        latched = [code for code in self.present if kind(code) is Kind.LATCHED]
        if latched:
            return f"cannot reset: {latched[0]} is still reported"
        if self._playing:
            return "cannot reset: the stop is not played to its end"
        return self._change(Mode.DISARMED, "reset", now)

    def resynced(self, now: float) -> str:
        """The filter has just been set to the measured pose, which arming asks for.

        A tracking error lasts until then: after a stop this comes before `reset`.
        """
        if self.mode in (Mode.ARMED, Mode.DEGRADED) or self._playing:
            return "cannot set the filter to the measured pose while the arm may move"
        if not _finite(now):
            return "the clock is not finite"
        self._resync = now
        return ""

    def placed(self, now: float) -> str:
        """A simulated arm was put to rest somewhere: what it was doing, a stop say, is over.

        Never for a real arm. What is latched stays latched.
        """
        self._resting, self._playing, self.present = True, 0, ()
        if self.first_command is not None:
            self.first_command.restart()
        if self.mode is Mode.DEGRADED:
            self._go(Mode.ARMED, "placed", now)
        elif _finite(now) and self.mode is not Mode.ARMED:
            self._resync = now
        return ""

    def arm(self, now: float, faults: Sequence[str] = ()) -> str:
        """DISARMED or SHADOW -> ARMED, after a resync and with nothing wrong.

        Args:
            now: the clock, s.
            faults: what would be reported were it armed; a source that was never fed, say.
        """
        if self.mode is Mode.STOPPED:
            return "cannot arm while STOPPED: reset first"
        if self.mode not in (Mode.DISARMED, Mode.SHADOW):
            return f"cannot arm while {self.mode.name}"
        wrong = [code for code in (*self.present, *_codes(faults)) if kind(code) >= Kind.SOFT]
        if wrong:
            return f"cannot arm: {wrong[0]} is reported"
        if self._resync is None:
            return "cannot arm: the filter was not set to the measured pose since the last stop"
        if not _finite(now):
            return "the clock is not finite"
        age = now - self._resync
        if not 0.0 <= age <= self.config.resync_age:
            return (
                f"cannot arm: the filter was set to the measured pose {age:.3g} s ago; do it again"
            )
        return self._change(Mode.ARMED, "arm", now)

    def shadow(self, now: float) -> str:
        """DISARMED -> SHADOW."""
        if self.mode is Mode.SHADOW:
            return ""
        if self.mode is not Mode.DISARMED:
            return f"cannot shadow while {self.mode.name}: disarm first"
        latched = [code for code in self.present if kind(code) is Kind.LATCHED]
        if latched:
            return f"cannot shadow: {latched[0]} is reported"
        return self._change(Mode.SHADOW, "shadow", now)

    def disarm(self, now: float) -> str:
        """Any mode but STOPPED -> DISARMED, once the arm stands: its stop must not be cut off."""
        if self.mode is Mode.DISARMED:
            return ""
        if self.mode is Mode.STOPPED:
            return "cannot disarm while STOPPED: reset first"
        if self.mode is not Mode.SHADOW and not self._resting:
            return "cannot disarm while the arm moves: stop it first"
        return self._change(Mode.DISARMED, "disarm", now)

    # ------------------------------------------------------------------ ticks

    def after_tick(
        self, faults: Sequence[str], now: float, *, standing: bool = False, detail: str = ""
    ) -> None:
        """Take in what was found in one tick; once a tick, in every mode.

        Args:
            faults: codes that guards, watchdogs and monitors reported.
            now: the clock, s.
            standing: whether this tick's set-point leaves the arm at rest (`stop_ticks` is 0).
            detail: one line for a person, should this be the tick that stops the arm.
        """
        codes = list(_codes(faults))
        if not _finite(now):
            codes.append("clock_invalid")
        elif now < self._last:
            codes.append("clock_jump")
        if _finite(now):
            self._last = now
        by_kind = {code: kind(code) for code in codes}
        self.present = tuple(code for code, what in by_kind.items() if what >= Kind.SOFT)
        self._resting = standing
        if self._playing:
            # The set-point of the first tick at rest has yet to be sent, whatever the loop's order.
            self._playing = self._playing - 1 if standing else 2
        strictest = max(by_kind, key=lambda code: by_kind[code], default="")
        worst = by_kind.get(strictest, Kind.NOTE)
        if worst is Kind.LATCHED:
            if self.mode in (Mode.SHADOW, Mode.ARMED, Mode.DEGRADED):
                self.stop(strictest, now, detail)
        elif worst is Kind.SOFT:
            self._quiet = None
            if self.mode is Mode.ARMED:
                self._go(Mode.DEGRADED, strictest, now, detail)
        elif self.mode is Mode.DEGRADED:
            self._quiet = now if self._quiet is None else self._quiet
            if now - self._quiet >= self.config.clear_after:
                self._go(Mode.ARMED, "cleared", now)
        self._hold(Kind.HELD in by_kind.values(), now)

    def _hold(self, held: bool, now: float) -> None:
        """Has the filter held an arm that may move for too long?"""
        if not (held and self.mode is Mode.ARMED and _finite(now)):
            self._held, self.blocked = None, False
        elif self._held is None:
            self._held = now
        elif now - self._held >= self.config.blocked_after:
            if not self.blocked:
                self._note(self.mode, "blocked", now)
            # Another chunk gets as long as this one had.
            self.blocked, self._drop, self._held = True, True, now

    # ------------------------------------------------------------------ transitions

    def _change(self, mode: Mode, request: str, now: float) -> str:
        """A transition that a person asked for; only those that let less happen need no clock."""
        if mode is not Mode.DISARMED and not _finite(now):
            return "the clock is not finite"
        self._go(mode, request, now)
        return ""

    def _go(self, mode: Mode, code: str, now: float, detail: str = "") -> None:
        self._note(mode, code, now, detail)
        if mode in (Mode.DEGRADED, Mode.STOPPED):
            self.cause = Cause(code, now, detail)
            self._drop = True  # what was proposed before a stop is not taken up after it
        if mode is not Mode.ARMED and self.first_command is not None:
            self.first_command.restart()
        if mode is not Mode.DISARMED:
            self._resync = None  # it was used, or the arm may move without us
        self.mode, self._quiet, self._held, self.blocked = mode, None, None, False

    def _note(self, mode: Mode, code: str, now: float, detail: str = "") -> None:
        stamp = float(now) if _finite(now) else None  # JSON has no NaN
        entry = {"stamp": stamp, "from": self.mode.name, "to": mode.name, "code": code}
        self.history.append({**entry, "detail": detail})


def _codes(faults: Sequence[str]) -> tuple[str, ...]:
    """Codes that say something; a single text is one code and not many letters."""
    return tuple(str(code) for code in ([faults] if isinstance(faults, str) else faults) if code)


def _finite(now: float) -> bool:
    try:
        return isfinite(now)
    except (TypeError, ValueError, OverflowError):
        return False
