"""Exact matching of messages from several topics by stamp; pure Python, no ROS.

Stamps of the twin and of a driver that stamps its readings are equal to the microsecond on every
topic that shows the same instant, so "belongs together" is equality, never "nearest".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any


class StampMatcher:
    """Collects values by stamp until one of each topic is there.

    Args:
        topics: names that a complete set has.
        anchor: a set that never completes counts as dropped only if it holds this topic: fast
            topics may well be published at instants that no picture shows.
        depth: stamps to keep; the oldest incomplete one goes first.
    """

    def __init__(self, topics: Iterable[str], *, anchor: str, depth: int = 256) -> None:
        self.topics = frozenset(topics)
        self.anchor, self.depth = anchor, depth
        if anchor not in self.topics:
            raise ValueError(f"anchor {anchor!r} is not among {sorted(self.topics)}")
        self.dropped = 0
        self._pending: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def add(self, topic: str, key: int, value: Any) -> Mapping[str, Any] | None:
        """Take one message; returns the complete set when this was its last part.

        Args:
            topic: where it came from.
            key: its stamp, ns.
            value: anything.
        """
        entry = self._pending.setdefault(key, {})
        entry[topic] = value
        if self.topics.issubset(entry):
            return self._pending.pop(key)
        while len(self._pending) > self.depth:
            _, old = self._pending.popitem(last=False)
            self.dropped += self.anchor in old
        return None

    def clear(self) -> None:
        """Forget everything pending (a new episode began)."""
        self._pending.clear()

    def __len__(self) -> int:
        return len(self._pending)
