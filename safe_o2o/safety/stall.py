"""Does the arm do what it is told? Commanded against measured, joint by joint.

A measurement shows a command of a known number of ticks ago, give or take a jitter. Whatever lies
within the jitter is no error: the nearest of those commands counts. Where velocities are commanded,
both sides are summed up to positions first and compared over a window, so that no drift adds up.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import Any, Literal

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.safety.guards import joint_vector
from safe_o2o.types import Array

HUGE = 1e12
"""No position or speed of an arm, and a sum of it still tells microradians, rad or rad/s."""


@dataclass(frozen=True)
class StallConfig:
    """Tolerances of the monitor; the defaults are for a tick of 10 ms.

    Attributes:
        mode: whether positions (rad) or velocities (rad/s) are commanded and measured.
        period: control period, s.
        latency: ticks from a command until a measurement shows it; 0 where the reading that follows
            a command does.
        jitter: by how many ticks that may be wrong.
        tolerance: largest distance between commanded and measured position, rad; one number or one
            a joint. In velocity mode: between the ways made within `span`.
        bad: ticks beyond the tolerance, N ...
        of: ... among the newest M, that are a tracking error.
        span: time over which velocities are summed up, s.
        commanded: a joint that was sent farther than this, rad, ...
        moved: ... and moved less than this, rad, ...
        within: ... within this time, s, is stalled. `moved` has to exceed the span of the
            measurement's noise, about eight of its standard deviations.

    Raises:
        ConfigError: a number is out of range, or the numbers contradict each other.
    """

    mode: Literal["position", "velocity"] = "position"
    period: float = 0.01
    latency: int = 0
    jitter: int = 1
    tolerance: float | tuple[float, ...] = 0.1
    bad: int = 5
    of: int = 10
    span: float = 0.5
    commanded: float = 0.15
    moved: float = 0.05
    within: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in ("position", "velocity"):
            raise ConfigError(f"must be position or velocity, got {self.mode!r}", where="mode")
        for name in ("period", "span", "commanded", "moved", "within"):
            if not 0.0 < (value := getattr(self, name)) < inf:
                raise ConfigError(f"must be positive, got {value}", where=name)
        for name in ("latency", "jitter"):
            if not 0 <= (value := getattr(self, name)) < inf:
                raise ConfigError(f"must not be negative, got {value}", where=name)
        each = self.tolerance if isinstance(self.tolerance, tuple) else (self.tolerance,)
        if not (each and all(0.0 < value < inf for value in each)):
            raise ConfigError(f"must be positive, got {self.tolerance}", where="tolerance")
        if not 1 <= self.bad <= self.of < inf:
            raise ConfigError(f"needs 1 <= bad <= of, got {self.bad} of {self.of}", where="bad")
        if not self.moved < self.commanded:
            raise ConfigError(
                f"must be less than commanded ({self.commanded}), got {self.moved}", where="moved"
            )
        if not self.within >= 2 * (self.jitter + 1) * self.period:
            raise ConfigError(f"must hold the jitter twice, got {self.within}", where="within")


class StallMonitor:
    """Remembers what was commanded and measured for as long as it matters.

    Args:
        joints: number of joints n.
        config: tolerances.

    Raises:
        ConfigError: no joint, or tolerances for another number of joints.
    """

    def __init__(self, joints: int, config: StallConfig | None = None) -> None:
        self.config = config = config or StallConfig()
        if not joints >= 1:
            raise ConfigError(f"must be at least 1, got {joints}", where="joints")
        each = np.atleast_1d(np.asarray(config.tolerance, np.float64))
        if len(each) not in (1, joints):
            raise ConfigError(f"needs {joints} numbers, got {len(each)}", where="tolerance")
        self._tolerance = np.broadcast_to(each, (joints,))
        self._n = joints
        self._span = ceil(config.span / config.period - 1e-9)
        self._within = ceil(config.within / config.period - 1e-9)
        past = self._within if config.mode == "position" else max(self._within, self._span)
        self._size = past + config.latency + config.jitter + 1
        self.reset()

    def reset(self) -> None:
        """Forget everything; the arm is taken to have rested at the first pose that follows."""
        self._empty = True
        self._told = np.zeros((self._size, self._n))  # positions, the newest last
        self._seen = np.zeros((self._size, self._n))
        self._bad = np.zeros((self.config.of, self._n), bool)
        self.detail = ""
        """One line about the worst joint of the newest codes, `""` without any."""

    def update(self, commanded: Any, measured: Any) -> list[str]:
        """One tick.

        Args:
            commanded: the last command that was written before the reading `[n]`, rad or rad/s.
            measured: the reading `[n]`, rad or rad/s.

        Returns:
            `tracking_error` and `stalled`, as far as they are true. Never raises: what is not
            finite, or has another shape, counts as out of tolerance.
        """
        told, seen = joint_vector(commanded, self._n), joint_vector(measured, self._n)
        self._bad[:-1] = self._bad[1:]
        if told is None or seen is None:  # the past stays as it was: there is nothing to add to it
            self._bad[-1] = True
            self.detail = f"needs {self._n} finite numbers, commanded and measured"
            return self._codes()
        self._append(told, seen)
        off, still = self._off(), self._still()
        self._bad[-1] = ~(off <= self._tolerance)
        codes = self._codes()
        self.detail = ""
        if codes:
            often = self._bad.sum(axis=0)
            joint = int((often * (off / self._tolerance)).argmax())
            self.detail = f"joint {joint + 1}: {off[joint]:.3g} rad off, {often[joint]} ticks"
        if still.any():
            codes.append("stalled")
            joint = int(still.argmax())
            self.detail = f"joint {joint + 1}: sent, and still for {self.config.within:g} s"
        return codes

    def _codes(self) -> list[str]:
        often = self._bad.sum(axis=0)
        return [] if (often < self.config.bad).all() else ["tracking_error"]

    def _append(self, told: Array, seen: Array) -> None:
        """One more row each; the first fills the past."""
        velocity, fill = self.config.mode == "velocity", self._empty
        self._empty = False
        for rows, new in ((self._told, told), (self._seen, seen)):
            new = np.clip(new, -HUGE, HUGE)
            if fill and not velocity:
                rows[:] = new
                continue
            rows[:-1] = rows[1:]
            rows[-1] = rows[-2] + new * self.config.period if velocity else new

    def _off(self) -> Array:
        """Distance of each joint `[n]`, rad, from the nearest command within the jitter."""
        config, last = self.config, self._size - 1
        newest = last - config.latency + min(config.jitter, config.latency)
        oldest = last - config.latency - config.jitter
        told, seen = self._told[oldest : newest + 1], self._seen[last]
        if config.mode == "velocity":
            told = told - self._told[oldest - self._span : newest + 1 - self._span]
            seen = seen - self._seen[last - self._span]
        return np.asarray(np.abs(told - seen).min(axis=0))

    def _still(self) -> Array:
        """Which joints `[n]` were sent somewhere and stayed where they were."""
        config, last = self.config, self._size - 1
        seen = self._seen[last - self._within :]
        # Without the jitter at both ends: this the measured joint has had the time to follow.
        begin = last - self._within - config.latency + config.jitter
        told = self._told[begin : last - config.latency - config.jitter + 1]
        sent = told.max(axis=0) - told.min(axis=0)
        return np.asarray(
            (sent > config.commanded) & ~(seen.max(axis=0) - seen.min(axis=0) >= config.moved)
        )
