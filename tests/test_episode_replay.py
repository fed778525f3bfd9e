"""`data replay` says what a filter would have made of a recorded episode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from safe_o2o.cli import main
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import Episode, EpisodeMeta
from safe_o2o.data.recorder import DirectRecorder
from safe_o2o.errors import DataError
from safe_o2o.runtime.episode_replay import replay_episode
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.types import Array, Transition, Verdict
from tests.invariance import BOX

POSE = {"tcp_pose": ArraySpec((5,), "float32", "m", ("x", "y", "z", "sin_yaw", "cos_yaw"))}
ACTION = ActionSpec(("dx", "dy", "dz"), "m", (-0.02,) * 3, (0.02,) * 3, 0.2)


def record(folder: Path, proposed: Array, arrays: dict[str, ArraySpec] = POSE) -> Episode:
    """An episode of a tool that did what was proposed, from the middle of the box."""
    dataset = Dataset.create(folder, Spec(ObservationSpec(arrays), ACTION), task="safe_reach")
    recorder = DirectRecorder(dataset)
    recorder.start(EpisodeMeta("safe_reach"))
    tool = np.array([0.5, 0.0, 0.15])
    for step, action in enumerate(proposed):
        obs = {name: np.float32([*tool, 0.0, 1.0]) for name in arrays}
        tool = tool + 0.02 * np.nan_to_num(action)
        recorder.append(
            Transition(obs, np.nan_to_num(action), action, 0.0, 0.0, False, False, stamp=0.2 * step)
        )
    final = {name: np.float32([*tool, 0.0, 1.0]) for name in arrays}
    return Episode(recorder.commit(final, 0.2 * len(proposed)))


def guard(**settings: float) -> SafetyFilter:
    return SafetyFilter.for_robot("panda", workspace=BOX, **settings)


def test_what_is_within_all_limits_passes(tmp_path: Path) -> None:
    way = np.float32([[0.0, 0.4, 0.0]] * 10 + [[0.0, -0.4, 0.2]] * 10)
    report = replay_episode(record(tmp_path / "d", way), guard())
    assert report.steps == 20 and report.ticks["PASS"] == 400 and report.changed == []


def test_it_names_the_limit_and_the_step(tmp_path: Path) -> None:
    way = np.float32([[0.0, 0.4, 0.0]] * 20)
    way[7] = np.nan
    episode = record(tmp_path / "d", way)
    report = replay_episode(episode, guard())
    assert (report.changed[0].step, report.changed[0].verdict) == (7, Verdict.STOPPED)
    assert report.changed[0].reason == "proposal_not_finite"
    assert report.reasons["proposal_not_finite"] == 20
    slow = replay_episode(episode, guard(tool_speed=0.02))
    assert slow.reasons["tool_speed"] > 200 and slow.ticks["PASS"] < 100


def test_it_stays_with_the_recorded_tool_after_a_correction(tmp_path: Path) -> None:
    """Down through the floor of the workspace, then up: the way up is not bent by what was cut."""
    way = np.float32([[0.0, 0.0, -0.9]] * 12 + [[0.0, 0.5, 0.9]] * 12 + [[0.0, 0.5, 0.0]] * 4)
    report = replay_episode(record(tmp_path / "d", way), guard())
    steps = [entry.step for entry in report.changed]
    assert steps and min(steps) >= 7 and max(steps) <= 20
    assert "workspace" in report.reasons


def test_the_command_line_prints_a_table_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episode = record(tmp_path / "d", np.float32([[0.0, 0.4, 0.0]] * 6))
    assert main.main(["data", "replay", str(episode.path)]) == 0
    assert "passed 100 %" in capsys.readouterr().out
    assert main.main(["data", "replay", str(tmp_path / "d"), "--limits", "fr3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[str(episode.path)]
    assert found["ticks"] == {"passed": 120, "slowed": 0, "stopped": 0}
    assert main.main(["data", "replay", str(tmp_path / "d"), "--tool-speed", "0.02"]) == 0
    assert "tool_speed" in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episode = record(tmp_path / "d", np.float32([[0.0, 0.4, 0.0]] * 3))
    for words, line in (
        (["--limits", "pandas"], "panda"),
        (["--tool-speed", "-1"], "tool speed"),
        (["--workspace-low", "1", "1", "1"], "workspace"),
    ):
        assert main.main(["data", "replay", str(episode.path), *words]) == 2
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1
    odd = record(tmp_path / "odd", np.float32([[0.0] * 3]), {"pose": POSE["tcp_pose"]})
    with pytest.raises(DataError, match="tool poses"):
        replay_episode(odd, guard())
