"""The SROS2 policy allows what the graph of a real arm says and hears, and no more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from xml.etree import ElementTree

import pytest

for needed, how in (
    ("rclpy", "pip install 'safe_o2o[ros]'"),
    ("safe_o2o_ros", "pip install ./ros2_ws/src/safe_o2o_ros"),
    ("rosbags", "pip install 'safe_o2o[bags]'"),
):
    pytest.importorskip(needed, reason=f"{needed} is not installed ({how})")

import rclpy  # noqa: E402
import yaml  # noqa: E402

from safe_o2o.runtime.process_group import launch_folder  # noqa: E402
from safe_o2o_ros.board import Board, follow  # noqa: E402
from safe_o2o_ros.operate import OperatorConsole  # noqa: E402
from safe_o2o_ros.watch import connect  # noqa: E402
from tests.test_ros_graph import LEARNER, nothing_leaks  # noqa: E402, F401
from tests.test_ros_real_graph import Deployment, Operator, operator  # noqa: E402, F401

pytestmark = pytest.mark.ros
NAMESPACE = "/safe_o2o"
KINDS = {
    "publish": "get_publisher_names_and_types_by_node",
    "subscribe": "get_subscriber_names_and_types_by_node",
    "reply": "get_service_names_and_types_by_node",
    "request": "get_client_names_and_types_by_node",
}
Names = set[tuple[str, str]]
"""What a node does, and with which topic or service."""
ONLY_WHERE = {("subscribe", "/clock")}
"""With use_sim_time."""


def policy_file(name: str) -> Path:
    return launch_folder() / "security" / name


def rules(profile: ElementTree.Element, node: str) -> Iterator[tuple[str, str]]:
    """What a profile allows, included files and all, by full names."""
    for entry in profile:
        if entry.tag.endswith("include"):
            included = ElementTree.parse(policy_file(entry.attrib["href"])).getroot()
            yield from rules(included, node)
            continue
        for kind, word in entry.attrib.items():
            assert kind in KINDS and word == "ALLOW"
            for name in entry:
                text = (name.text or "").replace("~", f"{NAMESPACE}/{node}")
                yield kind, text if text.startswith("/") else f"{NAMESPACE}/{text}"


def allowed() -> dict[str, Names]:
    """By name of the node."""
    found: dict[str, Names] = {}
    for enclave in ElementTree.parse(policy_file("safe_o2o.policy.xml")).getroot().iter("enclave"):
        (profile,) = enclave.iter("profile")
        node = profile.attrib["node"]
        assert profile.attrib["ns"] == NAMESPACE
        assert enclave.attrib["path"] == f"{NAMESPACE}/{node}", "the launch files' enclave"
        found[node] = set(rules(profile, node))
    return found


def does(observer: Any, node: str) -> Names:
    """What a running node does, as the graph knows it."""
    return {
        (kind, name)
        for kind, method in KINDS.items()
        for name, _ in getattr(observer, method)(node, NAMESPACE)
    }


def assert_as_allowed(operator: Operator, nodes: set[str]) -> None:  # noqa: F811
    """Discovery takes its time: until they agree."""
    may = allowed()

    def difference(node: str) -> Names:
        return (does(operator.node, node) ^ may[node]) - ONLY_WHERE

    for _ in range(300):
        known = {name for name, _ in operator.node.get_node_names_and_namespaces()}
        if nodes <= known and not any(difference(node) for node in nodes):
            break
        operator.wait(0.1)
    assert nodes <= known
    wrong = {node: difference(node) for node in nodes}
    assert not any(wrong.values()), wrong


def test_nodes_do_what_the_policy_allows(operator, tmp_path, monkeypatch) -> None:  # noqa: F811
    (tmp_path / "fake_learner.py").write_text(LEARNER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (tmp_path / "learner.yaml").write_text("note: from the settings file\n")
    Deployment(
        tmp_path / "run",
        **{"episodes": 1, "takeover": True, "bags": True, "learner": True},
        **{"rounds": 1, "episodes_per_round": 1, "fine_tuner": "fake_learner:FineTuner"},
        learner_config=tmp_path / "learner.yaml",
    )
    nodes = {"robot_node", "policy_node", "takeover_node", "camera_node", "recorder_node"}
    assert_as_allowed(operator, nodes | {"learner_node", "bag_node", "mock_driver_node"})


def test_who_demonstrates_does_what_the_policy_allows(operator, tmp_path) -> None:  # noqa: F811
    Deployment(tmp_path, episodes=1, drive="demonstrate", takeover=True)
    assert_as_allowed(operator, {"robot_node", "demonstration_node", "recorder_node"})
    # Who replays is driven by the same code.
    may = allowed()
    named = {(kind, name.replace("replay", "demonstration")) for kind, name in may["replay_node"]}
    assert named == may["demonstration_node"]


def test_consoles_do_what_the_policy_allows(operator) -> None:  # noqa: F811
    consoles = {}
    for name in ("operate", "watch"):
        node = rclpy.create_node(name, namespace=NAMESPACE, context=operator.context)
        follow(node, Board(NAMESPACE))
        consoles[name] = node
    OperatorConsole(consoles["operate"], "robot_node", "/spacenav/twist", 0.7)
    connect(consoles["watch"], Mock())
    assert_as_allowed(operator, set(consoles))
    for node in consoles.values():
        node.destroy_node()


def test_who_may_do_what_matters() -> None:
    """Of each of these there is one."""
    may = allowed()
    graph = yaml.safe_load((launch_folder() / "graphs" / "real.yaml").read_text())
    assert {node["name"] for node in graph["nodes"]} | {"operate", "watch"} == set(may)

    def who(kind: str, name: str) -> set[str]:
        return {node for node, rules in may.items() if (kind, name) in rules}

    controller = "/joint_trajectory_controller/joint_trajectory"
    assert who("publish", controller) == {"robot_node"}
    for word in ("arm", "reset", "disarm", "success"):
        assert who("request", f"{NAMESPACE}/robot_node/{word}") == {"operate"}
    assert who("publish", f"{NAMESPACE}/takeover") == {"takeover_node"}
    assert who("publish", f"{NAMESPACE}/proposals") == {
        *("policy_node", "demonstration_node", "replay_node"),
    }
    requested = {name for rules in may.values() for kind, name in rules if kind == "request"}
    assert not any("parameters" in name or "change_state" in name for name in requested)


@pytest.mark.parametrize("module", ["mock_driver_node", "watch"])
def test_without_keys_nothing_starts_and_says_so_in_one_line(module, tmp_path) -> None:
    environment = os.environ | {
        "ROS_SECURITY_ENABLE": "true",
        "ROS_SECURITY_STRATEGY": "Enforce",
        "ROS_SECURITY_KEYSTORE": str(tmp_path),
    }
    command = [sys.executable, "-m", f"safe_o2o_ros.{module}"]
    command += ["--once"] if module == "watch" else ["--ros-args", "--enclave", "/safe_o2o/arm"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert str(tmp_path) in line and "docs/security.md" in line
