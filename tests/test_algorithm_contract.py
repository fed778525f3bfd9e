"""Every algorithm of the catalogue: finite, reproducible, resumable bit for bit, deployable."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safe_o2o import catalog
from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.data.batch import Batch
from safe_o2o.export.onnx import PARITY_STEPS, export_bundle
from safe_o2o.interfaces import Algorithm, Policy
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.spaces import ObservationSpec, Spec
from tests.synthetic import (
    SPEC,
    STATISTICS,
    batch_of,
    observations_of,
    sequence_batch,
    spec_of,
)


def build(name: str, **changes: Any) -> Any:
    algorithm = catalog.load("algorithm", name)
    config = replace(algorithm.preset("tiny"), total_updates=20, **changes)
    return algorithm(config, spec_of(algorithm), STATISTICS)


def flat(state: Any, path: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        out: dict[str, Any] = {}
        for key, value in state.items():
            out |= flat(value, f"{path}/{key}")
        return out
    if isinstance(state, list | tuple):
        return flat(dict(enumerate(state)), path)
    return {path: state}


def require_same_state(a: Any, b: Any) -> None:
    first, second = flat(a), flat(b)
    assert first.keys() == second.keys()
    for path, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[path]), path
        else:
            assert value == second[path], path


@pytest.mark.parametrize("name", sorted(catalog.algorithms))
def test_update_is_finite_and_reproducible(name: str) -> None:
    runs = []
    for _ in range(2):
        algorithm = build(name)
        assert isinstance(algorithm, Algorithm) and isinstance(algorithm.policy, Policy)
        metrics = [algorithm.update(batch_of(algorithm, seed)) for seed in range(3)]
        runs.append(metrics)
        assert all(math.isfinite(value) for row in metrics for value in row.values())
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", sorted(catalog.algorithms))
def test_resume_is_bitwise(name: str) -> None:
    whole = build(name)
    for seed in range(4):
        whole.update(batch_of(whole, seed))
    first = build(name)
    for seed in range(2):
        first.update(batch_of(first, seed))
    second = build(name, seed=99)  # another start must leave no trace
    second.load_state_dict(first.state_dict())
    for seed in range(2, 4):
        second.update(batch_of(second, seed))
    require_same_state(whole.state_dict(), second.state_dict())


@pytest.mark.parametrize("name", sorted(catalog.algorithms))
def test_policy_acts_in_range_and_depends_on_its_carry(name: str) -> None:
    algorithm = build(name)
    policy, rows = algorithm.policy, observations_of(algorithm, 4)
    obs = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
    carry = policy.initial_carry(4)
    action, carry = policy.act(obs, carry)
    assert action.shape == (4, 3) and (action.abs() <= 1).all()
    again, _ = policy.act(obs, policy.initial_carry(4))
    assert torch.equal(action, again)
    noisy, _ = policy.act(obs, policy.initial_carry(4), deterministic=False)
    assert (noisy.abs() <= 1).all()


@pytest.mark.parametrize("name", sorted(catalog.algorithms))
def test_exported_graph_agrees_over_carried_state(name: str, tmp_path: Path) -> None:
    algorithm = build(name)
    for seed in range(4):
        algorithm.update(batch_of(algorithm, seed))
    recorded = observations_of(algorithm, PARITY_STEPS, seed=9)
    report = export_bundle(
        algorithm.policy,
        algorithm.spec,
        tmp_path / "v000001",
        algorithm=name,
        parity_steps=recorded,
        statistics=STATISTICS,
        provenance={},
        noise_seed=algorithm.config.seed,
    )
    # A planner's weights are exponentials of long sums: it says itself what rounding comes to.
    tolerance = 1e-3 if name == "loop" else 1e-5
    assert report.steps >= PARITY_STEPS >= 200 and report.parity <= tolerance
    graph = OnnxPolicy.load(report.directory, algorithm.spec)
    network, state = algorithm.policy, algorithm.policy.initial_carry(1)
    carry = graph.initial_carry(1)
    for step in recorded[:20]:  # deterministic noise included: both choose the same candidates
        batch = {key: value[None] for key, value in step.items()}
        expected, state = network.act(batch, state)
        action, carry = graph.act(batch, carry)
        assert abs(action - expected.numpy()).max() <= tolerance


def test_two_cameras_and_nothing_else_are_enough_to_learn() -> None:
    """As Safety-Gymnasium's tasks are: no vector in the observation."""
    picture = SPEC.observation.arrays["image"]
    spec = Spec(ObservationSpec({"front": picture, "back": picture}), SPEC.action)

    def seen(seed: int) -> Batch:
        batch, other = sequence_batch(seed), sequence_batch(seed + 50)
        return replace(batch, obs={"front": batch.obs["image"], "back": other.obs["image"]})

    algorithm = Fosp(replace(Fosp.preset("tiny"), total_updates=20), spec, {})
    metrics = [algorithm.update(seen(seed)) for seed in range(2)]
    assert all(math.isfinite(value) for row in metrics for value in row.values())
    policy = algorithm.policy
    obs = {name: picture[:, 0] for name, picture in seen(9).obs.items()}
    for name in obs:
        blind = {**obs, name: torch.zeros_like(obs[name])}
        actions = [policy.act(o, policy.initial_carry(4))[0] for o in (obs, blind)]
        assert not torch.equal(*actions)
