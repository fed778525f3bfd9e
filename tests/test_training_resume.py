"""Offline training is a function of data, settings and seed, kills included: same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safe_o2o.algorithms.fosp_presets import preset
from safe_o2o.errors import CheckpointError, DataError
from safe_o2o.training import checkpoint
from safe_o2o.training.offline import OfflineConfig, train_offline
from tests.test_algorithm_contract import require_same_state
from tests.test_finetune import fill

UPDATES, EVERY, KILL_AT = 8, 3, 5
RUN = OfflineConfig(threads=1, checkpoint_every=EVERY, log_every=2)
CONFIG = replace(preset("tiny"), total_updates=UPDATES)

KILLED = f"""
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from safe_o2o.algorithms.fosp_presets import preset
from safe_o2o.training.offline import OfflineConfig, train_offline
def die(step, total, metrics):
    if step == {KILL_AT}:
        os.kill(os.getpid(), signal.SIGKILL)
train_offline("fosp", replace(preset("tiny"), total_updates={UPDATES}), Path(sys.argv[1]),
    Path(sys.argv[2]), OfflineConfig(threads=1, checkpoint_every={EVERY}, log_every=2), die)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data") / "dataset"
    fill(directory, 21, seed=3)
    return directory


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(data: Path, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    threads = torch.get_num_threads()
    try:
        train_offline("fosp", CONFIG, data, whole, RUN)
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        killed = subprocess.run([sys.executable, "-c", KILLED, data, torn], env=env)
        assert killed.returncode == -signal.SIGKILL
        assert checkpoint.read_header(torn).step == EVERY
        report = train_offline("fosp", CONFIG, data, torn, RUN)
    finally:
        torch.set_num_threads(threads)
    assert report.resumed_at == EVERY and report.step == UPDATES
    require_same_state(checkpoint.load(whole), checkpoint.load(torn))
    assert (whole / "metrics.jsonl").read_bytes() == (torn / "metrics.jsonl").read_bytes()


def test_finished_training_is_not_run_again(data: Path, tmp_path: Path) -> None:
    short = replace(CONFIG, total_updates=2)
    first = train_offline("fosp", short, data, tmp_path, RUN)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = train_offline("fosp", short, data, tmp_path, RUN)
    assert again.checkpoint == first.checkpoint and again.resumed_at == 2
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_other_settings_or_no_data_are_refused(data: Path, tmp_path: Path) -> None:
    train_offline("fosp", replace(CONFIG, total_updates=1), data, tmp_path, RUN)
    with pytest.raises(CheckpointError, match="beta"):
        train_offline("fosp", replace(CONFIG, total_updates=1, beta=2.0), data, tmp_path, RUN)
    with pytest.raises(DataError, match="nowhere"):
        train_offline("fosp", CONFIG, tmp_path / "nowhere", tmp_path / "out", RUN)
    assert not (tmp_path / "out").exists()
