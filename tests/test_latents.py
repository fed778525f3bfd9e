"""A dataset's latents are what the deployed model thinks, and the pair acts as its two halves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from safe_o2o import bundle, catalog, config
from safe_o2o.cli import main
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.replay import SequenceReplay
from safe_o2o.data.statistics import Statistics
from safe_o2o.errors import CheckpointError, DataError, SpecMismatchError
from safe_o2o.runtime.actors import with_executed
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.training import checkpoint
from safe_o2o.training.latents import LatentDataset, encode, tracker
from safe_o2o.training.restore import load_algorithm
from safe_o2o.types import Transition
from tests.data_fakes import make_dataset, make_transitions

LENGTHS = [90, 40, 100]


def save(folder: Path, data: Dataset, name: str, preset: str, updates: int = 0) -> Path:
    """A checkpoint of an algorithm after a few updates on a dataset."""
    cls = catalog.load("algorithm", name)
    settings = replace(cls.preset(preset), seed=3, batch_size=4)
    algorithm = cls(settings, data.spec, Statistics.compute(data).to_json())
    replay = SequenceReplay(data, 6, 4, seed=0)
    for _ in range(updates):
        algorithm.update(replay.sample())
    meta = checkpoint.Meta(name, config.to_json(settings), data.spec.to_json())
    checkpoint.save(folder, {"algorithm": algorithm.state_dict()}, meta, step=algorithm.step)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Observations, a world model for them, and its latents."""
    folder = tmp_path_factory.mktemp("run")
    raw = make_dataset(folder / "raw", LENGTHS, size=64)
    save(folder / "model", raw, "fosp", "tiny", updates=2)
    encode(raw, folder / "model", folder / "latents")
    return folder


def test_latents_are_what_the_deployed_policy_carries(run: Path) -> None:
    """Step by step through the policy itself, told what was executed."""
    policy = load_algorithm(run / "model").policy
    module = policy.export_module()  # type: ignore[attr-defined]
    raw, latents = Dataset(run / "raw"), LatentDataset(run / "latents")
    for episode, encoded in zip(raw, latents, strict=True):
        carry = policy.initial_carry(1)
        made = encoded.array("obs.latent")
        for t in range(len(episode) + 1):
            obs = {name: array[t][None] for name, array in episode.obs.items()}
            _, carry = policy.act(obs, carry)
            image = torch.from_numpy(np.array(obs["image"]))[:, None] / 255.0 - 0.5
            vector = torch.from_numpy(np.array(obs["pose"]))
            embed = module.net.world_model.encode(image[:, 0].movedim(-1, 1), vector)
            expected = torch.cat([carry["stoch"], embed], -1)[0].detach().numpy()
            np.testing.assert_allclose(made[t], expected, atol=1e-4)
            if t < len(episode):
                carry = with_executed(carry, episode.array("action")[t])


def test_everything_else_stays_as_it_was(run: Path) -> None:
    for episode, encoded in zip(Dataset(run / "raw"), LatentDataset(run / "latents"), strict=True):
        for name in ("action", "proposed_action", "reward", "cost", "terminated", "verdict"):
            np.testing.assert_array_equal(episode.array(name), encoded.array(name))
        assert (episode.reasons, episode.success) == (encoded.reasons, encoded.success)
        assert encoded.meta.provenance["observations"] == episode.content_hash


def test_the_model_starts_anew_after_a_gap(run: Path, tmp_path: Path) -> None:
    steps, last, stamp = make_transitions(20, seed=5, size=64)
    raw = Dataset.create(tmp_path / "raw", Dataset(run / "raw").spec, task="line")
    meta = Dataset(run / "raw")[0].meta
    raw.append(steps, last, stamp, meta, gaps=[(8, 3)])
    whole = [replace(step, truncated=False) for step in steps]

    def alone(part: list[Transition], final: Transition | None, name: str) -> np.ndarray:
        one = Dataset.create(tmp_path / name, raw.spec, task="line")
        one.append(part, final.obs if final is not None else last, stamp, meta)
        return encode(one, run / "model", tmp_path / f"{name}-latents")[0].array("obs.latent")

    made = encode(raw, run / "model", tmp_path / "latents")[0].array("obs.latent")
    before = alone(whole[:7], whole[7], "before")
    after = alone(whole[8:], None, "after")
    np.testing.assert_allclose(made[:8], before, atol=1e-5)
    np.testing.assert_allclose(made[8:], after, atol=1e-5)


def test_encoding_goes_on_where_it_was(run: Path, tmp_path: Path) -> None:
    raw = make_dataset(tmp_path / "raw", LENGTHS[:1], size=64)
    encode(raw, run / "model", tmp_path / "latents")
    grown = make_dataset(tmp_path / "raw", LENGTHS[1:], size=64, seed=1)
    calls: list[tuple[int, int]] = []
    made = encode(grown, run / "model", tmp_path / "latents", lambda *call: calls.append(call))
    assert calls == [(2, 3), (3, 3)]
    whole = LatentDataset(run / "latents")
    for one, other in zip(made, whole, strict=True):
        np.testing.assert_allclose(one.array("obs.latent"), other.array("obs.latent"), atol=1e-5)


@pytest.mark.parametrize("preset", ["tiny_without_model", "tiny"])
def test_the_pair_is_one_graph_that_acts_as_its_halves(
    run: Path, tmp_path: Path, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = LatentDataset(run / "latents")
    save(tmp_path / "head", latents, "fosp", preset, updates=2)
    words = ["export", str(tmp_path / "head"), "--data", str(run / "latents")]
    words += ["--out", str(tmp_path / "bundles")]
    assert main.main([*words, "--observations", str(run / "raw")]) == 0
    assert "parity" in capsys.readouterr().out
    pointer = bundle.current(tmp_path / "bundles")
    assert pointer is not None
    raw = Dataset(run / "raw")
    graph = OnnxPolicy.load(pointer.directory, raw.spec)
    head = load_algorithm(tmp_path / "head").policy
    carry, head_carry = graph.initial_carry(1), head.initial_carry(1)
    for t in range(30):
        obs = {name: array[t][None] for name, array in raw[0].obs.items()}
        action, carry = graph.act(obs, carry)
        expected, head_carry = head.act(
            {"latent": latents[0].array("obs.latent")[t][None]}, head_carry
        )
        np.testing.assert_allclose(action, expected.numpy(), atol=1e-4)
        executed = raw[0].array("action")[t]
        carry, head_carry = with_executed(carry, executed), with_executed(head_carry, executed)


def test_what_does_not_belong_together_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, latents = Dataset(run / "raw"), LatentDataset(run / "latents")
    with pytest.raises(DataError, match="holds no latents"):
        LatentDataset(run / "raw")
    with pytest.raises(SpecMismatchError, match="disagree"):
        encode(latents, run / "model", tmp_path / "twice")
    other = save(tmp_path / "other", raw, "fosp", "tiny", updates=1)
    with pytest.raises(DataError, match="another encoder"):
        encode(raw, other, run / "latents")
    blind = save(tmp_path / "blind", raw, "fosp", "tiny_without_model")
    with pytest.raises(CheckpointError, match="no world model"):
        tracker(blind)
    head = save(tmp_path / "head", latents, "fosp", "tiny_without_model")
    words = ["export", str(head), "--data", str(run / "latents"), "--out", str(tmp_path / "b")]
    assert main.main(words) == 2 and "--observations" in capsys.readouterr().err
    words = [
        "encode",
        str(run / "model"),
        "--data",
        str(run / "none"),
        "--out",
        str(tmp_path / "l"),
    ]
    assert main.main(words) == 2 and "no such dataset" in capsys.readouterr().err
