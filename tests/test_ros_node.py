"""A node survives bad requests and its own exceptions, refuses bad parameters, and ends cleanly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed (pip install 'safe_o2o[ros]')")
node_module = pytest.importorskip(
    "safe_o2o_ros.node", reason="pip install ./ros2_ws/src/safe_o2o_ros"
)
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from safe_o2o.errors import ConfigError  # noqa: E402
from safe_o2o.runtime.process_group import PARENT_VARIABLE, free_domain  # noqa: E402
from safe_o2o_ros.parameters import setting  # noqa: E402
from tests.ros_world import World, make_world  # noqa: E402, F401

pytestmark = pytest.mark.ros


@dataclass(frozen=True)
class Config:
    rate: float = setting(10.0, "turns a second")
    names: tuple[str, ...] = setting(("a", "b"), "names")

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ConfigError(f"must be positive, got {self.rate}", where="rate")


class Fragile(node_module.GuardedNode):
    """Fails wherever it is asked to."""

    def __init__(self, **options) -> None:
        super().__init__("fragile", Config, **options)
        self.broken = ""
        self.create_service(Trigger, "~/poke", self.guarded(self.poke))

    def poke(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        raise ValueError("poked")

    def on_start(self) -> None:
        if self.broken == "start":
            raise ValueError("no camera")


def change(world: World, transition: int) -> bool:
    request = ChangeState.Request(transition=Transition(id=transition))
    return world.call(ChangeState, "/fragile/change_state", request).success


def test_an_invalid_transition_is_refused_and_the_node_lives_on(world) -> None:
    node = Fragile(context=world.context)
    world.executor.add_node(node)
    assert not change(world, Transition.TRANSITION_ACTIVATE)  # from unconfigured
    node.broken = "start"
    assert not change(world, Transition.TRANSITION_CONFIGURE)
    assert node.errors == 1 and "no camera" in node.last_error
    node.broken = ""
    assert change(world, Transition.TRANSITION_CONFIGURE)
    assert change(world, Transition.TRANSITION_ACTIVATE)
    assert node.running
    assert not change(world, Transition.TRANSITION_CONFIGURE)
    assert change(world, Transition.TRANSITION_DEACTIVATE)
    assert not node.running


def test_a_failing_callback_answers_counts_and_shows_up_in_diagnostics(world) -> None:
    node = Fragile(context=world.context)
    world.executor.add_node(node)
    seen: list[DiagnosticArray] = []
    world.client_node.create_subscription(DiagnosticArray, "/diagnostics", seen.append, 10)
    response = world.call(Trigger, "/fragile/poke", Trigger.Request())
    assert not response.success and "poked" in response.message
    world.until(lambda: any("poked" in msg.status[0].message for msg in seen))
    assert seen[-1].status[0].name == "fragile: inactive"
    assert seen[-1].status[0].level == b"\x01"


def test_parameters_come_from_the_dataclass_and_are_checked_by_it(world) -> None:
    node = Fragile(context=world.context, parameter_overrides=[Parameter("rate", value=2.5)])
    world.executor.add_node(node)
    assert node.config == Config(rate=2.5)
    assert node.describe_parameter("rate").description == "turns a second"
    assert node.describe_parameter("rate").read_only
    for value, complaint in ((50, "rate"), (-1.0, "must be positive")):
        with pytest.raises(ConfigError, match=complaint):
            Fragile(context=world.context, parameter_overrides=[Parameter("rate", value=value)])


MAIN = """
import sys
from safe_o2o_ros.node import GuardedNode, run_node
from dataclasses import dataclass
from std_msgs.msg import String

@dataclass(frozen=True)
class Config:
    text: str = "x"

class Node(GuardedNode):
    def __init__(self):
        super().__init__("ender", Config)
        self.pub = self.create_publisher(String, "last_words", 10)
        if self.config.text == "fail":
            from safe_o2o.errors import DataError
            raise DataError("is missing", where="thing")
    def on_run(self):
        print("up", flush=True)
    def on_hold(self):
        self.pub.publish(String(data="held"))
        print("held", flush=True)

sys.exit(run_node(Node))
"""


def run_main(tmp_path: Path, domain: int, *arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "ROS_DOMAIN_ID": str(domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "ROS_LOG_DIR": str(tmp_path),
            **environment,
        },
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_node_hold_before_it_goes(tmp_path, number) -> None:
    with free_domain() as domain:
        process = run_main(tmp_path, domain)
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        process.send_signal(number)
        out, _ = process.communicate(timeout=15)
        assert process.returncode == 0 and out == "held\n"


def test_a_node_whose_parent_is_gone_ends_itself(tmp_path) -> None:
    with free_domain() as domain:
        process = run_main(tmp_path, domain, **{PARENT_VARIABLE: "1"})
        out, _ = process.communicate(timeout=15)
        assert process.returncode == 0 and out == "up\nheld\n"


def test_bad_input_is_one_line_and_exit_code_2(tmp_path) -> None:
    with free_domain() as domain:
        process = run_main(tmp_path, domain, "--ros-args", "-p", "text:=fail")
        _, err = process.communicate(timeout=15)
        assert process.returncode == 2 and err == "thing: is missing\n"
