"""The rollout on the real twin: any number of workers records the same bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="needs the simulator (pip install pybullet)")

from safe_o2o.cli.actors import MIXTURE, BehaviorMaker, SceneMaker
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.doctor import diagnose
from safe_o2o.data.replay import SequenceReplay
from safe_o2o.runtime.rollout import run_episodes


def test_the_twin_records_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    scene, seeds = SceneMaker("safe_reach", "standard"), [7, 8, 9]
    results, hashes = [], []
    for workers in (0, 2):
        dataset = Dataset.create(tmp_path / str(workers), scene.spec(), task="safe_reach")
        results.append(
            run_episodes(scene, BehaviorMaker(MIXTURE), seeds, workers=workers, dataset=dataset)
        )
        assert diagnose(dataset.directory) == []
        hashes.append(dataset.content_hash())
    assert results[0] == results[1] and hashes[0] == hashes[1]
    assert [summary.behavior for summary in results[0]] == list(MIXTURE)
    for episode, summary in zip(Dataset(tmp_path / "0"), results[0], strict=True):
        assert len(episode) == summary.length <= 80
        gaps = np.diff(episode.array("stamp"))
        np.testing.assert_allclose(gaps, 0.2, atol=1e-6)
        assert episode.obs["image"].std() > 5  # a picture, not a blank
    batch = SequenceReplay(Dataset(tmp_path / "2"), 8, 4, seed=0).sample()
    assert batch.obs["image"].shape == (4, 8, 64, 64, 3)


def test_scripts_do_the_same_where_nobody_renders_pictures() -> None:
    seen, blind = (
        run_episodes(
            SceneMaker("safe_reach", "standard", camera), BehaviorMaker(MIXTURE), [3, 4, 5],
            workers=0,
        )
        for camera in (True, False)
    )  # fmt: skip
    assert seen == blind


@pytest.mark.parametrize("task", ["safe_reach", "safe_reach_2", "safety_point_goal1"])
def test_what_workers_share_starts_no_thread(task: str) -> None:
    """They are forked from a process that imported it: a thread's locks would come along."""
    if task.startswith("safety_"):
        pytest.importorskip("mujoco")
    names = ", ".join(SceneMaker(task, "standard").imports)
    code = f"import {names}, pathlib; print(pathlib.Path('/proc/self/status').read_text())"
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    status = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    ).stdout
    assert re.search(r"^Threads:\s+1$", status, re.MULTILINE)
