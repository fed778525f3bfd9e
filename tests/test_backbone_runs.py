"""A backbone through the verbs: train, resume, export, fine-tune; its weights file is read once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safe_o2o import bundle, catalog
from safe_o2o.cli.main import main
from safe_o2o.errors import CheckpointError
from safe_o2o.training import checkpoint
from safe_o2o.training.finetune import FineTuner, FineTunerConfig
from safe_o2o.training.offline import OfflineConfig, train_offline
from safe_o2o.training.promotion import PromotionConfig
from safe_o2o.training.restore import load_algorithm
from tests.small_backbone import LINE, config, weights, weights_file
from tests.test_algorithm_contract import require_same_state
from tests.test_finetune import fill

RUN = OfflineConfig(threads=1, checkpoint_every=2, log_every=2)
STEM = "world_model.encoder.image.trunk.stem.weight"


@pytest.fixture(autouse=True)
def _line(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(catalog.backbones, "tests", LINE)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data") / "dataset"
    fill(directory, 40, seed=0)
    return directory


class Stopped(Exception):
    pass


@pytest.mark.parametrize("frozen", [True, False])
def test_a_stopped_run_goes_on_bitwise_without_the_file(
    data: Path, tmp_path: Path, frozen: bool
) -> None:
    path = weights_file(tmp_path)
    settings = replace(config(path, frozen=frozen), total_updates=4)

    def stop(step: int, total: int, _: object) -> None:
        if step == 3:
            raise Stopped

    train_offline("fosp", settings, data, tmp_path / "whole", RUN)
    with pytest.raises(Stopped):
        train_offline("fosp", settings, data, tmp_path / "torn", RUN, stop)
    path.unlink()
    report = train_offline("fosp", settings, data, tmp_path / "torn", RUN)
    assert report.resumed_at == 2
    whole, torn = checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / "torn")
    require_same_state(whole, torn)
    assert torch.equal(whole["algorithm"]["net"][STEM], weights()["stem.weight"]) == frozen
    meta = checkpoint.read_header(tmp_path / "torn").meta
    assert meta.config["world_model"]["backbone"]["weights"] == str(path)
    with pytest.raises(CheckpointError, match=f"{path}: no such weights file"):
        train_offline("fosp", settings, data, tmp_path / "fresh", RUN)
    assert checkpoint.latest(tmp_path / "fresh") is None


@pytest.mark.slow
def test_the_verbs_train_export_and_finetune(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path
    Path(run / "dataset").symlink_to(data)
    path, out = weights_file(tmp_path), str(run / "checkpoints")
    words = ["train", "fosp", "--data", str(data), "--out", out, "--preset", "tiny"]
    words += ["--run.threads", "1", "--algo.total-updates", "3", "--algo.seed", "1"]
    words += ["--algo.finetune.warmup", "0"]
    eye = "--algo.world-model.backbone"
    words += ["--algo.world-model.encoder", "backbone", f"{eye}.model", "tests:w8"]
    assert main([*words, f"{eye}.weights", f"{path}.pth"]) == 2
    assert capsys.readouterr().err.endswith(f"{path}.pth: no such weights file; check the path\n")
    assert main([*words, f"{eye}.weights", str(path), f"{eye}.size", "64"]) == 0
    path.unlink()
    exported = ["export", out, "--data", str(data), "--out", str(run / "bundles")]
    assert main(exported) == 0
    assert "parity" in capsys.readouterr().out

    fill(run / "online", 10, seed=1)
    # Untrained critics disagree about random pictures; the bounds are not what is tested here.
    wide = PromotionConfig(
        min_steps=10, max_disagreement=2.0, max_risk_increase=1.0, max_cost_increase=1e3,
        latency_share=1.0,
    )  # fmt: skip
    settings = FineTunerConfig(updates_per_round=2, threads=1, promotion=wide)
    learner = FineTuner(run, settings)
    made = learner.round(0)
    assert made == run / "bundles" / "v000002", made
    pointer = bundle.current(run / "bundles")
    assert pointer is not None and pointer.version == "v000002"
    again = load_algorithm(run / "finetune")  # what a learner goes on from
    require_same_state(again.state_dict(), learner.algorithm.state_dict())
    base = again.base.world_model.encoder.image
    assert torch.equal(base.trunk.stem.weight, weights()["stem.weight"])


def test_a_flag_without_its_encoder_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "fosp", "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*words, "--algo.world-model.backbone.weights", "w.safetensors"]) == 2
    said = capsys.readouterr().err
    assert "means nothing to encoder keypoint" in said and said.count("\n") == 1
