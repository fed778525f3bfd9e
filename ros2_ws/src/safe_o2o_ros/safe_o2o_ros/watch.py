"""The graph at a glance, in a terminal: who is well, may the arm move, what the filter does.

Reads `/diagnostics` and the statuses; publishes nothing. `safe-o2o watch` starts it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.live import Live
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from safe_o2o.errors import MissingDependencyError, SafeO2OError
from safe_o2o_ros import qos
from safe_o2o_ros.arm_node import PROPOSALS
from safe_o2o_ros.board import Board, follow
from safe_o2o_ros.conversions import TaskDescription, record_from_text
from safe_o2o_ros.handover import TAKEOVER
from safe_o2o_ros.node import ERROR, explained, make_executor, said

if TYPE_CHECKING:
    from safe_o2o_ros.rerun_stream import RerunStream

EVERY = 0.25
"""Time between two pictures on the terminal, s."""


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
        stream = _stream_to(arguments.rerun, arguments.namespace) if arguments.rerun else None
        with explained():
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
            node = Node("watch", namespace=arguments.namespace)
    except SafeO2OError as error:
        return said(error)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    board, console = Board(arguments.namespace), Console()
    follow(node, board, None if stream is None else stream.status)
    if stream is not None:
        connect(node, stream)
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
        node.destroy_node()
        executor.shutdown()
        rclpy.try_shutdown()
        if stream is not None and (lost := stream.close()):
            sys.stderr.write(f"rerun: {lost}\n")


def _stream_to(where: str, namespace: str) -> RerunStream:
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
    return rerun_stream.RerunStream(rerun_stream.open_stream(where), namespace)


def connect(node: Node, stream: RerunStream) -> None:
    """What the viewer shows beyond the terminal."""

    def guarded(take: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(msg: Any) -> None:
            try:
                take(msg)
            except (SafeO2OError, ValueError, IndexError) as error:  # somebody else's message
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
