"""Bags beside the episodes of the real graph, and what becomes of them when their node dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

for needed, how in (
    ("rclpy", "pip install 'safe_o2o[ros]'"),
    ("safe_o2o_ros", "pip install ./ros2_ws/src/safe_o2o_ros"),
    ("pybullet", "pip install 'safe_o2o[sim]'"),
    ("rosbags", "pip install 'safe_o2o[bags]'"),
):
    pytest.importorskip(needed, reason=f"{needed} is not installed ({how})")

import yaml  # noqa: E402
from rosbags.highlevel import AnyReader  # noqa: E402

from safe_o2o.data.dataset import Dataset  # noqa: E402
from safe_o2o.data.episode import Episode  # noqa: E402
from safe_o2o.errors import ConfigError  # noqa: E402
from safe_o2o.runtime.deployment import deploy  # noqa: E402
from tests.standin_policy import standin_bundles  # noqa: E402
from tests.test_ros_graph import node_pids, nothing_leaks, once, run  # noqa: E402, F401

pytestmark = pytest.mark.ros
TOPICS = {
    "/scene", "/task_description", "/joint_states", "/joint_commands", "/task_status", "/image",
    "/proposals", "/policy_output", "/image_stream",
}  # fmt: skip


def episode_of(bag: Path) -> str:
    about = yaml.safe_load((bag / "metadata.yaml").read_text())
    return str(about["rosbag2_bagfile_information"]["custom_data"]["episode"])


def test_episodes_have_bags_but_those_for_which_the_node_was_dead(tmp_path: Path) -> None:
    def kill() -> None:
        (node,) = node_pids("safe_o2o_ros.bag_node")
        os.kill(node, signal.SIGKILL)

    killed = run(tmp_path, standin_bundles(), episodes=2, bags=True, progress=once(1, kill))
    further = {"bag_node": {"topics": ["image_stream", "joint_states", "never_published"]}}
    report = run(tmp_path, standin_bundles(), episodes=6, bags=True, parameters=further)
    assert len(report.episodes) == 6 and report.dropped == 0
    assert not killed.bags_failed and not report.bags_failed
    bags = sorted(path for path in (tmp_path / "bags").iterdir() if not path.name.startswith("."))
    whole = {episode_of(bag): bag for bag in bags if (bag / "metadata.yaml").exists()}
    log = (tmp_path / "deploy" / "logs" / "bag_node.log").read_text()
    # The one that was open when it was killed.
    assert len(bags) - len(whole) == log.count("was never closed") <= 1
    assert "episode_000005" in whole, log
    for episode in Dataset(tmp_path / "online"):
        bag = whole.get(episode.path.stem)
        if bag is not None:
            assert bag.name.endswith(f"_seed_{episode.meta.seed}")
    assert_whole(episode, whole["episode_000005"])


def assert_whole(episode: Episode, bag: Path) -> None:
    """A bag has every instant of an episode, to the byte."""
    pictures: dict[int, bytes] = {}
    stamps: dict[str, list[int]] = {}
    with AnyReader([bag]) as reader:
        assert {c.topic for c in reader.connections} >= TOPICS
        for connection, _, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            stamp = getattr(getattr(message, "header", None), "stamp", None)
            if stamp is None:
                continue
            key = stamp.sec * 1_000_000_000 + stamp.nanosec
            stamps.setdefault(connection.topic, []).append(key)
            if connection.topic == "/image":
                pictures[key] = bytes(message.data)
    assert len(stamps["/joint_states"]) == len(set(stamps["/joint_states"]))
    asked = [round(s * 1e9) for s in episode.array("stamp")]
    assert set(asked) <= set(pictures)
    assert set(asked) <= set(stamps["/joint_commands"])
    for stamp, image in zip(asked, episode.obs["image"], strict=True):
        assert pictures[stamp] == np.asarray(image).tobytes()
    decided = [stamp for stamp in stamps["/policy_output"] if stamp >= asked[0]]
    assert decided == asked


def test_bags_are_of_the_graph_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no topics in one process"):
        deploy(tmp_path, bundles=standin_bundles(), ros=False, bags=True)
