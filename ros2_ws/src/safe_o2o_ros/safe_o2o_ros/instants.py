"""Whole instants: joint states, last certified command, picture and status of one and the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image, JointState

from safe_o2o_ros import qos
from safe_o2o_ros.conversions import TaskStatus, record_from_msg, stamp_key
from safe_o2o_ros.matching import StampMatcher
from safe_o2o_ros.node import GuardedNode

STREAMS: tuple[tuple[str, str, type[Any]], ...] = (
    ("measured", "joint_states", JointState),
    ("command", "joint_commands", JointState),
    ("image", "image", Image),
    ("status", "task_status", DiagnosticArray),
)
"""Part of an instant, its topic and its type."""


class Instants:
    """Subscribes to the four streams.

    Args:
        node: whose subscriptions they are.
        take: called with the messages of a whole instant by part; its status is a `TaskStatus`.
        hear: called with each of them before that, as `hear(part, message)`.
    """

    def __init__(
        self,
        node: GuardedNode,
        take: Callable[[Mapping[str, Any]], None],
        hear: Callable[[str, Any], None],
    ) -> None:
        self._take, self._hear = take, hear
        self.unheard = {topic for _, topic, _ in STREAMS}
        """Topics that nothing has come from yet."""
        self._matcher = StampMatcher([part for part, _, _ in STREAMS], anchor="status")
        for part, topic, kind in STREAMS:
            node.create_subscription(kind, topic, node.guarded(self._part(part, topic)), qos.STREAM)

    @property
    def dropped(self) -> int:
        """Instants at which something was missing."""
        return self._matcher.dropped

    def _part(self, part: str, topic: str) -> Callable[[Any], None]:
        def take(msg: Any) -> None:
            self.unheard.discard(topic)
            # Here and not when the instant is whole: its picture comes last, and is waited for.
            said = record_from_msg(TaskStatus, msg) if part == "status" else msg
            self._hear(part, said)
            complete = self._matcher.add(part, stamp_key(msg.header.stamp), said)
            if complete is not None:
                self._take(complete)

        take.__name__ = f"on_{part}"  # for the log
        return take
