"""The real graph: separate processes over DDS, episodes on disk, learner and faults.

A stand-in policy that looks for the goal in the picture solves the task only if every decision's
picture, pose and command belong to the same instant of the same scene.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

for needed, how in (
    ("rclpy", "pip install 'safe_o2o[ros]'"),
    ("safe_o2o_ros", "pip install ./ros2_ws/src/safe_o2o_ros"),
    ("pybullet", "pip install 'safe_o2o[sim]'"),
    ("torch", "pip install 'safe_o2o[learn]'"),
):
    pytest.importorskip(needed, reason=f"{needed} is not installed ({how})")

from safe_o2o.data.dataset import Dataset  # noqa: E402
from safe_o2o.report.closeup import CloseUp  # noqa: E402
from safe_o2o.runtime.deployment import DeployReport, deploy, read_episode_lines  # noqa: E402
from safe_o2o.runtime.process_group import PARENT_VARIABLE, DeploymentError  # noqa: E402
from tests.standin_policy import standin_bundles  # noqa: E402

pytestmark = pytest.mark.ros
SPEED = 4.0


@pytest.fixture(scope="module")
def bundles() -> Path:
    return standin_bundles()


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    yield
    assert not node_pids(), "a node outlived its deployment"


def node_pids(name: str = "") -> list[int]:
    """Our running node processes, by their environment."""
    mark = f"{PARENT_VARIABLE}={os.getpid()}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = mark in (folder / "environ").read_bytes().split(b"\0")
            if ours and name.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def run(folder: Path, bundles: Path, **settings) -> DeployReport:
    return deploy(folder, bundles=bundles, speed=SPEED, seed=100, ros=True, **settings)


def once(at: int, action: Callable[[], None]) -> Callable[[int, int], None]:
    """A progress callback that does something when so many episodes are on disk."""
    done = []

    def progress(episodes: int, total: int) -> None:
        if episodes == at and not done:
            done.append(True)
            action()

    return progress


def test_the_graph_does_what_one_process_does_and_goes_on_where_it_stopped(tmp_path, bundles):
    report = run(tmp_path / "ros", bundles, episodes=2)
    assert report.ros and report.cause == "" and report.dropped == 0
    again = run(tmp_path / "ros", bundles, episodes=3)
    assert [episode.seed for episode in again.episodes] == [100, 101, 102]
    assert all(episode.success for episode in again.episodes)
    assert again.bundles == ("v000001",) * 3
    assert 0.0 < again.speed <= 1.05 * SPEED  # how near it comes is the machine's affair
    alone = deploy(tmp_path / "one", bundles=bundles, episodes=3, seed=100, ros=False)
    assert not alone.ros and alone.cause == "asked for one process"
    recorded = Dataset(tmp_path / "ros" / "online")
    for here, there in zip(recorded, Dataset(tmp_path / "one" / "online"), strict=True):
        assert abs(len(here) - len(there)) <= 1
        steps = min(len(here), len(there))
        # The arm settles while it waits for the policy, so a little apart, never a step (20 mm).
        gap = here.array("obs.tcp_pose")[:steps] - there.array("obs.tcp_pose")[:steps]
        assert np.abs(gap).max() < 0.006
        assert np.abs(here.array("action") - here.array("proposed_action"))[:-1].mean() < 0.1
        changed = here.array("obs.image")[0] != there.array("obs.image")[0]
        assert changed.mean() < 0.01  # the same scene, the same start
    stages = {"camera_render", "image_age", "inference", "ik", "filter", "image_to_command"}
    assert stages <= set(again.latency)
    assert all(again.latency[stage]["p50_ms"] > 0 for stage in stages)
    lines = read_episode_lines(tmp_path / "ros")
    assert [line["episode"] for line in lines] == list(recorded.names)
    assert [len(line["outputs"]) for line in lines] == [len(episode) for episode in recorded]
    for line, episode in zip(lines, recorded, strict=True):
        told = [[output[f"told.{i}"] for i in range(3)] for output in line["outputs"]]
        assert told[0] == [0.0, 0.0, 0.0]
        assert np.abs(np.array(told[1:]) - episode.array("action")[:-1]).max() < 1e-5
        assert all("risk" in output for output in line["outputs"])


def test_level_2_over_ros_shows_what_moves_where_the_clock_says(tmp_path, bundles):
    """The twin's clock runs on over the episodes, and the camera lives in another process."""
    report = run(tmp_path / "ros", bundles, episodes=2, task="safe_reach_2")
    assert report.ros and len(report.episodes) >= 2
    began = []
    with CloseUp(64) as closeup:
        for episode in Dataset(tmp_path / "ros" / "online"):
            assert episode.meta.task == "safe_reach_2"
            began.append(episode.meta.provenance["began"])
            # Rendered again from layout, poses and clock alone it looks like what was recorded.
            again = closeup(episode)
            assert again is not None
            off = np.abs(again.astype(int) - episode.array("obs.image")).max(-1) > 48
            assert off.mean() < 0.005
    assert began[0] < began[1] - 1.0


LEARNER = '''
import os, shutil, signal
from pathlib import Path
from safe_o2o import bundle

class FineTuner:
    """Round 0 dies once, then promotes; round 1 promotes a damaged bundle; round 2 always dies."""

    def __init__(self, run_dir, config):
        self.bundles = Path(run_dir) / "bundles"
        assert config == {"note": "from the settings file"}

    def round(self, index):
        note = self.bundles / f"tried_{index}"
        died, _ = note.exists(), note.touch()
        if index == 2 or (index == 0 and not died):
            os.kill(os.getpid(), signal.SIGKILL)
        path = bundle.next_version(self.bundles)
        shutil.copytree(self.bundles / "v000001", path)
        bundle.set_current(self.bundles, path.name)
        if index == 1:
            (path / "policy.onnx").write_bytes(b"no graph")
        return path
'''


def test_bundles_are_swapped_between_episodes_bad_ones_refused_and_a_dead_learner_survived(
    tmp_path, bundles, monkeypatch
):
    (tmp_path / "learners").mkdir()
    (tmp_path / "learners" / "fake_learner.py").write_text(LEARNER)
    (tmp_path / "learner.yaml").write_text("note: from the settings file\n")
    shutil.copytree(bundles, tmp_path / "run" / "bundles")
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'learners'}:{path}")
    report = run(
        tmp_path / "run",
        tmp_path / "run" / "bundles",
        learner=True,
        rounds=3,
        episodes_per_round=1,
        fine_tuner="fake_learner:FineTuner",
        learner_config=tmp_path / "learner.yaml",
        wait_for_learner=60.0,
    )
    assert report.bundles == ("v000001", "v000002", "v000002")
    assert [result.bundle for result in report.rounds] == ["v000002", "v000003"]
    assert all(episode.success for episode in report.episodes)
    assert report.learner_failed and report.learner_restarts == 3  # one of them was worth it
    rounds = [e.meta.provenance["round"] for e in Dataset(tmp_path / "run" / "online")]
    assert rounds == [0, 1, 2]
    log = (tmp_path / "run" / "deploy" / "logs" / "policy_node.log").read_text()
    assert "refused bundle v000003" in log and "learner is silent" in log


def test_a_stalled_policy_looks_like_a_pause_and_a_killed_one_ends_the_run_whole(tmp_path, bundles):
    def stall() -> None:
        time.sleep(0.25)  # into the next episode
        (policy,) = node_pids("safe_o2o_ros.policy_node")
        os.kill(policy, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(policy, signal.SIGCONT)

    stalls = [once(at, stall) for at in (1, 2, 3)]
    report = run(
        tmp_path / "run",
        bundles,
        episodes=5,
        progress=lambda *counts: [each(*counts) for each in stalls],
    )
    assert all(episode.success for episode in report.episodes)
    held = [line["ticks"]["held"] for line in read_episode_lines(tmp_path / "run")]
    # A stall may fall between two episodes, three hardly: a quarter of it, in the twin's ticks.
    assert max(held) - min(held) > 0.25 * SPEED / 0.01, held

    def kill() -> None:
        (policy,) = node_pids("safe_o2o_ros.policy_node")
        os.kill(policy, signal.SIGKILL)

    with pytest.raises(DeploymentError, match="policy_node ended with code -9"):
        run(tmp_path / "run", bundles, episodes=11, progress=once(6, kill))
    committed = Dataset(tmp_path / "run" / "online")
    for episode in committed:
        episode.verify()
    assert 6 <= len(committed) < 11
    assert [episode.meta.seed for episode in committed] == list(range(100, 100 + len(committed)))


def test_a_missing_bundle_is_one_clear_line_and_nothing_is_recorded(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DeploymentError, match="holds no promoted policy bundle"):
        run(tmp_path / "run", tmp_path / "none", episodes=1)
    assert not list((tmp_path / "run" / "online").glob("episode_*"))
