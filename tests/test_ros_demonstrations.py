"""A person demonstrates on the twin, and what was recorded is replayed: graphs of processes."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

for needed, how in (
    ("rclpy", "pip install 'safe_o2o[ros]'"),
    ("safe_o2o_ros", "pip install ./ros2_ws/src/safe_o2o_ros"),
    ("pybullet", "pip install pybullet"),
):
    pytest.importorskip(needed, reason=f"{needed} is not installed ({how})")

import rclpy  # noqa: E402
from geometry_msgs.msg import Twist  # noqa: E402
from rclpy.signals import SignalHandlerOptions  # noqa: E402

from safe_o2o.cli import main as cli  # noqa: E402
from safe_o2o.data.dataset import Dataset  # noqa: E402
from safe_o2o.data.episode import Episode, EpisodeMeta, write_episode  # noqa: E402
from safe_o2o.errors import ConfigError  # noqa: E402
from safe_o2o.runtime.deployment import DeployConfig, deploy  # noqa: E402
from safe_o2o.runtime.process_group import free_domain  # noqa: E402
from safe_o2o.types import Source  # noqa: E402
from safe_o2o_ros import qos  # noqa: E402
from tests.standin_policy import standin_bundles  # noqa: E402
from tests.test_ros_graph import nothing_leaks  # noqa: E402, F401

pytestmark = pytest.mark.ros


class Hand(threading.Thread):
    """A SpaceMouse in a hand that pushes to and fro, in the domain that is set."""

    def __init__(self, domain: int) -> None:
        super().__init__(daemon=True)
        self.domain, self.done = domain, threading.Event()
        self.start()

    def run(self) -> None:
        context = rclpy.Context()
        rclpy.init(
            context=context, domain_id=self.domain, signal_handler_options=SignalHandlerOptions.NO
        )
        node = rclpy.create_node("hand", context=context)
        device = node.create_publisher(Twist, "/spacenav/twist", qos.SENSOR)
        began = time.monotonic()
        while not self.done.wait(0.05):
            push, now = Twist(), time.monotonic() - began
            if now % 4.0 > 1.2:  # and lets go now and then
                push.linear.x, push.linear.z = 0.5 * float(np.cos(now)), 0.4
            device.publish(push)
        node.destroy_node()
        rclpy.try_shutdown(context=context)


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> Episode:
    run = tmp_path_factory.mktemp("demonstrated")
    with pytest.MonkeyPatch.context() as patch, free_domain() as domain:
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        patch.setenv("ROS_DOMAIN_ID", str(domain))
        hand = Hand(domain)
        try:
            report = deploy(
                run, drive="demonstrate", takeover=True, ros=True, episodes=1, speed=2.0, seed=11
            )
        finally:
            hand.done.set()
            hand.join(10.0)
    assert len(report.episodes) == 1 and not (run / "online").exists()
    (episode,) = Dataset(run / "dataset")
    return episode


def test_a_demonstration_is_training_data_and_is_replayed(demonstrated, tmp_path, capsys) -> None:
    assert demonstrated.meta.behavior == "demonstration"
    assert demonstrated.meta.seed in (11, 12)  # moved before anything could be recorded: once more
    assert (demonstrated.array("source") == Source.HUMAN).all()
    assert np.isnan(demonstrated.array("proposed_action")).all()  # nobody proposed
    action = demonstrated.array("action")
    assert np.abs(action[0]).max() > 1e-4  # it begins with a motion, maybe at its end
    assert np.abs(action[:2]).max() > 0.02
    way = demonstrated.array("obs.tcp_pose")[:, :3]
    assert np.abs(way - way[0]).max() > 0.03
    assert cli.main(["replay", str(demonstrated.path), "--run", str(tmp_path), "--speed", "4"]) == 0
    said = capsys.readouterr().out
    (replay,) = Dataset(tmp_path / "replays")
    assert f"{len(demonstrated)} of {len(demonstrated)} steps" in said, said
    assert replay.meta.behavior == f"replay of {demonstrated.path.name}"
    assert (replay.array("source") == Source.SCRIPT).all()
    gap = np.linalg.norm(replay.array("obs.tcp_pose")[:, :3] - way, axis=1)
    assert gap.max() < 0.005, gap
    # The same scene, so the same picture at the start.
    first = [one.array("obs.image")[0].astype(int) for one in (demonstrated, replay)]
    assert np.abs(first[0] - first[1]).mean() < 2.0


def test_an_arm_that_is_elsewhere_is_not_moved_by_a_recording(demonstrated, tmp_path, capsys):
    steps = list(demonstrated.transitions())
    moved = [
        {**obs, "tcp_pose": obs["tcp_pose"] + np.float32([0.1, 0, 0, 0, 0])}
        for obs in (step.obs for step in steps)
    ]
    elsewhere = tmp_path / "elsewhere.safetensors"
    write_episode(
        elsewhere,
        [replace(step, obs=obs) for step, obs in zip(steps, moved, strict=True)],
        moved[-1],
        float(demonstrated.array("stamp")[-1]),
        spec=demonstrated.spec,
        meta=EpisodeMeta("safe_reach", variant="standard", seed=demonstrated.meta.seed),
    )
    arguments = ["replay", str(elsewhere), "--run", str(tmp_path), "--speed", "4"]
    assert cli.main(arguments) != 0
    said = capsys.readouterr().err
    assert "the tool is 0.1" in said and "bring it there" in said, said
    assert not list((tmp_path / "replays").glob("episode_*"))


def test_who_drives_needs_what_it_drives_with(tmp_path) -> None:
    for settings, missing in (
        ({}, "bundles"),
        ({"drive": "demonstrate"}, "takeover"),
        ({"drive": "replay"}, "episode"),
        ({"drive": "replay", "episode": tmp_path, "learner": True, "rounds": 1}, "learner"),
    ):
        with pytest.raises(ConfigError, match=missing):
            DeployConfig(**settings)
    for settings in ({"takeover": True}, {"drive": "replay", "episode": tmp_path}):
        with pytest.raises(ConfigError, match="in one process"):
            deploy(tmp_path, bundles=standin_bundles(), ros=False, **settings)
