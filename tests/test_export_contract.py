"""Every algorithm of the catalogue exports: parity 1e-5 over 200 carried steps, and it loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safe_o2o import catalog
from safe_o2o.export.onnx import export_bundle
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from tests.exported_policy import observations
from tests.synthetic import SPEC, STATISTICS, sequence_batch
from tests.test_algorithm_contract import build


@pytest.mark.parametrize("name", sorted(catalog.algorithms))
def test_onnx_parity(name: str, tmp_path: Path) -> None:
    algorithm = build(name)
    for seed in range(3):
        algorithm.update(sequence_batch(seed))
    report = export_bundle(
        algorithm.policy,
        SPEC,
        tmp_path / "v000001",
        algorithm=name,
        parity_steps=observations(200),
        statistics=STATISTICS,
        provenance={"step": 3, "seed": 0},
    )
    assert report.parity <= 1e-5
    policy = OnnxPolicy.load(tmp_path / "v000001", SPEC)
    carry, actions = policy.initial_carry(), []
    for obs in observations(20, seed=1):
        action, carry = policy.act({k: v[None] for k, v in obs.items()}, carry)
        actions.append(action[0])
    assert np.abs(actions).max() <= 1.0 and np.ptp(actions, axis=0).max() > 0
