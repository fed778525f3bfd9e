"""Fine-tuning of learners on transitions: on latents of a world model, and on plain vectors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from safe_o2o import bundle, catalog
from safe_o2o.cli import main as cli
from safe_o2o.data.dataset import Dataset
from safe_o2o.errors import CheckpointError
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.training import checkpoint
from safe_o2o.training.finetune import FineTuner, FineTunerConfig
from safe_o2o.training.latents import LatentDataset
from safe_o2o.training.offline import OfflineConfig, train_offline
from tests.test_finetune import TINY, fill

QUICK = FineTunerConfig(updates_per_round=3, threads=1, always=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world model, and what it makes of a dataset with pictures."""
    run = tmp_path_factory.mktemp("run")
    fill(run / "dataset", 40, seed=0)
    train_offline("fosp", TINY, run / "dataset", run / "model", OfflineConfig(threads=1))
    words = ["encode", run / "model", "--data", run / "dataset", "--out", run / "latents"]
    assert cli.main([str(word) for word in words]) == 0
    return run


@pytest.mark.parametrize("name", ["iql", "consistency_ac", "cfpi"])
def test_a_round_on_latents(pictures: Path, tmp_path: Path, name: str) -> None:
    """As a user does it: train on latents, export with the encoder, fine-tune the run."""
    run = tmp_path / "run"
    run.mkdir()
    for part in ("dataset", "latents"):
        (run / part).symlink_to(pictures / part, target_is_directory=True)
    cls = catalog.load("algorithm", name)
    config = replace(cls.preset("tiny"), total_updates=4)
    train_offline(name, config, run / "latents", run / "checkpoints", OfflineConfig(threads=1))
    words = ["export", run / "checkpoints", "--data", run / "latents", "--observations"]
    words += [run / "dataset", "--out", run / "bundles"]
    assert cli.main([str(word) for word in words]) == 0
    fill(run / "online", 10, seed=1)
    tuner = FineTuner(run, QUICK)
    tuner.round(0)
    assert len(LatentDataset(run / "online_latents")) == 10
    report = json.loads((run / "finetune" / "round_000.json").read_bytes())
    assert report["updates"] == 3 and report["bundle"] == "v000002", report["refusal"]
    policy = OnnxPolicy.load(run / "bundles" / "v000002", Dataset(run / "dataset").spec)
    obs = {key: array[:1] for key, array in next(iter(Dataset(run / "online"))).obs.items()}
    action, _ = policy.act(obs, policy.initial_carry())
    assert action.shape == (1, 3) and np.isfinite(action).all()
    assert "risk" in policy.last_outputs  # what a promotion compares
    fill(run / "online", 14, seed=2)  # more of them, and another process
    again = FineTuner(run, QUICK)
    assert again.algorithm.online_step == 3 and again.rounds == 1
    again.round(1)
    assert len(LatentDataset(run / "online_latents")) == len(Dataset(run / "online"))
    assert again.algorithm.online_step == 6
    live = bundle.current(run / "bundles")
    assert live is not None and checkpoint.latest(run / "finetune") is not None


def test_what_cannot_be_tuned_says_so(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    states = pictures / "states"
    words = ["encode", pictures / "model", "--data", pictures / "dataset", "--out", states]
    assert cli.main([str(word) for word in [*words, "--what", "state"]]) == 0
    heads = replace(catalog.load("algorithm", "reachability").preset("tiny"), total_updates=2)
    train_offline("reachability", heads, states, run / "checkpoints", OfflineConfig(threads=1))
    (run / "dataset").symlink_to(pictures / "dataset", target_is_directory=True)
    with pytest.raises(CheckpointError, match="cannot be fine-tuned"):
        FineTuner(run, QUICK)
