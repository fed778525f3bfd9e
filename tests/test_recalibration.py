"""A new bundle of a fine-tuned policy: its gate gets thresholds of its own, or it stays at home."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from safe_o2o import bundle
from safe_o2o.algorithms.fosp_presets import preset
from safe_o2o.algorithms.reachability import PRESETS
from safe_o2o.cli import main
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import NO_GATE, Episode
from safe_o2o.errors import BundleError, CheckpointError
from safe_o2o.runtime.gate_calibration import CalibrationConfig, calibrate, trace
from safe_o2o.runtime.gated_policy import GatedPolicy, load_policy
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.safety.gate_file import GATE, GateFile, read_gate, write_gate
from safe_o2o.training.finetune import FineTuner
from safe_o2o.training.offline import OfflineConfig, train_offline
from safe_o2o.training.recalibration import newest_safe, recalibrate, tracked_alpha
from safe_o2o.training.restore import load_algorithm
from safe_o2o.types import GateState
from tests.test_finetune import WIDE, fill


def read(directory: Path) -> GateFile:
    found = read_gate(directory, bundle.read_manifest(directory))
    assert found is not None
    return found


class Acted:
    """An episode as if a gate had been at work in it and had let everything pass."""

    def __init__(self, episode: Episode) -> None:
        self._episode = episode
        self.meta = replace(episode.meta, provenance={"gate": "on"})
        self.gate = np.full(len(episode), GateState.PASS, np.uint8)

    def __len__(self) -> int:
        return len(self._episode)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._episode, name)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose live bundle has a calibrated gate."""
    run = tmp_path_factory.mktemp("run")
    fill(run / "dataset", 40, seed=0)
    config, settings = replace(preset("tiny"), total_updates=3, seed=1), OfflineConfig(threads=1)
    train_offline("fosp", config, run / "dataset", run / "checkpoints", settings)
    words = f"encode {run}/checkpoints --data {run}/dataset --out {run}/states --what state"
    assert main.main(words.split()) == 0
    heads = replace(PRESETS["tiny"], total_updates=3)
    train_offline("reachability", heads, run / "states", run / "gate", settings)
    words = f"export {run}/checkpoints --data {run}/dataset --gate {run}/gate --out {run}/bundles"
    assert main.main(words.split()) == 0
    shadow = fill(run / "calibration", 130, seed=3, length=4, costly=0.0)
    live = run / "bundles" / "v000001"
    policy = OnnxPolicy.load(live)
    traces = [trace(policy, episode) for episode in shadow]
    made = calibrate(
        policy.manifest.graph_sha256, traces, CalibrationConfig(alpha=0.1, slow=0.7)
    ).gate
    write_gate(live, policy.manifest, replace(made, thresholds=replace(made.thresholds, speed=1.0)))
    fill(run / "online", 10, seed=1)
    return run


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def test_each_promoted_bundle_has_thresholds_of_its_own_and_takes_no_others(run: Path) -> None:
    old = run / "bundles" / "v000001"
    tuner, before = FineTuner(run, WIDE), read(old)
    for number in range(2):
        made = tuner.round(number)
        assert isinstance(made, Path), made
        after = read(made)
        assert after.graph_sha256 != before.graph_sha256
        for name in ("risk_on", "risk_off", "disagreement", "surprise"):
            assert getattr(after.thresholds, name) <= getattr(before.thresholds, name)
        assert after.thresholds.speed == 0.7 and not after.calibrated
        assert after.calibration["provisional"] and after.calibration["n"] >= 130
        pointer = bundle.current(run / "bundles")
        assert pointer is not None and pointer.directory == made
        before = after
    policy = load_policy(made)
    assert isinstance(policy, GatedPolicy)
    obs = {name: array[:1] for name, array in Dataset(run / "online")[0].obs.items()}
    action, _ = policy.act(obs, policy.initial_carry())
    assert np.abs(action).max() <= 0.7 + 1e-6
    heads: Any = load_algorithm(run / "gate")
    assert tuner.gate is not None and tuner.gate.encoder == heads.encoder
    shutil.copyfile(old / GATE, made / GATE)
    with pytest.raises(BundleError, match="calibrated with another graph"):
        load_policy(made)


def test_without_enough_safe_episodes_the_bundle_does_not_go_live(run: Path) -> None:
    for episode in list(Dataset(run / "calibration"))[:100]:
        episode.path.unlink()
    said = FineTuner(run, WIDE).round(0)
    assert isinstance(said, str) and "gate: " in said and "needs 100" in said
    pointer = bundle.current(run / "bundles")
    assert pointer is not None and pointer.directory.name == "v000001"
    assert json.loads((run / "finetune" / "round_000.json").read_text())["refusal"] == said


def test_heads_that_are_gone_are_told_before_anything_is_trained(run: Path) -> None:
    shutil.rmtree(run / "gate")
    with pytest.raises(CheckpointError, match="no heads for the gate"):
        FineTuner(run, WIDE)


def test_rare_alarms_ask_for_lower_thresholds_and_frequent_ones_for_none(run: Path) -> None:
    def acted(state: GateState | None, how: str = "on") -> Any:
        column = np.full(4, NO_GATE if state is None else state, np.uint8)
        meta = SimpleNamespace(provenance={"gate": how})
        return SimpleNamespace(violation=False, gate=column, meta=meta)

    calm, alarmed = acted(GateState.PASS), acted(GateState.SHAPE)
    assert tracked_alpha([calm] * 20, 0.05) == pytest.approx(0.05 + 20 * 0.05 * 0.05)
    assert tracked_alpha([alarmed] * 20, 0.05) == 0.05
    assert tracked_alpha([acted(None, "off")] * 20, 0.05) == 0.05  # no gate acted
    before = read(run / "bundles" / "v000001")
    episodes = list(Dataset(run / "calibration"))
    plain = recalibrate(run / "bundles" / "v000001", before, episodes)
    calmly: Any = [*episodes[:-40], *(Acted(episode) for episode in episodes[-40:])]
    lower = recalibrate(run / "bundles" / "v000001", before, calmly)
    assert lower.calibration["k"] < plain.calibration["k"] == 118
    assert lower.calibration["alpha"] == pytest.approx(0.1 * 0.5 / 0.4)
    # Half of the safe episodes is the most that may be touched: 0.4 at an alpha of 0.1.
    assert lower.calibration["asked"]["alpha"] == plain.calibration["alpha"] == 0.1


def test_the_newest_safe_episodes_count(run: Path, tmp_path: Path) -> None:
    data = fill(tmp_path / "many", 210, seed=5, length=3, costly=0.0)
    kept = newest_safe(list(data))
    assert [episode.meta.seed for episode in kept] == list(range(10, 210))
    assert not newest_safe(list(fill(tmp_path / "costly", 5, seed=6, costly=1.0)))
