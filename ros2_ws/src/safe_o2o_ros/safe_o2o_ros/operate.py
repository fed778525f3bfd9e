"""An operator's console in a terminal: arm, begin, label, stop and drive by single keys.

`safe-o2o operate` starts it. Every key is one of the robot node's services, which say themselves
whether they are granted; the space bar is always a stop. The arrow keys are a person's device for
`takeover_node`: a terminal does not tell when a key is let go, so each press moves for a moment
only, and holding one down repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import rclpy
from geometry_msgs.msg import Twist
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from std_srvs.srv import Trigger

from safe_o2o.errors import SafeO2OError
from safe_o2o_ros import qos
from safe_o2o_ros.board import Board, follow
from safe_o2o_ros.node import explained, make_executor, said

REPORT = "shadow_report"
REQUESTS = {
    "a": ("arm", "the arm may move"),
    "d": ("disarm", "it may not"),
    "h": ("shadow", "everything runs, nothing is sent"),
    "r": (REPORT, "what shadow mode has seen: is it time to arm?"),
    "x": ("reset", "after a stop; then arm"),
    "b": ("begin", "the scene is laid out: begin the episode"),
    "y": ("success", "the goal was reached: the episode ends"),
    "n": ("failure", "it ends without it"),
    "v": ("violation", "something was touched; it goes on"),
}
"""Services of the robot node by key."""
STOP, QUIT = " ", "q"
DRIVE = {
    "up": (1.0, 0.0, 0.0),
    "down": (-1.0, 0.0, 0.0),
    "left": (0.0, 1.0, 0.0),
    "right": (0.0, -1.0, 0.0),
    "u": (0.0, 0.0, 1.0),
    "j": (0.0, 0.0, -1.0),
}
"""Directions in the arm's base frame: away, back, left, right, up, down (REP-103)."""
ARROWS = {f"{lead}{final}": name for lead in "[O" for final, name in zip(
    "ABCD", ("up", "down", "right", "left"), strict=True)}  # fmt: skip
"""What a terminal sends for the arrow keys after ESC."""
WHOLE = re.compile(r"\x1b(?:\[\[?[0-?]*[!-/]*[@-~]|O[@-~]|[^\x1b\[O ])")
"""A key that is more than one character; with Alt, too. No space is part of one: that is a stop."""
BEGUN = re.compile(r"\x1b(?:\[\[?[0-?]*[!-/]*|O)?")
TOGETHER = 0.5
"""Longest that the parts of one key may come apart, s."""
MOMENT = 0.2
"""How long one press moves the arm; a held key repeats about thirty times a second, s."""
EVERY = 0.1
"""Time between two pictures, s."""
AGAIN, INSIST = 0.5, 5.0
"""Time after which a stop that was not granted is asked for again, and for how long, s."""
UNANSWERED = 2.0
"""Time after which a request counts as not answered, s."""


class Keys:
    """A terminal's bytes as keys: characters, and names of arrows.

    A key of several bytes may come in pieces. Other such keys are none: their letters arm nothing.
    """

    def __init__(self) -> None:
        self._rest, self._at = "", 0.0

    def feed(self, data: bytes, now: float) -> list[str]:
        """The keys that are whole now.

        Args:
            data: what was read.
            now: on the monotonic clock, s.
        """
        rest = self._rest if now - self._at <= TOGETHER else ""
        text, found = rest + data.decode("utf-8", "replace"), []
        self._rest, self._at = "", now
        while text:
            if text[0] != "\x1b":
                found.append(text[0])
                text = text[1:]
            elif (whole := WHOLE.match(text)) is not None:
                if (arrow := ARROWS.get(whole[0][1:])) is not None:
                    found.append(arrow)
                text = text[whole.end() :]
            else:
                begun = BEGUN.match(text)
                assert begun is not None
                if begun.end() == len(text):
                    self._rest = text
                text = text[begun.end() :]  # else something came in between, a stop maybe
        return found


class OperatorConsole:
    """Keys to services and to a device's topic.

    Args:
        node: speaks for it, in the graph's namespace.
        robot: name of the node that moves the arm.
        device_topic: where `takeover_node` listens to a Twist.
        full: what the device says at full deflection.
    """

    def __init__(self, node: Node, robot: str, device_topic: str, full: float) -> None:
        self.full, self.done = full, False
        self.said, self.stop_said = Text(""), Text("")
        self._stopping: tuple[float, float] | None = None  # stop wanted since, and asked last
        self._clients: dict[str, Any] = {
            name: node.create_client(Trigger, f"{robot}/{name}")
            for name in ("stop", *(name for name, _ in REQUESTS.values()))
        }
        self._device = node.create_publisher(Twist, device_topic, qos.SENSOR)
        self._asked: list[tuple[str, float, Any]] = []  # request, when, answer to come
        self._direction, self._until = (0.0, 0.0, 0.0), 0.0

    def press(self, key: str, now: float) -> None:
        """Do what a key stands for; an unknown one does nothing.

        Args:
            key: a character, or an arrow's name.
            now: on the monotonic clock, s.
        """
        if key == STOP:
            self._until, self._stopping = 0.0, (now, now)
            self._ask("stop", now)
        elif key in REQUESTS:
            self._ask(REQUESTS[key][0], now)
        elif key in DRIVE:
            self._drive(DRIVE[key], now)
        elif key == QUIT:
            self.done = True

    def _drive(self, direction: tuple[float, float, float], now: float) -> None:
        """Only the one arm that this console can stop."""
        listening = self._device.get_subscription_count()
        if not self._clients["stop"].service_is_ready():
            self._say("not driven: this console could not stop it", "bold red")
        elif listening != 1:
            topic = self._device.topic_name
            self._say(f"not driven: {listening} listen to {topic}, must be one", "bold red")
        else:
            self._direction, self._until = direction, now + MOMENT

    def look(self, now: float) -> None:
        """Hear answers, and go on driving or let go. Call it twenty times a second or so."""
        for request in list(self._asked):
            name, asked, answer = request
            if answer.done():
                self._asked.remove(request)
                if answer.exception() is not None:
                    self._say(f"{name}: {answer.exception()}", "bold red", name)
                else:
                    self._answered(name, answer.result())
            elif now - asked > UNANSWERED:
                self._asked.remove(request)
                self._clients[name].remove_pending_request(answer)
                self._say(f"{name}: NO ANSWER", "bold red", name)
        if self._stopping is not None:
            since, asked = self._stopping
            if now - since > INSIST:
                self._stopping = None
            elif now - asked > AGAIN:
                self._stopping = (since, now)
                self._ask("stop", now)
        if now < self._until:
            self._tell(self._direction)
        elif self._direction != (0.0, 0.0, 0.0):
            self.let_go()

    def let_go(self) -> None:
        """The device rests."""
        self._tell((0.0, 0.0, 0.0))
        self._direction, self._until = (0.0, 0.0, 0.0), 0.0

    def render(self) -> RenderableType:
        """The keys, and what was answered last."""
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_row(Text("space", "bold red"), Text("STOP", "bold red"), "always; latched")
        for key, (name, meaning) in REQUESTS.items():
            table.add_row(Text(key, "bold"), name, meaning)
        drive = "drive, where the graph has takeover; each press for a moment"
        table.add_row(Text("arrows u j", "bold"), "", drive)
        table.add_row(Text("q", "bold"), "", "leave; the arm stays as it is")
        return Panel(Group(table, Text(""), self.stop_said, self.said), title="keys")

    def _ask(self, name: str, now: float) -> None:
        client = self._clients[name]
        if not client.service_is_ready():
            style = "bold red" if name == "stop" else "yellow"
            self._say(f"{name}: nobody offers {client.srv_name}", style, name)
            return
        self._asked.append((name, now, client.call_async(Trigger.Request())))

    def _answered(self, name: str, answer: Trigger.Response) -> None:
        text = f"{'granted' if answer.success else 'REFUSED'} {answer.message}"
        if name == REPORT:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # then it is an error's text
                found = json.loads(answer.message)
                missing = "; ".join(found["missing"]) or "nothing is missing"
                counts = f"{found['interventions']} interventions in {found['proposed']} ticks"
                text = f"{counts}; {missing}"
        if name == "stop" and answer.success:
            self._stopping = None
        self._say(f"{name}: {text}", "green" if answer.success else "yellow", name)

    def _say(self, text: str, style: str, name: str = "") -> None:
        line = Text(f"{time.strftime('%H:%M:%S')}  {text}", style)
        if name == "stop":  # nothing else may hide what became of it
            self.stop_said = line
        else:
            self.said = line

    def _tell(self, direction: tuple[float, float, float]) -> None:
        push = Twist()
        push.linear.x, push.linear.y, push.linear.z = (self.full * part for part in direction)
        self._device.publish(push)


@contextmanager
def single_keys(terminal: int) -> Iterator[None]:
    """Keys come one by one and are not shown; Ctrl-C is still Ctrl-C."""
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        now = termios.tcgetattr(terminal)
        now[0] &= ~termios.IXON  # Ctrl-S would hold up the picture, and with it every key
        termios.tcsetattr(terminal, termios.TCSANOW, now)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Operate until `q` or Ctrl-C.

    Returns:
        0; 2 without a terminal to press keys in.
    """
    parser = argparse.ArgumentParser(prog="safe_o2o_ros.operate", description=__doc__)
    parser.add_argument("--namespace", default="/")
    parser.add_argument("--robot", default="robot_node", help="node that moves the arm")
    parser.add_argument("--device-topic", default="/spacenav/twist")
    parser.add_argument("--full", type=float, default=0.7, help="takeover_node's `full`")
    arguments = parser.parse_args(argv)
    if not sys.stdin.isatty():
        sys.stderr.write("operate: needs a terminal to press keys in\n")
        return 2
    try:
        with explained():
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
            node = Node("operate", namespace=arguments.namespace)
    except SafeO2OError as error:
        return said(error)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    board = Board(arguments.namespace)
    follow(node, board)
    keys = OperatorConsole(node, arguments.robot, arguments.device_topic, arguments.full)
    executor = make_executor()
    executor.add_node(node)
    terminal, typed, due = sys.stdin.fileno(), Keys(), 0.0
    try:
        with (
            single_keys(terminal),
            Live(keys.render(), console=Console(), auto_refresh=False) as live,
        ):
            while not (stop.is_set() or keys.done):
                executor.spin_once(timeout_sec=0.02)
                now = time.monotonic()
                if select.select([terminal], [], [], 0.0)[0]:
                    data = os.read(terminal, 256)
                    if not data:  # the terminal is gone
                        break
                    for key in typed.feed(data, now):
                        keys.press(key, now)
                keys.look(now)
                if now >= due:
                    due = now + EVERY
                    live.update(Group(board.arm(now), keys.render()), refresh=True)
        return 0
    finally:
        keys.let_go()
        node.destroy_node()
        executor.shutdown()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
