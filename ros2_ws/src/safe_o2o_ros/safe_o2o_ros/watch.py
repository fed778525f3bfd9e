"""The graph at a glance, in a terminal: who is well, may the arm move, what the filter does.

Reads `/diagnostics` and the statuses; publishes nothing. `safe-o2o watch` starts it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from safe_o2o.errors import MissingDependencyError, SafeO2OError
from safe_o2o.types import Verdict
from safe_o2o_ros import qos
from safe_o2o_ros.arm_node import PROPOSALS
from safe_o2o_ros.conversions import (
    FilterStatus,
    TaskDescription,
    TaskStatus,
    record_from_msg,
    record_from_text,
)
from safe_o2o_ros.handover import TAKEOVER
from safe_o2o_ros.node import ERROR, OK, WARN, make_executor

if TYPE_CHECKING:
    from safe_o2o_ros.rerun_stream import RerunStream

SILENT = 3.0
"""Time after which a node that tells its health once a second counts as silent, s."""
EVERY = 0.25
"""Time between two pictures on the terminal, s."""
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
    """What is known, and how it looks."""

    nodes: dict[str, Told] = field(default_factory=dict)
    status: TaskStatus | FilterStatus | None = None

    def hear(self, msg: DiagnosticArray, now: float) -> None:
        """Take a message of `/diagnostics`; those of other stacks are left out."""
        for status in msg.status:
            name, _, state = status.name.partition(": ")
            if status.hardware_id == "safe_o2o":
                values = {item.key: item.value for item in status.values}
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
        return Group(self._arm(now), self._graph(now), self._latency())

    def _silent(self, told: Told, now: float) -> bool:
        return now - told.at > SILENT

    def _arm(self, now: float) -> RenderableType:
        """May it move, and what does the filter do with what is proposed?"""
        told = next((self.nodes[name] for name in ARMS if name in self.nodes), None)
        if told is None:
            return Panel(Text("no node that moves an arm", "yellow"))
        mode = told.values.get("mode", "?")
        line = Text()
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


def _bar(margin: float, width: int = 10) -> str:
    """A margin from 0 to 1 as blocks; none where it is no number."""
    share = min(max(margin, 0.0), 1.0) if margin == margin else 0.0
    full = round(share * width)
    return "█" * full + "·" * (width - full)


def main(argv: Sequence[str] | None = None) -> int:
    """Watch until Ctrl-C, or once.

    Returns:
        0; with `--once` 1 where a node reports an error, is silent, or nobody is there.
    """
    parser = argparse.ArgumentParser(prog="safe_o2o_ros.watch", description=__doc__)
    parser.add_argument("--namespace", default="/")
    parser.add_argument("--once", action="store_true", help="one picture, and what it comes to")
    parser.add_argument("--wait", type=float, default=5.0, help="how long to listen once, s")
    parser.add_argument("--rerun", default="", help="also to the Rerun viewer: see rerun_stream")
    arguments = parser.parse_args(argv)
    try:
        stream = _stream_to(arguments.rerun) if arguments.rerun else None
    except SafeO2OError as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return error.exit_code
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    node, board, console = Node("watch", namespace=arguments.namespace), Board(), Console()

    def keep(cls: type[TaskStatus] | type[FilterStatus]) -> None:
        def take(msg: DiagnosticArray) -> None:
            board.status = record_from_msg(cls, msg)
            if stream is not None:
                stream.status(board.status)

        topic = "task_status" if cls is TaskStatus else "filter_status"
        node.create_subscription(DiagnosticArray, topic, take, qos.STREAM)

    keep(TaskStatus)
    keep(FilterStatus)
    node.create_subscription(
        DiagnosticArray, "/diagnostics", lambda msg: board.hear(msg, time.monotonic()), 50
    )
    if stream is not None:
        _connect(node, stream)
    executor = make_executor()
    executor.add_node(node)
    try:
        if arguments.once:
            end = time.monotonic() + arguments.wait
            while time.monotonic() < end and not stop.is_set():
                executor.spin_once(timeout_sec=0.1)
            now = time.monotonic()
            console.print(board.render(now))
            return int(board.level(now) >= ERROR)
        with Live(board.render(time.monotonic()), console=console, auto_refresh=False) as live:
            due = 0.0
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.1)
                if time.monotonic() >= due:
                    due = time.monotonic() + EVERY
                    live.update(board.render(time.monotonic()), refresh=True)
        return 0
    finally:
        if stream is not None:
            stream.close()
        node.destroy_node()
        executor.shutdown()
        rclpy.try_shutdown()


def _stream_to(where: str) -> RerunStream:
    """Rerun is an extra: only who asks for it needs it.

    Raises:
        MissingDependencyError: it is not installed.
        SafeO2OError: see `open_stream`.
    """
    try:
        from safe_o2o_ros import rerun_stream
    except ImportError as error:
        raise MissingDependencyError(
            f"{error.name} is not installed", where="rerun", todo="pip install 'safe_o2o[rerun]'"
        ) from error
    return rerun_stream.RerunStream(rerun_stream.open_stream(where))


def _connect(node: Node, stream: RerunStream) -> None:
    """What the viewer shows beyond the terminal."""

    def guarded(take: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(msg: Any) -> None:
            try:
                take(msg)
            except SafeO2OError as error:  # somebody else's message; the next one may be fine
                node.get_logger().warning(str(error), throttle_duration_sec=5.0)

        return call

    for kind, topic, take, profile in (
        (String, "task_description", _described(stream), qos.LATCHED),
        (JointState, "joint_states", stream.measured, qos.SENSOR),
        (JointState, "joint_commands", stream.commanded, qos.SENSOR),
        (JointTrajectory, PROPOSALS, stream.proposed, qos.COMMAND),
        (JointTrajectory, TAKEOVER, partial(stream.proposed, person=True), qos.COMMAND),
        (Image, "image_stream", stream.picture, qos.SENSOR),
        (DiagnosticArray, "/diagnostics", stream.heard, qos.STREAM),
    ):
        node.create_subscription(kind, topic, guarded(take), profile)


def _described(stream: RerunStream) -> Callable[[String], None]:
    return lambda msg: stream.task(record_from_text(TaskDescription, msg))


if __name__ == "__main__":
    sys.exit(main())
