"""Bad input, end to end: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from safe_o2o import bundle, config
from safe_o2o.algorithms.fosp_presets import preset
from safe_o2o.cli import main
from safe_o2o.data.dataset import Dataset
from safe_o2o.errors import SafeO2OError
from safe_o2o.export.algorithm import export_algorithm
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.training import checkpoint, offline
from tests.synthetic import SPEC
from tests.test_finetune import fill


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    fill(tmp_path / "dataset", 21, seed=5)
    return tmp_path / "dataset"


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a verb that must refuse; its one line."""
    capsys.readouterr()
    assert main.main(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("safe-o2o: error: ")
    return lines[0]


def train(data: Path, out: Path, *more: str) -> list[str]:
    words = ["train", "fosp", "--data", str(data), "--out", str(out), "--preset", "tiny"]
    return [*words, "--algo.total-updates", "2", *more]


def test_unknown_algorithm_names_the_near_miss(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'fosp'?" in refused(["train", "fosq", "--data", "x"], capsys)


def test_missing_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(train(tmp_path / "nowhere", tmp_path / "out"), capsys)
    assert "nowhere" in line
    assert not (tmp_path / "out").exists()


def test_truncated_episode(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = data / "episode_000003.safetensors"
    victim.write_bytes(victim.read_bytes()[:-100])
    line = refused(train(data, tmp_path / "out"), capsys)
    assert victim.name in line and "doctor" in line
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_out_of_range_setting(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(train(data, tmp_path / "out", "--algo.expectile-cost", "1.5"), capsys)
    assert "expectile_cost" in line or "expectile-cost" in line


def test_bundle_whose_manifest_disagrees_with_its_graph(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    algorithm = offline.build("fosp", preset("tiny"), Dataset(data))
    report = export_algorithm(algorithm, "fosp", tmp_path / "bundles", Dataset(data))
    graph = report.directory / bundle.GRAPH
    graph.write_bytes(graph.read_bytes() + b"\0")
    words = ["evaluate", str(report.directory), "--out", str(tmp_path), "--episodes", "1"]
    line = refused([*words, "--workers", "0"], capsys)
    assert "policy.onnx" in line and "manifest" in line
    assert not (tmp_path / "eval").exists()


def test_checkpoint_of_another_spec(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(SPEC, action=replace(SPEC.action, high=(0.05, 0.05, 0.05)))
    algorithm = offline.build("fosp", preset("tiny"), Dataset(data))
    meta = checkpoint.Meta("fosp", config.to_json(preset("tiny")), other.to_json())
    checkpoint.save(tmp_path / "ck", {"algorithm": algorithm.state_dict()}, meta, step=0)
    out = tmp_path / "bundles"
    words = ["export", str(tmp_path / "ck"), "--data", str(data), "--out", str(out)]
    line = refused(words, capsys)
    assert "action.high" in line
    assert not out.exists()


@pytest.mark.parametrize("velocity", [-1.0, 0.0, float("nan")])
def test_limits_that_are_not_positive(velocity: float) -> None:
    with pytest.raises(SafeO2OError) as caught:
        replace(RobotLimits.load("panda"), velocity=[velocity] * 7)
    assert caught.value.exit_code == 2
    assert "velocity" in str(caught.value) and "\n" not in str(caught.value)


def test_full_disk(data: Path, tmp_path: Path) -> None:
    """The first checkpoint does not fit; the log that did is whole, and no torn file is left."""
    out = tmp_path / "out"

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-m", "safe_o2o.cli.main", *train(data, out)],
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert str(out) in lines[0]
    assert [path.name for path in out.iterdir()] == ["metrics.jsonl"]
