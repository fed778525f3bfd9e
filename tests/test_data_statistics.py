"""One pass in pieces gives what NumPy gives over everything at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from safe_o2o.data.statistics import Statistics
from safe_o2o.errors import DataError
from tests.data_fakes import make_dataset


def test_streaming_statistics_equal_those_of_all_rows(tmp_path: Path) -> None:
    datasets = [make_dataset(tmp_path / "a", [3, 11]), make_dataset(tmp_path / "b", [7], seed=40)]
    calls: list[tuple[int, int]] = []
    statistics = Statistics.compute(datasets, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    episodes = [episode for dataset in datasets for episode in dataset]
    reward = [episode.array("reward").astype(np.float64)[:, None] for episode in episodes]
    expected = {
        "pose": [episode.array("obs.pose") for episode in episodes],
        "action": [episode.array("action") for episode in episodes],
        "reward": reward,
        "return": [rows.sum(0, keepdims=True) for rows in reward],
    }
    counts = {"pose": 24, "action": 21, "reward": 21, "return": 3}
    assert set(statistics.arrays) == set(expected)
    for name, moments in statistics.arrays.items():
        rows = np.concatenate(expected[name]).astype(np.float64)
        assert moments.count == len(rows) == counts[name]
        np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.std, rows.std(0), rtol=1e-12)
        assert moments.low == tuple(rows.min(0)) and moments.high == tuple(rows.max(0))


def test_statistics_survive_json(tmp_path: Path) -> None:
    statistics = Statistics.compute(make_dataset(tmp_path, [4]))
    assert Statistics.from_json(json.loads(json.dumps(statistics.to_json()))) == statistics


def test_an_empty_dataset_has_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no episode"):
        Statistics.compute(make_dataset(tmp_path, []))
