"""Every algorithm of the catalogue exports: parity 1e-5 over 200 carried steps, and it loads."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safe_o2o import catalog
from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.algorithms.fosp_presets import preset
from safe_o2o.export.onnx import export_bundle
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.training.promotion import _bad_weights
from tests.exported_policy import observations
from tests.synthetic import SPEC, STATISTICS, batch_of, observations_of, sequence_batch
from tests.test_algorithm_contract import build


@pytest.mark.parametrize("name", sorted(catalog.algorithms))
def test_onnx_parity(name: str, tmp_path: Path) -> None:
    check_parity(build(name), name, tmp_path)


def test_onnx_parity_of_a_policy_that_learned_online(tmp_path: Path) -> None:
    algorithm = Fosp(preset("tiny"), SPEC, STATISTICS)
    algorithm.start_online()
    check_parity(algorithm, "fosp", tmp_path)


def test_onnx_parity_of_several_modes(tmp_path: Path) -> None:
    config, cluttered = preset("tiny"), preset("cluttered")
    world_model = replace(config.world_model, encoder=cluttered.world_model.encoder)
    config = replace(config, world_model=world_model, actor_modes=cluttered.actor_modes)
    algorithm = Fosp(config, SPEC, STATISTICS)
    algorithm.update(sequence_batch(9))
    algorithm.start_online()  # the frozen policy, a candidate from here on, has modes too
    check_parity(algorithm, "fosp", tmp_path)


def check_parity(algorithm: Any, name: str, tmp_path: Path) -> None:
    """It learns a little, is exported, and the runtime acts as it does."""
    for seed in range(3):
        algorithm.update(batch_of(algorithm, seed))
    stream = observations if algorithm.wants == "sequences" else partial(observations_of, algorithm)
    report = export_bundle(
        algorithm.policy,
        algorithm.spec,
        tmp_path / "v000001",
        algorithm=name,
        parity_steps=stream(200),
        statistics=STATISTICS,
        provenance={"step": 3, "seed": 0},
    )
    assert report.parity <= (1e-3 if name == "loop" else 1e-5)
    assert _bad_weights(OnnxPolicy.load(tmp_path / "v000001", algorithm.spec)) == 0
    policy = OnnxPolicy.load(tmp_path / "v000001", algorithm.spec)
    module = algorithm.policy.export_module()
    if hasattr(module, "undecided"):  # asked where the two differ, so that each form is asked here
        inputs = [torch.zeros(2, *port.shape[1:]) for port in policy.manifest.inputs]
        assert module.undecided(*inputs).shape == (2,)
    carry, actions = policy.initial_carry(), []
    for obs in stream(20, seed=1):
        action, carry = policy.act({k: v[None] for k, v in obs.items()}, carry)
        actions.append(action[0])
    assert np.abs(actions).max() <= 1.0 and np.ptp(actions, axis=0).max() > 0
