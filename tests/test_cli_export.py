"""`safe-o2o export`: from a checkpoint to a live bundle that acts as the checkpoint does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safe_o2o import bundle, catalog, config
from safe_o2o.cli import actors, main
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.statistics import Statistics
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.training import checkpoint
from safe_o2o.training.restore import load_algorithm
from tests.data_fakes import make_dataset


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset and an untrained checkpoint for it."""
    folder = tmp_path_factory.mktemp("run")
    dataset = make_dataset(folder / "dataset", [80, 80, 80], size=64)
    cls = catalog.load("algorithm", "fosp")
    settings = replace(cls.preset("tiny"), seed=3)
    algorithm = cls(settings, dataset.spec, Statistics.compute(dataset).to_json())
    algorithm.step = 7
    meta = checkpoint.Meta("fosp", config.to_json(settings), dataset.spec.to_json())
    state = {"algorithm": algorithm.state_dict()}
    checkpoint.save(folder / "checkpoints", state, meta, step=7)
    return folder


def export(run: Path, out: Path, *more: str) -> int:
    words = ["export", str(run / "checkpoints"), "--data", str(run / "dataset"), "--out", str(out)]
    return main.main([*words, *more])


def test_a_checkpoint_comes_back_as_it_was_saved(run: Path) -> None:
    algorithm = load_algorithm(run / "checkpoints")
    assert algorithm.config.seed == 3  # type: ignore[attr-defined]
    saved = checkpoint.load(run / "checkpoints")["algorithm"]

    def flat(value: Any) -> list[Any]:
        if isinstance(value, dict):
            value = list(value.values())
        if not isinstance(value, list):
            return [value]
        return [leaf for inner in value for leaf in flat(inner)]

    for here, there in zip(flat(algorithm.state_dict()), flat(saved), strict=True):
        same = torch.equal(here, there) if isinstance(here, torch.Tensor) else here == there
        assert same


def test_export_writes_a_live_bundle_that_acts_as_the_checkpoint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundles"
    assert export(run, out) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "parity" in line and line.rstrip().endswith(", live")
    pointer = bundle.current(out)
    assert pointer is not None and pointer.version == "v000001"
    manifest = json.loads((out / "v000001" / "manifest.json").read_text())
    assert manifest["provenance"]["step"] == 7 and manifest["provenance"]["seed"] == 3
    assert manifest["provenance"]["dataset"] == Dataset(run / "dataset").content_hash()

    policy = OnnxPolicy.load(pointer.directory)
    original = load_algorithm(run / "checkpoints").policy
    ours, theirs = policy.initial_carry(1), original.initial_carry(1)
    for t in range(20):
        obs = {name: array[t][None] for name, array in Dataset(run / "dataset")[0].obs.items()}
        action, ours = policy.act(obs, ours)
        wanted, theirs = original.act(obs, theirs, True)
        assert np.abs(action - np.asarray(wanted)).max() <= 1e-5


def test_a_later_export_goes_live_only_when_asked(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundles"
    # Another bundle is live already: a fresh one is no reason to replace it.
    older = out / "v000001"
    older.mkdir(parents=True)
    (older / bundle.MANIFEST).write_text("{}")
    bundle.set_current(out, "v000001")
    assert export(run, out) == 0
    pointer = bundle.current(out)
    assert pointer is not None and pointer.version == "v000001"
    bundle.set_current(out, "v000002")
    label, maker = actors.resolve(str(out))
    assert label == "policy-v000002" and isinstance(maker, actors.BundleMaker)
    label, maker = actors.resolve(str(out / "v000001"), "old")
    assert label == "old" and isinstance(maker, actors.BundleMaker)
    label, maker = actors.resolve(str(run / "checkpoints"))
    assert isinstance(maker, actors.CheckpointMaker)


def test_export_refuses_what_does_not_fit_and_writes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundles"
    other = make_dataset(tmp_path / "other", [60] * 4, size=32)
    short = make_dataset(tmp_path / "short", [10], size=64)
    for folder, words in (
        (other.directory, "disagree about observation.image.shape"),
        (short.directory, "needs 200 recorded steps"),
        (tmp_path / "absent", "no such dataset folder"),
    ):
        argv = ["export", str(run / "checkpoints"), "--data", str(folder), "--out", str(out)]
        assert main.main(argv) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
    argv = ["export", str(tmp_path), "--data", str(run / "dataset"), "--out", str(out)]
    assert main.main(argv) == 2
    assert not out.exists() or not any(out.iterdir())
