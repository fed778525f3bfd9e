"""What a graph says of itself, and how that looks in a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from safe_o2o.errors import SafeO2OError
from safe_o2o.types import Verdict
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import FilterStatus, TaskStatus, record_from_msg
from safe_o2o_ros.node import ERROR, OK, WARN

SILENT = 3.0
"""Time after which a node that tells its health once a second counts as silent, s."""
STYLES = {OK: "green", WARN: "yellow", ERROR: "bold red"}
WORDS = {OK: "ok", WARN: "warning", ERROR: "ERROR"}
LATENCY = " p50/p99 ms"
ARMS = ("robot_node", "safety_filter_node")
"""Who may move an arm."""
MODES = {"ARMED": "green", "SHADOW": "cyan", "DISARMED": "cyan"}


@dataclass
class Told:
    """What a node said last.

    Attributes:
        level: of `DiagnosticStatus`.
        active: whether it is.
        message: one line.
        values: figures, as text.
        at: when, on the monotonic clock, s.
    """

    level: bytes
    active: bool
    message: str
    values: Mapping[str, str]
    at: float


@dataclass
class Board:
    """What is known, and how it looks.

    Attributes:
        namespace: whose nodes count, with those below it.
        nodes: by name.
        status: the newest.
    """

    namespace: str = "/"
    nodes: dict[str, Told] = field(default_factory=dict)
    status: TaskStatus | FilterStatus | None = None

    def hear(self, msg: DiagnosticArray, now: float) -> None:
        """Take a message of `/diagnostics`; those of other stacks are left out."""
        for status in msg.status:
            name, _, state = status.name.partition(": ")
            values = {item.key: item.value for item in status.values}
            if is_ours(status, values, self.namespace):
                self.nodes[name] = Told(
                    status.level, state == "active", status.message, values, now
                )

    def level(self, now: float) -> bytes:
        """The worst there is; a node that fell silent is an error, and so is an empty graph."""
        if not self.nodes:
            return ERROR
        return max(ERROR if self._silent(told, now) else told.level for told in self.nodes.values())

    def render(self, now: float) -> RenderableType:
        """The whole picture."""
        if not self.nodes:
            return Panel(Text("nobody says anything on /diagnostics yet", "yellow"))
        return Group(self.arm(now), self._graph(now), self._latency())

    def _silent(self, told: Told, now: float) -> bool:
        return now - told.at > SILENT

    def arm(self, now: float) -> RenderableType:
        """May it move, and what does the filter do with what is proposed?"""
        told = next((self.nodes[name] for name in ARMS if name in self.nodes), None)
        if told is None:
            return Panel(Text("no node that moves an arm", "yellow"))
        line = Text()
        if self._silent(told, now):
            line.append(f" SILENT for {now - told.at:.0f} s, mode unknown ", "reverse bold red")
            return Panel(line, title="arm", border_style=STYLES[ERROR])
        mode = told.values.get("mode", "?")
        line.append(f" {mode} ", f"reverse {MODES.get(mode, 'bold red')}")
        if mode not in MODES:
            line.append(f"  {told.values.get('last cause', '')}", "bold red")
        if told.values.get("moved by") == "a person":
            line.append("  a person has the arm ", "reverse yellow")
        counts = told.values.get("passed/corrected/stopped", "")
        line.append(f"   speed {told.values.get('speed', '?')}")
        line.append(f"   passed/corrected/stopped {counts}   held {told.values.get('held', '?')}")
        status = self.status
        if status is not None:
            verdict = Verdict(status.verdict)
            style = "green" if verdict is Verdict.PASS else "yellow"
            line.append(f"\n filter {verdict.name.lower()} {status.reason}", style)
            line.append(f"   margin {_bar(status.margin)} {status.margin:.2f}")
        if isinstance(status, TaskStatus):
            line.append(
                f"\n episode {status.episode}   reward {status.reward:g}   cost {status.cost:g}"
            )
        return Panel(line, title="arm", border_style=STYLES[told.level])

    def _graph(self, now: float) -> RenderableType:
        table = Table(box=None, pad_edge=False)
        for column in ("node", "", "says", "errors"):
            table.add_column(column)
        for name, told in sorted(self.nodes.items()):
            silent = self._silent(told, now)
            word = f"silent {now - told.at:.0f} s" if silent else WORDS[told.level]
            word = word if told.active or silent else f"{word}, inactive"
            style = STYLES[ERROR] if silent else STYLES[told.level]
            table.add_row(
                name, Text(word, style), Text(told.message), told.values.get("errors", "")
            )
        return Panel(table, title="nodes")

    def _latency(self) -> RenderableType:
        table = Table(box=None, pad_edge=False)
        table.add_column("stage")
        for column in ("p50 ms", "p99 ms"):
            table.add_column(column, justify="right")
        for name, told in sorted(self.nodes.items()):
            for key, value in told.values.items():
                if key.endswith(LATENCY):
                    p50, _, p99 = value.partition("/")
                    table.add_row(f"{name}: {key.removesuffix(LATENCY)}", p50, p99)
        return Panel(table, title="latency")


def is_ours(status: DiagnosticStatus, values: Mapping[str, str], namespace: str) -> bool:
    """Whether a status on `/diagnostics` is of a node of ours in a namespace, or below it.

    Args:
        status: one of a message's.
        values: what it says, by key.
        namespace: what is looked at; `/` is all of them.
    """
    within = f"{values.get('namespace', namespace).rstrip('/')}/"
    return status.hardware_id == "safe_o2o" and within.startswith(f"{namespace.rstrip('/')}/")


def _bar(margin: float, width: int = 10) -> str:
    """A margin from 0 to 1 as blocks; none where it is no number."""
    share = min(max(margin, 0.0), 1.0) if margin == margin else 0.0
    full = round(share * width)
    return "█" * full + "·" * (width - full)


def follow(
    node: Node, board: Board, also: Callable[[TaskStatus | FilterStatus], None] | None = None
) -> None:
    """Subscribe a board to the statuses of a node's namespace, and to `/diagnostics`.

    Args:
        node: whose subscriptions they are.
        board: what hears them.
        also: called with each status, too.
    """

    def keep(cls: type[TaskStatus] | type[FilterStatus]) -> None:
        def take(msg: DiagnosticArray) -> None:
            try:
                board.status = record_from_msg(cls, msg)
            except SafeO2OError:  # of another version, say: the rest can still be seen
                return
            if also is not None:
                also(board.status)

        topic = "task_status" if cls is TaskStatus else "filter_status"
        node.create_subscription(DiagnosticArray, topic, take, qos.STREAM)

    keep(TaskStatus)
    keep(FilterStatus)
    node.create_subscription(
        DiagnosticArray, "/diagnostics", lambda msg: board.hear(msg, time.monotonic()), 50
    )
