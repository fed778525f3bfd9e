"""Without ROS the same files come out; rounds resume; bad bundles never act."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

for needed in ("pybullet", "torch", "onnxruntime"):
    pytest.importorskip(needed)

from safe_o2o import bundle, catalog  # noqa: E402
from safe_o2o.data.dataset import Dataset  # noqa: E402
from safe_o2o.errors import (  # noqa: E402
    BundleError,
    ConfigError,
    DataError,
    MissingDependencyError,
    UnknownNameError,
)
from safe_o2o.runtime import deployment  # noqa: E402
from safe_o2o.runtime.deployment import DeployConfig, deploy, read_episode_lines  # noqa: E402
from safe_o2o.runtime.latency import StageLatency, read_summaries  # noqa: E402
from safe_o2o.runtime.live_policy import LivePolicy  # noqa: E402
from safe_o2o.runtime.rounds import RoundRunner, read_rounds  # noqa: E402
from tests.standin_policy import standin_bundles  # noqa: E402


class CopyingTuner:
    """Makes each round's bundle a copy of the first; refuses in round 1. Notes what it is asked."""

    asked: list[int] = []  # noqa: RUF012 - one list for all instances is the point

    def __init__(self, run_dir: Path, config: object) -> None:
        self.bundles = Path(run_dir) / "bundles"

    def round(self, index: int) -> Path | str:
        self.asked.append(index)
        if index == 1:
            return "held-out cost rose"
        path = bundle.next_version(self.bundles)
        shutil.copytree(self.bundles / "v000001", path)
        bundle.set_current(self.bundles, path.name)
        return path


TUNER = "tests.test_deployment:CopyingTuner"


@pytest.fixture
def run(tmp_path) -> Path:
    CopyingTuner.asked.clear()
    shutil.copytree(standin_bundles(), tmp_path / "bundles")
    return tmp_path


def test_one_process_records_learns_swaps_and_resumes(run) -> None:
    seen: list[tuple[int, int]] = []
    settings = dict(
        bundles=run / "bundles", episodes_per_round=1, learner=True, fine_tuner=TUNER, ros=False
    )
    first = deploy(run, rounds=2, seed=7, progress=lambda *a: seen.append(a), **settings)
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert first.bundles == ("v000001", "v000002") and CopyingTuner.asked == [0, 1]
    assert [result.refusal for result in first.rounds] == ["", "held-out cost rose"]
    again = deploy(run, rounds=3, seed=7, **settings)
    assert again.bundles == ("v000001", "v000002", "v000002") and CopyingTuner.asked == [0, 1, 2]
    assert [episode.seed for episode in again.episodes] == [7, 8, 9]
    assert all(episode.success for episode in again.episodes)
    assert [e.meta.provenance["round"] for e in Dataset(run / "online")] == [0, 1, 2]
    assert len(read_episode_lines(run)) == 3
    table = json.loads((run / "deploy" / "latency.json").read_bytes())
    assert {"inference", "ik", "filter", "camera_render"} <= set(table)
    done = deploy(run, rounds=3, seed=7, **settings)
    assert len(done.episodes) == 3 and CopyingTuner.asked == [0, 1, 2]


def test_another_task_is_deployed_by_name_and_an_unknown_one_refused(run) -> None:
    settings = dict(bundles=run / "bundles", episodes=1, seed=7, ros=False)
    with pytest.raises(UnknownNameError, match="did you mean 'safe_reach_2'"):
        deploy(run, task="safe_reach2", **settings)
    deploy(run, task="safe_reach_2", variant="number", **settings)
    (episode,) = Dataset(run / "online")
    assert (episode.meta.task, episode.meta.variant) == ("safe_reach_2", "number")
    assert len(episode) <= 60


def test_the_task_is_the_named_one_or_that_of_the_offline_data(run) -> None:
    from safe_o2o.cli.deploy import task_of

    assert task_of(run, None) == "safe_reach"
    spec = catalog.load("task", "safe_reach_2").config_class().spec()
    Dataset.create(run / "dataset", spec, task="safe_reach_2")
    assert task_of(run, None) == "safe_reach_2"
    assert task_of(run, "safe_reach") == "safe_reach"


def test_where_ros_is_missing_one_line_says_so_and_insisting_is_refused(run, monkeypatch) -> None:
    monkeypatch.setattr(deployment, "ros_missing", lambda: "rclpy is not installed here")
    report = deploy(run, bundles=run / "bundles", episodes=1)
    assert not report.ros and report.cause == "rclpy is not installed here"
    with pytest.raises(MissingDependencyError, match="rclpy is not installed here"):
        deploy(run, bundles=run / "bundles", episodes=2, ros=True)


def test_a_task_without_a_robot_runs_in_one_process(run, monkeypatch) -> None:
    monkeypatch.setattr(deployment, "ros_missing", lambda: "")
    assert "no robot" in deployment._without_robot("pendulum")
    assert deployment._without_robot("safe_reach") == ""
    with pytest.raises(ConfigError, match="pendulum has no robot"):
        deploy(run, bundles=run / "bundles", task="pendulum", ros=True)


@pytest.mark.parametrize(
    ("name", "value"), [("speed", 0.0), ("episodes", -1), ("speed", float("nan"))]
)
def test_settings_out_of_range_are_refused_by_name(name, value) -> None:
    with pytest.raises(ConfigError, match=name):
        DeployConfig(bundles=Path("b"), **{name: value})


def test_a_bad_bundle_is_refused_and_the_last_good_one_goes_on(run) -> None:
    bundles = run / "bundles"
    live = LivePolicy(bundles)
    assert live.version == "v000001" and not live.swap()
    shutil.copytree(bundles / "v000001", bundles / "v000002")
    assert not live.swap(), "a version that was not promoted must not act"
    bundle.set_current(bundles, "v000002")
    (bundles / "v000002" / "policy.onnx").write_bytes(b"damaged")
    assert not live.swap() and live.version == "v000001"
    assert "v000002" in live.refused
    shutil.copytree(bundles / "v000001", bundles / "v000003")
    bundle.set_current(bundles, "v000003")
    assert live.swap() and live.version == "v000003"
    (bundles / "current.json").write_text("{")
    assert not live.swap() and live.version == "v000003"


def test_without_a_promoted_bundle_nothing_starts(tmp_path) -> None:
    with pytest.raises(BundleError, match="no promoted policy bundle"):
        LivePolicy(tmp_path)


def test_a_round_is_due_when_its_episodes_are_there_and_damage_is_named(tmp_path) -> None:
    (tmp_path / "online").mkdir()
    runner = RoundRunner(tmp_path, episodes_per_round=2, rounds=1, fine_tuner=TUNER)
    assert runner.due() is None
    for index in range(2):
        (tmp_path / "online" / f"episode_{index:06d}.safetensors").touch()
    assert runner.due() == 0
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "rounds.json").write_text('{"rounds": [{"index": 0}]}')
    with pytest.raises(DataError, match=r"rounds\.json"):
        read_rounds(tmp_path)


def test_latency_percentiles_are_those_of_the_samples(tmp_path) -> None:
    latency = StageLatency()
    assert not latency
    for milliseconds in range(1, 101):
        latency.add("a", milliseconds * 1e-3)
    latency.write(tmp_path / "one.json")
    # linear interpolation between order statistics: 1 + 0.5 * 99 and 1 + 0.99 * 99
    assert read_summaries(tmp_path) == {
        "a": {"n": 100, "p50_ms": 50.5, "p99_ms": 99.01, "max_ms": 100.0}
    }
    assert latency.flat() == {"a p50/p99 ms": "50.500/99.010"}
