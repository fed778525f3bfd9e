"""How long ago each source was heard of: commands, joint state, images.

A source that is late gives `stale_NAME`, one that is silent or frozen `lost_NAME`. What follows is
not decided here: the supervisor has the filter play its stored stop, and nobody sends zeros. Ages
are told on the caller's monotonic clock; a stamp can make one older, never younger.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.types import Array

BUFFERS = 8
"""Contents that are remembered: a stuck driver may hand out its few buffers in turn."""


@dataclass(frozen=True)
class SourceLimits:
    """When a source is late, and when it is lost.

    Attributes:
        degrade: oldest age that is fine, s.
        latch: oldest age that is only late, s.
        sees_frozen: whether content that repeats bit for bit counts as no news. Right for a
            camera, whose noise never repeats; wrong for a joint state, which repeats at rest, and
            for a simulated image of a scene where nothing moves.

    Raises:
        ConfigError: not 0 < degrade <= latch < infinity.
    """

    degrade: float = 0.1
    latch: float = 0.5
    sees_frozen: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.degrade <= self.latch < inf:
            raise ConfigError(
                f"needs 0 < degrade <= latch, got {self.degrade} and {self.latch}", where="latch"
            )


COMMAND = SourceLimits(0.1, 0.5)
"""A policy at 20 Hz: two of its periods until late, ten until lost."""
JOINT_STATE = SourceLimits(0.05, 0.1)
"""An arm's state: without it nobody knows whether the arm follows."""
IMAGE = SourceLimits(0.1, 0.3, sees_frozen=True)
"""A camera at 30 Hz: three frames until late, nine until lost."""


@dataclass(slots=True)
class _Source:
    limits: SourceLimits
    heard: float | None = None  # s, on the watchdog's clock
    contents: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=BUFFERS))
    misdated: bool = False  # whether the newest stamp was of another clock
    fed: int = 0
    frozen: int = 0
    stamps_ignored: int = 0


class Watchdog:
    """Ages of named sources. Nothing here raises after the constructor.

    Args:
        sources: limits by name, such as `command`, `joint_state`, `image:wrist`.
        max_future: how far a stamp may lie ahead of the clock, s; farther is another clock.
        max_past: how far behind, s. What lies between is old data: it has to be longer than any
            queue on the way, or data from its end would count as fresh.

    Raises:
        ConfigError: there is no source, or a time is out of range.
    """

    def __init__(
        self,
        sources: Mapping[str, SourceLimits],
        max_future: float = 0.05,
        max_past: float = 10.0,
    ) -> None:
        if not sources or not all(sources):
            raise ConfigError("needs at least one source, each with a name", where="sources")
        if not 0.0 <= max_future < inf:
            raise ConfigError(f"must not be negative, got {max_future}", where="max_future")
        longest = max(limits.latch for limits in sources.values())
        if not longest < max_past < inf:
            raise ConfigError(f"must exceed every latch, got {max_past}", where="max_past")
        self.max_future, self.max_past = max_future, max_past
        self._sources = {name: _Source(limits) for name, limits in sources.items()}
        self._unknown = 0

    def feed(
        self, name: str, now: float, stamp: float | None = None, content: Array | None = None
    ) -> bool:
        """Something came from a source.

        Args:
            name: the source.
            now: when it came, s, on the monotonic clock.
            stamp: when it was made, s, on the same clock. A stamp of another clock is ignored and
                counted: the time of receipt stands in for it.
            content: what came; needed where a frozen source is to be seen.

        Returns:
            Whether it counts as news. A name that nobody watches is counted and no more: the source
            that it should have been grows old.
        """
        source = self._sources.get(name)
        if source is None:
            self._unknown += 1
            return False
        if not isfinite(now):
            return False
        source.fed += 1
        made = now
        source.misdated = False
        if stamp is not None:
            if -self.max_future <= now - stamp <= self.max_past:
                made = min(now, float(stamp))
            else:
                source.misdated = True
                source.stamps_ignored += 1
        if source.limits.sees_frozen:
            found = checksum(content)
            if found is None or found in source.contents:
                source.frozen += 1
                return False
            source.contents.append(found)
        source.heard = made
        return True

    def check(self, now: float, armed: bool = True) -> list[str]:
        """What is wrong at `now`, s.

        Args:
            now: the monotonic clock, s; where it is not finite everything is lost.
            armed: whether a source that was never heard of counts as lost.

        Returns:
            `stale_NAME` and `lost_NAME` in the order of the sources, and `stamp_future` where a
            newest stamp was of another clock.
        """
        codes = []
        for name, source in self._sources.items():
            if source.heard is None:
                if armed:
                    codes.append(f"lost_{name}")
                continue
            age, limits = now - source.heard, source.limits
            # Fed from another thread it may be a little younger than `now`; a clock that went
            # back would make it young for ever.
            if -limits.degrade <= age <= limits.degrade:
                continue
            late = -limits.degrade <= age <= limits.latch
            codes.append(f"stale_{name}" if late else f"lost_{name}")
        if any(source.misdated for source in self._sources.values()):
            codes.append("stamp_future")
        return codes

    def report(self, now: float) -> dict[str, Any]:
        """Age, s, and counts of every source, JSON-ready; an age is None where none is known."""
        out: dict[str, Any] = {}
        for name, source in self._sources.items():
            age = inf if source.heard is None else now - source.heard
            out[name] = {
                "age": age if isfinite(age) else None,
                "fed": source.fed,
                "frozen": source.frozen,
                "stamps_ignored": source.stamps_ignored,
            }
        return {"sources": out, "unknown": self._unknown}


def checksum(content: Any) -> tuple[int, int] | None:
    """CRC-32 and size in bytes of an array; None where it has no bytes to look at.

    Two frames that differ have the same one once in 2^32, and the next frame puts that right.
    """
    try:
        array = np.ascontiguousarray(content)
        if array.dtype == object or not array.nbytes:
            return None
        return zlib.crc32(array.data), array.nbytes
    except (TypeError, ValueError, BufferError):
        return None
