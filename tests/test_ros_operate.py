"""The operator's console: what each key asks for, and that a key that is let go moves nothing."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

for needed, how in (
    ("rclpy", "pip install 'safe_o2o[ros]'"),
    ("safe_o2o_ros", "pip install ./ros2_ws/src/safe_o2o_ros"),
):
    pytest.importorskip(needed, reason=f"{needed} is not installed ({how})")

from geometry_msgs.msg import Twist  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from safe_o2o.cli.main import main  # noqa: E402
from safe_o2o.runtime.process_group import free_domain  # noqa: E402
from safe_o2o.safety.shadow import ShadowReport  # noqa: E402
from safe_o2o_ros import qos  # noqa: E402
from safe_o2o_ros.operate import AGAIN, INSIST, MOMENT, REQUESTS, Keys, OperatorConsole  # noqa: E402
from tests.ros_world import World, make_world  # noqa: E402, F401

pytestmark = pytest.mark.ros


def whole(data: bytes) -> list[str]:
    return Keys().feed(data, 0.0)


def test_keys_are_told_apart_and_other_sequences_are_none() -> None:
    assert whole(b"a\x1b[A \x1bOBq") == ["a", "up", " ", "down", "q"]
    # Page up, F5, shift-arrow, escape, F1, a bare console's F1 and F4, Alt-a: none may arm.
    others = (b"\x1b[5~", b"\x1b[15~", b"\x1b[1;2A", b"\x1b", b"\x1bOP", b"\x1b[[A", b"\x1b[[D")
    for sequence in (*others, b"\x1ba", b"\x1b[a"):
        assert whole(sequence) == [], sequence
    assert whole(b"\x1b[5~b") == ["b"]
    assert whole(b"\xff") == ["\ufffd"]


@pytest.mark.parametrize(
    "data", [b"\x1b[A\x1b[B", b"\x1b[5~\x1b[a\x1b[1;2b", b"\x1b[[A\x1bOA\x1by"]
)
def test_a_key_that_comes_in_pieces_is_the_same_key(data: bytes) -> None:
    for cut in range(1, len(data)):
        keys = Keys()
        found = keys.feed(data[:cut], 1.0) + keys.feed(data[cut:], 1.1)
        # What the cut leaves of a sequence may be a letter, but none that asks for anything.
        assert [key for key in found if key not in "ABCD"] == [
            key for key in whole(data) if key not in "ABCD"
        ], cut
        assert not {key for key in found if key in REQUESTS or key == "q"}
    many = b"\x1b[A" * 100
    keys = Keys()
    assert keys.feed(many[:256], 1.0) + keys.feed(many[256:], 1.01) == ["up"] * 100


def test_a_stop_is_heard_in_the_middle_of_anything() -> None:
    for begun in (b"\x1b", b"\x1b[", b"\x1b[2", b"\x1b[2$", b"\x1bO", b"\x1b[["):
        assert " " in whole(begun + b" "), begun
        keys = Keys()
        assert keys.feed(begun, 1.0) == [] and " " in keys.feed(b" ", 1.1), begun
        keys = Keys()
        assert keys.feed(begun, 1.0) == [] and keys.feed(b"a", 9.0) == ["a"]  # long ago


class Cell:
    """Somebody who offers services, and hears what a device says."""

    def __init__(self, world: World, offered: tuple[str, ...]) -> None:
        self.world, self.asked, self.pushed = world, [], []
        node = world.client_node
        for name in offered:
            node.create_service(Trigger, f"robot_node/{name}", self._answer(name))
        node.create_subscription(Twist, "/device", self.pushed.append, qos.SENSOR)
        self.console = OperatorConsole(node, "robot_node", "/device", 0.7)

    def _answer(self, name: str):
        def answer(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            self.asked.append(name)
            response.success, response.message = name != "begin", "an episode is on"
            if name == "shadow_report":
                response.message = json.dumps(ShadowReport().report() | {"missing": ["time"]})
            return response

        return answer

    def until(self, claim) -> None:
        def look() -> bool:
            self.console.look(time.monotonic())
            return claim()

        self.world.until(look)

    def ready(self, name: str) -> None:
        self.world.until(self.console._clients[name].service_is_ready)


def test_every_key_asks_for_its_service_and_says_the_answer(world) -> None:
    offered = ("stop", *(name for name, _ in REQUESTS.values()))
    cell = Cell(world, offered)
    for key, name in {" ": "stop", **{key: name for key, (name, _) in REQUESTS.items()}}.items():
        cell.ready(name)
        cell.console.press(key, time.monotonic())
        cell.until(lambda name=name: name in cell.asked and not cell.console._asked)
        word = {
            "begin": "REFUSED an episode is on",
            "shadow_report": "0 interventions in 0 ticks; time",
        }.get(name, "granted")
        said = cell.console.stop_said if name == "stop" else cell.console.said
        assert f"{name}: {word}" in said.plain
    assert cell.asked == list(dict.fromkeys(cell.asked))
    assert "stop: granted" in cell.console.stop_said.plain  # no other answer hides it
    before = list(cell.asked)
    for key in "?1\x00\ufffdABDQ":
        cell.console.press(key, time.monotonic())
    cell.until(lambda: True)
    assert cell.asked == before and not cell.console.done
    cell.console.press("q", 0.0)
    assert cell.console.done


def test_a_stop_that_nobody_hears_is_said_and_asked_for_again(world) -> None:
    cell, now = Cell(world, ()), time.monotonic()
    cell.console.press(" ", now)
    assert "stop: nobody offers" in cell.console.stop_said.plain
    cell.console.press("y", now)
    assert "success: nobody offers" in cell.console.said.plain
    assert "stop: nobody offers" in cell.console.stop_said.plain
    world.client_node.create_service(Trigger, "robot_node/stop", cell._answer("stop"))
    cell.ready("stop")
    cell.console.look(now + 1.1 * AGAIN)
    world.until(lambda: cell.asked == ["stop"])
    cell.until(lambda: not cell.console._asked and "granted" in cell.console.stop_said.plain)
    cell.console.look(now + 4 * AGAIN)  # granted: it is not asked for any more
    assert not cell.console._asked and "granted" in cell.console.stop_said.plain

    other = OperatorConsole(world.client_node, "nobody", "/device", 0.7)
    other.press(" ", 100.0)
    other.look(100.0 + 1.1 * INSIST)
    assert other._stopping is None  # a graph that starts much later is not stopped by it


def test_an_arm_that_could_not_be_stopped_is_not_driven(world) -> None:
    cell = Cell(world, ())
    world.until(lambda: cell.console._device.get_subscription_count() == 1)
    cell.console.press("up", 100.0)
    assert "could not stop" in cell.console.said.plain
    world.client_node.create_service(Trigger, "robot_node/stop", cell._answer("stop"))
    cell.ready("stop")
    world.client_node.create_subscription(Twist, "/device", lambda _: None, qos.SENSOR)
    world.until(lambda: cell.console._device.get_subscription_count() == 2)
    cell.console.press("up", 100.0)  # of two arms, say, of which it stops one
    assert "2 listen" in cell.console.said.plain
    for _ in range(5):
        cell.console.look(100.0)
        world.executor.spin_once(timeout_sec=0.02)
    assert not cell.pushed


def test_one_press_moves_for_a_moment_and_then_says_that_it_rests(world) -> None:
    cell = Cell(world, ("stop",))
    now = 100.0
    cell.ready("stop")
    world.until(lambda: cell.console._device.get_subscription_count() == 1)
    for _ in range(5):
        cell.console.look(now)
        world.executor.spin_once(timeout_sec=0.01)
    assert not cell.pushed  # nobody has the device in hand
    cell.console.press("up", now)

    def hears(when: float) -> bool:
        cell.console.look(when)
        return bool(cell.pushed)

    world.until(lambda: hears(now + 0.5 * MOMENT))
    assert (cell.pushed[-1].linear.x, cell.pushed[-1].linear.y) == pytest.approx((0.7, 0.0))
    cell.pushed.clear()
    cell.console.look(now + 1.01 * MOMENT)
    world.until(lambda: cell.pushed and cell.pushed[-1].linear.x == 0.0)
    cell.pushed.clear()
    for _ in range(5):
        cell.console.look(now + 2.0 * MOMENT)
        world.executor.spin_once(timeout_sec=0.01)
    assert not cell.pushed  # a device at rest is silent

    cell.console.press("u", now + 1.0)
    cell.console.press(" ", now + 1.0)  # a stop also takes the hand off
    cell.console.look(now + 1.0)
    world.until(lambda: bool(cell.pushed))
    assert all(push.linear.z == 0.0 for push in cell.pushed)


@pytest.mark.parametrize("how", ["q", "signal", "hangup"])
def test_it_leaves_the_terminal_as_it_was(how: str) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with free_domain() as domain:
        process = subprocess.Popen(
            [sys.executable, "-m", "safe_o2o_ros.operate"],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "ROS_DOMAIN_ID": str(domain),
                 "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "TERM": "xterm"},
        )  # fmt: skip
        shown = b""
        try:
            deadline = time.monotonic() + 60.0
            while b"violation" not in shown:
                assert time.monotonic() < deadline and process.poll() is None, shown
                if select.select([ours], [], [], 0.2)[0]:
                    shown += os.read(ours, 4096)
            assert termios.tcgetattr(theirs)[3] & termios.ICANON == 0
            if how == "q":
                os.write(ours, b"q")
            else:
                process.send_signal(signal.SIGTERM if how == "signal" else signal.SIGHUP)
            while process.poll() is None:
                assert time.monotonic() < deadline
                if select.select([ours], [], [], 0.1)[0]:
                    os.read(ours, 4096)
            assert process.returncode == 0
            assert termios.tcgetattr(theirs) == before
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            os.close(ours)
            os.close(theirs)


def test_without_a_terminal_or_a_graph_it_is_one_line(tmp_path, capsys) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "safe_o2o_ros.operate"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "terminal" in done.stderr
    assert main(["operate", str(tmp_path)]) == 2
    assert "no graph runs there" in capsys.readouterr().err
