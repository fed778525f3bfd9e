"""FOSP on cameras alone, on vectors alone, on both; with a world model and without one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.algorithms.fosp_presets import preset
from safe_o2o.data.batch import Batch
from safe_o2o.errors import ConfigError
from safe_o2o.export.onnx import PARITY_STEPS, export_bundle
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.spaces import ObservationSpec, Spec
from tests.synthetic import SPEC, STATISTICS, sequence_batch

INPUTS = {"both": ("image", "tcp_pose"), "camera": ("image",), "vector": ("tcp_pose",)}


def seen(names: tuple[str, ...]) -> Spec:
    arrays = {name: SPEC.observation.arrays[name] for name in names}
    return Spec(ObservationSpec(arrays), SPEC.action)


def part(batch: Batch, names: tuple[str, ...]) -> Batch:
    return replace(batch, obs={name: batch.obs[name] for name in names})


@pytest.mark.parametrize("names", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("name", ["tiny", "tiny_without_model"])
def test_it_trains_tunes_and_deploys(name: str, names: tuple[str, ...], tmp_path: Path) -> None:
    spec = seen(names)
    algorithm = Fosp(preset(name), spec, STATISTICS)
    for seed in range(2):
        algorithm.update(part(sequence_batch(seed), names))
    algorithm.start_online()
    metrics = algorithm.update(part(sequence_batch(2, origin=1), names))
    assert all(math.isfinite(value) for value in metrics.values())
    assert ("model/loss" in metrics) is (name == "tiny")
    obs = part(sequence_batch(9, batch=PARITY_STEPS), names).obs
    recorded = [
        {key: value[i, 0].numpy() for key, value in obs.items()} for i in range(PARITY_STEPS)
    ]
    report = export_bundle(
        algorithm.policy,
        spec,
        tmp_path / "v000001",
        algorithm="fosp",
        parity_steps=recorded,
        statistics=STATISTICS,
        provenance={},
    )
    assert report.parity <= 1e-5
    assert bool(OnnxPolicy.load(report.directory, spec).initial_carry()) is (name == "tiny")


def test_without_a_model_the_actor_and_critics_train_the_encoder() -> None:
    algorithm = Fosp(preset("tiny_without_model"), SPEC, STATISTICS)
    assert not any(
        "rssm" in name or "decoder" in name for name, _ in algorithm.net.named_parameters()
    )
    algorithm.update(sequence_batch(0))  # critics start at zero and pass nothing on at first
    loss, _ = algorithm.objectives(sequence_batch(1), 1)
    loss.backward()
    grads = [p.grad for p in algorithm.net.world_model.encoder.parameters()]
    assert all(grad is not None and bool(grad.any()) for grad in grads)


def test_without_a_model_only_what_is_seen_now_counts() -> None:
    algorithm = Fosp(replace(preset("tiny_without_model"), shift=0), SPEC, STATISTICS)
    batch = sequence_batch(3)
    other = replace(batch, obs={name: value.flip(1) for name, value in batch.obs.items()})
    records = [algorithm.objectives.records(b) for b in (batch, other)]
    first, second = (algorithm.net.world_model.embed(r.image, r.vector) for r in records)
    torch.testing.assert_close(first, second.flip(1))


def test_a_model_that_is_left_out_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match="without_model"):
        replace(preset("tiny"), model="none")
    with pytest.raises(ConfigError, match="image embedding"):
        replace(preset("tiny_without_model"), critic_target="imagined")


def test_an_observation_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither"):
        Fosp(preset("tiny"), Spec(ObservationSpec({}), SPEC.action))
